"""Models of Hugging Face transformers, tiny ones with random weights, from folders and from the Hub."""

import json
import sys

import hostile
import numpy as np
import pytest
import timm
import torch
import transformers as hf
from hub_server import TOKEN, connected_hub
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.loading import load_backbone
from fastntk_sk.exceptions import (
    BackboneNotFoundError,
    InsufficientMemoryError,
    SubsetError,
    WeightsUnavailableError,
)
from fastntk_sk.tangents.subsets import resolve

PARAMS = {"n_components": 8, "batch_size": 16, "random_state": 0}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 32, "resample": 2}
PICTURES = {"image_size": 32, "num_channels": 3}
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
VIT = PICTURES | BLOCKS | {"intermediate_size": 64}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT |= {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_channels": 3}


def clip():
    return hf.CLIPModel(hf.CLIPConfig(vision_config=VIT, text_config=TEXT))


def swin():
    sizes = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}
    return hf.SwinForImageClassification(hf.SwinConfig(**sizes, **PICTURES))


def registers():
    config = hf.Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=4, **BLOCKS, **PICTURES)
    return hf.Dinov2WithRegistersModel(config)


MODELS = {
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)),
    "deit": lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**VIT)),
    "dinov2": lambda: hf.Dinov2ForImageClassification(
        hf.Dinov2Config(mlp_ratio=2, **BLOCKS, **PICTURES)
    ),
    "registers": registers,
    "swin": swin,
    "convnext": lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(image_size=32, **STAGES)),
    "resnet": lambda: hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=8, **STAGES)),
    "segformer": lambda: hf.SegformerForImageClassification(
        hf.SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1] * 4)
    ),
    "clip": clip,
    "clip tower": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT)),
    "clip classifier": lambda: hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=VIT)),
}


