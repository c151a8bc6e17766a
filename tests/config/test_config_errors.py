"""One mistake in a config is one message that names file, key, value and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.config import load_config
from detector.core.errors import InputError
from tests.conftest import PROJECT

QUICKSTART = PROJECT / "configs" / "quickstart.yaml"

MISTAKES = [
    ("train.stepz=5", r"train\.stepz: unknown key \(did you mean 'steps'\?\)"),
    ("train.learning-rate=1", r"train\.learning-rate: unknown key \(did you mean 'learning_rate'\?\)"),
    ("train.int=3", r"train\.int: unknown key"),
    ("trian.steps=5", r"trian: unknown key \(did you mean 'train'\?\)"),
    ("data.generate.seeds=1", r"data\.generate\.seeds: unknown key \(did you mean 'seed'\?\)"),
    (
        "train.sampling.rois_per_images=1",
        r"train\.sampling\.rois_per_images: unknown key \(did you mean 'rois_per_image'\?\)",
    ),
    ("_base_=other.yaml", r"_base_: unknown key"),
    ("train.steps=many", r"train\.steps = 'many': expected a whole number"),
    ("train.steps=true", r"train\.steps = True: expected a whole number"),
    ("train.steps=0", r"train\.steps = 0: Input should be greater than or equal to 1"),
    ("train.scales=[600,big]", r"train\.scales\.1 = 'big'"),
    ("train.scales=[]", r"train\.scales = \[\]: expected at least one value"),
    ("test.scales=[]", r"test\.scales = \[\]: expected at least one value"),
    ("proposals={method: dense, scales: []}", r"proposals\.scales = \[\]: expected at least one value"),
    ("proposals={method: dense, stride_fraction: 0}", r"proposals\.stride_fraction = 0"),
    ("train.learning_rate=.inf", r"train\.learning_rate = inf: Input should be a finite number"),
    ("train.learning_rate=.nan", r"train\.learning_rate = nan"),
    ("test.nms_threshold=1.5", r"test\.nms_threshold = 1\.5: Input should be less than or equal to 1"),
    ("seed=4294967296", r"seed = 4294967296"),
    ("model.backbone.name=vgg", r"model\.backbone\.name = 'vgg': .*did you mean 'vgg16'\?"),
    (
        "model.backbone.name=torchvision:resnet19",
        r"no classification network 'resnet19' \(did you mean 'resnet1",
    ),
    (
        "model.backbone.name=mine",
        r"model\.backbone\.name = 'mine': expected vgg16, .*timm:NAME, or module:func",
    ),
    ("model.backbone={name: mine:net, weights: default}", "mine:net has no published weights"),
    ("model.backbone.pixel_std=[1, 0, 1]", r"model\.backbone\.pixel_std.*greater than 0"),
    ("model.fpn.channels=8", r"model\.fpn is for model\.neck: fpn"),
    ("model={neck: fpn, backbone: {reduce_channels: 8}}", r"the levels of model\.neck: fpn have"),
    ("model={neck: fpn, pool: {kind: crop}}", r"model\.neck: fpn has no use with model\.pool\.kind: crop"),
    ("model.backbone.freeze=al", r"model\.backbone\.freeze = 'al': .*did you mean 'all'\?"),
    ("model.box.means=[0,0]", r"model\.box\.means\.2: missing"),
    # A value of another type whose meaning is clear
    ("train.scales=480", r"train\.scales = 480: expected a list; write train\.scales=\[480\]$"),
    ("train.scales=480,600", r"= '480,600': expected a list; write train\.scales=\[480,600\]$"),
    (
        "model.head.hidden=256",
        r"model\.head\.hidden = 256: expected a list; write model\.head\.hidden=\[256\]$",
    ),
    ("model.pool={kind: spp, levels: 6}", r"expected a list; write model\.pool\.levels=\[6\]$"),
    ("proposals={method: dense, scales: 1}", r"expected a list; write proposals\.scales=\[1\]$"),
    ("data.classes=7", r"data\.classes = 7: expected a list; write data\.classes=\[7\]"),
    ("train.scale_jitter=0.8", r"expected a list of 2 values; write train\.scale_jitter=\[0\.8, \.\.\.\]$"),
    ("train.sampling.background_iou=0", r"a list of 2 values; write train\.sampling\.background_iou=\[0, "),
    ("train.scales=null", r"train\.scales = None: expected a list$"),
    ("proposals.options.seed=abc", r"proposals\.options\.seed = 'abc': expected a whole number"),
    ("proposals.options.max_proposals=-1", r"proposals\.options\.max_proposals = -1: .* at least 1"),
    ("proposals.options.mode=quick", r"proposals\.mode: .*'quick'"),
    ("proposals.options.color_spaces=[foo]", r"proposals\.options: .*color_spaces is 'foo'"),
    ("data.classes=cat", r"^[^\n]*data\.classes = 'cat': expected a list; write data\.classes=\[cat\]$"),
    ("train.steps=[5]", r"train\.steps = \[5\]: .*; write train\.steps=5$"),
    ("train.steps=1e3", r"train\.steps = 1000\.0: expected a whole number; write train\.steps=1000$"),
    ('train.steps="5"', r"train\.steps = '5': .*; write train\.steps=5, without quotes$"),
    ('train.flip="0.5"', r"train\.flip = '0\.5': .*; write train\.flip=0\.5, without quotes$"),
    ("train.flip=yes", r"train\.flip = True: expected a number$"),
    (
        "train.deterministic=1",
        r"deterministic = 1: expected true or false; write train\.deterministic=true or train\.det",
    ),
    (
        "data.root=2007",
        r"expected a text; .*: '2007' in a file, 'data\.root=\"2007\"' on the command line$",
    ),
    # Texts that no path or name can have
    ('data.root="\\0"', r"data\.root = '\\x00': holds a null character .* remove it"),
    ('data.classes=[cat,"d\\0g"]', r"data\.classes = 'd\\x00g': holds a null character"),
    ('proposals.options={"a\\0": 1}', r"proposals\.options = 'a\\x00': holds a null character"),
    ('model.backbone.weights="a\\0b"', r"model\.backbone\.weights = 'a\\x00b': holds a null"),
    ('data.classes=["\\uD800"]', r"data\.classes = '\\ud800': .* half a surrogate pair"),
    ("train=3", r"train = 3: expected keys below it; write train\.KEY=VALUE"),
    ("model.pool=roi", r"model\.pool = 'roi': expected keys below it; write model\.pool\.KEY=VALUE"),
    ("stages=[svm]", r"stages\.0 = 'svm': expected keys below it"),
    ("train=null", r"train = None"),
    # Strengths of augmentation
    (
        "train.augment.color_jitter.brightness=1.5",
        r"color_jitter\.brightness = 1\.5: .*less than or equal to 1",
    ),
    ("train.augment.color_jitter.contrast=-0.1", r"color_jitter\.contrast = -0\.1"),
    ("train.augment.color_jitter.hue=0.6", r"color_jitter\.hue = 0\.6"),
    ("train.augment.color_jitter=0.3", r"augment\.color_jitter = 0\.3: expected keys below it"),
    ("train.augment.crop.probability=2", r"crop\.probability = 2"),
    ("train.augment.crop.min_scale=0", r"crop\.min_scale = 0"),
    ("train.augment.crop.min_coverage=0", r"crop\.min_coverage = 0"),
    ("train.augment.crop.aspect_ratio=[0,1]", r"crop\.aspect_ratio\.0 = 0"),
    ("train.augment.expand.max_ratio=0.5", r"expand\.max_ratio = 0\.5"),
    ("train.augment.expand.max_ratio=9", r"expand\.max_ratio = 9"),
    ("train.augment.cutout.count=0", r"cutout\.count = 0"),
    ("train.augment.cutout.size=0.2", r"cutout\.size = 0\.2"),
    ("train.augment.colour_jitter.hue=0.1", r"colour_jitter: unknown key \(did you mean 'color_jitter'\?\)"),
    # What two keys say together
    ("train.sampling.background_iou=[0.5,0.1]", r"background_iou must be \[low, high\) with low < high"),
    ("train.early_stopping=3", r"train\.early_stopping counts evaluations, .*set train\.evaluate_every"),
    ("train.ema=1.0", r"train\.ema = 1\.0"),
    ("train.sampling.foreground_iou=0.3", r"background_iou must end at or below foreground_iou"),
    ("train.schedule.milestones=[0.9,0.5]", r"train\.schedule\.milestones must rise"),
    ("train.scale_jitter=[2,0.5]", r"train\.scale_jitter must be \[low, high\]"),
    ("train.augment.crop.aspect_ratio=[2,0.5]", r"crop\.aspect_ratio must be \[low, high\] with low <= high"),
    ("train.augment.cutout.size=[0.3,0.1]", r"cutout\.size must be \[low, high\] with low <= high"),
    ("data.classes=[cat,cat]", r"data\.classes must name at least one class, and none twice"),
    ("proposals.file=x.npz", r"proposals\.file and proposals\.format go together"),
    ("proposals.method=null", r"proposals needs either 'file' with 'format', or 'method'"),
    ("proposals.method=selective", r"method 'selective' is unknown \(did you mean 'selective_search'\?\)"),
    ("proposals.method=':boxes'", r"method ':boxes' is unknown.*module:function"),
    ("proposals.options={when: 2020-01-01}", r"proposals\.options may hold only numbers, text, true"),
    ("proposals={file: a, format: store, convention: xyxy}", r"convention only applies to a proposals\.file"),
    ("proposals.missing=full", r"proposals\.missing = 'full': .*did you mean 'full_image'"),
    ("proposals.time_limit=0", r"proposals\.time_limit = 0"),
    # Keys of another kind
    (
        "proposals.stride_fraction=0.5",
        r"proposals\.stride_fraction: proposals\.method selective_search has no key 'stride_fraction'; "
        r"proposals\.method dense has it$",
    ),
    (
        "proposals.convention=xyxy",
        r"proposals\.convention: proposals\.method selective_search has no key 'convention'; "
        r"proposals\.file has it$",
    ),
    (
        "proposals={method: null, width: 9}",
        r"proposals without method and file has no key 'width'; proposals",
    ),
    (
        "model.pool.levels=[1]",
        r"model\.pool\.levels: model\.pool\.kind roi has no key 'levels'; model\.pool\.kind spp has it$",
    ),
    (
        "model.pool={kind: crop, levels: [1]}",
        r"model\.pool\.kind warp or crop has no key 'levels'; model\.pool",
    ),
    ("model.pool={kind: spp, output_size: 6}", r"kind roi_align or model\.pool\.kind warp or crop has it$"),
    (
        "model.pool={kind: warp, mask: cells}",
        r"kind warp or crop has no key 'mask'; model\.pool\.kind roi or",
    ),
    ("model.pool={kind: spp, mask: cells, reduction: avg}", r"model\.pool\.mask: cells is a maximum, reduc"),
    ("model.pool.mask=all", r"model\.pool\.mask = 'all': expected 'none', 'cells' or 'weighted'"),
    (
        "model.pool={kind: spp, level: [1]}",
        r"level: unknown key \(did you mean 'levels'\?\); model\.pool\.kind spp",
    ),
    (
        "model.pool.kind=sp",
        r"model\.pool\.kind = 'sp': .* \(did you mean 'spp'\?\); use one of roi, .* or module:Name",
    ),
    ("model.pool.kind=[spp]", r"model\.pool\.kind = \['spp'\]: expected a text"),
    (
        "stages=[{name: a, kind: train, svm: {c: 1.0}}]",
        r"stages\.0\.svm: a stage of kind train or fine_tune has no",
    ),
    ("stages=[{name: a, kind: svms}]", r"stages\.0\.kind = 'svms': expected 'train' or .*did you mean 'svm'"),
    ("stages=[{name: a}]", r"stages\.0\.kind: missing; this key is required"),
    (
        "stages=[{name: a, kind: svm, svm: {d: 1.0}}]",
        r"stages\.0\.svm\.d: unknown key; valid here: bias_mult",
    ),
    (
        "stages=[{name: a, kind: train}, {name: b, kind: fine_tune, settings: {train: {augment: {crop: "
        "{probability: 0.5}}}}}]",
        r"stages: b: a stage of kind fine_tune works on cached features, which train\.augment cannot change",
    ),
    # Options of the methods
    (
        "proposals.options={min_sid: 8}",
        r"no option 'min_sid' \(did you mean 'min_side'\?\); it has all_texture",
    ),
    ("proposals.options={sigma: -1}", r"sigma is -1; it must be a number from 0 to 100"),
    ("proposals.options={color_spaces: [hvs]}", r"color_spaces is 'hvs'; .*did you mean 'hsv'"),
    ("proposals.mode=fasst", r"no selective search mode 'fasst' \(did you mean 'fast'\?\)"),
    ("model.head.weights=true", r"model\.head\.weights takes fc6 and fc7 from model\.backbone\.weights"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[mistake for mistake, _ in MISTAKES])
def test_a_mistake_is_named(mistake: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config(QUICKSTART, [mistake])
    assert str(caught.value).startswith(f"{QUICKSTART}: ")


MASK_MISTAKES = [
    ("quickstart", ["train.sampling.kind=ohem"], r"train\.sampling\.kind: ohem chooses .* model\.pool\.mask"),
    ("spp_net_staged_quickstart", [], r"stages: fine_tune: .* model\.pool\.mask to none"),
]


@pytest.mark.parametrize(("name", "settings", "message"), MASK_MISTAKES)
def test_masks_are_refused_where_regions_would_lose_them(
    name: str, settings: list[str], message: str
) -> None:
    load_config(name, settings)
    with pytest.raises(InputError, match=message):
        load_config(name, [*settings, "model.pool.mask=cells"])


def test_unknown_keys_come_with_the_valid_ones() -> None:
    with pytest.raises(
        InputError, match=r"model\.pool\.kind roi has center, kind, mask, output_size$"
    ) as caught:
        load_config(QUICKSTART, ["model.pool.size=7"])
    assert str(caught.value).startswith(f"{QUICKSTART}: model.pool.size: unknown key")


def test_each_of_several_mistakes_has_its_line() -> None:
    with pytest.raises(InputError) as caught:
        load_config(QUICKSTART, ["train.steps=-1", "test.max_size=x", "model.roi_chunks=2"])
    assert len(str(caught.value).splitlines()) == 3


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(InputError) as caught:
        load_config(QUICKSTART, [f"train.steps={'x' * 5000}"])
    assert len(str(caught.value)) < 400


def test_what_has_to_be_given_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    with pytest.raises(InputError) as caught:
        load_config(path)
    for key in ("data", "model", "train"):
        assert f"{path}: {key}: missing; this key is required" in str(caught.value)


@pytest.mark.parametrize("written", ["train.steps", "=3", "train..steps=3", ".=3"])
def test_an_override_has_key_and_value(written: str) -> None:
    with pytest.raises(InputError, match=r"write it as section\.key=value"):
        load_config(QUICKSTART, [written])


FUNCTIONS = """
def boxes(image, *, size=3): ...
def anything(image, **options): ...
def positional(image, /, size=3): ...
from elsewhere import taken
"""


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "mine:boxes",
            "{sise: 4}",
            r"options: mine:boxes takes no 'sise' \(did you mean 'size'\?\); it takes size$",
        ),
        ("mine:boxs", "{}", r"method: .*mine\.py defines no 'boxs' \(did you mean 'boxes'\?\)$"),
        ("parts.mine:other", "{}", r"method: .*mine\.py defines no 'other'$"),
        ("mine:anything", "{a b: 1}", r"options: 'a b' cannot be the name of a keyword argument$"),
        ("mine:boxes", "{class: 1}", r"options: 'class' cannot be the name"),
        ("mine:boxes", "{size: 4}", None),
        ("mine:positional", "{size: 4}", None),
        ("mine:positional", "{image: 4}", r"positional takes no 'image'; it takes size$"),
        ("parts.mine:anything", "{free: 4}", None),
        ("mine:taken", "{free: 4}", None),
        ("nowhere:to_be_found", "{free: 4}", None),
        ("broken:boxes", "{free: 4}", None),
    ],
)
def test_a_function_is_checked_without_being_imported(
    method: str, options: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    for path in ("mine.py", "parts/__init__.py", "parts/mine.py"):
        (tmp_path / path).write_text(f"raise SystemExit\n{FUNCTIONS}")
    (tmp_path / "broken.py").write_text("def (")
    overrides = [f"proposals.method={method}", f"proposals.options={options}"]
    if message is None:
        assert load_config(QUICKSTART, overrides).proposals.method == method
    else:
        with pytest.raises(InputError, match=message):
            load_config(QUICKSTART, overrides)
