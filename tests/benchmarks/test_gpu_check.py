"""The GPU check rehearsed on a CPU: its report, its limits, and what it reads from other programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks.gpu_check import compile, processes, ranks, readers
from benchmarks.gpu_check.loading import compare, target
from benchmarks.gpu_check.loop import REHEARSED, Loop, Timed, targets, time_test_images, time_training
from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.photographs import Photographs, photograph_config, write_photographs
from benchmarks.gpu_check.plan import ALL_TESTS, Plan
from benchmarks.gpu_check.report import Outcome
from benchmarks.gpu_check.result import Result
from benchmarks.gpu_check.runner import Part, Runner
from benchmarks.gpu_check.step_data import bccd_overrides
from benchmarks.loader import Setting
from detector.config import Config
from detector.factory.data import class_names, load_split
from tests.conftest import PROJECT

FUZZ = "import sys; print('calls: 3', sys.argv[1:]); print('faults: {}')\n"


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out), "--dry-run", *options]


def environment(tmp_path: Path, fuzz: str = FUZZ) -> dict[str, str]:
    (tmp_path / "fuzz.py").write_text(fuzz)
    return {**os.environ, "GPU_CHECK_FUZZ": str(tmp_path / "fuzz.py")}


@pytest.mark.slow
def test_a_rehearsal_writes_the_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status = subprocess.run(
        command(out, "--parts", "pooling,fuzz,memcheck"),
        cwd=PROJECT,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        check=False,
    ).returncode
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "logs.tar.gz"}
    report = json.loads((out / "report.json").read_text())
    assert {part["name"]: part["status"] for part in report["parts"]} == dict.fromkeys(
        ("pooling", "memcheck", "fuzz"), "passed"
    )
    assert status == 0
    rows = report["parts"][0]["tables"]["Pooling"]
    assert {row["equal to CPU"] for row in rows} == {"bits"}
    assert {row["layout"] for row in rows} == {"NCHW", "channels last"}
    text = (out / "report.md").read_text()
    assert "its numbers mean nothing" in text
    assert "backward, 128 RoIs" in text


@pytest.mark.slow
def test_a_termination_still_leaves_a_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(out, "--parts", "fuzz"),
        cwd=PROJECT,
        env=environment(tmp_path, "import time; print('begun', flush=True); time.sleep(60)"),
        stdout=subprocess.PIPE,
    )
    while not out.is_dir() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 1
    part = json.loads((out / "report.json").read_text())["parts"][0]
    assert part["status"] in ("interrupted", "not run")


def test_wrong_usage_has_a_status_of_its_own(tmp_path: Path) -> None:
    run = subprocess.run(
        command(tmp_path, "--parts", "nothing"), cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "no such part: nothing" in run.stderr


@pytest.mark.slow
def test_a_part_that_fails_or_hangs_does_not_stop_the_others(tmp_path: Path) -> None:
    programs = {
        "fails": "raise SystemExit(3)",
        "hangs": "import time; time.sleep(60)",
        "passes": "print('yes')",
    }
    parts = [
        Part(name, name, [sys.executable, "-c", program], 1 if name == "hangs" else 30, alone=name == "fails")
        for name, program in programs.items()
    ]
    parts.append(Part("absent", "absent", ["no such program"], 1))
    outcomes = [Outcome(part.name, part.title) for part in parts]
    Runner(tmp_path, dict(os.environ), time.monotonic() + 200, lambda _: None).run(
        list(zip(parts, outcomes, strict=True))
    )
    assert [each.status for each in outcomes] == ["failed", "timed out", "passed", "failed"]
    Runner(tmp_path, {}, time.monotonic() + 5, lambda _: None).run([(parts[2], late := Outcome("late", ""))])
    assert late.status == "not run"


def test_pytest_s_counts_and_failures_are_read() -> None:
    result = Result()
    log = "[gw1] [  5%] FAILED tests/a.py::b \nFAILED tests/a.py::b - assert 1\n"
    log += "== 1 failed, 20 passed, 3 skipped in 85.20s (0:01:25) ==\n"
    readers.read_pytest(log, result)
    assert result.tables["Tests"] == [{"passed": 20, "failed": 1, "skipped": 3, "seconds": 85.2}]
    assert result.faults == ["tests/a.py::b - assert 1"]


def test_tests_that_failed_before_pytest_itself_broke_off_are_named() -> None:
    result = Result()
    readers.read_pytest(
        "[gw1] [  5%] FAILED tests/a.py::b \nINTERNALERROR> KeyError\n1 failed in 9.0s\n", result
    )
    assert result.faults == ["tests/a.py::b"]


@pytest.mark.parametrize(
    ("summary", "good"),
    [
        ("ERROR SUMMARY: 0 errors", True),
        ("ERROR SUMMARY: 2 errors", False),
        ("RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", True),
        ("RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", False),
    ],
)
def test_a_sanitizer_s_summary_is_read(summary: str, good: bool) -> None:
    result = Result()
    readers.read_sanitizer(f"========= COMPUTE-SANITIZER\ncalls: 5\n========= {summary}\n", result)
    assert (not result.faults) == good
    assert "calls: 5" in result.notes


def test_nsight_s_lines_become_one_row_a_kernel() -> None:
    head = '"ID","Kernel Name","Block Size","Grid Size","Metric Name","Metric Unit","Metric Value"'
    kernel = '"0","void detector::<unnamed>::pool_kernel<float>(Job<T1>)","(256, 1, 1)","(8, 1, 1)"'
    lines = [
        f'{kernel},"Duration","ns","1,500"',
        f'{kernel},"Registers Per Thread","register/thread","40"',
    ]
    result = Result()
    readers.read_ncu("\n".join(["==PROF== connected", head, *lines]), result)
    row = {
        "kernel": "pool_kernel<float>",
        "grid": "(8, 1, 1)",
        "block": "(256, 1, 1)",
        "us": 1.5,
        "registers": 40.0,
    }
    assert result.tables["Kernels, by Nsight Compute"] == [row]


def test_as_many_blood_cells_are_taken_as_are_there(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert bccd_overrides(data, tmp_path) is None
    for name, endings in {"JPEGImages": "jpg", "Annotations": "xml"}.items():
        (data / "bccd" / name).mkdir(parents=True)
        for number in (1, 2, 4):
            (data / "bccd" / name / f"cell_{number}.{endings}").touch()
    (data / "bccd/ImageSets/Main").mkdir(parents=True)
    (data / "bccd/ImageSets/Main/trainval.txt").write_text("cell_1\ncell_2\ncell_3\n")
    (data / "bccd/ImageSets/Main/test.txt").write_text("cell_5\n")
    np.savez(data / "bccd_opencv_fast_proposals.npz", cell_2=np.zeros((1, 4)), cell_3=np.zeros((1, 4)))
    found = bccd_overrides(data, tmp_path)
    assert found is not None
    assert found[1] == "BCCD, 1 training and 1 test images"
    assert (tmp_path / "splits/test.txt").read_text() == "cell_2\n"


@pytest.mark.parametrize(
    "namespace", ["detector::<unnamed>::", "unnamed>::", "detector::(anonymous namespace)::"]
)
def test_a_kernel_s_name_is_shown_without_namespaces(namespace: str) -> None:
    name = f"void {namespace}pool_kernel<c10::BFloat16, unsigned short>({namespace}Job<T1, T2>)"
    assert readers.short_name(name) == "pool_kernel<BFloat16, unsigned short>"


def test_a_part_that_cannot_be_finished_in_time_is_not_begun(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import os; print(os.environ['GPU_CHECK_DEADLINE'])"]
    parts = [
        Part("needed", "", sleeper, 60, least=50),
        Part("optional", "", sleeper, 60, least=50, optional=True),
        Part("short", "", sleeper, 60),
    ]
    outcomes = [Outcome(part.name, part.title) for part in parts]
    began = time.monotonic()
    Runner(tmp_path, dict(os.environ), began + 40, lambda _: None).run(
        list(zip(parts, outcomes, strict=True))
    )
    assert [each.status for each in outcomes] == ["not run", "skipped", "passed"]
    assert [each.bad for each in outcomes] == [True, False, False]
    assert outcomes[1].why in ("34 s were left", "33 s were left")
    assert began < float(outcomes[2].log_text()) < began + 40


def test_photographs_are_a_data_set_that_can_be_trained_on(tmp_path: Path) -> None:
    what = Photographs(training=5, test=2, size=(375, 500), proposals=200)
    write_photographs(tmp_path / "photographs", what)
    config = photograph_config(tmp_path / "photographs", [], rehearsal=True)
    classes = class_names(config)
    for split, count in (("trainval", 5), ("test", 2)):
        dataset = load_split(config, split, classes, training=True)
        assert len(dataset.records) == count
        assert not dataset.dropped
        assert all((record.height, record.width) == (375, 500) for record in dataset.records)
        assert all(60_000 < record.path.stat().st_size < 140_000 for record in dataset.records)
    with np.load(tmp_path / "photographs/proposals.npz") as boxes:
        assert all(len(boxes[name]) == 200 for name in boxes.files)
        assert all((boxes[name][:, :2] < boxes[name][:, 2:]).all() for name in boxes.files)
        assert all((boxes[name][:, 2:] <= (500, 375)).all() for name in boxes.files)


def test_the_loop_is_timed_with_and_without_the_loader(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """On the CPU the times mean nothing; the rows are those of the GPU check."""
    interval = sys.getswitchinterval()
    result = Result()
    loop = Loop(tiny("train.scale_jitter=null"), "cpu", tmp_path, REHEARSED, result)
    time_training(loop, {1: 0.0, 2: 0.0}, usual=2)
    time_test_images(loop, [1])
    assert sys.getswitchinterval() == interval
    rows = result.tables["Training with the loader, VGG16"]
    assert [row["what"] for row in rows] == [
        "alone, before",
        *("loader, 2 threads", "loader, 1 threads", "loader, 2 threads", "loader, 2 threads"),
        "alone, after",
    ]
    assert [row.get("switch interval, ms") for row in rows] == [None, 5, 5, 1, 0.2, None]
    assert all(row["ms per step"] > 0 and 0 <= row["data_wait_share"] < 1 for row in rows)
    targets = result.tables["Training with the loader, targets"]
    assert [row["threads"] for row in targets] == [2, 1, 2]
    assert len(result.tables["Test images with the loader, VGG16"]) == 3
    assert not result.faults


@pytest.mark.parametrize(
    ("step", "speed", "outcome"),
    [
        (0.0109, 300.0, "met"),
        (0.0111, 300.0, "missed"),
        (0.0150, 150.0, "the loader alone is slower than the step"),
    ],
)
def test_the_loader_s_target_counts_where_it_is_fast_enough(step: float, speed: float, outcome: str) -> None:
    """A step alone takes 10 ms, so that it needs 200 images per second, and 40,000 of them 6.7 minutes."""
    result = Result()
    loop = SimpleNamespace(size=2, precision="float32", result=result)
    targets(cast("Loop", loop), {(8, 0.005): Timed(step, 0.0)}, {8: speed}, 0.010, 8)
    first, second = result.tables["Training with the loader, targets"]
    assert first["outcome"] == outcome
    assert second["outcome"] == "missed"


def test_threads_and_processes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loader of known speed: the threads take 1 ms per batch of two images, the processes 2 ms."""
    setting: Any = SimpleNamespace(
        with_workers=lambda count: setting, config=SimpleNamespace(train=size_of(2))
    )

    def every(seconds: float) -> Callable[[Any], Generator[int, None, None]]:
        def make(_setting: Any) -> Generator[int, None, None]:
            while True:
                clock[0] += seconds
                yield 0

        return make

    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    result = Result()
    speeds = compare(
        cast("Setting", setting), {"threads": every(0.001), "processes": every(0.002)}, [1, 4], result
    )
    assert speeds == pytest.approx({1: 2000.0, 4: 2000.0})
    assert [row["ratio"] for row in result.tables["Loader without a network"]] == pytest.approx([2.0, 2.0])
    target(speeds, result)
    assert result.tables["Loader, targets"][0]["outcome"] == "met"


