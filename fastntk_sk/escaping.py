"""Names that somebody else chose, as they may be shown: classes, files, ids."""

from __future__ import annotations

import re
import unicodedata
from html import escape

_JOINERS = "\u200c\u200d"  # Persian and Indic scripts and emoji need them
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#!|~$])")


def visible(text: object, keep: str = "") -> str:
    r"""Return a text whose control and format characters are escaped, so that it shows what it holds.

    They are line breaks and escape sequences, marks that turn the direction of text, surrogates (bytes
    of a file name that are no UTF-8) and other characters without a shape; `keep` names some that stay.

    >>> visible("cat\x1b[2J\u202egnp.exe")
    'cat\\x1b[2J\\u202egnp.exe'
    """
    kept = _JOINERS + keep
    hidden = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in hidden and c not in kept else c
        for c in str(text)
    )


def markdown(text: object) -> str:
    """Return a text as it may stand in a line of Markdown: no link, HTML, emphasis, formula or cell."""
    return _MARKDOWN.sub(r"\\\1", escape(visible(text), quote=False))


def drawn(text: object) -> str:
    """Return a text as matplotlib draws it: no formula."""
    return visible(text).replace("$", r"\$")
