"""Repositories of the Hub: checked before their network is built and its weights are downloaded.

The file of an adapter may name any repository, so that its configuration is as little to be trusted.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..exceptions import BackboneNotFoundError

_CONFIG_BYTES = 2**24  # 21,843 classes with a description each take 2 MiB
_LARGEST = 2**14  # number among the arguments of a network
_ARGUMENTS = 1000
_MODULES = 20_000  # timm's tf_efficientnet_l2 has 1,757
_CLASSES = 2**16  # of a classifier in the weights
_BYTES = 32  # a number: float32, eight times: weights of CLIP hold a text tower too
_REFUSED = {"device", "dtype", "features_only", "feature_cfg"}  # what only the caller decides
_WEIGHTS = "pytorch_model.bin"
_ALTERNATIVES = (r"(.*)\.bin$", r"pytorch_(model)\.bin$")  # which timm takes where they exist


def is_repository(source: str) -> bool:
    """Return whether a source is a repository of the Hub."""
    return source.startswith(("hf-hub:", "hf_hub:"))


def checked(source: str) -> tuple[str, dict[str, Any]]:
    """Return "hf-hub:ORG/NAME@COMMIT" and what it says of its pretrained weights.

    Raise BackboneNotFoundError if its configuration is no JSON object, too large, or asks for a network
    that no user would build.
    """
    from huggingface_hub import hf_hub_download

    name, _, revision = source[len("hf-hub:") :].partition("@")
    n_bytes = _remote_bytes(name, "config.json", revision or None)
    if n_bytes is not None and n_bytes > _CONFIG_BYTES:
        raise _refused(source, f"has {n_bytes:,} bytes")
    file = Path(hf_hub_download(name, "config.json", revision=revision or None))
    try:
        config = json.loads(file.read_bytes()[: _CONFIG_BYTES + 1])
        arguments = config.get("model_args") or {}
        weights = {"num_classes": config.get("num_classes")} | config.get("pretrained_cfg", config)
        asked = sorted(_REFUSED & set(arguments))
        numbers = list(_leaves(arguments))
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise _refused(source, "is no configuration of timm") from error
    if asked:
        raise _refused(source, f"sets {asked}")
    if len(numbers) > _ARGUMENTS or any(abs(number) > _LARGEST for number in numbers):
        raise _refused(source, f"has more than {_ARGUMENTS:,} arguments, or one above {_LARGEST:,}")
    return f"hf-hub:{name}@{file.parent.name}", weights


@contextmanager
def few_modules(source: str) -> Iterator[None]:
    """Raise BackboneNotFoundError as soon as this thread builds more modules than any network has."""
    here, n_modules = threading.get_ident(), 0

    def count(*_: Any) -> None:
        nonlocal n_modules
        n_modules += threading.get_ident() == here
        if n_modules > _MODULES:
            raise _refused(source, f"asks for more than {_MODULES:,} modules")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def check_download(source: str, weights: dict[str, Any], net: nn.Module) -> None:
    """Raise BackboneNotFoundError if weights are much larger than their network and its classifier."""
    name, _, commit = source[len("hf-hub:") :].partition("@")
    numbers = sum(tensor.numel() for tensor in net.state_dict().values())
    n_classes = weights.get("num_classes")
    n_classes = min(n_classes, _CLASSES) if isinstance(n_classes, int) else 1000
    most = _BYTES * (numbers + n_classes * int(getattr(net, "num_features", 0)))
    given = str(weights.get("hf_hub_filename") or _WEIGHTS)
    others = (re.sub(pattern, r"\1.safetensors", given) for pattern in _ALTERNATIVES)
    for file in {given, *others}:
        n_bytes = _remote_bytes(name, file, commit)
        if n_bytes is not None and n_bytes > most:
            raise BackboneNotFoundError(
                f"Expected {file!r:.100} of {source!r} to have at most {most:,} bytes, as its network "
                f"asks for, got {n_bytes:,}. It was not downloaded. Pass another backbone=..."
            )


def _remote_bytes(name: str, file: str, revision: str | None) -> int | None:
    """Return the size of a file on the Hub; None without a connection, or where it is missing."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # httpx's, or httpx2's, by version
    try:
        return get_hf_file_metadata(hf_hub_url(name, file, revision=revision)).size
    except (http_error, OSError):  # then nothing is downloaded either
        return None


def _leaves(value: Any) -> Iterator[float]:
    """Yield a number for each leaf of JSON: a number itself, and the length of a text."""
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value if isinstance(value, (int, float)) else len(value or "")


def _refused(source: str, what: str) -> BackboneNotFoundError:
    return BackboneNotFoundError(
        f"Expected {source!r:.200} to describe a network of timm, but its config.json {what}. It was "
        "not built. Pass another backbone=..."
    )
