"""The parts in order: the build, timings with nothing else running, then the rest side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import readers
from benchmarks.gpu_check.machine import ROOT, Machine
from benchmarks.gpu_check.result import Result
from benchmarks.gpu_check.runner import Part

FUZZ = os.environ.get("GPU_CHECK_FUZZ", str(ROOT / "tests/emulator/fuzz.py"))
"""Random pooling calls against the CPU operators; the exit status is 1 where any differs."""
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")  # each with a seed of its own, from 1 on
SANITIZED_SECONDS, FUZZ_SECONDS, REHEARSED_SECONDS = 20, 45, 2
TEST_PROCESSES = 14
NCU_OPTIONS = [
    *("--clock-control", "none", "--kernel-name-base", "demangled", "--kernel-name", "regex:detector"),
    *("--launch-count", "60", "--section", "SpeedOfLight", "--section", "Occupancy"),
    *("--section", "LaunchStats", "--csv", "--page", "details"),
]
PRECISIONS = ("float32", "bfloat16")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SMALL_QUICK_START = [
    "data.generate.train_images=6",
    "data.generate.test_images=3",
    "train.steps=2",
    "train.images_per_batch=2",
    "train.sampling.rois_per_image=8",
]


class Plan:
    """Makes the parts for one machine; ``data`` is the project's folder of data sets."""

    def __init__(self, machine: Machine, work: Path, data: Path, *, rehearsal: bool) -> None:
        self.machine, self.work, self.data, self.rehearsal = machine, work, data, rehearsal
        self.device = "cpu" if rehearsal else "cuda"

    def parts(self) -> list[Part]:
        return [*self._timings(), *self._checks()]

    def _own(self, module: str, *options: str) -> list[str]:
        """Return the command of a part that is a module of this package."""
        rehearsal = ["--dry-run"] if self.rehearsal else []
        return [sys.executable, "-m", f"benchmarks.gpu_check.{module}", *options, *rehearsal]

    def _part(self, name: str, title: str, command: list[str], limit: float, **options: Any) -> Part:
        if self.rehearsal:
            options["environment"] = {**ONE_THREAD, **options.get("environment", {})}
        return Part(name, title, command, limit, **options)

    def _timings(self) -> Iterator[Part]:
        yield self._part("build", "Build", self._own("build"), 150, alone=True)
        proposals = str(self.data / "bccd_opencv_fast_proposals.npz")
        yield self._part(
            "pooling",
            "Pooling against torchvision",
            self._own("pooling", "--proposals", proposals),
            100,
            alone=True,
        )
        yield self._profile()
        for precision in PRECISIONS:
            command = self._own("steps", "--data", str(self.data), "--precision", precision)
            title = f"Training step and test image, {precision}"
            yield self._part(f"steps_{precision}", title, command, 75, alone=True)
        for precision in PRECISIONS:
            command = self._own(
                "steps", "--data", str(self.data), "--precision", precision, "--other-determinism"
            )
            title = f"Training step, {precision}, train.deterministic not at its default"
            yield self._part(f"determinism_{precision}", title, command, 40, alone=True)

    def _profile(self) -> Part:
        command, log = self._own("pooling_profile"), self.work / "ncu.csv"
        ncu = self.machine.tool("ncu")
        options: dict[str, Any] = {"alone": True, "needed": False}
        if not self.rehearsal and ncu is None:
            options["skip"] = "there is no ncu on this machine"
        elif not self.rehearsal:
            command = [str(ncu), *NCU_OPTIONS, "--log-file", str(log), *command]
            options["read"] = lambda _, result: readers.read_ncu(read_text(log), result)
        return self._part("profile", "Kernels under Nsight Compute", command, 45, **options)

    def _checks(self) -> Iterator[Part]:
        yield self._tests()
        for tool in SANITIZERS:
            yield self._sanitizer(tool)
        yield self._plain_fuzz()
        yield self._quick_start()
        for precision in PRECISIONS:
            command = self._own("repeat", "--precision", precision)
            title = f"Repeated and resumed runs, {precision}"
            yield self._part(f"repeat_{precision}", title, command, 120, environment=ONE_THREAD)

    def _tests(self) -> Part:
        tests = ["tests/ops"] if self.rehearsal else ["tests"]
        processes = 1 if self.rehearsal else TEST_PROCESSES
        command = [sys.executable, "-m", "pytest", "-v", "-n", str(processes), "--dist", "loadfile"]
        command += ["-p", "no:cacheprovider", "-rfE", "--tb=short", "--durations=12", *tests]
        if self.rehearsal:
            command += ["-k", "test_roi_pool or gpu"]
        return self._part("tests", "Tests", command, 230, folder=ROOT, read=readers.read_pytest)

    def _sanitizer(self, tool: str) -> Part:
        found = self.machine.tool("compute-sanitizer")
        before = [] if self.rehearsal else [str(found), "--tool", tool, "--error-exitcode", "86"]
        options: dict[str, Any] = {"read": readers.read_fuzz if self.rehearsal else readers.read_sanitizer}
        if found is None and not self.rehearsal:
            options["skip"] = "there is no compute-sanitizer on this machine"
        if tool in ("memcheck", "initcheck"):
            # Every tensor its own allocation: otherwise torch's allocator hides what lies beyond one.
            options["environment"] = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        calls = fuzz(SANITIZED_SECONDS, 1 + SANITIZERS.index(tool), "quick")
        return self._fuzz(tool, f"Random calls under {tool}", [*before, *calls], 115, options)

    def _plain_fuzz(self) -> Part:
        return self._fuzz(
            "fuzz", "Random calls", fuzz(FUZZ_SECONDS, 0, "all"), 120, {"read": readers.read_fuzz}
        )

    def _fuzz(self, name: str, title: str, command: list[str], limit: float, options: dict[str, Any]) -> Part:
        options["environment"] = {**ONE_THREAD, **options.get("environment", {})}
        if not Path(FUZZ).is_file():
            options |= {"skip": f"{FUZZ} is not there", "needed": not self.rehearsal}
        if self.rehearsal:
            command, limit = [*fuzz(REHEARSED_SECONDS, 0, "none"), "--device", "emulator"], 170
        return self._part(name, title, command, limit, **options)

    def _quick_start(self) -> Part:
        output = self.work / "quickstart"
        command = [
            sys.executable,
            str(ROOT / "tools/train.py"),
            "--config",
            str(ROOT / "configs/quickstart.yaml"),
        ]
        command += ["--output", str(output), "--overwrite", "--device", self.device]
        command += [
            f"data.root={self.work / 'quickstart_data'}",
            *(SMALL_QUICK_START if self.rehearsal else []),
        ]

        def read(_log: str, result: Result) -> None:
            readers.read_quick_start(output, result)

        return self._part(
            "quickstart", "Quick start", command, 150, read=read, environment={"OMP_NUM_THREADS": "2"}
        )


def fuzz(seconds: int, seed: int, special: str) -> list[str]:
    """Return the command that makes random calls; ``special`` says which chosen ones come before them."""
    options = ["--device", "cuda", "--seconds", str(seconds), "--seed", str(seed), "--special", special]
    return [sys.executable, FUZZ, *options]


def read_text(path: Path) -> str:
    """Return a file's text; none where there is no such file."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
