"""Breaks the CUDA kernels on purpose, one way at a time, and sees that it is noticed: `make emulate-mutants`.

    python -m tests.emulator.mutants [part of a name ...]

Every barrier is taken out in turn, whatever the kernels look like; other faults are edits listed here. An
edit that no longer applies is an error: whoever changes the kernels writes edits for the new ones. A mutant
that changes no result under any order of threads is tried under ThreadSanitizer next.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.emulator.build import PROJECT, build

SECONDS = 25  # of random calls a mutant
TIMEOUT = 240  # a kernel that never ends is noticed, too
BARRIER = re.compile(r"\b(__syncthreads|__syncwarp)\(\);")


@dataclass(frozen=True)
class Mutant:
    """``old``, which stands once in ``file`` below csrc, replaced by ``new``."""

    name: str
    file: str
    old: str
    new: str


EDITS = [
    Mutant("a later equal value wins", "cuda/pool.cu", "value > best[v]", "value >= best[v]"),
    Mutant("rows of a tile overlap", "cuda/pool.cu", "kRow = kChannels + 1;", "kRow = kChannels - 1;"),
    Mutant(
        "an empty bin keeps the lowest number", "cuda/pool.cu", "empty ? M(0) : (mode", "false ? M(0) : (mode"
    ),
    Mutant(
        "images in reverse",
        "cuda/pool.cu",
        "(image_index < 0 ? 0 : image_index) * job.image_stride",
        "(image_index < 0 ? 0 : 1 - image_index) * job.image_stride",
    ),
    Mutant(
        "32 bits for the distance of images",
        "cuda/pool.cu",
        "(image_index < 0 ? 0 : image_index) * job.image_stride",
        "int32_t((image_index < 0 ? 0 : image_index) * job.image_stride)",
    ),
    Mutant("a row beyond the bin", "cuda/pool.cu", "y < row.end; ++y", "y <= row.end; ++y"),
    Mutant("unusable RoIs are used", "cuda/geometry.cu", "usable ? static_cast<int32_t>(roi[0]) : -1", "0"),
    Mutant("lanes add all at once", "cuda/pool_backward.cu", "inside && turn == now", "inside && now == 0"),
    Mutant("lanes add in reverse", "cuda/pool_backward.cu", "same & ((1u << lane) - 1)", "same >> lane >> 1"),
    Mutant(
        "a barrier that not all lanes meet",
        "cuda/pool_backward.cu",
        "if (inside && turn == now) sums",
        "if (inside && turn == now) __syncwarp(), sums",
    ),
    Mutant("sums are not zeroed", "cuda/pool_backward.cu", "sums[i] = M(0);", ";"),
    Mutant(
        "RoIs of other images count", "cuda/pool_backward.cu", "job.images[begin + lane] == image", "true"
    ),
    Mutant(
        "too little shared memory",
        "cuda/pool_backward.cu",
        "kWarps * tile * sizeof(Compute<scalar_t>)",
        "kWarps * tile * sizeof(Compute<scalar_t>) - 4",
    ),
]

# Barriers that no result depends on: a file, and text that stands there once and ends at the barrier.
UNNEEDED = [
    # Both ways of adding up have ended in a barrier of their own.
    ("pool_backward.cu", "scatter_roi(job, roi, channel, first_cell, sums);\n    }\n  }\n  __syncwarp();"),
]


def without_barriers(csrc: Path) -> Iterator[Mutant]:
    """Yield a mutant for every barrier of the kernels; its ``old`` reaches back to the file's beginning."""
    for file, end in UNNEEDED:
        if (csrc / "cuda" / file).read_text().count(end) != 1:
            raise SystemExit(f"an unneeded barrier of {file} does not stand there once: {end!r}")
    for path in sorted((csrc / "cuda").iterdir()):
        text = path.read_text()
        for match in BARRIER.finditer(text):
            before = text[: match.start()]
            if any(path.name == file and (before + match[0]).endswith(end) for file, end in UNNEEDED):
                continue
            line = before.count("\n") + 1
            name = f"no {match[1]} in line {line} of {path.name}"
            yield Mutant(name, f"cuda/{path.name}", before + match[0], before + ";")


def apply(mutant: Mutant, csrc: Path) -> None:
    path = csrc / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        count = text.count(mutant.old)
        raise SystemExit(f"{mutant.name}: {mutant.old[-60:]!r} stands {count} times in {path.name}, not once")
    path.write_text(text.replace(mutant.old, mutant.new))


def notice(mutant: Mutant) -> str | None:
    """Return what is noticed of a mutant, None for nothing."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(PROJECT / "csrc", folder / "csrc")
        apply(mutant, folder / "csrc")
        for variant in ("plain", "thread"):
            library = build(variant, folder / "csrc", folder / "build")
            found = _run(library, "" if variant == "plain" else variant)
            if found is not None:
                return found
    return None


def _run(library: Path, sanitizer: str) -> str | None:
    script = Path(__file__).with_name("run.sh")
    command = [
        "sh",
        script,
        sys.executable,
        sanitizer,
        "--library",
        library,
        "--stop",
        "--special",
        "quick",
        "--seconds",
        SECONDS,
    ]
    try:
        done = subprocess.run(
            list(map(str, command)), cwd=PROJECT, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return "it never ends"
    if done.returncode == 0:
        return None
    race = re.search(r"WARNING: ThreadSanitizer: (.*?) \(", done.stderr)
    lines = done.stdout.splitlines() or done.stderr.splitlines()[-1:]
    return race[1] if race else lines[0][:150]


def main() -> int:
    csrc = PROJECT / "csrc"
    mutants = [*EDITS, *without_barriers(csrc)]
    for mutant in mutants:  # before minutes are spent
        if (csrc / mutant.file).read_text().count(mutant.old) != 1:
            apply(mutant, csrc)
    chosen = [one for one in mutants if not sys.argv[1:] or any(part in one.name for part in sys.argv[1:])]
    unnoticed = 0
    for mutant in chosen:
        start = time.monotonic()
        found = notice(mutant)
        unnoticed += found is None
        print(f"{mutant.name}: {found or 'NOT NOTICED'} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} mutants noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
