"""What a fitted estimator rests on: to learn, subtract, merge or solve returns a new state."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .distributed import Ranks
from .exceptions import DistributedError, HeavyRowError, SolveError, StateMismatchError
from .settings import Settings
from .sums.memory import available_memory, rows_at_once
from .sums.reduction import Reduced
from .sums.ridge import GRID, solve, solve_again, solve_without
from .sums.solvers import ROUNDING, Solution, coarse, rounding_bound
from .sums.statistics import HeldRows, Statistics, place_of_sums
from .tangents.model import TELLING, LinearizedModel, Parameters, relative_gap, row_energies

_AT_ONCE = 512  # rows whose kept features are summed together
_PACKAGES = ("fastntk_sk", "torch", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class Sums:
    """Sums over some rows, before they enter a state, or few rows that leave it.

    `class_rows` counts the rows of each class. `numbers` is what errors call the rows, and `energies`
    are their weighted energies w |x|^2.
    """

    statistics: Any  # Statistics or HeldRows
    class_rows: np.ndarray
    numbers: np.ndarray
    energies: np.ndarray
    seconds_per_row: float
    features: list[np.ndarray] = field(default_factory=list)  # of the rows, where they are kept

    @property
    def energy(self) -> float:
        """Sum of the energies."""
        return float(self.energies.sum())

    def plus(self, other: Sums) -> Sums:
        """Return the sums over these rows and others; these are used up."""
        self.statistics.merge(other.statistics)
        return replace(
            self,
            class_rows=self.class_rows + other.class_rows,
            numbers=np.concatenate([self.numbers, other.numbers]),
            energies=np.concatenate([self.energies, other.energies]),
        )


@dataclass(frozen=True)
class Tuning:
    """What training left at an anchor that has seen the rows.

    It is a readout of shape (C, d + 1), the epochs of SGD, none where the user has trained, and
    `linearity_`.
    """

    W: Tensor
    history: list[dict[str, Any]]
    linearity: float = 0.0


@dataclass(frozen=True)
class State:
    """Sums over the learned rows, their solution, and the model in which they were taken.

    The model is fixed before the first row is summed (a trained anchor has seen rows). `class_rows`
    counts the learned rows of each class, `environment` says with what they were learned, and `probes`
    hold what the backbone gave for synthetic rows in each place where they were learned. `removed` is
    the energy of all rows that were subtracted since the sums were made, `residual` that of the normal
    equations relative to their right side, `alpha` the ridge in force, and `alpha_path` what each value
    was worth where the sums chose it. `kept` is the factorisation of the last solve, in memory alone.
    """

    model: LinearizedModel
    statistics: Statistics
    class_rows: np.ndarray
    parameters: Parameters
    environment: dict[str, Any]
    probes: list[Tensor]
    removed: float = 0.0
    residual: float = 0.0
    alpha: float = 0.0
    alpha_path: dict[float, float] = field(default_factory=dict)
    seconds_per_row: float = 0.0
    seconds_per_solve: float = 0.0
    tuning: Tuning | None = None
    kept: Tensor | Reduced | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the factorisation out of pickles and copies."""
        return self.__dict__ | {"kept": None}

    @classmethod
    def empty(cls, model: LinearizedModel, tuning: Tuning | None = None) -> State:
        """Return the state of a model before its first row."""
        nothing, here = torch.zeros(0), environment(model.settings)
        return cls(
            model,
            model.empty_statistics(),
            np.zeros(model.settings.n_classes, dtype=np.int64),
            Parameters(nothing, nothing),
            here,
            [model.probe(here["threads"])],
            tuning=tuning,
        )

    @property
    def settings(self) -> Settings:
        """Settings of the fit."""
        return self.model.settings

    @property
    def n_rows(self) -> int:
        """Number of learned rows."""
        return int(self.class_rows.sum())

    @property
    def rounding(self) -> float:
        """Bound on what rounding has left in the solution, relative to it; see `coarse`."""
        s = self.settings.tangent_scale
        return coarse(rounding_bound(self.statistics.energy, self.removed, self.alpha, s))

    def sum_features(
        self,
        features: Iterable[np.ndarray],
        labels: np.ndarray,
        weights: np.ndarray,
        *,
        hold: bool = False,
    ) -> Sums:
        """Take the sums over rows whose features were kept, or hold the rows, without the backbone."""
        statistics = HeldRows(self.place) if hold else self.model.empty_statistics()
        energies = [np.zeros(0)]
        rows = iter(features)
        for start in range(0, len(labels), _AT_ONCE):
            h = torch.from_numpy(np.stack([*islice(rows, _AT_ONCE)]))
            here = slice(start, start + len(h))
            J, w = h.new_zeros(len(h), len(self.class_rows), 0), torch.from_numpy(weights[here])
            statistics.add(h, J, torch.from_numpy(labels[here]), w)
            energies.append(row_energies(h, J, w).numpy())
        class_rows = np.bincount(labels, minlength=len(self.class_rows))
        numbers = np.arange(len(labels))
        return Sums(statistics, class_rows, numbers, np.concatenate(energies), self.seconds_per_row)

    def with_features(
        self, sums: Sums, features: list[np.ndarray], labels: np.ndarray, weights: np.ndarray
    ) -> Sums:
        """Return sums in which rows have these features, where the backbone has given others."""
        pairs = zip(sums.features, features, strict=True)
        other = [i for i, (given, kept) in enumerate(pairs) if not np.array_equal(given, kept)]
        for rows, sign in ((sums.features, -1.0), (features, 1.0)) if other else ():
            part = self.sum_features([rows[i] for i in other], labels[other], sign * weights[other])
            sums.statistics.merge(part.statistics)
        return replace(sums, features=features)

    def learn(self, sums: Sums) -> State:
        """Return the state that has also learned the rows of some sums, which become its own."""
        if self.settings.alpha is not None:
            self._check_heavy(sums, self.settings.alpha)
        if self.n_rows:
            sums.statistics.merge(self.statistics)
        learned = replace(
            self,
            statistics=sums.statistics,
            class_rows=self.class_rows + sums.class_rows,
            seconds_per_row=sums.seconds_per_row,
        )
        try:
            learned = learned.solve()
        except SolveError:
            self._check_heavy(sums, GRID[0])
            raise
        if self.settings.alpha is None:
            self._check_heavy(sums, learned.alpha)
        return learned

    def _check_heavy(self, sums: Sums, alpha: float) -> None:
        """Raise HeavyRowError where a row by itself forbids an exact deletion."""
        bounds = sums.energies * rounding_bound(1.0, 0.0, alpha, self.settings.tangent_scale)
        heavy = sums.numbers[bounds > coarse(ROUNDING) / 2]  # as what a receipt would say of it
        if len(heavy):
            worst = f"{coarse(bounds.max()):.1e} in row {sums.numbers[bounds.argmax()]}"
            raise HeavyRowError(
                "Expected eps * weight * |features and Jacobians|^2 / alpha of every row to be at most "
                f"{ROUNDING:g} (alpha={alpha:g}), got more in {len(heavy)} rows, {worst}: rounding "
                "would leave traces of such a row when it is forgotten. Scale its features, lower its "
                "weight, raise alpha, or leave it out.",
                heavy,
            )

    @property
    def place(self) -> torch.device:
        """Where rows are summed and sums solved; between calls they are on the CPU."""
        return place_of_sums(self.model.device)

    @property
    def most_held(self) -> int:
        """How many rows may be held in place of their sums: as many as wait in a pass."""
        return rows_at_once(*self.model.sizes, self.settings.n_classes, self.settings.batch_size)

    def subtract(self, sums: Sums, *, drift: float = 0.0) -> State:
        """Return the state that never learned the rows of some sums, which are used up.

        The factorisation that the last solve has kept is down-dated by rows that are held, where it is
        usable with this drift.
        """
        there = sums.statistics.subtract_from(self.statistics)
        class_rows = self.class_rows - sums.class_rows
        there.clear_targets(class_rows.tolist())
        rest = replace(
            self,
            statistics=there.to("cpu"),
            class_rows=class_rows,
            removed=self.removed + coarse(sums.energy),
            seconds_per_row=sums.seconds_per_row,
            kept=None,
        )
        kept = self._usable(drift)
        if kept is None or not isinstance(sums.statistics, HeldRows):
            return rest.solve()
        h, weights = sums.statistics.shared
        mean = self.statistics.mean.to(there.device)
        solution = solve_without(kept, mean, there, h, weights, **self._scales)
        return rest.solve() if solution is None else rest._solved(solution)

    def _usable(self, drift: float) -> Tensor | Reduced | None:
        """Return what the last solve has kept, or None where features differ from those learned.

        Then the smallest eigenvalue has to be looked at.
        """
        return None if drift or self.model.position_gap else self.kept

    def exchange(self, old: Sums, new: Sums, *, drift: float = 0.0) -> State:
        """Return the state that learned the same rows as `new` has them, and not as `old`; both go.

        Labels are in none of what the last solve has kept.
        """
        class_rows = self.class_rows - old.class_rows + new.class_rows
        old.statistics.subtract_from(self.statistics).merge(new.statistics)
        old.statistics.clear_targets(class_rows.tolist())
        changed = replace(
            self,
            statistics=old.statistics,
            class_rows=class_rows,
            removed=self.removed + coarse(old.energy),
            seconds_per_row=old.seconds_per_row,
        )
        kept = self._usable(drift)
        if kept is None:
            return changed.solve()
        solution = solve_again(kept, old.statistics.to(self.place), **self._scales)
        return changed.solve() if solution is None else changed._solved(solution)

    def rebuild(self, sums: Sums, *, here: bool = True) -> State:
        """Return the state of fresh sums over the same rows, for which the backbone ran `here`."""
        place: dict[str, Any] = {}
        if here:
            threads = {"threads": self.environment["threads"]}
            place = {"environment": environment(self.settings) | threads, "probes": [self.probe()]}
        return replace(
            self,
            statistics=sums.statistics,
            removed=0.0,
            seconds_per_row=sums.seconds_per_row,
            **place,
        ).solve()

    def merge(self, others: Sequence[State]) -> State:
        """Return the state that has learned what all have."""
        mine, statistics, class_rows = signature(self.model), self.statistics.copy(), self.class_rows
        probes, removed, settings = self.probes, self.removed, self.settings
        for other in others:
            theirs = signature(other.model)
            differing = [name for name, value in mine.items() if theirs[name] != value]
            if differing:
                raise StateMismatchError(
                    f"Expected models learned with the same set-up; they differ in {differing}. Fit "
                    "all of them with the same parameters, an integer random_state and the same "
                    "classes (partial_fit(X, y, classes=...))."
                )
            statistics.merge(other.statistics)
            class_rows = class_rows + other.class_rows
            probes, removed = distinct([*probes, *other.probes]), removed + other.removed
            settings = settings.merged(other.settings)
        return replace(
            self,
            model=replace(self.model, settings=settings),
            statistics=statistics,
            class_rows=class_rows,
            probes=probes,
            removed=removed,
        ).solve()

    def with_classes(self, places: Sequence[int], n_classes: int) -> State:
        """Return a state of more classes, not solved yet; class c becomes class places[c]."""
        class_rows = np.zeros(n_classes, dtype=self.class_rows.dtype)
        class_rows[places] = self.class_rows
        return replace(
            self.with_settings(n_classes=n_classes),
            statistics=self.statistics.with_classes(places, n_classes),
            class_rows=class_rows,
            kept=None,
        )

    def with_settings(self, **changes: Any) -> State:
        """Return the state with other settings, such as alpha; not solved yet."""
        model = replace(self.model, settings=replace(self.settings, **changes))
        fits = not changes.keys() & {"alpha", "tangent_scale"}
        return replace(self, model=model, kept=self.kept if fits else None)

    @property
    def _scales(self) -> dict[str, Any]:
        settings = self.settings
        return {name: getattr(settings, name) for name in ("alpha", "tangent_scale", "target_scale")}

    def solve(self) -> State:
        """Return the state with the solution of its sums."""
        started, centre = time.perf_counter(), self.model.centre()
        solution = solve(
            self.statistics.to(self.place),
            **self._scales,
            centre=None if centre is None else centre.to(self.place),
        )
        return replace(self._solved(solution), seconds_per_solve=time.perf_counter() - started)

    def _solved(self, solution: Solution) -> State:
        """Return the state with a solution of its sums; what that has kept, while memory allows.

        On another device than the CPU, whose memory nobody estimates, it is kept always.
        """
        affordable = self.place.type != "cpu" or available_memory() > self.statistics.A.nbytes
        return replace(
            self,
            parameters=self.model.publish(solution.W.cpu(), solution.z.cpu()),
            residual=solution.residual,
            alpha=solution.alpha,
            alpha_path=dict(zip(GRID, solution.path, strict=False)),
            kept=solution.kept if affordable else None,
        )

    def probe(self) -> Tensor:
        """Return what the backbone gives here for the synthetic rows."""
        return self.model.probe(self.environment["threads"])

    def proven(self, n_rows: int) -> tuple[LinearizedModel, Tensor]:
        """Return the model in the smallest batches that are exact for few rows, and its probe.

        Kernels are chosen by the shape of a batch and not by the values in it: where a smaller one gives
        the rows of the probe, in all of its places, bitwise as they were learned, it does so for others.
        Zeros of synthetic rows, on which a network may be dead, prove nothing.
        """
        telling = min(len(learned.unique()) for learned in self.probes) >= TELLING
        for size in self.model.smaller_sizes(n_rows) if telling else ():
            probe = self.model.probe(self.environment["threads"], size)
            if not self.drift(probe):
                return self.model.in_batches(size), probe
        return self.model, self.probe()

    def drift(self, probe: Tensor) -> float:
        """Return the largest relative difference between a probe and what was learned."""
        parts = probe.split(self.model.n_probe)
        return float(np.max([relative_gap(part, learned) for part in parts for learned in self.probes]))


