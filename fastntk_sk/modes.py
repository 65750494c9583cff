"""Modes of torch that a caller may be in, and that change what it computes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


def without_modes(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function run as if its caller were in no mode of torch, and return to them afterwards.

    These are `inference_mode`, whose tensors cannot be changed outside of it, `no_grad`, `autocast` and
    a default device. Each of them is of one thread.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.modes import without_modes
    >>> with torch.inference_mode():
    ...     without_modes(torch.ones)(2).is_inference()
    False
    """

    @wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with ExitStack() as stack:
            if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))  # turns gradients on as well
            for device in ("cpu", "cuda", "mps", "xpu"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            return function(*args, **kwargs)

    return called
