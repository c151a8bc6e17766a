"""YAML files, ``_base_``, overrides; files that are broken or meant to harm."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from detector.config import Config, load_config
from detector.config.files import MAX_BYTES, MAX_FILES
from detector.config.schema import CropPoolConfig, RandomSamplingConfig
from detector.core.errors import InputError
from tests.conftest import PROJECT

QUICKSTART = PROJECT / "configs" / "quickstart.yaml"


def load(*overrides: str) -> Config:
    return load_config(QUICKSTART, overrides)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_overrides_take_yaml_values() -> None:
    config = load(
        "train.learning_rate=1e-3",
        "train.weight_decay=5E-04",
        "test.scales=[480,600]",
        "train.evaluate_every=null",
        "train.schedule.milestones=[0.5, 1e-0]",
        "data.classes=[cat, 'no']",
        "model.backbone.freeze=all",
        "train.group_by_aspect=false",
        "train.clip_gradient_norm=",
    )
    assert config.train.learning_rate == 1e-3
    assert config.train.weight_decay == 5e-4
    assert config.test.scales == (480, 600)
    assert config.train.evaluate_every is None
    assert config.train.schedule.milestones == (0.5, 1.0)
    assert config.data.classes == ("cat", "no")
    assert config.model.backbone.freeze == "all"
    assert config.train.group_by_aspect is False
    assert config.train.clip_gradient_norm is None


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.head.c=0.3", "model.head.kind=logistic"),
        ("model.pool.sampling_ratio=3", "model.pool.kind=roi_align"),
        ("model.backbone.stage=features.4", "model.backbone.name=torchvision:mobilenet_v2"),
    ],
    ids=lambda overrides: overrides[1],
)
def test_an_option_may_be_written_before_its_kind(overrides: tuple[str, str]) -> None:
    assert load(*overrides) == load(*reversed(overrides))
    assert load(*overrides) != load(overrides[1])


def test_a_later_choice_wins_over_an_earlier_one_and_over_a_whole_section() -> None:
    for earlier in ("model.head={kind: softmax}", "model.head.kind=svm", "model={head: {kind: svm}}"):
        config = load(earlier, "seed=3", "model.head.kind=knn", "model.head.k=4")
        assert (config.model.head.kind, config.seed) == ("knn", 3)
    assert load("model.head.kind=knn", "model.head={kind: softmax}").model.head.kind == "softmax"
    larger = load("model={backbone: {freeze: all}}", "model.head.c=0.1", "model.head.kind=logistic").model
    assert (larger.backbone.freeze, larger.head.c) == ("all", 0.1)  # type: ignore[union-attr]
    function = load("proposals.options.name=a", "proposals.method=m:f")
    assert function.proposals.options == {"name": "a"}  # type: ignore[union-attr]


def test_later_overrides_win_and_leave_the_rest() -> None:
    config = load("train.steps=5", "train.steps=6", "train={flip: 0.25}")
    assert (config.train.steps, config.train.flip) == (6, 0.25)
    assert config.train.images_per_batch == load().train.images_per_batch


def test_another_source_of_proposals_replaces_the_inherited_one() -> None:
    config = load("proposals={file: a.npz, format: npz}")
    assert (config.proposals.file, config.proposals.method) == ("a.npz", None)
    assert config.proposals.top_k_train == load().proposals.top_k_train


def test_another_kind_of_pooling_replaces_the_inherited_one_and_the_same_kind_does_not() -> None:
    smaller = ("model.pool.crop_size=96", "model.pool.context=8")
    given = load_config(PROJECT / "configs/rcnn_quickstart.yaml", [*smaller, "model.pool.kind=warp"])
    assert given.model.pool == CropPoolConfig(kind="warp", output_size=6, crop_size=96, context=8)
    other = load_config(PROJECT / "configs/rcnn_quickstart.yaml", ["model.pool.kind=crop"])
    assert other.model.pool == CropPoolConfig(kind="crop")


def test_another_backbone_does_not_inherit_what_belongs_to_the_one_before() -> None:
    path, names = PROJECT / "configs/own_data.yaml", ("squeezenet1_0", "resnet18")
    same, other = (load_config(path, [f"model.backbone.name={name}"]) for name in names)
    assert (same.model.backbone.stage, same.model.backbone.feature_scale) == ("fire8", 0.01)
    assert (other.model.backbone.stage, other.model.backbone.feature_scale) == (None, 1.0)
    assert (other.model.backbone.weights, other.model.backbone.freeze) == ("default", 2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), (1500, None)),
        (("train.epochs=2.5",), (None, 2.5)),
        (("train.epochs=3", "train.steps=7"), (7, None)),
        (("train={epochs: 3, flip: 0.25}",), (None, 3)),
    ],
)
def test_of_steps_and_epochs_the_one_given_last_counts(given: tuple[str, ...], expected: object) -> None:
    train = load(*given).train
    assert (train.steps, train.epochs) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [("train={steps: 3, epochs: 3}", "both is given"), ("train.steps=null", "neither is given")],
)
def test_exactly_one_of_steps_and_epochs(given: str, said: str) -> None:
    with pytest.raises(InputError, match=rf"exactly one of train\.steps and train\.epochs; {said}"):
        load(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("data.val_split=trainval", "is the training or the test split as well"),
        ("data.val_split=test", "is the training or the test split as well"),
        ("data={split_ratio: {trainval: 0.5, test: 0.5}, val_split: val}", r"data\.val_split: val is not in"),
        ("train.validation_fraction=1.0", "less than 1"),
        ("model.backbone={name: small, weights: default}", "small has no published weights"),
        ("model.backbone={name: vgg16, weights: default, convention: caffe}", "torchvision's weights"),
    ],
)
def test_settings_for_own_data_that_cannot_be(given: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(given)


def far_fraction(config: Config) -> float:
    assert isinstance(config.train.sampling, RandomSamplingConfig)
    return config.train.sampling.far_background_fraction


def test_the_base_for_own_data_generates_nothing_and_fits_its_length() -> None:
    config = load_config(PROJECT / "configs/own_data.yaml", ["data.root=anywhere"])
    assert config.data.generate is None
    assert config.train.steps is None
    assert config.model.backbone.weights == "default"
    assert config.proposals.method == "selective_search"
    assert config.train.validation_fraction
    assert far_fraction(config) > 0
    assert config.test.nested_threshold is not None
    for other in ("quickstart", "bccd_squeezenet", "fast_rcnn_vgg16_voc07"):  # these stay the paper's
        papers = load_config(PROJECT / f"configs/{other}.yaml")
        assert (far_fraction(papers), papers.test.nested_threshold) == (0.0, None)
        assert papers.train.validation_fraction is None


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().train.steps = 3


def test_bases_are_merged_in_order_and_the_file_wins(tmp_path: Path) -> None:
    start = write(tmp_path / "start.yaml", QUICKSTART.read_text())
    write(tmp_path / "deep" / "a.yaml", f"_base_: ../{start.name}\nseed: 1\ntrain: {{flip: 0.1, steps: 3}}\n")
    write(tmp_path / "deep" / "b.yaml", "seed: 2\ntrain: {flip: 0.2}\n")
    top = write(tmp_path / "top.yaml", "_base_: [deep/a.yaml, deep/b.yaml]\ntrain: {log_every: 9}\n")
    config = load_config(top)
    assert (config.seed, config.train.flip, config.train.steps, config.train.log_every) == (2, 0.2, 3, 9)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shadow", "root:$6$secret:1:\nuser:*:2:"),
        ("shadow.yaml", "root:$6$secret:1:\nuser:*:2:"),
        ("key.yml", "-----secret-----\nsecret: [\n"),
        ("list.yaml", "- secret\n- words\n"),
        ("tag.yaml", "a: !secret 1"),
        ("value.yaml", "a: !!int secret"),
        ("date.yaml", "a: 2020-13-45 secret\nb: 2020-13-45"),
        ("twice.yaml", "secret: 1\nsecret: 2"),
        ("base.yaml", "_base_: {secret: 1}"),
        ("latin.yaml", b"secret: \xe9\xe9"),
        ("zero.yaml", "secret: '\0'"),
    ],
)
def test_an_error_in_a_base_repeats_nothing_of_it(tmp_path: Path, name: str, text: str | bytes) -> None:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError, match=name) as caught:
        load_config(write(tmp_path / "top.yaml", f"_base_: {name}"))
    assert "secret" not in str(caught.value)


def test_a_base_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe.yaml", "folder.yaml", '"a\\0.yaml"'):
        with pytest.raises(InputError, match=r"no such config file|must be a path"):
            load_config(write(tmp_path / "top.yaml", f"_base_: {name}"))


def test_an_error_in_the_file_itself_says_where_and_what(tmp_path: Path) -> None:
    path = write(tmp_path / "top.yaml", "seed: 1\ntrain: [1\ndata: 3\n")
    with pytest.raises(InputError, match=r"not readable as YAML: expected .* in line 3, column 5$"):
        load_config(path)


def test_bases_of_bases_end_after_a_number_of_files(tmp_path: Path) -> None:
    for number in range(6):
        following = [f"{number + 1}.yaml"] * 30 if number < 5 else []
        write(tmp_path / f"{number}.yaml", f"_base_: {following}")
    start = time.process_time()
    with pytest.raises(InputError, match=f"_base_ leads to more than {MAX_FILES} files"):
        load_config(tmp_path / "0.yaml")
    assert time.process_time() - start < 5


def test_bases_have_a_size_in_all(tmp_path: Path) -> None:
    write(tmp_path / "large.yaml", "#" * (MAX_BYTES // 3))
    top = write(tmp_path / "top.yaml", "_base_: [large.yaml, large.yaml, large.yaml, large.yaml]")
    with pytest.raises(InputError, match=rf"large\.yaml: _base_ leads to more than .* {MAX_BYTES} bytes"):
        load_config(top)


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "_base_: b.yaml")
    write(tmp_path / "b.yaml", "_base_: sub/../a.yaml")
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match="leads back to this file; remove the cycle"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_base_: missing.yaml", r"missing\.yaml: no such config file"),
        ("_base_: 3", "_base_ must be a path or a list of paths, not 3"),
        ("_base_: [a, 3]", "_base_ must be a path or a list of paths"),
        ("- a\n- b", "a config is a mapping of names to values"),
        ("just text", "a config is a mapping of names to values"),
        ("1: 2", "a config is a mapping of names to values"),
        ("seed: 1\nseed: 2", "duplicate key 'seed'"),
        ("train:\n  steps: 1\n  steps: 2", "duplicate key 'steps'"),
        ("seed: &a 1\nother: *a", r"aliases \(\*name\) are not allowed"),
        ("seed: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("seed: !mine 3", "could not determine a constructor"),
        ("seed: [1", "not readable as YAML"),
        ("seed: 'a\0b'", "not readable as YAML"),
        ("? [a]\n: b", "not readable as YAML"),
        ("seed: 2020-13-45", "not readable as YAML: month must be in 1..12"),
        ("seed: !!int many", "not readable as YAML"),
        ("seed: !!bool perhaps", "not readable as YAML"),
        ("seed: !!timestamp never", "not readable as YAML"),
        (f"seed: {'1' * 6000}", "not readable as YAML"),
        ("seed: " + "[" * 20_000, "nested too deeply"),
    ],
)
def test_broken_and_hostile_files_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "broken.yaml", text)
    with pytest.raises(InputError, match=message) as caught:
        load_config(path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", ["[1", "2020-13-45", "!!int x", "*a", "!!python/name:os.system", "a: 1: 2"])
def test_hostile_override_values_are_refused(value: str) -> None:
    with pytest.raises(InputError, match="the value is not readable as YAML"):
        load(f"train.steps={value}")


def test_the_reason_why_a_value_is_no_yaml_is_given() -> None:
    with pytest.raises(InputError, match=r"readable as YAML: duplicate key 'a' in line 1, column 1$"):
        load("train.sampling={a: 1, a: 2}")


def test_a_name_that_no_file_can_have_is_one_clear_error() -> None:
    with pytest.raises(InputError, match="nnn: cannot read the config: File name too long"):
        load_config("n" * 300)


def test_files_that_cannot_be_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match=r"binary\.yaml: cannot read the config: byte 128 is not UTF-8"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(InputError, match="no such config file"):
        load_config(tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "secret.yaml", "seed: 1")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read any file, so modes would not do
    with pytest.raises(InputError, match="cannot read the config: Permission denied"):
        load_config(path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(10 * 2**30)  # ten sparse GiB
    with pytest.raises(InputError, match=f"cannot read the config: over {MAX_BYTES} bytes"):
        load_config(path)


def test_many_keys_take_no_quadratic_time(tmp_path: Path) -> None:
    path = write(tmp_path / "many.yaml", "".join(f"k{number}:\n" for number in range(15_000)))
    start = time.process_time()
    with pytest.raises(InputError, match="and 14983 more"):
        load_config(path)
    assert time.process_time() - start < 20


def test_another_file_keeps_the_format_and_another_method_does_not() -> None:
    bccd = PROJECT / "configs" / "bccd_squeezenet.yaml"
    found = load_config(bccd, ["proposals.file=mine.npz"]).proposals
    assert (found.file, found.format) == ("mine.npz", "npz")
    found = load_config(bccd, ["proposals.file=mine.mat", "proposals.format=mat"]).proposals
    assert (found.file, found.format) == ("mine.mat", "mat")
    found = load_config(bccd, ["proposals.method=selective_search"]).proposals
    assert (found.file, found.format, found.top_k_train) == (None, None, 2000)
