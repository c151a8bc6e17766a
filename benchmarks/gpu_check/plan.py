"""The parts in order: the build, the timings one at a time, then all other parts at the same time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import readers
from benchmarks.gpu_check.machine import ROOT, Machine
from benchmarks.gpu_check.result import Result
from benchmarks.gpu_check.runner import Part

FUZZ = os.environ.get("GPU_CHECK_FUZZ", str(ROOT / "tests/emulator/fuzz.py"))
"""Compares random pooling calls with the CPU operators; the exit status is 1 if any result differs."""
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")  # with seeds 1, 2, 3 and 4
SANITIZED_SECONDS, FUZZ_SECONDS, REHEARSED_SECONDS = 20, 45, 2
TEST_PROCESSES = 12  # the other parts that run at the same time take the remaining cores of 16
NCU_OPTIONS = [
    *("--clock-control", "none", "--kernel-name-base", "demangled", "--kernel-name", "regex:detector"),
    *("--launch-count", "60", "--section", "SpeedOfLight", "--section", "Occupancy"),
    *("--section", "LaunchStats", "--csv", "--page", "details"),
]
ALL_TESTS = ("tests",)
CHOSEN_SECONDS = 55.0
"""What the timings leave for the runs in several processes, and for tests that were chosen."""
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
    """Creates the parts for one machine; ``data`` is the project's folder of data sets."""

    def __init__(
        self, machine: Machine, work: Path, data: Path, *, rehearsal: bool, tests: Sequence[str] = ALL_TESTS
    ) -> None:
        """``tests`` are the files and folders, below the project's, whose tests marked ``gpu`` are run."""
        self.machine, self.work, self.data, self.rehearsal = machine, work, data, rehearsal
        self.tests = tests
        self.device = "cpu" if rehearsal else "cuda"

    def parts(self) -> list[Part]:
        return [*self._timings(), *self._checks()]

    def _own(self, module: str, *options: str) -> list[str]:
        """Return the command that runs a module of this package as a part."""
        rehearsal = ["--dry-run"] if self.rehearsal else []
        return [sys.executable, "-m", f"benchmarks.gpu_check.{module}", *options, *rehearsal]

    def _part(self, name: str, title: str, command: list[str], limit: float, **options: Any) -> Part:
        if self.rehearsal:
            options["environment"] = {**ONE_THREAD, **options.get("environment", {})}
        return Part(name, title, command, limit, **options)

    def _timings(self) -> Iterator[Part]:
        yield self._part("build", "Build", self._own("build"), 150, alone=True, first=True)
        proposals = str(self.data / "bccd_opencv_fast_proposals.npz")
        yield self._part(
            "pooling",
            "Pooling against torchvision",
            self._own("pooling", "--proposals", proposals),
            100,
            alone=True,
        )
        for precision in PRECISIONS:
            command = self._own("steps", "--data", str(self.data), "--precision", precision)
            title = f"Training step and test image, {precision}"
            yield self._part(f"steps_{precision}", title, command, 75, alone=True)
        yield self._float16()
        yield self._ranks()
        yield from self._loading()
        yield self._compile()
        yield self._profile()
        for precision in PRECISIONS:
            command = self._own(
                "steps", "--data", str(self.data), "--precision", precision, "--other-determinism"
            )
            title = f"Training step, {precision}, train.deterministic not at its default"
            options = {"alone": True, "least": 25.0, "optional": True}
            yield self._part(f"determinism_{precision}", title, command, 40, **options)

    def _loading(self) -> Iterator[Part]:
        """Return the parts that time the loader, in order of importance; they share their photographs."""
        photographs = ["--photographs", str(self.work / "photographs")]
        options: dict[str, Any] = {"alone": True, "optional": True}
        title = "Training and test images with the loader"
        yield self._part("loop", title, self._own("loop", *photographs), 80, least=40.0, **options)
        title = "The loader without a network"
        yield self._part("loading", title, self._own("loading", *photographs), 50, least=30.0, **options)

    def _float16(self) -> Part:
        command = self._own("float16", "--data", str(self.data))
        return self._part("float16", "Training in float16", command, 60, alone=True)

    def _ranks(self) -> Part:
        command = self._own("ranks", "--data", str(self.data))
        title, limit = "Time per step in several processes", 240 if self.rehearsal else 90
        return self._part("ranks", title, command, limit, alone=True)

    def _compile(self) -> Part:
        """Return the part that compiles a network, which may take a minute for each precision."""
        command = self._own("compile", "--photographs", str(self.work / "photographs"))
        options: dict[str, Any] = {"alone": True, "least": 45.0, "optional": True}
        limit = 400 if self.rehearsal else 110
        return self._part("compile", "Compiled networks", command, limit, **options)

    def _processes(self) -> Part:
        title, limit = "One training in several processes", 240 if self.rehearsal else 120
        options: dict[str, Any] = {"environment": ONE_THREAD, "usual": CHOSEN_SECONDS}
        return self._part("processes", title, self._own("processes"), limit, **options)

    def _profile(self) -> Part:
        command, log = self._own("pooling_profile"), self.work / "ncu.csv"
        ncu = self.machine.tool("ncu")
        options: dict[str, Any] = {"alone": True, "needed": False, "least": 30.0, "optional": True}
        if not self.rehearsal and ncu is None:
            options["skip"] = "there is no ncu on this machine"
        elif not self.rehearsal:
            command = [str(ncu), *NCU_OPTIONS, "--log-file", str(log), *command]
            options["read"] = lambda _, result: readers.read_ncu(read_text(log), result)
        return self._part("profile", "Kernels under Nsight Compute", command, 45, **options)

    def _checks(self) -> Iterator[Part]:
        yield self._tests()
        yield self._processes()
        for tool in SANITIZERS:
            yield self._sanitizer(tool)
        yield self._plain_fuzz()
        yield self._quick_start()
        for precision in PRECISIONS:
            command = self._own("repeat", "--precision", precision)
            title = f"Repeated and resumed runs, {precision}"
            yield self._part(f"repeat_{precision}", title, command, 120, environment=ONE_THREAD)

    def _tests(self) -> Part:
        """Return the tests that need a GPU, whole runs included; a rehearsal runs some others instead."""
        chosen = ["-k", "test_roi_pool or gpu", "tests/ops"] if self.rehearsal else ["-m", "gpu", *self.tests]
        processes = "1" if self.rehearsal else str(TEST_PROCESSES)
        # worksteal: the whole runs, which take longest, are in few files.
        command = [sys.executable, "-m", "pytest", "-v", "-n", processes, "--dist", "worksteal"]
        command += ["-p", "no:cacheprovider", "-rfE", "--tb=short", "--durations=12", *chosen]
        options: dict[str, Any] = {"folder": ROOT, "read": readers.read_pytest}
        if list(self.tests) != [*ALL_TESTS]:
            options["usual"] = CHOSEN_SECONDS
        return self._part("tests", "Tests that need a GPU", command, 150, **options)

    def _sanitizer(self, tool: str) -> Part:
        sanitizer = self.machine.tool("compute-sanitizer")
        before = [] if self.rehearsal else [str(sanitizer), "--tool", tool, "--error-exitcode", "86"]
        options: dict[str, Any] = {"read": readers.read_fuzz if self.rehearsal else readers.read_sanitizer}
        if sanitizer is None and not self.rehearsal:
            options["skip"] = "there is no compute-sanitizer on this machine"
        if tool in ("memcheck", "initcheck"):
            # Every tensor gets its own allocation: torch's caching allocator would hide accesses beyond it.
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
        output, data = self.work / "quickstart", self.work / "quickstart_data"
        data.mkdir(parents=True, exist_ok=True)  # images are generated only in an existing folder
        command = [
            sys.executable,
            str(ROOT / "tools/train.py"),
            "--config",
            str(ROOT / "configs/quickstart.yaml"),
        ]
        command += ["--output", str(output), "--overwrite", "--device", self.device]
        command += [
            f"data.root={data}",
            *(SMALL_QUICK_START if self.rehearsal else []),
        ]

        def read(_log: str, result: Result) -> None:
            readers.read_quick_start(output, result)

        return self._part(
            "quickstart", "Quick start", command, 150, read=read, environment={"OMP_NUM_THREADS": "2"}
        )


def fuzz(seconds: int, seed: int, special: str) -> list[str]:
    """Return the command that makes random calls; ``special`` says which chosen calls come before them."""
    options = ["--device", "cuda", "--seconds", str(seconds), "--seed", str(seed), "--special", special]
    return [sys.executable, FUZZ, *options]


def read_text(path: Path) -> str:
    """Return the text of a file, an empty one if the file does not exist."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
