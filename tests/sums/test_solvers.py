"""Sums and their solution against dense algebra of the rows."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastntk_sk.exceptions import SolveError
from fastntk_sk.sums.ridge import solve
from fastntk_sk.sums.solvers import Solution, factor, rounding_bound, solve_schur
from fastntk_sk.sums.statistics import Statistics, add_gram, multiply_symmetric

SCALES = {"alpha": 0.3, "tangent_scale": 1.7, "target_scale": 2.0}


def problem(n, d, k, n_classes, *, weights=False, duplicates=False, seed=0):
    draws = np.random.default_rng(seed)
    h = np.hstack([draws.normal(size=(n, d)), np.full((n, 1), 0.25)])
    J = draws.normal(size=(n, n_classes, k))
    labels = draws.integers(n_classes, size=n)
    w = draws.uniform(0.2, 3, size=n) if weights else np.ones(n)
    if duplicates:
        rows = draws.integers(n // 2, size=n)
        h, J, labels, w = h[rows], J[rows], labels[rows], w[rows]
    return tuple(map(torch.from_numpy, (h, J, labels, w)))


def learned(h, J, labels, weights):
    statistics = Statistics.zeros(h.shape[1] - 1, J.shape[2], J.shape[1], constant=float(h[0, -1]))
    statistics.add(h, J, labels, weights)
    return statistics


def dense(rows, **scales):
    return Solution(*map(torch.from_numpy, reference.ridge(*map(np.asarray, rows), **scales)))


def gap(found, expected):
    found, expected = (torch.cat([part.W.flatten(), part.z]) for part in (found, expected))
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("weighted_duplicates", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "changes"),
    [
        (30, 11, {}),
        (6, 60, {}),
        (30, 11, {"centre": torch.linspace(-2, 3, 11).double()}),
        (6, 60, {"centre": torch.linspace(-2, 3, 60).double()}),
        (20, 6, {"alpha": 5.0, "tangent_scale": 0.1, "target_scale": 1.0}),
        (20, 5, {"tangent_scale": 0.0}),
        (20, 0, {}),
    ],
    ids=["k<nC", "k>nC", "centred, k<nC", "centred, k>nC", "scales", "no tangents", "probe"],
)
def test_the_solution_is_the_dense_one_before_and_after_a_deletion(n, k, changes, weighted_duplicates):
    scales = SCALES | changes
    rows = problem(n, 4, k, 3, weights=weighted_duplicates, duplicates=weighted_duplicates)
    statistics = learned(*rows)
    expected, of_rest = dense(rows, **scales), dense([part[n // 3 :] for part in rows], **scales)
    found = solve_schur(statistics, **scales)
    assert gap(found, expected) < 1e-8
    assert found.residual < 1e-12
    h, J, labels, w = (part[: n // 3] for part in rows)
    statistics.add(h, J, labels, -w)
    assert gap(solve_schur(statistics, **scales), of_rest) < 1e-8


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.floats(0, 5),
    alpha=st.floats(-4, 1),
    k=st.sampled_from([0, 5]),
    repeats=st.sampled_from([1, 20]),
)
def test_rounding_is_within_its_bound_whatever_was_subtracted(seed, size, alpha, k, repeats):
    rows = problem(24, 6, k, 3, weights=True, seed=seed)
    rows[0][:8:2, :-1] *= 10**size
    rows[1][:8:2] *= 10**size
    statistics, gone = learned(*rows), [part[:8] for part in rows]
    for _ in range(repeats - 1):
        statistics.add(*gone)
    energy = statistics.energy
    gone_energy = energy - learned(*(part[8:] for part in rows)).energy
    bound = rounding_bound(energy - gone_energy, gone_energy, 10**alpha)
    for _ in range(repeats):
        statistics.add(*gone[:3], -gone[3])
    refit = learned(*(part[8:] for part in rows))
    scales = {"alpha": 10**alpha, "tangent_scale": 1.0, "target_scale": 1.0}
    if bound < 0.1:  # else rounding may use the sums up
        found, expected = (solve(sums, **scales) for sums in (statistics, refit))
        assert gap(found, expected) < bound + 2.0**-52


def test_the_weight_of_tangents_counts():
    assert rounding_bound(60.0, 40.0, 0.5, 4.0) == pytest.approx(2.0**-52 * (800 + 2 / 3))
    assert rounding_bound(1e-12, 1.0, 0.5) > 1e-8  # what is left weighs next to nothing


def test_used_up_statistics_are_a_named_error():
    h, J, labels, w = problem(10, 3, 4, 2)
    statistics = learned(h, J, labels, w)
    statistics.add(h, J, labels, -2 * w)
    with pytest.raises(SolveError, match="rebuild"):
        solve_schur(statistics, **SCALES)


@pytest.mark.parametrize("share", [-0.1, 0.1, 0.45, 0.55, 1.0])
def test_eigenvalues_below_half_of_alpha_are_used_up(share):
    n, alpha = 200, 0.3
    values = alpha * (1 + torch.rand(n, dtype=torch.float64).square() * 50)
    values[0] = share * alpha
    Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    matrix = (Q * values) @ Q.T
    lower = (matrix - alpha * torch.eye(n)).tril()
    if share < 0.5:
        with pytest.raises(SolveError, match="rebuild"):
            factor(lower, alpha)
        return
    torch.testing.assert_close(factor(lower, alpha), torch.linalg.cholesky(matrix))


def test_statistics_are_additive():
    rows = problem(20, 4, 6, 3, weights=True)
    whole = learned(*rows)
    parts = learned(*(part[:7] for part in rows))
    parts.merge(learned(*(part[7:] for part in rows)))
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name], tensor)
    torch.testing.assert_close(whole.counts, rows[2].bincount(rows[3], 3))
    assert sum(t.nbytes for t in whole.tensors().values()) == Statistics.n_bytes(4, 6, 3)
    copy = whole.copy()
    copy.A += 1
    assert not torch.equal(copy.A, whole.A)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_rows_of_one_weight_are_those_that_are_multiplied_by_it(weight):
    h, J, labels, _ = problem(20, 4, 6, 3)
    one, each = (Statistics.zeros(4, 6, 3, constant=float(h[0, -1])) for _ in "ab")
    one.add(h, J, labels, torch.full((20,), weight))
    for i in (slice(0, 7), slice(7, 8), slice(8, 20)):
        each.add(h[i], J[i], labels[i], torch.full((len(h[i]),), weight))
    double = torch.tensor([weight + 1.0, *[weight] * 19])
    mixed = Statistics.zeros(4, 6, 3, constant=float(h[0, -1]))
    mixed.add(h, J, labels, double)
    mixed.add(h[:1], J[:1], labels[:1], -torch.ones(1))
    for name, tensor in one.tensors().items():
        lower = torch.tril if name in "AG" else torch.clone
        for other in (each, mixed):
            torch.testing.assert_close(lower(other.tensors()[name]), lower(tensor))


@pytest.mark.parametrize("block", [1, 3, 64])
def test_products_of_a_lower_triangle(block):
    left, right = torch.randn(5, 10, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    out, full = torch.zeros(10, 10, dtype=torch.float64), -2 * left.T @ left
    add_gram(out, left, left, sign=-2.0, block=block)
    torch.testing.assert_close(out.tril(), full.tril())
    torch.testing.assert_close(multiply_symmetric(out, right), full @ right)
