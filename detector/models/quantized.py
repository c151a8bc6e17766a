"""fc6, fc7 and so on in integers of 8 bits on a CPU: dynamic quantisation of a box head.

Weights are rounded once, to 255 levels per output. The inputs of a layer are rounded when it is called, each
region to 255 levels of its own, so that its result does not depend on the other regions. Products are summed
in integers of 32 bits, which is exact.

The product is `torch._int_mm`, on which torchao's int8 layers are built as well. torch.ao.quantization, and
the operators that take tensors of quantized types, are deprecated and going to be removed from torch.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from detector.core.errors import InputError
from detector.models.detector import RegionDetector
from detector.models.heads import BoxHead

LEVELS = 127
"""Values are rounded to -127..127 times a scale: symmetric, so that 0 stays 0."""
MOST_INPUTS = (2**31 - 1) // LEVELS**2
"""The sum of more products than these might exceed 32 bits."""
_FIX = "set test.precision (--precision) to bfloat16, or to float32"


class Int8Linear(nn.Module):
    """The linear ``layer`` on a CPU with weights and inputs rounded to 8 bits, for inference only."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scale = rounded(layer.weight.detach())
        self.register_buffer("weight", weight)  # (F, D) int8
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs (R, F) float32 of ``inputs`` (R, D)."""
        values, scale = rounded(inputs)
        outputs = torch._int_mm(values, self.weight.t()).float().mul_(self.scale).mul_(scale)
        return outputs if self.bias is None else outputs.add_(self.bias)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``rows`` (R, D) as int8 and the scale (R, 1) of each row, by which they are to be multiplied.

    A row that is not finite has a scale that is not finite either.
    """
    if not rows.numel():
        return rows.to(torch.int8), rows.new_ones(len(rows), 1)
    lowest, highest = torch.aminmax(rows, dim=1, keepdim=True)
    scale = torch.maximum(highest, -lowest).div_(LEVELS).clamp_min_(torch.finfo(torch.float32).tiny)
    return rows.div(scale).round_().to(torch.int8), scale


def with_int8_head(model: RegionDetector) -> RegionDetector:
    """Return a copy of ``model`` that computes fc6, fc7 and so on in 8 bits and shares all other parameters.

    cls_score and bbox_pred stay in float32: they are small, and every digit of theirs goes into a score.

    Raises:
        InputError: this machine cannot multiply integers of 8 bits, or the network has no fc6, or too wide a
            one.
    """
    check_int8()
    head = model.box_head
    if type(head) is not BoxHead:
        raise InputError(
            f"test.precision: int8 is for fc6 and fc7, and this network has other layers; {_FIX}"
        )
    linear = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
    if not linear:
        raise InputError(f"test.precision: int8 is for fc6 and fc7, and this network has none; {_FIX}")
    widest = max(layer.in_features for layer in linear)
    if widest > MOST_INPUTS:
        raise InputError(
            f"test.precision: int8 is for layers of at most {MOST_INPUTS} inputs, and this network has one "
            f"of {widest}; {_FIX}"
        )
    shared: dict[int, object] = {}
    for module in model.modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        shared.update((id(tensor), tensor) for tensor in tensors)
    shared.update((id(layer), Int8Linear(layer)) for layer in linear)
    return copy.deepcopy(model, shared)  # takes from ``shared`` what is there and copies the rest


def check_int8() -> None:
    """Raise InputError where torch has no product of 8-bit integers for this machine, or an inexact one.

    A CPU without instructions for it may add pairs of products in 16 bits, which the largest values exceed.
    """
    if "onednn" not in torch.backends.quantized.supported_engines:
        raise InputError(
            "test.precision: int8 needs torch with oneDNN, which this build of torch does not have (it has "
            f"{', '.join(torch.backends.quantized.supported_engines)}); {_FIX}"
        )
    values = torch.full((32, 64), LEVELS, dtype=torch.int8)
    values[::2] = -LEVELS
    exact = values.double() @ values.double().t()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns before it takes a slow path of its own
            product = torch._int_mm(values, values.t())
    except (AttributeError, RuntimeError, NotImplementedError, Warning) as error:
        raise InputError(
            f"test.precision: int8 does not work with this torch ({torch.__version__}) on this machine: "
            f"{str(error).splitlines()[0]:.200}; {_FIX}"
        ) from None
    if not torch.equal(product.double(), exact):
        raise InputError(
            f"test.precision: int8: this machine's products of 8-bit integers are not exact; {_FIX}"
        )