def sum_rows(
    model: LinearizedModel,
    rows: Iterable[np.ndarray],
    labels: np.ndarray,
    weights: np.ndarray,
    numbers: np.ndarray,
    n_threads: int,
    shared: Ranks,
    *,
    hold: bool = False,
) -> Sums:
    """Take the sums over rows, with the number of threads that others were learned with.

    `labels`, `weights` and `numbers`, which errors call the rows, are those of all ranks, and `rows`
    this rank's share. Rank 0 gets the sums over all of them, others nothing that can be used. `hold`
    keeps the rows in place of their sums, where no ranks share them.
    """
    started, part, place = time.perf_counter(), shared.share(len(labels)), place_of_sums(model.device)
    statistics: Any = HeldRows(place) if hold else model.empty_statistics(place)
    failed, features = True, list[np.ndarray]()
    kept = features if model.settings.keep == "features" else None
    mine = labels[part], weights[part], numbers[part]
    try:
        energies = model.learn(statistics, rows, *mine, n_threads, kept)
        statistics = statistics if hold else statistics.to("cpu")
        failed = False
    finally:
        failed = shared.any(failed)  # so that no rank waits for one that has failed
    if failed:
        raise DistributedError(
            "Another rank failed on its share of the rows, and names the reason. Nothing changed."
        )
    size = model.settings.batch_size
    n_passed = -(-len(part) // size) * size  # with what fills the last batch
    seconds = (time.perf_counter() - started) / max(1, n_passed)
    if not hold:
        shared.add_up(statistics.tensors().values())
    every = np.frombuffer(b"".join(shared.gather(energies.tobytes())))
    if kept is not None and shared.size > 1:
        everyone = bytearray().join(shared.gather(b"".join(map(bytes, features))))
        table = np.frombuffer(everyone, model.row_dtype)
        features = [row.copy() for row in table.reshape(-1, model.sizes[0] + 1)]
    class_rows = np.bincount(labels, minlength=model.settings.n_classes)
    return Sums(statistics, class_rows, numbers, every, seconds, features)


def signature(model: LinearizedModel) -> dict[str, Any]:
    """Return what two models must share so that their statistics can be added."""
    settings = model.settings
    return {
        "random_state": settings.seed,
        "backbone weights": model.backbone.digest(),
        "trainable": model.tangent.subset.names,
        "n_components": model.projection.digest(),
        "ladder": None if model.ladder is None else model.ladder.digest(),
        "number of classes": settings.n_classes,
        "kernel": (settings.kernel, len(model.directions)),
        "probe directions": blake2b(model.directions.cpu().numpy().tobytes()).hexdigest(),
        "energy units": (model.scale_h, model.scale_J),
        "preprocessing": model.backbone.spec,
        "augment": settings.augment,
        "precision": settings.precision,
        "batch_size": settings.batch_size,
        "alpha": settings.alpha,
        "tangent_scale": settings.tangent_scale,
        "target_scale": settings.target_scale,
    }


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}


def environment(settings: Settings) -> dict[str, Any]:
    """Return what decides whether a Jacobian comes out bitwise the same, as plain Python values."""
    return {
        "versions": dict(_versions()),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": settings.device,
        "precision": settings.precision,
        "threads": torch.get_num_threads(),
    }


def distinct(probes: Iterable[Tensor]) -> list[Tensor]:
    """Return probes without repetitions."""
    found: list[Tensor] = []
    for probe in probes:
        if not any(torch.equal(probe, known) for known in found):
            found.append(probe)
    return found
