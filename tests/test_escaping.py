"""Names that a stranger chose are shown, and neither obeyed nor rendered."""

import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from fastntk_sk import FastNTKClassifier
from fastntk_sk.cli import main
from fastntk_sk.escaping import drawn, markdown, visible
from fastntk_sk.evaluation import ChangedPredictionsDisplay, UnlearningDisplay, report_page
from fastntk_sk.publishing.card import model_card

NAMES = [
    "cat\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe\u2066",
    "a\nb\tc\r",
    "<img src=x onerror=alert(1)>",
    "[free](https://evil) | **x** `y` ![z](w)",
    r"$\frac$ $x$ \$5 {{ y }}",
]
HIDDEN = "\x1b\x07\u202e\u2066\r"


def test_what_is_escaped():
    shown = [visible(name) for name in NAMES]
    assert len(set(shown)) == len(NAMES)
    assert all(text.isprintable() for text in shown)
    assert visible("ü 猫 \U0001f469\u200d\U0001f52c") == "ü 猫 \U0001f469\u200d\U0001f52c"
    assert visible("bytes \udcff") == r"bytes \udcff"
    assert visible("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
    assert markdown("[a](b) <i> | $x$") == r"\[a\](b) &lt;i&gt; \| \$x\$"


@pytest.fixture
def clf(blobs):
    X, y = np.tile(blobs[0], (2, 1)), np.array(NAMES)[np.arange(120) % len(NAMES)]
    return FastNTKClassifier(n_components=8, random_state=0).fit(X, y)


def test_cards_and_pages(clf, blobs):
    card = model_card(clf)
    page = report_page(clf, X=blobs[0], y=clf.predict(blobs[0]))
    for text in (card, page, clf._repr_html_()):
        assert not set(HIDDEN) & set(text)
        assert "<img src=x" not in text
    assert r"\[free\](https://evil) \|" in card
    assert r"\$\\frac\$" in card
    classes = next(line for line in card.splitlines() if line.startswith("| classes"))
    assert "&lt;img src=x" in classes


def test_pictures():
    picture = np.zeros((8, 8), dtype=np.uint8)
    many = [picture] * len(NAMES)
    display = ChangedPredictionsDisplay(many, np.zeros(len(NAMES)), NAMES, NAMES[::-1]).plot()
    display.figure_.canvas.draw()  # a formula that cannot be parsed is a ValueError
    assert not any(set(HIDDEN) & set(ax.get_title()) for ax in display.axes_)
    accuracies = {name: dict.fromkeys(("retain", "forget", "test"), 0.5) for name in NAMES}
    margins = {of: dict.fromkeys(NAMES, np.zeros(3)) for of in ("forget", "test")}
    UnlearningDisplay(accuracies, margins).plot().figure_.canvas.draw()
    for name in NAMES:
        text = plt.figure().text(0, 0, drawn(name))
        assert text._preprocess_math(text.get_text()) == (visible(name), False)
    plt.close("all")


@pytest.mark.skipif(os.name != "posix", reason="these are no names of files elsewhere")
def test_the_terminal(tmp_path, capsys):
    for k, label in enumerate(("ok", "no\x1b[2J\u202e\nfake line")):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(4):
            picture = np.random.default_rng(4 * k + i).integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / label / f"{i}\x1b]0;x\x07.png")
    data, state = str(tmp_path / "data"), str(tmp_path / "state")
    network = ["--backbone", "test_resnet", "--random-weights", "--image-size", "32"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["fit", data, "--out", state, "--quiet", "--n-components", "8", *network]) == 0
        assert main(["predict", state, data, "--quiet"]) == 0
        assert main(["unlearn", state, "--quiet", data + "/\x1b[2J.png"]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 + 8
    assert r"\x1b[2J" in printed.err
    assert not set(HIDDEN) & set(printed.out + printed.err)
