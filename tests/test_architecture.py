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
    "recipes": {"exceptions"},
    "packaged_weights": set(),
    "preprocessing": set(),
    "projection": {"randomness"},
    "statistics": set(),
    "solvers": {"exceptions", "statistics"},
    "memory": {"exceptions", "statistics"},
    "ledger": {"exceptions"},
    "receipts": set(),
    "html": set(),
    "subsets": {"exceptions"},
    "taps": {"exceptions", "subsets"},
    "jacobians": {"exceptions", "subsets", "taps"},
    "backbones": {"exceptions", "packaged_weights", "preprocessing", "randomness", "recipes"},
    "linearized": {
        "backbones", "exceptions", "jacobians", "memory", "projection", "randomness", "statistics",
        "subsets",
    },
    "finetuning": {"exceptions", "preprocessing", "projection", "randomness", "subsets"},
    "state": {
        "exceptions", "ledger", "linearized", "preprocessing", "receipts", "solvers", "statistics",
    },
    "persistence": {"backbones", "exceptions", "ledger", "linearized", "state", "statistics"},
    "validation": {"preprocessing"},
    "deletion": {"exceptions", "ledger", "preprocessing", "state", "validation"},
    "exporting": {"persistence", "state"},
    "fitting": {"backbones", "finetuning", "linearized", "preprocessing", "state", "validation"},
    "classifier": {
        "deletion", "exporting", "fitting", "html", "preprocessing", "state", "validation",
    },
    "__init__": {"classifier", "deletion", "recipes"},
}  # fmt: skip
LAYERS = {
    "baselines": set(ALLOWED) - {"persistence", "exporting", "classifier"},
    "evaluation": set(ALLOWED) - {"persistence", "exporting"} | {"baselines"},
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
    if module.stem not in ("classifier", "deletion", "exporting", "fitting", "validation"):
        assert "sklearn" not in outside
    assert "pickle" not in outside


@pytest.mark.parametrize("module", MODULES, ids=lambda m: f"{m.parent.name}/{m.stem}")
def test_no_file_is_long(module):
    assert len(module.read_text().splitlines()) <= 500
