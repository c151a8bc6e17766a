"""The device ``fakegpu``: its tensors hold a CPU tensor and count as being on another device."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tests.emulator.kernels import emulated

NAME = "fakegpu"
PROJECT = Path(__file__).parents[2]

# These take tensors of two devices on CUDA, too; the last four within limits that _check_indices knows.
CROSSING = {"copy_", "_to_copy", "set_", "resize_", "index", "index_put", "index_put_", "_index_put_impl_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# The shape of what these give, or their result itself, has to come back to the host.
WAITING = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
waits: Counter[tuple[str, str]] = Counter()  # by kind and place
# Copies to the device that do not wait for it, but for the host's memory, because it is not pinned.
pageable: Counter[str] = Counter()  # by place


class FakeStream:
    """A queue of work, without the work: what is known is which parts of other queues come before its end."""

    def __init__(self, device: object = None) -> None:
        self.done = 0  # pieces of work that were given to it
        self.after: dict[FakeStream, int] = {}  # for other streams, how many of their pieces come before

    def wait_stream(self, other: FakeStream) -> None:
        for stream, count in {**other.after, other: other.done}.items():
            self.after[stream] = max(count, self.after.get(stream, 0))


class Memory:
    """The memory of a tensor and its views: the stream that it belongs to, and those it was recorded for."""

    def __init__(self) -> None:
        self.stream, self.written = streams[-1], streams[-1].done
        self.recorded: set[FakeStream] = set()

    def check(self) -> None:
        """Refuse a use by the current stream for which a GPU would read too early or too late."""
        stream = streams[-1]
        if stream is self.stream:
            return
        if stream.after.get(self.stream, 0) < self.written:
            raise RuntimeError("a tensor is used by a stream that does not wait for the one that writes it")
        if stream not in self.recorded:
            raise RuntimeError("a tensor is used by a stream that it is not recorded for (record_stream)")


streams = [FakeStream()]
"""The current stream is the last one."""


class _Module(backend_registration._DummyBackendModule):
    """The module ``torch.fakegpu``."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        """Do nothing: the only generator is the CPU's, and torch restores it already."""

    Stream = FakeStream

    def current_stream(self, device: object = None) -> FakeStream:
        return streams[-1]

    @contextmanager
    def stream(self, chosen: FakeStream) -> Iterator[None]:
        streams.append(chosen)
        yield
        streams.pop()


_autocast = torch.library.Library("_", "IMPL")


def install() -> None:
    """Register the device; once per process, and it stays registered."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    torch.autograd.set_multithreading_enabled(False)  # the mode must see the backward pass
    # Autocast changes nothing on the device: what is tested is what the host does.
    _autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    patched: Any = torch
    patched.inference_mode = torch.no_grad  # a wrapped tensor cannot be an inference tensor
    save = torch.save
    patched.save = lambda value, *args, **kwargs: save(off_device(value), *args, **kwargs)


def off_device(value: Any) -> Any:
    """Return ``value`` with CPU tensors in place of the device's."""
    return tree_map(lambda leaf: leaf.held.detach() if isinstance(leaf, OnDevice) else leaf, value)


class OnDevice(torch.Tensor):
    """A tensor of the device; ``held`` is where its numbers are."""

    held: torch.Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False) -> OnDevice:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(f"{NAME}:0"),
            requires_grad=requires_grad,
        )
        tensor.held = held
        tensor.memory = Memory()
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return call(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> OnDevice:
        copy = OnDevice(self.held.detach().clone(), self.requires_grad)
        copy._is_param = isinstance(self, torch.nn.Parameter)
        memo[id(self)] = copy
        return copy

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held})"

    def tolist(self) -> Any:
        note_wait("tolist")
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert a {NAME} tensor to numpy; use .cpu() first")

    def new_tensor(self, data: Any, **kwargs: Any) -> OnDevice:  # type: ignore[override]
        note_wait("copy to the device")
        return OnDevice(self.held.new_tensor(data, **kwargs))

    def record_stream(self, stream: FakeStream) -> None:  # type: ignore[override]
        self.memory.recorded.add(stream)

    def data_ptr(self) -> int:
        return self.held.data_ptr()


