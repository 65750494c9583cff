"""The state of the app: what one person has learned, doubts and forgets, without widgets."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.folders import read_labelled
from fastntk_sk.backbones.inputs import drawable
from fastntk_sk.exceptions import InspectionError
from fastntk_sk.inspection import label_issues

N_LEARNED, N_WRONG, N_HELD_OUT, N_FORGOTTEN = 600, 100, 500, 24  # of the example
_TAKEN_FOR = {"1": "7", "3": "8", "4": "9", "5": "3", "6": "0"}  # how its labels are wrong
_MOST = 2000  # pictures of a folder
_HELD_OUT = 5  # one in so many of each class
_SIDE = 128  # pixels
VIEWS = ("doubtful", "learned", "forgotten", "changed")


@dataclass(frozen=True)
class Picture:
    """A picture, its label, and its true label where the example gave it a wrong one on purpose."""

    pixels: np.ndarray
    label: str
    truth: str | None = None


@dataclass(frozen=True)
class Step:
    """How many pictures were forgotten, and what the model then read the held-out pictures as."""

    n_forgotten: int
    readings: list[str]
    n_mistakes: int


@dataclass
class Session:
    """One person's pictures and the model that has learned them.

    A picture is called by its place in `learned`, which is its sample id too. `doubts` maps pictures to
    what their label should perhaps be, the most doubtful first, and `forgotten` maps those that are
    forgotten to what the model reads them as now. `steps` begins with the model as it was learned.
    """

    name: str
    learned: list[Picture]
    held_out: list[Picture]
    classifier: FastNTKClassifier
    picked: set[int] = field(default_factory=set)
    doubts: dict[int, str] = field(default_factory=dict)
    forgotten: dict[int, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def measure(self) -> None:
        """Look for doubtful labels, and read the forgotten and the held-out pictures."""
        left = self.places("learned")
        X, y = [self.learned[i].pixels for i in left], [self.learned[i].label for i in left]
        try:
            issues = label_issues(self.classifier, X, y)
        except InspectionError:  # one class is left, of which no label can be doubted
            self.doubts = {}
        else:
            self.doubts = {left[row]: str(issues.suggested[row]) for row in issues.indices}
        gone = list(self.forgotten)
        self.forgotten = dict(zip(gone, self._read([self.learned[i] for i in gone]), strict=True))
        readings = self._read(self.held_out)
        n_mistakes = sum(p.label != seen for p, seen in zip(self.held_out, readings, strict=True))
        self.steps.append(Step(len(gone), readings, n_mistakes))

    def forget(self) -> None:
        """Forget the picked pictures; raise ValueError if there are none, or none would be left."""
        if not self.picked:
            raise ValueError("Expected pictures to forget, got none. Tick some first.")
        rows = sorted(self.picked)
        self.classifier.unlearn(sample_ids=rows)
        self.forgotten |= dict.fromkeys(rows, "")
        self.picked = set()
        self.measure()

    def turn(self, place: Any) -> None:
        """Pick a picture that is learned, or leave it be if it was picked."""
        if place in range(len(self.learned)) and place not in self.forgotten:
            self.picked ^= {int(place)}

    def to_pick(self, view: str) -> list[int]:
        """Return the pictures of a view that can be picked, and are not."""
        if view not in ("doubtful", "learned"):
            return []
        return [i for i in self.places(view) if i not in self.picked]

    def places(self, view: str) -> list[int]:
        """Return the pictures of one of `VIEWS`: places in `held_out` for "changed"."""
        if view == "doubtful":
            return list(self.doubts)
        if view == "learned":
            return [i for i in range(len(self.learned)) if i not in self.forgotten]
        if view == "forgotten":
            return list(reversed(self.forgotten))
        if len(self.steps) < 2:
            return []
        before, now = self.steps[-2].readings, self.steps[-1].readings
        return [i for i in range(len(now)) if before[i] != now[i]]

    def exactness(self) -> str:
        """Return in words how exact the last deletion was."""
        clf = self.classifier
        return clf._adapter.exactness_text(clf.receipts_[-1]["exactness"])

    def receipts(self) -> str:
        """Return the receipts as JSON, to be read."""
        return json.dumps(self.classifier.receipts_, indent=1)

    def downloads(self) -> dict[str, bytes]:
        """Return the exported receipts and the public adapter, as files by their names."""
        with tempfile.TemporaryDirectory() as folder:
            receipts, adapter = Path(folder) / "receipts.jsonl", Path(folder) / "adapter"
            self.classifier.export_receipts(receipts)
            self.classifier.save_pretrained(adapter)
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(adapter.iterdir()):
                    archive.write(file, file.name)
            return {"receipts.jsonl": receipts.read_bytes(), "adapter.zip": packed.getvalue()}

    def _read(self, pictures: Sequence[Picture]) -> list[str]:
        if not pictures:
            return []
        return self.classifier.predict([picture.pixels for picture in pictures]).tolist()


def learn_example(**parameters: Any) -> Session:
    """Learn handwritten digits, some labels of them wrong, and forget the most doubtful ones.

    Parameters are those of `FastNTKClassifier`.
    """
    X, y = load_digits(return_X_y=True)
    pixels = (X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    digits = [Picture(each, str(label)) for each, label in zip(pixels, y, strict=True)]
    learned, held_out = digits[:N_LEARNED], digits[N_LEARNED:][:N_HELD_OUT]
    mistakable = [i for i, picture in enumerate(learned) if picture.label in _TAKEN_FOR]
    for i in np.random.default_rng(0).choice(mistakable, N_WRONG, replace=False):
        truth = learned[i].label
        learned[i] = Picture(learned[i].pixels, _TAKEN_FOR[truth], truth)
    session = _learn("Handwritten digits", learned, held_out, {"image_size": 32} | parameters)
    session.picked = set(list(session.doubts)[:N_FORGOTTEN])
    session.forget()
    return session


def learn_folder(folder: str, **parameters: Any) -> Session:
    """Learn a folder of class folders, but one picture in five of each class, which is held out.

    Parameters are those of `FastNTKClassifier`. Raise ValueError if there is no such folder.
    """
    source = Path(folder.strip()).expanduser()
    if not folder.strip() or not source.is_dir():
        raise ValueError(
            f"Expected a folder of this machine, got {folder.strip()!r}. Name one that has a subfolder "
            "of pictures for each class."
        )
    found, labels = read_labelled(source)
    if len(labels) > _MOST:
        raise ValueError(
            f"Expected at most {_MOST:,} pictures, got {len(labels):,}. This page is for small folders: "
            "learn larger ones with `fastntk fit`."
        )
    if len(set(labels)) < 2:
        raise ValueError(
            f"Expected two classes at least, got one, {labels[0]!r}. Sort the pictures into a subfolder "
            "for each class."
        )
    parts: tuple[list[Picture], list[Picture]] = [], []
    seen = Counter[str]()
    for i in np.random.default_rng(0).permutation(len(labels)):
        seen[labels[i]] += 1
        is_held_out = seen[labels[i]] % _HELD_OUT == 0
        parts[is_held_out].append(Picture(_small(drawable(found.paths[i])), labels[i]))
    return _learn(str(source), *parts, {"image_size": 96} | parameters)


def _learn(
    name: str, learned: list[Picture], held_out: list[Picture], parameters: dict[str, Any]
) -> Session:
    settings: dict[str, Any] = {
        "backbone": "tf_efficientnet_lite0",
        "n_components": 256,
        "keep": "features",
        "random_state": 0,
    }
    clf = FastNTKClassifier(**settings | parameters).fit(
        [picture.pixels for picture in learned],
        [picture.label for picture in learned],
        sample_ids=range(len(learned)),
    )
    session = Session(name, learned, held_out, clf)
    session.measure()
    return session


def _small(picture: np.ndarray) -> np.ndarray:
    """Return a picture in 8 bits, no larger than a page shows it."""
    in_bytes = picture if picture.dtype == np.uint8 else (255 * picture).round().astype(np.uint8)
    image = Image.fromarray(in_bytes)
    image.thumbnail((_SIDE, _SIDE))
    return np.asarray(image)
