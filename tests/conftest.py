"""Offline by default, and one small image problem for the tests that need pictures."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import hostile
import numpy as np
import pytest
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def digits():
    """200 digits as uint8 images of shape (n, 8, 8), of which no two are the same."""
    X, y = load_digits(return_X_y=True)
    _, first = np.unique(X, axis=0, return_index=True)
    rows = np.sort(first)[:200]
    return (X[rows] / 16 * 255).astype(np.uint8).reshape(-1, 8, 8), y[rows]


@pytest.fixture
def blobs():
    """60 points in 4 dimensions of 3 classes."""
    draws = np.random.default_rng(0)
    y = np.arange(60) % 3
    return draws.normal(size=(60, 4)) + 2 * np.eye(3, 4)[y], y


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saved adapters and states of each kind, in parts, with what they predict."""
    return hostile.saved_parts(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def forge(saved, tmp_path):
    """What changes the parts of one of them, writes it with checksums that fit, and loads it."""
    return hostile.Forge(saved, tmp_path / "forged")
