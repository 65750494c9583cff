"""The state of the app: what it learns, forgets and shows, without widgets."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.folders import read_labelled
from fastntk_sk.backbones.inputs import drawable
from fastntk_sk.escaping import visible

N_DIGITS, N_WRONG, SHOWN = 120, 8, 24
_RECEIPT = ("time", "n_rows", "n_samples_learned", "exactness", "residual", "seconds")


@dataclass
class Session:
    """One person's fitted model and pictures.

    `notes` maps pictures that were learned under a wrong label to the true one. `before` and `now` are
    the class probabilities of all pictures, of shape (n, n_classes), before the last deletion and now.
    """

    pictures: list[np.ndarray]
    labels: list[str]
    notes: dict[int, str]
    classifier: FastNTKClassifier
    before: np.ndarray
    now: np.ndarray
    forgotten: set[int] = field(default_factory=set)

    def forget(self, chosen: set[int]) -> None:
        """Forget pictures; raise ValueError if nothing new was chosen or nothing would be left."""
        rows = sorted(chosen - self.forgotten)
        if not rows:
            raise ValueError("Expected pictures that are not forgotten yet, got none. Pick some first.")
        self.classifier.unlearn([self.pictures[i] for i in rows])
        self.forgotten |= set(rows)
        self.before, self.now = self.now, self.classifier.predict_proba(self.pictures)

    def gallery(self, chosen: set[int]) -> list[dict[str, Any]]:
        """Return pictures, each with its given label and its predicted class, as a page takes them.

        A picture stands in the page itself, and in no file.
        """
        names = self.classifier.classes_.astype(str)
        shown = []
        for i, picture in enumerate(self.pictures[:SHOWN]):
            mark = "✓ " if i in chosen else "✗ " if i in self.forgotten else ""
            given = self.labels[i] + (f" (truly {self.notes[i]})" if i in self.notes else "")
            guess, earlier = self.now[i].argmax(), self.before[i].argmax()
            seen = f"{names[guess]} {self.now[i, guess]:.0%}"
            if earlier != guess or abs(self.before[i, guess] - self.now[i, guess]) >= 0.01:
                seen += f", was {names[earlier]} {self.before[i, earlier]:.0%}"
            in_bytes = picture if picture.dtype == np.uint8 else (255 * picture).astype(np.uint8)
            large = Image.fromarray(in_bytes).resize((96, 96), Image.Resampling.NEAREST)
            url = f"data:image/png;base64,{_png(large)}"
            image = {"path": None, "url": url, "meta": {"_type": "gradio.FileData"}}
            shown.append({"image": image, "caption": visible(f"{mark}{given}: {seen}")})
        return shown

    def receipts(self) -> str:
        """Return the receipts as JSON."""
        rows = [{name: receipt[name] for name in _RECEIPT} for receipt in self.classifier.receipts_]
        return json.dumps(rows, indent=1)

    def summary(self) -> str:
        """Return one line about the model."""
        clf = self.classifier
        return f"{clf.n_samples_learned_} pictures learned, {clf.n_samples_forgotten_} forgotten."


def _png(image: Image.Image) -> str:
    written = io.BytesIO()
    image.save(written, format="png")
    return base64.b64encode(written.getvalue()).decode()


def learn(folder: str = "", **parameters: Any) -> Session:
    """Fit a classifier, with parameters of `FastNTKClassifier`, on a folder of class folders.

    An empty name takes handwritten digits, the first of them under wrong labels.
    """
    notes: dict[int, str] = {}
    folder = folder.strip()
    if folder:
        found, classes = read_labelled(Path(folder).expanduser())
        draws = np.random.default_rng(0).permutation(len(classes))
        pictures = [drawable(found.paths[i]) for i in draws]
        labels = [classes[i] for i in draws]
    else:
        X, y = load_digits(return_X_y=True)
        pictures = [(row.reshape(8, 8) * 255 / 16).astype(np.uint8) for row in X[:N_DIGITS]]
        labels = [str(digit) for digit in y[:N_DIGITS]]
        for i in range(N_WRONG):
            notes[i], labels[i] = labels[i], str((y[i] + 3) % 10)
    settings: dict[str, Any] = {
        "backbone": "tf_efficientnet_lite0",
        "image_size": 96 if folder else 32,
        "n_components": 256,
        "trainable": "ladder",
        "alpha": "auto",
        "random_state": 0,
    }
    clf = FastNTKClassifier(**settings | parameters).fit(pictures, labels)
    scores = clf.predict_proba(pictures)
    return Session(pictures, labels, notes, clf, scores, scores)
