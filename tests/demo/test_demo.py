"""The app: its session without a browser, and clicked through in headless Chromium."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from fastntk_sk import FastNTKClassifier
from fastntk_sk.demo.session import N_WRONG, SHOWN, learn

SMALL = {"backbone": "test_resnet", "pretrained": False, "n_components": 8}
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def test_a_session(monkeypatch):
    monkeypatch.setattr("fastntk_sk.demo.session.N_DIGITS", 40)
    session = learn(**SMALL)
    captions = [shown["caption"] for shown in session.gallery({2})]
    assert len(captions) == SHOWN
    assert "(truly " in captions[0]
    assert captions[2].startswith("✓ ")
    session.forget({0, 1, 30})
    assert session.gallery(set())[1]["caption"].startswith("✗ ")
    assert session.summary() == "37 pictures learned, 3 forgotten."
    assert json.loads(session.receipts())[0]["n_rows"] == 3
    with pytest.raises(ValueError, match="not forgotten yet"):
        session.forget({1})
    left = [i for i in range(40) if i not in session.forgotten]
    refit = FastNTKClassifier(**session.classifier.get_params()).fit(
        [session.pictures[i] for i in left], [session.labels[i] for i in left]
    )
    np.testing.assert_allclose(refit.predict_proba(session.pictures), session.now, atol=1e-5)
    assert len(session.notes) == N_WRONG


def test_a_folder(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(4):
            picture = np.random.default_rng(i).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / label / f"{i}.png")
    session = learn(str(tmp_path), **SMALL | {"image_size": 32})
    assert sorted(set(session.labels)) == ["a", "b"]
    assert not session.notes
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="pictures in"):
        learn(str(tmp_path / "none"))


def test_the_folder_is_a_space():
    """The front matter that a Space needs, and the paper that the Hub links it to."""
    folder = resources.files("fastntk_sk.demo")
    text = (folder / "README.md").read_text()
    front = text.split("---")[1]
    assert re.search(r"^sdk: gradio$", front, re.M)
    assert (folder / re.search(r"^app_file: (\S+)$", front, re.M)[1]).is_file()
    assert "arxiv.org/abs/2312.14923" in text
    assert "fastntk_sk[demo]" in (folder / "requirements.txt").read_text()


@contextmanager
def browser(folder):
    webdriver = pytest.importorskip("selenium.webdriver")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "window-size=1300,1500", f"user-data-dir={folder / 'profile'}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.implicitly_wait(20)
    try:
        yield driver
    finally:
        driver.quit()


def errors(driver):
    """Return what the page itself did wrong; what lies elsewhere cannot be reached from here."""
    return [
        entry["message"]
        for entry in driver.get_log("browser")
        if entry["level"] == "SEVERE" and not re.search(r"ERR_|favicon|manifest", entry["message"])
    ]


@pytest.mark.slow
def test_the_app_in_a_browser(tmp_path):
    pytest.importorskip("gradio")
    code = f"from fastntk_sk.demo.app import serve; serve(7911, **{SMALL!r})"
    command = [sys.executable, "-u", "-W", "ignore", "-c", code]
    cache = tmp_path / "cache"
    environment = os.environ | {"GRADIO_TEMP_DIR": str(cache)}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=environment,
    ) as app:
        try:
            address = next(found[0] for line in app.stdout if (found := re.search(r"http://\S+", line)))
            connection = HTTPConnection("127.0.0.1", 7911)
            for host, status in (("evil.example", 400), ("evil.example:7911", 400), ("localhost", 200)):
                connection.request("GET", "/", headers={"Host": host})
                answer = connection.getresponse()
                answer.read()
                assert answer.status == status
            with browser(tmp_path) as driver:
                driver.get(address)
                driver.find_element("id", "learn").click()
                pictures = waited(
                    lambda: driver.find_elements("css selector", "#pictures .thumbnail-item")
                )
                assert len(pictures) == SHOWN
                for place in (0, 1):
                    driver.find_elements("css selector", "#pictures .thumbnail-item")[place].click()
                    waited(lambda n=place: driver.page_source.count("✓ ") > n)
                driver.find_element("id", "forget").click()
                summary = "118 pictures learned, 2 forgotten."
                waited(lambda: summary in driver.find_element("id", "summary").text)
                assert "exact" in driver.find_element("id", "receipts").text
                assert driver.page_source.count("✗ ") > 2
                assert not errors(driver)
                assert not [path for path in cache.rglob("*") if path.is_file()]
        finally:
            app.kill()


def waited(found, seconds=120):
    """Return what a call finds at last."""
    stop = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < stop, "nothing came"
        time.sleep(0.2)
    return value
