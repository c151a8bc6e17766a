"""The first losses of the shipped configs are as stored, and a changed constant is noticed."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

import tests.golden as golden_curves
from tests.golden import RUNS, STEPS, Golden, differences, largest, measure, read, write
from tests.golden.__main__ import main


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of all curves: the quick start's images and proposals are made once."""
    return tmp_path_factory.mktemp("golden")


@pytest.mark.slow
@pytest.mark.parametrize("golden", RUNS.values(), ids=RUNS)
def test_the_first_losses_are_as_stored(golden: Golden, place: Path) -> None:
    reason = golden.cannot_run()
    if reason is not None:
        pytest.skip(reason)
    stored, found = read(golden), measure(golden, place)
    different = differences(golden, stored, found)
    assert not different, (
        "\n".join(different) + f"\nLargest relative difference: {largest(stored, found):.1e}. If the change "
        f"is intended: python -m tests.golden --renew {golden.name}"
    )


@pytest.mark.parametrize(
    ("name", "override", "loss"),
    [
        ("quickstart", "train.smooth_l1_beta=0.9", "loss_box"),
        ("quickstart", "train.momentum=0.89", "loss_cls"),
        ("spp_classifier_quickstart", "train.weight_decay=0.02", "loss_cls"),
    ],
)
def test_a_changed_constant_is_noticed(name: str, override: str, loss: str, place: Path) -> None:
    golden = RUNS[name]
    different = differences(golden, read(golden), measure(golden, place, override))
    assert any(f" {loss}: " in line for line in different), different


def test_every_curve_has_the_steps_and_tolerances_that_its_file_says() -> None:
    assert {path.stem for path in (golden_curves.PROJECT / "tests" / "golden").glob("*.json")} == set(RUNS)
    for golden in RUNS.values():
        content = json.loads(golden.path.read_text())
        assert content["config"] == f"configs/{golden.name}.yaml"
        assert content["relative_tolerance"] == {f"to step {last}": one for last, one in golden.tolerances}
        assert {len(losses) for losses in content["losses"].values()} == {STEPS}
        assert golden.tolerances[-1][0] == STEPS


def test_a_difference_is_named_with_its_step_and_size() -> None:
    golden = Golden("some", ((1, 1e-3), (STEPS, 1e-1)))
    stored = {"loss_cls": [1.0, 2.0], "loss_box": [0.0, 1.0]}
    assert not differences(golden, stored, {"loss_cls": [1.0009, 2.19], "loss_box": [1e-7, 1.0]})
    found = {"loss_cls": [1.002, 2.3], "loss_box": [0.0, float("nan")]}
    lines = differences(golden, stored, found)
    assert [line.split(":")[0] for line in lines] == [
        "step 2, loss_box",
        "step 1, loss_cls",
        "step 2, loss_cls",
    ]
    assert lines[2] == "step 2, loss_cls: 2.3 instead of 2, 1.5e-01 of it and not 1e-01"
    assert differences(golden, stored, {"loss_cls": [1.0, 2.0]}) == [
        "loss_box: in only one of the two curves"
    ]
    assert largest(stored, {"loss_cls": [1.5, 2.0], "loss_box": [0.0, 1.0]}) == 0.5


def test_nothing_is_stored_without_renew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = {"loss_cls": [1.0] * STEPS}
    (tmp_path / "tests" / "golden").mkdir(parents=True)
    (tmp_path / "configs").symlink_to(golden_curves.PROJECT / "configs")
    monkeypatch.setattr(golden_curves, "PROJECT", tmp_path)
    monkeypatch.setattr("tests.golden.__main__.measure", lambda *_: curve)
    name = "spp_classifier_quickstart"
    path = RUNS[name].path
    assert main([name]) == 1
    assert "not stored yet" in capsys.readouterr().out
    assert not path.exists()
    assert main(["--renew", name]) == 0
    assert read(RUNS[name]) == curve
    before = path.read_bytes()
    assert main([name]) == 0
    curve["loss_cls"][4] = 1.01
    assert main([name]) == 1
    said = capsys.readouterr().out
    assert f"{name}: step 5, loss_cls: 1.01 instead of 1" in said
    assert "nothing was stored" in said
    assert path.read_bytes() == before
    assert main(["--renew", name]) == 0
    assert read(RUNS[name])["loss_cls"][4] == 1.01
    with pytest.raises(SystemExit):
        main(["no_such_run"])


def test_a_run_whose_files_are_missing_or_whose_dropout_differs_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bccd = RUNS["bccd_squeezenet"]
    (tmp_path / "tests" / "golden").mkdir(parents=True)
    (tmp_path / "configs").symlink_to(golden_curves.PROJECT / "configs")
    monkeypatch.setattr(golden_curves, "PROJECT", tmp_path)
    assert bccd.cannot_run() == "data/bccd is missing"
    for name in bccd.inputs():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert bccd.cannot_run() is None
    write(bccd, {"loss_cls": [1.0]})
    monkeypatch.setattr(platform, "machine", lambda: "another")
    assert "other dropout on another" in str(bccd.cannot_run())
    assert RUNS["quickstart"].cannot_run() is None  # it has no dropout