def size_of(images: int) -> SimpleNamespace:
    return SimpleNamespace(images_per_batch=images)


def test_a_short_limit_leaves_time_for_the_build(tmp_path: Path) -> None:
    """Timings leave time for what runs together after them, as much as that takes; the build does not."""
    deadline = [sys.executable, "-c", "import os; print(os.environ['GPU_CHECK_DEADLINE'])"]
    parts = [
        Part("build", "", deadline, 60, alone=True, first=True),
        Part("timing", "", deadline, 60, alone=True),
        Part("check", "", deadline, 60, usual=20.0),
    ]
    outcomes = [Outcome(part.name, part.title) for part in parts]
    began = time.monotonic()
    Runner(tmp_path, dict(os.environ), began + 50, lambda _: None).run(
        list(zip(parts, outcomes, strict=True))
    )
    build, timing, check = (float(outcome.log_text()) - began for outcome in outcomes)
    assert 40 < build < 50  # a few seconds stay for ending a part
    assert 20 < timing < 30
    assert 40 < check < 50


def test_the_tests_of_a_check_can_be_chosen(tmp_path: Path) -> None:
    def part(*chosen: str) -> Part:
        tests = chosen or ALL_TESTS
        plan = Plan(Machine({"PATH": ""}), tmp_path, tmp_path, rehearsal=False, tests=tests)
        return next(one for one in plan.parts() if one.name == "tests")

    assert part().command[-3:] == ["-m", "gpu", "tests"]
    assert part("tests/a.py", "tests/b").command[-4:] == ["-m", "gpu", "tests/a.py", "tests/b"]
    assert part("tests/a.py").usual < part().usual


