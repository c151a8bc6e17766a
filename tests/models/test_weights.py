"""Weights files: conventions of their input, hostile files, and the default weights and their download."""

from __future__ import annotations

import hashlib
import pickle
import struct
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from detector.core import download
from detector.core.catalogue import CHECKSUM_IN_NAME
from detector.core.errors import InputError
from detector.models import weights as module
from detector.models.weights import (
    MAX_TENSORS,
    Download,
    default_file_names,
    default_weights,
    library_normalization,
    normalization,
    published,
    read_state_dict,
)
from tests.web import serving


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
        raise download._Refused("cannot be reached: no route to host")

    monkeypatch.setattr(download, "_answer", refuse)


def with_checksum(folder: Path, stem: str, content: bytes) -> Path:
    path = folder / f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("backbone", ["alexnet", "resnet18", "resnet50", "squeezenet1_0", "vgg16"])
def test_every_backbone_with_published_weights_has_names_the_first_with_its_checksum(backbone: str) -> None:
    names = default_file_names(backbone)
    assert names[0].startswith(backbone)
    assert CHECKSUM_IN_NAME.search(names[0])
    assert names[-2:] == [f"{backbone}.pth", f"{backbone}.safetensors"]


@pytest.mark.parametrize(
    ("backbone", "url", "first"),
    [
        ("torchvision:mobilenet_v2", "https://download.pytorch.org/models/", "mobilenet_v2-b0353104.pth"),
        ("torchvision:vit_h_14", "https://download.pytorch.org/models/", "vit_h_14_swag-80465313.pth"),
        ("timm:tf_efficientnet_lite0", "https://github.com/", "tf_efficientnet_lite0-0aa007d2.pth"),
        (
            "timm:vit_small_patch16_dinov3",
            "https://huggingface.co/timm/vit_small_patch16_dinov3.lvd1689m/resolve/main/model.safetensors",
            "vit_small_patch16_dinov3.lvd1689m.safetensors",
        ),
    ],
)
def test_libraries_publish_weights(backbone: str, url: str, first: str, tmp_path: Path) -> None:
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    found = published(backbone)
    own = backbone.partition(":")[2]
    assert found.url.startswith(url)
    assert found.names == (first, f"{own}.pth", f"{own}.safetensors")
    with pytest.raises(InputError, match=f"none of {first}, .*the download failed: .*{found.url}"):
        default_weights(backbone, tmp_path)
    (tmp_path / f"{own}.safetensors").write_bytes(b"any")
    assert default_weights(backbone, tmp_path) == tmp_path / f"{own}.safetensors"


def test_the_input_of_timms_weights_is_timms() -> None:
    pytest.importorskip("timm")
    assert library_normalization("timm:tf_efficientnet_lite0") == ((0.5,) * 3, (0.5,) * 3)
    assert library_normalization("torchvision:mobilenet_v2") == (None, None)
    rgb = normalization("torchvision", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (rgb.mean, rgb.deviation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert normalization("caffe", pixel_std=(2.0, 2.0, 2.0)).deviation == (2.0, 2.0, 2.0)


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


def test_without_a_file_the_published_one_is_downloaded_with_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "data" / "weights"
    digits = hashlib.sha256(b"fetched").hexdigest()[:8]
    with serving() as web:
        name = f"resnet18-{digits}.pth"
        web.files[name] = b"fetched"
        monkeypatch.setattr(module, "published", lambda _: Download(web.url(name), (name, "resnet18.pth")))
        assert default_weights("resnet18", folder) == folder / name
        assert default_weights("resnet18", folder).read_bytes() == b"fetched"
        assert len(web.asked) == 1
        (folder / name).unlink()
        web.files[name] = b"wrong"
        with pytest.raises(InputError, match=f"its SHA-256 begins with .* instead of {digits}"):
            default_weights("resnet18", folder)
        assert not (folder / name).exists()


def test_with_neither_the_error_names_the_files_the_address_and_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        default_weights("vgg16", tmp_path)
    said = str(caught.value)
    for part in ("vgg16-397923af.pth", "vgg16.pth", str(tmp_path), "https://download.pytorch.org/", "null"):
        assert part in said
    assert f"put it at {tmp_path / 'vgg16-397923af.pth'}; then call the command again; or set" in said


def test_a_network_of_ours_has_none() -> None:
    with pytest.raises(InputError, match="small has no default weights; known: alexnet"):
        default_file_names("small")
