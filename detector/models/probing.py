"""Where the cells of any network's map lie on the image, found by running the network on the meta device.

A run on the meta device computes shapes and no values, so it takes milliseconds for every network. While it
runs, each axis of each tensor that still lies on the image carries what its cells see: cell k sees the pixels
from ``low + k * stride`` to ``high + k * stride`` (0-based indices). Convolutions, pools, padding and slices
change the three numbers; where branches meet, a cell sees what any of them sees; all other functions keep
the numbers of an axis whose length they keep. Gates such as squeeze-and-excitation, which see the whole
image, therefore do not count, and nor does attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from detector.core.errors import InputError

Run = Callable[[Tensor], Sequence[Tensor]]
"""Returns the maps (N, C, h, w) of some blocks for images (N, 3, H, W)."""

BASE = (448, 672)
"""Height and width of the first run: multiples of 32, and of transformers' windows of 7 and 14 cells."""


class Axis(NamedTuple):
    """What the cells along an axis see: cell k the pixels ``low + k * stride`` to ``high + k * stride``."""

    stride: int
    low: int
    high: int

    def window(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Axis:
        """Return the axis after a sliding window."""
        reach = (kernel - 1) * dilation - padding
        return Axis(self.stride * stride, self.low - padding * self.stride, self.high + reach * self.stride)

    def moved(self, cells: int) -> Axis:
        """Return the axis whose first cell is the present one's cell number ``cells``."""
        return Axis(self.stride, self.low + cells * self.stride, self.high + cells * self.stride)


@dataclass(frozen=True, kw_only=True)
class ProbedGeometry:
    """Cell k of a map is centred at input pixel ``center + k * stride`` (0-based pixel index).

    An input is padded on the right and at the bottom to a ``multiple`` of pixels. One of L pixels, padding
    included, gives floor((L + offset) / stride) cells, and none below ``smallest`` pixels.
    """

    stride: int
    center: float
    channels: int
    offset: int
    smallest: int
    multiple: int = 1

    def padded(self, length: int) -> int:
        """Return ``length`` with the padding to whole multiples, in pixels."""
        return -(-length // self.multiple) * self.multiple

    def size(self, length: int) -> int:
        """Return the number of cells for ``length`` input pixels, at least 0."""
        whole = self.padded(length)
        return (whole + self.offset) // self.stride if whole >= self.smallest else 0


class Misplaced(Exception):
    """The cells of a map do not lie on a regular grid; the message says why."""


def survey(run: Run) -> list[tuple[int, int, float]]:
    """Return channels, stride and centre of each map of ``run``, a network on the meta device.

    Raises:
        Misplaced: a map's cells are not on one regular grid, or cannot be followed.
    """
    try:
        maps = _traced(run, BASE)
    except (Misplaced, InputError):
        raise
    except Exception as error:  # whatever a network raises for a size that it does not take
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise Misplaced(f"an input of {BASE[1]}x{BASE[0]} pixels makes it fail ({reason:.200})") from None
    found = []
    for features, axes in maps:
        if axes[0] != axes[1]:
            raise Misplaced(f"its rows and its columns differ: {axes[0]} and {axes[1]}")
        found.append((features.shape[1], axes[0].stride, (axes[0].low + axes[0].high) / 2))
    return found


def probe(run: Run) -> list[ProbedGeometry]:
    """Return the geometry of each map of ``run``, a network on the meta device, checked on further sizes.

    Inputs are padded to multiples of the largest stride if the network takes no other sizes (patches of
    transformers), or if its centre depends on the size (TensorFlow's padding).

    Raises:
        Misplaced: the cells of a map do not lie on one grid for all sizes.
    """
    places = survey(run)
    largest = max(stride for _, stride, _ in places)
    sizes = _Sizes(run, 1 if _any_size(run, places, largest) else largest)
    sizes.look_up([3 * largest + 1, 5 * largest - 1, BASE[0], BASE[0] + largest, BASE[1] - largest // 2, 777])
    offsets = [_offset(sizes, number, stride, center) for number, (_, stride, center) in enumerate(places)]
    # An input that is too small for the last map, the coarsest, is too small for all.
    smallest = _smallest(sizes, len(places) - 1, max(places[-1][1] - offsets[-1], 1))
    found = [
        ProbedGeometry(
            stride=stride,
            center=center,
            channels=channels,
            offset=offset,
            smallest=smallest,
            multiple=sizes.multiple,
        )
        for (channels, stride, center), offset in zip(places, offsets, strict=True)
    ]
    _check(sizes, found)
    return found


def _any_size(run: Run, places: Sequence[tuple[int, int, float]], largest: int) -> bool:
    """Return whether a network takes inputs of any size, with its centres always at the same pixels."""
    for height, width in ((1, largest // 2 + 1), (largest - 1, 2)):
        try:
            other = _traced(run, (BASE[0] + height, BASE[1] + width))
        except Misplaced:
            raise
        except Exception:  # whatever a network raises for a size that it does not take
            return False
        for (_, axes), (_, stride, center) in zip(other, places, strict=True):
            if any(axis.stride != stride or (axis.low + axis.high) / 2 != center for axis in axes):
                return False
    return True


class _Sizes:
    """The number of cells of each map for an input's length, padded to a ``multiple``; 0 where it fails."""

    def __init__(self, run: Run, multiple: int) -> None:
        self.run = run
        self.multiple = multiple
        self.known: dict[int, list[int]] = {}

    def __call__(self, length: int, number: int) -> int:
        whole = -(-length // self.multiple) * self.multiple
        if whole not in self.known:
            self._look_up(whole, BASE[1])
        return self.known[whole][number] if self.known[whole] else 0

    def look_up(self, lengths: Sequence[int]) -> None:
        """Run the network on some lengths that it takes, two at a time."""
        whole = [-(-length // self.multiple) * self.multiple for length in lengths]
        for height, width in zip(whole[::2], whole[1::2], strict=True):
            self._look_up(height, width)
            if not self.known[height]:
                raise Misplaced(f"an input of {width}x{height} pixels makes it fail")

    def _look_up(self, height: int, width: int) -> None:
        self.known[height] = []
        try:
            with torch.no_grad():
                maps = self.run(torch.zeros(1, 3, height, width, device="meta"))
        except Exception:  # the network refuses this size
            return
        self.known[height] = [features.shape[2] for features in maps]
        self.known[width] = [features.shape[3] for features in maps]


def _offset(sizes: _Sizes, number: int, stride: int, center: float) -> int:
    """Return c of floor((L + c) / stride) cells, from the lengths around which one more cell appears.

    With the same padding on both sides of an axis, c is stride - 1 - 2 * centre, which is tried first.
    """
    start = BASE[0]
    cells = sizes(start, number)
    if sizes.multiple > 1:
        return cells * stride - start
    many = (cells + 1) * stride - round(stride - 1 - 2 * center)
    if start < many <= start + stride:
        sizes.look_up([many - 1, many])
    if not (start < many <= start + stride and sizes(many - 1, number) == cells < sizes(many, number)):
        few, many = start, start + stride
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (middle, many) if sizes(middle, number) == cells else (few, middle)
    return (cells + 1) * stride - many


def _smallest(sizes: _Sizes, number: int, expected: int) -> int:
    """Return the shortest length that gives at least one cell; ``expected`` is tried first."""
    multiple = sizes.multiple
    fails, works = 0, BASE[0] // multiple
    guess = -(-expected // multiple)
    while works - fails > 1:
        if not fails < guess < works:
            guess = (fails + works) // 2
        if sizes(guess * multiple, number) > 0:
            works, guess = guess, guess - 1
        else:
            fails, guess = guess, (guess + works) // 2
    return works * multiple


def _check(sizes: _Sizes, found: Sequence[ProbedGeometry]) -> None:
    for length in sorted(sizes.known):
        for number, geometry in enumerate(found):
            if sizes(length, number) != geometry.size(length):
                raise Misplaced(
                    f"an input of {length} pixels gives {sizes(length, number)} cells where steps of "
                    f"{geometry.stride} pixels would give {geometry.size(length)}"
                )


def _traced(run: Run, size: tuple[int, int]) -> list[tuple[Tensor, tuple[Axis, Axis]]]:
    """Return the maps of a run on images of ``size`` (height, width), each with its two axes."""
    images = torch.zeros(1, 3, *size, device="meta")
    tracer = _Tracer()
    tracer.put(images, {2: Axis(1, 0, 0), 3: Axis(1, 0, 0)})
    with torch.no_grad(), tracer:
        maps = list(run(images))
    found = []
    for features in maps:
        if not isinstance(features, Tensor) or features.dim() != 4 or features.shape[0] != 1:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise Misplaced(f"it gives {shape} and not maps (N, C, h, w)")
        axes = tracer.axes(features)
        if not {2, 3} <= set(axes):
            axes = tracer.lost.get((features.shape[2], features.shape[3]), {})
        if not {2, 3} <= set(axes):
            raise Misplaced("it reorders the cells in a way that cannot be followed")
        found.append((features, (axes[2], axes[3])))
    return found


Axes = dict[int, Axis]


class _Tracer(TorchFunctionMode):
    """Follows the axes of tensors through all functions of torch."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[Tensor, Axes]] = {}
        self.lost: dict[tuple[int, int], Axes] = {}
        """By (h, w), the axes of the latest map of this size: what its cells see is still true when they
        were tokens of a sequence in between."""

    def axes(self, tensor: Any) -> Axes:
        known = self._known.get(id(tensor))
        return known[1] if known is not None and known[0] is tensor else {}

    def put(self, tensor: Any, axes: Axes) -> None:
        if not isinstance(tensor, Tensor):
            return
        self._known[id(tensor)] = (tensor, axes)  # keeping the tensor keeps its id; it has no values
        if set(axes) == {2, 3} and tensor.dim() == 4:
            self.lost[tensor.shape[2], tensor.shape[3]] = axes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = [(item, self.axes(item)) for item in _tensors((args, kwargs))]
        shapes = {id(item): tuple(item.shape) for item, _ in before}
        result = func(*args, **kwargs)
        if any(axes for _, axes in before):
            name = getattr(func, "__name__", "")
            for out in _tensors(result):
                self.put(out, self._follow(name, args, kwargs, before, shapes, out))
        return result

    def _follow(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        before: Sequence[tuple[Tensor, Axes]],
        shapes: Mapping[int, tuple[int, ...]],
        out: Tensor,
    ) -> Axes:
        first, axes = before[0]
        shape = shapes[id(first)]
        if name in _WINDOWS and set(axes) == {2, 3} and len(shape) == 4:
            return _windows(name, axes, args, kwargs)
        if name in ("permute", "transpose", "swapaxes", "t") and axes:
            return _reordered(name, axes, args, kwargs, len(shape))
        if name in ("pad", "_pad_circular") and axes:
            return _padded(axes, args, kwargs, len(shape))
        if name == "__getitem__" and axes:
            return _sliced(axes, shape, args[1], tuple(out.shape))
        if name in _SHAPED and axes:
            return _reshaped(axes, shape, tuple(out.shape))
        return _met(before, shapes, tuple(out.shape))


_WINDOWS = {
    "conv2d": ("stride", "padding", "dilation"),
    "max_pool2d": ("stride", "padding", "dilation"),
    "max_pool2d_with_indices": ("stride", "padding", "dilation"),
    "avg_pool2d": ("stride", "padding"),
    "lp_pool2d": ("stride",),
}
_SHAPED = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand")


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [tensor for value in values for tensor in _tensors(value)]
    return []


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[-1]) if isinstance(value, list | tuple) else (value, value)


def _windows(name: str, axes: Axes, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Axes:
    """Return the axes after a convolution or a pool over the last two axes."""
    convolution = name == "conv2d"
    names = ("weight", "bias") if convolution else ("kernel_size",)
    given = dict(zip(("input", *names, *_WINDOWS[name]), args, strict=False)) | dict(kwargs)
    kernel = tuple(given["weight"].shape[2:]) if convolution else _pair(given["kernel_size"])
    stride = given.get("stride", 1 if convolution else None)
    stride = kernel if stride is None or stride == [] else _pair(stride)
    dilation = _pair(given.get("dilation", 1))
    padding = given.get("padding", 0)
    if padding == "same":
        padding = tuple((side - 1) * step // 2 for side, step in zip(kernel, dilation, strict=True))
    padding = (0, 0) if padding == "valid" else _pair(padding)
    return {
        2 + axis: axes[2 + axis].window(kernel[axis], stride[axis], padding[axis], dilation[axis])
        for axis in (0, 1)
    }


def _reordered(name: str, axes: Axes, args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int) -> Axes:
    given = list(args[1:]) or list(kwargs.values())
    given = list(given[0]) if given and isinstance(given[0], list | tuple) else given
    if name == "permute":
        order = [axis % count for axis in given]
    else:
        one, other = (axis % count for axis in (given or (0, 1)))
        order = list(range(count))
        order[one], order[other] = other, one
    return {order.index(axis): seen for axis, seen in axes.items()}


def _padded(axes: Axes, args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int) -> Axes:
    amounts = list(args[1] if len(args) > 1 else kwargs["pad"])
    left = {count - 1 - number: amounts[2 * number] for number in range(len(amounts) // 2)}
    return {axis: seen.moved(-left.get(axis, 0)) for axis, seen in axes.items()}


def _sliced(axes: Axes, shape: Sequence[int], index: Any, out: Sequence[int]) -> Axes:
    """Return the axes after indexing with numbers and slices; tensors as an index lose them."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(item is not Ellipsis and not isinstance(item, int | slice) for item in items):
        return {}
    if Ellipsis in items:
        place = items.index(Ellipsis)
        items[place : place + 1] = [slice(None)] * (len(shape) - len(items) + 1)
    items += [slice(None)] * (len(shape) - len(items))
    kept: Axes = {}
    now = 0
    for axis, item in enumerate(items):
        if isinstance(item, int):
            continue
        start, _, step = item.indices(shape[axis])
        if axis in axes:
            moved = axes[axis].moved(start)
            kept[now] = Axis(moved.stride * step, moved.low, moved.high)
        now += 1
    return kept


def _reshaped(axes: Axes, shape: Sequence[int], out: Sequence[int]) -> Axes:
    """Return the axes that are still whole: as long as before, with as many numbers before them."""
    kept: Axes = {}
    for axis, seen in axes.items():
        in_front = _product(shape[:axis])
        for place, length in enumerate(out):
            if length == shape[axis] and _product(out[:place]) == in_front and place not in kept:
                kept[place] = seen
                break
    return kept


def _product(lengths: Sequence[int]) -> int:
    result = 1
    for length in lengths:
        result *= length
    return result


def _met(
    before: Sequence[tuple[Tensor, Axes]], shapes: Mapping[int, tuple[int, ...]], out: tuple[int, ...]
) -> Axes:
    """Return the axes of a result that keeps its inputs' lengths: its cells see what those of each saw."""
    kept: Axes = {}
    for tensor, axes in before:
        shift = len(out) - len(shapes[id(tensor)])
        for axis, seen in axes.items():
            place = axis + shift
            if place < 0 or out[place] != shapes[id(tensor)][axis]:
                continue
            other = kept.setdefault(place, seen)
            if other.stride != seen.stride:
                raise Misplaced(
                    f"cells {other.stride} pixels apart and cells {seen.stride} pixels apart are added"
                )
            kept[place] = Axis(seen.stride, min(seen.low, other.low), max(seen.high, other.high))
    return kept


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Return images (N, C, H, W) with zeros on the right and at the bottom, up to whole multiples."""
    height, width = images.shape[-2], images.shape[-1]
    more = (-width % multiple, -height % multiple)
    return functional.pad(images, (0, more[0], 0, more[1])) if any(more) else images


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the network that ``make`` builds, on the meta device and in evaluation mode.

    Random numbers that it draws are drawn again afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                network = make()
        except InputError:
            raise
        except Exception:  # it needs values while it is built
            with torch.device("cpu"):
                network = make()
    return network.to("meta").eval()
