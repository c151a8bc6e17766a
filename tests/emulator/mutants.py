"""Breaks the CUDA kernels on purpose, one fault at a time, and checks that each is noticed.

    python -m tests.emulator.mutants [part of a name ...]        (all of them: make emulate-mutants)

Every barrier in the kernels is removed in turn; other faults are the edits listed here. An edit that no
longer applies is an error: a change of the kernels must update the edits. If no result changes under any
order of threads, an edit is run again under AddressSanitizer, a missing barrier under ThreadSanitizer.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.emulator.build import FOLDERS, PROJECT, build

CALLS = 600  # random calls per mutant
TIMEOUT = 240  # seconds; a kernel that never ends counts as noticed
BARRIER = re.compile(r"\b(__syncthreads|__syncwarp)\(\);")


@dataclass(frozen=True)
class Mutant:
    """An edit: ``old``, which occurs once in ``file`` below csrc/, is replaced by ``new``."""

    name: str
    file: str
    old: str
    new: str
    sanitizer: str = "address"


EDITS = [
    Mutant(
        "the last of equal values wins",
        "pooling/cuda/pool.cu",
        "place[k] = min(place[k], uint32_t(place_of(i, k)));",
        "place[k] = uint32_t(place_of(i, k));",
    ),
    Mutant(
        "of equal windows' columns the left wins",
        "pooling/cuda/packed_map.cu",
        " || (right.value == value && right.place < place)",
        "",
    ),
    Mutant(
        "NaN wins",
        "pooling/cuda/pool.cu",
        "best.at[k] = value.at[k] > best.at[k] ? value.at[k] : best.at[k];",
        "best.at[k] = best.at[k] > value.at[k] ? best.at[k] : value.at[k];",
    ),
    Mutant(
        "the lowest number has a place",
        "pooling/cuda/pool.cu",
        "static_cast<M>(value.at[k]) > M(static_cast<scalar_t>(kLowest))",
        "static_cast<M>(value.at[k]) >= M(static_cast<scalar_t>(kLowest))",
    ),
    Mutant(
        "the last window reaches beyond its bin",
        "pooling/cuda/pool.cu",
        "last_y = row.end - step",
        "last_y = row.end - 1",
    ),
    Mutant(
        "channels beyond the last are read",
        "pooling/cuda/packed_map.cu",
        "within / kPack<scalar_t> + of_pack, job.channels - 1)",
        "within / kPack<scalar_t> + of_pack, job.slots - 1)",
    ),
    Mutant(
        "windows lack the lower row",
        "pooling/cuda/packed_map.cu",
        "load<Slots>(here + (kColumns + 1 + i) * kCell<scalar_t>)",
        "load<Slots>(here + i * kCell<scalar_t>)",
    ),
    Mutant("windows in bins one cell wide", "pooling/cuda/pool.cu", " && column.end - column.begin > 1", ""),
    Mutant(
        "a tile's last column is not its neighbours'",
        "pooling/cuda/packed_map.cu",
        "read(i % (kRows + 1), kColumns, i / (kRows + 1));",
        "read(i % (kRows + 1), kColumns - 1, i / (kRows + 1));",
    ),
    Mutant(
        "zeros stay negative", "pooling/cuda/packed_map.cu", "return value + scalar_t(0);", "return value;"
    ),
    Mutant(
        "slots are channels",
        "pooling/cuda/pool.h",
        "return slot - within + within % kPack<scalar_t> * kWarp + within / kPack<scalar_t>;",
        "return slot;",
    ),
    Mutant(
        "the finest grid makes all others",
        "pooling/pooling.h",
        "steps[i].source = steps[j].grid;",
        "steps[i].source = steps[0].grid;",
    ),
    Mutant(
        "grids of the second depth are not made",
        "pooling/cuda/pool.cu",
        "job.depth = std::max(job.depth, job.depths[step.grid]);",
        "job.depth = std::max(job.depth, std::min(job.depths[step.grid], 1));",
    ),
    Mutant(
        "empty bins of a plan keep the lowest number",
        "pooling/cuda/pool.cu",
        "if (is_empty(rows[p], rows[grid.height + q]))",
        "if (false)",
    ),
    Mutant(
        "empty bins keep the lowest number",
        "pooling/cuda/pool.cu",
        "job.depth == 0 && is_empty(y, x) ?",
        "false ?",
    ),
    Mutant(
        "finer grids' places stay tile by tile",
        "pooling/cuda/pool.cu",
        "return by_row(place.at[k]);",
        "return place.at[k];",
    ),
    Mutant(
        "a tile's place is row by row",
        "pooling/cuda/pool_backward.cu",
        "first(by_tile(place_at<place_t>(tile.y, tile.x)))",
        "first(place_at<place_t>(tile.y, tile.x))",
    ),
    Mutant(
        "16 bits for the places of 256 cells",
        "pooling/cuda/pool.h",
        "pooling.y.extent <= 255 && pooling.x.extent <= 255",
        "pooling.y.extent <= 256 && pooling.x.extent <= 256",
    ),
    Mutant(
        "unusable RoIs are used",
        "pooling/cuda/pool.h",
        "usable ? static_cast<int32_t>(roi[0]) : -1",
        "usable ? static_cast<int32_t>(roi[0]) : 0",
    ),
    Mutant(
        "32 bits for the distance of images",
        "pooling/cuda/packed_map.cu",
        "part.image * job.strides[0]",
        "int32_t(part.image * job.strides[0])",
    ),
    Mutant(
        "wide loads of any address",
        "pooling/cuda/pool.h",
        "memory_row == count && tile_row == count && address % 16 == 0",
        "memory_row == count && tile_row == count",
    ),
    Mutant(
        "a warp skips at most one row of bins",
        "pooling/cuda/pool.h",
        "while (q >= width) q -= width, ++p;",
        "if (q >= width) q -= width, ++p;",
    ),
    Mutant(
        "too little shared memory",
        "pooling/cuda/pool.h",
        "rows = tile_bins + geometry.grid_count;",
        "rows = tile_bins;",
    ),
    Mutant(
        "the average is a sum",
        "pooling/cuda/pool.cu",
        "static_cast<scalar_t>(sum[k] / count)",
        "static_cast<scalar_t>(sum[k])",
    ),
    Mutant(
        "every cell gets all of an average's gradient",
        "pooling/cuda/pool_backward.cu",
        "value.at[k] /= cells;",
        ";",
    ),
    Mutant(
        "an average's cells begin with the tile",
        "pooling/cuda/pool_backward.cu",
        "(1u << last) - (1u << first) : 0",
        "(1u << last) - 1 : 0",
    ),
    Mutant(
        "gradients of a later tile of bins",
        "pooling/cuda/pool_backward.cu",
        "* row + bin - begin]",
        "* row + bin]",
    ),
    Mutant(
        "RoIs of other images count",
        "pooling/cuda/pool_backward.cu",
        "job.images[roi] == image",
        "job.images[roi] >= 0",
    ),
    Mutant(
        "a run ends a bin early",
        "pooling/cuda/pool_backward.cu",
        "run.end = min(i + j, n - 1) + 1;",
        "run.end = min(i + j, n - 1);",
    ),
    Mutant(
        "grids that begin within a tile are left out",
        "pooling/cuda/pool_backward.cu",
        "rows[0].begin >= tile.y + kHeight",
        "rows[0].begin > tile.y",
    ),
    Mutant(
        "a warp comes before itself",
        "pooling/cuda/pool_backward.cu",
        "if (w < warp) before",
        "if (w <= warp) before",
    ),
    Mutant(
        "a full list lacks its last bin",
        "pooling/cuda/pool_backward.cu",
        "at >= kList) continue",
        "at >= kList - 1) continue",
    ),
    Mutant(
        "bins beyond the list's end are added again",
        "pooling/cuda/pool_backward.cu",
        "begin + i < count ? first : first ^ 1u << 31",
        "first",
    ),
    Mutant(
        "no room for what comes from elsewhere",
        "pooling/cuda/pool_backward.cu",
        "kShared = (kCells + 1) * kSlots * sizeof(M)",
        "kShared = kCells * kSlots * sizeof(M)",
    ),
    Mutant(
        "of equal cells under a mask the last wins",
        "pooling/cuda/masked_pool.cu",
        "if (number > value) {",
        "if (number >= value) {",
    ),
    Mutant(
        "cells that the mask does not cover count",
        "pooling/cuda/masked_pool.cu",
        "weight[i] = whole ? M(1) :",
        "weight[i] = true ? M(1) :",
    ),
    Mutant(
        "a group of cells reaches beyond its bin",
        "pooling/cuda/masked_pool.cu",
        "if (x < columns.end)",
        "if (true)",
    ),
    Mutant(
        "bins are not clipped to the mask's window",
        "pooling/cuda/masked_pool.cu",
        "return row ? cover.rows_of(bin) : cover.columns_of(bin);",
        "return bin;",
    ),
    Mutant(
        "a mean of samples leaves out those outside the map",
        "pooling/cuda/masked_pool.cu",
        "if (mode == Mode::avg && whole) bin.total",
        "if (false) bin.total",
    ),
    Mutant(
        "samples beside the mask count",
        "pooling/cuda/masked_pool.cu",
        "if (mode != Mode::avg && !(cover.at<M>(numbers, y.cell, x.cell) > M(0))) continue;",
        "",
    ),
    Mutant(
        "samples read cells beside the mask",
        "pooling/cuda/masked_pool.cu",
        "if (mode == Mode::avg && !whole) weights[k] *=",
        "if (false) weights[k] *=",
    ),
    Mutant(
        "a masked zero stays negative",
        "pooling/cuda/masked_pool.cu",
        "bin.value + M(0);",
        "bin.value;",
    ),
    Mutant(
        "samples reach a cell less far",
        "pooling/samples.h",
        "before(samples.end - 1) + 2",
        "before(samples.end - 1) + 1",
    ),
    Mutant(
        "RoIs of other images reach a row",
        "pooling/cuda/masked_pool_backward.cu",
        "region.image == image &&",
        "region.image >= 0 &&",
    ),
    Mutant(
        "the cells of a part begin with the map",
        "pooling/cuda/masked_pool_backward.cu",
        "row == y && x >= columns.begin &&",
        "row == y &&",
    ),
    Mutant(
        "gradients of all rows",
        "pooling/cuda/masked_pool_backward.cu",
        "if (row == y &&",
        "if (",
    ),
    Mutant(
        "a masked average's gradient is not divided",
        "pooling/cuda/masked_pool_backward.cu",
        "static_cast<M>(grads[index]) / total);",
        "static_cast<M>(grads[index]));",
    ),
    Mutant(
        "the last RoIs of a group are left out",
        "pooling/cuda/masked_pool_backward.cu",
        "found &= found - 1",
        "found &= (found - 1) & 0xfffffff",
    ),
    Mutant(
        "images are read from the first",
        "images/cuda/normalize.cu",
        "image = start.image + y / job.height;",
        "image = start.image;",
    ),
    Mutant(
        "the padding at the right is not 0",
        "images/cuda/normalize.cu",
        " && x % job.width < job.widths[image]",
        "",
    ),
    Mutant(
        "a row goes on in the next",
        "images/cuda/normalize.cu",
        "y = start.y + x / job.width;",
        "y = start.y;",
    ),
    Mutant(
        "both pixels of a thread are padding, or neither",
        "images/cuda/normalize.cu",
        "(second ? next : here)",
        "here",
    ),
    Mutant("channels are not swapped", "images/cuda/normalize.cu", "(bgr ? 2 - c : c)", "c"),
    Mutant(
        "the last bytes of a block are not read",
        "images/cuda/normalize.cu",
        "i = whole * kWide + threadIdx.x",
        "i = (count + kWide - 1) / kWide * kWide + threadIdx.x",
    ),
    Mutant(
        "wide loads begin anywhere",
        "images/cuda/normalize.cu",
        "reinterpret_cast<uintptr_t>(from) % kWide == 0",
        "true",
    ),
    Mutant(
        "the last store is wide",
        "images/cuda/normalize.cu",
        "if (at + 4 <= count)",
        "if (at < count)",
    ),
    Mutant(
        "every launch has the first images' sizes",
        "images/cuda/normalize.cu",
        "sizes[2 * (first + i)]",
        "sizes[2 * i]",
    ),
]

# Barriers that no result depends on: a file, and text that stands there once and ends at the barrier.
UNNEEDED: list[tuple[str, str]] = []


def without_barriers(csrc: Path) -> Iterator[Mutant]:
    """Yield a mutant for every barrier of the kernels; its ``old`` reaches back to the file's beginning."""
    for file, end in UNNEEDED:
        if (csrc / file).read_text().count(end) != 1:
            raise SystemExit(f"an unneeded barrier of {file} does not stand there once: {end!r}")
    for path in sorted(path for folder in FOLDERS for path in (csrc / folder / "cuda").iterdir()):
        file = str(path.relative_to(csrc))
        text = path.read_text()
        for match in BARRIER.finditer(text):
            before = text[: match.start()]
            if any(file == other and (before + match[0]).endswith(end) for other, end in UNNEEDED):
                continue
            line = before.count("\n") + 1
            name = f"no {match[1]} in line {line} of {path.name}"
            yield Mutant(name, file, before + match[0], before + ";", "thread")


