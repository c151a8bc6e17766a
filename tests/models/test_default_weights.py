"""Default weights: files that are there, the download, and what is said where there is neither."""

from __future__ import annotations

import hashlib
from http.client import BadStatusLine, IncompleteRead
from pathlib import Path
from urllib.error import URLError

import pytest

from detector.core.errors import InputError
from detector.models import default_weights as module
from detector.models.default_weights import default_file_names, default_weights


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)


def with_checksum(folder: Path, stem: str, content: bytes) -> Path:
    path = folder / f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("backbone", ["alexnet", "resnet18", "resnet50", "squeezenet1_0", "vgg16"])
def test_every_backbone_with_published_weights_has_names_the_first_with_its_checksum(backbone: str) -> None:
    names = default_file_names(backbone)
    assert names[0].startswith(backbone)
    assert module._CHECKSUM.search(names[0])
    assert names[-1] == f"{backbone}.pth"


def test_the_first_name_that_is_there_is_taken(tmp_path: Path) -> None:
    (tmp_path / "resnet18.pth").write_bytes(b"any")
    assert default_weights("resnet18", tmp_path) == tmp_path / "resnet18.pth"


def test_a_file_of_another_checksum_than_its_name_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_checksum(tmp_path, "squeezenet1_0", b"whole")
    monkeypatch.setattr(module, "_OTHER_FILES", {"squeezenet1_0": (path.name,)})
    assert default_weights("squeezenet1_0", tmp_path) == path
    path.write_bytes(b"whole, but for a bit")
    with pytest.raises(InputError, match=rf"{path.name}: the file is damaged: its SHA-256 begins with"):
        default_weights("squeezenet1_0", tmp_path)


def test_without_a_file_torchvisions_is_downloaded_with_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(url: str, place: str, hash_prefix: str | None = None) -> None:
        asked.append((url, hash_prefix))
        Path(place).write_bytes(b"fetched")

    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    folder = tmp_path / "data" / "weights"
    assert default_weights("resnet18", folder) == folder / "resnet18-f37072fd.pth"
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]


@pytest.mark.parametrize(
    "fault",
    [
        URLError("no route to host"),
        RuntimeError("invalid hash value"),
        BadStatusLine("garbage"),
        IncompleteRead(b"a part"),
        ValueError("invalid literal for int()"),  # of a length that is no number
    ],
)
def test_with_neither_the_error_names_the_files_the_address_and_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(InputError) as caught:
        default_weights("vgg16", tmp_path)
    said = str(caught.value)
    for part in ("vgg16-397923af.pth", "vgg16.pth", str(tmp_path), "https://download.pytorch.org/", "null"):
        assert part in said
    assert "Put that file there, or set model.backbone.weights to a file" in said


def test_a_network_of_ours_has_none() -> None:
    with pytest.raises(InputError, match="small has no default weights; known: alexnet"):
        default_file_names("small")
