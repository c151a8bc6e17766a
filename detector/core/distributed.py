"""The processes of a training on several cores, GPUs or machines, as ``torchrun`` starts them.

A program that was started without ``torchrun`` is one process, of rank 0, and nothing here communicates.
Everything that several processes send each other goes through this module: tensors through
``torch.distributed``, and signs of life and barriers through the store of ``torchrun``, in which a process
may wait for another one for hours.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from detector.core.errors import InputError
from detector.core.progress import speak_as

Item = TypeVar("Item")
Result = TypeVar("Result")

REPLY_SECONDS = 600.0
"""A process that takes longer than this to join the others in a step has failed."""
SILENT_SECONDS = 60.0
"""A process without a sign of life for this long is taken for lost: it is stopped, or its machine is gone."""
_ENDED_SECONDS = 5.0
"""The main thread has this long to notice by itself that another process has ended, and to say so."""
_BEAT_SECONDS = 2.0
_POLL_SECONDS = 0.05
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ProcessLost(RuntimeError):
    """Another process of the training has ended or does not answer."""


class _Group:
    """The processes that this one has joined."""

    def __init__(self, backend: str) -> None:
        timeout = timedelta(seconds=REPLY_SECONDS)
        with _communicating():
            whole, self.rank, self.world_size = next(iter(distributed.rendezvous("env://", timeout=timeout)))
            store = _fresh_part(whole, self.rank, self.world_size)
            distributed.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.world_size, timeout=timeout
            )
        self.local_rank, self.local_world_size = local_place()
        self.store = distributed.PrefixStore("detector", store)
        self.barriers = 0
        self.lost = ""  # which other process has ended, in words
        self._left = threading.Event()
        self._last_sign = b"failed"
        watched = distributed.PrefixStore("detector", store.clone())  # a client of its own, which never waits
        self._watch = threading.Thread(target=self._beat, args=(watched,), name="watch", daemon=True)
        self._watch.start()

    def leave(self, *, together: bool) -> None:
        """Give a last sign of life; without ``together`` the others end too."""
        self._last_sign = b"left" if together else b"failed"
        self._left.set()
        self._watch.join()

    def _beat(self, store: Any) -> None:
        """Give a sign of life every few seconds, and end this process if another one has ended or gives none.

        The main thread may be where it notices neither that nor a signal, such as in a wait for a GPU.
        """
        others = [number for number in range(self.world_size) if number != self.rank]
        last = {number: (b"", time.monotonic()) for number in others}
        ended: dict[int, float] = {}
        beats = 0
        try:
            store.set(f"process/{self.rank}", _process_here())
            while not self._left.wait(_BEAT_SECONDS):
                beats += 1
                store.set(f"alive/{self.rank}", str(beats))
                now = time.monotonic()
                for number in others:
                    sign = _read(store, f"alive/{number}")
                    if sign == b"left":
                        continue
                    if sign == b"failed" or _has_ended(_read(store, f"process/{number}")):
                        self.lost = f"rank {number} has ended"
                        if now - ended.setdefault(number, now) > _ENDED_SECONDS:
                            self._give_up(number, "has ended")
                    elif sign != last[number][0] or store.check([f"busy/{number}"]):
                        last[number] = sign, now
                    elif now - last[number][1] > SILENT_SECONDS:
                        silent = f"has given no sign of life for {SILENT_SECONDS:.0f} seconds"
                        self._give_up(number, f"{silent}: it is stopped, or its machine is gone")
            store.set(f"alive/{self.rank}", self._last_sign)
        except RuntimeError:  # the store is gone, and with it torchrun, which ends this process
            return

    def _give_up(self, number: int, reason: str) -> NoReturn:
        """End this process at once; its main thread may be waiting where nothing can interrupt it."""
        os.write(2, f"rank {self.rank}: error: rank {number} {reason}\n".encode())
        os._exit(1)


def _read(store: Any, key: str) -> bytes:
    return store.get(key) if store.check([key]) else b""


def _process_here() -> str:
    """Return the machine, as the number of its ``torchrun`` if that is known, and this process's number."""
    return f"{os.environ.get('GROUP_RANK', '')} {os.getpid()}"


