import numpy as np
import pytest
import reference
import torch

from fastntk_sk.exceptions import SolveError
from fastntk_sk.sums.solvers import Solution, factor, solve_dual, solve_published, solve_schur
from fastntk_sk.sums.statistics import Statistics, add_gram
from fastntk_sk.tangents.projection import Projection

SCALES = {"alpha": 0.3, "tangent_scale": 1.7, "target_scale": 2.0}


def problem(n, d, p, n_classes, *, k=None, weights=False, duplicates=False, seed=0):
    draws = np.random.default_rng(seed)
    h = np.hstack([draws.normal(size=(n, d)), np.full((n, 1), 0.25)])
    J = draws.normal(size=(n, n_classes, p))
    labels = draws.integers(n_classes, size=n)
    w = draws.uniform(0.2, 3, size=n) if weights else np.ones(n)
    if duplicates:
        rows = draws.integers(n // 2, size=n)
        h, J, labels, w = h[rows], J[rows], labels[rows], w[rows]
    J = torch.from_numpy(J)
    if k is not None:
        J = Projection(p, k, seed).project(J.reshape(-1, p)).view(n, n_classes, k)
    return torch.from_numpy(h), J, torch.from_numpy(labels), torch.from_numpy(w)


def learned(h, J, labels, weights):
    statistics = Statistics(h.shape[1] - 1, J.shape[2], J.shape[1], constant=float(h[0, -1]))
    statistics.add(h, J, labels, weights)
    return statistics


def close(a, b, rtol=1e-8):
    for x, y in ((a.W, b.W), (a.z, b.z)):
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        assert (x - y).norm() <= rtol * y.norm().clamp_min(1e-12)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("k", [None, 7])
@pytest.mark.parametrize(("n", "p"), [(30, 11), (6, 60)], ids=["p<nC", "p>nC"])
def test_schur_dual_published_and_dense_agree(n, p, k, weights, duplicates, centred):
    scales = SCALES | {"centre": torch.linspace(-2, 3, k or p).double() if centred else None}
    rows = problem(n, 4, p, 3, k=k, weights=weights, duplicates=duplicates)
    dense = Solution(*map(torch.from_numpy, reference.ridge(*map(np.asarray, rows), **scales)))
    schur = solve_schur(learned(*rows), **scales)
    close(schur, dense)
    close(solve_dual(*rows, **scales), dense)
    assert schur.residual < 1e-12
    # forget the first third: published formula, downdate, and a refit
    forget = torch.arange(n) < n // 3
    rest = [part[~forget] for part in rows]
    statistics = learned(*rows)
    h, J, labels, w = (part[forget] for part in rows)
    statistics.add(h, J, labels, -w)
    dense = Solution(*map(torch.from_numpy, reference.ridge(*map(np.asarray, rest), **scales)))
    close(solve_schur(statistics, **scales), dense)
    close(solve_published(*rows, forget, **scales), dense)


@pytest.mark.parametrize("setting", [{"tangent_scale": 0.0}, {"k": 0}])
def test_a_probe_is_plain_ridge(setting):
    rows = problem(20, 4, 0 if "k" in setting else 5, 3)
    scales = SCALES | {k: v for k, v in setting.items() if k != "k"}
    found = solve_schur(learned(*rows), **scales)
    W, z = reference.ridge(*map(np.asarray, rows), **scales)
    np.testing.assert_allclose(found.W, W, rtol=1e-8)
    assert not found.z.any()
    assert not z.any()


def test_statistics_hold_no_hyper_parameter():
    rows = problem(20, 4, 6, 3)
    statistics = learned(*rows)
    for scales in (SCALES, {"alpha": 5.0, "tangent_scale": 0.1, "target_scale": 1.0}):
        W, z = reference.ridge(*map(np.asarray, rows), **scales)
        found = solve_schur(statistics, **scales)
        np.testing.assert_allclose(found.W, W, rtol=1e-8)
        np.testing.assert_allclose(found.z, z, rtol=1e-8)


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
    assert sum(t.nbytes for t in whole.tensors().values()) == Statistics.n_bytes(4, 6, 3)
    copy = whole.copy()
    copy.A += 1
    assert not torch.equal(copy.A, whole.A)


@pytest.mark.parametrize("block", [1, 3, 64])
def test_blocked_gram(block):
    left, right = torch.randn(5, 10, dtype=torch.float64), torch.randn(5, 10, dtype=torch.float64)
    out = torch.zeros(10, 10, dtype=torch.float64)
    add_gram(out, left, right, sign=-2.0, block=block)
    torch.testing.assert_close(out.tril(), -2 * (left.T @ right).tril())


@pytest.mark.parametrize(("p", "k"), [(1, 1), (12, 12), (12, 5), (13, 4), (100, 99)])
def test_projection_has_orthonormal_columns(p, k):
    projection = Projection(p, k, seed=3)
    Q = projection.project(torch.eye(p, dtype=torch.float64))
    torch.testing.assert_close(Q.T @ Q, torch.eye(k, dtype=torch.float64))
    z = torch.randn(k, dtype=torch.float64)
    torch.testing.assert_close(projection.expand(z), Q @ z)
    assert projection.digest() == Projection(p, k, seed=3).digest()
    assert k == p or projection.digest() != Projection(p, k, seed=4).digest()
