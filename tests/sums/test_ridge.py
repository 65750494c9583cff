"""The free intercept and alpha from the sums, against dense algebra of the rows."""

import numpy as np
import pytest
import torch

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import EmptyClassWarning, SolveError
from fastntk_sk.sums.reduction import Spectral, Tridiagonal
from fastntk_sk.sums.ridge import (
    GRID,
    evidence_path,
    first_minimum,
    solve,
    solve_each,
)
from fastntk_sk.sums.statistics import Statistics


def problem(n, d, n_classes, seed=0, constant=0.25):
    draws = np.random.default_rng(seed)
    x, labels = draws.normal(size=(n, d)) + 1, draws.integers(n_classes, size=n)
    weights = draws.uniform(0.2, 3, size=n)
    x[:, 0] += labels
    learned = Statistics.zeros(d, 0, n_classes, constant=constant)
    h = torch.from_numpy(np.hstack([x, np.full((n, 1), constant)]))
    nothing = torch.zeros(n, n_classes, 0)
    learned.add(h, nothing, torch.from_numpy(labels), torch.from_numpy(weights))
    return x, labels, weights, learned


@pytest.mark.parametrize(("n", "d"), [(40, 5), (6, 30), (9, 1)])
@pytest.mark.parametrize("alpha", [1e-3, 2.0])
def test_the_intercept_is_free(n, d, alpha):
    x, labels, weights, learned = problem(n, d, 3)
    found = solve(learned, alpha=alpha, tangent_scale=1.0, target_scale=2.0)
    design = np.hstack([x, np.ones((n, 1))]) * np.sqrt(weights)[:, None]
    target = 2.0 * (np.eye(3)[labels] - 1 / 3) * np.sqrt(weights)[:, None]
    penalty = np.sqrt(alpha) * np.eye(d + 1)[:-1]
    stacked, wanted = np.vstack([design, penalty]), np.vstack([target, np.zeros((d, 3))])
    expected = np.linalg.lstsq(stacked, wanted)[0].T
    expected[:, -1] /= 0.25
    np.testing.assert_allclose(found.W, expected, rtol=1e-8, atol=1e-10)
    assert found.residual < 1e-10


@pytest.mark.parametrize("reduction", [Tridiagonal, Spectral])
@pytest.mark.parametrize(("n", "d"), [(40, 5), (6, 30), (9, 1)])
def test_evidence_is_that_of_a_gaussian_process(n, d, reduction):
    x, labels, weights, _ = problem(n, d, 3)
    weights[:] = 1
    x = x - x.mean(0)
    t = np.eye(3)[labels] - np.eye(3)[labels].mean(0)
    reduced = reduction(torch.from_numpy(x.T @ x))
    rotated = reduced.rotate(torch.from_numpy(x.T @ t))
    path = evidence_path(reduced, rotated, float((t**2).sum()), n)
    for alpha, found in zip(GRID, path, strict=True):
        kernel = x @ x.T / alpha + np.eye(n)
        q = (t * np.linalg.solve(kernel, t)).sum()
        expected = (n - 1) * np.log(q) + np.linalg.slogdet(kernel)[1]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        W = reduced.rotate(reduced.solve(alpha, rotated), back=True).numpy()
        np.testing.assert_allclose((x.T @ x + alpha * np.eye(d)) @ W, x.T @ t, atol=1e-8)


