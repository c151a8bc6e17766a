"""Weights into networks: published files, checkpoints of other classes and tasks, what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from detector.config import Config, load_config
from detector.core.errors import InputError
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.factory.model import build_backbone, build_model, initial_model
from detector.factory.weights import check_weights, load_published
from detector.models.box_coder import fixed_coder
from detector.models.detector import RegionDetector
from detector.models.heads import BoxHead
from detector.tasks.start import start_run
from tests.conftest import PROJECT
from tests.typed import present

Load = Callable[..., Config]
CLASSES = ("disc", "ring", "bar")


def published(name: str) -> nn.Module:
    """A network of torchvision's with random weights, standing for the published one."""
    torch.manual_seed(3)
    network: nn.Module = getattr(models, name)()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that differ from those of a fresh network
            present(module.running_mean).normal_(std=0.1)
            present(module.running_var).uniform_(0.5, 1.5)
    return network.eval()


def published_features(name: str, network: Any, images: Tensor) -> Tensor:
    if name.startswith("resnet"):
        stem = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        return network.layer3(network.layer2(network.layer1(stem)))
    layers = list(network.features)
    cut = layers[:-1] if name in ("alexnet", "vgg16") else layers  # without the last pool
    return nn.Sequential(*cut)(images)


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_0", "resnet18", "resnet50"])
def test_features_are_those_of_torchvisions_network(tiny: Load, tmp_path: Path, name: str) -> None:
    network = published(name)
    path = tmp_path / "weights.pth"
    state = network.state_dict()
    if name == "alexnet":  # its fully connected layers, 220 MB, are tested below
        state = {key: tensor for key, tensor in state.items() if key.startswith("features.")}
    torch.save(state, path)
    config = tiny(f"model.backbone.name={name}", f"model.backbone.weights={path}")
    backbone = build_backbone(config).eval()
    load_published(config, backbone)
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        expected = published_features(name, network.double(), images)
        torch.testing.assert_close(backbone.double()(images), expected)


def test_fc6_and_fc7_compute_what_they_did(tiny: Load, tmp_path: Path) -> None:
    """A network of AlexNet's form with narrow fully connected layers, so that the file stays small."""
    network = published("alexnet")
    narrow = nn.Sequential(*(nn.Linear(*sides) for sides in ((256 * 36, 40), (40, 24), (24, 10))))
    state = {key: value for key, value in network.state_dict().items() if key.startswith("features.")}
    for number, layer in zip((1, 4, 6), narrow, strict=True):
        state |= {f"classifier.{number}.{kind}": value for kind, value in layer.state_dict().items()}
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    config = tiny("model.backbone.name=alexnet", f"model.backbone.weights={path}", "model.head.weights=true")
    head = BoxHead(256 * 36, [40, 24]).eval()
    load_published(config, build_backbone(config), head.layers)
    pooled = torch.rand(2, 256 * 36)
    with torch.inference_mode():
        expected = narrow[1](narrow[0](pooled).relu()).relu()
        torch.testing.assert_close(head(pooled), expected)
    alone = BoxHead(256 * 36, [40])
    load_published(config, build_backbone(config), alone.layers)
    assert torch.equal(alone.layers.get_parameter("fc6.weight"), narrow.get_parameter("0.weight"))
    with pytest.raises(InputError, match=r"missing box_head\.layers\.fc8\.weight \(5, 24\)"):
        load_published(config, build_backbone(config), BoxHead(256 * 36, [40, 24, 5]).layers)
    with pytest.raises(InputError, match=r"fc6\.weight \(40, 9216\) where \(40, 4096\) is needed"):
        load_published(config, build_backbone(config), BoxHead(256 * 16, [40, 24]).layers)


