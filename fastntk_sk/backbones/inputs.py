"""From what users pass as X to the tensors that enter a backbone."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from msgspec import Meta
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from ..exceptions import PictureError, warn
from ..settings import Side
from .decoding import decode

T = TypeVar("T")

MAX_SIDE = 4096
Colours = Annotated[
    tuple[Annotated[float, Meta(gt=-1e6, lt=1e6)], ...], Meta(min_length=1, max_length=4)
]
_READ_AHEAD = 32  # rows that a worker returns at once
_HELD = (list, tuple, np.ndarray, dict)  # kept in memory; other sequences are read lazily
_SHAPES = (
    "Expected images as an array of shape (n, H, W), (n, H, W, 3) or (n, H, W, 4), uint8 or float in "
    "[0, 1], or a list of PIL images or of file paths"
)


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

    def pixels(self, item: np.ndarray) -> np.ndarray:
        """Resize a decoded picture to (channels, height, width), uint8 or float32.

        The ledger digests the result: 8-bit pictures are resized in integers, so that they are the same
        on every machine.
        """
        assert self.size is not None
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


class Rows:
    """Rows of X, decoded one at a time, so that X may be larger than memory.

    X is 2-D, float32, or what `check_images` returns. `n_workers` processes read and decode ahead.
    `numbers` are those by which errors name the rows, where X is a part of what was passed in.
    """

    def __init__(
        self, X: Any, spec: InputSpec, n_workers: int = 0, numbers: np.ndarray | None = None
    ) -> None:
        self.items, self.spec, self.n_workers = X, spec, n_workers
        self.numbers = np.arange(len(X)) if numbers is None else numbers
        self._said_frames = False

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> np.ndarray:
        """Return the content of row i: vectors as float32, images as resized pixels.

        Float32 hides that `fit_transform` and `transform` of a previous step differ in the last bits of
        float64.
        """
        return _checked(self._read(i))[0]

    def _read(self, i: int) -> tuple[np.ndarray, bool] | PictureError:
        """Return row i, and whether its picture has further frames; or why it cannot be read."""
        number = int(self.numbers[i])
        if self.spec.size is None:
            row = np.ascontiguousarray(self.items[i], dtype=np.float32)
            return row + np.float32(0), False  # no negative zero
        found = _decoded(self.items, i, number)
        if isinstance(found, PictureError):
            return found
        picture, has_more = found
        try:
            return self.spec.pixels(picture), has_more
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error

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
        """Yield the contents of some rows, and say once that pictures have further frames."""
        for found in _each(self._read, indices, self.n_workers):
            row, has_more = _checked(found)
            if has_more and not self._said_frames:
                self._said_frames = True
                warn("Some pictures have several frames or pages: the first one is taken.")
            yield row


def unreadable(X: Any, indices: Sequence[int], n_workers: int = 0) -> Iterator[str | None]:
    """Yield why each of some rows cannot be read, or None; X is what `check_images` returns."""
    return _each(partial(_reason, X), indices, n_workers)


def _reason(X: Any, i: int) -> str | None:
    found = _decoded(X, i, i)
    return str(found) if isinstance(found, PictureError) else None


def _item(items: Any, i: int, number: int) -> Any:
    """Return an item, or why there is none: a dataset may decode by itself."""
    try:
        return items[i]
    except Exception as error:
        return _unread(f"{type(error).__name__}: {error}", number, error)


def _decoded(items: Any, i: int, number: int) -> tuple[np.ndarray, bool] | PictureError:
    """Return the picture of an item, and whether it has further frames; or why it cannot be read."""
    item = _item(items, i, number)
    if isinstance(item, PictureError):
        return item
    item = _picture(item, number)
    if isinstance(item, np.ndarray):
        item = _check_pixels(item, f"row {number}")
    try:
        return decode(item)
    except PictureError as error:
        return _unread(str(error), number, error.__cause__)


def _unread(reason: str, number: int, cause: BaseException | None) -> PictureError:
    """Return why a row cannot be read, as a value that workers can send."""
    error = PictureError(reason, [number])
    error.__cause__ = cause
    return error


def _checked(found: T | PictureError) -> T:
    """Return what was read, or raise why it could not be."""
    if isinstance(found, PictureError):
        message = f"Row {found.indices[0]} cannot be read: {found}"
        raise PictureError(message, found.indices) from found.__cause__
    return found


class _Calls:
    """A function of row numbers as a dataset, for torch's workers."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self.function = function

    def __getitem__(self, i: int) -> Any:
        return self.function(i)


def _each(function: Callable[[int], T], indices: Sequence[int], n_workers: int) -> Iterator[T]:
    """Return the results of a function of row numbers, which worker processes compute if asked."""
    if not n_workers:
        return map(function, indices)
    loader: DataLoader[T] = DataLoader(
        _Calls(function),  # type: ignore[arg-type]
        sampler=indices,
        batch_size=_READ_AHEAD,
        num_workers=n_workers,
        collate_fn=list,
        generator=torch.Generator(),  # leaves the global generator alone
    )
    return (found for part in loader for found in part)


def content(row: np.ndarray) -> bytes:
    """Return the bytes that identify a row: type, shape and values of what enters the backbone."""
    return f"{row.dtype.str}{row.shape}".encode() + row.tobytes()


def check_images(X: Any, look: bool = True) -> Any:
    """Check a collection of images, and return it indexable by row.

    Of arrays, datasets and other sequences only the first item is looked at, and of lists that files
    are there, or nothing at all without `look`: `Rows` checks every item when it is read.
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
    if not look:
        return items
    first = _picture(_checked(_item(items, 0, 0)), 0)
    if isinstance(first, np.ndarray):
        _check_pixels(first, "row 0")
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
    return decode(_picture(item, 0))[0]


def _check_pixels(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array of shape (H, W), (H, W, 3) or (H, W, 4), uint8 or floats in [0, 1]."""
    shape = array.shape
    if len(shape) == 3 and shape[-1] == 1:
        return _check_pixels(array[..., 0], name)
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[-1] not in (3, 4)):
        hint = ""
        if len(shape) == 3 and shape[0] in (1, 3, 4):
            hint = " Channels come last: use numpy.moveaxis(X, -3, -1)."
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
