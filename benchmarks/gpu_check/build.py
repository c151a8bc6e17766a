"""Builds the native libraries for this machine's GPU and makes a first call with them.

A rehearsal builds only the CPU library, in a temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_check.machine import ROOT
from benchmarks.gpu_check.result import Result, part_arguments


def build(result: Result, *, rehearsal: bool) -> bool:
    """Build from csrc/, record how long it took, and return whether it succeeded."""
    command = [sys.executable, "setup.py", "build_ext", "--force"]
    environment = dict(os.environ)
    if rehearsal:
        command += ["--build-lib", str(Path.cwd() / "lib"), "--build-temp", str(Path.cwd() / "objects")]
        environment["DETECTOR_CUDA"] = "0"
    else:
        import torch

        environment["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
        command.append("--inplace")
    started = time.monotonic()
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    seconds = time.monotonic() - started
    capability = environment.get("TORCH_CUDA_ARCH_LIST", "") if not rehearsal else "CPU only"
    result.row("Build", {"for": capability, "seconds": seconds, "exit status": status})
    if status:
        result.fault(
            f"setup.py ended with status {status}; the other parts use what was built before, if anything"
        )
    return status == 0


def first_call(result: Result, device: str) -> None:
    """Pool once on the device and compare with the CPU."""
    import torch

    from detector.ops import roi_pool

    features, rois = torch.randn(1, 64, 20, 30), torch.tensor([[0.0, 16, 16, 240, 200], [0, 0, 0, 479, 319]])
    pooled = roi_pool(features.to(device), rois.to(device), 7, 1 / 16).cpu()
    if not torch.equal(pooled, roi_pool(features, rois, 7, 1 / 16)):
        result.fault("the first call does not equal the CPU's")


WRONG_CALL = """
import torch
from detector.ops import roi_pool
try:
    roi_pool(torch.zeros(1, 1, 4, 4), torch.tensor([[9.0, 0, 0, 3, 3]]), 2, 1.0)
except RuntimeError as error:
    assert "row 0 of rois" in str(error)
"""


def wrong_call(result: Result) -> None:
    """Make a call that must raise an error, in a separate process."""
    status = subprocess.run([sys.executable, "-c", WRONG_CALL], cwd=ROOT, check=False).returncode
    if status:
        result.fault(
            f"a call that should raise an error ended with status {status}: the errors of libraries that this"
            " machine's compiler builds do not reach Python. Build with the compiler of torch's C++ library"
            " (CXX=g++), or bring detector/_C*.so built elsewhere"
        )


def main() -> int:
    parser, result = part_arguments(__doc__.splitlines()[0])
    arguments = parser.parse_args()
    build(result, rehearsal=arguments.dry_run)
    result.attempt(first_call, result, "cpu" if arguments.dry_run else "cuda")
    result.attempt(wrong_call, result)
    return 1 if result.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
