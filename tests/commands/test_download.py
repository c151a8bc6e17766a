"""tools/download.py: what it prints, what it installs, and its exit status."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from detector.commands import cli
from detector.commands import download as command
from detector.core import catalogue, download
from detector.core.catalogue import DATA_SETS, Weights
from detector.core.errors import InputError
from tests.core.test_archives import content
from tests.core.test_installing import VOC_CONTENT, voc
from tests.web import Web, serving

Call = Callable[..., int]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tools/download.py", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.run(command.main)
        return int(caught.value.code or 0)

    return run


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Web]:
    """A server that has the catalogue's only data set, "voc", and the weights "net"."""
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setenv("no_proxy", "*")
    with serving(net__pth=b"weights") as server:
        file = catalogue.PublishedFile(name="net.pth", urls=(server.url("net.pth"),), page="page", about=7)
        monkeypatch.setattr(command, "find_weights", lambda _: Weights(name="net", file=file, licence="free"))
        for name in list(DATA_SETS):
            monkeypatch.delitem(DATA_SETS, name)
        monkeypatch.setitem(DATA_SETS, "voc", voc(server, tmp_path))
        yield server


def test_names_are_installed_below_the_root(
    call: Call, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    assert call("voc", "weights:net", "--root", str(root)) == 0
    assert content(root / "VOC") == VOC_CONTENT
    assert (root / "weights" / "net.pth").read_bytes() == b"weights"
    said = capsys.readouterr()
    assert f"voc: {root / 'VOC'} is there, verified" in said.err
    assert f"weights:net: {root / 'weights' / 'net.pth'} is there, verified" in said.err
    assert "the archives in" in said.err
    assert not said.out
    assert call("voc", "weights:net", "--root", str(root), "--json", "--remove-archives") == 0
    results = json.loads(capsys.readouterr().out)
    assert [(result["name"], result["state"]) for result in results] == [
        ("voc", "was there"),
        ("weights:net", "was there"),
    ]
    assert not list((root / "downloads").iterdir())


def test_a_name_that_fails_does_not_hold_up_the_others(
    call: Call, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del web.files["test.tar"]
    assert call("voc", "weights:net", "--root", str(tmp_path / "data"), "--json") == 1
    said = capsys.readouterr()
    results = json.loads(said.out)
    assert [result["state"] for result in results] == ["failed", "downloaded"]
    assert "Get it by hand from https://example.org/test.tar" in results[0]["reason"]
    assert "error: voc: test.tar could not be downloaded" in said.err
    assert (tmp_path / "data" / "weights" / "net.pth").is_file()


def test_an_error_names_its_item_once(
    call: Call, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = dataclasses.replace(DATA_SETS["voc"], counts=(catalogue.Count("*.png", 1),))
    monkeypatch.setitem(DATA_SETS, "voc", wrong)
    assert call("voc", "--root", str(tmp_path / "data")) == 1
    assert "error: voc: the archives of voc do not hold" in capsys.readouterr().err


def test_sizes_are_in_millions_of_bytes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command.show_plan([command.find("voc2007", tmp_path)], as_json=False)
    assert "needs 1823 MB on the disk" in capsys.readouterr().out  # 2 x (460,032,000 + 451,020,800) bytes
    command.show_list([command.find("coco2017", tmp_path)], as_json=False)
    assert "20405" in capsys.readouterr().out


def test_the_list_says_what_there_is(
    call: Call, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    call("weights:net", "--root", str(root))
    capsys.readouterr()
    assert call("--list", "--root", str(root)) == 0
    table = capsys.readouterr().out
    for part in ("voc", "a small one", "weights:net", "none", "free", "yes", "no"):
        assert part in table
    assert call("--list", "--root", str(root), "--json") == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    data_set = DATA_SETS["voc"]
    assert listed["voc"]["there"] is False
    assert listed["voc"]["download_bytes"] == sum(archive.expected_bytes for archive in data_set.archives)
    assert listed["voc"]["files"][1]["checksum"] == data_set.archives[1].checksum
    assert listed["voc"]["files"][1]["path"] == str(root / "downloads" / "test.tar")
    assert listed["weights:net"]["there"] is True


def test_a_rehearsal_downloads_nothing(
    call: Call, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    assert call("voc", "weights:net", "--root", str(root), "--dry-run") == 0
    said = capsys.readouterr().out
    assert (
        f"  {web.url('trainval.tar')}\n    to {root / 'downloads' / 'trainval.tar'}; checked by sha256:"
        in said
    )
    assert "net.pth; it has no checksum" in said
    assert not root.exists()
    assert not web.asked


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give names, or --list"),
        (("voc", "--list"), "give names, or --list"),
        (("vco",), "vco: no such data set (did you mean 'voc'?); known: voc and weights:NAME"),
    ],
)
def test_wrong_commands_have_status_2(
    call: Call, web: Web, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert call(*arguments) == 2
    assert says in capsys.readouterr().err


def test_the_space_for_all_names_together_is_checked_first(
    call: Call, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = type("usage", (), {"free": download.RESERVE + 50_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert call("voc", "weights:net", "--root", str(tmp_path / "data")) == 2
    assert "voc, weights:net needs 68 MB on the disk of" in capsys.readouterr().err
    assert not web.asked


def test_every_name_of_the_real_list_is_found(tmp_path: Path) -> None:
    for name in [*DATA_SETS, *(f"weights:{name}" for name in catalogue.PROJECT_WEIGHTS)]:
        item = command.find(name, tmp_path)
        assert item.name == name
        assert item.needs >= item.size > 0
        assert not item.there
    with pytest.raises(InputError, match="no such weights"):
        command.find("weights:vgg61", tmp_path)
