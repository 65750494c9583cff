"""Files that name something to be run or fetched: names are those of networks, and of nothing else."""

import os
import sys

import numpy as np
import pytest
import timm
import torch
from hostile import EACH, NAMED, STATES, put, y
from timm.models import save_for_hf

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import StateFormatError, StateMismatchError, WeightsUnavailableError

CODE = [
    "os.system",
    "torch.nn.Linear",
    "builtins.eval",
    "fastntk_sk.publishing.files",
    "https://evil/x",
    "file:///etc",
]
CODE += ["hf-hub:../../x", "hf-hub:../x", "hf-hub:x/..", "hf-hub:a/b@../../c", "hf-hub:a/b@x/../../c"]
CODE += [
    "hf-hub:/etc/passwd",
    "hf_hub:../x",
    "hub:a/b",
    "git+https://evil",
    "../x",
    "/etc/passwd",
    "~/x",
]
CODE += ["timm:os.system", "timm:hf-hub:a/b", "local_dir:/etc", "LOCAL-DIR:/etc", "resnet18; x", "", " "]
CODE += [
    "local-dir:",
    "mlp\n",
    "__import__('os').system('x')",
    "a" * 201,
    "hf-hub:a--b/c",
    "hf-hub:-a/b",
]


@pytest.mark.parametrize("source", CODE)
@pytest.mark.parametrize("case", [EACH[0], STATES[0]])
def test_backbones_that_nobody_may_name(monkeypatch, forge, case, source):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("a command was run"))
    loaded = set(sys.modules)
    found = forge(case, put(["config", "backbone", "source"], source))
    assert isinstance(found, StateFormatError)
    assert not {name for name in set(sys.modules) - loaded if "evil" in name}
    # what a refit would take is checked for its form only: the name is looked up when it is used
    found = forge(case, put(["config", "params", "backbone"], source))
    form = source.replace(".", "").removeprefix("timm:").isidentifier() and len(source) < 200
    assert isinstance(found, np.ndarray if form else StateFormatError)


@pytest.mark.parametrize("source", ["local-dir:/etc", "local-dir:.", "local-dir:\0", "local-dir:/dev"])
def test_a_folder_as_backbone_is_not_read(forge, source):
    found = forge(EACH[0], put(["config", "backbone", "source"], source))
    assert isinstance(found, StateFormatError)
    assert "whoever wrote the file" in str(found)
    # the state of one's own may name one, and what it holds is checked
    found = forge(STATES[0], put(["config", "backbone", "source"], source))
    assert isinstance(found, (*NAMED, WeightsUnavailableError))


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"architecture": ["x"]}', '{"architecture": "os.system"}']
)
def test_a_folder_that_holds_no_network(forge, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    found = forge(STATES[0], put(["config", "backbone", "source"], f"local-dir:{tmp_path}"))
    assert isinstance(found, (*NAMED, WeightsUnavailableError))


def test_a_folder_of_ones_own(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("test_resnet")
    save_for_hf(net, tmp_path / "net", safe_serialization=True)
    source = f"local-dir:{tmp_path / 'net'}"
    pictures = (np.random.default_rng(0).random((6, 8, 8)) * 255).astype(np.uint8)
    clf = FastNTKClassifier(source, image_size=16, n_components=4, batch_size=2, random_state=0)
    clf.fit(pictures, y[:6]).save(tmp_path / "state")
    clf.save_pretrained(tmp_path / "adapter")
    expected = clf.decision_function(pictures)
    with pytest.raises(StateMismatchError, match="not stored"):
        FastNTKClassifier.from_pretrained(tmp_path / "adapter")
    for again in (
        FastNTKClassifier.load(tmp_path / "state"),
        FastNTKClassifier.from_pretrained(tmp_path / "adapter", backbone=source),
    ):
        np.testing.assert_array_equal(again.decision_function(pictures), expected)


@pytest.mark.parametrize("key", ["trust_remote_code", "auto_map", "custom_code"])
@pytest.mark.parametrize("value", [True, False, None, {"AutoModel": "evil.Model"}])
def test_code_is_refused_at_any_depth(forge, key, value):
    asks = {key: value}
    nested = asks
    for _ in range(40):
        nested = {"x": [nested]}
    for path in (["x"], ["params", "finetune_params"], ["backbone", "x"], ["setup", "x"], ["exactness"]):
        for found in (asks, [asks], nested, [[nested]]):
            error = forge(EACH[0], put(["config", *path], found))
            assert isinstance(error, StateFormatError)
            assert "code to be run" in str(error)

    def in_the_manifest(parts):
        parts.manifest = {"x": [asks]}

    assert "code to be run" in str(forge(STATES[0], in_the_manifest))
