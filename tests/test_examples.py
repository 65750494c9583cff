"""The quickstart, the front pages and the examples run."""

import functools
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hub_server import connected_hub

import fastntk_sk
from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import EmptyClassWarning

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "examples" / "quickstart" / "plot_forget.py"
# half a minute each; `make docs` executes them too
LONG = (
    "choose_a_subset", "choose_alpha_and_tangent_scale", "distributed", "evaluate_with_oracles",
    "image_folder", "push_an_unlearned_adapter", "scaling", "thousands_of_deletions", "trained_model",
    "wrong_labels",
)  # fmt: skip
EXAMPLES = [
    pytest.param(path, marks=[pytest.mark.slow] if path.stem.endswith(LONG) else [])
    for path in sorted(set((ROOT / "examples").rglob("plot_*.py")) - {QUICKSTART})
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """What runs a script in this process and in a folder of its own; another one would import again."""

    def call(script, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        monkeypatch.setattr(sys, "path", [str(Path(script).parent), *sys.path])
        with matplotlib.rc_context():
            runpy.run_path(str(script), run_name="__main__")
        plt.close("all")

    return call


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_quickstart(run, tmp_path, capsys):
    picture = tmp_path / "forget.png"
    run(QUICKSTART, "--out", str(picture), "--rows", "150", "--pixels", "32")
    printed = capsys.readouterr().out
    assert "'exact': True" in printed
    difference = float(re.search(r"difference to the refit: (\S+)", printed)[1])
    assert difference < 1e-5
    assert picture.stat().st_size > 10_000


def test_readme_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    namespace: dict = {}
    exec(blocks[1], namespace)
    assert namespace["clf"].n_samples_learned_ == 147
    exec(blocks[3], namespace)
    assert namespace["report"].index[-1] == "second oracle (noise floor)"
    assert namespace["report"].loc["ours", "tow"] > 0.8


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_first_code_of_the_front_pages_runs(page, digits, monkeypatch):
    smaller = functools.partial(FastNTKClassifier, image_size=32, n_components=64)
    monkeypatch.setattr(fastntk_sk, "FastNTKClassifier", smaller)
    block = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[1]
    X, y = digits[0][:8], digits[1][:8]
    namespace: dict = {"X": X, "y": y, "X_forget": X[:2]}
    with pytest.warns(EmptyClassWarning):
        exec(block, namespace)
    assert namespace["clf"].n_samples_forgotten_ == 2


def test_readme_code_for_the_hub_runs(blobs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[2]
    X, y = blobs
    clf = FastNTKClassifier(random_state=0, n_components=16).fit(X, y)
    namespace = {
        "clf": clf,
        "X_forget": X[:3],
        "FastNTKClassifier": FastNTKClassifier,
    }
    with connected_hub(monkeypatch, tmp_path / "home"):
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        exec(block, namespace)
        pulled = FastNTKClassifier.from_pretrained("me/adapter")
    np.testing.assert_array_equal(pulled.decision_function(X), clf.decision_function(X))
    assert clf.n_samples_forgotten_ == 3


def test_code_of_the_zoo_page_prints_its_own_numbers(capsys):
    page = (ROOT / "zoo/README.md").read_text()
    exec(textwrap.dedent(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]), {})
    recipe = tomllib.loads(textwrap.dedent(re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1]))[
        "resnet34"
    ]
    expected = [recipe[name] for name in ("n_weights", "n_features", "n_pooled")]
    assert [*map(int, capsys.readouterr().out.split())] == [*expected, recipe["trainable"]["norm"]]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_ends_in_a_picture(script, run, tmp_path):
    run(shutil.copy(script, tmp_path))  # it writes its picture beside itself
    assert (tmp_path / script.name).with_suffix(".png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore")
def test_the_paper_table_takes_other_data_and_networks(run, tmp_path):
    (tmp_path / "plugins.py").write_text(
        textwrap.dedent(
            """
            from tasks import digits
            from torch import nn

            def even_or_odd():
                X, y, X_test, y_test = digits()
                return X, (y % 2).astype(str), X_test, (y_test % 2).astype(str)

            def network():
                net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten())
                return {"backbone": net, "trainable": "norm", "image_size": 8}
            """
        )
    )
    task = "plugins:even_or_odd, plugins:network, 100 images, random"
    arguments = ["--data", "plugins:even_or_odd", "--network", "plugins:network", "--images", "100"]
    arguments += ["--seeds", "0", "--groups", "pretrained anchor", "--tasks", task]
    run(ROOT / "examples/paper/reproduce.py", *arguments)
    results = pd.read_csv(tmp_path / "results/results.csv").set_index("model")
    assert (results["task"] == task).all()
    assert results.loc["ours", "algebraic_gap"] < 1e-6
    assert results.loc["oracle", "accuracy_test"] > 0.8


@pytest.mark.slow
def test_the_paper_table_in_small_resumes_and_is_complete(tmp_path):
    script = ROOT / "examples/paper/reproduce.py"
    command = [sys.executable, "-W", "ignore", str(script), "--small", "--out", str(tmp_path)]
    sheet = tmp_path / "results.csv"
    with subprocess.Popen(command) as first:
        while first.poll() is None and not sheet.exists():
            time.sleep(0.1)
        first.kill()
    before = sheet.read_text()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sheet.read_text().startswith(before)
    results = pd.read_csv(sheet)
    assert results.groupby(["group", "task"]).size().tolist() == [11, 11, 7, 7, 5, 5, 5, 5]
    rows = results.set_index(["group", "model"])
    for group in ("pretrained anchor", "ladder"):
        assert (rows.loc[(group, "ours"), "algebraic_gap"] < 1e-6).all()
    published = rows.loc[("fine-tuned anchor", "Fast-NTK, dual form"), "accuracy_test"]
    ours = rows.loc[("fine-tuned anchor", "ours"), "accuracy_test"]
    assert published.tolist() == ours.tolist()
    assert (tmp_path / "tow.svg").stat().st_size > 10_000
    page = (tmp_path / "README.md").read_text()
    assert "| SalUn |" in page
    ladder, sgd = (
        results[(results["group"] == group) & (results["model"] == model)]["accuracy_test"].to_numpy()
        for group, model in (("ladder", "ours"), ("SGD", "oracle"))
    )
    ends = re.findall(r"- SGD \|\n.*?\n\| ours .*?\| (\S+) \|\n", page, re.DOTALL)
    assert ends == [f"{100 * difference:+.1f}" for difference in ladder - sgd]
