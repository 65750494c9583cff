"""The demo, the front pages and the examples run."""

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

import fastntk_sk
from fastntk_sk import FastNTKClassifier

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "quickstart" / "plot_wrong_labels.py"
# half a minute each; `make docs` executes them too
LONG = (
    "choose_a_subset", "choose_alpha_and_tangent_scale", "distributed", "evaluate_with_oracles",
    "image_folder", "push_an_unlearned_adapter", "scaling", "thousands_of_deletions", "trained_model",
)  # fmt: skip
EXAMPLES = [
    pytest.param(path, marks=[pytest.mark.slow] if path.stem.endswith(LONG) else [])
    for path in sorted(set((ROOT / "examples").rglob("plot_*.py")) - {DEMO})
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


def test_the_demo_finds_and_forgets_wrong_labels(run, tmp_path, capfd):
    picture = tmp_path / "demo.png"
    run(DEMO, "--out", str(picture), "--rows", "300", "--pixels", "32", "--dark")
    printed, warned = capfd.readouterr()
    assert warned == ""
    assert "'exact': True" in printed
    difference = float(re.search(r"never learned them: (\S+)\.\n", printed)[1])
    assert difference < 1e-5
    before, after, refit = map(float, re.findall(r"(\d+\.\d)% ", printed))
    assert before < after == refit
    assert picture.stat().st_size > 10_000


def test_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    assert "480 {'exact': True, 'reasons': []}" in capsys.readouterr().out
    assert FastNTKClassifier.load("digits.fastntk").n_samples_forgotten_ == 20


def test_commands_of_the_readme_are_those_of_the_makefile():
    commands = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    for command in commands.splitlines():
        done = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_first_code_of_the_documentation_runs(digits, monkeypatch):
    smaller = functools.partial(FastNTKClassifier, image_size=32, n_components=256)
    monkeypatch.setattr(fastntk_sk, "FastNTKClassifier", smaller)
    page = (ROOT / "docs" / "index.md").read_text()
    X, y = digits[0][:200], digits[1][:200].copy()
    y[:20] = (y[:20] + 3) % 10
    namespace: dict = {"X": X, "y": y}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], namespace)
    doubtful = namespace["doubtful"]
    assert len(doubtful)
    assert np.mean(np.isin(doubtful, range(20))) > 0.5
    assert namespace["clf"].n_samples_forgotten_ == len(doubtful)


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