def _has_ended(process: bytes) -> bool:
    """Whether another process's `_process_here` is that of a process of this machine that has ended."""
    machine, _, number = process.decode().partition(" ")
    if not machine or machine != os.environ.get("GROUP_RANK"):
        return False
    try:
        os.kill(int(number), 0)  # sends nothing
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _fresh_part(store: Any, rank: int, world_size: int) -> Any:
    """Return a part of the store of ``torchrun`` that only the processes of this start use.

    The store lives on when ``torchrun`` restarts the processes, with the addresses and barriers of those that
    have ended; and the agents of several machines may count their restarts differently. So rank 0 names a
    new part, and tells the name to each process in answer to a number that this one has just drawn.
    """
    own, limit = uuid4().hex, time.monotonic() + REPLY_SECONDS

    def read(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    def wait() -> None:
        if time.monotonic() > limit:
            raise RuntimeError(f"not all of {world_size} processes have joined within {REPLY_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)

    if rank:
        store.set(f"hello/{rank}", own)
        while not (answer := read(f"answer/{rank}")).startswith(own):
            wait()
        name = answer.removeprefix(own)
        store.add(f"joined/{name}", 1)
        return distributed.PrefixStore(name, store)
    answered: dict[int, str] = {}
    while store.add(f"joined/{own}", 0) < world_size - 1:
        for other in range(1, world_size):
            hello = read(f"hello/{other}")
            if hello and answered.get(other) != hello:  # the first one may be that of an earlier start
                store.set(f"answer/{other}", hello + own)
                answered[other] = hello
        wait()
    return distributed.PrefixStore(own, store)


_group: _Group | None = None


@contextmanager
def alone() -> Iterator[None]:
    """Let this process be the only one inside the block, in which it does without the others."""
    global _group
    group, _group = _group, None
    try:
        yield
    finally:
        _group = group


@contextmanager
def busy() -> Iterator[None]:
    """Do without signs of life of this process inside the block, while the others wait for it.

    For functions that hold Python's global lock for minutes, as SciPy's LAPACK does, so that no thread of
    this process can give any. That the process ends is noticed by ``torchrun`` all the same.
    """
    if _group is None:
        yield
        return
    key = f"busy/{_group.rank}"
    with _communicating():
        _group.store.set(key, "")
    yield
    with _communicating():
        _group.store.delete_key(key)


def launched() -> bool:
    """Whether ``torchrun``, or something that sets the same variables, started this process."""
    return all(name in os.environ for name in _VARIABLES)


def local_place() -> tuple[int, int]:
    """Return this process's number on its machine and how many processes were started there."""
    if not launched():
        return 0, 1
    return int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])


def rank() -> int:
    """Return this process's number among all processes."""
    return 0 if _group is None else _group.rank


def world_size() -> int:
    """Return the number of processes on all machines."""
    return 1 if _group is None else _group.world_size


def is_main() -> bool:
    """Whether this is the process that writes files, logs and draws: rank 0."""
    return rank() == 0


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the other processes that ``torchrun`` has started, inside the block; without it do nothing.

    ``device`` is where this process computes, a GPU with its number. GPUs communicate by nccl; processes on a
    CPU, or several that share a GPU, by gloo. At the end every process waits for all others, unless an error
    ends it. An exception with ``in_every_process`` is one that all processes raise.

    Raises:
        ProcessLost: the others cannot be reached.
    """
    global _group
    if not launched():
        yield
        return
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    shared = place.type == "cuda" and local_place()[1] > torch.cuda.device_count()
    _group = _Group("cpu:gloo,cuda:nccl" if place.type == "cuda" and not shared else "gloo")
    speak_as(_group.rank)
    together = False  # whether every process ends here
    try:
        _check_devices(f"{place.type}, by {'nccl' if place.type == 'cuda' and not shared else 'gloo'}")
        yield
        barrier()
        together = True
    except BaseException as error:
        if getattr(error, "in_every_process", False):
            barrier()
            together = True
        if lost_another(error) and not isinstance(error, ProcessLost):
            raise ProcessLost(_in_a_sentence(error)) from error
        raise
    finally:
        _group.leave(together=together)
        _group = None
        if together:
            distributed.destroy_process_group()


def _check_devices(device: str) -> None:
    """Raise InputError unless all processes compute on the same kind of ``device``, and communicate alike."""
    devices = gather_texts(device)
    if len(set(devices)) > 1:
        found = "; ".join(f"rank {number}: {one}" for number, one in enumerate(devices))
        raise InputError(
            f"the processes would compute on different kinds of devices ({found}); give --device cpu, or "
            "start as many processes on each machine as it has GPUs"
        )


def barrier() -> None:
    """Wait until every process is here, for as long as all of them give signs of life."""
    if _group is None:
        return
    _group.barriers += 1
    key = f"barrier/{_group.barriers}"
    with _communicating():
        if _group.store.add(key, 1) == _group.world_size:
            _group.store.set(f"{key}/all", "")
        while not _group.store.check([f"{key}/all"]):
            if _group.lost:
                raise RuntimeError(_group.lost)
            time.sleep(_POLL_SECONDS)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in rank 0, then in the first process of each machine, then in all others.

    So what the block makes, such as a cached file, is made once per machine or, on a shared drive, once.
    """
    turn = 0 if is_main() else 1 if local_place()[0] == 0 else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(turn, 2):
        barrier()


