"""The fitted state of an estimator and the four things that happen to it."""

from __future__ import annotations

import math
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .exceptions import (
    ForgetsEverythingError,
    NumericalDriftWarning,
    PrivacyWarning,
    StateMismatchError,
)
from .ledger import Ledger, Removal
from .linearized import LinearizedModel, Parameters, relative_gap
from .preprocessing import Rows, content
from .receipts import environment, make_receipt
from .solvers import solve_schur
from .statistics import Statistics

_SESSION = secrets.token_hex(8)
Progress = Callable[[Iterable[np.ndarray], str, int], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Frozen:
    """Parameters of the estimator as they were at fit; `set_params` does not reach them.

    Parameters
    ----------
    seed : int
        Drawn from `random_state`.

    alpha, tangent_scale, target_scale : float

    anchor : {"pretrained", "finetuned"}

    network : bool
        Predict with the displaced network instead of the linearised model.

    device : str
    """

    seed: int
    alpha: float
    tangent_scale: float
    target_scale: float
    anchor: str
    network: bool
    device: str


@dataclass
class State:
    """What an estimator knows after fit; `learn`, `forget`, `merge` and `rebuild` return another.

    Parameters
    ----------
    model : LinearizedModel
        Fixed before the first row of the statistics was seen (a fine-tuned anchor has seen rows).

    frozen : Frozen

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
    """

    model: LinearizedModel
    frozen: Frozen
    statistics: Statistics
    ledger: Ledger
    class_rows: np.ndarray
    parameters: Parameters
    environment: dict[str, Any]
    probes: list[Tensor]
    n_forgotten: int = 0
    receipts: list[dict[str, Any]] = field(default_factory=list)
    residual: float = 0.0
    seconds_per_row: float = 0.0
    seconds_per_solve: float = 0.0
    sgd: Parameters | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    linearity: float = 0.0
    session: str = ""

    @classmethod
    def empty(cls, model: LinearizedModel, frozen: Frozen) -> State:
        """Return the state before the first row."""
        n_classes = len(model.readout)
        nothing = torch.zeros(0)
        return cls(
            model,
            frozen,
            model.empty_statistics(),
            Ledger(),
            np.zeros(n_classes, dtype=np.int64),
            Parameters(nothing, nothing),
            environment(frozen.device, model.readout.dtype),
            [model.probe(frozen.seed)],
            session=_SESSION,
        )

    def learn(
        self,
        rows: Rows,
        labels: np.ndarray,
        weights: np.ndarray,
        sample_ids: Sequence[object] | None,
        progress: Progress,
    ) -> State:
        """Return the state that has also learned these rows."""
        _, probes = self.drift()
        started = time.perf_counter()
        statistics = self.statistics.copy() if self.ledger.n_rows else self.statistics
        digests: list[bytes] = []

        def noted() -> Iterator[np.ndarray]:
            for row in progress(rows, "learning", len(rows)):
                digests.append(self.ledger.digest(content(row)))
                yield row

        self.model.learn(statistics, noted(), labels, weights)
        per_row = (time.perf_counter() - started) / len(labels)
        class_rows = self.class_rows + np.bincount(labels, minlength=len(self.class_rows))
        return self._solved(
            statistics,
            class_rows,
            seconds_per_row=per_row,
            ledger=self.ledger.added(digests, labels.tolist(), weights.tolist(), sample_ids),
            environment=self._environment_here(),
            session=_SESSION,
            probes=probes,
        )

    def forget(
        self,
        rows: Rows,
        removals: list[Removal],
        progress: Progress,
        *,
        seen_by: Sequence[str] = (),
        searched_by: Sequence[str] = (),
    ) -> State:
        """Return the state that never learned these rows."""
        self.check_rest(removals)
        started = time.perf_counter()
        drift, _ = self.drift()
        statistics = self.statistics.copy()
        labels = self._pass(statistics, rows, removals, progress, "forgetting", -1.0)
        class_rows = self.class_rows - np.bincount(labels, minlength=len(self.class_rows))
        changed = self._solved(
            statistics,
            class_rows,
            ledger=self.ledger.removed(removals),
            n_forgotten=self.n_forgotten + len(removals),
        )
        here = self._environment_here()
        if not drift:
            changed = replace(changed, environment=here, session=_SESSION)
        receipt = make_receipt(
            n_rows=len(removals),
            n_learned=int(class_rows.sum()),
            residual=changed.residual,
            seconds=time.perf_counter() - started,
            drift=max(drift, self.model.position_gap),
            seen_by=seen_by,
            searched_by=searched_by,
            anchor=self.frozen.anchor,
            environment=here,
        )
        return replace(changed, receipts=[*self.receipts, receipt])

    @property
    def sharpness(self) -> float:
        r"""What turns scores into a softmax: :math:`\log(99 (C - 1)) / target\_scale`."""
        return math.log(99 * (len(self.class_rows) - 1)) / self.frozen.target_scale

    def resolved(self, *, alpha: float, tangent_scale: float | None = None) -> State:
        """Return the state solved again with another ridge, without another pass."""
        s = self.frozen.tangent_scale if tangent_scale is None else tangent_scale
        changed = replace(self, frozen=replace(self.frozen, alpha=alpha, tangent_scale=s))
        return changed._solved(self.statistics, self.class_rows)

    def check_rest(self, removals: list[Removal]) -> None:
        """Raise ForgetsEverythingError if no row would be left."""
        if len(removals) >= self.ledger.n_rows:
            raise ForgetsEverythingError(
                f"The request covers all {self.ledger.n_rows} learned rows; a model cannot rest on "
                "nothing. Delete the model instead, or keep at least one row."
            )

    def merge(self, others: Sequence[State]) -> State:
        """Return the state that has learned what all have."""
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
            if other.class_rows.sum() <= self.model.d:
                warnings.warn(
                    f"Statistics of {other.class_rows.sum()} rows in {self.model.d} features can be "
                    "inverted into the rows themselves. Do not let them travel.",
                    PrivacyWarning,
                    stacklevel=3,
                )
            statistics.merge(other.statistics)
            class_rows = class_rows + other.class_rows
        parts = (self, *others)
        probes: list[Tensor] = []
        for probe in (probe for part in parts for probe in part.probes):
            if all(relative_gap(probe, known) for known in probes):
                probes.append(probe)
        return self._solved(
            statistics,
            class_rows,
            ledger=Ledger([segment for part in parts for segment in part.ledger.segments]),
            n_forgotten=sum(part.n_forgotten for part in parts),
            receipts=[receipt for part in parts for receipt in part.receipts],
            probes=probes,
        )

    def rebuild(self, rows: Rows, removals: list[Removal], progress: Progress) -> State:
        """Return the state with statistics made anew from the rows that are still learned."""
        if len(removals) != self.ledger.n_rows:
            raise StateMismatchError(
                f"Expected exactly the {self.ledger.n_rows} rows that are learned, got "
                f"{len(removals)} of them. Pass every row once for each time it was learned."
            )
        statistics = self.model.empty_statistics()
        self._pass(statistics, rows, removals, progress, "rebuilding", 1.0)
        return replace(
            self._solved(statistics, self.class_rows),
            environment=self._environment_here(),
            session=_SESSION,
            probes=[self.model.probe(self.frozen.seed)],
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
        probe = self.model.probe(self.frozen.seed)
        gaps = [relative_gap(probe, learned) for learned in self.probes]
        if max(gaps):
            changed = [key for key, value in here.items() if self.environment.get(key) != value]
            warnings.warn(
                f"Jacobians here differ by {max(gaps):.1e} (relative) from those of learned rows"
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
            "random_state": self.frozen.seed,
            "backbone weights": model.backbone.digest(),
            "trainable": model.tangent.subset.names,
            "n_components": model.projection.digest(),
            "number of classes": len(model.readout),
            "energy units": (model.scale_h, model.scale_J),
            "preprocessing": model.backbone.spec,
            "precision": str(model.readout.dtype),
            "batch_size": model.batch_size,
        }

    def _pass(
        self,
        statistics: Statistics,
        rows: Rows,
        removals: list[Removal],
        progress: Progress,
        what: str,
        sign: float,
    ) -> np.ndarray:
        """Add learned rows, or subtract them, under the ledger's labels, which are returned."""
        labels = np.array([removal.entry.label for removal in removals], dtype=np.int64)
        weights = np.array([removal.entry.weight for removal in removals])
        wanted = (rows[removal.row] for removal in removals)
        self.model.learn(statistics, progress(wanted, what, len(removals)), labels, sign * weights)
        return labels

    def _environment_here(self) -> dict[str, Any]:
        return environment(self.frozen.device, self.model.readout.dtype)

    def _solved(self, statistics: Statistics, class_rows: np.ndarray, **changes: Any) -> State:
        started = time.perf_counter()
        frozen = self.frozen
        solution = solve_schur(
            statistics,
            alpha=frozen.alpha,
            tangent_scale=frozen.tangent_scale,
            target_scale=frozen.target_scale,
            centre=self.model.centre(frozen.tangent_scale),
        )
        parameters = self.model.publish(solution.W, solution.z, frozen.tangent_scale)
        return replace(
            self,
            statistics=statistics,
            class_rows=class_rows,
            parameters=parameters,
            residual=solution.residual,
            seconds_per_solve=time.perf_counter() - started,
            **changes,
        )