def apply(mutant: Mutant, csrc: Path) -> None:
    path = csrc / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        count = text.count(mutant.old)
        raise SystemExit(f"{mutant.name}: {mutant.old[-60:]!r} stands {count} times in {path.name}, not once")
    path.write_text(text.replace(mutant.old, mutant.new))


def notice(mutant: Mutant) -> str | None:
    """Return how a mutant is noticed, or None if it is not."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(PROJECT / "csrc", folder / "csrc")
        apply(mutant, folder / "csrc")
        for variant in ("quick", mutant.sanitizer):
            library = build(variant, folder / "csrc", folder / "build")
            noticed = _run(library, "" if variant == "quick" else variant)
            if noticed is not None:
                return noticed
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
        "--calls",
        CALLS,
    ]
    try:
        done = subprocess.run(
            list(map(str, command)), cwd=PROJECT, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return "it never ends"
    if done.returncode == 0:
        return None
    fault = re.search(r"(?:Thread|Address)Sanitizer: (.*?) (?:\(|on )", done.stderr)
    lines = done.stdout.splitlines() or done.stderr.splitlines()[-1:] or [f"it ends with {done.returncode}"]
    return fault[1] if fault else lines[0][:150]


def main() -> int:
    csrc = PROJECT / "csrc"
    mutants = [*EDITS, *without_barriers(csrc)]
    for mutant in mutants:  # before minutes are spent
        if (csrc / mutant.file).read_text().count(mutant.old) != 1:
            apply(mutant, csrc)
    chosen = [one for one in mutants if not sys.argv[1:] or any(part in one.name for part in sys.argv[1:])]
    unnoticed = 0
    build("quick")  # fills the cache with the objects that mutants do not change
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(notice, mutant): mutant for mutant in chosen}
        for future in as_completed(running):
            unnoticed += future.result() is None
            print(f"{running[future].name}: {future.result() or 'NOT NOTICED'}", flush=True)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} mutants noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
