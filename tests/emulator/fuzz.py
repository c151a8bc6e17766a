"""Compares random calls of the CUDA kernels, emulated or on a device, with the CPU operators: `make emulate`.

    python -m tests.emulator.fuzz --seconds 120
    python -m tests.emulator.fuzz --device cuda --calls 2000 --big

A call is a function of seed and number, so ``--first N --calls 1`` repeats a failure. The exit status is 1 if
any result differed or any call was refused.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from tests.emulator.calls import Call, random_call
from tests.emulator.compare import Cuda, Device, Emulator, faults_of, image_faults_of
from tests.emulator.images import ImageCall, random_image_call
from tests.emulator.masked import random_masked_call
from tests.emulator.special import special_calls

SHOWN = 10  # faults printed in full
IMAGES = 10  # of so many random calls, one is of the operator on images
MASKED = 5  # of so many, one is of masked pooling


class Fuzz:
    """Makes calls on a device and counts comparisons and faults."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.tally: Counter[str] = Counter()
        self.faulty = 0
        # torch then fills fresh memory with NaN and the largest integer, so that unwritten values show.
        torch.use_deterministic_algorithms(True)

    def make(self, name: str, call: Call | ImageCall, draw: random.Random) -> bool:
        """Make one call; print and count its faults. Return whether no call has failed so far."""
        self.device.prepare(draw)
        try:
            if isinstance(call, ImageCall):
                faults = image_faults_of(call, self.device, self.tally)
            else:
                faults = faults_of(call, self.device, self.tally)
        except RuntimeError as error:
            faults = [str(error).splitlines()[0]]
        if faults:
            self.faulty += 1
            if self.faulty <= SHOWN:
                print(f"{name}: {'; '.join(faults)}\n    {call}", flush=True)
        return not self.faulty

    def random(self, seed: int, number: int, *, big: bool = False) -> bool:
        draw = random.Random(f"{seed}/{number}")
        make_call: Callable[..., Call | ImageCall] = random_call
        if number % IMAGES == IMAGES - 1:
            make_call = random_image_call
        elif number % MASKED == 0:
            make_call = random_masked_call
        return self.make(f"call {number} of seed {seed}", make_call(draw, big=big), draw)

    def special(self, *, slow: bool, stop: bool = False) -> None:
        for name, call in special_calls(slow=slow):
            if not self.make(name, call, random.Random(name)) and stop:
                break

    def report(self, seconds: float) -> str:
        counted = ", ".join(f"{count} {what}" for what, count in self.tally.items())
        return f"{counted}\n{self.device.report()}\n{self.faulty} faults in {seconds:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("emulator", "cuda"), default="emulator")
    parser.add_argument("--library", type=Path, help="an emulator built before, instead of a new one")
    parser.add_argument("--variant", choices=("plain", "address", "thread"), default="plain")
    parser.add_argument("--seconds", type=float, help="how long to make random calls")
    parser.add_argument("--calls", type=int, help="how many random calls to make")
    parser.add_argument("--first", type=int, default=0, help="the number of the first call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--big", action="store_true", help="more RoIs and cells a call")
    parser.add_argument(
        "--special", choices=("all", "quick", "none"), default="all", help="chosen calls first"
    )
    parser.add_argument("--stop", action="store_true", help="end at the first fault")
    options = parser.parse_args()
    if options.seconds is None and options.calls is None:
        options.seconds = 120.0
    torch.set_num_threads(1)
    device = Cuda() if options.device == "cuda" else Emulator(options.variant, options.library)
    fuzz, start = Fuzz(device), time.monotonic()
    if options.special != "none":
        fuzz.special(slow=options.special == "all", stop=options.stop)
    random_start = time.monotonic()
    for number in itertools.count(options.first):
        if options.stop and fuzz.faulty:
            break
        if options.calls is not None and number - options.first >= options.calls:
            break
        if options.seconds is not None and time.monotonic() - random_start >= options.seconds:
            break
        fuzz.random(options.seed, number, big=options.big)
    print(fuzz.report(time.monotonic() - start))
    return 1 if fuzz.faulty else 0


if __name__ == "__main__":
    sys.exit(main())
