"""Dependencies point downward, and no file grows past 500 lines."""

import ast
from pathlib import Path

import pytest

import fastntk_sk

ROOT = Path(fastntk_sk.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.parent.name != "zoo")

# what a module may import from the library; everything above it stays unknown to it
ALLOWED = {
    "exceptions": set(),
    "randomness": set(),
    "heap": set(),
    "progress": set(),
    "recipes": {"exceptions"},
    "packaged_weights": set(),
    "preprocessing": set(),
    "projection": {"randomness"},
    "statistics": set(),
    "solvers": {"exceptions", "statistics"},
    "ridge": {"exceptions", "solvers", "statistics"},
    "memory": {"exceptions", "statistics"},
    "ledger": {"exceptions"},
    "files": {"exceptions", "memory"},
    "schema": {"exceptions"},
    "receipts": {"exceptions", "files", "schema"},
    "html": set(),
    "blocks": set(),
    "rungs": {"blocks", "exceptions"},
    "subsets": {"blocks", "exceptions", "rungs"},
    "taps": {"exceptions", "subsets"},
    "jacobians": {"exceptions", "subsets", "taps"},
    "ladder": {"exceptions", "jacobians", "randomness", "rungs"},
    "backbones": {
        "exceptions", "files", "packaged_weights", "preprocessing", "randomness", "recipes",
        "torchvision_models",
    },
    "torchvision_models": {"exceptions", "preprocessing"},
    "saved": {"backbones", "exceptions", "subsets"},
    "linearized": {
        "backbones", "exceptions", "heap", "jacobians", "ladder", "memory", "projection", "saved",
        "statistics",
    },
    "linearizing": {
        "backbones", "exceptions", "heap", "jacobians", "ladder", "linearized", "memory", "projection",
        "randomness", "saved", "subsets",
    },
    "adapter": {"backbones", "files", "jacobians", "linearized", "rungs"},
    "finetuning": {"exceptions", "heap", "preprocessing", "projection", "randomness", "subsets"},
    "distributed": {"exceptions"},
    "checkpoints": {"exceptions", "files", "schema", "statistics"},
    "state": {
        "adapter", "checkpoints", "distributed", "exceptions", "files", "ledger", "linearized",
        "preprocessing", "receipts", "ridge", "statistics",
    },
    "config": {
        "adapter", "exceptions", "files", "linearized", "preprocessing", "recipes", "schema",
    },
    "private_state": {
        "adapter", "exceptions", "files", "ledger", "linearized", "receipts", "ridge", "schema", "state",
        "statistics",
    },
    "rebuilding": {
        "adapter", "backbones", "config", "exceptions", "files", "ladder", "linearized", "linearizing",
        "memory", "private_state", "saved", "subsets",
    },
    "persistence": {
        "adapter", "config", "exceptions", "files", "linearized", "private_state", "rebuilding",
        "schema", "state",
    },
    "card": {"adapter", "config", "linearized", "recipes", "ridge"},
    "hub": {"adapter", "card", "config", "exceptions", "files", "persistence"},
    "validation": {"preprocessing"},
    "deletion": {"adapter", "exceptions", "ledger", "preprocessing", "state", "validation"},
    "onnx_export": {"preprocessing"},
    "exporting": {
        "backbones", "card", "files", "hub", "onnx_export", "persistence", "receipts", "state",
    },
    "prediction": {"preprocessing", "state"},
    "fitting": {
        "adapter", "backbones", "checkpoints", "distributed", "exceptions", "files", "finetuning",
        "ledger", "linearized", "linearizing", "memory", "preprocessing", "ridge", "state", "statistics",
        "subsets", "validation",
    },
    "classifier": {
        "adapter", "deletion", "exporting", "fitting", "html", "prediction", "preprocessing",
        "progress", "ridge", "state", "validation",
    },
    "crossvalidation": {
        "classifier", "fitting", "linearized", "memory", "prediction", "preprocessing", "progress",
        "ridge", "solvers", "statistics", "validation",
    },
    "cli": {
        "classifier", "demo", "evaluation", "exceptions", "files", "memory", "persistence", "recipes",
        "statistics",
    },
    "__main__": {"cli"},
    "__init__": {"classifier", "crossvalidation", "deletion", "receipts", "recipes"},
}  # fmt: skip
LAYERS = {
    "baselines": set(ALLOWED) - {"hub", "persistence", "exporting", "classifier", "crossvalidation"},
    "demo": set(),  # an app of a Space: it uses what is public, by its absolute name
    "evaluation": set(ALLOWED) - {"hub", "persistence", "exporting"} | {"baselines"},
}


def imports(module):
    tree = ast.parse(module.read_text())
    inside, outside = set(), set()
    for node in ast.walk(tree):
        deep = module.parent != ROOT
        if isinstance(node, ast.ImportFrom) and node.level == 1 and deep:
            continue  # within its own package
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            inside.update(name.split(".")[0] for name in names)
        elif isinstance(node, ast.ImportFrom):
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            outside.update(alias.name.split(".")[0] for alias in node.names)
    return inside, outside


@pytest.mark.parametrize("module", MODULES, ids=lambda m: f"{m.parent.name}/{m.stem}")
def test_a_module_imports_only_what_lies_below_it(module):
    inside, outside = imports(module)
    layer = LAYERS.get(module.parent.name)
    assert inside <= (ALLOWED[module.stem] if layer is None else layer)
    if layer is not None:
        assert "pickle" not in outside
        return
    if module.stem in ("recipes", "ledger", "exceptions"):
        assert "torch" not in outside
    if module.stem not in (
        "classifier",
        "crossvalidation",
        "deletion",
        "exporting",
        "fitting",
        "validation",
    ):
        assert "sklearn" not in outside
    assert "pickle" not in outside


@pytest.mark.parametrize("module", MODULES, ids=lambda m: f"{m.parent.name}/{m.stem}")
def test_no_file_is_long(module):
    assert len(module.read_text().splitlines()) <= 500