def total(*values: float) -> list[float]:
    """Return the sums of ``values`` over all processes, the same in each of them."""
    if _group is None:
        return list(values)
    return summed(torch.tensor(values, dtype=torch.float64)).tolist()


def summed(values: Tensor) -> Tensor:
    """Return the sum of ``values``, of equal shapes, over all processes."""
    if _group is None:
        return values
    result = values.clone()
    with _communicating():
        distributed.all_reduce(result)
    return result


def gathered(values: Tensor) -> Tensor:
    """Return the ``values``, of equal shapes, of all processes, by rank in a new first dimension."""
    if _group is None:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(_group.world_size)]
    with _communicating():
        distributed.all_gather(parts, values.contiguous())
    return torch.stack(parts)


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Return the ``rows`` (n, ...) of every process, by rank; n may differ. They are on the CPU."""
    if _group is None:
        return [rows]
    rows = rows.contiguous()
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(_group.world_size)]
    with _communicating():
        distributed.all_gather(counts, torch.tensor([len(rows)]))
        most = max(int(count) for count in counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(gathered, padded)
    return [part[: int(count)].clone() for part, count in zip(gathered, counts, strict=True)]


def gather_texts(text: str) -> list[str]:
    """Return the ``text`` of every process, by rank."""
    content = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
    return [bytes(part[:-1].tolist()).decode() for part in gather_rows(content)]


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Return this process's share of ``items``: every ``world_size``-th one, from its own rank on."""
    return items if _group is None else items[_group.rank :: _group.world_size]


def interleaved(parts: Sequence[Sequence[Item]]) -> list[Item]:
    """Return the items of all processes in their common order, from what each had of `share`, by rank."""
    count = sum(map(len, parts))
    return [parts[number % len(parts)][number // len(parts)] for number in range(count)]


def draw_apart(seed: int, step: int) -> None:
    """Let torch's generator draw other numbers in this step than in another process, such as for dropout.

    Rank 0 goes on with its generator, whose state the checkpoints keep, so that one process draws what it
    always did. The others start from ``seed``, ``step`` and rank, so that they have no state to keep.
    """
    if rank():
        digest = hashlib.blake2b(f"{seed} {step} {rank()}".encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little"))


class _Computed(nn.Module):
    """A function that uses a network, as a module, so that ``DistributedDataParallel`` can call it."""

    def __init__(self, model: nn.Module, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.compute = compute

    def forward(self, *given: Any) -> Any:
        return self.compute(*given)


def data_parallel(model: nn.Module, compute: Callable[..., Result]) -> Callable[..., Result]:
    """Return ``compute``, which uses all of ``model``, so that gradients are those of all processes.

    The gradients of every parameter are averaged over the processes during the backward pass.
    """
    if _group is None or not any(parameter.requires_grad for parameter in model.parameters()):
        return compute
    with _communicating(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 gives the argument another name
        # Buffers are the same in every process: `SharedBatchNorm2d` sees to that. DDP would rearrange the
        # gradients after the first step, and so add them up in another order in a run than after a resumption
        # of it, unless it looks for unused parameters.
        return DistributedDataParallel(
            _Computed(model, compute), broadcast_buffers=False, find_unused_parameters=True
        )


@contextmanager
def without_averaging(computed: Callable[..., Any]) -> Iterator[None]:
    """Keep the gradients of ``computed``, what `data_parallel` returned, of this process inside the block.

    The next backward pass outside averages the sums.
    """
    if isinstance(computed, DistributedDataParallel):
        with computed.no_sync():
            yield
    else:
        yield


@contextmanager
def _communicating() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(_in_a_sentence(error)) from error


def _in_a_sentence(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0][:200]
    return (
        "another process of this training has ended or does not answer; the reason is in its own message "
        f"({first})"
    )


def lost_another(error: BaseException) -> bool:
    """Whether an error, which a backward pass may have raised, comes from the loss of another process."""
    if isinstance(error, ProcessLost | distributed.DistError):
        return True
    words = ("gloo", "NCCL", "Connection closed by peer")
    return world_size() > 1 and isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def check_shares(images: int, parts: int) -> None:
    """Raise InputError unless the images of a step can be divided among the processes and their parts."""
    if images % (world_size() * parts):
        per_process = f" in {parts} parts each (train.accumulate)" if parts > 1 else ""
        raise InputError(
            f"train.images_per_batch: {images} images per step cannot be divided evenly among "
            f"{world_size()} processes{per_process}; give a multiple of {world_size() * parts}"
        )
