"""The documentation covers every export, and its code runs."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import fastntk_sk
from fastntk_sk import FastNTKClassifier, baselines, evaluation, exceptions, inspection

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("user_guide/*.md"))
WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]


def test_the_reference_covers_every_export():
    listed = set(re.findall(r"^   ~(fastntk_sk\.\S+)$", (ROOT / "docs" / "api.rst").read_text(), re.M))
    names = {f"fastntk_sk.{name}" for name in fastntk_sk.__all__}
    for module in (baselines, evaluation, inspection):
        names |= {f"{module.__name__}.{name}" for name in module.__all__}
    for name, value in vars(exceptions).items():
        if inspect.isclass(value) and value.__module__ == exceptions.__name__:
            names.add(f"{exceptions.__name__}.{name}")
    assert listed == names


def public_objects():
    yield from ((name, getattr(fastntk_sk, name)) for name in fastntk_sk.__all__)
    for module in (baselines, evaluation, inspection):
        yield from ((name, getattr(module, name)) for name in module.__all__)


# what functions return: made by nobody else, and shown in their examples
RESULTS = {"BaselineClassifier", "ULiRAResult"}


@pytest.mark.parametrize(("name", "thing"), [one for one in public_objects() if one[0] not in RESULTS])
def test_public_docstrings_end_in_an_example(name, thing):
    text = inspect.getdoc(thing)
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return
    sections = re.findall(r"^(\w[\w ]+)\n-{3,}$", text, re.M)
    assert sections[-1] == "Examples", f"{name} has {sections}"
    order = ["Parameters", "Attributes", "Returns", "Raises", "Warns", "See Also", "Notes", "References"]
    places = [order.index(section) for section in sections[:-1] if section in order]
    assert places == sorted(places), f"{name} has {sections}"


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_of_the_user_guide_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FastNTKClassifier, "push_to_hub", lambda self, repo_id, **arguments: repo_id)
    known = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(block, known)
    assert known["clf"].n_samples_forgotten_


def test_links_between_files_hold():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    built = ("generated", "auto_examples", "_build")
    broken = []
    for page in pages:
        if set(built) & set(page.relative_to(ROOT).parts):
            continue
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            if not (page.parent / target).exists() and not set(built) & set(Path(target).parts):
                broken.append(f"{page.name}: {target}")
    assert not broken


@pytest.fixture
def generated(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("generated")


def test_pages_are_written_from_files(tmp_path, generated):
    generated.write(tmp_path / "pages")
    zoo = (tmp_path / "pages" / "zoo.md").read_text()
    assert all(f"| `{name}` |" in zoo for name in ("mlp", "convnext_base", "shufflenet_v2_x1_0"))


def test_links_of_written_pages_lead_to_pages_or_files(tmp_path, generated):
    folder = tmp_path / "pages"
    generated.write(folder)
    found = set()
    for page in folder.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            found.add(target)
            assert (folder / target).exists() or "auto_examples" in target, f"{page.name}: {target}"
    assert "benchmarks.md" in found


def test_results_show_the_pictures_of_the_benchmarks(tmp_path, generated):
    folder = tmp_path / "pages"
    generated.write(folder)
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", (folder / "results.md").read_text())
    assert {"peers.svg", "scaling.svg", "tow.svg"} <= {Path(picture).name for picture in shown}


def test_docstrings_name_every_key_of_a_receipt_and_of_a_dry_run(blobs):
    X, y = blobs
    clf = FastNTKClassifier(random_state=0, n_components=16).fit(X, y, sample_ids=range(len(X)))
    report = clf.can_unlearn(X[:2])
    text = FastNTKClassifier.can_unlearn.__doc__
    assert all(f'"{key}"' in text for key in [*report, *report["rows"][0], *report["exactness"]])
    clf.unlearn(sample_ids=[0, 1], X_forget=X[:2])
    assert all(f'"{key}"' in FastNTKClassifier.receipts_.__doc__ for key in clf.receipts_[0])
