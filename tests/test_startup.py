"""What importing and using the library on vectors loads, in a process of its own."""

import subprocess
import sys

import pytest

import fastntk_sk

HEAVY = {"timm", "torchvision", "skorch"}
FIT = """
import numpy as np
from fastntk_sk import FastNTKClassifier
X = np.random.default_rng(0).normal(size=(12, 4))
clf = FastNTKClassifier(random_state=0).fit(X, np.arange(12) % 2).unlearn(X[:2])
clf.predict(X)
"""


def loaded(code):
    """Return the top-level modules after some code, which must not write to the standard error."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_import_alone_loads_next_to_nothing():
    assert not loaded("import fastntk_sk") & (HEAVY | {"torch", "sklearn", "huggingface_hub"})


@pytest.mark.parametrize(
    "arguments", ["--help", "fit --help", "requests add --help", "fit --alpha much"]
)
def test_help_and_wrong_usage_load_next_to_nothing(arguments):
    code = f"""
import contextlib, io
from fastntk_sk.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main({arguments.split()})
"""
    assert not loaded(code) & (HEAVY | {"torch", "sklearn", "numpy", "huggingface_hub", "PIL"})


def test_vectors_need_neither_timm_nor_torchvision_nor_skorch():
    assert not loaded(FIT) & HEAVY
    assert not loaded(FIT.replace("(random", "(trainable='norm', random")) & HEAVY


def test_public_names():
    assert set(fastntk_sk.__all__) <= set(dir(fastntk_sk))
    assert all(getattr(fastntk_sk, name) for name in fastntk_sk.__all__)
    assert not hasattr(fastntk_sk, "nothing")
