"""The app: its session without a browser, and clicked through in headless Chromium."""

import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from copy import deepcopy
from http.client import HTTPConnection
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from fastntk_sk import FastNTKClassifier, verify_receipts
from fastntk_sk.demo import page, session
from fastntk_sk.demo.session import VIEWS, learn_example, learn_folder

SMALL = {"backbone": "test_resnet", "pretrained": False, "n_components": 8}
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def learned():
    sizes = {"N_LEARNED": 120, "N_WRONG": 12, "N_HELD_OUT": 40, "N_FORGOTTEN": 5}
    with pytest.MonkeyPatch.context() as patch:
        for name, number in sizes.items():
            patch.setattr(session, name, number)
        return learn_example(**SMALL)


@pytest.fixture
def example(learned):
    """A copy, such as each person gets."""
    return deepcopy(learned)


def folder_of(place, sizes, pixels=9):
    """Fill class folders with so many pictures each."""
    draws = np.random.default_rng(0)
    for name, n in sizes.items():
        (place / name).mkdir(parents=True)
        for i in range(n):
            picture = draws.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
            Image.fromarray(picture).save(place / name / f"{i}.png")
    return str(place)


def test_the_example_is_finished_when_the_page_opens(example):
    assert len(example.forgotten) == 5
    assert len(example.steps) == 2
    assert example.doubts
    assert not example.picked
    assert len(set(example.doubts) & set(example.forgotten)) == 0


def test_forgetting_gives_the_model_that_never_saw_the_pictures(example):
    for place in (0, 1, 30):
        example.turn(place)
    example.turn(30)
    gone = example.picked | set(example.forgotten)
    example.forget()
    assert set(example.forgotten) == gone
    left = [picture for i, picture in enumerate(example.learned) if i not in gone]
    refit = FastNTKClassifier(**example.classifier.get_params()).fit(
        [picture.pixels for picture in left], [picture.label for picture in left]
    )
    held_out = [picture.pixels for picture in example.held_out]
    np.testing.assert_allclose(
        refit.predict_proba(held_out), example.classifier.predict_proba(held_out), atol=1e-5
    )
    assert example.steps[-1].readings == refit.predict(held_out).tolist()


def test_only_learned_pictures_can_be_picked(example):
    for place in (next(iter(example.forgotten)), -1, 120, None, "3", 1.5):
        example.turn(place)
    assert not example.picked
    with pytest.raises(ValueError, match="Tick some"):
        example.forget()


def test_all_pictures_can_be_paged_through(example):
    for view in VIEWS:
        pages = [page.cards(example, view, i) for i in range(page.n_pages(example, view))]
        drawn = [len(re.findall("<img", each)) for each in pages]
        assert sum(drawn) == len(example.places(view))
        assert max(drawn) <= page.ON_PAGE
    example.turn(7)
    drawn = "".join(page.cards(example, "learned", i) for i in range(page.n_pages(example, "learned")))
    assert re.findall(r'data-place="(\d+)" aria-pressed="true"', drawn) == ["7"]


def test_downloads_hold_what_they_say_and_leave_no_file(example, tmp_path, monkeypatch):
    scratch, kept = tmp_path / "scratch", tmp_path / "kept"
    scratch.mkdir()
    kept.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    files = example.downloads()
    assert not list(scratch.iterdir())
    (kept / "receipts.jsonl").write_bytes(files["receipts.jsonl"])
    zipfile.ZipFile(io.BytesIO(files["adapter.zip"])).extractall(kept / "adapter")
    receipts = verify_receipts(kept / "receipts.jsonl", adapter=kept / "adapter")
    assert [receipt["n_rows"] for receipt in receipts] == [5]
    assert not [name for name in os.listdir(kept / "adapter") if name.endswith(".fastntk")]


def test_a_folder(tmp_path):
    hostile = "<b onclick=x>{{value}}${1}"
    held = learn_folder(folder_of(tmp_path, {hostile: 7, "b": 6, "c": 2}), **SMALL | {"image_size": 32})
    assert [picture.label for picture in held.held_out].count("b") == 1
    assert len(held.held_out) == 2
    assert len(held.learned) == 13
    for shown in (page.cards(held, "learned", 0), page.summary(held), page.result(held)):
        assert "<b onclick" not in shown
    held.picked = set(held.places("learned")[:2])
    held.forget()
    assert "2 forgotten" in page.result(held)


def test_a_folder_without_pictures_to_measure_with(tmp_path):
    held = learn_folder(folder_of(tmp_path, {"a": 3, "b": 3}), **SMALL | {"image_size": 32})
    assert "No picture is held out" in page.result(held)