def save(folder, model, processor=HALF):
    """Write a model and what prepares its pictures."""
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The models and their folders as sources."""
    made = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, make in MODELS.items():
            model = make().eval()
            made[name] = model, save(tmp_path_factory.mktemp("models") / name, model)
    return made


@pytest.fixture(scope="module")
def rows():
    """Twelve pictures of three classes."""
    draws = np.random.default_rng(0)
    return draws.integers(0, 256, size=(12, 32, 32, 3), dtype=np.uint8), np.arange(12) % 3


def read_by_classifier(model, x):
    """Return what the classifier of a model reads, or the features that others have."""
    if isinstance(model, hf.CLIPVisionModel):
        return model(x).pooler_output
    if isinstance(model, hf.CLIPModel):
        return model.vision_model(x).pooler_output
    if isinstance(model, hf.Dinov2WithRegistersModel):  # as Dinov2WithRegistersForImageClassification
        tokens = model(x).last_hidden_state
        return torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], dim=1)
    linear = [
        m for name, m in model.named_modules() if "classifier" in name and isinstance(m, nn.Linear)
    ]
    read = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: read.append(given[0])) for layer in linear]
    model(x)
    for hook in hooks:
        hook.remove()
    return torch.stack(read).mean(0)


@pytest.mark.parametrize("name", MODELS)
def test_features_are_what_the_classifier_reads(models, name, capfd):
    model, source = models[name]
    levels = hf.utils.logging.get_verbosity()
    backbone = load_backbone(source)
    x = backbone.synthetic(3, 0, None, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.net(x), read_by_classifier(model, x))
    assert capfd.readouterr() == ("", "")
    assert hf.utils.logging.get_verbosity() == levels
    assert not any("classifier" in part or "text" in part for part in backbone.net.state_dict())


@pytest.mark.parametrize(
    ("name", "trainable"),
    [
        ("vit", "prompt-deep"),
        ("registers", ["ladder", "prompt"]),
        ("swin", "ladder"),
        ("resnet", "norm"),
        pytest.param("clip", "prompt", marks=pytest.mark.slow),
        pytest.param("convnext", "ladder", marks=pytest.mark.slow),
        pytest.param("swin", "norm", marks=pytest.mark.slow),
        pytest.param("convnext", "norm", marks=pytest.mark.slow),
    ],
)
def test_fit_forget_and_load(models, rows, tmp_path, name, trainable):
    (_, source), (X, y) = models[name], rows
    make = lambda: FastNTKClassifier(source, trainable=trainable, **PARAMS)  # noqa: E731
    clf = make().fit(X, y).unlearn(X[:3])
    scores = clf.decision_function(X)
    np.testing.assert_allclose(scores, make().fit(X[3:], y[3:]).decision_function(X), atol=1e-4)
    if "ladder" in trainable:
        rungs = clf._adapter.model.ladder.rungs
        inside = [rung.path for rung in rungs if rung.side == "ladder-gap"]
        assert inside
        assert all("act" in path for path in inside)
        assert {rung.grid for rung in rungs} <= {None, (4, 4), (8, 8)}
    clf.save(tmp_path / "state")
    np.testing.assert_array_equal(
        FastNTKClassifier.load(tmp_path / "state").decision_function(X), scores
    )
    clf.save_pretrained(tmp_path / "adapter")
    again = FastNTKClassifier.from_pretrained(tmp_path / "adapter", backbone=source)
    np.testing.assert_array_equal(again.decision_function(X), scores)


def test_what_is_trained_by_default(models, rows):
    for name, expected in (
        ("vit", "prompt"),
        ("dinov2", "prompt"),
        ("swin", "norm"),
        ("resnet", "norm"),
    ):
        net = load_backbone(models[name][1]).net
        assert resolve("auto", net, "finetuned") == expected
        assert resolve("auto", net, "pretrained") == "ladder"
    with pytest.raises(SubsetError, match="Prompt tokens need"):
        FastNTKClassifier(models["swin"][1], trainable="prompt", **PARAMS).fit(*rows)


def test_other_sizes(models):
    model, source = models["vit"]
    backbone = load_backbone(source, image_size=(32, 48))
    x = backbone.synthetic(2, 0, None, torch.float32)
    assert x.shape == (2, 3, 32, 48)
    with torch.no_grad():
        expected = model.vit(x, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        torch.testing.assert_close(backbone.net(x), expected)
    with pytest.raises(BackboneNotFoundError, match=r"multiple of the patches .* got \(30, 30\)"):
        load_backbone(source, image_size=30)


@pytest.mark.parametrize(
    ("kind", "processor"),
    [
        ("vit", hf.ViTImageProcessor(size={"height": 32, "width": 32})),
        ("vit", hf.ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False)),
        ("vit", hf.ViTImageProcessor(size={"height": 32, "width": 32}, rescale_factor=1 / 127.5)),
        ("clip", hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)),
        ("resnet", hf.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0)),
        ("resnet", hf.EfficientNetImageProcessor(size={"height": 32, "width": 32}, resample=3)),
    ],
)
def test_pictures_are_prepared_as_the_processor_does(models, rows, tmp_path, kind, processor):
    source = save(tmp_path, models[kind][0], None)
    processor.save_pretrained(tmp_path)
    spec = load_backbone(source).spec
    expected = processor(images=[Image.fromarray(rows[0][0])], return_tensors="pt")["pixel_values"]
    assert spec.size == tuple(expected.shape[2:])
    found = spec.normalise([spec.pixels(rows[0][0])], torch.float32)
    torch.testing.assert_close(found, expected.contiguous(memory_format=torch.channels_last))


def test_what_a_processor_leaves_open(models, tmp_path):
    source = save(tmp_path / "vit", models["vit"][0], None)
    with pytest.warns(UserWarning, match="deviation of ImageNet"):
        assert load_backbone(source).spec.mean == (0.485, 0.456, 0.406)
    source = save(tmp_path / "resnet", models["resnet"][0], {"image_mean": 0.5, "image_std": 0.5})
    with pytest.raises(BackboneNotFoundError, match="image_size"):
        load_backbone(source)
    assert load_backbone(source, image_size=32).spec.std == (0.5,) * 3
    save(tmp_path / "resnet", models["resnet"][0], HALF | {"do_flip_channel_order": True})
    flipped, plain = load_backbone(source).net, load_backbone(models["resnet"][1]).net
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flipped(x), plain(x.flip(1)))
    grey = hf.ViTForImageClassification(hf.ViTConfig(**VIT | {"num_channels": 1}))
    assert load_backbone(save(tmp_path / "grey", grey)).spec.mean == (0.5,)
    for wrong in ({"size": 10**6}, {"image_std": 0}, {"image_mean": "x"}, {"resample": 77}):
        with pytest.raises(BackboneNotFoundError, match="processor|pictures are prepared"):
            load_backbone(save(tmp_path / "wrong", models["vit"][0], HALF | wrong))


NO_PICTURES = {
    "texts": {"model_type": "bert", "vocab_size": 30_522},
    "sound": {"model_type": "wav2vec2"},
    "film": {"model_type": "videomae"},
    "boxes": {"model_type": "detr"},
    "unknown": {"model_type": "no_such"},
    "neither": {"hidden_size": 32},
    "no text": {"model_type": ["vit"]},
    "quantized": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "layers": {"num_hidden_layers": 10**9},
    "width": {"hidden_size": 10**6},
    "memory": {"hidden_size": 2**14, "intermediate_size": 2**14},
    "picture": {"image_size": 10**7},
    "infinite": {"hidden_size": float("inf")},
    "type": {"hidden_size": "many"},
    "activation": {"hidden_act": "os.system"},
    "deep": {"patch_size": json.loads("[" * 900 + "]" * 900)},
    "another network": {"model_type": "timm_backbone", "backbone": "hf-hub:evil/net"},
}


@pytest.mark.parametrize("case", NO_PICTURES)
def test_configurations_that_are_not_built(models, tmp_path, monkeypatch, case):
    monkeypatch.setenv("FASTNTK_SK_MEMORY_LIMIT", str(2**30))
    config = VIT | {"model_type": "vit"} | NO_PICTURES[case]
    if case == "neither":
        del config["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF))
    source = f"local-dir:{tmp_path}"
    expected = InsufficientMemoryError if case == "memory" else BackboneNotFoundError
    load_backbone(models["vit"][1], pretrained=False)  # what is imported for it is not counted

    def load():
        with pytest.raises(expected, match=str(tmp_path)):
            load_backbone(source)

    assert hostile.peak(load) < 200 * hostile.MIB


def test_code_and_pickles_of_a_repository_are_not_executed(models, tmp_path):
    model, _ = models["vit"]
    source = save(tmp_path / "vit", model)
    bomb = tmp_path / "executed"
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "dtype": "float16"}
    config |= {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    (tmp_path / "vit" / "evil.py").write_text(f"import os; os.mkdir({str(bomb)!r})")
    base = {"base_model_name_or_path": "evil/net", "peft_type": "LORA"}
    (tmp_path / "vit" / "adapter_config.json").write_text(json.dumps(base))
    net = load_backbone(source).net
    x = torch.ones(1, 3, 32, 32)
    assert torch.equal(net(x), load_backbone(models["vit"][1]).net(x))
    (tmp_path / "vit" / "model.safetensors").unlink()
    (tmp_path / "vit" / "pytorch_model.bin").write_bytes(f"cos\nmkdir\n(V{bomb}\ntR.".encode())
    with pytest.raises(WeightsUnavailableError, match="a pickle, which is not opened"):
        load_backbone(source)
    assert not bomb.exists()


def test_weights_that_do_not_belong_to_a_model(models, tmp_path):
    model, _ = models["vit"]
    source = save(tmp_path / "vit", model)
    file = tmp_path / "vit" / "model.safetensors"
    state = load_file(file)
    halves = {f"{i}.safetensors": dict(list(state.items())[i::2]) for i in range(2)}
    for name, tensors in halves.items():
        save_file(tensors, tmp_path / "vit" / name)
    file.unlink()
    index = {key: name for name, tensors in halves.items() for key in tensors}
    listed = tmp_path / "vit" / "model.safetensors.index.json"
    listed.write_text(json.dumps({"weight_map": index}))
    whole = load_backbone(models["vit"][1]).digest()
    assert load_backbone(source).digest() == whole
    listed.write_text(json.dumps({"weight_map": dict.fromkeys(index, "../other/model.safetensors")}))
    with pytest.raises(BackboneNotFoundError, match="no parts of weights"):
        load_backbone(source)
    listed.unlink()
    save_file({key: value for key, value in state.items() if "layer.1" not in key}, file)
    with pytest.raises(WeightsUnavailableError, match=r"another network, without vit\.layers\.1"):
        load_backbone(source)
    save_file({key: value[:1].clone() for key, value in state.items()}, file)
    with pytest.raises(WeightsUnavailableError, match="cannot be loaded here"):
        load_backbone(source)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(WeightsUnavailableError, match="cannot be loaded here"):
        load_backbone(source)
    one, two = (load_backbone(source, pretrained=False, seed=seed).digest() for seed in (0, 1))
    assert len({one, two, whole}) == 3


def test_folders_of_timm_that_cannot_be_loaded(tmp_path):
    """Whatever is wrong with a folder, the error is one of the library."""
    net = timm.create_model("test_resnet", num_classes=7)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    for error, change in (
        (BackboneNotFoundError, lambda: config.write_text("<html>")),
        (BackboneNotFoundError, lambda: config.write_text("[]")),
        (BackboneNotFoundError, lambda: config.write_text("{}")),
        (WeightsUnavailableError, lambda: config.write_text('{"architecture": "test_convnext"}')),
        (WeightsUnavailableError, lambda: config.write_text('{"architecture": "no_such"}')),
        (WeightsUnavailableError, lambda: weights.write_text("version https://git-lfs.github.com/")),
        (WeightsUnavailableError, weights.unlink),
        (WeightsUnavailableError, config.unlink),
    ):
        save_for_hf(net, str(tmp_path), safe_serialization=True)
        change()
        with pytest.raises(error, match=str(tmp_path)):
            load_backbone(f"local-dir:{tmp_path}", image_size=32)


def test_without_the_extra(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsUnavailableError, match=r"pip install 'fastntk_sk\[transformers\]'"):
        load_backbone(models["vit"][1])


def test_a_model_on_the_hub(models, rows, monkeypatch, tmp_path):
    X, y = rows
    with connected_hub(monkeypatch, tmp_path / "home") as server:
        api = HfApi(token=TOKEN)
        api.create_repo("me/vit")
        folder = models["vit"][1].removeprefix("local-dir:")
        commit = api.upload_folder(repo_id="me/vit", folder_path=folder).oid
        clf = FastNTKClassifier("hf-hub:me/vit@main", **PARAMS).fit(X, y)
        scores = clf.decision_function(X)
        local = FastNTKClassifier(models["vit"][1], **PARAMS).fit(X, y)
        np.testing.assert_array_equal(local.decision_function(X), scores)
        clf.save_pretrained(tmp_path / "adapter")
        about = json.loads((tmp_path / "adapter" / "config.json").read_text())["backbone"]
        assert (about["base_model"], about["revision"]) == ("me/vit", commit)
        # a later commit on that branch changes nothing, and a lost connection nothing either
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="me/vit")
        for _ in range(2):
            again = FastNTKClassifier.from_pretrained(tmp_path / "adapter")
            np.testing.assert_array_equal(again.decision_function(X), scores)
            server.cut(match="me/vit", times=1000)
        server.faults.clear()
        # weights that are larger than their network are not downloaded
        small = json.dumps(VIT | {"model_type": "vit", "hidden_size": 2, "intermediate_size": 2})
        api.upload_file(path_or_fileobj=small.encode(), path_in_repo="config.json", repo_id="me/vit")
        n_asked = len(server.log)
        with pytest.raises(BackboneNotFoundError, match="It was not downloaded"):
            load_backbone("hf-hub:me/vit")
        assert not any("GET" in line and "safetensors" in line for line in server.log[n_asked:])
