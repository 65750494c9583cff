"""Modules as people have them: what they return, what they take, and what is around them."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
from cases import gap
from PIL import Image
from torch import nn

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import BackboneError, FastNTKError, JacobianError

SETTINGS = {"image_size": 16, "n_components": 8, "batch_size": 4, "random_state": 0}


def pool(maps):
    return maps.mean((2, 3))


class Net(nn.Module):
    """Two convolutions with norms; `change` makes what it returns of its maps (n, 8, 16, 16)."""

    def __init__(self, change=pool, channels=3):
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.relu2, self.change = nn.ReLU(), nn.ReLU(), change

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        return self.change(self.relu2(self.last(self.second(x))))


@pytest.fixture(autouse=True)
def weights():
    """Random weights are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def net():
    return Net()


@pytest.fixture(scope="module")
def pictures():
    y = np.arange(12) % 3
    brightest = 100 + 70 * y[:, None, None, None]
    return np.random.default_rng(0).integers(brightest, size=(12, 16, 16, 3)).astype(np.uint8), y


def fitted(backbone, pictures, **params):
    return FastNTKClassifier(backbone, **SETTINGS | params).fit(*pictures)


def forgets(backbone, pictures, **params):
    """Check a deletion against a refit, and return the estimator."""
    X, y = pictures
    clf = fitted(backbone, pictures, **params).unlearn(X[:2])
    refit = FastNTKClassifier(**clf.get_params()).fit(X[2:], y[2:], classes=np.unique(y))
    assert gap(clf, refit) < 1e-5
    assert clf.predict(X).shape == (12,)
    return clf


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h,
        lambda h: h.permute(0, 2, 3, 1),
        lambda h: [pool(h)],
        lambda h: (h, pool(h)),
        lambda h: {"logits": pool(h), "loss": None},
        lambda h: OrderedDict(last_hidden_state=h.flatten(2).mT, pooler_output=h.mean((2, 3), True)),
        lambda h: {"maps": h, "tokens": h.flatten(2).mT, "embedding": pool(h)},
    ],
)
def test_what_a_network_returns_is_picked_and_pooled(net, pictures, change):
    both = {"trainable": ["ladder", "norm"]}
    expected = fitted(net, pictures, **both).decision_function(pictures[0])
    net.change = change
    found = fitted(net, pictures, **both).decision_function(pictures[0])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.flatten(2).mT, r"\(2, 256, 8\).*\[:, 0\].*mean\(1\)"),
        (lambda h: {"last_hidden_state": h.flatten(2).mT}, r"'last_hidden_state'.*\(x\)\['last_hid"),
        (lambda h: (pool(h), pool(h)), r"tuple \{0: \(2, 8\), 1: \(2, 8\)\}"),
        (lambda h: {"a": pool(h), "b": pool(h)}, "class Features"),
        (lambda h: [h, h], "class Features"),
        (lambda h: "features", "str without tensors.*returns a tensor"),
        (lambda h: h[..., None], r"net\(x\).flatten\(2\).mean\(2\)"),
        (lambda h: h.mean((1, 2, 3)), r"net\(x\)\[:, None\]"),
        (lambda h: torch.fft.fft(pool(h)), r"net\(x\).abs\(\)"),
        (lambda h: h.mean((1, 2, 3)), "features of shape"),
        (lambda h: h.mean(), "features of shape"),
        (lambda h: h[:, :, 0, :1].squeeze(), "of one"),
        (lambda h: pool(h).long(), "features of shape"),
    ],
)
def test_what_leaves_the_features_open_is_refused_with_advice(net, pictures, change, words):
    net.change = change
    with pytest.raises(BackboneError, match=f"(?s){words}"):
        fitted(net, pictures)


def test_patterns_modules_and_files_of_a_network_that_returns_maps(net, pictures, tmp_path):
    X = pictures[0]
    net.change = nn.Identity()
    clf = forgets(net, pictures, trainable=["norm.*", "second.weight"], anchor="finetuned", max_epochs=1)
    names = clf._adapter.model.tangent.subset.names
    assert set(names) == {"norm.weight", "norm.bias", "second.weight"}
    for i, made in enumerate((clf, fitted(net, pictures))):
        batch = torch.from_numpy(X / 255).movedim(-1, 1).float()
        scores = made.to_module()(batch).detach().numpy()
        np.testing.assert_allclose(scores, made.decision_function(X), atol=1e-4)
        made.save(tmp_path / str(i))
        again = FastNTKClassifier.load(tmp_path / str(i), backbone=net)
        np.testing.assert_array_equal(again.decision_function(X), made.decision_function(X))
        assert again.unlearn(X[5:6]).n_samples_learned_ == made.n_samples_learned_ - 1


