"""The network as a whole: pooling over levels, chunks, gradients, and the head's initial weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from detector.core.structures import Embedded, Normalization, SampledRoIs
from detector.models.backbones import Backbone, build_backbone
from detector.models.box_coder import fixed_coder
from detector.models.detector import RegionDetector
from detector.models.heads import BoxHead, BoxPredictor
from detector.models.losses import DetectionLoss
from detector.models.region_pools import RoIPooling
from detector.ops import roi_pool
from tests.conftest import MakeBoxes
from tests.typed import gradient, present

RGB = Normalization(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225), maximum=255.0, bgr=False)
CAFFE = Normalization(mean=(102.9801, 115.9465, 122.7717), deviation=(1.0, 1.0, 1.0), maximum=1.0, bgr=True)


def build(
    backbone: Backbone | None = None,
    hidden: Sequence[int] = (24, 16),
    class_agnostic: bool = False,
    normalization: Normalization = RGB,
) -> RegionDetector:
    torch.manual_seed(0)
    backbone = backbone or build_backbone("small")
    pool = RoIPooling(backbone.channels, 3, backbone.stride, backbone.center)
    head = BoxHead(pool.out_features, hidden, dropout=0.5)
    predictor = BoxPredictor(head.out_features, 4, class_agnostic)
    coder = fixed_coder(4, (0,) * 4, (0.1, 0.1, 0.2, 0.2))
    return RegionDetector(backbone, pool, head, predictor, coder, 512, normalization)


def rows(boxes: Tensor, image: int = 0) -> Tensor:
    return torch.cat((torch.full((len(boxes), 1), float(image)), boxes), dim=1)


def pixels(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))


def test_inputs_equal_torchvisions_transforms() -> None:
    images = pixels(2, 30, 40)
    found = build().inputs(images, [(30, 40)] * 2)
    reference = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(RGB.mean, RGB.deviation)]
    )
    assert (found.dtype, found.shape) == (torch.float32, (2, 3, 30, 40))
    for image, one in zip(images, found, strict=True):
        torch.testing.assert_close(one, reference(image.numpy()), rtol=1e-5, atol=1e-6)


def test_caffes_inputs_are_bgr_minus_the_mean() -> None:
    images = pixels(1, 30, 40)
    found = build(normalization=CAFFE).inputs(images, [(30, 40)])
    blue, green, red = (images[0, :, :, channel].numpy().astype(np.float32) for channel in (2, 1, 0))
    expected = np.stack((blue - 102.9801, green - 115.9465, red - 122.7717))
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("normalization", [RGB, CAFFE])
def test_the_padding_becomes_the_mean_colour_whatever_lies_there(normalization: Normalization) -> None:
    images, model = pixels(2, 30, 40), build(normalization=normalization)
    sizes = [(30, 25), (17, 40)]
    found = model.inputs(images, sizes)
    for image, one, (height, width) in zip(images, found, sizes, strict=True):
        alone = model.inputs(image[None, :height, :width].contiguous(), [(height, width)])
        assert torch.equal(one[:, :height, :width], alone[0])
        assert not one[:, height:].any()
        assert not one[:, :, width:].any()


def test_the_normalisation_is_no_part_of_the_weights() -> None:
    """It comes from the config, so checkpoints made before it moved into the network fit."""
    assert not any("pixel" in name for name in build().state_dict())
    other = build(normalization=CAFFE)
    other.load_state_dict(build().state_dict())
    assert torch.equal(other.pixel_values, build(normalization=CAFFE).pixel_values)


def test_shapes_of_every_step(make_boxes: MakeBoxes) -> None:
    model = build().eval()
    levels = model.features(torch.randn(2, 3, 96, 128))
    rois = torch.cat((rows(make_boxes(5, 90.0)), rows(make_boxes(2, 90.0), image=1)))
    assert [level.shape for level in levels] == [(2, 96, 12, 16)]
    embedded = model.embed(levels, rois)
    assert isinstance(embedded, Embedded)
    assert (embedded.pooled.shape, embedded.hidden.shape) == ((7, 96 * 9), (7, 16))
    output = model.predict(levels, rois)
    assert (output.class_logits.shape, present(output.box_deltas).shape) == ((7, 5), (7, 5, 4))
    assert present(build(class_agnostic=True).eval().predict(levels, rois).box_deltas).shape == (7, 1, 4)
    none = model.predict(levels, rois[:0])
    assert (none.class_logits.shape, present(none.box_deltas).shape) == ((0, 5), (0, 5, 4))


def test_forward_is_predict_on_features(make_boxes: MakeBoxes) -> None:
    model, images, rois = build().eval(), torch.randn(1, 3, 64, 64), rows(make_boxes(9, 60.0))
    with torch.inference_mode():
        assert torch.equal(model(images, rois)[0], model.predict(model.features(images), rois)[0])


def test_pooling_subtracts_the_centre_and_flattens_channel_row_column(make_boxes: MakeBoxes) -> None:
    features, rois = torch.randn(1, 4, 12, 12), rows(make_boxes(20, 90.0))
    shifted = rois - torch.tensor([0.0, 3.5, 3.5, 3.5, 3.5])
    for center, seen in ((3.5, shifted), (0.0, rois)):
        pooled = RoIPooling(4, 3, 8, center)([features], rois)
        assert torch.equal(pooled, roi_pool(features, seen, 3, 1 / 8).reshape(20, 36))


def test_several_levels_equal_calls_of_their_own(make_boxes: MakeBoxes) -> None:
    pool = RoIPooling(4, 3, 8, 1.5)
    levels = [torch.randn(2, 4, 6 + 5 * number, 9 + number) for number in range(3)]
    rois = rows(make_boxes(40, 90.0), image=1)
    roi_levels = torch.randint(3, (40,), generator=torch.Generator().manual_seed(0))
    roi_levels[roi_levels == 1] = 2  # one level without any RoI
    found = pool(levels, rois, roi_levels)
    for number, level in enumerate(levels):
        assert torch.equal(found[roi_levels == number], pool([level], rois[roi_levels == number]))


def test_gradients_of_several_levels_reach_each(make_boxes: MakeBoxes) -> None:
    levels = [torch.randn(1, 4, 12, 12, requires_grad=True) for _ in range(2)]
    roi_levels = torch.tensor([0, 1, 0, 1])
    RoIPooling(4, 3, 8)(levels, rows(make_boxes(4, 90.0)), roi_levels).sum().backward()
    for number, level in enumerate(levels):
        alone = level.detach().clone().requires_grad_()
        own = rows(make_boxes(4, 90.0))[roi_levels == number]
        RoIPooling(4, 3, 8)([alone], own).sum().backward()
        assert gradient(level).any()
        torch.testing.assert_close(level.grad, alone.grad)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_chunks_pool_the_same_bits_and_predict_the_same_but_for_rounding(
    make_boxes: MakeBoxes, class_agnostic: bool, several: bool
) -> None:
    """Pooling does not depend on chunks; matrix products of other sizes may round differently."""
    model = build(class_agnostic=class_agnostic).eval()
    rois = rows(make_boxes(100, 90.0))
    roi_levels = torch.arange(100) // 3 % 2 if several else None
    with torch.inference_mode():
        images = torch.randn(1 + several, 1, 3, 96, 96)  # with several levels, each of another image
        levels = [level for image in images for level in model.features(image)]
        pooled = model.embed(levels, rois, roi_levels).pooled
        at_once = model.predict(levels, rois, roi_levels)
        for chunk in (1, 7, 50, 99):
            model.roi_chunk = chunk
            for found, expected in zip(model.predict(levels, rois, roi_levels), at_once, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
            part = None if roi_levels is None else roi_levels[:chunk]
            assert torch.equal(model.embed(levels, rois[:chunk], part).pooled, pooled[:chunk])


@pytest.mark.parametrize("several", [False, True])
def test_rois_on_the_same_cells_are_classified_once_with_the_same_result(
    make_boxes: MakeBoxes, several: bool
) -> None:
    """``describe`` classifies every RoI. Products of 64 rows and more are rounded alike for each row."""
    model = build(hidden=(512, 256)).eval()
    rois = rows(make_boxes(300, 90.0))
    rois = torch.cat((rois, rois + 1e-4))[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    roi_levels = torch.arange(600) % 2 if several else None
    heights: list[int] = []
    model.box_head.register_forward_pre_hook(lambda _, inputs: heights.append(len(inputs[0])))
    with torch.inference_mode():
        levels = [level for image in torch.randn(2, 1, 3, 96, 96) for level in model.features(image)]
        found = model.predict(levels, rois, roi_levels)
        distinct = sum(heights)
        _, expected = model.describe(levels, rois, roi_levels)
    assert 128 < distinct < (500 if several else 301)
    assert sum(heights) - distinct == 600
    assert torch.equal(found.class_logits, expected.class_logits)
    assert torch.equal(present(found.box_deltas), present(expected.box_deltas))


def test_dropout_is_drawn_for_every_roi_of_the_same_cells() -> None:
    model, rois = build().train(), rows(torch.tensor([[8.0, 8, 40, 40]])).repeat(20, 1)
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 64, 64), rois).class_logits
    assert len(logits.unique(dim=0)) > 10


def test_chunks_are_of_about_equal_size() -> None:
    model = build().eval()
    with torch.inference_mode():
        for count, sizes in ((0, [0]), (512, [512]), (513, [257, 256]), (1400, [467, 467, 466])):
            assert [len(rois) for rois, *_ in model.chunks(torch.zeros(count, 5), None)] == sizes


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_a_training_step_asks_its_device_for_nothing(make_boxes: MakeBoxes, class_agnostic: bool) -> None:
    """The meta device has no values and refuses tensors of other devices, so reading a value fails."""
    model = build(class_agnostic=class_agnostic).to("meta").train()
    labels = torch.arange(9) % 5
    wanted = SampledRoIs(rois=rows(make_boxes(9, 60.0)), labels=labels, box_targets=torch.zeros(9, 4))
    wanted = wanted.to("meta")
    output = model(torch.zeros(1, 3, 64, 64, device="meta"), wanted.rois)
    sum(DetectionLoss()(output, wanted).values(), torch.zeros(())).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(NotImplementedError):
        torch.nonzero(wanted.labels)


def test_regions_of_several_levels_are_sorted_without_asking_the_device(make_boxes: MakeBoxes) -> None:
    model = build().to("meta").train()
    levels = [level for _ in range(2) for level in model.features(torch.zeros(1, 3, 64, 64, device="meta"))]
    sampled = SampledRoIs(
        rois=rows(make_boxes(9, 60.0)),
        labels=torch.arange(9) % 5,
        box_targets=torch.zeros(9, 4),
        roi_levels=torch.arange(9) % 2,
    ).to("meta")
    assert sampled.roi_levels is not None
    assert sampled.roi_levels.device.type == "cpu"
    assert model.predict(levels, sampled.rois, sampled.roi_levels).class_logits.shape == (9, 5)


def test_training_is_never_in_chunks(make_boxes: MakeBoxes) -> None:
    model = build().train()
    model.roi_chunk = 2
    calls: list[int] = []
    model.box_head.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    model(torch.randn(1, 3, 64, 64), rows(make_boxes(9, 60.0)))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64), rows(make_boxes(5, 60.0)))
    assert calls == [9, 2, 2, 1]


def test_gradients_reach_the_backbone_through_roi_pooling(make_boxes: MakeBoxes) -> None:
    torch.manual_seed(0)
    model = build(build_backbone("small", freeze=1)).train()
    rois = rows(make_boxes(16, 60.0))
    wanted = SampledRoIs(rois=rois, labels=torch.arange(16) % 5, box_targets=torch.randn(16, 4))
    sum(DetectionLoss()(model(torch.randn(1, 3, 64, 64), rois), wanted).values(), torch.zeros(())).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
        else:
            assert name.startswith("backbone.features.")
            assert parameter.grad is None


def test_the_whole_gradient_is_the_numerical_one(make_boxes: MakeBoxes) -> None:
    model = build(hidden=(6,)).double().eval()
    rois = rows(make_boxes(3, 30.0)).double()
    start = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    direction = torch.randn_like(start)

    def loss(step: Tensor) -> Tensor:
        output = model(start + step * direction, rois)
        return output.class_logits.square().sum() + output.box_deltas.sum()

    assert torch.autograd.gradcheck(loss, torch.zeros((), dtype=torch.float64, requires_grad=True))


def test_the_head_starts_as_in_the_paper() -> None:
    torch.manual_seed(0)
    predictor = BoxPredictor(2000, 20)
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert present(predictor.bbox_pred).weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not predictor.cls_score.bias.any()
    assert not present(predictor.bbox_pred).bias.any()
    names = set(build().state_dict())
    expected = {"box_head.layers.fc6.weight", "box_head.layers.fc7.bias", "predictor.cls_score.weight"}
    assert expected | {"predictor.bbox_pred.bias", "box_coder.means", "box_coder.deviations"} <= names


def test_the_box_layer_reads_hidden_or_pooled_features_or_is_not_there() -> None:
    embedded = Embedded(torch.randn(3, 10), torch.randn(3, 6))
    linear, ridge = BoxPredictor(6, 4), BoxPredictor(6, 4, box_features=10)
    for predictor, read in ((linear, embedded.hidden), (ridge, embedded.pooled)):
        logits, deltas, _ = predictor(embedded)
        assert torch.equal(logits, predictor.cls_score(embedded.hidden))
        assert torch.equal(deltas, present(predictor.bbox_pred)(read).view(3, 5, 4))
    assert BoxPredictor(6, 4, box_features=0)(embedded)[1] is None


def test_dropout_is_there_only_where_asked_for() -> None:
    layers = [type(layer) for layer in BoxHead(4, [3, 2], dropout=0.5).layers]
    assert layers == [nn.Linear, nn.ReLU, nn.Dropout] * 2
    assert nn.Dropout not in [type(layer) for layer in BoxHead(4, [3, 2], dropout=0.0).layers]
    assert BoxHead(4, [], dropout=0.5).out_features == 4