def test_networks_without_fully_connected_layers_have_none_to_give(tiny: Load) -> None:
    config = tiny("model.backbone.name=resnet18", "model.backbone.weights=any.pth", "model.head.weights=true")
    with pytest.raises(
        InputError, match=r"model\.head\.weights: resnet18 has no fc6 and fc7; set it to false"
    ):
        load_published(config, build_backbone(config), BoxHead(4, [4]).layers)


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(
    tiny: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = published("resnet18").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    state["layer1.2.conv1.weight"] = torch.zeros(64, 64, 3, 3)
    del state["bn1.running_mean"]
    path = tmp_path / "bad.pth"
    torch.save(state, path)
    settings = ("model.backbone.name=resnet18", f"model.backbone.weights={path}")
    config = tiny(*settings)
    backbone = build_backbone(config)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_published(config, backbone)
    for part in (
        "bad.pth: does not fit the configured network",
        "missing backbone.features.bn1.running_mean (64,)",
        "layer1.0.conv1.weight (64, 64, 1, 1) where (64, 64, 3, 3) is needed",
        "unexpected layer1.2.conv1.weight",
        "set model.backbone.allow_partial to true",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    lines = capsys.readouterr().err.splitlines()
    assert f"{path}: missing: backbone.features.bn1.running_mean (64,)" in lines
    assert f"{path}: loaded: backbone.features.conv1.weight (64, 3, 7, 7)" in lines

    load_published(tiny(*settings, "model.backbone.allow_partial=true"), backbone)
    after = backbone.state_dict()
    assert torch.equal(after["features.conv1.weight"], state["conv1.weight"])
    for kept in ("features.bn1.weight", "features.layer1.0.conv1.weight"):
        assert torch.equal(after[kept], before[kept])


@pytest.mark.parametrize("key", ["model.backbone.weights", "train.initial_weights"])
def test_weights_that_cannot_be_read_stop_a_run_before_proposals_are_made(
    tiny: Load, tmp_path: Path, key: str
) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    for name, message in (("gone.pth", "no such"), ("text.pth", "not readable")):
        config = tiny("model.backbone.name=resnet18", f"{key}={tmp_path}/{name}")
        with pytest.raises(InputError, match=message):
            start_run(config, tmp_path / "run", "cpu")
    assert not list(tmp_path.glob("**/dense_*"))


def test_a_file_of_which_nothing_fits_is_refused_even_so(tiny: Load, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"encoder.weight": torch.zeros(3)}, path)
    config = tiny(f"model.backbone.weights={path}", "model.backbone.allow_partial=true")
    with pytest.raises(InputError, match="nothing in it fits the configured network"):
        load_published(config, build_backbone(config))


def test_both_squeezenet_files_give_the_same_features(tiny: Load) -> None:
    """The files hold one network; each gets its own input, so that features must agree."""
    found = {}
    for convention, name, mean in (
        ("torchvision", "squeezenet1_0-dc_tvnorm-fba6d0e6.pth", "null"),
        ("caffe", "squeezenet1_0-dc-71925592.pth", "[104, 117, 123]"),
    ):
        path = PROJECT / "data" / "weights" / name
        if not path.exists():
            pytest.skip(f"{path.relative_to(PROJECT)} is not there")
        config = tiny(
            "model.backbone.name=squeezenet1_0",
            f"model.backbone.weights={path}",
            f"model.backbone.convention={convention}",
            f"model.backbone.pixel_mean={mean}",
        )
        backbone = build_backbone(config).eval()
        load_published(config, backbone)
        image = torch.randint(0, 256, (1, 128, 160, 3), generator=torch.Generator().manual_seed(0))
        inputs = build_model(config, 1).inputs(image.to(torch.uint8), [(128, 160)])
        with torch.inference_mode():
            found[convention] = backbone(inputs)
    largest = found["caffe"].abs().max()
    assert largest > 10  # the network does answer
    assert (found["torchvision"] - found["caffe"]).abs().max() < 1e-4 * largest


def checkpoint_of(config: Config, classes: tuple[str, ...], path: Path) -> RegionDetector:
    """Write a checkpoint as a run leaves it, of a network with odd constants of the box targets."""
    model = initial_model(config, classes, fixed_coder(len(classes), (0.5,) * 4, (0.7,) * 4))
    state = {"step": 1, "config": config.model_dump(mode="json"), "classes": list(classes)}
    save_checkpoint(path, {**state, "model": model.state_dict()})
    return model


def begun(path: Path, classes: tuple[str, ...], *settings: str, load: Load) -> RegionDetector:
    settings = (f"train.initial_weights={path}", "seed=99", *settings)
    return initial_model(load(*settings), classes, fixed_coder(len(classes), (0.1,) * 4, (0.2,) * 4))


def same(first: RegionDetector, second: RegionDetector) -> set[str]:
    """Return the parts of two networks that are equal in every tensor."""
    theirs = second.state_dict()
    parts = {"backbone", "box_head", "predictor.cls_score", "predictor.bbox_pred", "box_coder"}
    unequal = {
        part
        for part in parts
        for name, tensor in first.state_dict().items()
        if name.startswith(part) and (name not in theirs or not torch.equal(tensor, theirs[name]))
    }
    return parts - unequal


def test_the_same_classes_take_the_whole_network(tiny: Load, tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    source = checkpoint_of(tiny(), CLASSES, path)
    model = begun(path, CLASSES, load=tiny)
    assert model.state_dict().keys() == source.state_dict().keys()
    assert len(same(model, source)) == 5


@pytest.mark.parametrize("classes", [("disc", "ring"), ("ring", "disc", "bar"), ("a", "b", "c")])
def test_other_classes_have_their_heads_re_made(
    tiny: Load, tmp_path: Path, classes: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "step_1.pt"
    source = checkpoint_of(tiny(), CLASSES, path)
    model = begun(path, classes, load=tiny)
    assert same(model, source) == {"backbone", "box_head"}
    assert (model.box_coder.means == 0.1).all()  # those of the new data
    assert (model.box_coder.deviations == 0.2).all()
    said = capsys.readouterr().err
    assert f"trained for other classes (disc, ring, bar) than this data set's ({', '.join(classes)})" in said
    assert f"{path}: re-made: predictor.cls_score.weight" in said


def test_a_classifier_gives_an_spp_net_detector_its_layers(tiny: Load, tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    pool = "model.pool={kind: spp, levels: [3, 1]}"
    source = checkpoint_of(tiny(pool, "task=classification"), CLASSES, path)
    model = begun(path, CLASSES, pool, load=tiny)
    assert same(model, source) == {"backbone", "box_head"}
    assert (model.box_coder.means == 0.1).all()


def test_convolutions_that_work_on_regions_are_the_same_convolutions(tiny: Load, tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    source = checkpoint_of(tiny(), CLASSES, path)
    pool = "model.pool={kind: warp, output_size: 4, crop_size: 64, context: 4}"
    model = begun(path, CLASSES, pool, load=tiny)
    assert "box_head" in same(model, source)
    theirs = source.backbone.state_dict()
    assert theirs
    for name, tensor in model.get_submodule("region_pool.convolutions").state_dict().items():
        assert torch.equal(tensor, theirs[name])


def fc7_of(model: RegionDetector) -> Tensor:
    return model.box_head.layers.get_parameter("fc7.weight")


def test_a_box_head_that_does_not_fit_is_an_error_unless_allowed(tiny: Load, tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    source = checkpoint_of(tiny(), CLASSES, path)
    wider = "model.head.hidden=[48, 32]"
    message = r"made with model\.head\.hidden = \[32, 32\], the config says \[48, 32\].*allow_partial"
    with pytest.raises(InputError, match=message):
        begun(path, CLASSES, wider, load=tiny)
    model = begun(path, CLASSES, wider, "train.allow_partial=true", load=tiny)
    assert "backbone" in same(model, source)
    assert not torch.equal(fc7_of(model)[:, :32], fc7_of(source))


def test_weights_of_another_input_convention_are_refused(tiny: Load, tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    checkpoint_of(tiny("model.backbone.convention=caffe"), CLASSES, path)
    with pytest.raises(InputError, match=r"trained with model\.backbone\.convention = 'caffe'"):
        begun(path, CLASSES, load=tiny)
    begun(path, CLASSES, "train.allow_partial=true", load=tiny)
    state = load_checkpoint(path)
    state = {key: value for key, value in state.items() if key not in ("format", "file")}
    wrong: tuple[Any, ...] = ([], 3, {"backbone": 3})
    for stored in wrong:
        save_checkpoint(path, {**state, "config": {**state["config"], "model": stored}})
        with suppress(InputError):  # and nothing else
            begun(path, CLASSES, load=tiny)
    long = {"backbone": {"convention": "x" * 10_000}}
    save_checkpoint(path, {**state, "config": {**state["config"], "model": long}})
    with pytest.raises(InputError, match=r"convention = 'x{79} *, the config") as caught:
        begun(path, CLASSES, load=tiny)
    assert len(str(caught.value)) < 500


def test_default_weights_are_those_in_the_folder_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/weights").mkdir(parents=True)
    state = published("squeezenet1_0").state_dict()
    torch.save(state, tmp_path / "data/weights/squeezenet1_0.pth")
    config = load_config(PROJECT / "configs/own_data.yaml", ["model.head.hidden=[8]"])
    check_weights(config)
    model = build_model(config, 2)
    assert torch.equal(model.backbone.features.state_dict()["0.weight"], state["features.0.weight"])
    assert "data/weights/squeezenet1_0.pth: tensors loaded" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ((), False),
        (("model.backbone.freeze=none",), False),
        (("model.backbone.freeze=1",), True),
        (("model.backbone.freeze=all",), True),
        (("train.trainable=boxes",), True),
    ],
)
def test_frozen_random_convolutions_are_warned_of(
    given: tuple[str, ...], warned: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    initial_model(load_config(PROJECT / "configs/quickstart.yaml", given), ("a", "b"))
    assert ("starts from random convolutions and keeps them" in capfd.readouterr().err) == warned
