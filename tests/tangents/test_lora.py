"""LoRA: the layers that get it, deletions, what is saved, and adapters that peft loads."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import timm
import torch
from cases import Transformer, gap
from hostile import Parts, outcome, peak
from sklearn.base import clone
from torch import nn

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import StateMismatchError, SubsetError
from fastntk_sk.tangents.lora import insert_lora, lora_layers

MIB = 2**20


class Attention(nn.Module):
    """Separate projections, as in transformers."""

    def __init__(self, width):
        super().__init__()
        layers = (nn.Linear(width, width) for _ in range(4))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = layers

    def forward(self, x):
        parts = (layer(x) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return x + self.out_proj(nn.functional.scaled_dot_product_attention(*parts))


class Small(nn.Module):
    """A transformer on the rows of pictures of 8 pixels; one layer of attention is not called."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(model_type="vit")  # as of a model of transformers, which it is not
        self.embed, self.unused = nn.Linear(24, 12), Attention(12)
        self.blocks = nn.Sequential(*(nn.Sequential(Attention(12), nn.Linear(12, 12)) for _ in range(2)))

    def forward(self, x):
        return self.blocks(self.embed(x.transpose(1, 2).flatten(2))).mean(1)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def resnet():
    net = timm.create_model("test_resnet", num_classes=3)
    for module in net.modules():  # those that timm starts at zero hide the layers below them
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return net


def vit():
    return timm.create_model("test_vit", img_size=32, num_classes=3)


def mixed():
    """Tied weights, a strided convolution of one pixel, one of groups, and one of three pixels."""
    convs = [nn.Conv2d(3, 4, 1, 2), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 3, padding=1)]
    tied = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)]
    tied[1].weight = tied[0].weight
    return nn.Sequential(*convs, *tied, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def make(net=Small, size=8, **changes):
    defaults = {"trainable": "lora", "n_components": 32, "batch_size": 8, "random_state": 0}
    defaults |= {"backbone_has_seen": False, "max_epochs": 2}
    return FastNTKClassifier(lambda: seeded(net), image_size=size, **(defaults | changes))


@pytest.fixture(scope="module")
def pictures(digits):
    return digits[0][:30], digits[1][:30] % 3


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (Small, [f"blocks.{i}.0.{name}" for i in range(2) for name in PROJECTIONS]),
        (vit, [f"blocks.{i}.attn.{name}" for i in range(6) for name in ("qkv", "proj")]),
        (mixed, ["0"]),
        (Transformer, []),
    ],
)
def test_which_layers_get_it(net, expected):
    built = seeded(net)
    probe = torch.rand(2, 3, *(32, 32) if net is vit else (8, 8))
    before, state = built(probe), torch.get_rng_state()
    layers = lora_layers(built, probe)
    insert_lora(built, layers, 4, torch.Generator().manual_seed(0))
    assert layers == expected
    torch.testing.assert_close(built(probe), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.requires_grad for p in built.parameters()) or not expected


@pytest.mark.parametrize(
    ("net", "params"),
    [
        (Small, {}),
        (Small, {"kernel": "pseudo", "lora_rank": 2}),
        (Small, {"trainable": ["ladder", "lora"]}),
        (Small, {"predict_with": "network"}),
        (resnet, {"precision": "float64", "batch_size": 4}),
    ],
)
def test_it_is_forgotten_and_saved(pictures, tmp_path, net, params):
    X, y = pictures
    fresh = make(net, **params)
    clf = clone(fresh).fit(X, y)
    clf.save(tmp_path / "before")
    clf.unlearn(X[:6])
    refit = clone(fresh).fit(X[6:], y[6:])
    assert gap(clf, refit) < (1e-10 if "precision" in params else 1e-6)
    assert clf.receipts_[-1]["exactness"]["exact"]
    again = FastNTKClassifier.load(tmp_path / "before", backbone=clf.backbone).unlearn(X[:6])
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    clf.save_pretrained(tmp_path / "adapter")
    pulled = FastNTKClassifier.from_pretrained(tmp_path / "adapter", backbone=clf.backbone)
    np.testing.assert_array_equal(pulled.decision_function(X), clf.decision_function(X))
    assert pulled.lora_rank == clf.lora_rank


