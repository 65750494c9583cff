"""The published form against dense algebra of the rows."""

import numpy as np
import pytest
import reference
import torch

from fastntk_sk.baselines.dual_form import solve_dual, solve_published

SCALES = {"alpha": 0.3, "tangent_scale": 1.7, "target_scale": 2.0}


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("n", "k"), [(30, 11), (6, 60)], ids=["k<nC", "k>nC"])
def test_dual_and_published_forms_are_the_dense_solution(n, k, centred):
    draws = np.random.default_rng(0)
    rows = (
        np.hstack([draws.normal(size=(n, 4)), np.full((n, 1), 0.25)]),
        draws.normal(size=(n, 3, k)),
        draws.integers(3, size=n),
        draws.uniform(0.2, 3, size=n),
    )
    scales = SCALES | {"centre": torch.linspace(-2, 3, k).double() if centred else None}
    tensors, forget = [*map(torch.from_numpy, rows)], torch.arange(n) < n // 3
    for found, kept in (
        (solve_dual(*tensors, **scales), slice(None)),
        (solve_published(*tensors, forget, **scales), slice(n // 3, None)),
    ):
        W, z = reference.ridge(*(part[kept] for part in rows), **scales)
        np.testing.assert_allclose(found.W, W, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.z, z, rtol=1e-8, atol=1e-10)
