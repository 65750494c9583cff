"""A plain module as the bytes of an ONNX file."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch
from torch import Tensor, nn

from ..backbones.inputs import InputSpec

_TOO_LARGE = 2**31  # bytes of one protocol buffer


def onnx_bytes(module: nn.Module, example: Tensor, spec: InputSpec, labels: list[str]) -> bytes:
    """Export a module to ONNX, for batches of any number of rows.

    Parameters
    ----------
    module : nn.Module
        In eval mode; maps a batch to scores.

    example : Tensor of shape (2, ...)
        A batch as it takes it.

    spec : InputSpec
        Becomes metadata, with the labels.

    labels : list of str
        Names of the scores.

    Returns
    -------
    data : bytes
        Input "batch", output "scores"; metadata "classes" and "preprocessing", in JSON.

    Raises
    ------
    ImportError
        Without the packages onnx and onnxscript.

    ValueError
        If the network's weights exceed the 2 GiB that one file can hold.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX needs more packages: pip install 'fastntk_sk[onnx]'.") from error
    n_bytes = sum(tensor.nbytes for tensor in module.state_dict().values())
    if n_bytes >= _TOO_LARGE:
        raise ValueError(
            f"Expected weights of less than 2 GiB, which is what one ONNX file holds, got {n_bytes:,} "
            "bytes. Export to_module() with torch.onnx.export and external data."
        )
    program = torch.onnx.export(
        module,
        (example,),
        input_names=["batch"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("n_rows")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["classes"] = json.dumps(labels)
    program.model.metadata_props["preprocessing"] = json.dumps(asdict(spec))
    return program.model_proto.SerializeToString()
