"""JPEG files that are decoded in a smaller size: the right size, way up and pixels, or the whole image."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detector.core.errors import InputError
from detector.core.structures import ImageRecord, Proposals, Targets
from detector.data.images import LoadedImage, _read_whole, open_image, read_image, reduction
from detector.data.in_memory import load_image
from detector.data.samples import InferenceViews, TrainingSamples, make_sample
from detector.data.transforms import ImageTransform
from tests.data.test_images import turned_upright
from tests.typed import present

Array = np.ndarray
FACTORS = (1, 2, 4, 8)
SIZES = [(64, 96), (65, 96), (67, 101), (71, 103), (96, 65), (8, 640), (80, 80), (81, 81), (9, 17)]
"""(height, width) with every remainder by 8, landscape, portrait, square and very long."""


def photograph(height: int, width: int) -> Array:
    """A smooth scene with edges, without symmetry, (H, W, 3) RGB."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = [120 + 90 * np.sin(x / 17 + y / 31), 2 * x / width * 120, 255 * y / height]
    image = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    image[height // 5 : height // 2, width // 6 : width // 3] = (240, 30, 60)
    return image


def encoded(image: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", **{"quality": 95, "subsampling": 0, **options})
    return file.getvalue()


def turned(orientation: int | None) -> dict[str, Image.Exif]:
    """The option of Pillow that writes an EXIF orientation."""
    if orientation is None:
        return {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def upright(stored: Array, orientation: int | None) -> Array:
    return turned_upright(stored, orientation or 1)


def divided(size: tuple[int, int], factor: int) -> tuple[int, int]:
    return -(-size[0] // factor), -(-size[1] // factor)


def by_area(whole: Array, size: tuple[int, int]) -> Array:
    return cv2.resize(whole, size[::-1], interpolation=cv2.INTER_AREA)


def by_blocks(stored: Array, factor: int) -> Array:
    """Average blocks of ``factor`` x ``factor`` pixels; those at the edges go on with the last pixels, as the
    blocks of 8 x 8 pixels do of which a JPEG file consists.
    """
    height, width = divided(stored.shape[:2], factor)
    more = (height * factor - stored.shape[0], width * factor - stored.shape[1])
    padded = np.pad(stored, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
    means = padded.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
    return means.round().astype(np.uint8)


def difference(one: Array, other: Array) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other).mean())


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The factors by which OpenCV was asked to divide the sides, call by call."""
    found: list[int] = []
    original = cv2.imdecode

    def imdecode(data: Array, flags: int) -> Array:
        assert flags >= 0
        found.append({16: 2, 32: 4, 64: 8}.get(flags & (16 | 32 | 64), 1))
        return present(original(data, flags))

    monkeypatch.setattr(cv2, "imdecode", imdecode)
    return found


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (600, 800), (601, 799), (3000, 4000), (17, 4000)])
def test_the_factor_is_the_largest_that_leaves_enough(size: tuple[int, int]) -> None:
    """By trying each of them, around every size at which the choice changes."""
    around = {
        side + step for whole in size for f in FACTORS for side in divided(size, f) for step in (-1, 0, 1)
    }
    for height in sorted(around):
        for width in (1, size[1] // 3, *sorted(around)):
            fitting = [f for f in FACTORS if np.all(np.array(divided(size, f)) >= (height, width))]
            assert reduction(size, (height, width)) == max(fitting, default=1)


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_pixels_are_those_of_the_whole_image(
    tmp_path: Path, size: tuple[int, int], factor: int, orientation: int | None
) -> None:
    whole = upright(photograph(*size), orientation)
    height, width = whole.shape[:2]
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photograph(*size), **turned(orientation)))
    wanted = divided((height, width), factor)
    loaded = open_image(path, (height, width), wanted)
    assert loaded.size == (height, width)
    pixels = loaded.pixels(wanted)
    near_square = 0 < abs(height - width) < 8
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]
    assert pixels.shape[:2] == ((height, width) if near_square else wanted)
    averages = upright(by_blocks(photograph(*size), 1 if near_square else factor), orientation)
    assert difference(pixels, averages) < 2.5
    assert loaded.pixels(wanted) is pixels  # decoded once
    # The whole image is still there, and so is every other size.
    assert np.array_equal(loaded.pixels(), read_image(path, (height, width)))
    assert np.array_equal(loaded.pixels((height, width)), loaded.pixels())


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_target_of_one_pixel_more_takes_the_next_larger_size(
    tmp_path: Path, factor: int, decoded: list[int]
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photograph(162, 243)))
    height, width = divided((162, 243), factor)
    for more, expected in (((0, 0), factor), ((1, 0), factor // 2), ((0, 1), factor // 2)):
        open_image(path, (162, 243), (height + more[0], width + more[1]))
        assert decoded.pop() == expected
    assert decoded == []


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("factor", FACTORS)
def test_an_annotation_of_the_stored_view_counts_in_every_size(
    tmp_path: Path, orientation: int, factor: int
) -> None:
    """The annotator saw the photograph lying; at all sizes it must be taken as lying."""
    stored = photograph(64, 97)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(stored, **turned(orientation)))
    wanted = divided((64, 97), factor)
    pixels = open_image(path, (64, 97), wanted).pixels(wanted)
    assert difference(pixels, by_blocks(stored, factor)) < 2.5
    turned_pixels = open_image(path, (97, 64), wanted[::-1]).pixels(wanted[::-1])
    assert difference(turned_pixels, upright(by_blocks(stored, factor), orientation)) < 2.5


@pytest.mark.parametrize("orientation", [None, 3, 6])
@pytest.mark.parametrize("off", range(1, 12))
def test_nearly_square_photographs_stand_as_the_whole_image_says(
    tmp_path: Path, off: int, orientation: int | None, decoded: list[int]
) -> None:
    """The sides of a small version may be equal, which would not show how the annotator saw it."""
    stored = photograph(80, 80 + off)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(stored, **turned(orientation)))
    sizes = [(80, 80 + off)] if orientation != 6 else [(80, 80 + off), (80 + off, 80)]
    for size in sizes:
        loaded = open_image(path, size, (9, 9))
        factor = 8 if off >= 8 else 1
        assert decoded[0] == factor
        applied = None if orientation == 6 and size == (80, 80 + off) else orientation
        found = loaded.pixels((9, 9))
        assert difference(found, upright(by_blocks(stored, factor), applied)) < 2.5
        assert np.array_equal(loaded.pixels(), read_image(path, size))
        decoded.clear()


@pytest.mark.parametrize("orientation", [None, 6])
@pytest.mark.parametrize(
    "annotated", [(64, 95), (65, 96), (96, 65), (32, 48), (8, 12), (128, 192), (96, 64), (63, 96), (60, 90)]
)
def test_a_wrong_size_is_refused_as_before(
    tmp_path: Path, annotated: tuple[int, int], orientation: int | None
) -> None:
    if orientation == 6 and annotated == (96, 64):
        annotated = (95, 64)  # the other is how the photograph stands
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photograph(64, 96), **turned(orientation)))
    with pytest.raises(InputError) as whole:
        read_image(path, annotated)
    assert "its annotation says" in str(whole.value)
    with pytest.raises(InputError) as reduced:
        open_image(path, annotated, (4, 6))
    assert str(reduced.value) == str(whole.value)


@pytest.mark.parametrize("suffix", ["PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
def test_other_formats_are_never_reduced(tmp_path: Path, suffix: str, decoded: list[int]) -> None:
    path = tmp_path / "a.jpg"  # the content counts, not the name
    Image.fromarray(photograph(64, 96)).save(path, suffix, **({"lossless": True} if suffix == "WEBP" else {}))
    loaded = open_image(path, (64, 96), (8, 12))
    assert loaded.pixels((8, 12)).shape == (64, 96, 3)
    assert np.array_equal(loaded.pixels((8, 12)), read_image(path))
    assert set(decoded) == {1}


def test_pixels_of_a_caller_are_given_as_they_are() -> None:
    pixels = photograph(64, 96)
    loaded = LoadedImage.of(pixels)
    assert loaded.size == (64, 96)
    assert loaded.pixels((8, 12)) is loaded.pixels() is pixels


@pytest.mark.parametrize("kind", ["grey", "cmyk", "progressive", "subsampled", "restarts"])
@pytest.mark.parametrize("factor", FACTORS)
def test_every_kind_of_jpeg_is_reduced(tmp_path: Path, kind: str, factor: int, decoded: list[int]) -> None:
    image, path = photograph(162, 243), tmp_path / "a.jpg"
    picture = Image.fromarray(image)
    modes = {"grey": "L", "cmyk": "CMYK"}
    special: dict[str, dict[str, Any]] = {
        "progressive": {"progressive": True},
        "subsampled": {"subsampling": 2},
        "restarts": {"restart_marker_blocks": 3},
    }
    options = special.get(kind, {})
    picture.convert(modes.get(kind, "RGB")).save(path, "JPEG", quality=95, **options)
    wanted = divided((162, 243), factor)
    pixels = open_image(path, (162, 243), wanted).pixels(wanted)
    assert decoded == [factor]
    assert difference(pixels, by_blocks(read_image(path), factor)) < 2.5


# The header:


def with_segment(jpeg: bytes, marker: int, payload: bytes) -> bytes:
    return jpeg[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def frame_of(path: Path) -> tuple[int, int] | None:
    return _read_whole(path)[1]


def with_thumbnail(jpeg: bytes) -> bytes:
    return with_segment(jpeg, 0xE1, b"Exif\0\0" + encoded(photograph(40, 61)))


def with_frame_look_alike(jpeg: bytes) -> bytes:
    """A comment that holds the bytes of a frame header of another size."""
    return with_segment(jpeg, 0xFE, b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 500, 700) + bytes(10))


def with_fill_bytes(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xc0") if b"\xff\xc0" in jpeg else jpeg.index(b"\xff\xc2")
    return jpeg[:2] + b"\xff\xff\xff" + jpeg[2:at] + b"\xff" * 5 + jpeg[at:]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("change", [bytes, with_thumbnail, with_frame_look_alike, with_fill_bytes])
@pytest.mark.parametrize("size", [(64, 96), (97, 64), (300, 257)])
def test_the_size_in_the_header_is_that_of_the_photograph(
    tmp_path: Path,
    size: tuple[int, int],
    change: Callable[[bytes], bytes],
    progressive: bool,
    decoded: list[int],
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(change(encoded(photograph(*size), progressive=progressive)))
    assert frame_of(path) == size
    with Image.open(path) as image:
        assert image.size == size[::-1]
    wanted = divided(size, 4)
    pixels = open_image(path, size, wanted).pixels(wanted)
    assert decoded == [4]
    assert difference(pixels, by_blocks(photograph(*size), 4)) < 2.5


def test_other_formats_have_no_frame(tmp_path: Path) -> None:
    for suffix in ("PNG", "TIFF", "WEBP"):
        Image.fromarray(photograph(20, 30)).save(tmp_path / "a", suffix)
        assert frame_of(tmp_path / "a") is None


def without_frame(jpeg: bytes) -> bytes:
    """The frame header becomes an application segment, which decoders skip."""
    return jpeg.replace(b"\xff\xc0", b"\xff\xee", 1)


def with_height_zero(jpeg: bytes) -> bytes:
    """The height would follow behind the first scan (ITU T.81, B.2.5), which decoders refuse."""
    at = jpeg.index(b"\xff\xc0")
    return jpeg[: at + 5] + b"\0\0" + jpeg[at + 7 :]


@pytest.mark.parametrize("change", [without_frame, with_height_zero])
def test_without_a_size_in_the_header_the_usual_way_decides(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(change(encoded(photograph(64, 96))))
    assert frame_of(path) is None
    for at_least in (None, (8, 12)):
        with pytest.raises(InputError, match=r"a\.jpg: not a readable image"):
            open_image(path, (64, 96), at_least)


def test_a_claimed_size_beyond_the_limit_is_refused_unread(tmp_path: Path, decoded: list[int]) -> None:
    jpeg = encoded(photograph(64, 96))
    at = jpeg.index(b"\xff\xc0")
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg[: at + 5] + struct.pack(">HH", 60000, 60000) + jpeg[at + 9 :])
    with pytest.raises(InputError, match=r"a\.jpg: more than 134217728 pixels \(60000x60000\)"):
        open_image(path, (60000, 60000), (60, 60))
    assert decoded == []


@pytest.mark.parametrize("cut", range(2, 60))
def test_a_file_that_ends_in_its_header_is_one_error(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(
        with_thumbnail(encoded(photograph(64, 96)))[:-cut] if cut < 4 else encoded(photograph(64, 96))[:cut]
    )
    with pytest.raises(InputError, match=r"a\.jpg"):
        open_image(path, (64, 96), (8, 12))


# The ways that use it:


def boxes(_record: ImageRecord) -> Proposals:
    return Proposals(boxes=torch.tensor([[10.0, 20.0, 200.0, 180.0]]))


def record_of(path: Path, size: tuple[int, int]) -> ImageRecord:
    return ImageRecord(image_id="a", path=path, height=size[0], width=size[1], targets=Targets.empty())


def test_views_of_one_image_are_decoded_as_each_needs(tmp_path: Path, decoded: list[int]) -> None:
    """The pixels of a view do not depend on which other views there are, or on their order."""
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photograph(640, 961), **turned(3)))
    record = record_of(path, (640, 961))
    wanted = {80: 8, 120: 4, 160: 4, 161: 2, 320: 2, 500: 1, 640: 1, 700: 1}
    alone = {}
    for scale, factor in wanted.items():
        (sample,) = InferenceViews([record], boxes, [ImageTransform(scales=(scale,), max_size=2000)])(0)
        assert decoded == [factor]
        decoded.clear()
        alone[scale] = sample.image
    for scales in (sorted(wanted), sorted(wanted, reverse=True), [161, 80, 700, 160]):
        views = InferenceViews(
            [record],
            boxes,
            [
                ImageTransform(scales=(scale,), max_size=2000, mirrored=mirrored)
                for mirrored in (False, True)
                for scale in scales
            ],
        )(0)
        assert sorted(decoded) == sorted({wanted[scale] for scale in scales})  # each size once
        decoded.clear()
        for number, sample in enumerate(views):
            scale = scales[number % len(scales)]
            expected = alone[scale] if number < len(scales) else alone[scale].flip(1)
            assert torch.equal(sample.image, expected)


@pytest.mark.parametrize("orientation", [None, 2, 6, 8])
@pytest.mark.parametrize("size", [(320, 481), (320, 323), (320, 328), (321, 321)])
def test_a_path_from_a_caller_gives_the_pixels_of_evaluation(
    tmp_path: Path, size: tuple[int, int], orientation: int | None
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photograph(*size), **turned(orientation)))
    known = upright(photograph(*size), orientation).shape[:2]
    given = load_image(str(path), "image 0")
    assert given.size == known
    for at_least in ((40, 40), (81, 100), (160, 160), (319, 319)):
        assert np.array_equal(given.pixels(at_least), open_image(path, known, at_least).pixels(at_least))
    assert np.array_equal(given.pixels(), read_image(path))


def test_training_decodes_for_the_size_that_was_drawn(tmp_path: Path, decoded: list[int]) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photograph(640, 960)))
    transform = ImageTransform(scales=(80, 320, 640), max_size=2000, flip=0.5)
    sample = TrainingSamples([record_of(path, (640, 960))], boxes, transform, seed=0)
    seen = set()
    for draw in range(12):
        one = sample(0, draw)
        assert decoded == [640 // one.meta.input_size[0]]
        seen.add(decoded.pop())
        whole = by_area(photograph(640, 960), one.meta.input_size)
        whole = whole[:, ::-1] if one.meta.flipped else whole
        assert difference(one.image.numpy(), whole) < 6
    assert seen == {1, 2, 8}


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_window_is_decoded_for_the_size_of_what_it_shows(
    tmp_path: Path, decoded: list[int], flip: float
) -> None:
    """A crop at twice the scale needs twice the pixels, and an expanded image half of them."""
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(photograph(640, 960)))
    transform = ImageTransform(scales=(160,), max_size=2000, flip=flip)
    windows = {(240, 100, 720, 420): 2, (246, 105, 723, 423): 1, (-480, -320, 1440, 960): 8}
    whole = photograph(640, 960)
    for window, factor in windows.items():
        meta = transform.plan((640, 960), "a", np.random.default_rng(0), window=window)
        image = open_image(path, (640, 960), meta.full_size)
        sample = make_sample(record_of(path, (640, 960)), image, boxes(record_of(path, (640, 960))), meta)
        assert decoded == [factor]
        decoded.clear()
        x1, y1, x2, y2 = window
        canvas = np.zeros((y2 - y1, x2 - x1, 3), np.uint8)
        left, top = max(x1, 0), max(y1, 0)
        part = whole[top : min(y2, 640), left : min(x2, 960)]
        canvas[top - y1 : top - y1 + len(part), left - x1 : left - x1 + part.shape[1]] = part
        expected = by_area(canvas, meta.input_size)
        assert difference(sample.image.numpy(), expected[:, ::-1] if flip else expected) < 6


@pytest.mark.parametrize("scale", [64, 75, 100, 150, 210, 300])
def test_pixels_are_near_those_of_averaging_over_the_whole_image(tmp_path: Path, scale: int) -> None:
    """Nearer than those of bilinear interpolation of the whole image, which reads only some of its pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (75, 112, 3), dtype=np.uint8)
    texture = cv2.resize(noise, (896, 600), interpolation=cv2.INTER_CUBIC)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(texture))
    whole = read_image(path)
    (view,) = InferenceViews(
        [record_of(path, (600, 896))], boxes, [ImageTransform(scales=(scale,), max_size=2000)]
    )(0)
    exact = by_area(whole, view.meta.input_size)
    bilinear = cv2.resize(whole, view.meta.input_size[::-1], interpolation=cv2.INTER_LINEAR)
    found = difference(view.image.numpy(), exact)
    assert found <= max(difference(bilinear, exact), 1)


@pytest.mark.parametrize("orientation", [None, 3, 6])
@pytest.mark.parametrize("size", [(800, 1200), (799, 1201), (793, 1193)])
@pytest.mark.parametrize("scale", [60, 99, 100, 150, 390])
def test_boxes_stay_on_their_pixels(
    tmp_path: Path, size: tuple[int, int], scale: int, orientation: int | None
) -> None:
    """A block near the far corner, where the padding to whole blocks of a small image shifts most."""
    image = np.zeros((*size, 3), np.uint8)
    x1, y1, x2, y2 = size[1] - 300, size[0] - 280, size[1] - 20, size[0] - 40
    image[y1:y2, x1:x2] = 255
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(image, **turned(orientation)))
    whole = upright(image, orientation)
    rows, columns = np.nonzero(whole[..., 0])
    box = torch.tensor([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], dtype=torch.float32)
    (view,) = InferenceViews(
        [record_of(path, whole.shape[:2])],
        lambda _: Proposals(boxes=box),
        [ImageTransform(scales=(scale,), max_size=2000)],
    )(0)
    ys, xs = np.nonzero(view.image[..., 0].numpy() > 127)
    painted = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert np.abs(view.rois[0].numpy() - painted).max() <= 1.5


@pytest.mark.parametrize("odd", [b"\xff\x00", b"\xff\x01", b"\xff\xd0"])
def test_a_false_size_in_the_headers_does_not_get_a_large_image_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: bytes
) -> None:
    """Decoders skip these markers; who takes the bytes behind them for a length finds a size in a comment."""
    path, content = tmp_path / "false.jpg", encoded(photograph(300, 400))
    scan = content.index(b"\xff\xda")
    headers = content[:2] + odd + content[2:scan]
    place = 4 + int.from_bytes(headers[4:6], "big")  # where the false length leads
    false = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 8, 8, 3) + bytes(9) + b"\xff\xda"
    comment = bytes(place - len(headers) - 4) + false
    headers += b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment
    path.write_bytes(headers + content[scan:])
    decoded = cv2.imread(str(path))
    assert decoded is not None
    assert decoded.shape == (300, 400, 3)
    monkeypatch.setattr("detector.data.images.MAX_PIXELS", 300 * 400 - 1)
    for size, at_least in ((None, None), ((300, 400), (30, 40)), ((8, 8), (8, 8))):
        with pytest.raises(InputError, match=r"false\.jpg: (more than 119999 pixels|not a readable image)"):
            open_image(path, size, at_least)
