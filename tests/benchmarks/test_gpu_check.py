"""The GPU check rehearsed on a CPU: its report, its limits, and what it reads from other programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_check import readers
from benchmarks.gpu_check.report import Outcome
from benchmarks.gpu_check.result import Result
from benchmarks.gpu_check.runner import Part, Runner
from benchmarks.gpu_check.step_data import bccd_overrides
from tests.conftest import PROJECT

FUZZ = "import sys; print('calls: 3', sys.argv[1:]); print('faults: {}')\n"


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out), "--dry-run", *options]


def environment(tmp_path: Path, fuzz: str = FUZZ) -> dict[str, str]:
    (tmp_path / "fuzz.py").write_text(fuzz)
    return {**os.environ, "GPU_CHECK_FUZZ": str(tmp_path / "fuzz.py")}


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
