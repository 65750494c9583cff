import pytest
import reference
import timm
import torch
from cases import JACOBIANS, SharedWeight, Transformer, randomise
from torch import nn

from fastntk_sk.exceptions import JacobianError
from fastntk_sk.tangents.jacobians import TangentNetwork
from fastntk_sk.tangents.lora import insert_lora, lora_layers
from fastntk_sk.tangents.subsets import insert_prompts, select


def build(architecture, arguments, trainable, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(architecture, num_classes=0, **arguments)
    randomise(net).to(dtype).eval().requires_grad_(False)
    if str(trainable).startswith("prompt"):
        draws = torch.Generator().manual_seed(0)
        insert_prompts(net, 3, deep=trainable == "prompt-deep", generator=draws)
    net.to(dtype)
    if "lora" in trainable:
        side = arguments.get("img_size", 32)
        layers = lora_layers(net, inputs(2, side, dtype))
        insert_lora(net, layers, 4, torch.Generator().manual_seed(0))
    return net, select(net, trainable)


def inputs(n, side, dtype=torch.float64):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


def readout(rows, d, dtype=torch.float64):
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(2), dtype=dtype) / d**0.5


@pytest.mark.parametrize("case", JACOBIANS, ids=lambda case: case[0])
def test_rows_equal_plain_autograd(case):
    _, architecture, arguments, side, trainable = case
    net, subset = build(architecture, arguments, trainable)
    x = inputs(2, side)
    V = readout(2, net(x[:1]).shape[1])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tangent = TangentNetwork(net, subset, x)
    features, found = tangent.jacobian(x, V)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    expected = reference.jacobian(net, subset.names, x, V)
    assert (found - expected).norm() < 1e-12 * expected.norm()
    torch.testing.assert_close(features, net(x))
    # and the forward-mode derivative is the same Jacobian
    displacement = torch.randn(subset.size, dtype=torch.float64)
    _, derivative = tangent.directional(x, displacement)
    torch.testing.assert_close(derivative @ V.T, expected @ displacement, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("architecture", "arguments", "trainable"),
    [
        ("tf_efficientnet_lite0", {}, "norm"),
        ("convnext_atto", {}, "norm"),
        ("test_resnet", {}, "full"),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 3}, "prompt"),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 3}, "bias"),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 3}, "lora"),
        ("tf_efficientnet_lite0", {}, "lora"),
    ],
)
def test_a_row_is_bitwise_the_same_in_every_batch(architecture, arguments, trainable):
    net, subset = build(architecture, arguments, trainable, torch.float32)
    net.to(memory_format=torch.channels_last)
    x = inputs(8, 32, torch.float32)
    tangent = TangentNetwork(net, subset, x[:2])
    V = readout(2, net(x[:1]).shape[1], torch.float32)
    shuffled = torch.tensor([3, 7, 1, 0, 5, 2, 6, 4])
    others = torch.cat([x[:1], inputs(15, 32, torch.float32)[8:]])
    first, again, apart = (
        tangent.jacobian(batch.contiguous(memory_format=torch.channels_last), V)[1]
        for batch in (x, x[shuffled], others)
    )
    assert torch.equal(first[shuffled], again)
    assert torch.equal(first[0], apart[0])


class _TwoConsumers(nn.Module):
    """The convolution's output is used beside the norm, so its scale must not move."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return (self.norm(y) + y.tanh()).mean((2, 3))


class _Twice(nn.Module):
    """One norm is called twice."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(5)

    def forward(self, x):
        return self.norm(torch.sin(self.norm(x[:, 0, 0, :5])))


class _SequenceFirst(nn.Module):
    """Rows are the second axis inside, as in older transformers."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(torch.tanh(self.norm(x[:, :2].flatten(1, 2).transpose(0, 1)))).mean(0)


class _SharedBelowNorm(nn.Module):
    """A small part that is wrong, under a norm whose outputs add up to a constant."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)

    def forward(self, x):
        y = torch.tanh(self.layer(x.mean((2, 3))))
        return self.norm(y + nn.functional.linear(y, self.layer.weight))


@pytest.mark.parametrize(
    ("make", "trainable"),
    [
        (Transformer, "norm"),
        (Transformer, "full"),
        (_TwoConsumers, "norm"),
        (SharedWeight, "layer.weight"),
        (_SharedBelowNorm, "full"),
        (_SequenceFirst, "norm"),
        (_SequenceFirst, "layer.*"),
        (_Twice, "norm"),
    ],
)
def test_unusual_networks_are_right(make, trainable):
    torch.manual_seed(0)
    net = randomise(make()).double().eval().requires_grad_(False)
    subset, x = select(net, trainable), inputs(4, 8)
    V = readout(2, net(x[:1]).shape[1])
    tangent, expected = TangentNetwork(net, subset, x), reference.jacobian(net, subset.names, x, V)
    torch.testing.assert_close(tangent.jacobian(x, V)[1], expected)
    displacement = torch.randn(subset.size, dtype=torch.float64)
    torch.testing.assert_close(tangent.directional(x, displacement)[1] @ V.T, expected @ displacement)


class _RowsMix(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        y = self.layer(x.mean((2, 3)))
        return y * y.sum()


def test_rows_that_influence_each_other_are_an_error():
    net = _RowsMix().double().eval().requires_grad_(False)
    with pytest.raises(JacobianError, match="rows influence each other"):
        TangentNetwork(net, select(net, "full"), inputs(3, 8))


def test_a_kink_that_flips_in_float32_is_no_wrong_tap():
    """The first row puts every ReLU at zero, up to rounding: plain gradients and taps may disagree."""
    draws = torch.Generator().manual_seed(0)
    norm, x = nn.BatchNorm1d(64), torch.randn(2, 64, generator=draws)
    norm.running_mean.copy_(torch.randn(64, generator=draws))
    norm.running_var.copy_(torch.rand(64, generator=draws) + 0.5)
    norm.weight.data = torch.randn(64, generator=draws)
    scale = (norm.running_var + norm.eps).sqrt()
    norm.bias.data = -(x[0] - norm.running_mean) / scale * norm.weight.data
    net = nn.Sequential(norm, nn.ReLU(), nn.Linear(64, 3)).requires_grad_(False).eval()
    subset = select(net, "norm")
    tangent = TangentNetwork(net, subset, x)
    assert tangent._disagreement(net, x)
    assert list(tangent._taps) == ["0."]
