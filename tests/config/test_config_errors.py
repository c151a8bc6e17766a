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
    ("train.steps=many", r"train\.steps = 'many': Input should be a valid integer"),
    ("train.steps=1e3", r"train\.steps = 1000\.0: Input should be a valid integer"),
    ("train.steps=true", r"train\.steps = True: Input should be a valid integer"),
    ("train.steps=0", r"train\.steps = 0: Input should be greater than or equal to 1"),
    ("train.scales=[600,big]", r"train\.scales\.1 = 'big'"),
    ("train.scales=[]", r"train\.scales = \(\)"),
    ("test.scales=[]", r"test\.scales = \(\)"),
    ("proposals.scales=[]", r"proposals\.scales = \(\)"),
    ("proposals.stride_fraction=0", r"proposals\.stride_fraction = 0"),
    ("train.learning_rate=.inf", r"train\.learning_rate = inf: Input should be a finite number"),
    ("train.learning_rate=.nan", r"train\.learning_rate = nan"),
    ("test.nms_threshold=1.5", r"test\.nms_threshold = 1\.5: Input should be less than or equal to 1"),
    ("seed=4294967296", r"seed = 4294967296"),
    ("model.backbone.name=vgg", r"model\.backbone\.name = 'vgg': .*did you mean 'vgg16'\?"),
    ("model.backbone.freeze=al", r"model\.backbone\.freeze = 'al': .*did you mean 'all'\?"),
    ("model.box.means=[0,0]", r"model\.box\.means\.2: missing"),
    # A list in one word
    ("train.scales=480", r"train\.scales = 480: expected a list; write \[480\]"),
    ("train.scales=480,600", r"train\.scales = '480,600': expected a list; write \[480,600\]"),
    ("model.head.hidden=256", r"model\.head\.hidden = 256: expected a list; write \[256\]"),
    ("data.classes=7", r"data\.classes = 7: expected a list; write \[7\]"),
    ("train.scale_jitter=0.8", r"scale_jitter = 0\.8: expected a list of 2 values; write \[0\.8, \.\.\.\]"),
    ("train.scales=null", r"train\.scales = None: expected a list$"),
    # Texts that no path or name can have
    ('data.root="\\0"', r"data\.root = '\\x00': holds a null character .* remove it"),
    ('data.classes=[cat,"d\\0g"]', r"data\.classes = 'd\\x00g': holds a null character"),
    ('proposals.options={"a\\0": 1}', r"proposals\.options = 'a\\x00': holds a null character"),
    ('model.backbone.weights="a\\0b"', r"model\.backbone\.weights = 'a\\x00b': holds a null"),
    ('data.classes=["\\uD800"]', r"data\.classes = '\\ud800': .* half a surrogate pair"),
    ("train=3", r"train = 3: Input should be a valid dictionary"),
    ("train=null", r"train = None"),
    # What two keys say together
    ("train.sampling.background_iou=[0.5,0.1]", r"background_iou must be \[low, high\) with low < high"),
    ("train.sampling.foreground_iou=0.3", r"background_iou must end at or below foreground_iou"),
    ("train.schedule.milestones=[0.9,0.5]", r"train\.schedule\.milestones must rise"),
    ("train.scale_jitter=[2,0.5]", r"train\.scale_jitter must be \[low, high\]"),
    ("data.classes=[cat,cat]", r"data\.classes must name at least one class, and none twice"),
    ("proposals.file=x.npz", r"proposals\.file and proposals\.format go together"),
    ("proposals.method=null", r"proposals needs either 'file' with 'format', or 'method'"),
    ("proposals.method=selective", r"method 'selective' is unknown \(did you mean 'selective_search'\?\)"),
    ("proposals.method=':boxes'", r"method ':boxes' is unknown.*module:function"),
    ("proposals.stride_fraction=0.5", r"stride_fraction only applies to proposals\.method: dense"),
    ("proposals.options={when: 2020-01-01}", r"proposals\.options holds what is no number, text, list"),
    ("proposals.convention=xyxy", r"convention only applies to a proposals\.file"),
    ("proposals.missing=full", r"proposals\.missing = 'full': .*did you mean 'full_image'"),
    ("proposals.time_limit=0", r"proposals\.time_limit = 0"),
    ("model.head.weights=true", r"model\.head\.weights takes fc6 and fc7 from model\.backbone\.weights"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[mistake for mistake, _ in MISTAKES])
def test_a_mistake_is_named(mistake: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config(QUICKSTART, [mistake])
    assert str(caught.value).startswith(f"{QUICKSTART}: ")


def test_unknown_keys_come_with_the_valid_ones() -> None:
    with pytest.raises(InputError, match="valid here: center, context") as caught:
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
        assert f"{path}: {key}: missing; it has to be given" in str(caught.value)


@pytest.mark.parametrize("written", ["train.steps", "=3", "train..steps=3", ".=3"])
def test_an_override_has_key_and_value(written: str) -> None:
    with pytest.raises(InputError, match=r"write it as section\.key=value"):
        load_config(QUICKSTART, [written])
