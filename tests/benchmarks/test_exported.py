"""The benchmark of exported networks: the kinds of random networks, and a run with a small one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import exported
from benchmarks.paired import alternate, median_ratio
from detector.commands.export import Export
from detector.export.formats import Runner
from detector.factory.export import check_exportable, portable_network

Run = Callable[[str], dict[str, Any]]

SMALL = ("model.backbone.name=small", "model.head.hidden=[8]", "test.scales=[64]", "test.max_size=96")


def test_every_second_round_has_the_opposite_order() -> None:
    calls: list[str] = []
    taken = alternate([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert [len(times) for times in taken] == [3, 3]
    assert [set(calls[place : place + 2]) for place in range(0, 8, 2)] == [{"a", "b"}] * 4
    firsts = calls[::2]
    assert firsts in (["a", "b", "a", "b"], ["b", "a", "b", "a"])
    assert median_ratio([1.0, 2.0, 1.0], [3.0, 2.0, 8.0]) == 3.0


@pytest.mark.parametrize("kind", exported.KINDS)
def test_every_random_kind_can_be_exported(kind: str) -> None:
    config = exported.random_config(kind, ["test.scales=[64]"])
    check_exportable(config, kind)
    assert config.model.backbone.name == "resnet18"
    assert (config.task == "classification") == (kind == "classification")
    assert (config.model.neck == "fpn") == (kind == "fpn")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the benchmark once on a small random network, and return what it prints."""

    def call(kind: str) -> dict[str, Any]:
        options = ["--random", kind, "--formats", "torch_export", "--regions", "5", "--rounds", "1"]
        options += ["--size", "70x90", "--json", *(word for value in SMALL for word in ("--set", value))]
        monkeypatch.setattr(sys, "argv", ["exported.py", *options])
        exported.main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return call


@pytest.mark.parametrize("kind", ["resnet18", "classification"])
def test_a_row_compares_all_outputs(kind: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network in standard operators stands for the exported one, since torch's exporter takes seconds."""
    exports: list[Export] = []

    def write(self: Export, folder: Path) -> None:
        exports.append(self)
        (folder / "model.pt2").write_bytes(bytes(3000))
        (folder / "run.py").write_bytes(bytes(5000))

    def load(*_: object) -> Runner:
        network = portable_network(exports[-1].config, exports[-1].model, postprocess=False, dense=True)
        added = 0.25 if kind == "resnet18" else 0.0

        @torch.inference_mode()
        def runner(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            first, *others = network(*map(torch.from_numpy, inputs))
            return [first.numpy() + np.float32(added), *(part.numpy() for part in others)]

        return runner

    monkeypatch.setattr(Export, "write", write)
    monkeypatch.setattr(exported, "load", load)
    found = run(kind)
    (row,) = found["rows"]
    detects = kind == "resnet18"
    expected = {"region_scores": 0.25, "region_boxes": 0.0} if detects else {"scores": 0.0}
    assert row["differences"] == pytest.approx(expected, abs=1e-3)
    assert (found["input"], found["regions"]) == ("64x82", 5 if detects else None)
    assert (row["format"], row["megabytes"]) == ("torch_export", 0.003)
    assert min(row["eager_ms"], row["exported_ms"], row["times_as_fast"]) > 0
    assert "torch_export" in exported.lines(found)


@pytest.mark.slow
def test_a_real_export_gives_the_scores_of_the_network(run: Run) -> None:
    (row,) = run("classification")["rows"]
    assert row["differences"] == pytest.approx({"scores": 0.0}, abs=1e-4)
    assert row["megabytes"] > 0
