"""Factorisations without the rows that left, against those that are made anew."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastntk_sk import FastNTKClassifier
from fastntk_sk.sums.downdate import Lessened, columns_of_rows, downdate
from fastntk_sk.sums.reduction import Spectral, Tridiagonal
from fastntk_sk.sums.ridge import centred, solve, solve_again, solve_without
from fastntk_sk.sums.statistics import HeldRows, Statistics


def rows(n, d, n_classes=3, seed=0):
    """Return rows with a constant, none of the classes' own, labels and weights, all as `add` takes."""
    draws = np.random.default_rng(seed)
    labels, h = draws.integers(n_classes, size=n), draws.normal(size=(n, d + 1)) / d**0.5
    h[:, 0] += labels
    h[:, -1] = 0.5
    given = h, np.zeros((n, n_classes, 0)), labels, draws.uniform(0.2, 3, size=n)
    return tuple(map(torch.from_numpy, given))


def summed(given, n_tangents=0):
    h, J, *_ = given
    statistics = Statistics.zeros(h.shape[1] - 1, 0, J.shape[1], 0.5, n_tangents)
    statistics.add(*given)
    return statistics


@settings(max_examples=40, deadline=None)
@given(
    k=st.sampled_from([1, 7, 64, 65, 200]),
    m=st.integers(1, 80),
    share=st.floats(0, 0.999),
    seed=st.integers(0, 99),
)
def test_a_factor_is_that_of_what_is_left(k, m, share, seed):
    draws = torch.Generator().manual_seed(seed)
    U, rest = (torch.randn(k, n, generator=draws, dtype=torch.float64) for n in (m, k + 5))
    left = (1 - share) * rest @ rest.T + torch.eye(k)
    found = downdate(torch.linalg.cholesky(left + U @ U.T), U)
    torch.testing.assert_close(found, torch.linalg.cholesky(left), rtol=1e-9, atol=1e-9)


def test_there_is_no_factor_of_what_is_not_positive_definite():
    assert downdate(torch.eye(100).double(), torch.eye(100)[:, 70:72].double() * 1.001) is None


@pytest.mark.parametrize("n_gone", [1, 5])
def test_centred_sums_lose_their_columns(n_gone):
    given = rows(30, 6)
    whole, rest = summed(given), summed([part[n_gone:] for part in given])
    U = columns_of_rows(whole.mean, rest, given[0][:n_gone], given[3][:n_gone])
    assert U.shape == (6, n_gone + 1)
    found = centred(whole) - U @ U.T
    torch.testing.assert_close(found.tril(), centred(rest).tril())


@pytest.mark.parametrize("reduction", [Tridiagonal, Spectral])
@pytest.mark.parametrize(("n", "d"), [(40, 7), (9, 30), (5, 1)])
def test_woodbury_in_a_basis_is_dense_algebra(n, d, reduction):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, left, right = x[:3].T, x[3:].T @ x[3:], torch.ones(d, 2, dtype=torch.float64)
    lessened = Lessened(reduction(x.T @ x), U)
    for alpha in (1e-4, 0.3, 100.0):
        assert lessened.is_sound(alpha)
        found = lessened.rotate(lessened.solve(alpha, lessened.rotate(right)), back=True)
        shifted = left + alpha * torch.eye(d, dtype=torch.float64)
        torch.testing.assert_close(found, torch.linalg.solve(shifted, right), rtol=1e-8, atol=1e-10)
        assert lessened.log_det(alpha) == pytest.approx(float((shifted / alpha).logdet()), abs=1e-9)
    assert not Lessened(reduction(x.T @ x), 2 * x.T).is_sound(1e-4)


