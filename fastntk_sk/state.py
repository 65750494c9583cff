"""The fitted state of an estimator and the four things that happen to it."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backbones.inputs import Rows, content
from .distributed import Group
from .exceptions import (
    ForgetsEverythingError,
    NoPrivateStateError,
    NumericalDriftWarning,
    PrivacyWarning,
    StateMismatchError,
)
from .publishing import files
from .publishing.adapter import Adapter
from .settings import Settings
from .store.checkpoints import Checkpoint
from .store.ledger import KEY_BYTES, Ledger, Removal
from .store.receipts import chain_heads, environment, make_receipt, senses
from .sums.ridge import GRID, solve
from .sums.statistics import Statistics
from .tangents.model import LinearizedModel, Parameters, relative_gap

_CHECKED = 1000  # rows of a checkpoint that are read again
_SESSION = secrets.token_hex(8)
Progress = Callable[[Iterable[np.ndarray], str, int], Iterable[np.ndarray]]


class Halves:
    """A fitted estimator as a public and a private half; the second is None for a pulled adapter."""

    _adapter: Adapter
    _private: State | None

    @property
    def _state(self) -> State:
        """Both halves."""
        if self._private is None:
            raise NoPrivateStateError(
                "Expected an estimator with its private state, got a published adapter, which only "
                "predicts: it holds no statistics, no ledger and no receipts. Load what save() wrote "
                "with FastNTKClassifier.load."
            )
        return self._private


@dataclass
class State:
    """What an estimator knows after fit; `learn`, `forget`, `merge` and `rebuild` return another.

    Parameters
    ----------
    model : LinearizedModel
        Fixed before the first row of the statistics was seen (a fine-tuned anchor has seen rows).

    statistics : Statistics

    ledger : Ledger

    class_rows : int64 ndarray of shape (n_classes,)
        Number of learned rows of each class.

    parameters : Parameters
        What predicts.

    environment : dict
        Where Jacobians were last seen to be those that were learned.

    probes : list of Tensor
        Tangent features of a synthetic row, one for each place that rows were learned in.

    n_forgotten : int, default=0

    receipts : list of dict, default=[]

    residual : float, default=0.0
        Of the last solve.

    alpha, alpha_path : float and dict of float to float
        The ridge in force, and what each value was worth where the sums chose it.

    seconds_per_row, seconds_per_solve : float, default=0.0
        Measured; they feed estimates only.

    sgd : Parameters, default=None
        For a fine-tuned anchor: the readout as SGD left it, without a displacement from the anchor.

    history : list of dict, default=[]
        Epochs of fine-tuning, on all rows of the fit.

    linearity : float, default=0.0
        Relative difference between the network and the linearised model on rows of the fit.

    session : str, default=""
        The process of `environment`; empty after a load.

    chain : str
        Names the chain of this site's receipts.
    """

    model: LinearizedModel
    statistics: Statistics
    ledger: Ledger
    class_rows: np.ndarray
    parameters: Parameters
    environment: dict[str, Any]
    probes: list[Tensor]
    n_forgotten: int = 0
    receipts: list[dict[str, Any]] = field(default_factory=list)
    residual: float = 0.0
    alpha: float = 0.0
    alpha_path: dict[float, float] = field(default_factory=dict)
    seconds_per_row: float = 0.0
    seconds_per_solve: float = 0.0
    sgd: Parameters | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    linearity: float = 0.0
    session: str = ""
    chain: str = ""

    @classmethod
    def empty(cls, model: LinearizedModel, ledger: Ledger, chain: str) -> State:
        """Return the state before the first row, with an empty ledger."""
        nothing = torch.zeros(0)
        return cls(
            model,
            model.empty_statistics(),
            ledger,
            np.zeros(model.settings.n_classes, dtype=np.int64),
            Parameters(nothing, nothing),
            environment(model.settings.device, model.settings.precision),
            [model.probe()],
            session=_SESSION,
            chain=chain,
        )

    def learn(
        self,
        rows: Rows,
        labels: np.ndarray,
        weights: np.ndarray,
        sample_ids: Sequence[object] | None,
        progress: Progress,
        checkpoint: Checkpoint | None = None,
    ) -> State:
        """Return the state that has also learned these rows, a share of them in every rank."""
        group, started = Group(), time.perf_counter()
        _, probes = self.drift()
        asked = [
            labels.tobytes(),
            weights.tobytes(),
            repr(sample_ids and [*map(str, sample_ids)]).encode(),
        ]
        # hashes every weight: for those only who compare
        signature = None if group.alone and checkpoint is None else self.signature()
        if not group.alone:
            seen = [content(rows[i]) for i in {0, len(rows) // 2, len(rows) - 1}]
            known = self.adapter.digest() if self.ledger.n_rows else ""
            group.check_same(files.digest(*asked, *seen, repr((known, signature)).encode()).encode())
        part = group.share(len(labels))
        sums, digests = self.model.empty_statistics(), list[bytes]()
        if checkpoint is not None:
            problem = files.digest(*asked, repr((signature, part)).encode(), *map(_bytes, probes))
            sums, digests = checkpoint.resume(problem, sums)
            self._check_same_rows(rows, part, digests)
        n_done = len(digests)
        todo = part[n_done:]

        def noted() -> Iterator[np.ndarray]:
            for row in progress(rows.read(todo), "learning", len(todo)):
                digests.append(self.ledger.digest(content(row)))
                yield row

        self.model.learn(sums, noted(), labels[todo], weights[todo])
        per_row = (time.perf_counter() - started) / max(1, len(todo))
        group.add_up(sums.tensors().values())
        if self.ledger.n_rows:
            sums.merge(self.statistics)
        digests = _cut(b"".join(group.gather(b"".join(digests))), KEY_BYTES)
        changed = replace(self, seconds_per_row=per_row, probes=_everywhere(group, probes))
        changed = changed.grown(sums, digests, labels, weights, sample_ids)
        group.take_first([changed.parameters.W, changed.parameters.delta])
        return changed

    def grown(
        self,
        statistics: Statistics,
        digests: list[bytes],
        labels: np.ndarray,
        weights: np.ndarray,
        sample_ids: Sequence[object] | None,
    ) -> State:
        """Return the state that has also learned rows which are in these statistics already."""
        return self._solved(
            statistics,
            self.class_rows + np.bincount(labels, minlength=len(self.class_rows)),
            ledger=self.ledger.added(digests, labels.tolist(), weights.tolist(), sample_ids),
            environment=self._environment_here(),
            session=_SESSION,
        )

    def forget(
        self,
        rows: Rows,
        removals: list[Removal],
        progress: Progress,
        *,
        sample_ids: Sequence[object] | None = None,
        seen_by: Sequence[str] = (),
        searched_by: Sequence[str] = (),
    ) -> State:
        """Return the state that never learned these rows."""
        self.check_rest(removals)
        group, started = Group(), time.perf_counter()
        drift = group.largest(max(self.drift()[0], self.model.position_gap))
        sums, labels = self._summed(group, rows, removals, progress, "forgetting", -1.0)
        sums.merge(self.statistics)
        class_rows = self.class_rows - np.bincount(labels, minlength=len(self.class_rows))
        changed = self._solved(
            sums,
            class_rows,
            ledger=self.ledger.removed(removals),
            n_forgotten=self.n_forgotten + len(removals),
        )
        group.take_first([changed.parameters.W, changed.parameters.delta])
        here = self._environment_here()
        if not drift:
            changed = replace(changed, environment=here, session=_SESSION)
        receipt = make_receipt(
            chain=self.chain,
            earlier=self.receipts,
            adapter_before=self.adapter.digest(),
            adapter_after=changed.adapter.digest(),
            n_rows=len(removals),
            n_learned=int(class_rows.sum()),
            residual=changed.residual,
            seconds=time.perf_counter() - started,
            drift=drift,
            seen_by=seen_by,
            searched_by=searched_by,
            anchor=self.settings.anchor,
            environment=here,
            n_left=None if sample_ids is None else changed.ledger.owned_rows(set(sample_ids)),
        )
        if not group.alone:
            receipt = files.parse_json(group.first(files.canonical(receipt)), "The receipt of rank 0")
        return replace(changed, receipts=[*self.receipts, receipt])

    @property
    def settings(self) -> Settings:
        """Settings of the fit."""
        return self.model.settings

    @property
    def adapter(self) -> Adapter:
        """The public half."""
        return Adapter(
            self.model,
            self.parameters,
            self.model.displacement(self.parameters),
            self.class_rows == 0,
            int(self.class_rows.sum()),
            self.n_forgotten,
            senses(self.receipts),
            chain_heads(self.receipts),
        )

    def resettled(self, alpha: float | None, tangent_scale: float | None = None) -> State:
        """Return the state with another ridge, which the next solve will take."""
        s = self.settings.tangent_scale if tangent_scale is None else tangent_scale
        changed = replace(self.settings, alpha=alpha, tangent_scale=s)
        return replace(self, model=replace(self.model, settings=changed))

    def resolved(self, *, alpha: float, tangent_scale: float | None = None) -> State:
        """Return the state solved again with another ridge, without another pass."""
        return self.resettled(alpha, tangent_scale)._solved(self.statistics, self.class_rows)

    def check_rest(self, removals: list[Removal]) -> None:
        """Raise ForgetsEverythingError if no row would be left."""
        if len(removals) >= self.ledger.n_rows:
            raise ForgetsEverythingError(
                f"The request covers all {self.ledger.n_rows} learned rows; a model cannot rest on "
                "nothing. Delete the model instead, or keep at least one row."
            )

    def merge(self, others: Sequence[State]) -> State:
        """Return the state that has learned what all have."""
        keys = [segment.key for part in (self, *others) for segment in part.ledger.segments]
        if len(set(keys)) < len(keys):
            raise StateMismatchError(
                "Expected models that learned apart, got copies of one fit, whose rows would count "
                "twice. Let each site fit by itself; partial_fit adds rows to a model."
            )
        statistics, class_rows = self.statistics.copy(), self.class_rows
        mine = self.signature()
        for other in others:
            theirs = other.signature()
            differing = [name for name, value in mine.items() if theirs[name] != value]
            if differing:
                raise StateMismatchError(
                    f"Expected models learned with the same set-up; they differ in {differing}. Fit "
                    "all of them with the same parameters, an integer random_state and the same "
                    "classes (partial_fit(X, y, classes=...))."
                )
            width, _ = self.model.sizes
            if other.class_rows.sum() <= width:
                warnings.warn(
                    f"Statistics of {other.class_rows.sum()} rows in {width} features can be "
                    "inverted into the rows themselves. Do not let them travel.",
                    PrivacyWarning,
                    stacklevel=3,
                )
            statistics.merge(other.statistics)
            class_rows = class_rows + other.class_rows
        parts = (self, *others)
        return self._solved(
            statistics,
            class_rows,
            ledger=Ledger([segment for part in parts for segment in part.ledger.segments]),
            n_forgotten=sum(part.n_forgotten for part in parts),
            receipts=[receipt for part in parts for receipt in part.receipts],
            probes=_distinct(probe for part in parts for probe in part.probes),
        )

    def rebuild(self, rows: Rows, removals: list[Removal], progress: Progress) -> State:
        """Return the state with statistics made anew from the rows that are still learned."""
        if len(removals) != self.ledger.n_rows:
            raise StateMismatchError(
                f"Expected exactly the {self.ledger.n_rows} rows that are learned, got "
                f"{len(removals)} of them. Pass every row once for each time it was learned."
            )
        group = Group()
        sums, _ = self._summed(group, rows, removals, progress, "rebuilding", 1.0)
        changed = self._solved(sums, self.class_rows)
        group.take_first([changed.parameters.W, changed.parameters.delta])
        return replace(
            changed,
            environment=self._environment_here(),
            session=_SESSION,
            probes=_everywhere(group, [self.model.probe()]),
        )

    def _check_same_rows(self, rows: Rows, part: range, digests: list[bytes]) -> None:
        """Raise StateMismatchError unless rows are those of a checkpoint: looked up here and there."""
        for i in np.unique(np.linspace(0, len(digests) - 1, min(len(digests), _CHECKED)).astype(int)):
            if self.ledger.digest(content(rows[part[int(i)]])) != digests[i]:
                raise StateMismatchError(
                    f"The checkpoint is of another fit: row {part[int(i)]} is another, or the rows have "
                    "another order. Pass the rows as before, or delete the folder to start anew."
                )

    def drift(self) -> tuple[float, list[Tensor]]:
        """Measure how far Jacobians here are from those that were learned, and warn.

        Nothing is measured in the process, versions, device, precision and threads of the last
        time.

        Returns
        -------
        drift : float
            Largest relative difference on a synthetic row.

        probes : list of Tensor
            One for each place that rows were learned in, this one included.
        """
        here = self._environment_here()
        if here == self.environment and self.session == _SESSION and len(self.probes) == 1:
            return 0.0, self.probes
        probe = self.model.probe()
        gaps = [relative_gap(probe, learned) for learned in self.probes]
        if max(gaps):
            changed = [key for key, value in here.items() if self.environment.get(key) != value]
            warnings.warn(
                f"What the backbone gives differs by {max(gaps):.1e} (relative) from what was learned"
                f"{' because of ' + ', '.join(changed) if changed else ''}: sums learned there and "
                "rows subtracted here do not cancel exactly. rebuild(X, y) restores exactness.",
                NumericalDriftWarning,
                stacklevel=4,
            )
        return max(gaps), self.probes if min(gaps) == 0 else [*self.probes, probe]

    def signature(self) -> dict[str, Any]:
        """Return what two states must share so that their statistics can be added."""
        model = self.model
        return {
            "random_state": self.settings.seed,
            "backbone weights": model.backbone.digest(),
            "trainable": model.tangent.subset.names,
            "n_components": model.projection.digest(),
            "ladder": None if model.ladder is None else model.ladder.digest(),
            "number of classes": model.settings.n_classes,
            "kernel": (model.settings.kernel, len(model.directions)),
            "energy units": (model.scale_h, model.scale_J),
            "preprocessing": model.backbone.spec,
            "precision": model.settings.precision,
            "batch_size": model.settings.batch_size,
        }

    def _summed(
        self,
        group: Group,
        rows: Rows,
        removals: list[Removal],
        progress: Progress,
        what: str,
        sign: float,
    ) -> tuple[Statistics, np.ndarray]:
        """Return the sums over learned rows times a sign, and their labels in the ledger."""
        if not group.alone:
            asked = repr((self.adapter.digest(), removals)).encode()
            group.check_same(files.digest(asked).encode())
        labels = np.array([removal.entry.label for removal in removals], dtype=np.int64)
        weights = np.array([removal.entry.weight for removal in removals])
        part, sums = group.share(len(removals)), self.model.empty_statistics()
        wanted = progress(rows.read([removals[i].row for i in part]), what, len(part))
        same = self._as_matched(wanted, [removals[i] for i in part])
        self.model.learn(sums, same, labels[part], sign * weights[part])
        group.add_up(sums.tensors().values())
        return sums, labels

    def _as_matched(self, rows: Iterable[np.ndarray], removals: list[Removal]) -> Iterator[np.ndarray]:
        """Yield rows that are read a second time, if they are what was matched the first time."""
        for row, removal in zip(rows, removals, strict=True):
            if self.ledger.segments[removal.segment].digest(content(row)) != removal.digest:
                raise StateMismatchError(
                    f"Expected row {removal.row} of the request to be the same each time it is read, "
                    "got another content. Nothing was changed. Pass rows without random transforms."
                )
            yield row

    def _environment_here(self) -> dict[str, Any]:
        return environment(self.settings.device, self.settings.precision)

    def _solved(self, statistics: Statistics, class_rows: np.ndarray, **changes: Any) -> State:
        started = time.perf_counter()
        settings = self.settings
        solution = solve(
            statistics,
            alpha=settings.alpha,
            tangent_scale=settings.tangent_scale,
            target_scale=settings.target_scale,
            centre=self.model.centre(),
        )
        parameters = self.model.publish(solution.W, solution.z)
        return replace(
            self,
            statistics=statistics,
            class_rows=class_rows,
            parameters=parameters,
            residual=solution.residual,
            alpha=solution.alpha,
            alpha_path=dict(zip(GRID, solution.path, strict=False)),
            seconds_per_solve=time.perf_counter() - started,
            **changes,
        )


def _everywhere(group: Group, probes: list[Tensor]) -> list[Tensor]:
    """Return the tangent features of all ranks, each once."""
    places = b"".join(group.gather(b"".join(map(_bytes, probes))))
    return _distinct(
        torch.frombuffer(bytearray(place), dtype=torch.float64)
        for place in _cut(places, len(_bytes(probes[0])))
    )


def _distinct(probes: Iterable[Tensor]) -> list[Tensor]:
    """Return tangent features without repetitions."""
    found: list[Tensor] = []
    for probe in probes:
        if all(relative_gap(probe, known) for known in found):
            found.append(probe)
    return found


def _bytes(probe: Tensor) -> bytes:
    return probe.numpy().tobytes()


def _cut(data: bytes, width: int) -> list[bytes]:
    return [data[i : i + width] for i in range(0, len(data), width)]
