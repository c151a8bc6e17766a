"""Feature caches: planned to the byte, used only for what they were made with, read as they were written."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from detector.core.errors import InputError
from detector.core.structures import ImageMeta
from detector.staged.cache_folder import tensors_digest
from detector.staged.feature_cache import CachedImage, CachePlan, FeatureCache, fill_cache

SCALES = (32, 64)


def images(count: int = 5) -> list[CachedImage]:
    return [
        CachedImage(
            key=f"i{number}",
            views=tuple(
                ImageMeta(
                    image_id=f"i{number}", original_size=(20, 30), input_size=(scale, scale + 8 * number)
                )
                for scale in SCALES
            ),
            content=f"content {number}",
        )
        for number in range(count)
    ]


def plan(count: int = 5, dtype: str = "float32", **source: str) -> CachePlan:
    parts = {"weights": "w", "scales": "s", **source}
    return CachePlan(
        images(count), parts, map_size=lambda size: (size[0] // 8, size[1] // 8), channels=3, dtype=dtype
    )


def pixels(number: int) -> list[Tensor]:
    views = images()[number].views
    return [torch.full((1, 3, *view.input_size), float(10 * number + at)) for at, view in enumerate(views)]


def load(numbers: Sequence[int]) -> Generator[list[Tensor], None, None]:
    return (pixels(number) for number in numbers)


class Counter:
    """Takes the place of the convolutions: fills each map with one ramp, and counts its calls."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls = 0
        self.stop_after = stop_after

    def __call__(self, image: Tensor) -> Tensor:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        grid = torch.arange(image.shape[2] // 8 * (image.shape[3] // 8)).float()
        return (grid.view(1, 1, image.shape[2] // 8, -1) / 8 + image[0, 0, 0, 0]).repeat(1, 3, 1, 1)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read_and_every_view_is_computed_once(tmp_path: Path, dtype: str) -> None:
    features = Counter()
    cache = fill_cache(tmp_path / "cache", plan(dtype=dtype), features, load)
    assert features.calls == 5 * len(SCALES)
    expected = Counter()
    for number in (3, 0, 4):
        for level, image in zip(cache.levels(f"i{number}"), pixels(number), strict=True):
            torch.testing.assert_close(level, expected(image))  # small numbers: float16 holds them exactly
    assert (tmp_path / "cache" / "maps.bin").stat().st_size == plan(dtype=dtype).bytes
    again = fill_cache(tmp_path / "cache", plan(dtype=dtype), features, load)
    assert features.calls == 5 * len(SCALES)  # nothing is done twice
    assert torch.equal(again.levels("i2")[1], cache.levels("i2")[1])


def test_eight_threads_read_one_cache(tmp_path: Path) -> None:
    """All of them open the file and compare checksums at once."""
    fill_cache(tmp_path / "cache", plan(), Counter(), load)
    cache, expected = FeatureCache(tmp_path / "cache", plan()), Counter()
    together = threading.Barrier(8, timeout=20)

    def read(place: int) -> list[Tensor]:
        if place < 8:
            together.wait()
        return cache.levels(f"i{place % 5}")

    with ThreadPoolExecutor(8) as pool:
        for place, levels in enumerate(pool.map(read, range(80))):
            for level, image in zip(levels, pixels(place % 5), strict=True):
                torch.testing.assert_close(level, expected(image))


def test_images_of_two_splits_may_have_one_id(tmp_path: Path) -> None:
    two = [
        dataclasses.replace(image, key=f"{split}/a.jpg")
        for image, split in zip(images(2), ("a", "b"), strict=True)
    ]
    two = [
        dataclasses.replace(image, views=tuple(dataclasses.replace(v, image_id="1") for v in image.views))
        for image in two
    ]
    made = CachePlan(two, {}, map_size=lambda size: (size[0] // 8, size[1] // 8), channels=3)
    cache = fill_cache(tmp_path / "cache", made, Counter(), load)
    first, second = (cache.levels(f"{split}/a.jpg") for split in ("a", "b"))
    assert [level.shape for level in first] != [level.shape for level in second]


def test_an_interrupted_cache_is_resumed_and_not_read_before_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.staged.cache_folder.FLUSH_EVERY", 1)
    stopped = Counter(stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        fill_cache(tmp_path / "cache", plan(), stopped, load)
    with pytest.raises(InputError, match="holds 2 of 5 images"):
        FeatureCache(tmp_path / "cache", plan())
    rest = Counter()
    cache = fill_cache(tmp_path / "cache", plan(), rest, load)
    assert rest.calls == 3 * len(SCALES)
    whole = fill_cache(tmp_path / "whole", plan(), Counter(), load)
    for number in range(5):
        for found, expected in zip(cache.levels(f"i{number}"), whole.levels(f"i{number}"), strict=True):
            assert torch.equal(found, expected)


def test_caches_of_something_else_are_refused_with_the_difference(tmp_path: Path) -> None:
    fill_cache(tmp_path / "cache", plan(), Counter(), load)
    for other, said in (
        (plan(weights="retrained"), "weights"),
        (plan(scales="other", weights="x"), "scales, weights"),
        (plan(count=4), "images"),
        (plan(dtype="float16"), "dtype"),
    ):
        for use in (lambda: FeatureCache(tmp_path / "cache", other), lambda: fill(tmp_path, other)):  # noqa: B023
            with pytest.raises(InputError, match=f"made with different {said}; remove cache.json"):
                use()
    changed = images()
    changed[2] = dataclasses.replace(changed[2], content="edited")
    edited = CachePlan(
        changed, {"weights": "w", "scales": "s"}, map_size=lambda s: (s[0] // 8, s[1] // 8), channels=3
    )
    assert edited.key != plan(dtype="float16").key


def fill(folder: Path, other: CachePlan) -> FeatureCache:
    return fill_cache(folder / "cache", other, Counter(), load)


def test_damage_is_named(tmp_path: Path) -> None:
    fill_cache(tmp_path / "cache", plan(), Counter(), load)
    with (tmp_path / "cache" / "maps.bin").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(InputError, match=r"damaged feature cache: maps\.bin has 10 bytes"):
        FeatureCache(tmp_path / "cache", plan())
    (tmp_path / "cache" / "done.bin").unlink()
    with pytest.raises(InputError, match=r"done\.bin: no such file\); remove cache\.json in its folder, and"):
        FeatureCache(tmp_path / "cache", plan())
    (tmp_path / "cache" / "cache.json").write_text("[]")
    with pytest.raises(InputError, match="not the record of a feature cache"):
        FeatureCache(tmp_path / "cache", plan())
    with pytest.raises(InputError, match="holds no feature cache"):
        FeatureCache(tmp_path / "nothing", plan())


def read_all(folder: Path, wanted: CachePlan) -> None:
    cache = FeatureCache(folder, wanted)
    for image in images():
        cache.levels(image.key)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_any_flipped_bit_is_found_when_its_image_is_read(tmp_path: Path, dtype: str) -> None:
    wanted = plan(dtype=dtype)
    sound = fill_cache(tmp_path / "cache", wanted, Counter(), load)
    for name in ("maps.bin", "done.bin"):
        path = tmp_path / "cache" / name
        content = path.read_bytes()
        for place in range(0, len(content), 7):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            with pytest.raises(
                InputError, match=r"maps\.bin is damaged: the features of image 'i\d' are not"
            ):
                read_all(tmp_path / "cache", wanted)
        path.write_bytes(content)
    assert sound.levels("i0")


def test_only_an_image_marked_as_not_done_is_computed_again(tmp_path: Path) -> None:
    fill_cache(tmp_path / "cache", plan(), Counter(), load)
    path = tmp_path / "cache" / "done.bin"
    path.write_bytes(path.read_bytes()[:8] + bytes(4) + path.read_bytes()[12:])
    features = Counter()
    cache = fill_cache(tmp_path / "cache", plan(), features, load)
    assert features.calls == len(SCALES)
    assert cache.levels("i2")


def test_what_loads_the_images_is_closed_after_an_error(tmp_path: Path) -> None:
    ended = []

    def watched(numbers: Sequence[int]) -> Generator[list[Tensor], None, None]:
        try:
            yield from load(numbers)
        finally:
            ended.append(True)

    def fail(_: Tensor) -> Tensor:
        raise InputError("no such map")

    with pytest.raises(InputError, match="no such map") as held:
        fill_cache(tmp_path / "cache", plan(), fail, watched)
    assert ended, held  # although the error, which is still held, keeps the frames


def test_too_little_disk_is_found_out_before_any_convolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    features = Counter()
    with pytest.raises(InputError, match=r"needs .* MiB and the disk has 0\.0 MiB free"):
        fill_cache(tmp_path / "cache", plan(), features, load)
    assert features.calls == 0


def test_the_file_of_a_run_killed_at_its_start_counts_as_free_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "cache" / "maps.bin"
    left.parent.mkdir()
    left.write_bytes(bytes(100))

    def usage(_: Path) -> SimpleNamespace:
        return SimpleNamespace(free=0 if left.exists() else plan().bytes)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert fill_cache(left.parent, plan(), Counter(), load).levels("i0")
    assert left.stat().st_size == plan().bytes


def test_a_cache_is_made_where_space_cannot_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.posix_fallocate")  # as on macOS
    cache = fill_cache(tmp_path / "cache", plan(), Counter(), load)
    assert (tmp_path / "cache" / "maps.bin").stat().st_size == plan().bytes
    assert torch.equal(cache.levels("i4")[0], Counter()(pixels(4)[0]))


def test_images_smaller_than_a_cell_and_features_too_large_for_the_type_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image i0: at 32x32 pixels it is smaller than one cell"):
        CachePlan(images(), {}, map_size=lambda size: (size[0] // 64, size[1] // 64), channels=3)
    with pytest.raises(InputError, match="image i0: its features reach 70000, which float16 cannot hold"):
        fill_cache(
            tmp_path / "cache",
            plan(dtype="float16"),
            lambda image: torch.full((1, 3, image.shape[2] // 8, image.shape[3] // 8), 7e4),
            load,
        )


def test_the_digest_sees_every_value_and_name() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    assert tensors_digest(first.state_dict()) == tensors_digest(second.state_dict())
    with torch.no_grad():
        second.weight[0, 0] += 1e-6
    assert tensors_digest(first.state_dict()) != tensors_digest(second.state_dict())
