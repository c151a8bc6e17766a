"""ONNX, OpenVINO and torch.export: a network written in each format, and loaded again to run it."""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector.core.errors import InputError

FILES = {"onnx": "model.onnx", "torch_export": "model.pt2", "openvino": "model.xml"}
"""The file of each format; that of OpenVINO has its weights beside it, in model.bin."""
OPSET = 18
"""The version of ONNX's operators; ONNX Runtime knows it since 1.14, OpenVINO since 2023."""
_LARGEST = 2**31 - 1  # bytes of a protobuf message, which an ONNX file is

Runner = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
"""Runs an exported network: the inputs to the outputs, in order."""


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of an exported network, in order.

    ``dims`` gives, for each input, the names of its axes whose length may differ, None for the others.
    """

    inputs: tuple[str, ...]
    dims: tuple[tuple[str | None, ...], ...]
    outputs: tuple[str, ...]


def require(*modules: str) -> None:
    """Raise InputError, which names the extra, unless the optional packages can be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise InputError(
                f"the export needs the package {module}, which is not installed; install it with "
                'pip install "region-detector[export]"'
            ) from None


def needed(form: str) -> tuple[str, ...]:
    """Return the optional packages that writing and checking a format takes."""
    return {
        "onnx": ("onnx", "onnxscript", "onnxruntime"),
        "openvino": ("onnx", "onnxscript", "openvino"),
        "torch_export": (),
    }[form]


def traced(
    module: nn.Module, example: Sequence[Tensor], signature: Signature, sides: tuple[int, int], regions: int
) -> torch.export.ExportedProgram:
    """Return ``module`` as a program of ``torch.export``.

    ``example`` are inputs of usual sizes. ``sides`` are the smallest and the largest side of an image in
    pixels, ``regions`` the largest number of regions.

    Raises:
        InputError: torch cannot trace a part of the network; gives torch's reason.
    """
    image_side = torch.export.Dim.AUTO(min=sides[0], max=sides[1])
    count = torch.export.Dim("regions", min=0, max=regions)
    shapes = tuple(
        {axis: count if name == "regions" else image_side for axis, name in enumerate(names) if name}
        for names in signature.dims
    )
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(module, tuple(example), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises many kinds
        raise _failed("torch.export", error) from error


def write(form: str, program: torch.export.ExportedProgram, folder: Path, signature: Signature) -> None:
    """Write ``program`` into ``folder`` in the format ``form``, a key of `FILES`.

    Raises:
        InputError: the format has no counterpart of an operator, or a file would be over 2 GiB.
    """
    path = folder / FILES[form]
    if form == "torch_export":
        with _quiet():
            torch.export.save(program, path)
        return
    content = _onnx(program, signature)
    if form == "onnx":
        path.write_bytes(content)
        return
    write_openvino(content, path, signature)


def write_openvino(content: bytes, path: Path, signature: Signature) -> None:
    """Write the ONNX file ``content`` to ``path`` (.xml) as OpenVINO reads it, weights in float32 beside it.

    Raises:
        InputError: OpenVINO has no counterpart of an operator.
    """
    openvino: Any = importlib.import_module("openvino")
    try:
        model = openvino.Core().read_model(content)
    except RuntimeError as error:
        raise _failed("OpenVINO", error) from error
    _sort_stably(model)
    for port, name in zip(model.outputs, signature.outputs, strict=True):
        port.get_tensor().set_names({name})
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _sort_stably(model: Any) -> None:
    """Let OpenVINO keep the order of equal values, as ONNX demands of TopK but OpenVINO's reader does not."""
    opset: Any = importlib.import_module("openvino.opset15")
    for found in model.get_ordered_ops():
        if found.get_type_name() != "TopK":
            continue
        settings = found.get_attributes()
        values, count = (found.input_value(number) for number in range(2))
        settings |= {"stable": True}
        stable = opset.topk(values, count, **settings)
        for before, after in zip(found.outputs(), stable.outputs(), strict=True):
            for target in before.get_target_inputs():
                target.replace_source_output(after)


def load(form: str, folder: Path, signature: Signature) -> Runner:
    """Return a function that runs the file which `write` wrote, with one thread per core."""
    path = str(folder / FILES[form])
    if form == "onnx":
        runtime: Any = importlib.import_module("onnxruntime")
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda inputs: list(session.run(None, dict(zip(signature.inputs, inputs, strict=True))))
    if form == "openvino":
        core: Any = importlib.import_module("openvino").Core()
        compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda inputs: [np.array(part) for part in compiled(list(inputs)).values()]
    with _quiet():
        module = torch.export.load(path).module()

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            return [part.numpy() for part in module(*map(torch.from_numpy, inputs))]

    return run


def _onnx(program: torch.export.ExportedProgram, signature: Signature) -> bytes:
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(signature.inputs),
                output_names=list(signature.outputs),
                custom_translation_table=_translations(),
            )
        assert exported is not None  # no file is given
        model = exported.model_proto
    except Exception as error:  # the exporter raises many kinds
        raise _failed("ONNX", error) from error
    _name_axes(model.graph, signature)
    if model.ByteSize() > _LARGEST:
        raise InputError(
            "the network is over 2 GiB, more than an ONNX file can hold; use --format torch_export"
        )
    content: bytes = model.SerializeToString()
    return content


def _translations() -> dict[Any, Any]:
    """Return the operators of ONNX for those that torch's exporter does not know."""
    from detector.export.translations import sort, suppress

    return {torch.ops.detector_portable.suppress.default: suppress, torch.ops.aten.sort.stable: sort}


def _name_axes(graph: Any, signature: Signature) -> None:
    """Give the axes of the inputs the names of ``signature`` instead of the exporter's numbers."""
    names: dict[str, str] = {}
    for given, axes in zip(graph.input, signature.dims, strict=True):
        for dim, name in zip(given.type.tensor_type.shape.dim, axes, strict=True):
            if name and dim.dim_param:
                names[dim.dim_param] = name
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def float32_below(value: float) -> float:
    """Return the largest float32 that is not above ``value``.

    torchvision compares a float32 IoU with a threshold in float64, ONNX both in float32; ``IoU > threshold``
    means the same with this number.
    """
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(-math.inf)))


def _failed(what: str, error: Exception) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return InputError(
        f"this network cannot be exported: {what} has no counterpart of a part of it: {reason:.300}; export "
        "a network with another backbone, pool or head"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the notes of torch's exporters about their own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
