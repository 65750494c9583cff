"""Data, timing and result tables shared by the benchmark scripts."""

from __future__ import annotations

import contextlib
import copy
import csv
import gzip
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from fastntk_sk.tangents.model import LinearizedModel

HERE = Path(__file__).parent
PAGES = HERE / "README.md", HERE.parents[1] / "README.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fastntk_sk"
DEBIAN = Path("usr/share/datasets/fashion-mnist")
TABLE = re.compile(r"^\| .*\n\| ---.*(?:\n\|.*)+", re.MULTILINE)
SHOWN = 12  # lines of a table; a page folds longer ones


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True).stdout.strip()


# read at the start: the code that is measured; a result that was written before does not change it
COMMIT = _git("describe", "--always") + (
    "-dirty" if _git("status", "--porcelain", "-uno", "--", ":/*.py", ":/*.toml", ":/setup.cfg") else ""
)


def fashion_mnist() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return X_train, y_train, X_test, y_test: uint8 images of shape (n, 28, 28)."""
    cached = CACHE / DEBIAN.name
    for folder in ("/" / DEBIAN, cached):
        if folder.is_dir():
            return _read(folder)
    if shutil.which("apt-get") and shutil.which("dpkg"):
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            folder = Path(name)
            subprocess.run(
                ["apt-get", "-q", "download", "dataset-fashion-mnist"], cwd=folder, check=True
            )
            package = next(folder.glob("*.deb"))
            subprocess.run(["dpkg", "-x", str(package), name], check=True)
            with contextlib.suppress(OSError):  # another process was first
                (folder / DEBIAN).rename(cached)
        return _read(cached)
    from sklearn.datasets import fetch_openml

    X, y = fetch_openml("Fashion-MNIST", version=1, return_X_y=True, as_frame=False)
    X, y = X.astype(np.uint8).reshape(-1, 28, 28), y.astype(np.int64)
    return X[:60000], y[:60000], X[60000:], y[60000:]


def emoji() -> tuple[np.ndarray, np.ndarray]:
    """Return X, y: uint8 pictures of shape (n, 64, 64, 3) of emoji on white, and their category.

    Twemoji (artwork CC-BY 4.0) as the npm package emoji-datasource-twitter has them, without flags,
    components and skin variations, which are nearly the same picture.
    """
    archive = CACHE / "emoji-datasource-twitter-16.0.0.tgz"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "emoji-datasource-twitter@16.0.0"], cwd=CACHE, check=True)
    with tarfile.open(archive) as packed:
        member = lambda name: packed.extractfile(f"package/{name}")  # noqa: E731
        listed = [
            (each["image"], each["category"])
            for each in json.load(member("emoji.json"))
            if each["has_img_twitter"] and each["category"] not in ("Flags", "Component")
        ]
        pictures = []
        for name, _ in listed:
            picture = Image.open(member(f"img/twitter/64/{name}")).convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            pictures.append(np.asarray(Image.alpha_composite(white, picture).convert("RGB")))
    categories = sorted({category for _, category in listed})
    return np.stack(pictures), np.array([categories.index(category) for _, category in listed])


def training_images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return X, y of some training images, in an order that a seed decides."""
    X, y, _, _ = fashion_mnist()
    rows = np.random.default_rng(seed).permutation(len(X))[:n]
    return X[rows], y[rows]


def linearized(
    source: str, *, trainable: str, pixels: int, n_components: int, **changes: Any
) -> LinearizedModel:
    """Return the model of `linearize`; what is not given is as the estimator's defaults have it."""
    from fastntk_sk.settings import Settings
    from fastntk_sk.tangents.linearize import linearize

    settings: dict[str, Any] = {
        "seed": 0,
        "n_classes": 10,
        "n_features": None,
        "backbone": source,
        "trainable": (trainable,),
        "anchor": "pretrained",
        "kernel": "full",
        "n_directions": 3,
        "n_components": n_components,
        "n_prompts": 10,
        "lora_rank": 4,
        "image_size": (pixels, pixels),
        "pretrained": True,
        "batch_size": 32,
        "precision": "float32",
        "device": "cpu",
        "alpha": None,
        "tangent_scale": 1.0,
        "target_scale": 1.0,
        "predict_with": "linear",
        "backbone_has_seen": False,
        "keep": None,
        "augment": None,
        "head": None,
        "searched_by": (),
        "temperature": None,
    }
    return linearize(source, Settings(**settings | changes))


