"""What a deletion did, with what, and how exactly: evidence of what was run, not proof of absence."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

EXACT = "exact for the linearised model"


def environment(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return what decides whether a Jacobian comes out bitwise the same.

    Parameters
    ----------
    device : str

    dtype : torch.dtype
        Of the backbone's passes.

    Returns
    -------
    environment : dict
        Plain Python values: library versions, machine, device, precision, threads.
    """
    return {
        "versions": {name: version(name) for name in ("torch", "timm", "numpy", "pillow")},
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "precision": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def make_receipt(
    *,
    n_rows: int,
    n_learned: int,
    residual: float,
    seconds: float,
    drift: float,
    seen_by: Sequence[str],
    searched_by: Sequence[str],
    anchor: str,
    environment: dict[str, Any],
) -> dict[str, Any]:
    """Describe one deletion in plain Python values.

    Parameters
    ----------
    n_rows : int
        Rows removed by this deletion.

    n_learned : int
        Rows that the model rests on afterwards.

    residual : float
        Relative residual of the normal equations after the solve.

    seconds : float

    drift : float
        Relative difference between Jacobians here and those that were learned.

    seen_by : sequence of str
        Fitted steps before the classifier that have seen the rows.

    searched_by : sequence of str
        Searches whose choice of hyper-parameters has seen the rows.

    anchor : {"pretrained", "finetuned"}

    environment : dict

    Returns
    -------
    receipt : dict
    """
    problems = [f"{name} has seen the rows" for name in seen_by]
    if drift:
        problems.append(f"Jacobians differ by {drift:.1e} from those that were learned")
    exactness = f"approximate: {'; '.join(problems)}" if problems else EXACT
    if anchor == "finetuned":
        exactness += "; the fine-tuned anchor has seen the rows"
    for name in searched_by:
        exactness += f"; the hyper-parameters that {name} chose have seen the rows"
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "n_rows": n_rows,
        "n_samples_learned": n_learned,
        "method": "downdate of the statistics and one Schur solve",
        "exactness": exactness,
        "residual": residual,
        "seconds": seconds,
        **environment,
    }
