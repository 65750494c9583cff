"""From what users pass as X to the tensors that enter a backbone."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from msgspec import Meta
from PIL import Image
from torch import Tensor

from ..exceptions import PictureError, warn
from ..settings import Side
from .decoding import decode
from .kinds import check_pixels, item_of, picture
from .workers import ReadAhead, obstacle, usable_workers

T = TypeVar("T")

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
    are normalised by `mean` and `std`. Colours become grey for one channel (ITU-R 601-2
    luma), and grey is repeated for three. `size=None` stands for vectors. Constraints are those of a
    saved file; nothing checks them when an instance is made.
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

    def normalise(
        self, rows: Sequence[np.ndarray], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return the batch (n, channels, height, width), channels last in memory, or (n, f).

        Pixels travel to the device as they are.
        """
        batch = sent(torch.from_numpy(np.stack(rows)), device).to(dtype)
        if self.size is None:
            return batch
        scale = [255.0 if row.dtype == np.uint8 else 1.0 for row in rows]
        batch /= sent(torch.tensor(scale, dtype=dtype), device).view(-1, 1, 1, 1)
        means, stds = (np.broadcast_to(each, self.channels).tolist() for each in (self.mean, self.std))
        for plane, mean, std in zip(batch.unbind(1), means, stds, strict=True):
            plane.sub_(mean).div_(std)
        return batch.contiguous(memory_format=torch.channels_last)


def check_device(device: str) -> None:
    """Raise ValueError unless passes can run there, on this machine."""
    reason: Exception | None = None
    try:
        if not torch.empty(0, device=device).is_meta:
            return
    except Exception as error:  # every kind of device raises its own where it is missing
        reason = error
    raise ValueError(
        f'Expected a device of this machine, such as "cpu" or "cuda:0", got {device!r}. Pass '
        'device="cpu".'
    ) from reason


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor of the CPU on a device; CUDA does not stop computing to take it."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def sides(size: Any) -> tuple[int, int]:
    """Return one number or two as (height, width)."""
    height, width = np.broadcast_to(size, 2).tolist()
    return height, width


def _luma(colours: np.ndarray) -> np.ndarray:
    """Return grey values (H, W) of (H, W, 3): ITU-R 601-2 luma, in Pillow's integers for 8 bits."""
    if colours.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))
    # not by a matrix product, which rounds by the type and the strides
    red, green, blue = np.moveaxis(colours.astype(np.float32), -1, 0)
    return np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue


class Rows:
    """Rows of X, decoded one at a time, so that X may be larger than memory.

    X is 2-D, float32, or what `check_images` returns. `n_workers` processes read and decode ahead, where
    they can be started. `numbers` are those by which errors name the rows, where X is a part of what was
    passed in.
    """

    def __init__(
        self, X: Any, spec: InputSpec, n_workers: int = 0, numbers: np.ndarray | None = None
    ) -> None:
        self.items, self.spec = X, spec
        self.numbers = np.arange(len(X)) if numbers is None else numbers
        self._said_frames = False
        self.n_workers = usable_workers(n_workers, self)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> np.ndarray:
        """Return the content of row i: vectors as float32, images as resized pixels.

        Float32 hides that `fit_transform` and `transform` of a previous step differ in the last bits of
        float64.
        """
        return self._read(i)[0]

    def _read(self, i: int) -> tuple[np.ndarray, bool]:
        """Return row i, and whether its picture has further frames."""
        number = int(self.numbers[i])
        if self.spec.size is None:
            row = np.ascontiguousarray(self.items[i], dtype=np.float32)
            return row + np.float32(0), False  # no negative zero
        try:
            decoded, has_more = _decoded(self.items, i, number)
        except PictureError as error:
            message = f"Row {number} cannot be read: {error}"
            raise PictureError(message, [number]) from error.__cause__
        try:
            return self.spec.pixels(decoded), has_more
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
        for row, has_more in _each(self._read, indices, self.n_workers):
            if has_more and not self._said_frames:
                self._said_frames = True
                warn("Some pictures have several frames or pages: the first one is taken.")
            yield row

    def check_repeatable(self) -> None:
        """Raise ValueError where a row that is made on demand is another picture each time.

        Three rows are read four times each: a random mirror image escapes once in 512 times.
        """
        if isinstance(self.items, (np.ndarray, Tensor, list)):
            return
        for i in sorted({0, len(self) // 2, len(self) - 1}):
            if len({content(self[i]) for _ in range(_READS)}) > 1:
                raise ValueError(
                    f"Expected X[{self.numbers[i]}] to be the same picture each time it is read, got "
                    "others: what was learned from a random transform can never be forgotten. Take the "
                    "random transforms out of the dataset; for mirror images, pass augment='flip'."
                )


def unreadable(X: Any, indices: Sequence[int], n_workers: int = 0) -> Iterator[str | None]:
    """Yield why each of some rows cannot be read, or None; X is what `check_images` returns."""
    return _each(partial(_reason, X), indices, 0 if obstacle(X) else n_workers)


def _reason(X: Any, i: int) -> str | None:
    try:
        _decoded(X, i, i)
    except PictureError as error:
        return str(error)
    return None


def _decoded(items: Any, i: int, number: int) -> tuple[np.ndarray, bool]:
    """Return the picture of an item, and whether it has further frames."""
    item = picture(item_of(items, i), number)
    if isinstance(item, np.ndarray):
        item = check_pixels(item, f"row {number}")
    return decode(item)


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
    n_portions = -(-len(indices) // _READ_AHEAD)
    loader = ReadAhead(
        _Calls(function),
        sampler=indices,
        batch_size=_READ_AHEAD,
        num_workers=min(n_workers, n_portions),
        collate_fn=list,
        generator=torch.Generator(),  # leaves the global generator alone
    )
    return (found for part in loader for found in part)


def content(row: np.ndarray) -> bytes:
    """Return the bytes that identify a row: type, shape and values of what enters the backbone."""
    return f"{row.dtype.str}{row.shape}".encode() + row.tobytes()


def drawable(item: Any) -> np.ndarray:
    """Return an item of X as an array to draw: the pixels of a picture, or a vector."""
    return decode(picture(item, 0))[0]
