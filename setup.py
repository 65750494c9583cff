"""What setup.cfg cannot say: on a package index, relative links of the README lead to the repository."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
REPOSITORY = "fastntk-sk/fastntk_sk"
RELATIVE = "(?!https?:|#)"


def long_description() -> str:
    """Return README.md with links to the files of this version."""
    init = (ROOT / "fastntk_sk" / "__init__.py").read_text(encoding="utf-8")
    tag = "v" + re.findall(r'^__version__ = "(.+)"$', init, re.MULTILINE)[0]
    pages = f"https://github.com/{REPOSITORY}/blob/{tag}/"
    pictures = f"https://raw.githubusercontent.com/{REPOSITORY}/{tag}/"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(rf'(!\[[^]]*\]\(|\bsrc(?:set)?="){RELATIVE}', rf"\1{pictures}", text)
    return re.sub(rf'((?<!!)\[[^]]+\]\(|\bhref="){RELATIVE}', rf"\1{pages}", text)


setup(long_description=long_description())
