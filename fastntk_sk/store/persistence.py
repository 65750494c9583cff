"""One file for a whole estimator: the adapter, and the private half beside it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..exceptions import DecryptionError, NoPrivateStateError, StaleStateError, StateFormatError
from ..publishing.config import describe
from ..publishing.files import check_tensors
from ..publishing.folder import ADAPTER, adapter_file
from ..publishing.rebuilding import build_model, check_sizes, read_adapter, settings_at_fit, unfitted
from ..wording import counted
from .database import Database, connect, rekey
from .packing import Contents, pack, restore, unpack
from .receipts import chain_heads, parse_receipts

__all__ = ["Mark", "check_complete", "check_place", "load", "opened", "rekey", "save"]


class Save(NamedTuple):
    """The last save of a file: its number, its random name, and the seal of its rows."""

    generation: int
    stamp: bytes
    seal: bytes


class Mark(NamedTuple):
    """Which saves an estimator goes on from: it was loaded from them, or wrote them."""

    plain: frozenset[bytes] = frozenset()
    encrypted: frozenset[bytes] = frozenset()

    @property
    def stamps(self) -> frozenset[bytes]:
        """All of them."""
        return self.plain | self.encrypted

    def after(self, save: Save, key: bytes | str | None) -> Mark:
        """Return the mark with one more save."""
        if key is None:
            return self._replace(plain=self.plain | {save.stamp})
        return self._replace(encrypted=self.encrypted | {save.stamp})


def save(
    classifier: Any, path: str | os.PathLike[str], key: bytes | str | None, *, overwrite: bool = False
) -> None:
    """Write the whole estimator; see :meth:`FastNTKClassifier.save`."""
    classifier._held  # noqa: B018 - raises where there is none
    if not Path(path).exists():
        _check_encrypted(classifier._mark, None, key)
        describe(classifier._adapter, classifier, public=False)  # raises what it would raise below
    with connect(Path(path), key, write=True, make=True) as db:
        db.check()  # what is written into damaged pages may be lost
        there, mark = _last_save(db), classifier._mark
        _check_encrypted(mark, there, key)
        if not (there is None or overwrite or (mark is not None and there.stamp in mark.stamps)):
            raise StaleStateError(_stale(db, classifier._held.receipts, Path(path).name))
        _write(db, classifier, key)


def check_place(path: Path, key: bytes | str | None) -> None:
    """Raise what `save` would raise for a place or a key, before the hours that a fit may take."""
    existed = path.exists()
    tried = path if existed else path.with_name(f".fastntk-{secrets.token_hex(8)}.partial")
    with connect(tried, key, write=True, make=True):
        pass
    if not existed:
        tried.unlink()


def load(
    cls: type,
    path: str | os.PathLike[str],
    *,
    backbone: Any,
    device: str | None,
    key: bytes | str | None,
) -> Any:
    """Read what `save` wrote; see :meth:`FastNTKClassifier.load`."""
    if (Path(path) / ADAPTER).exists():
        raise NoPrivateStateError(
            f"{str(path)!r} holds a public adapter, without the private state. Read it with "
            "FastNTKClassifier.from_pretrained."
        )
    with connect(Path(path), key) as db:
        last, contents = _read(db, Path(path).name)
    # outside: a backbone may have to be downloaded, and nobody could commit meanwhile
    return _build(cls, last, contents, Path(path).name, backbone, device, key)


@contextmanager
def opened(
    cls: type,
    path: str | os.PathLike[str],
    *,
    key: bytes | str | None,
    backbone: Any = None,
    device: str | None = None,
    timeout: float = 60.0,
) -> Iterator[tuple[Any, Database]]:
    """Load an estimator, keep others from writing, and save it; see :meth:`FastNTKClassifier.open`.

    With the estimator comes the transaction in which it is saved.
    """
    with connect(Path(path), key, write=True, timeout=timeout) as db:
        last, contents = _read(db, Path(path).name)
        classifier = _build(cls, last, contents, Path(path).name, backbone, device, key)
        before = classifier._held
        yield classifier, db
        if classifier._held is not before:
            _write(db, classifier, key)


def _check_encrypted(mark: Mark | None, there: Save | None, key: bytes | str | None) -> None:
    """Raise DecryptionError where a state that was encrypted would become plain."""
    is_own = there is not None and mark is not None and there.stamp in mark.plain
    if key is None and mark is not None and mark.encrypted and not is_own:
        raise DecryptionError(
            "Expected the key of an estimator that was encrypted, got None: its state would be readable "
            "by everybody. Pass key=..., the old one or a new one for another file."
        )


def _write(db: Database, classifier: Any, key: bytes | str | None) -> None:
    """Write both halves, and let the estimator go on from this save."""
    adapter, private = classifier._halves()
    there = _last_save(db)
    pack(db, private, adapter_file(adapter, describe(adapter, classifier, public=False)))
    generation = 1 if there is None else there.generation + 1
    last = Save(generation, secrets.token_bytes(16), db.seal())
    db.replace("saves", [last])
    # before the commit: a thread that saves the same estimator next is not stale
    classifier._mark = (classifier._mark or Mark()).after(last, key)


def check_complete(missing: dict[str, Mapping[str, Any]]) -> None:
    """Raise StaleStateError where there are deletions that others know and a state lacks."""
    if missing:
        told = "; ".join(_in_words(receipt) for receipt in [*missing.values()][:10])
        raise StaleStateError(
            f"Expected a state that knows all deletions, got one that lacks {len(missing)} ({told}): it "
            "is an old one, and remembers those rows. Load it without `against`, and forget the same "
            "rows or ids, which your list of requests holds, with unlearn(..., redoes=...), or rectify "
            "them, with redoes too."
        )


def _in_words(receipt: Mapping[str, Any]) -> str:
    if "time" not in receipt:
        return "the last of its chain"
    names = ", ".join(receipt["request_ids"])
    rows = f"{counted(receipt['n_rows'], 'row')}{' rectified' if receipt['n_rectified'] else ''}"
    return f"{rows} at {receipt['time']}{f' for {names}' if names else ''}"


def _last_save(db: Database) -> Save | None:
    """Return which save a file holds, if it holds one."""
    saves = [Save._make(values) for _, values in db.rows("saves")]
    return saves[-1] if saves else None


def _stale(db: Database, receipts: list[dict[str, Any]], name: str) -> str:
    """Say what a save over a file that has moved on would undo."""
    known = {receipt["checksum"] for receipt in receipts}
    there = parse_receipts((content for _, (content,) in db.rows("receipts")), name)
    gone = [receipt for receipt in there if receipt["checksum"] not in known]
    undone = "; ".join(map(_in_words, gone[:10]))
    what = (
        f"deletions that this estimator does not know would be undone ({undone}"
        f"{'; ...' if len(gone) > 10 else ''})"
        if gone
        else "what was learned there meanwhile would be lost"
    )
    return (
        f"{name} was saved by another estimator since this one was loaded, or never was its own: "
        f"{what}. Nothing was written. Load the file again and repeat the change, as "
        "FastNTKClassifier.open does, save to another file, or pass overwrite=True."
    )


def _read(db: Database, name: str) -> tuple[Save, Contents]:
    db.check()
    last = _last_save(db)
    if last is None:
        raise StateFormatError(f"{name} holds no saved state. Restore a backup.")
    contents = unpack(db, name)
    if last.seal != db.seal():
        raise StateFormatError(f"{name} holds rows of different saves. Restore a backup.")
    return last, contents


def _build(
    cls: type,
    last: Save,
    contents: Contents,
    name: str,
    backbone: Any,
    device: str | None,
    key: bytes | str | None,
) -> Any:
    config, tensors = read_adapter(contents.adapter, name)
    if config.receipts != chain_heads(contents.receipts, contents.records.chain):
        raise StateFormatError(f"{name} holds other receipts than its adapter names. Restore a backup.")
    settings, anchor = settings_at_fit(config, device), contents.anchor
    if (anchor is None) == settings.anchor_has_seen:
        raise StateFormatError("The statistics are of another anchor. Restore a backup.")
    W, built = tensors["readout"], tensors
    if anchor is None:
        V, moved = tensors["probe_directions"], None
    else:
        V, moved = anchor.directions, anchor.moved
        _check(V, W.dtype, (len(W), W.shape[1] - 1), "anchor.directions")
        built = {n: t for n, t in tensors.items() if not n.startswith("network.")}
        built |= {f"network.{name}": tensor for name, tensor in anchor.network.items()}
    model = build_model(config, settings, backbone, built, V, moved, learns=True)
    check_sizes(model, tensors)
    if anchor is not None:
        _check(anchor.moved, W.dtype, (model.projection.k,), "anchor.moved")
        _check(anchor.delta, W.dtype, (model.projection.p,), "anchor.delta")
        _check(anchor.readout, W.dtype, tuple(W.shape), "anchor.readout")
    private = restore(model, W, tensors["displacement"], contents)
    classifier = unfitted(cls, config, backbone)
    classifier._commit(private.adapter(config.classes.labels()), private)
    classifier._mark = Mark().after(last, key)
    return classifier


def _check(tensor: Any, dtype: Any, shape: tuple[int, ...], name: str) -> None:
    check_tensors({name: tensor}, {name: (dtype, shape)}, "The statistics")
