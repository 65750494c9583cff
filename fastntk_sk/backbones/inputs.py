"""From what users pass as X to the tensors that enter a backbone."""

from __future__ import annotations

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
from torch.utils.data import DataLoader

from ..settings import Side

MAX_SIDE = 4096
Colours = Annotated[
    tuple[Annotated[float, Meta(gt=-1e6, lt=1e6)], ...], Meta(min_length=1, max_length=4)
]
_READ_AHEAD = 32  # rows that a worker returns at once
_HELD = (list, tuple, np.ndarray, dict)  # kept in memory; other sequences are read lazily
_SHAPES = (
    "Expected images as an array of shape (n, H, W) or (n, H, W, 3), uint8 or float in [0, 1], or "
    "a list of PIL images or of file paths"
)


@dataclass(frozen=True)
class InputSpec:
    """What a backbone takes as input.

    Pictures are resized as a whole, without cropping, to `size` (height, width), and values in [0, 1]
    are normalised by `mean` and `std`. Colours become grey for one channel (ITU-R 601-2
    luma), and grey is repeated for three. `size=None` stands for vectors. Constraints are those of a
    saved file; nothing checks them when an instance is made.
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
        if self.channels == 1 and item.ndim == 3:
            item = _luma(item)
        planes = [item] if item.ndim == 2 else [item[..., c] for c in range(item.shape[-1])]
        resized = np.stack([self._resize(plane) for plane in planes])
        return np.repeat(resized, self.channels, axis=0) if len(resized) == 1 else resized

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


def _luma(colours: np.ndarray) -> np.ndarray:
    """Return grey values (H, W) of (H, W, 3): ITU-R 601-2 luma, in Pillow's integers for 8 bits."""
    if colours.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))
    return colours @ np.array([0.299, 0.587, 0.114], colours.dtype)


def _decoded(item: Any) -> np.ndarray:
    """Return the pixels of a picture or a file; arrays are returned as they are."""
    if isinstance(item, (str, os.PathLike)):
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

    X is 2-D, float32, or what `check_images` returns. `n_workers` processes read and decode ahead.
    """

    def __init__(self, X: Any, spec: InputSpec, n_workers: int = 0) -> None:
        self.items, self.spec, self.n_workers = X, spec, n_workers

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
        item = _picture(item, i)
        if isinstance(item, np.ndarray):
            item = _check_pixels(item, f"image {i}")
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
        loader: DataLoader[np.ndarray] = DataLoader(
            self,  # type: ignore[arg-type]
            sampler=indices,
            batch_size=_READ_AHEAD,
            num_workers=self.n_workers,
            collate_fn=list,
            generator=torch.Generator(),  # leaves the global generator alone
        )
        return (row for rows in loader for row in rows)


def content(row: np.ndarray) -> bytes:
    """Return the bytes that identify a row: type, shape and values of what enters the backbone."""
    return f"{row.dtype.str}{row.shape}".encode() + row.tobytes()


def check_images(X: Any) -> Any:
    """Check a collection of images, and return it indexable by row.

    Of arrays, datasets and other sequences only the first item is looked at, and of lists that files
    are there: `Rows` checks every item when it is read.
    """
    if hasattr(X, "iloc"):
        if getattr(X, "ndim", 1) == 2 and X.shape[1] == 1:
            X = X.iloc[:, 0]
        X = X.to_numpy()
    if isinstance(X, (str, bytes, os.PathLike, Image.Image)):
        raise ValueError(f"{_SHAPES}; got a single {type(X).__name__}. Pass a list of one.")
    array = isinstance(X, np.ndarray) and X.dtype.kind not in "OUS"
    on_demand = hasattr(X, "__getitem__") and hasattr(X, "__len__") and not isinstance(X, _HELD)
    items = X if array or on_demand else list(X)
    if not len(items):
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
    if array and X.ndim not in (3, 4):
        raise ValueError(
            f"{_SHAPES}; got an array of shape {X.shape}. Reshape flattened pictures first, "
            'for example X.reshape(-1, 28, 28), or use backbone="mlp" for plain vectors.'
        )
    first = _picture(items[0], 0)
    if isinstance(first, np.ndarray):
        _check_pixels(first, "image 0")
    for i, item in enumerate(items if isinstance(items, list) else ()):
        picture = _picture(item, i)
        if isinstance(picture, (str, os.PathLike)) and not os.path.isfile(picture):
            raise FileNotFoundError(f"Row {i}: no file at {str(picture)!r}.")
    return items


def _picture(item: Any, row: int) -> Any:
    """Return the picture of an item, which may be a pair (picture, label) or a dict of columns."""
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, dict):
        found = [
            value for value in item.values() if isinstance(value, (Image.Image, np.ndarray, Tensor))
        ]
        if len(found) != 1:
            raise ValueError(
                f"Expected one picture in row {row}, got {len(found)} in the columns {sorted(item)}. "
                "Pass that column alone, such as dataset['image'] or dataset.select_columns(['image'])."
            )
        item = found[0]
    if isinstance(item, Tensor):  # channels first, as in torchvision
        item = item.movedim(0, -1).numpy() if item.ndim == 3 else item.numpy()
    if not isinstance(item, (str, os.PathLike, Image.Image, np.ndarray)):
        raise ValueError(f"{_SHAPES}; got {type(item).__name__} in row {row}.")
    return item


def drawable(item: Any) -> np.ndarray:
    """Return an item of X as an array to draw: the pixels of a picture, or a vector."""
    return _decoded(_picture(item, 0))


def _check_pixels(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array of shape (H, W) or (H, W, 3), uint8 or floats in [0, 1]."""
    shape = array.shape
    if len(shape) == 3 and shape[-1] == 1:
        return _check_pixels(array[..., 0], name)
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[-1] != 3):
        hint = ""
        if len(shape) == 3 and shape[0] in (1, 3):
            hint = " Channels come last: use numpy.moveaxis(X, -3, -1)."
        elif len(shape) == 3 and shape[-1] == 4:
            hint = " Drop the alpha channel: X[..., :3]."
        raise ValueError(f"{_SHAPES}; got {name} of shape {shape}.{hint}")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ValueError(
            f"{_SHAPES}; got {name} of dtype {array.dtype}. Convert values in 0..255 by "
            "X.astype('uint8')."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"Input {name} contains NaN or infinity. Remove or repair these images.")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"{_SHAPES}; got {name} with floats between {low:g} and {high:g}. Scale them to [0, 1] "
            "(the backbone's own normalisation is applied afterwards)."
        )
    return array
