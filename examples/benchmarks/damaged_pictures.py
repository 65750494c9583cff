"""What becomes of damaged pictures, and what it takes to decode transparent and turned ones.

Files of every format are damaged at random and decoded as `fit` and `predict` do, in a process of its
own with little memory, so that one that crashes or hangs is counted too.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from _common import publish, table
from PIL import Image

from fastntk_sk.backbones.decoding import decode
from fastntk_sk.exceptions import PictureError

LONGEST, MEMORY = 60, 4 << 30  # seconds for one file, and bytes for the process
ORIENTATION = 0x0112
OUTCOMES = "read", "refused", "raw exception", "crashed or hung"


def smooth(draws: np.random.Generator, side: int, channels: int = 3) -> np.ndarray:
    """Return a picture that compresses about as a photograph does."""
    coarse = draws.integers(0, 256, (side // 8, side // 8, channels), dtype=np.uint8)
    planes = [Image.fromarray(coarse[..., c]).resize((side, side)) for c in range(channels)]
    fine = draws.integers(-6, 7, (side, side, channels))
    return (np.stack(planes, axis=-1) + fine).clip(0, 255).astype(np.uint8)


def written(picture: Any, format: str, **options: Any) -> bytes:
    """Return the content of a file."""
    buffer = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def originals(draws: np.random.Generator) -> dict[str, list[bytes]]:
    """Return files of 15 kinds, several of each where a format has several codings."""
    rgba, other = (smooth(draws, 48, 4) for _ in range(2))
    rgb, grey = rgba[..., :3].copy(), rgba[..., 0].copy()
    deep = grey.astype(np.uint16) * 257
    palette = Image.fromarray(rgb).quantize(32)
    frames = {"save_all": True, "append_images": [Image.fromarray(other[..., :3].copy())]}
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010E], exif[0x011A] = 6, "a description", 72.0
    turned = {"exif": exif}
    return {
        "APNG": [written(rgb, "PNG", **frames)],
        "AVIF": [written(rgb, "AVIF"), written(rgba, "AVIF", **turned)],
        "BMP": [written(rgb, "BMP"), written(palette, "BMP")],
        "DIB": [written(rgb, "DIB")],
        "GIF": [written(palette, "GIF", transparency=3), written(rgb, "GIF", **frames)],
        "ICO": [written(rgba, "ICO"), written(rgba, "ICO", bitmap_format="bmp")],
        "JPEG": [written(rgb, "JPEG", **turned), written(grey, "JPEG", progressive=True)],
        "JPEG 2000": [written(rgb, "JPEG2000"), written(rgba, "JPEG2000", irreversible=True)],
        "MPO": [written(rgb, "MPO", **frames)],
        "PNG": [
            written(rgba, "PNG", **turned),
            written(palette, "PNG", transparency=3),
            written(deep, "PNG", transparency=9),
        ],
        "PPM": [written(rgb, "PPM"), written(deep, "PPM"), b"P2 2 2 255\n1 2 3 4\n"],
        "QOI": [written(rgba, "QOI")],
        "TGA": [written(rgba, "TGA"), written(rgb, "TGA", compression="tga_rle")],
        "TIFF": [
            written(rgb, "TIFF", **turned),
            *(written(rgb, "TIFF", compression=how) for how in ("tiff_lzw", "jpeg", "tiff_deflate")),
            written(deep, "TIFF", **turned),
        ],
        "WEBP": [written(rgb, "WEBP", **turned), written(rgba, "WEBP", lossless=True)],
    }


def damaged(draws: np.random.Generator, content: bytes, others: list[bytes]) -> bytes:
    """Return a file with one to four faults."""
    found = bytearray(content)
    for _ in range(draws.integers(1, 5)):
        # half of the faults hit the first bytes, where headers are
        at = int(draws.integers(0, len(found) if draws.random() < 0.5 else min(len(found), 64)))
        n, other = int(draws.integers(1, 64)), others[draws.integers(len(others))]
        kind = draws.integers(7)
        if kind == 0:
            found[at] ^= 1 << int(draws.integers(8))
        elif kind == 1:
            del found[max(at, 1) :]
        elif kind == 2:
            found[at:at] = draws.bytes(n)
        elif kind == 3:
            found[:n] = other[:n]
        elif kind == 4:
            start = int(draws.integers(len(other)))
            found[at : at + n] = other[start : start + n]
        elif kind == 5:
            found[at : at + 4] = bytes(4) if draws.random() < 0.5 else b"\x7f\xff\xff\xff"
        else:
            found[at : at + n] = found[at : at + n] * 2
    return bytes(found)


def serve(connection: Connection, path: Path) -> None:
    """Decode what is sent, and send back what became of it and the seconds."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    while True:
        path.write_bytes(connection.recv_bytes())
        begun = time.perf_counter()
        try:
            pixels, _ = decode(path)
            outcome = OUTCOMES[0]
            if pixels.dtype not in (np.uint8, np.float32) or not pixels.size:
                outcome = OUTCOMES[2]
        except PictureError as error:
            outcome = OUTCOMES[1 if str(path) in str(error) else 2]
        except BaseException:
            outcome = OUTCOMES[2]
        connection.send((outcome, time.perf_counter() - begun))


