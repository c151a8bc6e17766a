"""Changes valid files of every kind at random and reads them: `make fuzz-readers`.

    python -m tests.fuzz_readers --cases 10000 --seed 0
    python -m tests.fuzz_readers --kind "store, index" --first 4711 --cases 1

A reader may accept a changed file or refuse it with an `InputError` that names it. Anything else is a
failure: another exception, more than 5 seconds of processor time, more than 1.5 GiB of memory beyond what
the process has. A case is a function of seed, kind and number, so ``--kind KIND --first N --cases 1`` runs
a failure again. The kinds are in `tests.fuzz_targets`.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from detector.core.errors import InputError, nearest
from detector.core.machine import available_cores
from detector.core.progress import track
from tests.fuzz_targets import TARGETS, Target

SECONDS = 5
MEMORY = 3 * 2**29
Case = tuple[str, int]


class Outcome(NamedTuple):
    """One case: ``fault`` is None where the reader did as it should; ``memory`` is by how many bytes the
    peak of its process has risen since it began."""

    kind: str
    number: int
    refused: bool
    seconds: float
    memory: int
    fault: str | None


class Prepared(NamedTuple):
    """The valid file of a target in a folder of this process, and its content."""

    target: Target
    path: Path
    content: bytes

    def put(self, content: bytes) -> None:
        """Write ``content`` as a new file: the old one may still be mapped."""
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(content)


def prepare(target: Target, folder: Path) -> Prepared:
    """Write the valid file of ``target`` below ``folder`` and read it."""
    own = folder / f"fuzz_{os.getpid()}_{target.kind.replace(', ', '_').replace(' ', '_')}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    path = target.make(own)
    prepared = Prepared(target, path, path.read_bytes())
    target.read(path)
    prepared.put(prepared.content)
    return prepared


def run_case(prepared: Prepared, number: int, seed: int) -> Outcome:
    """Change the file of a target, read it and put the valid one back."""
    target = prepared.target
    rng = random.Random(f"{seed}:{target.kind}:{number}")
    prepared.put(target.change(prepared.content, rng))
    refused, fault = False, None
    start = time.process_time()  # not the clock's: other work on the machine is no fault of the reader
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(prepared.path)
    except InputError as error:
        refused = True
        named = prepared.path.parent if target.names_folder else prepared.path
        if str(named) not in str(error):
            fault = f"the file is not named: {error}"[:300]
    except BaseException as error:
        fault = f"{type(error).__name__}: {error}"[:300]
    seconds = time.process_time() - start
    if seconds > SECONDS and fault is None:
        fault = f"took {seconds:.1f} s"
    prepared.put(prepared.content)
    return Outcome(target.kind, number, refused, seconds, peak() - _start.get("peak", 0), fault)


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def guarded_case(case: Case, seed: int) -> Outcome:
    """`run_case` with an alarm that ends a reader which does not come back."""
    kind, number = case
    if kind not in _prepared:
        target = next(target for target in TARGETS if target.kind == kind)
        _prepared[kind] = prepare(target, Path(tempfile.gettempdir()))
    signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, 3 * SECONDS)
    try:
        return run_case(_prepared[kind], number, seed)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _late(*_: Any) -> None:
    raise TimeoutError(f"no answer after {3 * SECONDS} s")


_start: dict[str, int] = {}
_prepared: dict[str, Prepared] = {}


def _set_up_worker(folder: str) -> None:
    """Limit the memory, and silence the decoders' own words about damaged files."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    cv2.setNumThreads(0)
    tempfile.tempdir = folder
    _start["peak"] = peak()


def main() -> int:
    arguments = parse()
    kinds = chosen_kinds(arguments.kind)
    numbers = range(arguments.first, arguments.first + arguments.cases)
    cases = [(kind, number) for kind in kinds for number in numbers]
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(available_cores(), initializer=_set_up_worker, initargs=(folder,)) as pool,
    ):
        results = pool.map(partial(guarded_case, seed=arguments.seed), cases, chunksize=25)
        outcomes = list(track(results, len(cases), "changed files"))
    return report(outcomes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kind", action="append", default=[], help="only kinds of file whose name has this text in it"
    )
    return parser.parse_args()


def chosen_kinds(parts: Sequence[str]) -> list[str]:
    """Return the kinds whose name has one of ``parts`` in it, by default all; SystemExit without any."""
    kinds = [target.kind for target in TARGETS]
    for part in parts:
        if not any(part in kind for kind in kinds):
            raise SystemExit(f"no kind {part!r}{nearest(part, kinds)}; there are {'; '.join(kinds)}")
    return [kind for kind in kinds if not parts or any(part in kind for part in parts)]


def report(outcomes: list[Outcome]) -> int:
    """Print a table of what happened by kind of file; return the number of failures, at most 1."""
    print(f"{'kind':26} {'cases':>7} {'refused':>8} {'failures':>9} {'longest':>10}")
    for kind in dict.fromkeys(one.kind for one in outcomes):
        mine = [one for one in outcomes if one.kind == kind]
        refused, failed = sum(one.refused for one in mine), sum(one.fault is not None for one in mine)
        longest = max(one.seconds for one in mine) * 1000
        print(f"{kind:26} {len(mine):7} {refused:8} {failed:9} {longest:7.0f} ms")
    failures = [one for one in outcomes if one.fault is not None]
    for one in failures:
        print(f"FAILED {one.kind}, case {one.number}: {one.fault}")
    growth = max(one.memory for one in outcomes)
    print(f"{len(outcomes)} cases, {len(failures)} failures; memory grew by {growth / 2**20:.0f} MiB")
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
