"""Times two functions against each other on a device, and measures the bandwidth of its memory.

A call that takes 30 us on a GPU costs the host more than that, so events around a single call would time the
host. Therefore a kernel that only waits is queued before each timed call, and waits long enough for the host
to queue the call. Samples in which the device still had to wait for the host are left out and counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]
CACHE_BYTES = 256 << 20
"""Writing so much between two calls clears all caches of the first one (an H200 has 50 MB of L2)."""
QUEUE_MICROSECONDS = 250.0
"""How long the device waits at least before a timed call."""


@dataclass
class Sides:
    """Microseconds of both functions, one value per sample, and the number of samples left out."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    left_out: int = 0

    def medians(self) -> tuple[float, float]:
        """Return both medians; NaN for a function without samples."""
        return _median(self.ours), _median(self.theirs)


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else float("nan")


class CudaTimer:
    """Measures times on the current CUDA device with CUDA events."""

    def __init__(self) -> None:
        self.buffer = torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")
        self.cycles_per_microsecond = self._cycles()

    def _cycles(self) -> float:
        torch.cuda._sleep(1_000_000)
        start, end = _event(), _event()
        torch.cuda.synchronize()
        start.record()
        torch.cuda._sleep(10_000_000)
        end.record()
        torch.cuda.synchronize()
        return 10_000_000 / (1e3 * start.elapsed_time(end))

    def compare(self, ours: Call, theirs: Call, rounds: int, *, cold: bool) -> Sides:
        """Time both functions ``rounds`` times in alternating order, with cold or with warm caches.

        A warm call comes right after another call of the same function.
        """
        wait = QUEUE_MICROSECONDS + 3 * max(self.host(ours, 5), self.host(theirs, 5))
        cycles = int(wait * self.cycles_per_microsecond)
        sides = Sides()
        samples = []
        for number in range(rounds):
            order = [(sides.ours, ours), (sides.theirs, theirs)]
            for kept, call in order if number % 2 else reversed(order):
                samples.append((kept, *self._sample(call, cycles, cold)))
            torch.cuda.synchronize()
        for kept, start, end, caught_up in samples:
            sides.left_out += caught_up
            if not caught_up:
                kept.append(1e3 * start.elapsed_time(end))
        return sides

    def _sample(self, call: Call, cycles: int, cold: bool) -> tuple[torch.cuda.Event, torch.cuda.Event, bool]:
        start, end = _event(), _event()
        if cold:
            self.buffer.zero_()
        torch.cuda._sleep(cycles)
        if not cold:
            call()
        start.record()
        call()
        end.record()
        return start, end, start.query()

    def host(self, call: Call, calls: int = 40) -> float:
        """Return the microseconds that a call costs the host, without waiting for the device."""
        call()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            call()
        spent = time.perf_counter() - started
        torch.cuda.synchronize()
        return 1e6 * spent / calls

    def once(self, call: Call) -> float:
        """Return the microseconds from the start of a call on the host to its end on the device."""
        return _once(call, torch.cuda.synchronize)


class CpuTimer:
    """The same interface with the host's clock, for a rehearsal."""

    def __init__(self) -> None:
        self.buffer = torch.empty(8 << 20, dtype=torch.uint8)

    def compare(self, ours: Call, theirs: Call, rounds: int, *, cold: bool) -> Sides:
        sides = Sides()
        for number in range(rounds):
            order = [(sides.ours, ours), (sides.theirs, theirs)]
            for kept, call in order if number % 2 else reversed(order):
                self.buffer.zero_() if cold else call()
                kept.append(self.once(call))
        return sides

    def host(self, call: Call, calls: int = 3) -> float:
        return _once(lambda: [call() for _ in range(calls)], lambda: None) / calls

    def once(self, call: Call) -> float:
        return _once(call, lambda: None)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _once(call: Call, wait: Call) -> float:
    wait()
    started = time.perf_counter()
    call()
    wait()
    return 1e6 * (time.perf_counter() - started)


def make_timer(device: str) -> CudaTimer | CpuTimer:
    return CudaTimer() if device == "cuda" else CpuTimer()


def bandwidth(timer: CudaTimer | CpuTimer, device: str) -> float:
    """Return the bytes per second, read and written, of a copy of 1 GB (8 MB in a rehearsal)."""
    count = (1_000_000_000 if device == "cuda" else 8_000_000) // 4
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    microseconds = statistics.median(timer.once(copy) for _ in range(12))
    if isinstance(timer, CudaTimer):
        microseconds = timer.compare(copy, copy, 10, cold=False).medians()[0]
    return 8 * count / (microseconds / 1e6)
