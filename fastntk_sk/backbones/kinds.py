"""What users pass as X: collections of pictures, checked and made indexable by row."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..exceptions import PictureError

_CHANNELS = (1, 3, 4)
_KINDS = (
    "Expected images as an array of shape (n, H, W), (n, H, W, 3) or (n, H, W, 4), a tensor of shape "
    "(n, 3, H, W), uint8 or float in [0, 1], or a list, column or dataset of PIL images, arrays, "
    "tensors or file paths"
)


def check_images(X: Any, *, look: bool = True) -> Any:
    """Check a collection of images, and return it indexable by row.

    A table or column becomes a list; what is indexable stays as it is. Of arrays, datasets and other
    sequences only the first item is looked at, and of lists that files are there, or nothing at all
    without `look`: `Rows` checks every item when it is read.
    """
    if isinstance(X, (str, bytes, os.PathLike, Image.Image)):
        raise ValueError(
            f"{_KINDS}; got a single {type(X).__name__}. Pass a list of one, or of "
            "what is in a folder: read_pictures(folder).paths."
        )
    if hasattr(X, "to_dicts") and hasattr(X, "to_series") and X.shape[1] == 1:  # a polars table
        X = X.to_series()
    if hasattr(X, "to_list") and hasattr(X, "struct"):  # polars: numpy would take its fields apart
        X = X.to_list()
    elif hasattr(X, "__array__") and (hasattr(X, "to_numpy") or hasattr(X, "column_names")):
        X = np.asarray(X)  # of pandas, polars or pyarrow
    if isinstance(X, np.ndarray) and X.dtype.kind not in "biufc":
        X = _column(X)
    elif isinstance(X, (list, tuple)):
        X = list(X)
    elif hasattr(X, "ndim") and hasattr(X, "dtype"):
        _check_shape(X)
    else:
        _check_readable(X)
    if not len(X):
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
    if not look:
        return X
    try:
        first = picture(item_of(X, 0), 0)
    except PictureError as error:
        raise PictureError(f"Row 0 cannot be read: {error}", [0]) from error.__cause__
    if isinstance(first, np.ndarray):
        check_pixels(first, "row 0")
    for i, item in enumerate(X if isinstance(X, list) else ()):
        one = picture(item, i)
        if isinstance(one, (str, os.PathLike)) and not os.path.isfile(one):
            advice = " It is a folder: pass read_pictures(folder).paths." if os.path.isdir(one) else ""
            raise PictureError(f"Row {i} cannot be read: no file at {str(one)!r}.{advice}", [i])
    return X


def _column(X: np.ndarray) -> list[Any]:
    """Return the items of an array of objects or text, of shape (n,) or (n, 1)."""
    if X.ndim == 2 and X.shape[1] != 1:
        raise ValueError(
            f"{_KINDS}; got {X.shape[1]} columns. Select the one with the pictures, such as X[['path']]."
        )
    if X.ndim not in (1, 2):
        raise ValueError(
            f"{_KINDS}; got an array of shape {X.shape} of {X.dtype}. Pass the numbers as "
            "X.astype('uint8'), or the pictures as a list."
        )
    return X.ravel().tolist()


def _check_shape(X: Any) -> None:
    """Raise ValueError unless an array or tensor is a stack of pictures, and not one of them."""
    tensor = isinstance(X, Tensor)
    if tensor:
        _check_dense(X)
    shape = tuple(X.shape)
    if len(shape) not in (3, 4):
        raise ValueError(
            f"{_KINDS}; got an array of shape {shape}. Reshape flattened pictures first, for example "
            'X.reshape(-1, 28, 28), pass X[None] for one grey picture, or use backbone="mlp" for plain '
            "vectors."
        )
    if len(shape) == 4 or not (shape[-1] in _CHANNELS or (tensor and shape[0] in _CHANNELS[1:])):
        return
    one, grey = "X[None]", "X[..., None]"
    if tensor:
        one, grey = "X[None]" if shape[0] in _CHANNELS else "X.movedim(-1, 0)[None]", "X[:, None]"
    raise ValueError(
        f"{_KINDS}; got shape {shape}, which may be one picture. Pass {one} for one picture, {grey} for "
        "grey pictures."
    )


def _check_readable(X: Any) -> None:
    """Raise ValueError unless rows have an order and a number, and can be read several times."""
    indexable = hasattr(X, "__len__") and hasattr(X, "__getitem__")
    if indexable and not isinstance(X, (Mapping, IterableDataset)):
        return
    if isinstance(X, DataLoader):
        instead = "X.dataset"
    elif isinstance(X, Mapping):
        instead = "one of its values, or list(X.values())"
    elif isinstance(X, Set):
        instead = "a list, such as sorted(X)"
    else:
        instead = "list(X), or a dataset with __len__ and __getitem__ (map-style, not streaming)"
    raise ValueError(
        f"{_KINDS}, in an order, to be counted and read several times; got {type(X).__name__}. "
        f"Pass {instead}."
    )


def item_of(X: Any, i: int) -> Any:
    """Return an item; raise PictureError for whatever a dataset raises that decodes by itself."""
    try:
        return X[i]
    except Exception as error:
        raise PictureError(f"{type(error).__name__}: {error}") from error


def picture(item: Any, row: int) -> Any:
    """Return the picture of an item: an array (channels last), a PIL image or a file.

    The item may be a tuple (picture, label, ...) or a dict of columns.
    """
    if hasattr(item, "as_py"):  # a scalar of pyarrow
        item = item.as_py()
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, Mapping) and not _is_encoded(item):
        found = [value for value in item.values() if _is_picture(value)]
        if len(found) != 1:
            raise ValueError(
                f"Expected one picture in row {row}, got {len(found)} in the columns {sorted(item)}. "
                "Pass that column alone, such as dataset['image'] or dataset.select_columns(['image'])."
            )
        item = found[0]
    if _is_encoded(item):
        if item["bytes"] is not None:
            return io.BytesIO(item["bytes"])
        item = item["path"]
    if isinstance(item, Tensor):
        if item.ndim == 3 and item.shape[0] not in _CHANNELS:
            raise ValueError(
                f"{_KINDS}; got a tensor of shape {tuple(item.shape)} in row {row}. Channels come first "
                "in tensors: use X.movedim(-1, -3)."
            )
        item = as_array(item.movedim(0, -1) if item.ndim == 3 else item)
    elif hasattr(item, "__array__") and hasattr(item, "ndim") and not isinstance(item, np.ndarray):
        item = np.asarray(item)
    if not isinstance(item, (str, os.PathLike, Image.Image, np.ndarray)):
        raise ValueError(f"{_KINDS}; got {type(item).__name__} in row {row}.")
    return item


def _is_picture(value: Any) -> bool:
    """Return whether a column holds a picture; numbers, short vectors and text are something else."""
    return isinstance(value, Image.Image) or getattr(value, "ndim", 0) > 1 or _is_encoded(value)


def _is_encoded(item: Any) -> bool:
    """Return whether an item is a file as Hugging Face datasets keep one before it is decoded."""
    if not isinstance(item, Mapping) or set(item) != {"bytes", "path"}:
        return False
    return item["bytes"] is None or isinstance(item["bytes"], bytes)


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array, in float32 where numpy lacks its type."""
    _check_dense(tensor)
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()