@pytest.mark.parametrize("alpha", [0.1, None])
@pytest.mark.parametrize("n_tangents", [0, 4])
@pytest.mark.parametrize("n_gone", [1, 20])
def test_what_a_solution_kept_serves_the_next(n_gone, n_tangents, alpha):
    given = rows(120, 12)
    whole, rest = (summed([part[n:] for part in given], n_tangents) for n in (0, n_gone))
    scales = {"alpha": alpha, "tangent_scale": 0.7, "target_scale": 2.0}
    leaving = HeldRows(torch.device("cpu"))
    for part in (slice(0, 1), slice(1, n_gone)):
        leaving.add(*(each[part] for each in given))
    found = solve_without(
        solve(whole, **scales).kept, whole.mean, leaving.subtract_from(whole), *leaving.shared, **scales
    )
    expected = solve(rest, **scales)
    torch.testing.assert_close(found.W, expected.W, rtol=1e-10, atol=1e-12)
    assert found.alpha == expected.alpha
    np.testing.assert_allclose(found.path, expected.path, rtol=1e-9)
    if isinstance(expected.kept, torch.Tensor):
        torch.testing.assert_close(found.kept, expected.kept)
    else:
        assert found.kept is None  # a basis of the sums before tells of the rows that left


@pytest.mark.parametrize("alpha", [0.1, None])
@pytest.mark.parametrize("n_tangents", [0, 4])
def test_what_a_solution_kept_serves_other_labels(n_tangents, alpha):
    h, J, labels, weights = rows(120, 12)
    right = summed((h, J, torch.where(torch.arange(120) < 30, 0, labels), weights), n_tangents)
    scales = {"alpha": alpha, "tangent_scale": 0.7, "target_scale": 2.0}
    kept = solve(summed((h, J, labels, weights), n_tangents), **scales).kept
    found, expected = solve_again(kept, right, **scales), solve(right, **scales)
    torch.testing.assert_close(found.W, expected.W, rtol=1e-10, atol=1e-12)
    assert found.alpha == expected.alpha
    assert found.kept is kept
    assert solve_again(kept, summed((3 * h, J, labels, weights), n_tangents), **scales) is None


@pytest.mark.parametrize("alpha", [0.1, None])
def test_a_solution_that_cancelled_is_made_anew(alpha):
    given = rows(60, 8)
    given[0][0, :-1] *= 1e4
    whole, rest = summed(given), summed([part[1:] for part in given])
    scales = {"alpha": alpha, "tangent_scale": 1.0, "target_scale": 1.0}
    kept, gone = solve(whole, **scales).kept, (given[0][:1], given[3][:1])
    assert solve_without(kept, whole.mean, rest, *gone, **scales) is None


@pytest.mark.parametrize("params", [{"alpha": 0.1}, {"alpha": "auto"}, {"kernel": "pseudo"}])
def test_many_deletions_one_by_one_equal_a_refit(params):
    draws = np.random.default_rng(0)
    X, y = draws.normal(size=(60, 5)), draws.integers(3, size=60)
    params |= (
        {"trainable": "full", "n_components": 20} if "kernel" in params else {"trainable": "ladder"}
    )
    clf = FastNTKClassifier(random_state=0, **params).fit(X, y)
    for i in range(15):
        clf.unlearn(X[i : i + 1])
    refit = FastNTKClassifier(random_state=0, **params).fit(X[15:], y[15:])
    np.testing.assert_allclose(clf.readout_, refit.readout_, rtol=1e-6, atol=1e-8)
    assert clf.receipts_[-1]["exactness"]["exact"]


def test_a_factorisation_stays_in_memory(tmp_path):
    draws = np.random.default_rng(0)
    X, y = draws.normal(size=(40, 5)), draws.integers(2, size=40)
    clf = FastNTKClassifier(random_state=0).fit(X, y)
    clf.save(tmp_path / "state")
    loaded = FastNTKClassifier.load(tmp_path / "state")
    assert len(pickle.dumps(clf)) < 1.1 * len(pickle.dumps(loaded))
    for other in (loaded, pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        after = other.unlearn(X[:4]).readout_
        np.testing.assert_allclose(after, copy.copy(clf).unlearn(X[:4]).readout_, rtol=1e-7, atol=1e-9)
