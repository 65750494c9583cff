"""The ladder: where its rungs are, what they pool, and that deletion is that of a refit."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.loading import load_backbone
from fastntk_sk.exceptions import JacobianError, StateMismatchError
from fastntk_sk.tangents.blocks import find_blocks
from fastntk_sk.tangents.ladder import Ladder
from fastntk_sk.tangents.rungs import SIDES, find_rungs

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
y = RANDOM.integers(0, 3, 40)


class Block(nn.Module):
    """A residual block, by default with a functional nonlinearity."""

    def __init__(self, act=torch.relu):
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in "ab")
        self.act = act

    def forward(self, x):
        return x + self.second(self.act(self.first(x)))


class Net(nn.Module):
    """A stem, two blocks, and features by pooling."""

    def __init__(self, blocks):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 4, 3, stride=2), blocks

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return (x["out"] if isinstance(x, dict) else x).mean((2, 3))


def root(numbers):
    return numbers.sign() * numbers.abs().sqrt()


def plain():
    torch.manual_seed(0)
    return Net(nn.ModuleList([Block(), Block()])).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "n_blocks", "layout"),
    [
        ("test_vit", 6, "tokens"),
        ("test_convnext", 9, "channels first"),
        ("swin_tiny_patch4_window7_224", 12, "channels last"),
        ("mobilenetv4_conv_small_050", 12, "channels first"),
        ("vgg11", 8, "channels first"),
        ("vit_tiny_r_s16_p8_224", 12, "tokens"),
        ("maxvit_pico_rw_256", 11, "channels first"),
        ("torchvision:resnet18", 8, "channels first"),
        ("torchvision:vit_b_16", 12, "tokens"),
        ("torchvision:swin_t", 12, "channels last"),
    ],
)
def test_blocks_are_found_by_structure(name, n_blocks, layout):
    with torch.device("meta"):
        backbone = load_backbone(name, pretrained=False)
        probe = torch.empty(2, 3, *backbone.spec.size)
    assert len(find_blocks(backbone.net)) == n_blocks
    rungs = find_rungs(backbone.net, probe, SIDES)
    grid = [rung for rung in rungs if rung.side == "ladder-grid"]
    assert {rung.layout for rung in grid} == {layout}
    assert len(grid) == n_blocks
    assert len(rungs) == 2 * n_blocks


def test_around_blocks_that_see_patches_as_rows():
    with torch.device("meta"):
        net, probe = timm.create_model("mobilevit_xxs").eval(), torch.empty(2, 3, 256, 256)
    paths = [rung.path for rung in find_rungs(net, probe, ["ladder-grid"])]
    assert paths[-5:] == ["stages.2.1", "stages.3.0", "stages.3.1", "stages.4.0", "stages.4.1"]


def test_blocks_that_share_a_nonlinearity():
    x, act = torch.randn(3, 3, 19, 19), nn.ReLU(inplace=True)
    found = []
    for acts in ((act, act), (nn.ReLU(), nn.ReLU())):
        torch.manual_seed(0)
        net = Net(nn.ModuleList([Block(act) for act in acts])).eval()
        found.append(torch.cat(Ladder(net, ["ladder-gap"], x).pooled(x), dim=1))
    assert torch.equal(*found)


def test_two_sides_that_pool_the_same_are_one():
    layers = [nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7), nn.ReLU()]
    ladder = Ladder(nn.Sequential(*layers).eval(), SIDES, torch.randn(2, 5))
    assert (ladder.sides, ladder.width) == (("ladder-grid",), 14)


def test_what_is_pooled_is_what_plain_torch_pools():
    net, x = plain(), torch.randn(3, 3, 19, 19)
    ladder = Ladder(net, ["ladder-grid", "ladder-gap"], x)
    seen = net.stem(x)
    expected = {"ladder-grid": [], "ladder-gap": []}
    for block in net.blocks:
        expected["ladder-gap"].append(torch.relu(block.first(seen)).mean((2, 3)))
        seen = block(seen)
        grid = nn.functional.adaptive_avg_pool2d(seen, 4).flatten(1)
        expected["ladder-grid"].append(grid)
    h = seen.mean((2, 3))
    wanted = [*expected["ladder-grid"], *expected["ladder-gap"], h]
    for found, part in zip(ladder.pooled(x), wanted, strict=True):
        torch.testing.assert_close(found, root(part))


def test_class_token_and_grid_of_a_transformer():
    net = timm.create_model("test_vit", num_classes=0, img_size=48).eval()
    x = torch.randn(2, 3, 48, 48)
    ladder = Ladder(net, ["ladder-grid"], x)
    with torch.no_grad():
        tokens = net.forward_intermediates(x, intermediates_only=True, return_prefix_tokens=True)
        maps, prefix = tokens[0]
        found = ladder.pooled(x)[0]
    expected = torch.cat([prefix[:, 0], nn.functional.adaptive_avg_pool2d(maps, 3).flatten(1)], 1)
    torch.testing.assert_close(found, root(expected))


def test_channels_of_one_dimensional_convolutions_are_kept_apart():
    def block(width):
        return nn.Sequential(nn.Conv1d(width, 6, 3), nn.ReLU(), nn.Conv1d(6, 5, 1))

    class Signals(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(block(1), block(5))

        def forward(self, x):
            return self.blocks(x[:, None]).mean(2)

    net, x = Signals().eval(), torch.randn(3, 12)
    first = net.blocks[0]
    grid, gap = (Ladder(net, [side], x).pooled(x)[0] for side in SIDES)
    expected = nn.functional.adaptive_avg_pool1d(first(x[:, None]), 4).flatten(1)
    torch.testing.assert_close(grid, root(expected))
    torch.testing.assert_close(gap, root(first[:2](x[:, None]).mean(2)))


@pytest.mark.parametrize("n_leading", [0, 1, 2, 5, 11])
def test_leading_tokens_are_not_of_the_grid(n_leading):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())

        def dynamic_feat_size(self, size):
            return size[0] // 2, size[1] // 2

        def forward(self, x):
            return self.blocks(x.flatten(2)[:, :, : 16 + n_leading].transpose(1, 2)).mean(1)

    rungs = Ladder(Tokens().eval(), ["ladder-grid"], torch.randn(2, 3, 8, 8)).rungs
    assert {(rung.n_leading, rung.grid) for rung in rungs} == {(n_leading, (4, 4))}


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("n_classes", [2, 20])
def test_few_components_and_many_classes(k, n_classes):
    params = {"trainable": "ladder", "n_components": k, "random_state": 0}
    clf = (
        FastNTKClassifier(plain(), image_size=32, **params)
        .fit(X, np.arange(40) % n_classes)
        .unlearn(X[:1])
    )
    assert clf.readout_.shape[1] == max(k, 2) + 1  # each side has one
    assert np.isfinite(clf.decision_function(X)).all()


def test_the_sketch_adds_every_number_once_with_a_sign():
    ladder = Ladder(plain(), SIDES, torch.randn(2, 3, 16, 16))
    ladder.draw_sketch(40, seed=0)
    x = torch.randn(5, 3, 16, 16)
    numbers = torch.cat(ladder.pooled(x), 1)
    starts = (ladder.sizes.cumsum(0) - ladder.sizes).tolist()
    signed = numbers[:, ladder.order.long()] * ladder.signs
    expected = torch.stack(
        [
            signed[:, start : start + size].sum(1)
            for start, size in zip(starts, ladder.sizes, strict=True)
        ],
        1,
    )
    torch.testing.assert_close(ladder(x), expected)
    n_features = ladder.widths[-1]
    counts = ladder.order.bincount().tolist()  # both halves have the features
    assert counts == [1] * (len(counts) - n_features) + [2] * n_features


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext"])
def test_a_row_is_the_same_in_any_batch(name, dtype):
    net = timm.create_model(name, num_classes=0, **({"img_size": 48} if "vit" in name else {})).eval()
    low = dtype == torch.bfloat16  # within the pass only
    x = torch.randn(13, 3, 48, 48).contiguous(memory_format=torch.channels_last)
    net, x = (each.to(torch.float32 if low else dtype) for each in (net, x))
    ladder = Ladder(net, SIDES, x)
    ladder.calibrate([x])
    ladder.draw_sketch(64, seed=0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        assert torch.equal(ladder(x), ladder(x.roll(3, 0)).roll(-3, 0))


def test_scales_divide_the_rungs_before_the_sketch():
    x = torch.randn(5, 3, 16, 16)
    ladder = Ladder(plain(), ["ladder-grid"], x)
    ladder.calibrate([x])
    numbers = torch.cat([p / s for p, s in zip(ladder.pooled(x), ladder.scales, strict=True)], 1)
    torch.testing.assert_close(ladder(x), numbers)
    torch.testing.assert_close(numbers.double().square().sum(1).mean(), torch.tensor(1.0).double())


@pytest.mark.parametrize(
    ("trainable", "kernel"),
    [
        ("ladder", "full"),
        ("ladder-grid", "full"),
        ("ladder-gap", "pseudo"),
        (("ladder", "bias"), "full"),
        (("ladder", "bias"), "pseudo"),
    ],
)
def test_unlearning_is_a_refit(trainable, kernel, tmp_path):
    params = {"trainable": trainable, "kernel": kernel, "n_components": 30, "random_state": 0}
    clf = FastNTKClassifier(plain(), image_size=32, **params).fit(X, y).unlearn(X[:8])
    refit = FastNTKClassifier(plain(), image_size=32, **params).fit(X[8:], y[8:])
    sides = {"ladder": [*SIDES], ("ladder", "bias"): [*SIDES, "bias"]}
    assert clf.trainable_ == sides.get(trainable, [trainable])
    np.testing.assert_allclose(clf.readout_, refit.readout_, rtol=1e-5, atol=1e-6)
    clf.save(tmp_path / "state")
    loaded = FastNTKClassifier.load(tmp_path / "state", backbone=plain())
    clf.save_pretrained(tmp_path / "adapter")
    pulled = FastNTKClassifier.from_pretrained(tmp_path / "adapter", backbone=plain())
    for again in (loaded, pulled):
        np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    np.testing.assert_array_equal(loaded.unlearn(X[8:10]).readout_, clf.unlearn(X[8:10]).readout_)


def test_as_a_plain_module():
    clf = FastNTKClassifier(
        plain(), image_size=32, trainable="ladder", n_components=20, random_state=0
    ).fit(X, y)
    module, spec = clf.to_module(), clf._adapter.model.backbone.spec
    batch = spec.normalise([spec.pixels(each) for each in X], torch.float32)
    with torch.no_grad():
        np.testing.assert_allclose(module(batch).numpy(), clf.decision_function(X), atol=1e-5)
        exported = torch.export.export(module, (batch,)).module()
        torch.testing.assert_close(exported(batch), module(batch))


class InDict(Block):
    def forward(self, x):
        return {"out": super().forward(x["out"] if isinstance(x, dict) else x)}


def test_a_dict_of_tensors_is_as_good_as_a_tensor():
    net = Net(nn.ModuleList([InDict(), InDict()])).eval()
    assert len(find_rungs(net, torch.randn(2, 3, 16, 16), SIDES)) == 4


def test_blocks_of_changing_shape_are_named():
    ladder = Ladder(plain(), ["ladder-grid"], torch.randn(2, 3, 16, 16))
    with pytest.raises(JacobianError, match="change their shape"):
        ladder(torch.randn(2, 3, 5, 5))
    vit = timm.create_model("test_vit", num_classes=0, img_size=48, dynamic_img_size=True).eval()
    ladder = Ladder(vit, ["ladder-grid"], torch.randn(2, 3, 48, 48))
    with pytest.raises(JacobianError, match="change their shape"):
        ladder(torch.randn(2, 3, 64, 64))
    gaps = Ladder(vit, ["ladder-gap"], torch.randn(2, 3, 48, 48))
    assert gaps(torch.randn(2, 3, 64, 64)).shape == (2, gaps.width)  # means over any number of tokens


def test_the_grid_is_that_of_the_pictures_not_of_the_network_as_it_was_made():
    vit = timm.create_model("test_vit", num_classes=0, img_size=224, dynamic_img_size=True).eval()
    rungs = Ladder(vit, ["ladder-grid"], torch.randn(2, 3, 256, 256)).rungs
    assert {(rung.n_leading, rung.grid) for rung in rungs} == {(1, (16, 16))}


def test_a_sketch_of_another_network_is_refused():
    ladder = Ladder(plain(), ["ladder-gap"], torch.randn(2, 3, 16, 16))
    good = ladder.tensors()
    for name, bad in {
        "order": good["order"] + 1,
        "signs": good["signs"] * 2,
        "scales": -good["scales"],
        "sizes": good["sizes"][1:],
    }.items():
        with pytest.raises(StateMismatchError, match="sketch"):
            ladder.install(good | {name: bad})
    with pytest.raises(StateMismatchError, match="sketch"):
        ladder.install(good | {"scales": good["scales"].double()})


class Reversed(Block):
    def forward(self, x):
        return x + self.first(torch.relu(self.second(x)))


def test_a_saved_ladder_is_not_put_beside_other_blocks(tmp_path):
    clf = FastNTKClassifier(plain(), image_size=32, n_components=20, random_state=0).fit(X, y)
    clf.save_pretrained(tmp_path / "adapter")
    clf.save(tmp_path / "state")
    other = Net(nn.ModuleList([Reversed(), Reversed()])).eval()
    other.load_state_dict(plain().state_dict())
    with pytest.raises(StateMismatchError, match="rungs of the ladder"):
        FastNTKClassifier.from_pretrained(tmp_path / "adapter", backbone=other)
    with pytest.raises(StateMismatchError, match="rungs of the ladder"):
        FastNTKClassifier.load(tmp_path / "state", backbone=other)
