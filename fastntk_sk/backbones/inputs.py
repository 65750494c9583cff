"""From what users pass as X to the tensors that enter a backbone."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from PIL import Image
from torch import Tensor

from ..settings import Side
from .kinds import check_pixels, picture
from .workers import ReadAhead, usable_workers

MAX_SIDE = 4096
Colours = Annotated[
    tuple[Annotated[float, Meta(gt=-1e6, lt=1e6)], ...], Meta(min_length=1, max_length=4)
]
_READ_AHEAD = 32  # rows that a worker returns at once
_READS = 4  # of a row, to notice that it changes


@dataclass(frozen=True)
class InputSpec:
    """What a backbone takes as input.

    Pictures are resized as a whole, without cropping, to `size` (height, width), and values in [0, 1]
    are normalised by `mean` and `std`. `size=None` stands for vectors. Constraints are those of a saved
    file; nothing checks them when an instance is made.
    """

    size: tuple[Side, Side] | None = None
    channels: Annotated[int, Meta(ge=1, le=3)] = 3
    mean: Colours = (0.5, 0.5, 0.5)
    std: Colours = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"

    def pixels(self, item: Any) -> np.ndarray:
        """Decode and resize one image to (channels, height, width), uint8 or float32.

        The ledger digests the result: 8-bit pictures are resized in integers, so that they are the same
        on every machine.
        """
        assert self.size is not None
        item = _decoded(item)
        planes = [item] if item.ndim == 2 else [item[..., c] for c in range(item.shape[-1])]
        resized = np.stack([self._resize(plane) for plane in planes])
        if len(resized) == self.channels:
            return resized
        if len(resized) == 1:
            return np.repeat(resized, self.channels, axis=0)
        raise ValueError(
            f"Expected images with {self.channels} channel(s), got {len(resized)}. Convert them to grey "
            "pictures first."
        )

    def _resize(self, plane: np.ndarray) -> np.ndarray:
        if plane.dtype != np.uint8:
            plane = plane.astype(np.float32)
        if plane.shape == self.size:
            return plane
        height, width = self.size  # type: ignore[misc]
        image = Image.fromarray(np.ascontiguousarray(plane))
        method = Image.Resampling[self.interpolation.upper()]
        resized = np.asarray(image.resize((width, height), method))
        # Pillow clips the overshoot of bicubic resizing in 8 bits, so that floats are clipped too
        return resized if resized.dtype == np.uint8 else resized.clip(0, 1)

    def normalise(self, rows: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        """Return the batch (n, channels, height, width), channels last in memory, or (n, f)."""
        if self.size is None:
            return torch.from_numpy(np.stack(rows)).to(dtype)
        scale = [255.0 if row.dtype == np.uint8 else 1.0 for row in rows]
        batch = torch.from_numpy(np.stack([row.astype(np.float32) for row in rows])).to(dtype)
        batch /= torch.tensor(scale, dtype=dtype).view(-1, 1, 1, 1)
        mean = torch.tensor(self.mean, dtype=dtype).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=dtype).view(1, -1, 1, 1)
        return ((batch - mean) / std).contiguous(memory_format=torch.channels_last)


def _decoded(item: Any) -> np.ndarray:
    """Return the pixels of a picture or a file; arrays are returned as they are."""
    if isinstance(item, (str, os.PathLike, io.BytesIO)):
        with Image.open(item) as opened:
            return _decoded(opened)
    if not isinstance(item, Image.Image):
        return item
    if item.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise ValueError(
            f"expected a picture of 8 bits a channel, got mode {item.mode!r}. Scale it to floats in "
            "[0, 1] and pass an array."
        )
    return np.asarray(item.convert("L" if item.mode in ("1", "L") else "RGB"))


class Rows:
    """Rows of X, decoded one at a time, so that X may be larger than memory.

    X is 2-D, float32, or what `check_images` returns. `n_workers` processes read and decode ahead, where
    they can be started.
    """

    def __init__(self, X: Any, spec: InputSpec, n_workers: int = 0) -> None:
        self.items, self.spec = X, spec
        self.n_workers = usable_workers(n_workers, self)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> np.ndarray:
        """Return the content of row i: vectors as float32, images as resized pixels.

        Float32 hides that `fit_transform` and `transform` of a previous step differ in the last bits of
        float64.
        """
        item = self.items[i]
        if self.spec.size is None:
            return np.ascontiguousarray(item, dtype=np.float32) + np.float32(0)  # no negative zero
        item = picture(item, i)
        if isinstance(item, np.ndarray):
            item = check_pixels(item, f"image {i}")
        try:
            return self.spec.pixels(item)
        except (OSError, ValueError) as error:
            file = f"{os.fspath(item)}: " if isinstance(item, (str, os.PathLike)) else ""
            raise ValueError(f"Image {i} cannot be read: {file}{error}") from error

    def __getstate__(self) -> dict[str, Any]:
        """Pickle a memory map as the name of its file, but not a view of one."""
        X = self.items
        if not isinstance(X, np.memmap) or not isinstance(X.base, mmap.mmap) or X.mode == "c":
            return self.__dict__
        order = "C" if X.flags.c_contiguous else "F"
        mapped = partial(np.memmap, X.filename, X.dtype, "r", X.offset, X.shape, order)
        return self.__dict__ | {"items": mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.items, partial):
            self.items = self.items()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.read(range(len(self)))

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Return an iterator over the contents of some rows."""
        if not self.n_workers:
            return (self[i] for i in indices)
        loader = ReadAhead(
            self,
            sampler=indices,
            batch_size=_READ_AHEAD,
            num_workers=self.n_workers,
            collate_fn=list,
            generator=torch.Generator(),  # leaves the global generator alone
        )
        return (row for rows in loader for row in rows)

    def check_repeatable(self) -> None:
        """Raise ValueError where a row that is made on demand is another picture each time.

        Three rows are read four times each: a random mirror image escapes once in 512 times.
        """
        if isinstance(self.items, (np.ndarray, Tensor, list)):
            return
        for i in sorted({0, len(self) // 2, len(self) - 1}):
            if len({content(self[i]) for _ in range(_READS)}) > 1:
                raise ValueError(
                    f"Expected X[{i}] to be the same picture each time it is read, got others: what was "
                    "learned from a random transform can never be forgotten. Take the random transforms "
                    "out of the dataset; for mirror images, pass augment='flip'."
                )


def content(row: np.ndarray) -> bytes:
    """Return the bytes that identify a row: type, shape and values of what enters the backbone."""
    return f"{row.dtype.str}{row.shape}".encode() + row.tobytes()


def drawable(item: Any) -> np.ndarray:
    """Return an item of X as an array to draw: the pixels of a picture, or a vector."""
    return _decoded(picture(item, 0))