class Decoder:
    """A process that decodes; it is started anew after a crash or a hang."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start()

    def start(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=serve, args=(theirs, self.path), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self, content: bytes) -> tuple[str, float]:
        """Return what became of a file, and the seconds."""
        self.connection.send_bytes(content)
        try:
            if self.connection.poll(LONGEST):
                return self.connection.recv()
        except EOFError:
            pass
        self.process.kill()
        self.process.join()
        self.start()
        return OUTCOMES[3], float(LONGEST)


def fuzzed(n: int, folder: Path) -> tuple[str, str]:
    """Return a table of what became of n damaged files, and a sentence about them."""
    draws = np.random.default_rng(0)
    files = originals(draws)
    everything = [content for contents in files.values() for content in contents]
    decoder, lines, begun = Decoder(folder / "picture"), [], time.perf_counter()
    total = Counter[str]()
    for name, contents in files.items():
        counts, seconds = Counter[str](), []
        for i in range(n // len(files) + (len(lines) < n % len(files))):
            outcome, took = decoder(damaged(draws, contents[i % len(contents)], everything))
            counts[outcome] += 1
            seconds.append(took)
        total += counts
        slowest = f"{max(seconds):.2f}"
        lines.append([name, f"{len(seconds):,}", *(f"{counts[o]:,}" for o in OUTCOMES), slowest])
        print(lines[-1], flush=True)
    lines.append(["all", f"{n:,}", *(f"{total[o]:,}" for o in OUTCOMES), ""])
    text = f"{time.perf_counter() - begun:.0f} seconds for all."
    return table(["format", "files", *OUTCOMES, "slowest, seconds"], lines), text


def kinds(draws: np.random.Generator) -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Return what is timed: a name, the kind that it is compared with, and what makes a file."""
    picture = smooth(draws, 256, 4)

    def opaque(channels: int) -> np.ndarray:
        return np.roll(picture[..., :channels], draws.integers(256, size=2), axis=(0, 1))

    def turned(format: str) -> bytes:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        return written(opaque(3), format, exif=exif)

    def keyed() -> bytes:
        return written(Image.fromarray(opaque(3)).quantize(64), "PNG", transparency=bytes(range(64)))

    def deep() -> bytes:
        return written(opaque(1)[..., 0].astype(np.uint16) * 257, "PNG")

    return {
        "PNG, RGB": ("PNG, RGB", lambda: written(opaque(3), "PNG")),
        "PNG, RGB, turned": ("PNG, RGB", lambda: turned("PNG")),
        "PNG, RGB with alpha": ("PNG, RGB", lambda: written(opaque(4), "PNG")),
        "PNG, palette with transparency": ("PNG, RGB", keyed),
        "PNG, grey": ("PNG, grey", lambda: written(opaque(1)[..., 0], "PNG")),
        "PNG, grey of 16 bits": ("PNG, grey", deep),
        "JPEG, RGB": ("JPEG, RGB", lambda: written(opaque(3), "JPEG")),
        "JPEG, RGB, turned": ("JPEG, RGB", lambda: turned("JPEG")),
    }


def timed(n: int, folder: Path) -> str:
    """Return a table of milliseconds a picture."""
    found: dict[str, float] = {}
    lines: list[list[object]] = []
    for name, (plain, make) in kinds(np.random.default_rng(1)).items():
        paths = [folder / f"{i}" for i in range(n)]
        for path in paths:
            path.write_bytes(make())
        begun = time.perf_counter()
        for path in paths:
            decode(path)
        found[name] = 1000 * (time.perf_counter() - begun) / n
        lines.append([name, f"{found[name]:.2f}", f"{found[name] / found[plain]:.2f}"])
    return table([f"{n:,} pictures of 256 x 256", "milliseconds a picture", "ratio to plain"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--pictures", type=int, default=1_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        faults, text = fuzzed(args.files, Path(name))
        costs = timed(args.pictures, Path(name))
    publish("damaged_pictures", f"{faults}\n\n{text}\n\n{costs}")


if __name__ == "__main__":
    main()
