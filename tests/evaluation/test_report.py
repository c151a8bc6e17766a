"""The table and the JSON of metrics."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from detector.core.errors import InputError
from detector.evaluation.report import voc_table, write_json

METRICS: dict[str, Any] = {
    "voc07_mAP": 0.25,
    "voc_mAP": 0.125,
    "per_class": {
        "cat": {"voc07_AP": 0.25, "voc_AP": 0.125, "objects": 7, "difficult": 2, "detections": 31},
        "[dog]": {"voc07_AP": math.nan, "voc_AP": math.nan, "objects": 0, "difficult": 0, "detections": 1},
    },
}


def test_the_table_has_a_row_a_class_and_the_means() -> None:
    output = io.StringIO()
    console = Console(width=100, file=output)
    console.print(voc_table(METRICS))
    rows = [line.replace("│", " ").split() for line in output.getvalue().splitlines()]
    assert ["cat", "0.2500", "0.1250", "7", "2", "31"] in rows
    assert ["[dog]", "-", "-", "0", "0", "1"] in rows
    assert ["mean", "0.2500", "0.1250", "7", "2", "32"] in rows


def test_json_is_sorted_and_has_null_for_nan(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.json"
    write_json(path, METRICS)
    read = json.loads(path.read_text())
    assert list(read) == ["per_class", "voc07_mAP", "voc_mAP"]
    assert read["per_class"]["[dog]"]["voc_AP"] is None
    assert read["per_class"]["cat"] == METRICS["per_class"]["cat"]
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


def test_a_file_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_json(tmp_path, METRICS)


def test_names_stay_letters_in_the_table_and_come_back_from_json(tmp_path: Path) -> None:
    hostile = ["\x1b[2J[red]a", "\x9b2J", "\u202eb", "\ud800", "图像", "[/]"]
    row = {"voc07_AP": 0.25, "voc_AP": 0.125, "objects": 7, "difficult": 2, "detections": 31}
    metrics = {**METRICS, "per_class": dict.fromkeys(hostile, row)}
    output = io.StringIO()
    Console(width=100, file=output).print(voc_table(metrics))
    for shown in ("\\x1b[2J[red]a", "\\x9b2J", "\\u202eb", "\\ud800", "图像", "[/]"):
        assert f" {shown} " in output.getvalue()
    path = tmp_path / "metrics.json"
    write_json(path, metrics)
    text = path.read_text(encoding="utf-8")
    assert "图像" in text
    assert not set(text) & set("\x1b\x9b\u202e")
    assert set(json.loads(text)["per_class"]) == set(hostile)