@pytest.mark.parametrize(
    ("sizes", "asked", "message"),
    [
        ({}, "", "Expected a folder of this machine, got ''"),
        ({}, "missing", "Expected a folder of this machine"),
        ({"a": 0}, ".", "Expected pictures in"),
        ({"a": 2}, ".", "Expected two classes at least"),
        ({"a": 3, "b": 3}, ".", "Expected at most 5 pictures, got 6"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, monkeypatch, sizes, asked, message):
    monkeypatch.setattr(session, "_MOST", 5)
    folder_of(tmp_path, sizes)
    with pytest.raises(ValueError, match=re.escape(message)):
        learn_folder(str(tmp_path / asked) if asked else asked, **SMALL)


def test_the_folder_is_a_space():
    """The front matter that a Space needs, and the paper that the Hub links it to."""
    folder = resources.files("fastntk_sk.demo")
    text = (folder / "README.md").read_text()
    front = text.split("---")[1]
    assert re.search(r"^sdk: gradio$", front, re.M)
    assert (folder / re.search(r"^app_file: (\S+)$", front, re.M)[1]).is_file()
    assert "arxiv.org/abs/2312.14923" in text
    assert "fastntk_sk[demo]" in (folder / "requirements.txt").read_text()


LIGHT = "rgb(74, 222, 128)", "rgb(248, 113, 113)"  # what a dark page is written in


@contextmanager
def served(folder):
    """Serve the app from a process of its own, and give its address."""
    code = f"from fastntk_sk.demo.app import serve; serve(7911, **{SMALL!r})"
    with subprocess.Popen(
        [sys.executable, "-u", "-W", "ignore", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=os.environ | {"GRADIO_TEMP_DIR": str(folder / "cache")},
    ) as app:
        try:
            yield next(found[0] for line in app.stdout if (found := re.search(r"http://\S+", line)))
        finally:
            app.kill()


@contextmanager
def browser(folder):
    """Open a tab of Chromium, and give it with the list of what goes wrong in it."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    wrong = []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], downloads_path=folder
        )
        tab = chromium.new_page(viewport={"width": 1280, "height": 900})
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        yield tab, wrong
        chromium.close()


@pytest.mark.slow
def test_the_app_in_a_browser(tmp_path):
    pytest.importorskip("gradio")
    pictures = folder_of(tmp_path / "pictures", {"<i>a": 6, "b": 6})
    with browser(tmp_path) as (tab, wrong), served(tmp_path) as address:
        connection = HTTPConnection("127.0.0.1", 7911)
        for host, status in (("evil.example", 400), ("evil.example:7911", 400), ("localhost", 200)):
            connection.request("GET", "/", headers={"Host": host})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
        for origin, status in (
            ("http://evil.example", 403),
            ("http://127.0.0.1:7950", 403),
            ("null", 403),
            ("http://127.0.0.1:7911", 200),
        ):
            connection.request("GET", "/config", headers={"Origin": origin})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
            assert status == 403 or "none" in answer.headers["Content-Security-Policy"]
        connection.close()

        tab.goto(f"{address}/?__theme=dark")
        note = tab.locator("#result .note.right, #result .note.wrong").first
        assert note.evaluate("note => getComputedStyle(note).color") in LIGHT
        tab.goto(address)
        tab.wait_for_selector("#pictures button.card")
        assert "24 forgotten" in tab.inner_text("#summary")
        assert tab.locator("#pictures button.card").count() <= page.ON_PAGE
        assert tab.is_disabled("#forget")
        for place in (0, 1):
            tab.locator("#pictures button.card").nth(place).click()
        tab.wait_for_function("document.querySelector('#forget').innerText == 'Forget 2 pictures'")
        assert tab.locator("#pictures [aria-pressed=true]").count() == 2
        tab.click("#forget")
        tab.wait_for_function("document.querySelector('#summary').innerText.includes('26 forgotten')")

        tab.locator("#views label", has_text="All learned").click()
        tab.wait_for_function("document.querySelector('#span').innerText.includes('1 to 24 of 574')")
        tab.click("#on")
        tab.wait_for_function("document.querySelector('#span').innerText.includes('25 to 48 of 574')")
        for name in ("receipts.jsonl", "adapter.zip"):
            with tab.expect_download() as download:
                tab.click(f"a[download='{name}']")
            download.value.save_as(tmp_path / name)
        with zipfile.ZipFile(tmp_path / "adapter.zip") as archive:
            archive.extractall(tmp_path / "adapter")
        receipts = verify_receipts(tmp_path / "receipts.jsonl", adapter=tmp_path / "adapter")
        assert [receipt["n_rows"] for receipt in receipts] == [24, 2]

        for name, said in (("/nowhere", "Expected a folder"), (pictures, "")):
            tab.fill("#folder textarea, #folder input", name)
            tab.keyboard.press("Enter")
            if said:
                tab.get_by_text(said).wait_for()
        tab.wait_for_function("document.querySelector('#summary').innerText.includes('10 pictures')")
        assert tab.locator("#pictures i").count() == 0
        for width in (1280, 390):
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert not wrong
        assert "image/" not in tab.evaluate("JSON.stringify(localStorage)")
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