def _check_dense(tensor: Tensor) -> None:
    """Raise ValueError for a tensor without an array of values."""
    if tensor.is_nested:
        problem, advice = "a nested one", "X.unbind() is a list of its tensors."
    elif tensor.is_meta:
        problem, advice = "one on the meta device", "It has no values."
    elif tensor.layout != torch.strided:
        problem, advice = f"one of layout {tensor.layout}", "Pass X.to_dense()."
    elif tensor.is_quantized:
        problem, advice = "a quantised one", "Pass X.dequantize()."
    else:
        return
    raise ValueError(f"Expected a dense tensor, got {problem}. {advice}")


def check_pixels(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array of shape (H, W), (H, W, 3) or (H, W, 4), uint8 or floats in [0, 1].

    Masks become black and white, and 16 bits floats, by the range of their type.
    """
    if np.ma.is_masked(array):
        raise ValueError(f"{_KINDS}; got {name} with masked pixels. Fill them: X.filled(0).")
    array = np.asarray(array)
    shape = array.shape
    if len(shape) == 3 and shape[-1] == 1:
        return check_pixels(array[..., 0], name)
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[-1] not in _CHANNELS):
        hint = ""
        if len(shape) == 3 and shape[0] in _CHANNELS:
            hint = " Channels come last in arrays: use numpy.moveaxis(X, -3, -1)."
        raise ValueError(f"{_KINDS}; got {name} of shape {shape}.{hint}")
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array * np.uint8(255)
    if array.dtype.kind == "u" and array.itemsize == 2:
        return array.astype(np.float32) / np.float32(65535)
    if array.dtype.kind != "f":
        raise ValueError(
            f"{_KINDS}; got {name} of dtype {array.dtype}. If all images are in 0..255, pass "
            "X.astype('uint8'), or X.byte() of a tensor; if in 0..65535, X / 65535; if they are masks "
            "of 0 and 1, X == 1. Scale others to floats in [0, 1]."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"Input {name} contains NaN or infinity. Remove or repair these images.")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"{_KINDS}; got {name} with floats between {low:g} and {high:g}. Scale them to [0, 1] "
            "(the backbone's own normalisation is applied afterwards)."
        )
    return array
