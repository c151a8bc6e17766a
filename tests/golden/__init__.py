"""Golden loss curves: the losses of the first steps of shipped configs, as they were when they were stored.

A change that should not change training, and does, is noticed here. Each curve is a JSON file in this folder.
``python -m tests.golden`` compares all of them; with ``--renew`` it stores what it measures, which is right
only where a change of the losses is intended and understood.

The losses of two machines are not equal. Sums are added up in another order, and every step multiplies the
difference: by the tenth step it is a thousand times that of the first one. So each curve has tolerances that
grow with the step: 4 to 5.5 times the largest differences that were measured (`MEASURED`).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision

from detector.config import Config, load_config
from detector.core.files import read_json, write_text
from detector.engine.run_log import read_log
from detector.tasks.start import start_run

PROJECT = Path(__file__).parents[2]
STEPS = 20
QUICK = ("train.log_every=1", "train.draw_images=0", "data.workers=0", "test.max_images=1")
"""Settings that change no loss: every step is logged, and of the test images only one gets proposals."""
SINGLE = 2e-7
"""Absolute tolerance: the precision of float32 for losses around 1."""

MEASURED = (
    "4 to 5.5 times the largest difference between one and two threads, between the kernels of torch, oneDNN "
    "and MKL for AVX-512, for AVX2 and for SSE 4, and without oneDNN"
)
"""What the relative tolerances come from."""

Curve = dict[str, list[float]]
"""The losses of the first steps by the names of the log."""


@dataclass(frozen=True)
class Golden:
    """A shipped config whose first losses are stored."""

    name: str
    """The config's name, and that of the file."""
    tolerances: Sequence[tuple[int, float]]
    """Relative tolerances, each with the last step for which it holds."""

    @property
    def path(self) -> Path:
        return PROJECT / "tests" / "golden" / f"{self.name}.json"

    def config(self, *overrides: str) -> Config:
        return load_config(PROJECT / "configs" / f"{self.name}.yaml", [*QUICK, *overrides])

    def inputs(self) -> list[str]:
        """Return the files and folders that the config reads, relative to the project; none are generated."""
        config = self.config()
        root = config.data.root if config.data.generate is None else None
        return [str(one) for one in (root, config.proposals.file, config.model.backbone.weights) if one]

    def cannot_run(self) -> str | None:
        """Return why this machine cannot be expected to give the stored losses, or None."""
        for name in self.inputs():
            if not (PROJECT / name).exists():
                return f"{name} is missing"
        made_on = read_json(self.path)["made"]["machine"] if self.path.exists() else platform.machine()
        if getattr(self.config().model.head, "dropout", 0) and platform.machine() != made_on:
            return f"torch draws other dropout on {platform.machine()} than on {made_on}"
        return None

    def tolerance(self, step: int) -> float:
        return next(tolerance for last, tolerance in self.tolerances if step <= last)


_QUICK_START = ((5, 2e-4), (10, 1e-3), (STEPS, 1e-2))
RUNS = {
    one.name: one
    for one in (
        Golden("quickstart", _QUICK_START),
        Golden("bccd_squeezenet", ((3, 3e-4), (7, 3e-3), (STEPS, 8e-2))),
        Golden("spp_net_end_to_end_quickstart", _QUICK_START),
        Golden("spp_classifier_quickstart", ((STEPS, 1e-4),)),
    )
}


class _Enough(Exception):
    """The last step that is compared is done."""


def measure(golden: Golden, place: Path, *overrides: str) -> Curve:
    """Train the first steps with one thread on the CPU and return their losses.

    ``place`` is the working directory: generated data and proposals go there, and stay for other curves.
    """
    (place / "data").mkdir(parents=True, exist_ok=True)
    for name in golden.inputs():
        if not (place / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(PROJECT / name)
    folder = place / "runs" / golden.name
    folder.mkdir(parents=True, exist_ok=True)
    with chdir(place), _one_thread():
        run = start_run(golden.config(*overrides), folder, "cpu")
        schedule = run.schedule

        def until_enough(step: int) -> float:
            if step == STEPS:
                raise _Enough
            return schedule(step)

        run.schedule = until_enough
        with suppress(_Enough):
            run.run()
        records = [record for record in read_log(folder / "log.jsonl") if record["kind"] == "train"]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    names = [name for name in records[0] if name.startswith("loss_")]
    return {name: [record[name] for record in records] for name in names}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def differences(golden: Golden, stored: Mapping[str, Sequence[float]], found: Curve) -> list[str]:
    """Return a line for each loss that differs from the stored one by more than its tolerance."""
    lines = [f"{name}: in only one of the two curves" for name in sorted(stored.keys() ^ found.keys())]
    for name in sorted(stored.keys() & found.keys()):
        for step, (before, now) in enumerate(zip(stored[name], found[name], strict=True), start=1):
            tolerance = golden.tolerance(step)
            if not abs(now - before) <= tolerance * abs(before) + SINGLE:  # NaN is a difference, too
                off = abs(now - before) / max(abs(before), SINGLE)
                lines.append(f"step {step}, {name}: {now:.7g} instead of {before:.7g}, {off:.1e} of it and "
                             f"not {tolerance:.0e}")  # fmt: skip
    return lines


def largest(stored: Mapping[str, Sequence[float]], found: Curve) -> float:
    """Return the largest relative difference of two curves with the same losses."""
    before, now = (np.array([curve[name] for name in sorted(stored)]) for curve in (stored, found))
    return float((np.abs(now - before) / np.maximum(np.abs(before), SINGLE)).max())


def read(golden: Golden) -> Curve:
    """Return the stored curve."""
    losses: Curve = read_json(golden.path)["losses"]
    return losses


def write(golden: Golden, found: Curve) -> None:
    """Store a curve, with how and with what it was made."""
    content: dict[str, Any] = {
        "config": f"configs/{golden.name}.yaml",
        "what": f"losses of the first {STEPS} steps, one process with one thread on the CPU",
        "relative_tolerance": {f"to step {last}": tolerance for last, tolerance in golden.tolerances},
        "absolute_tolerance": SINGLE,
        "tolerances_from": MEASURED,
        "made": {
            "command": f"python -m tests.golden --renew {golden.name}",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "machine": platform.machine(),
            "kernels": torch.backends.cpu.get_cpu_capability(),
        },
        "losses": {name: [float(f"{loss:.8g}") for loss in losses] for name, losses in found.items()},
    }
    write_text(golden.path, json.dumps(content, indent=1) + "\n")
