"""A scikit-learn classifier on pretrained vision models that can forget.

Fast-NTK (arXiv:2312.14923): the backbone stays frozen, a parameter-efficient subset is linearised,
and deletion is the closed-form solution without the forgotten rows.
"""

from .backbones.recipes import Recipe, list_recipes, load_recipe, register_recipe
from .classifier import FastNTKClassifier
from .distributed import share_rows
from .metaestimators import unlearn
from .search import FastNTKClassifierCV
from .store.receipts import verify_receipts

__version__ = "0.1.0"

__all__ = [
    "FastNTKClassifier",
    "FastNTKClassifierCV",
    "Recipe",
    "list_recipes",
    "load_recipe",
    "register_recipe",
    "share_rows",
    "unlearn",
    "verify_receipts",
]
