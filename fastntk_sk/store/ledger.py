"""Which rows have been learned: keyed content digests with label, weight and count."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

import numpy as np

from ..backbones.inputs import content
from ..exceptions import (
    AmbiguousSampleError,
    ForgetsEverythingError,
    StateMismatchError,
    UnknownSampleError,
)

KEY_BYTES = 32


class Entry(NamedTuple):
    """How a content was learned: class index, sample weight, digest of the id (or empty)."""

    label: int
    weight: float
    owner: bytes


class Candidate(NamedTuple):
    """Copies of one content that were learned alike."""

    segment: int
    digest: bytes
    entry: Entry
    n_copies: int


class Removal(NamedTuple):
    """One learned copy that a request removes, and the request row that asks for it."""

    row: int
    segment: int
    digest: bytes
    entry: Entry

    def labelled(self, label: int) -> Removal:
        """Return the same copy with another class index."""
        return self._replace(entry=self.entry._replace(label=label))


class Match(NamedTuple):
    """What a request finds: copies to be removed, and for each of its rows what became of it.

    `results` are "found", "unknown", "elsewhere" (learned with another label or id) or "ambiguous";
    `known` are the segments and digests of each row's content. `by_id`: the request names ids alone, and
    not rows.
    """

    removals: list[Removal]
    results: list[str]
    known: list[set[tuple[int, bytes]]]
    by_id: bool = False

    @property
    def found(self) -> set[tuple[int, bytes]]:
        """Segments and digests of what is removed, in other segments too."""
        pairs = zip(self.results, self.known, strict=True)
        return set().union(*(known for result, known in pairs if result == "found"))

    def wanted(self, labels: Sequence[int]) -> dict[tuple[int, bytes], set[int]]:
        """Return the labels that the rows of each content are to have, from one label a row."""
        found: dict[tuple[int, bytes], set[int]] = {}
        for known, label in zip(self.known, labels, strict=True):
            for one in known:
                found.setdefault(one, set()).add(label)
        return found

    def joined(self, other: Match) -> Match:
        """Return both, without what the other removes already; its rows follow."""
        covered = {removal[1:] for removal in other.removals}
        n = len(self.results)
        mine = [removal for removal in self.removals if removal[1:] not in covered]
        theirs = [removal._replace(row=removal.row + n) for removal in other.removals]
        return Match([*mine, *theirs], self.results + other.results, self.known + other.known)

    def check(self, on_unknown: str = "raise") -> None:
        """Raise UnknownSampleError or AmbiguousSampleError where rows are in the way.

        With `on_unknown` = "skip", rows that were not learned are not, as long as any row is found.
        """
        unknown, elsewhere, ambiguous = (
            [row for row, result in enumerate(self.results) if result == kind]
            for kind in ("unknown", "elsewhere", "ambiguous")
        )
        skipped = on_unknown == "skip" and (self.removals or ambiguous)
        if elsewhere or (unknown and not skipped):
            message = _unknown_ids(unknown) if self.by_id else _unknown_message(unknown, elsewhere)
            raise UnknownSampleError(message, unknown + elsewhere)
        if ambiguous:
            raise AmbiguousSampleError(
                f"Rows {_rows(ambiguous)} were learned several times with different labels, weights "
                "or ids. Pass y_forget or sample_ids, or copies='all' to forget every copy. (Copies "
                "that differ only in weight, or of which one has no id, go all at once; those that may "
                "stay can be learned again.)",
                ambiguous,
            )


@dataclass
class Segment:
    """The rows that one site has learned, under that site's own key.

    With keep="features", `features` holds the features of each content by its digest, as they entered
    the sums, and `ids` the sample ids by theirs.
    """

    key: bytes = field(default_factory=lambda: secrets.token_bytes(KEY_BYTES))
    rows: dict[bytes, Counter[Entry]] = field(default_factory=dict)
    features: dict[bytes, np.ndarray] = field(default_factory=dict)
    ids: dict[bytes, str | int] = field(default_factory=dict)

    def digest(self, content: bytes) -> bytes:
        """Return the keyed digest of a content."""
        return hashlib.blake2b(content, key=self.key, digest_size=KEY_BYTES).digest()

    def owner(self, sample_id: str | int | None) -> bytes:
        """Return the keyed digest of a sample id; None has the empty digest."""
        if sample_id is None:
            return b""
        kind = b"int id" if isinstance(sample_id, int) else b"text id"  # 1 is not "1"
        person = hashlib.blake2b(key=self.key, digest_size=KEY_BYTES, person=kind)
        person.update(str(sample_id).encode())
        return person.digest()


class Ledger:
    """Learned rows as a list of segments; merged sites keep theirs apart.

    The key is drawn from the system's randomness, so that nobody without the private state can
    test whether a picture was in the training set. A forgotten row leaves no digest behind.

    Parameters
    ----------
    segments : list of Segment, default=None
        One fresh segment by default. New rows enter the first.

    n_rows : int, default=None
        Number of rows in the segments, if it is known.

    Attributes
    ----------
    n_rows : int
        Number of learned rows, duplicates counted.

    Examples
    --------
    >>> from fastntk_sk.store.ledger import Ledger
    >>> empty = Ledger()
    >>> digests = [empty.digest(content) for content in (b"a", b"b")]
    >>> ledger = empty.added(digests, labels=[0, 1], weights=[1.0, 1.0])
    >>> ledger.removed(ledger.find([b"a"]).removals).n_rows
    1
    """

    def __init__(self, segments: list[Segment] | None = None, *, n_rows: int | None = None) -> None:
        self.segments = [Segment()] if segments is None else segments
        if n_rows is None:
            n_rows = sum(sum(c.values()) for s in self.segments for c in s.rows.values())
        self.n_rows = n_rows

    def digest(self, content: bytes) -> bytes:
        """Return the keyed digest under which a new row is entered."""
        return self.segments[0].digest(content)

    def noted(
        self, rows: Iterable[np.ndarray], digests: list[bytes], segments: Iterable[int] = repeat(0)
    ) -> Iterator[np.ndarray]:
        """Yield rows, and append their digests in these segments; new rows enter the first."""
        for row, s in zip(rows, segments, strict=False):
            digests.append(self.segments[s].digest(content(row)))
            yield row

    def added(
        self,
        digests: Iterable[bytes],
        labels: Sequence[int],
        weights: Sequence[float],
        sample_ids: Sequence[str | int | None] | None = None,
        features: Iterable[np.ndarray] | None = None,
    ) -> Ledger:
        """Return the ledger with more rows; this one is not changed.

        Parameters
        ----------
        digests : iterable of bytes
            One a row, of `digest`.

        labels : sequence of int
            Class indices.

        weights : sequence of float

        sample_ids : sequence of str, int or None, default=None

        features : iterable of ndarray of shape (width,), default=None
            To be kept, and the sample ids with them.

        Returns
        -------
        ledger : Ledger
        """
        changed = self._copy()
        segment = changed.segments[0]
        if features is not None:
            digests = list(digests)
            segment.features |= zip(digests, features, strict=True)
            segment.ids |= {segment.owner(one): one for one in sample_ids or () if one is not None}
        ids = [None] * len(labels) if sample_ids is None else sample_ids
        for digest, label, weight, sample_id in zip(digests, labels, weights, ids, strict=True):
            entry = Entry(int(label), float(weight), segment.owner(sample_id))
            segment.rows[digest] = copies = Counter(segment.rows.get(digest))
            copies[entry] += 1
            changed.n_rows += 1
        return changed

    def merged(self, others: Sequence[Ledger]) -> Ledger:
        """Return the ledger of several sites, whose segments stay apart.

        Raises
        ------
        StateMismatchError
            If two hold the same segment: copies of one fit, whose rows would count twice.
        """
        segments = [segment for ledger in (self, *others) for segment in ledger.segments]
        if len({segment.key for segment in segments}) < len(segments):
            raise StateMismatchError(
                "Expected models that learned apart, got copies of one fit, whose rows would count "
                "twice. Let each site fit by itself; partial_fit adds rows to a model."
            )
        return Ledger(segments)

    def relabelled(self, places: Sequence[int]) -> Ledger:
        """Return the ledger with other class indices: label c becomes places[c]."""
        changed = self._copy()
        for segment in changed.segments:
            for digest, copies in segment.rows.items():
                moved = {
                    entry._replace(label=int(places[entry.label])): n for entry, n in copies.items()
                }
                segment.rows[digest] = Counter(moved)
        return changed

    def _copy(self) -> Ledger:
        """Copy the outer tables; the counters in them are replaced, never changed."""
        segments = [Segment(s.key, dict(s.rows), dict(s.features), dict(s.ids)) for s in self.segments]
        return Ledger(segments, n_rows=self.n_rows)

    def find(
        self,
        contents: Iterable[bytes],
        labels: Sequence[int] | None = None,
        sample_ids: Sequence[str | int | None] | None = None,
        copies: str = "one",
    ) -> Match:
        """Match a request with what was learned; nothing changes.

        Parameters
        ----------
        contents : iterable of bytes

        labels : sequence of int, default=None
            Class indices; None takes the label that the ledger knows.

        sample_ids : sequence of str, int or None, default=None
            None among them matches any id; rows with an id are matched first.

        copies : {"one", "all"}, default="one"
            Remove one learned copy for each request row, or every copy of its content.

        Returns
        -------
        match : Match
        """
        rows = [
            self._candidates(
                content,
                None if labels is None else int(labels[row]),
                None if sample_ids is None else sample_ids[row],
            )
            for row, content in enumerate(contents)
        ]
        asked = Counter(tuple(found) for _, found in rows)
        taken: Counter[Candidate] = Counter()
        removals: list[Removal] = []
        results = ["found"] * len(rows)
        named = [sample_ids is not None and sample_ids[row] is not None for row in range(len(rows))]
        for row in sorted(range(len(rows)), key=lambda row: not named[row]):
            everywhere, found = rows[row]
            left = [candidate for candidate in found if candidate.n_copies > taken[candidate]]
            n_left = sum(candidate.n_copies - taken[candidate] for candidate in left)
            asked_for = asked[tuple(found)]
            asked[tuple(found)] -= 1
            if not left:
                if copies == "one" or not found:  # else an earlier row of the request took all
                    results[row] = "elsewhere" if everywhere and not found else "unknown"
                continue
            if copies == "one":
                choices = {
                    (c.entry.label, c.entry.weight, b"" if named[row] else c.entry.owner) for c in left
                }
                if len(choices) > 1 and asked_for < n_left:
                    results[row] = "ambiguous"
                    continue
            for candidate in left if copies == "all" else left[:1]:
                count = candidate.n_copies - taken[candidate] if copies == "all" else 1
                taken[candidate] += count
                removals += [Removal(row, *candidate[:3])] * count
        known = [{(one.segment, one.digest) for one in everywhere} for everywhere, _ in rows]
        return Match(sorted(removals, key=lambda removal: removal.row), results, known)

    def find_ids(self, sample_ids: Sequence[str | int | None]) -> Match:
        """Match every learned row under these ids; `row` is the place of the id (of twins, the last)."""
        removals: list[Removal] = []
        for s, segment in enumerate(self.segments):
            owners = {
                segment.owner(sample_id): row
                for row, sample_id in enumerate(sample_ids)
                if sample_id is not None
            }
            removals += [
                Removal(owners[entry.owner], s, digest, entry)
                for digest, entries in segment.rows.items()
                for entry, count in entries.items()
                if entry.owner in owners
                for _ in range(count)
            ]
        found = {sample_ids[removal.row] for removal in removals}
        results = ["found" if one in found else "unknown" for one in sample_ids]
        known: list[set[tuple[int, bytes]]] = [set() for _ in sample_ids]
        for row, s, digest in {removal[:3] for removal in removals}:
            known[row].add((s, digest))
        return Match(removals, results, known, by_id=True)

    def known_ids(self, names: Sequence[str | int]) -> list[list[str | int]]:
        """Return the ids of learned rows that a person may mean by each name: 7 is also "7"."""
        owners = [
            {entry.owner for entries in segment.rows.values() for entry in entries}
            for segment in self.segments
        ]

        def is_known(one: str | int) -> bool:
            pairs = zip(self.segments, owners, strict=True)
            return any(segment.owner(one) in known for segment, known in pairs)

        return [[one for one in _either(name) if is_known(one)] for name in names]

    def n_copies(self, contents: Iterable[tuple[int, bytes]]) -> int:
        """Return how many copies of some contents are learned."""
        return sum(self.segments[s].rows.get(digest, Counter()).total() for s, digest in contents)

    def n_labelled_otherwise(self, wanted: Mapping[tuple[int, bytes], set[int]]) -> int:
        """Return how many copies of some contents are learned with no label that they should have."""
        return sum(
            n
            for (s, digest), labels in wanted.items()
            for entry, n in self.segments[s].rows[digest].items()
            if entry.label not in labels
        )

    def all_rows(self) -> list[Removal]:
        """Return every learned row."""
        return [
            Removal(0, s, digest, entry)
            for s, segment in enumerate(self.segments)
            for digest, entries in segment.rows.items()
            for entry, count in entries.items()
            for _ in range(count)
        ]

    def features(self, removals: Sequence[Removal]) -> list[np.ndarray | None]:
        """Return the features that are kept of rows; None for those of which they are not."""
        return [self.segments[removal.segment].features.get(removal.digest) for removal in removals]

    def with_features(self, removals: Sequence[Removal], features: Sequence[np.ndarray]) -> Ledger:
        """Return the ledger that keeps other features of all its rows."""
        changed = self._copy()
        for segment in changed.segments:
            segment.features.clear()
        for removal, row in zip(removals, features, strict=True):
            changed.segments[removal.segment].features.setdefault(removal.digest, row)
        return changed

    def settled(self, digests: Sequence[bytes], features: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the features of new rows, those kept already in place of others of the same content."""
        known = dict(self.segments[0].features)
        return [known.setdefault(digest, row) for digest, row in zip(digests, features, strict=True)]

    def _candidates(
        self, content: bytes, label: int | None, sample_id: str | int | None
    ) -> tuple[list[Candidate], list[Candidate]]:
        """Return all copies of a content, and those that match the request."""
        everywhere, found = [], []
        for s, segment in enumerate(self.segments):
            digest = segment.digest(content)
            owner = segment.owner(sample_id)
            for entry, count in segment.rows.get(digest, {}).items():
                everywhere.append(Candidate(s, digest, entry, count))
                if label in (None, entry.label) and owner in (b"", entry.owner):
                    found.append(everywhere[-1])
        return everywhere, found

    def unchanged(self, rows: Iterable[np.ndarray], removals: Sequence[Removal]) -> Iterator[np.ndarray]:
        """Yield matched rows that are read again; see `check_unchanged`."""
        for row, removal in zip(rows, removals, strict=True):
            check_unchanged([self.segments[removal.segment].digest(content(row))], [removal])
            yield row

    def removed(self, removals: Sequence[Removal]) -> Ledger:
        """Return the ledger without these copies; no digest of a content without copies is kept.

        Raises
        ------
        ForgetsEverythingError
            If no row would be left.
        """
        if len(removals) >= self.n_rows:
            raise ForgetsEverythingError(
                f"The request covers all {self.n_rows} learned rows; a model cannot rest on nothing. "
                "Delete the model instead, or keep at least one row."
            )
        return self.without(removals)

    def without(self, removals: Sequence[Removal]) -> Ledger:
        """Return the ledger without these copies, which may be all."""
        changed = self._copy()
        for _, s, digest, entry in removals:
            changed.n_rows -= 1
            rows = changed.segments[s].rows
            rows[digest] = rows[digest] - Counter([entry])
            if not rows[digest]:
                del rows[digest]
                changed.segments[s].features.pop(digest, None)
        for segment in changed.segments:
            if segment.ids:
                left = {entry.owner for entries in segment.rows.values() for entry in entries}
                segment.ids = {owner: one for owner, one in segment.ids.items() if owner in left}
        return changed

    def rectified(self, removals: Sequence[Removal], right: Sequence[Removal]) -> Ledger:
        """Return the ledger in which copies are entered as `right` has them."""
        changed = self._copy()
        for old, new in zip(removals, right, strict=True):
            rows = changed.segments[old.segment].rows
            rows[old.digest] = rows[old.digest] - Counter([old.entry]) + Counter([new.entry])
        return changed

    def owned_rows(self, sample_ids: Sequence[str | int | None] | None) -> int | None:
        """Return how many learned rows carry one of these sample ids, if any were asked for."""
        if sample_ids is None:
            return None
        ids = {sample_id for sample_id in sample_ids if sample_id is not None}
        total = 0
        for segment in self.segments:
            owners = {segment.owner(i) for i in ids}
            total += sum(
                n for c in segment.rows.values() for entry, n in c.items() if entry.owner in owners
            )
        return total


