"""Weights files: conventions of their input, hostile files, and the default weights and their download."""

from __future__ import annotations

import hashlib
import pickle
import struct
import warnings
from http.client import BadStatusLine, IncompleteRead
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from detector.core.errors import InputError
from detector.models import weights as module
from detector.models.weights import (
    MAX_TENSORS,
    default_file_names,
    default_weights,
    normalization,
    read_state_dict,
)


def test_conventions() -> None:
    rgb, bgr = normalization("torchvision"), normalization("caffe")
    assert (rgb.maximum, rgb.bgr, rgb.mean) == (255.0, False, (0.485, 0.456, 0.406))
    assert (bgr.maximum, bgr.bgr, bgr.mean) == (1.0, True, (102.9801, 115.9465, 122.7717))
    assert normalization("caffe", (104.0, 117.0, 123.0)).mean == (104.0, 117.0, 123.0)
    with pytest.raises(InputError, match="convention 'darknet' is unknown"):
        normalization("darknet")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_both_forms_of_file_are_read(tmp_path: Path, zipped: bool) -> None:
    state = {"conv1.weight": torch.rand(2, 3), "conv1.bias": nn.Parameter(torch.rand(2))}
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    found = read_state_dict(tmp_path / "weights.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.pth: no such weights file"):
        read_state_dict(tmp_path / "gone.pth")
    whole = tmp_path / "whole.pth"
    torch.save({"a": torch.zeros(1000)}, whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:-600])
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")  # a pickled object, which could run code
    for name in ("cut", "text", "empty", "module"):
        with pytest.raises(
            InputError, match=rf"{name}\.pth: not readable as a state dict of tensors"
        ) as error:
            read_state_dict(tmp_path / f"{name}.pth")
        assert "weights_only" not in str(error.value)
    for number, content in enumerate(([torch.zeros(1)], {"epoch": 3}, {"model": {"a": torch.zeros(1)}})):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(InputError, match="names to tensors, and nothing else"):
            read_state_dict(tmp_path / f"{number}.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.tensor([1.0, torch.nan])}, "a has NaN or infinite values"),
        ({"a": torch.eye(3).to_sparse()}, "sparse, quantized or without values"),
        ({"a": torch.zeros(3, device="meta")}, "sparse, quantized or without values"),
        ({"\x1b[2J": torch.zeros(1)}, "is not a tensor's name"),
        ({"a" * 301: torch.zeros(1)}, "is not a tensor's name"),
        (dict.fromkeys(map(str, range(MAX_TENSORS + 1)), torch.zeros(1)), f"over {MAX_TENSORS} is refused"),
        (
            {"format": 1, "step": 3, "config": {}, "classes": [], "model": {}},
            r"a checkpoint of this project.*name it in train\.initial_weights",
        ),
    ],
    ids=["nan", "sparse", "meta", "escape", "long", "many", "checkpoint"],
)
def test_tensors_that_would_mislead_are_refused(tmp_path: Path, content: dict, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about sparse layouts
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(InputError, match=message):
            read_state_dict(tmp_path / "odd.pth")


class Bomb:
    """A pickle that creates a file if it is loaded by the rules of pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    torch.save({"a": Bomb(trap)}, tmp_path / "zip.pth")
    torch.save({"a": Bomb(trap)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Bomb(trap), protocol=2))
    for name in ("zip", "legacy", "bare"):
        with pytest.raises(InputError, match=r"as a state dict.*save only the network.s state_dict") as error:
            read_state_dict(tmp_path / f"{name}.pth")
        assert "weights_only" not in str(error.value)  # torch's advice how to run it
    assert not trap.exists()


def test_a_tensor_that_claims_more_than_its_file_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.pth"
    torch.save({"a": torch.zeros(70000)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    size = b"J" + struct.pack("<i", 70000)  # pickle's 32-bit integer: the storage's length and the shape
    assert size in content
    path.write_bytes(content.replace(size, b"J" + struct.pack("<i", 2**31 - 1)))
    with pytest.raises(InputError, match="not readable as a state dict"):
        read_state_dict(path)


def test_damage_is_noticed_in_the_values_too(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(1000)}, path)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    assert torch.load(path)["a"].numel() == 1000  # torch does not compare checksums
    with pytest.raises(InputError, match=r"weights\.pth: not readable as a state dict.*damaged"):
        read_state_dict(path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**11)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"'a' has the shape \(100000000000,\)"):
        read_state_dict(tmp_path / "weights.pth")


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
    assert names[-2:] == [f"{backbone}.pth", f"{backbone}.safetensors"]


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