@pytest.mark.parametrize("n_forgotten", [1, 7])
@pytest.mark.parametrize("d", [4, 60])
def test_alpha_after_a_deletion_is_that_of_a_refit(d, n_forgotten):
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(50, d)), rng.integers(0, 3, 50)
    X[:, 0] += 2 * y
    params = {"trainable": "head", "alpha": "auto", "random_state": 0}
    clf = FastNTKClassifier(**params).fit(X, y).unlearn(X[:n_forgotten])
    refit = FastNTKClassifier(**params).fit(X[n_forgotten:], y[n_forgotten:])
    assert clf.alpha_ == refit.alpha_
    assert clf.alpha_ == GRID[first_minimum([*clf.alpha_path_.values()])]
    np.testing.assert_allclose(clf.readout_, refit.readout_, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_alpha_of_few_rows_that_are_left_does_not_hang_on_rounding(scale):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        y, n_left = rng.integers(0, 3, 300), (3, 8, 15)[seed % 3]
        y[-3:] = range(3)
        x = rng.normal(size=(3, 48))[y] / 2 + rng.normal(size=(300, 48))
        x = torch.from_numpy(np.c_[x / 7 * scale, np.ones(300)].astype(np.float32))
        own, labels, weights = torch.zeros(300, 3, 0), torch.from_numpy(y), torch.ones(300)
        less, refit = Statistics.zeros(48, 0, 3), Statistics.zeros(48, 0, 3)
        less.add(x, own, labels, weights)
        less.add(x[:-n_left], own[:-n_left], labels[:-n_left], -weights[:-n_left])
        refit.add(x[-n_left:], own[-n_left:], labels[-n_left:], weights[-n_left:])
        found, expected = (
            solve(each, alpha=None, tangent_scale=1.0, target_scale=1.0) for each in (less, refit)
        )
        assert found.alpha == expected.alpha
        assert float((found.W - expected.W).norm() / expected.W.norm()) < 1e-9


def test_alpha_of_two_rows_that_are_left_is_that_of_a_refit():
    """Every alpha is worth the same there, log 1."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(6, 4)) * 10.0 ** (seed % 3 - 1), np.arange(6) % 2
        params = {"trainable": ["ladder", "head"][seed % 2], "n_components": 16, "random_state": 0}
        clf = FastNTKClassifier(**params).fit(X, y).unlearn(X[:4])
        refit = FastNTKClassifier(**params).fit(X[4:], y[4:])
        assert clf.alpha_ == refit.alpha_ == GRID[-1]
        np.testing.assert_allclose(clf.readout_, refit.readout_, rtol=1e-9, atol=1e-10)


def test_of_classes_that_are_emptied_nothing_is_left():
    rng = np.random.default_rng(0)
    X, y, weights = rng.normal(size=(13, 4)), np.r_[np.arange(10) % 2 + 1, 0, 0, 0], rng.random(13) + 0.1
    clf = FastNTKClassifier(n_components=16, random_state=0).fit(X, y, weights)
    with pytest.warns(EmptyClassWarning):
        clf.unlearn(X[:5]).unlearn(X[5:9])
    with pytest.warns(EmptyClassWarning):
        clf.rectify(X[9:10], [0])
    refit = FastNTKClassifier(n_components=16, random_state=0)
    refit.fit(X[9:], [0, 0, 0, 0], weights[9:], classes=[0, 1, 2])
    assert clf.alpha_path_ == refit.alpha_path_
    np.testing.assert_allclose(clf.readout_, refit.readout_, rtol=1e-9, atol=1e-12)


def test_one_row_a_class_is_finite():
    X, y = np.random.default_rng(0).normal(size=(3, 8)), [0, 1, 2]
    clf = FastNTKClassifier(trainable="ladder", alpha="auto", random_state=0).fit(X, y)
    assert clf.alpha_ in GRID
    assert np.isfinite(clf.decision_function(X)).all()
    assert (clf.predict(X) == y).all()


def test_one_class_alone_takes_the_largest_alpha():
    x, _, weights, _ = problem(10, 4, 2)
    learned = Statistics.zeros(4, 0, 2)
    h = torch.from_numpy(np.hstack([x, np.ones((10, 1))]))
    learned.add(h, torch.zeros(10, 2, 0), torch.zeros(10).long(), torch.from_numpy(weights))
    found = solve(learned, alpha=None, tangent_scale=1.0, target_scale=1.0)
    assert found.alpha == GRID[-1]
    assert found.W.isfinite().all()


def test_a_grid_has_the_solutions_of_its_values():
    *_, learned = problem(20, 6, 3)
    alphas = [0.1, None, 3.0]
    for alpha, found in zip(
        alphas, solve_each(learned, alphas, tangent_scale=1.0, target_scale=2.0), strict=True
    ):
        expected = solve(learned, alpha=alpha, tangent_scale=1.0, target_scale=2.0)
        np.testing.assert_allclose(found.W, expected.W, rtol=1e-9, atol=1e-12)
        assert (found.alpha, found.path) == (expected.alpha, expected.path)
        assert found.residual < 1e-10


def test_ties_take_the_larger_alpha():
    assert first_minimum([0.0, 5.0, 1.0, 1.0 + 1e-7, 2.0]) == 3
    assert first_minimum([0.0, 0.0]) == 1
    assert first_minimum([-1e-11, 1e-16]) == 1


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_used_up_statistics_are_a_named_error(alpha):
    *_, learned = problem(20, 4, 3)
    learned.A[:-1, :-1] -= 1e4 * torch.eye(4)
    with pytest.raises(SolveError, match="rebuild"):
        solve(learned, alpha=alpha, tangent_scale=1.0, target_scale=1.0)


def test_alpha_is_saved(tmp_path):
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(30, 4)), rng.integers(0, 2, 30)
    clf = FastNTKClassifier(trainable="head", random_state=0).fit(X, y)
    clf.save(tmp_path / "state")
    loaded = FastNTKClassifier.load(tmp_path / "state")
    assert (loaded.alpha_, loaded.alpha_path_) == (clf.alpha_, clf.alpha_path_)
    after = loaded.unlearn(X[:3]).readout_  # from a new factorisation
    np.testing.assert_allclose(after, clf.unlearn(X[:3]).readout_, rtol=1e-10, atol=1e-12)


def test_light_weights_are_no_ground_to_choose_a_ridge_on(blobs):
    X, y = blobs
    weights = np.full(len(y), 1 / len(y))
    with pytest.warns(UserWarning, match="a mean near one"):
        FastNTKClassifier(random_state=0).fit(X, y, sample_weight=weights)
    FastNTKClassifier(alpha=0.1, random_state=0).fit(X, y, sample_weight=weights)