class FakeGpu(TorchDispatchMode):
    """Within this context, tensors can be created on the device and every call is checked."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return call(func, args, kwargs or {})


def note_wait(kind: str) -> None:
    """Count a wait at the innermost line of the project that led to it."""
    waits[kind, _place()] += 1


def _place() -> str:
    ours = [frame for frame in traceback.extract_stack() if _is_ours(Path(frame.filename))]
    return f"{Path(ours[-1].filename).relative_to(PROJECT)}:{ours[-1].lineno}" if ours else "elsewhere"


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(PROJECT / "detector") or path.is_relative_to(PROJECT / "tools")


def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one operator on the held tensors, and wrap those results that belong on the device."""
    name = func._schema.name.split("::")[1]
    flat, structure = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    if ours and name not in CROSSING:
        strangers = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()]
        if strangers:
            shape = tuple(strangers[0].shape)
            raise RuntimeError(f"{func}: tensors on two devices, {NAME} and the CPU, {shape}")
    if name in INDEXING:
        _check_indices(func, *args[:3])
    if ours and name in WAITING:
        note_wait(name)
    if name in ("is_pinned", "_pin_memory"):  # torch would ask for a real GPU
        return _pinned(name, args[0])
    if name == "empty" and kwargs.get("pin_memory"):
        return _pinned("_pin_memory", func(*args, **{**kwargs, "pin_memory": False}))
    streams[-1].done += 1
    for tensor in ours:
        tensor.memory.check()
    to_device = _result_is_on_device(name, args, kwargs, bool(ours))
    plain = [_plain(leaf) for leaf in flat]
    plain_args, plain_kwargs = tree_unflatten(plain, structure)
    kernel = (emulated(func) if ours else None) or func
    result = kernel(*plain_args, **plain_kwargs)
    if any(tensor.shape != tensor.held.shape for tensor in ours):
        raise NotImplementedError(f"{func} resizes in place, which {NAME} does not follow")
    known = {id(tensor.held): tensor for tensor in ours}  # in place: the same tensor comes back
    shared = {tensor.held.untyped_storage()._cdata: tensor.memory for tensor in ours}

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, OnDevice):
            return leaf
        if id(leaf) in known:
            return known[id(leaf)]
        if not to_device:
            return leaf
        made = OnDevice(leaf)
        made.memory = shared.get(leaf.untyped_storage()._cdata, made.memory)  # a view
        return made

    return tree_map(wrapped, result)


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, OnDevice):
        return leaf.held
    if isinstance(leaf, torch.device) and leaf.type == NAME:
        return torch.device("cpu")
    return leaf


def _check_indices(func: Any, target: Any, indices: Any, values: Any = None) -> None:
    """Refuse indexing that CUDA refuses, and count indexing that makes the host wait."""
    on_device = isinstance(target, OnDevice)
    given = [index for index in indices if index is not None]
    if not on_device and any(isinstance(index, OnDevice) for index in given):
        raise RuntimeError(f"{func}: a CPU tensor indexed by a {NAME} tensor")
    if on_device and any(index.dim() and not isinstance(index, OnDevice) for index in given):
        note_wait("index copied to the device")
    if on_device and any(index.dtype in (torch.bool, torch.uint8) for index in given):
        note_wait("mask as an index")
    if isinstance(values, torch.Tensor) and values.dim() and isinstance(values, OnDevice) != on_device:
        raise RuntimeError(f"{func}: values on another device than the tensor they go to")


def _result_is_on_device(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], from_device: bool) -> bool:
    """Return whether the result of a call is on the device, and count a copy that makes the host wait."""
    device = kwargs.get("device")
    to_device = from_device if device is None else torch.device(device).type == NAME
    waiting = not kwargs.get("non_blocking")
    if name == "copy_":
        to_device, from_device = isinstance(args[0], OnDevice), isinstance(args[1], OnDevice)
        waiting = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if name in ("copy_", "_to_copy") and to_device != from_device:
        if waiting:
            note_wait("copy to the device" if to_device else "copy to the CPU")
        elif to_device and not _pinned("is_pinned", args[1] if name == "copy_" else args[0]):
            pageable[_place()] += 1
    return to_device


def _pinned(name: str, tensor: Any) -> Any:
    """Return whether a CPU tensor counts as pinned, or a copy that does."""
    if name == "is_pinned":
        return getattr(tensor, "counts_as_pinned", False)
    copy = tensor.clone()
    copy.counts_as_pinned = True
    return copy
