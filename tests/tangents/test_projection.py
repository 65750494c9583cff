import pytest
import torch

from fastntk_sk.tangents.projection import Projection


@pytest.mark.parametrize(("p", "k"), [(1, 1), (12, 12), (12, 5), (13, 4), (100, 99)])
def test_projection_has_orthonormal_columns(p, k):
    projection = Projection(p, k, seed=3)
    Q = projection.project(torch.eye(p, dtype=torch.float64))
    torch.testing.assert_close(Q.T @ Q, torch.eye(k, dtype=torch.float64))
    z = torch.randn(k, dtype=torch.float64)
    torch.testing.assert_close(projection.expand(z), Q @ z)
    assert projection.digest() == Projection(p, k, seed=3).digest()
    assert k == p or projection.digest() != Projection(p, k, seed=4).digest()
