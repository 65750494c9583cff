"""What it takes to save, to load and to save a deletion, by rows of the ledger, plain and encrypted.

The sums are those of a few hundred rows with wide features; the other rows of the ledger are drawn, with
ids, since what they cost does not depend on what they are. `--before` names a checkout of a commit that
still wrote folders (git worktree add FOLDER cdfa757), which is then measured too.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _common import HERE, publish, table

from fastntk_sk import FastNTKClassifier

CLASSES, REAL, FORGOTTEN = 10, 400, 100


def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Return rows that are really learned, and their labels."""
    y = np.arange(REAL) % CLASSES
    draws = np.random.default_rng(0).normal(size=(REAL, 64))
    return (draws + np.eye(CLASSES, 64)[y]).astype(np.float32), y


def wide(width: int) -> torch.nn.Module:
    """Return a random network with so many features."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.Tanh())


def learned(n: int, width: int) -> FastNTKClassifier:
    """Return an estimator whose ledger holds n rows."""
    X, y = vectors()
    clf = FastNTKClassifier(wide(width), trainable="head", alpha=0.1, random_state=0)
    clf.fit(X, y, sample_ids=range(REAL))
    private, more = clf._private, n - REAL
    labels = (np.arange(more) % CLASSES).tolist()
    digests = [secrets.token_bytes(32) for _ in labels]
    ledger = private.ledger.added(digests, labels, [1.0] * more, range(REAL, n))
    class_rows = private.state.class_rows + np.bincount(labels, minlength=CLASSES)
    private = replace(private, state=replace(private.state, class_rows=class_rows), ledger=ledger)
    return clf._commit(private.adapter(clf.classes_), private)


def n_bytes(path: Path) -> int:
    """Return the size of a file, or of the files of a folder."""
    return sum(file.stat().st_size for file in ([*path.iterdir()] if path.is_dir() else [path]))


def measure(n: int, width: int, encrypted: bool, as_folder: bool, repeats: int) -> dict[str, float]:
    """Return median seconds of a first save, a load and a save after a deletion, and the bytes."""
    key = None
    if encrypted:
        key = secrets.token_bytes(32)
        key = base64.urlsafe_b64encode(key) if as_folder else key
    X, _ = vectors()
    clf, seconds = learned(n, width), {"save": [], "load": [], "deletion": []}

    def timed(name, call):
        begun = time.perf_counter()
        found = call()
        seconds[name].append(time.perf_counter() - begun)
        return found

    with tempfile.TemporaryDirectory() as folder:
        for i in range(repeats):
            path = Path(folder) / str(i)
            timed("save", lambda path=path: clf.save(path, key=key))
            size = n_bytes(path)
            again = timed(
                "load", lambda path=path: FastNTKClassifier.load(path, backbone=wide(width), key=key)
            )
            again.unlearn(X[:FORGOTTEN])
            timed("deletion", lambda path=path, again=again: again.save(path, key=key))
            after = n_bytes(path)
    sums = 8 * (again.readout_.shape[1] * (again.readout_.shape[1] + 1) // 2)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    return found | {"bytes": size, "bytes after": after, "sums": sums}


def measured(before: str | None, **arguments: object) -> dict[str, float]:
    """Return what `measure` returns in a fresh process, by the library of another checkout if asked."""
    code = f"import json, private_file as p; print(json.dumps(p.measure(**{arguments!r})))"
    env = os.environ | ({"PYTHONPATH": before} if before else {})
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 50_000, 1_000_000])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", help="checkout of a commit that wrote folders")
    args = parser.parse_args()
    lines = []
    for n in args.rows:
        for encrypted in (False, True):
            for before in [args.before, None] if args.before else [None]:
                found = measured(
                    before,
                    n=n,
                    width=args.width,
                    encrypted=encrypted,
                    as_folder=bool(before),
                    repeats=args.repeats,
                )
                kind = f"{'encrypted' if encrypted else 'plain'} {'folder' if before else 'file'}"
                seconds = [f"{found[name]:.2f}" for name in ("save", "load", "deletion")]
                sizes = [f"{found[name] / 1e6:.1f}" for name in ("bytes", "bytes after")]
                lines.append([f"{n:,}", kind, *seconds, *sizes])
                print(lines[-1], flush=True)
    header = ["rows", "what", "first save, s", "load, s", f"save after forgetting {FORGOTTEN}, s"]
    text = table([*header, "MB", "MB after it"], lines)
    text += "\n\n"
    if args.before:
        text += (
            "Folders are faster to save where the ledger is long: a file holds a row with a checksum of "
            "its own for each learned row. "
        )
    text += (
        f"Sums of width {args.width:,} ({found['sums'] / 1e6:.0f} MB packed), {CLASSES} classes, "
        f"an id for each; medians of {args.repeats}, each on disk when the call returns. "
        "To unlearn comes before it, and does not depend on the file."
    )
    if args.before:
        text += " Folders are those of the commit cdfa757."
    publish("private_file", text)


if __name__ == "__main__":
    main()
