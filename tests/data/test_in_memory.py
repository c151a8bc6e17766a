"""Images that a caller hands over have the pixels that the file reader gives."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector.core.errors import InputError
from detector.core.structures import ImageMeta
from detector.data.images import (
    NotAnImage,
    TooManyPixels,
    check_image,
    decode_image,
    open_image,
    read_image,
    stored_view,
)
from detector.data.in_memory import load_image
from detector.data.transforms import transformed

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_to_a_file(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif, path = Image.Exif(), tmp_path / f"turned.{suffix}"
    exif[0x0112] = orientation
    Image.fromarray(NOISE).save(path, exif=exif, lossless=True)  # WebP's; other formats have no such setting
    expected = read_image(path)
    assert expected.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))
    with Image.open(path) as opened:
        copied = opened.copy()
        for image in (opened, copied, Image.open(io.BytesIO(path.read_bytes()))):
            assert np.array_equal(load_image(image, "a").pixels(), expected)


def test_an_orientation_that_stands_only_in_xmp_is_ignored_as_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "xmp.jpg"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(NOISE).save(path, xmp=xmp)
    with Image.open(path) as image:
        assert np.array_equal(load_image(image, "a").pixels(), read_image(path))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0MMxxjunk",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # a text as orientation
    ],
)
def test_a_damaged_orientation_is_ignored_as_in_a_file(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "damaged.jpg"
    Image.fromarray(NOISE).save(path, exif=exif)
    check_image(path, (20, 30))
    assert stored_view(path) == ((20, 30), 1)
    with Image.open(path) as image:
        assert np.array_equal(load_image(image, "a").pixels(), read_image(path))


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "I;16"])
def test_every_mode_becomes_rgb_as_a_file_does(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(1)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (20, 30)).astype(np.uint16))
    else:
        image = Image.fromarray(NOISE).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(rng.integers(0, 256, (20, 30), dtype=np.uint8)))
    assert image.mode == mode
    image.save(tmp_path / "mode.png")
    pixels = load_image(image, "a").pixels()
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, read_image(tmp_path / "mode.png"))


@pytest.mark.parametrize("mode", ["I", "F", "HSV", "LAB"])
def test_modes_without_a_file_of_their_own_are_refused(mode: str) -> None:
    with pytest.raises(InputError, match=rf"image 3: a Pillow image of mode '{mode}'; give image\.convert"):
        load_image(Image.new(mode, (4, 4)), "image 3").pixels()


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (NOISE / np.float32(255), r"float32, not uint8; for values in \[0, 1\] write"),
        (NOISE.astype(np.uint16), "array of uint16, not uint8; expected a path, an array"),
        (NOISE > 9, "array of bool, not uint8"),
        (
            NOISE.transpose(2, 0, 1),
            r"30 channels \(3x20x30\); the channels come first; .*transpose\(1, 2, 0\)",
        ),
        (NOISE[:, :, 0], r"a grey array \(20x30\); repeat its channel"),
        (NOISE[:, :, :1], r"a grey array \(20x30x1\)"),
        (np.dstack((NOISE, NOISE[:, :, 0])), r"four channels \(20x30x4\); drop the last one"),
        (NOISE[:, :, :2], "an array of 2 channels"),
        (NOISE[None], r"four dimensions \(1x20x30x3\); give several images as a list"),
        (NOISE[0, 0], r"an array of 1 dimensions \(3\)"),
        (NOISE[:0], r"the array is empty \(0x30x3\)"),
        (NOISE.tolist(), "a list is not an image"),
        (None, "a NoneType is not an image; expected a path"),
    ],
)
def test_what_is_no_image_is_one_clear_error(image: object, fault: str) -> None:
    with pytest.raises(InputError, match=f"image 3: .*{fault}"):
        load_image(image, "image 3").pixels()


def test_arrays_may_be_views_and_read_only() -> None:
    reversed_view = NOISE[::-1, ::2]
    reversed_view.flags.writeable = False
    assert np.array_equal(load_image(reversed_view, "a").pixels(), reversed_view)
    assert load_image(reversed_view, "a").pixels().flags.c_contiguous


def test_a_read_only_array_may_have_the_size_of_the_input() -> None:
    """Such as the array of a Pillow image; torch warns when it wraps memory that may not be written."""
    fixed = np.asarray(Image.fromarray(NOISE))
    assert not fixed.flags.writeable
    meta = ImageMeta(image_id="a", original_size=(20, 30), input_size=(20, 30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(transformed(load_image(fixed, "a").pixels(), meta), NOISE)


def test_a_damaged_pillow_image_is_one_clear_error(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "whole.png")
    cut = (tmp_path / "whole.png").read_bytes()[:400]
    with pytest.raises(InputError, match="image 0: Pillow cannot decode this image"):
        load_image(Image.open(io.BytesIO(cut)), "image 0").pixels()


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp", "gif", "ppm"])
def test_the_bytes_of_a_file_have_its_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, Any] = {"exif": exif} if suffix in ("png", "tif", "jpg", "webp") else {}
    Image.fromarray(np.kron(NOISE, np.ones((8, 8, 1), np.uint8))).save(path, **options)
    expected, found = open_image(path), load_image(path.read_bytes(), "a")
    assert found.size == expected.size
    for at_least in (None, (40, 40)):  # a JPEG is decoded in a smaller size for the second
        assert np.array_equal(found.pixels(at_least), expected.pixels(at_least))
    assert load_image(found, "a") is found


def test_bytes_that_are_refused_are_named_without_advice_about_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(NOISE).save(path)
    content = path.read_bytes()
    for limit in (600, None, 10**12):
        assert decode_image(content, "upload", limit).size == (20, 30)
    with pytest.raises(TooManyPixels, match=r"upload: more than 599 pixels \(30x20\)"):
        decode_image(content, "upload", 599)
    with pytest.raises(NotAnImage, match="upload: not a readable image; give a whole image file of one of"):
        decode_image(b"text", "upload")
    with pytest.raises(InputError, match="upload: the image is truncated; give a whole image file"):
        decode_image(content[:-9], "upload")