def check_unchanged(digests: Sequence[bytes], removals: Sequence[Removal]) -> None:
    """Raise StateMismatchError if a row that was read again is not what was matched."""
    for digest, removal in zip(digests, removals, strict=True):
        if digest != removal.digest:
            raise StateMismatchError(
                f"Expected row {removal.row} of the request to be the same each time it is read, got "
                "another content. Nothing was changed. Pass rows without random transforms."
            )


def _either(name: str | int) -> list[str | int]:
    """Return a name, and as a number what is written as one or the reverse."""
    if isinstance(name, int):
        return [name, str(name)]
    return [name, int(name)] if re.fullmatch(r"0|-?[1-9][0-9]{0,17}", name) else [name]


def _rows(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:10]))
    return f"[{shown}, ...] ({len(indices)} in all)" if len(indices) > 10 else f"[{shown}]"


def _unknown_ids(unknown: Sequence[int]) -> str:
    return (
        f"No row was learned under the sample ids at {_rows(unknown)}, or all are forgotten already. "
        "Nothing was changed."
    )


def _unknown_message(unknown: Sequence[int], elsewhere: Sequence[int]) -> str:
    parts = []
    if unknown:
        parts.append(
            f"Rows {_rows(unknown)} were not learned, or are already forgotten. Rows are matched by "
            "their content: pass them exactly as they were passed to fit (a picture that was "
            "encoded again is another content)."
        )
    if elsewhere:
        parts.append(
            f"Rows {_rows(elsewhere)} were learned with another label or sample id. Leave labels "
            "and ids out to take what was learned."
        )
    return " ".join(parts) + " Nothing was changed."
