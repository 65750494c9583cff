"""Ranks that share rows: rank 0 holds the private half and leads, others read and sum their shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from .. import exceptions
from ..backbones.inputs import Rows
from ..distributed import Ranks
from ..exceptions import DistributedError, FastNTKError, SampleError
from ..progress import progress
from ..publishing.adapter import Adapter
from ..settings import Settings
from ..state import State, Sums, sum_rows
from ..tangents.model import LinearizedModel
from .ledger import KEY_BYTES, Ledger, Segment


class Asked(NamedTuple):
    """Rows of a request that are to be read and summed: their places in it, and how they are learned.

    All are of shape (n,), int64 and for weights float64. `segments` are those of the ledger whose keys
    digest the rows.
    """

    places: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    segments: np.ndarray

    @classmethod
    def blank(cls, n: int) -> Asked:
        """Return n rows, to be filled in."""
        return cls(*(np.zeros(n, dtype) for dtype in (np.int64, np.int64, np.float64, np.int64)))


def sum_shares(
    shared: Ranks,
    model: LinearizedModel,
    ledger: Ledger,
    rows: Rows,
    asked: Asked,
    n_threads: int,
    what: str = "",
    *,
    hold: bool = False,
    show: bool = False,
) -> tuple[Sums, list[bytes]]:
    """Take the sums over rows, and the digests of what was read; every rank reads its share.

    Rank 0 asks the others, which come here from `follow`. `hold` is that of `sum_rows`.
    """
    if not shared.rank:
        shared.agree(
            {
                "do": "sum",
                "n": len(asked.places),
                "keys": [segment.key.hex() for segment in ledger.segments],
                "n_threads": n_threads,
                "settings": msgspec.to_builtins(model.settings),
            }
        )
        shared.take_first(map(torch.tensor, asked))
    part, digests = shared.share(len(asked.places)), list[bytes]()
    places = asked.places[part].tolist()
    reading = progress(rows.read(places), what, len(places), unit="row", show=show)
    noted = ledger.noted(reading, digests, asked.segments[part])
    numbers = rows.numbers[asked.places]
    sums = sum_rows(model, noted, asked.labels, asked.weights, numbers, n_threads, shared, hold=hold)
    everyone = b"".join(shared.gather(b"".join(digests)))
    return sums, [everyone[i : i + KEY_BYTES] for i in range(0, len(everyone), KEY_BYTES)]


def probes(shared: Ranks, state: State, here: Tensor | None = None) -> list[Tensor]:
    """Return what the backbone gives for the synthetic rows in every rank: `here`, if it is known."""
    shared.agree({"do": "probe", "n_threads": state.environment["threads"]})
    found = shared.gather((state.probe() if here is None else here).numpy().tobytes())
    return [torch.frombuffer(bytearray(one), dtype=torch.float64) for one in found]


@contextmanager
def leading(shared: Ranks) -> Iterator[None]:
    """Lead the other ranks, which wait for what rank 0 asks; tell them of an error."""
    shared.leads = True
    try:
        yield
    except Exception as error:
        if shared.leads and not shared.lost:
            indices = error.indices if isinstance(error, SampleError) else []
            name = type(error).__name__
            shared.agree({"do": "raise", "error": name, "message": str(error), "indices": indices})
        raise
    finally:
        shared.leads = False


def hand_out(shared: Ranks, adapter: Adapter) -> None:
    """Give the public half to the other ranks, before rank 0 takes it."""
    solved = [adapter.parameters.W, adapter.parameters.delta]
    shared.agree(
        {
            "do": "take",
            "settings": msgspec.to_builtins(adapter.settings),
            "shapes": [tensor.shape for tensor in solved],
            "empty": adapter.empty.tolist(),
            "n_learned": adapter.n_learned,
            "n_forgotten": adapter.n_forgotten,
            "exactness": adapter.exactness,
            "heads": adapter.heads,
        }
    )
    shared.take_first(solved)
    shared.any(False)  # all have it, or nobody takes it
    shared.leads = False


def follow(shared: Ranks, model: LinearizedModel, rows: Rows | None, classes: np.ndarray) -> Adapter:
    """Read and sum shares of rows as rank 0 asks, and return the public half that it hands out."""
    failure: Exception | None = None
    while True:
        told = shared.agree(None)
        if told["do"] == "raise":
            raise failure or _as_error(told)
        if told["do"] == "probe":
            shared.gather(model.probe(told["n_threads"]).numpy().tobytes())
            continue
        model = replace(model, settings=msgspec.convert(told["settings"], Settings))
        if told["do"] == "take":
            return _taken(shared, model, told, classes)
        try:
            asked = Asked.blank(told["n"])
            shared.take_first(map(torch.from_numpy, asked))
            keys = Ledger([Segment(bytes.fromhex(key)) for key in told["keys"]])
            assert rows is not None
            sum_shares(shared, model, keys, rows, asked, told["n_threads"])
        except DistributedError:
            if shared.lost:
                raise
        except Exception as error:
            failure = error  # rank 0 knows that there is one, and ends the call


def _taken(shared: Ranks, model: LinearizedModel, told: dict[str, Any], classes: np.ndarray) -> Adapter:
    W, delta = (torch.empty(shape, dtype=model.directions.dtype) for shape in told["shapes"])
    shared.take_first([W, delta])
    shared.any(False)
    parameters = model.parameters(W, delta)
    return Adapter(
        model,
        parameters,
        model.displacement(parameters),
        np.array(told["empty"]),
        told["n_learned"],
        classes,
        told["n_forgotten"],
        told["exactness"],
        told["heads"],
    )


def _as_error(told: dict[str, Any]) -> Exception:
    """Return the error that rank 0 has raised."""
    known = {"ValueError": ValueError} | vars(exceptions)
    kind, message = known.get(told["error"]), told["message"]
    if kind is ValueError or (isinstance(kind, type) and issubclass(kind, FastNTKError)):
        return kind(message, told["indices"]) if issubclass(kind, SampleError) else kind(message)
    return DistributedError(f"Rank 0 failed: {told['error']}: {message}")