def test_a_ladder_beside_it_is_that_of_the_network(pictures):
    X, y = pictures
    alone, beside = make(trainable="ladder").fit(X, y), make(trainable=["ladder", "lora"]).fit(X, y)
    ladders = [clf._adapter.model.ladder for clf in (alone, beside)]
    assert ladders[0].digest() == ladders[1].digest()


@pytest.mark.parametrize(
    ("net", "size"), [(vit, 32), (resnet, 32), (Small, 8)], ids=["fused qkv", "pointwise", "separate"]
)
def test_peft_loads_what_is_exported(pictures, tmp_path, net, size):
    X, y = pictures
    clf = make(net, size, anchor="finetuned", learning_rate=1e-4).fit(X, y).unlearn(X[:3])
    clf.export_peft(tmp_path)
    written = {file.name for file in tmp_path.iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    loaded = peft.PeftModel.from_pretrained(seeded(net), tmp_path).eval()
    batch = next(clf._adapter.model.batches(clf._rows(X)))
    expected, module = clf.decision_function(X)[: len(batch)], clf.to_module()
    with torch.no_grad():
        scores, merged = loaded(batch).double().numpy(), module(batch).numpy()
    if net is Small:  # the features, for the network has no classifier
        scores = np.column_stack([scores, np.ones(len(scores))]) @ clf.readout_.T
        module = module.backbone
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-4)
    # plain again, and no weights but those of its layers have moved
    before, after = seeded(net).state_dict(), module.state_dict()
    assert before.keys() == after.keys()
    layers = lora_layers(seeded(net), batch[:2])
    readout = {name for name in before if "head" in name or "fc." in name}
    moved = {name for name in before if not torch.equal(before[name], after[name])} - readout
    assert moved == {f"{layer}.weight" for layer in layers}


def test_sgd_trains_b_alone(pictures):
    clf = make(anchor="finetuned", learning_rate=1e-4).fit(*pictures)
    model, start = clf._adapter.model, make().fit(*pictures)._adapter.model
    before, after = start.backbone.net.state_dict(), model.backbone.net.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(model.tangent.subset.names) == {name for name in before if "lora_B" in name}
    assert clf.displacement_.size == 8 * 12 * 4


def test_what_is_no_adapter_of_peft(pictures, tmp_path):
    X, y = pictures
    tuned = {"anchor": "finetuned", "learning_rate": 1e-4}
    for params in ({}, tuned | {"trainable": "bias"}, tuned | {"trainable": ["lora", "bias"]}):
        clf = make(**params).fit(X, y)
        with pytest.raises(ValueError, match='Expected trainable="lora", anchor="finetuned"'):
            clf.export_peft(tmp_path / "adapter")
    with pytest.raises(ValueError, match="got tangents of"):
        make().fit(X, y).to_module()
    assert not list(tmp_path.iterdir())


def test_what_it_needs(pictures, blobs, monkeypatch):
    X, y = pictures
    for net, rows in ((Transformer, X), (lambda: nn.Linear(4, 4), blobs[0])):
        with pytest.raises(SubsetError, match="calls no attention projection"):
            make(net).fit(rows, np.arange(len(rows)) % 3)
    config = peft.LoraConfig(target_modules=["v_proj"])
    adapted = make(lambda: peft.inject_adapter_in_model(config, Small()))
    with pytest.raises(SubsetError, match="merge_and_unload"):
        adapted.fit(X, y)
    with pytest.raises(SubsetError, match="'lora'"):
        make(trainable="nothing").fit(X, y)
    with pytest.raises(ValueError, match="'lora_rank' parameter"):
        make(lora_rank=0).fit(X, y)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"fastntk_sk\[lora\]"):
        make().fit(X, y)


def test_forged_adapters(pictures, tmp_path):
    X, y = pictures
    make().fit(X, y).save_pretrained(tmp_path / "adapter")
    whole = Parts.of(tmp_path / "adapter")
    frozen = next(name for name in whole.tensors if "lora_A" in name)
    ranked, wider, missing = (whole.copy() for _ in range(3))
    ranked.config["settings"]["lora_rank"] = 10**4
    wider.with_tensors(**{frozen: torch.zeros(10**4, 12)})
    del missing.tensors[frozen]
    missing.with_tensors()
    found = []
    for parts in (ranked, wider, missing):
        folder = parts.write(tmp_path / "forged")
        n_bytes = peak(lambda folder=folder: found.append(outcome(folder, lambda: seeded(Small))))
        assert n_bytes < 32 * MIB
        assert isinstance(found[-1], StateMismatchError)
