"""What benchmark scripts write; their figures at full size take minutes: slow."""

import functools
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from cases import randomise

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.inputs import Rows

SCRIPTS = Path(__file__).parents[1] / "examples" / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["ladder", "norm"])
def test_deletion_at_full_size_is_exact(trainable):
    """100 of 1,000 Fashion-MNIST images, lite0 at 96 px: at most 1e-10 from a refit."""
    code = (
        "import numpy as np, exactness as e; from _common import fashion_mnist;"
        "X, y, _, _ = fashion_mnist(); rows = np.random.default_rng(0).permutation(len(X))[:1000];"
        "given = X[rows], y[rows], 'float32', 96, 4096;"
        f"print(*[r[2] for r in e.measure(*given, drift=False, trainable={trainable!r})])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    at_once, in_twenty = map(float, done.stdout.split()[-2:])
    assert at_once <= 1e-10
    assert in_twenty <= 1e-9


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_benchmark_scripts_import(name, monkeypatch):
    """So that what they take from the library and from each other is there."""
    monkeypatch.syspath_prepend(SCRIPTS)
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize(("trainable", "kernel"), [("ladder", "full"), ("norm", "pseudo")])
def test_parts_of_a_pass_add_up_to_it(monkeypatch, trainable, kernel):
    monkeypatch.syspath_prepend(SCRIPTS)
    pass_cost = importlib.import_module("pass_cost")
    smaller = lambda *args, **given: linearized(*args, **given | {"n_components": 8})  # noqa: E731
    linearized = pass_cost.linearized
    monkeypatch.setattr(pass_cost, "linearized", smaller)
    found = pass_cost.measure(32, torch.get_num_threads(), 3, 1, trainable, kernel)
    assert min(found.values()) > 0
    if trainable == "ladder":
        parts = pass_cost.profile(found, 3)
        assert sum(parts.values()) == pytest.approx(1000 * found["learn"] / 3)
        assert parts["input"] == pytest.approx(1000 * found["input"] / 3)


def test_results_of_a_recipe_stay_with_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    scripts = importlib.import_module("zoo_results")
    monkeypatch.setattr(scripts, "ZOO", tmp_path)
    file = tmp_path / "some.toml"
    file.write_text('# Some.\n\n[a]\nsource = "x"\n\n[b]\nsource = "y"\n')
    for accuracy in (0.5, 0.6):
        for name in ("a", "b"):
            scripts.write(name, {"accuracy": accuracy, "date": "today"})
    assert file.read_text() == (
        '# Some.\n\n[a]\nsource = "x"\n\n[a.results]\naccuracy = 0.6\ndate = "today"\n\n'
        '[b]\nsource = "y"\n\n[b.results]\naccuracy = 0.6\ndate = "today"\n'
    )


def test_a_recipe_is_measured_by_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    script = importlib.import_module("zoo_results")
    X, y = np.random.default_rng(0).integers(256, size=(40, 28, 28), dtype=np.uint8), np.arange(40) % 2
    monkeypatch.setattr(script, "training_images", lambda n: (X, y))
    monkeypatch.setattr(script, "fashion_mnist", lambda: (X, y, X, y))
    monkeypatch.setattr(script, "PIXELS", 32)
    smaller = functools.partial(FastNTKClassifier, n_components=16)
    monkeypatch.setattr(script, "FastNTKClassifier", smaller)
    monkeypatch.setattr(script, "ZOO", tmp_path)
    file = tmp_path / "some.toml"
    file.write_text('[tf_efficientnet_lite0]\nsource = "x"\n')
    monkeypatch.setattr(sys, "argv", ["zoo_results.py", "tf_efficientnet_lite0"])
    script.main()
    printed = re.search(r"\| tf_efficientnet_lite0 \| (\S+) \| (\S+) \|", capsys.readouterr().out)
    results = tomllib.loads(file.read_text())["tf_efficientnet_lite0"]["results"]
    assert [results["accuracy"], results["accuracy_of_probe"]] == [*map(float, printed.groups())]
    for wrong, message in (
        (["resnet17"], "resnet17: Expected a recipe"),
        (["local-dir:nowhere"], "local-dir:nowhere"),
        (["mlp"], "mlp: "),
    ):
        monkeypatch.setattr(sys, "argv", ["zoo_results.py", *wrong])
        with pytest.raises(SystemExit, match=message):
            script.main()


@pytest.mark.slow
def test_one_pass_gives_what_each_estimator_reads(monkeypatch):
    """Also to the last row of a batch that is not full, and for mirror images."""
    monkeypatch.syspath_prepend(SCRIPTS)
    one_pass = importlib.import_module("one_pass")
    net = randomise(timm.create_model("tf_efficientnet_lite0", num_classes=0).eval())
    kinds = ("head", 8), ("ladder-grid", 8), ("ladder-gap", 16), ("ladder", 32)
    linears = [one_pass.Linear(*kind) for kind in kinds]
    linears.append(one_pass.Linear("ladder", 32, mirrored=True))
    models = {linear: linear.model(net, 32, 0, 3) for linear in linears}
    X = np.random.default_rng(0).integers(256, size=(35, 28, 28), dtype=np.uint8)
    expected = {linear: [_rows(model, X)] for linear, model in models.items()}
    expected[linears[-1]].append(_rows(models[linears[-1]], X[:, :, ::-1]))
    found = one_pass.OnePass(models)(X, linears)
    assert found.keys() == expected.keys()
    for linear, views in expected.items():
        assert torch.equal(found[linear], torch.stack(views))


def test_a_table_is_published_as_a_page_and_a_file(tmp_path, monkeypatch):
    """The page folds a long one; the file has numbers in place of what is for readers."""
    monkeypatch.syspath_prepend(SCRIPTS)
    common = importlib.import_module("_common")
    page = tmp_path / "README.md"
    page.write_text("Above.\n\n<!-- speed -->\nold\n<!-- /speed -->\n\nBelow.\n")
    monkeypatch.setattr(common, "HERE", tmp_path)
    monkeypatch.setattr(common, "PAGES", [page])
    monkeypatch.setattr(common, "COMMIT", "abcdef0")
    short = common.table(["", "seconds"], [["1,000 rows", "1.0 ± 0.2"], ["none", ""]])
    long = common.table(["n"], [[f"{1000 * i:,}"] for i in range(30)])
    common.publish("speed", f"{short}\n\nWorse.\n\n{long}")
    text = page.read_text()
    assert (
        f"<!-- speed -->\n{short}\n\nWorse.\n\n<details><summary>All 30 lines</summary>\n\n{long}\n"
        in text
    )
    assert "[speed-2.csv](speed-2.csv). _`python" in text
    assert text.startswith("Above.")
    assert text.endswith("<!-- /speed -->\n\nBelow.\n")
    assert (tmp_path / "speed.csv").read_text().splitlines() == [
        ',seconds,"seconds, standard error",commit',
        "1000 rows,1.0,0.2,abcdef0",
        "none,,,abcdef0",
    ]
    assert (tmp_path / "speed-2.csv").read_text().splitlines()[-1] == "29000,abcdef0"


def test_few_pictures_are_shared_by_draws_but_not_with_validation(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS.parent / "paper")
    tasks = importlib.import_module("tasks")
    numbers, labels = np.arange(100), np.arange(100) % 4
    monkeypatch.setitem(tasks.DATA, "numbers", lambda: (numbers, labels, 1000 + numbers, labels))
    validation = set(
        tasks.problem(tasks.Task("lite0", 50, "random", "numbers"), tasks.VALIDATION).test[0]
    )
    assert len(validation) == 20
    for n, shared in ((16, False), (50, True)):
        task = tasks.Task("lite0", n, "random", "numbers")
        draws = [set(tasks.problem(task, seed).learned[0]) for seed in (0, 1, tasks.VALIDATION)]
        assert [len(draw) for draw in draws] == [n] * 3
        assert not any(draw & validation for draw in draws)
        assert bool(draws[0] & draws[1]) == shared
    with pytest.raises(ValueError, match="Take fewer: --images 80"):
        tasks.problem(tasks.Task("lite0", 81, "random", "numbers"), 0)


def test_an_accelerator_is_asked_for_or_missed(monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    accelerator = importlib.import_module("accelerator")
    monkeypatch.setattr(accelerator, "NETWORKS", {"tiny": ("test_resnet", False)})
    small = "--device cpu --rows 16 --forgotten 2 --batch-size 8 --pixels 32 --networks tiny"
    monkeypatch.setattr(sys, "argv", ["accelerator.py", *small.split()])
    accelerator.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [line.count("|") for line in rows] == [8] * 3
    monkeypatch.setattr(sys, "argv", ["accelerator.py"])
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="No accelerator is here"):
        accelerator.main()


def _rows(model, X):
    batches = model.batches(Rows(X, model.backbone.spec))
    return torch.cat([model.tangents(batch)[0] for batch in batches])
