"""A scikit-learn classifier on pretrained vision models that can forget.

Fast-NTK (arXiv:2312.14923): the backbone stays frozen, a parameter-efficient subset is linearised,
and deletion is the closed-form solution without the forgotten rows.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones.folders import Pictures, read_pictures
    from .backbones.recipes import Recipe, list_recipes, load_recipe, register_recipe
    from .classifier import FastNTKClassifier
    from .distributed import share_rows
    from .metaestimators import unlearn
    from .requests import Request, Requests
    from .search import FastNTKClassifierCV
    from .store.receipts import verify_receipts

__version__ = "0.2.0"

__all__ = [
    "FastNTKClassifier",
    "FastNTKClassifierCV",
    "Pictures",
    "Recipe",
    "Request",
    "Requests",
    "list_recipes",
    "load_recipe",
    "read_pictures",
    "register_recipe",
    "share_rows",
    "unlearn",
    "verify_receipts",
]

# scikit-learn and torch are imported when a name is asked for
_MODULES = {
    "FastNTKClassifier": "classifier",
    "FastNTKClassifierCV": "search",
    "Pictures": "backbones.folders",
    "Recipe": "backbones.recipes",
    "Request": "requests",
    "Requests": "requests",
    "list_recipes": "backbones.recipes",
    "load_recipe": "backbones.recipes",
    "read_pictures": "backbones.folders",
    "register_recipe": "backbones.recipes",
    "share_rows": "distributed",
    "unlearn": "metaestimators",
    "verify_receipts": "store.receipts",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