def with_alpha(clf: Any, alpha: float | None) -> Any:
    """Return a fitted classifier whose next solve takes another alpha; its sums do not depend on it."""
    private = clf._private
    private = replace(private, state=private.state.with_settings(alpha=alpha))
    return copy.copy(clf)._commit(private.adapter(clf.classes_), private)


def resident(field: str) -> int:
    """Return the resident bytes of this process: VmRSS now, VmHWM at their peak."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def _read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    def array(name: str) -> np.ndarray:
        raw = gzip.decompress((folder / name).read_bytes())
        shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)

    files = [
        f"{part}-{kind}-ubyte.gz"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    X_train, y_train, X_test, y_test = map(array, files)
    return X_train, y_train.astype(np.int64), X_test, y_test.astype(np.int64)


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return median seconds of each call, measured in turns so that noise hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_new_process(module: str, function: str, **arguments: object) -> tuple[dict, int]:
    """Return what a function of a script returns, and the peak resident bytes of its process."""
    code = (
        f"import json, resource, {module}; found = {module}.{function}(**{arguments!r});"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024;"
        "print(json.dumps([found, peak]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=HERE, check=True, stdout=subprocess.PIPE
    )
    found, peak = json.loads(done.stdout.splitlines()[-1])
    return found, peak


def table(header: list[str], rows: list[list[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def stamp(script: str) -> str:
    """Return what measured a result, when, and with which versions and commit."""
    import torch

    packages = ("fastntk_sk", "torch", "timm", "scikit-learn", "skorch", "numpy")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    command = " ".join(["python", f"examples/{script}", *sys.argv[1:]])
    return (
        f"_`{command}`, {time.strftime('%Y-%m-%d')}, commit {COMMIT}, "
        f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} thread(s)._"
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error, which is NaN of one value."""
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(np.mean(values)), error


def with_error(values: Sequence[float], digits: int) -> str:
    """Return mean and standard error as text; the mean alone of one value."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" + ("" if np.isnan(error) else f" ± {error:.{digits}f}")


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of a section in a page."""
    found = re.compile(rf"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
    section = f"<!-- {name} -->\n{text}\n<!-- /{name} -->"
    page.write_text(found.sub(lambda _: section, page.read_text()))


def publish(name: str, text: str) -> None:
    """Print a result and put it into its places in the pages, with versions and commit.

    Each of its tables becomes a CSV file too: NAME.csv, NAME-2.csv and so on.
    """
    print(text)
    sheets = []
    for number, found in enumerate(TABLE.findall(text), 1):
        sheets.append(HERE / f"{name}{'' if number == 1 else f'-{number}'}.csv")
        write_sheet(sheets[-1], found, COMMIT)
    for page in PAGES:
        links = [f"[{sheet.name}]({os.path.relpath(sheet, page.parent)})" for sheet in sheets]
        files = f"As a file: {', '.join(links)}. " if links else ""
        put(page, name, f"{folded(text)}\n\n{files}{stamp(f'benchmarks/{name}.py')}")


def folded(text: str) -> str:
    """Return a text in which a page hides tables of more than `SHOWN` lines until it is asked."""

    def fold(found: re.Match[str]) -> str:
        n = found[0].count("\n") - 1
        if n <= SHOWN:
            return found[0]
        return f"<details><summary>All {n} lines</summary>\n\n{found[0]}\n\n</details>"

    return TABLE.sub(fold, text)


def write_sheet(path: Path, found: str, commit: str) -> None:
    """Write a Markdown table as CSV; mean and standard error get a column each."""
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in found.splitlines()
    ]
    lines = [[re.sub(r"(?<=\d),(?=\d{3})", "", cell) for cell in line] for line in lines]
    columns = []
    for title, *cells in zip(head, *lines, strict=True):
        pairs = [cell.partition(" ± ") for cell in cells]
        columns.append([title, *(mean for mean, _, _ in pairs)])
        if any(sign for _, sign, _ in pairs):
            columns.append([f"{title}, standard error", *(error for _, _, error in pairs)])
    columns.append(["commit", *[commit] * len(lines)])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(zip(*columns, strict=True))


@contextlib.contextmanager
def picture(path: Path, rows: int, columns: int, **arguments: Any) -> Iterator[np.ndarray]:
    """Yield the axes of a figure, and write it as SVG that is read on white and on black pages."""
    import matplotlib.pyplot as plt

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style = {
        **dict.fromkeys(ink, "#808080"),
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "savefig.transparent": True,
        "svg.fonttype": "none",
        "svg.hashsalt": path.stem,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(rows, columns, layout="constrained", squeeze=False, **arguments)
        yield axes
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
