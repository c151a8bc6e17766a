"""Where the cells of a feature map lie on the image: channels, stride, centre and size of a layer stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.squeezenet import Fire


class Window(NamedTuple):
    """The sliding window of a layer along one axis, in cells of its input."""

    kernel: int
    stride: int
    padding: int
    ceil_mode: bool = False


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Cell k of a map is centred at input pixel ``center + k * stride`` (0-based pixel index).

    ``windows`` are those of the layers, in order; ``size`` applies them to a length.
    """

    windows: tuple[Window, ...]
    stride: int
    center: float

    def size(self, length: int) -> int:
        """Return the number of cells for ``length`` input pixels, at least 0."""
        for kernel, stride, padding, ceil_mode in self.windows:
            span = length + 2 * padding - kernel
            length = (-(-span // stride) if ceil_mode else span // stride) + 1
            if ceil_mode and (length - 1) * stride >= span + kernel - padding:
                length -= 1  # torch drops a last window that would start in the padding on the right
            if length <= 0:
                return 0  # padding must not turn an empty map into one with cells
        return length


def geometry(layers: Iterable[nn.Module]) -> Geometry:
    """Return the stride, receptive-field centre and windows of ``layers`` in order.

    A window of size k, stride s and padding p moves the centre by ((k - 1) / 2 - p) times the stride before
    it, and multiplies the stride by s.

    Raises:
        ValueError: a window that is not square, or padding that is not a number.
    """
    windows = tuple(window for layer in layers for window in _windows(layer))
    center, stride = 0.0, 1
    for kernel, step, padding, _ in windows:
        center += ((kernel - 1) / 2 - padding) * stride
        stride *= step
    return Geometry(windows=windows, stride=stride, center=center)


def out_channels(layers: Iterable[nn.Module]) -> int:
    """Return the number of channels after ``layers``."""
    channels = 3
    for layer in layers:
        match layer:
            case nn.Conv2d():
                channels = layer.out_channels
            case Fire():
                channels = layer.expand1x1.out_channels + layer.expand3x3.out_channels
            case BasicBlock():
                channels = layer.conv2.out_channels
            case Bottleneck():
                channels = layer.conv3.out_channels
            case nn.Sequential():
                channels = out_channels(layer)
    return channels


def _windows(layer: nn.Module) -> Iterator[Window]:
    match layer:
        case nn.Conv2d() | nn.MaxPool2d():
            yield Window(
                _single(layer.kernel_size),
                _single(layer.stride),
                _single(layer.padding),
                getattr(layer, "ceil_mode", False),
            )
        case Fire():
            yield from _windows(layer.expand3x3)  # its other layers are 1x1
        case BasicBlock():
            yield from (*_windows(layer.conv1), *_windows(layer.conv2))
        case Bottleneck():
            yield from (*_windows(layer.conv1), *_windows(layer.conv2), *_windows(layer.conv3))
        case nn.Sequential():
            for part in layer:
                yield from _windows(part)


def _single(value: int | tuple[int, ...] | str) -> int:
    if isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    if isinstance(value, int):
        return value
    raise ValueError(
        f"windows must be square and padding numeric, so that x and y have one geometry, not {value!r}"
    )