class Weights(SimpleNamespace):
    """Runs whose weights are given by the name of the run."""

    def weights(self, name: str, _step: int = 0) -> dict[str, torch.Tensor]:
        return {"weight": getattr(self, name), "momentum.0": torch.zeros(1)}


def test_runs_of_several_processes_are_compared() -> None:
    result, usual = Result(), torch.tensor([3.0, 4.0])
    runs: Any = Weights(plain=usual, same=usual.clone(), near=usual + 1e-4, far=usual + 1e-2)
    processes.bits_row(runs, "plain", "same", "equal", "gloo", result)
    processes.close_row(runs, "plain", "near", "near", "gloo", result)
    assert not result.faults
    processes.bits_row(runs, "plain", "near", "unequal", "gloo", result)
    processes.close_row(runs, "plain", "far", "far", "gloo", result)
    assert [fault.split(":")[0] for fault in result.faults] == ["unequal", "far"]
    rows = result.tables["Runs in several processes"]
    assert [row["different tensors"] for row in rows] == [0, 1, 1, 1]
    assert rows[-1]["relative difference"] == pytest.approx(2**0.5 * 1e-2 / 5, rel=1e-4)


def test_times_per_step_are_compared_with_a_process_of_its_own() -> None:
    result = Result()
    measured = [("none", 1, 10.0), ("none", 1, 8.0), ("nccl", 1, 9.0), ("nccl", 1, 8.8), ("gloo", 2, 12.0)]
    rows = [
        {"network": "VGG16", "what": what, "processes": count, "ms per step": time, "rank": 0}
        for what, count, time in measured
    ]
    ranks.report(rows, result)
    table = result.tables[ranks.TABLE]
    assert [row["group"] for row in table] == ["none", "nccl", "gloo"]
    assert [row["against none"] for row in table] == pytest.approx([1.0, 1.1, 1.5])


def test_a_compiled_network_has_to_train_in_six_minutes() -> None:
    result = Result()
    compile.write_targets("compiled", "bfloat16", Timed(0.0070, 0.0), Timed(0.0080, 0.1), result)
    assert [row["outcome"] for row in result.tables[compile.TARGETS]] == ["met", "missed"]  # 5.3 min, 1.14
