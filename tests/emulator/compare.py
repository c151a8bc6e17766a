"""Runs a call on a device and on the CPU and reports differences; also compares with torchvision."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Protocol

import torch
import torchvision
from torch import Tensor

from tests.emulator.build import build
from tests.emulator.calls import Call
from tests.emulator.images import ImageCall
from tests.emulator.kernels import ORDERS, EmulatedKernels
from tests.typed import present


class Device(Protocol):
    """Where the CUDA kernels run."""

    def prepare(self, draw: random.Random) -> None:
        """Choose what is not determined by the call, such as the order of threads."""

    def run(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Return the output and, if the call asks for it, the gradient of the features, on the CPU."""

    def normalize(self, call: ImageCall) -> Tensor:
        """Return the network input, on the CPU."""

    def report(self) -> str:
        """Return a line that summarizes what has been run."""


class Emulator:
    """The emulated kernels, from the build of ``variant`` or from a given library."""

    def __init__(self, variant: str = "plain", library: Path | None = None) -> None:
        self.kernels = EmulatedKernels(library or build(variant))

    def prepare(self, draw: random.Random) -> None:
        orders = draw.randrange(ORDERS), draw.randrange(ORDERS)
        self.kernels.configure(*orders, seed=draw.randrange(2**30), fill=draw.choice((0xFF, 0x7F, 0)))

    def run(self, call: Call) -> tuple[Tensor, Tensor | None]:
        with self.kernels:
            return pooled_and_gradient(call, call.features, call.rois)

    def normalize(self, call: ImageCall) -> Tensor:
        with self.kernels:
            return call.run(call.images, call.table)

    def report(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.kernels.counts().items())


class Cuda:
    """A real device. Tensors keep their strides and their offset in memory on the way there."""

    def prepare(self, draw: random.Random) -> None:
        """Do nothing: a real device decides by itself."""

    def run(self, call: Call) -> tuple[Tensor, Tensor | None]:
        pooled, grad = pooled_and_gradient(call, carried(call.features), carried(call.rois))
        return pooled.cpu(), None if grad is None else grad.cpu()

    def normalize(self, call: ImageCall) -> Tensor:
        return call.run(carried(call.images), carried(call.table)).cpu()

    def report(self) -> str:
        return torch.cuda.get_device_name()


def carried(tensor: Tensor) -> Tensor:
    """Return ``tensor`` on the CUDA device, at the same place of an equal storage."""
    if tensor.numel() == 0:
        empty = torch.empty(0, dtype=tensor.dtype, device="cuda")
        return empty.as_strided(tensor.shape, tensor.stride())
    storage = tensor.untyped_storage().cuda()
    assert isinstance(storage, torch.UntypedStorage)
    empty = torch.empty(0, dtype=tensor.dtype, device="cuda")
    return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def pooled_and_gradient(
    call: Call, features: Tensor, rois: Tensor, rows: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Run a call on tensors of any device; ``rows`` says which of the gradient's rows belong to ``rois``."""
    features = features.detach().requires_grad_(call.grad_seed is not None)
    pooled = call.run(features, rois, rows)
    if call.grad_seed is None:
        return pooled, None
    grad = call.gradient(torch.Size((len(call.rois), *pooled.shape[1:])))
    grad = grad if rows is None else grad[rows].contiguous()
    grad = grad if features.device.type == "cpu" else carried(grad)
    return pooled.detach(), torch.autograd.grad(pooled, features, grad)[0]


def faults_of(call: Call, device: Device, tally: Counter[str]) -> list[str]:
    """Return the differences between ``device`` and the CPU as texts; ``tally`` counts the comparisons."""
    usable = call.usable()
    pooled, grad = device.run(call)
    rois = call.rois[usable].contiguous()
    on_cpu, expected_grad = pooled_and_gradient(call, call.features, rois, usable)
    expected = torch.zeros((len(call.rois), *on_cpu.shape[1:]), dtype=on_cpu.dtype)
    expected[usable] = on_cpu
    faults = [] if same(pooled, expected) else [f"the output differs{_places(pooled, expected)}"]
    tally["calls"] += 1
    tally["output values"] += pooled.numel()
    tally["RoIs"] += len(call.rois)
    tally["RoIs that no kernel can use"] += len(call.rois) - len(rois)
    if grad is not None and expected_grad is not None:
        tally["gradient values"] += grad.numel()
        if not same(grad, expected_grad):
            faults.append(f"the gradient differs{_places(grad, expected_grad)}")
    if torchvision_can(call, rois):
        theirs = torchvision_says(call, rois, usable)
        tally["calls compared with torchvision"] += 1
        if not same(pooled[usable], theirs[0], signed=False):
            faults.append("the output differs from torchvision's")
        if grad is not None and not same(grad, present(theirs[1]), signed=False):
            faults.append("the gradient differs from torchvision's")
    return faults


def image_faults_of(call: ImageCall, device: Device, tally: Counter[str]) -> list[str]:
    """Return the differences between ``device`` and the CPU as texts; ``tally`` counts the comparisons."""
    ours, expected = device.normalize(call), call.run(call.images, call.table)
    tally["calls on images"] += 1
    tally["values of network inputs"] += ours.numel()
    return [] if same(ours, expected) else [f"the network input differs{_places(ours, expected)}"]


def same(first: Tensor, second: Tensor, *, signed: bool = True) -> bool:
    """Return whether bits agree; all NaN count as equal, and 0.0 and -0.0 too unless ``signed``."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.numel() == 0:
        return True
    agree = first == second
    if signed:
        agree &= first.signbit() == second.signbit()
    return bool((agree | (first.isnan() & second.isnan())).all())


def _places(first: Tensor, second: Tensor) -> str:
    if first.shape != second.shape or first.dtype != second.dtype:
        return f": {first.dtype} {tuple(first.shape)}, not {second.dtype} {tuple(second.shape)}"
    places = ((first != second) & ~(first.isnan() & second.isnan())).nonzero()
    if not len(places):
        return " in the sign of zeros"
    at = tuple(places[0].tolist())
    return (
        f" in {len(places)} of {first.numel()} values, at {at}: {first[at].item()}, not {second[at].item()}"
    )


def torchvision_can(call: Call, rois: Tensor) -> bool:
    """Return whether torchvision pools by the same rule and its 32-bit cells can hold the RoIs."""
    return (
        call.options.get("bins") == "caffe"
        and call.features.dtype in (torch.float32, torch.float64)
        and call.features.numel() > 0
        and abs(call.options["spatial_scale"]) <= 1
        and (len(rois) == 0 or float(rois.abs().max()) < 1e6)
    )


def torchvision_says(call: Call, rois: Tensor, usable: Tensor) -> tuple[Tensor, Tensor | None]:
    boxes = rois.to(call.features.dtype)
    boxes[:, 0] = boxes[:, 0].trunc()
    features = call.features.detach().clone().requires_grad_()
    options = call.options
    pooled = torchvision.ops.roi_pool(features, boxes, options["output_size"], options["spatial_scale"])
    if call.grad_seed is None:
        return pooled.detach(), None
    grad = call.gradient(torch.Size((len(call.rois), *pooled.shape[1:])))[usable].contiguous()
    return pooled.detach(), torch.autograd.grad(pooled, features, grad)[0]
