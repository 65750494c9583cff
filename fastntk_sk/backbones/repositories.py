"""Repositories of the Hub and folders: checked before their network is built and weights are downloaded.

The file of an adapter may name any repository, so that its configuration is as little to be trusted.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..exceptions import BackboneNotFoundError
from ..sums.memory import require

_CONFIG_BYTES = 2**24  # 21,843 classes with a description each take 2 MiB
_LARGEST = 2**14  # number among the arguments of a network
_ARGUMENTS = 1000
_MODULES = 20_000  # timm's tf_efficientnet_l2 has 1,757
_CLASSES = 2**16  # of a classifier in the weights
_NUMBER = 4  # bytes, in float32
_BYTES = 8 * _NUMBER  # weights of CLIP hold a text tower too
_REFUSED = {"device", "dtype", "features_only", "feature_cfg"}  # what only the caller decides
_WEIGHTS = "pytorch_model.bin"
_ALTERNATIVES = (r"(.*)\.bin$", r"pytorch_(model)\.bin$")  # which timm takes where they exist


def is_repository(source: str) -> bool:
    """Return whether a source is a repository of the Hub."""
    return source.startswith(("hf-hub:", "hf_hub:"))


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at a commit, "hf-hub:ORG/NAME@COMMIT", or a folder, "local-dir:PATH".

    `config` is what its config.json holds.
    """

    source: str
    config: dict[str, Any]

    def file(self, name: str) -> Path | None:
        """Return a file, which is downloaded if need be; None if there is none of this name."""
        from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

        kind, _, place = self.source.partition(":")
        if kind == "local-dir":
            file = Path(place, name)
            return file if file.is_file() else None
        repository, _, commit = place.partition("@")
        cached = try_to_load_from_cache(repository, name, revision=commit)
        if cached is not None:  # a path, or that it is known to be missing
            return Path(cached) if isinstance(cached, str) else None
        try:
            return Path(hf_hub_download(repository, name, revision=commit))
        except errors.RemoteEntryNotFoundError:
            return None

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the object that a file of JSON holds; None if there is no such file."""
        n_bytes = self.n_bytes(name)
        if n_bytes is not None and n_bytes > _CONFIG_BYTES:
            raise self.refused(f"its {name} has {n_bytes:,} bytes")
        file = self.file(name)
        return None if file is None else _parsed(self.source, file)

    def n_bytes(self, name: str) -> int | None:
        """Return the size of a file of the Hub; None without a connection, or where it is missing."""
        kind, _, place = self.source.partition(":")
        if kind == "local-dir":
            return None
        repository, _, commit = place.partition("@")
        return _remote_bytes(repository, name, commit)

    def refused(self, what: str) -> BackboneNotFoundError:
        """Return the error of a repository that is not built or read, because of `what`."""
        return _refused(self.source, what)


def opened(source: str) -> Repository:
    """Return a repository at the commit that its name stands for now, or a folder.

    Raise BackboneNotFoundError if its config.json is no JSON object or too large, FileNotFoundError if
    there is none, and what huggingface_hub raises.
    """
    if not is_repository(source):
        file = Path(source.partition(":")[2], "config.json")
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {str(file)!r}.")
        return Repository(source, _parsed(source, file))
    from huggingface_hub import hf_hub_download

    name, _, revision = source[len("hf-hub:") :].partition("@")
    n_bytes = _remote_bytes(name, "config.json", revision or None)
    if n_bytes is not None and n_bytes > _CONFIG_BYTES:
        raise _refused(source, f"its config.json has {n_bytes:,} bytes")
    file = Path(hf_hub_download(name, "config.json", revision=revision or None))
    return Repository(f"hf-hub:{name}@{file.parent.name}", _parsed(source, file))


def check_timm(repository: Repository) -> dict[str, Any]:
    """Return what a repository says of the pretrained weights of its network of timm.

    Raise BackboneNotFoundError if it asks for a network that no user would build.
    """
    config = repository.config
    try:
        arguments = config.get("model_args") or {}
        weights = {"num_classes": config.get("num_classes")} | config.get("pretrained_cfg", config)
        asked = sorted(_REFUSED & set(arguments))
    except (AttributeError, TypeError) as error:
        raise repository.refused("its config.json is no configuration of timm") from error
    if asked:
        raise repository.refused(f"its config.json sets {asked}")
    check_arguments(repository, arguments)
    return weights


def check_arguments(repository: Repository, arguments: Any) -> None:
    """Raise BackboneNotFoundError if the arguments of a network are too many, or one is too large."""
    try:
        numbers = list(_leaves(arguments))
    except (RecursionError, TypeError) as error:
        raise repository.refused("its config.json describes no network") from error
    if len(numbers) > _ARGUMENTS or any(not abs(number) <= _LARGEST for number in numbers):
        raise repository.refused(
            f"its config.json has more than {_ARGUMENTS:,} arguments, or one above {_LARGEST:,}"
        )


@contextmanager
def few_modules(repository: Repository) -> Iterator[None]:
    """Raise BackboneNotFoundError as soon as this thread builds more modules than any network has."""
    here, n_modules = threading.get_ident(), 0

    def count(*_: Any) -> None:
        nonlocal n_modules
        n_modules += threading.get_ident() == here
        if n_modules > _MODULES:
            raise repository.refused(f"its config.json asks for more than {_MODULES:,} modules")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def check_memory(repository: Repository, net: nn.Module) -> None:
    """Raise InsufficientMemoryError if a network of the meta device would not fit in memory."""
    n_bytes = _NUMBER * _numbers(net)
    require(n_bytes, f"The network of {repository.source!r:.200} takes", "Pass another backbone=...")


def timm_files(weights: dict[str, Any]) -> set[str]:
    """Return the names of the files in which timm looks for pretrained weights."""
    given = str(weights.get("hf_hub_filename") or _WEIGHTS)
    return {given, *(re.sub(pattern, r"\1.safetensors", given) for pattern in _ALTERNATIVES)}


def check_download(repository: Repository, files: Iterable[str], net: nn.Module, n_classes: Any) -> None:
    """Raise BackboneNotFoundError if weights are much larger than their network and its classifier."""
    n_classes = min(n_classes, _CLASSES) if isinstance(n_classes, int) else 1000
    most = _BYTES * (_numbers(net) + n_classes * int(getattr(net, "num_features", 0)))
    sizes = {file: repository.n_bytes(file) or 0 for file in files}
    if sum(sizes.values()) > most:
        raise BackboneNotFoundError(
            f"Expected {', '.join(sorted(sizes))!r:.100} of {repository.source!r} to have at most "
            f"{most:,} bytes, as its network asks for, got {sum(sizes.values()):,}. It was not "
            "downloaded. Pass another backbone=..."
        )


def _numbers(net: nn.Module) -> int:
    return sum(tensor.numel() for tensor in net.state_dict().values())


def _remote_bytes(name: str, file: str, revision: str | None) -> int | None:
    """Return the size of a file on the Hub; None without a connection, or where it is missing."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # httpx's, or httpx2's, by version
    try:
        return get_hf_file_metadata(hf_hub_url(name, file, revision=revision)).size
    except (http_error, OSError):  # then nothing is downloaded either
        return None


def _parsed(source: str, file: Path) -> dict[str, Any]:
    """Return the object that a file of JSON holds."""
    try:
        found = json.loads(file.read_bytes()[: _CONFIG_BYTES + 1])
    except (RecursionError, ValueError) as error:
        raise _refused(source, f"its {file.name} is no JSON") from error
    if not isinstance(found, dict):
        raise _refused(source, f"its {file.name} is no JSON object")
    return found


def _leaves(value: Any) -> Iterator[float]:
    """Yield a number for each leaf of JSON: a number itself, and the length of a text."""
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value if isinstance(value, (int, float)) else len(value or "")


def _refused(source: str, what: str) -> BackboneNotFoundError:
    return BackboneNotFoundError(
        f"Expected {source!r:.200} to describe a network of timm or of transformers, but {what}. It was "
        "not built. Pass another backbone=..."
    )
