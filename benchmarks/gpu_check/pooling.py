"""Times pooling on a GPU against torchvision's and compares it with the CPU operators, bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_check.pooling_cases import CASES, REHEARSAL, Case, Size, call, make_rois
from benchmarks.gpu_check.result import Result, part_arguments
from benchmarks.gpu_check.timing import Call, CpuTimer, CudaTimer, bandwidth, make_timer

LAYOUTS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
SLOW_MICROSECONDS = 4000.0
"""Calls above this are timed fewer times."""


class Bench:
    """Times cases on one device and writes a row per case."""

    def __init__(self, device: str, size: Size, proposals: Path, result: Result) -> None:
        self.device, self.size, self.proposals, self.result = device, size, proposals, result
        self.timer: CudaTimer | CpuTimer = make_timer(device)
        self.bandwidth = bandwidth(self.timer, device)

    def case(self, kind: str, case: Case) -> None:
        """Time ``case`` with RoIs of ``kind`` on features of both layouts."""
        print(f"{case.name}, {kind}", flush=True)
        torch.manual_seed(0)
        rois = make_rois(kind, case, self.size, self.proposals)
        single = torch.randn(case.images, self.size.channels, *self.size.map).relu_()
        features = single.to(case.dtype)
        pooled = case.ours(features, rois)
        grad = torch.randn(pooled.shape) if case.what == "backward" else None
        expected = call(case, case.ours, features, rois, grad)().detach()
        there = rois.to(self.device), None if grad is None else grad.to(self.device)
        theirs = call(case, case.theirs, single.to(self.device), *there)
        for layout, memory_format in LAYOUTS.items():
            placed = features.to(self.device).contiguous(memory_format=memory_format)
            ours = call(case, case.ours, placed, *there)
            row = {
                "call": case.name,
                "RoIs": kind,
                "layout": layout,
                **self.times(ours, theirs, case, features, pooled),
                "equal to CPU": equality(ours().detach().cpu(), expected),
            }
            self.result.row("Pooling", row)

    def times(
        self, ours: Call, theirs: Call, case: Case, features: Tensor, pooled: Tensor
    ) -> dict[str, object]:
        slow = max(self.timer.once(ours), self.timer.once(theirs)) > SLOW_MICROSECONDS
        rounds = 3 if self.device == "cpu" else 8 if slow else 24
        cold = self.timer.compare(ours, theirs, rounds, cold=True)
        warm = self.timer.compare(ours, theirs, max(rounds // 2, 2), cold=False)
        our_time, their_time = cold.medians()
        our_warm, their_warm = warm.medians()
        ratio = their_time / our_time
        moved = case.bytes(features, pooled.numel())
        return {
            "ours us": our_time,
            "torchvision us": their_time,
            "ratio": ratio,
            "target": case.target,
            "met": None if case.target is None else ratio >= case.target,
            "ours warm us": our_warm,
            "torchvision warm us": their_warm,
            "ours host us": self.timer.host(ours),
            "torchvision host us": self.timer.host(theirs),
            "MB at least": moved / 1e6,
            "% of copy": 100 * moved / self.bandwidth / (our_time / 1e6),
            "left out": cold.left_out + warm.left_out,
        }


def equality(pooled: Tensor, expected: Tensor) -> str:
    """Return "bits", "values" where only the sign of a zero differs, or the largest difference."""
    pooled, expected = pooled.contiguous(), expected.contiguous()
    if pooled.shape != expected.shape or pooled.dtype != expected.dtype:
        return f"NO: {tuple(pooled.shape)} {pooled.dtype}"
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[pooled.element_size()]
    if torch.equal(pooled.view(whole), expected.view(whole)):
        return "bits"
    if torch.equal(pooled, expected):
        return "values"
    return f"NO: off by {float((pooled.double() - expected.double()).abs().max()):.2g}"


def main() -> int:
    parser, result = part_arguments(__doc__)
    parser.add_argument("--proposals", type=Path, required=True, help=".npz of proposals; may be missing")
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry_run else "cuda"
    bench = Bench(device, REHEARSAL if arguments.dry_run else Size(), arguments.proposals, result)
    result.note(f"copy bandwidth {bench.bandwidth / 1e9:.0f} GB/s, read and written")
    kinds = ["uniform", "proposals"]
    if not arguments.proposals.is_file():
        result.note(f"{arguments.proposals.name} is missing: only uniform RoIs are timed")
        kinds.remove("proposals")
    for kind in kinds:
        for case in CASES:
            result.attempt(bench.case, kind, case)
    for row in result.tables.get("Pooling", []):
        if row["equal to CPU"].startswith("NO"):
            result.fault(f"{row['call']}, {row['RoIs']}, {row['layout']}: {row['equal to CPU']}")
    return 1 if result.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