def test_a_timm_module_without_its_pooling(pictures):
    net = timm.create_model("test_resnet", num_classes=0, global_pool="")
    clf = fitted(net, pictures, trainable="head")
    batch = clf._adapter.model.synthetic(3)
    assert clf.to_module()(batch).shape == (3, 3)


@pytest.mark.slow
def test_onnx_of_a_network_that_returns_maps(net, pictures, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net.change = lambda h: {"maps": h}
    clf = fitted(net, pictures)
    clf.export_onnx(tmp_path / "net.onnx")
    batch = torch.from_numpy(pictures[0] / 255).movedim(-1, 1).float()
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    (scores,) = session.run(["scores"], {"batch": batch.numpy()})
    np.testing.assert_allclose(scores, clf.decision_function(pictures[0]), atol=1e-4)


@pytest.mark.parametrize(
    "make", [lambda: Net(channels=1), lambda: timm.create_model("test_resnet", in_chans=1)]
)
def test_one_channel_gets_grey_pictures(make, pictures):
    X, y = pictures
    backbone = make()
    grey = np.stack([np.asarray(Image.fromarray(x).convert("L")) for x in X])
    clf = forgets(backbone, pictures, trainable=["ladder", "norm"], image_size=32)
    same = fitted(backbone, (grey, y), trainable=["ladder", "norm"], image_size=32).unlearn(grey[:2])
    np.testing.assert_array_equal(clf.decision_function(X), same.decision_function(grey))
    spec = clf._adapter.model.backbone.spec
    for picture in X:  # 8 bits are rounded, after the conversion and after resizing
        floats = spec.pixels((picture / 255).astype(np.float32))
        np.testing.assert_allclose(floats, spec.pixels(picture) / 255, atol=2 / 255)
    clf.unlearn(list(map(Image.fromarray, X[2:3])))  # decoded as it was learned


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_other_numbers_of_channels_are_named(channels, pictures):
    with pytest.raises(BackboneError, match=f"first convolution takes {channels} channels"):
        fitted(Net(channels=channels), pictures)


def test_what_compiles_or_runs_in_parallel_stays_away(net, pictures):
    expected = fitted(net, pictures, trainable="norm").decision_function(pictures[0])
    inside = nn.Sequential(torch.compile(Net()), nn.Identity())
    inside[0]._orig_mod.load_state_dict(net.state_dict())
    in_place = copy.deepcopy(net)
    in_place.compile()
    for wrapped in (torch.compile(net), nn.DataParallel(torch.compile(net)), inside, in_place):
        clf = fitted(wrapped, pictures, trainable="norm")
        np.testing.assert_array_equal(clf.decision_function(pictures[0]), expected)


class Shared(nn.Module):
    """A norm that is called twice and has two names, and convolutions of one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm = self.again = nn.BatchNorm2d(8)
        self.third.weight = self.second.weight
        self.relu, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        x = self.relu2(self.norm(self.second(x)))
        return pool(self.relu2(self.again(self.third(x))))


@pytest.mark.parametrize("trainable", ["ladder", "norm", "second.weight", "full"])
def test_shared_modules_and_tied_weights(trainable, pictures, tmp_path):
    net = Shared()
    clf = forgets(net, pictures, trainable=trainable)
    model, X = clf._adapter.model, pictures[0]
    if model.tangent.subset.names:
        # a step of 1 %, by the network: its change is that of the derivative
        x, step = model.synthetic(2), 0.01 * torch.cat([p.flatten() for p in parts(model)])
        change = model.displaced_copy(step)(x) - model.backbone.net(x)
        torch.testing.assert_close(change, model.tangent.directional(x, step)[1], rtol=0.1, atol=1e-3)
    clf.save(tmp_path / "state")
    again = FastNTKClassifier.load(tmp_path / "state", backbone=net)
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))


def parts(model):
    return [model.backbone.net.get_parameter(name) for name in model.tangent.subset.names]


class InPlace(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.5).mul_(2))


def test_a_network_that_writes_into_its_input(pictures):
    for trainable in (["ladder", "norm"], "norm"):
        clf = forgets(InPlace(), pictures, trainable=trainable)
        alone = np.concatenate([clf.decision_function(pictures[0][i : i + 1]) for i in range(3)])
        np.testing.assert_allclose(clf.decision_function(pictures[0])[:3], alone, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_module_itself_is_not_touched(dtype, net, pictures):
    net.to(dtype).train().norm.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    clf = forgets(net, pictures, trainable="norm")
    assert clf.readout_.dtype == np.float32
    assert net.training
    assert [p.requires_grad for p in net.norm.parameters()] == [False, False]
    assert net.first.weight.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


@pytest.mark.parametrize("name", ["first.weight", "norm.running_mean", "last.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(name, value, net, pictures):
    net.state_dict()[name].flatten()[0] = value
    for trainable in ("ladder", "norm"):
        with pytest.raises(BackboneError, match=f"(?s)finite weights.*{name}"):
            fitted(net, pictures, trainable=trainable)


def test_a_mask_may_be_infinite(net, pictures):
    net.register_buffer("mask", torch.full((4, 4), -torch.inf))
    forgets(net, pictures)


class Detached(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize(
    "make", [Detached, lambda: Net(lambda h: pool(Clamp.apply(h)))], ids=["no_grad", "no forward mode"]
)
def test_networks_without_derivatives_have_a_ladder(make, pictures):
    net = make()
    with pytest.raises(JacobianError, match="or the ladder"):
        fitted(net, pictures, trainable="norm")
    forgets(net, pictures, trainable="ladder")


class Recurrent(Net):
    def __init__(self):
        super().__init__(nn.Identity())
        self.cell = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        return self.cell(super().forward(x).flatten(2).mT)[0][:, -1]


def test_what_has_derivatives_in_double_precision_alone_is_refused_at_fit(pictures):
    with pytest.raises(JacobianError, match="or the ladder"):
        fitted(Recurrent(), pictures, trainable="norm")
    forgets(Recurrent(), pictures)


class TwoInputs(Net):
    def forward(self, x, mask):
        return super().forward(x)


class Raising(Net):
    def forward(self, x):
        raise KeyError("of mine")


class Uncopied(Net):
    def __deepcopy__(self, memo):
        raise TypeError("cannot copy a lock")


def normed():
    return torch.nn.utils.weight_norm(nn.Linear(4, 4))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (TwoInputs, "(?s)missing 1 required positional argument: 'mask'.*takes the batch alone"),
        (Raising, "of mine"),
        (Uncopied, "cannot copy a lock"),
        (lambda: nn.Sequential(Net(), normed()), "parametrizations.weight_norm"),
        (lambda: Net().to("meta"), "meta device"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten()), "not initialised"),
        (lambda: torch.jit.trace(nn.Linear(4, 4), torch.ones(2, 4)), "scripted or traced"),
        (lambda: nn.Sequential(torch.jit.script(nn.ReLU()), Net()), "scripted or traced"),
        (
            lambda: torch.ao.quantization.quantize_dynamic(
                nn.Sequential(nn.Flatten(), nn.Linear(768, 8))
            ),
            "quantised",
        ),
        (lambda: nn.ParameterDict({"w": torch.ones(2, dtype=torch.complex64)}), "complex64"),
        (lambda: nn.ParameterDict({"w": torch.eye(2).to_sparse()}), "sparse_coo"),
    ],
)
def test_what_cannot_work_is_an_error_of_the_library(make, words, pictures):
    for backbone in (make(), make):
        with pytest.raises(FastNTKError, match=words):
            fitted(backbone, pictures)


def test_parametrizations(net, pictures):
    torch.nn.utils.parametrizations.spectral_norm(net.first)
    torch.nn.utils.parametrizations.weight_norm(net.second)
    for trainable in ("ladder", "norm", "first.parametrizations.weight.original"):
        forgets(net, pictures, trainable=trainable)


def test_modules_of_transformers(pictures):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = transformers.ViTConfig(image_size=16, patch_size=8, **sizes)
    for trainable in ("ladder", "norm"):
        forgets(transformers.ViTModel(config), pictures, trainable=trainable)
        forgets(transformers.ViTForImageClassification(config), pictures, trainable=trainable)
    with pytest.raises(BackboneError, match=r"(?s)'last_hidden_state': \(2, 5, 16\).*\[:, 0\]"):
        fitted(transformers.ViTModel(config, add_pooling_layer=False), pictures)
