"""Reading image files: whole, the right way up and of the annotated size, or one clear error."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detector.core.errors import InputError
from detector.data.images import (
    TruncatedImage,
    check_image,
    low_bit_depth,
    read_image,
    stored_view,
    upright_size,
)

Array = np.ndarray


def picture(height: int, width: int) -> Array:
    """Left half red, right half blue, RGB: shows channel order, mirroring and rotation."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 250
    image[:, width // 2 :, 2] = 250
    image[: height // 4, :, 1] = 200
    return image


def encode(image: Array, suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, image[:, :, ::-1])[1].tobytes()


def with_segment(jpeg: bytes, marker: int, payload: bytes) -> bytes:
    """Put an application segment directly after the start of ``jpeg``."""
    return jpeg[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    tag = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 1) + tag + struct.pack(">I", 0)
    return with_segment(jpeg, 0xE1, b"Exif\0\0" + tiff)


def with_thumbnail(jpeg: bytes) -> bytes:
    return with_segment(jpeg, 0xE1, b"Exif\0\0" + encode(picture(40, 60)))


def close(found: Array, expected: Array) -> bool:
    return found.shape == expected.shape and float(np.abs(found.astype(int) - expected).mean()) < 6


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_reads_rgb_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(picture(64, 48), suffix))
    image = read_image(path, (64, 48))
    assert image.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"]
    assert close(image, picture(64, 48))


def test_grey_transparent_and_sixteen_bit_files_become_rgb(tmp_path: Path) -> None:
    grey = np.full((10, 12), 77, np.uint8)
    for name, pixels in {
        "grey": grey,
        "alpha": np.dstack([grey] * 4),
        "deep": (grey.astype(np.uint16) << 8),
    }.items():
        path = tmp_path / f"{name}.png"
        assert cv2.imwrite(str(path), pixels)
        assert (read_image(path) == 77).all()
        assert read_image(path).shape == (10, 12, 3)


def turned_upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Return a stored image as its EXIF orientation says that it is to be seen."""
    return {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_orientation_is_applied_unless_the_annotation_disagrees(
    tmp_path: Path, orientation: int
) -> None:
    stored = picture(64, 96)
    upright = turned_upright(stored, orientation)
    path = tmp_path / "camera.jpg"
    path.write_bytes(with_orientation(encode(stored), orientation))
    assert close(read_image(path), upright)
    assert upright_size(path) == upright.shape[:2]
    assert close(read_image(path, upright.shape[:2]), upright)
    if orientation >= 5:  # turned by 90 degrees: the size says how the annotator saw it
        assert close(read_image(path, (64, 96)), stored)


def test_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(picture(64, 48)))
    with pytest.raises(InputError, match=r"a\.jpg: the image is 48x64 pixels, its annotation says 64x48"):
        read_image(path, (48, 64))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    whole = encode(noise, suffix)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"cut\..*(truncated|not a readable image)"):
        read_image(path)


def test_a_thumbnail_in_the_header_does_not_hide_a_cut(tmp_path: Path) -> None:
    whole = with_thumbnail(encode(picture(200, 300)))
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    assert close(read_image(path), picture(200, 300))
    path.write_bytes(whole[: int(len(whole) * 0.9)])
    with pytest.raises(InputError, match="truncated"):
        read_image(path)


def test_bytes_behind_the_end_of_the_image_do_no_harm(tmp_path: Path) -> None:
    for suffix in (".jpg", ".png"):  # phones append a film, for instance
        path = tmp_path / f"a{suffix}"
        path.write_bytes(encode(picture(64, 48), suffix) + bytes(200_000))
        assert close(read_image(path), picture(64, 48))


def test_fill_bytes_before_a_marker_are_allowed(tmp_path: Path) -> None:
    jpeg = encode(picture(64, 48))
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xff\xff" + jpeg[2:])
    assert close(read_image(path), picture(64, 48))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has ``width`` x ``height`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable image"),
        (b"no image at all", "not a readable image"),
        (b"\xff\xd8", "truncated"),
        (b"\xff\xd8\xff\xd9", "truncated|not a readable image"),
        (b"\xff\xd8\xff\xe1\xff\xff", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (bomb(60_000, 60_000), r"more than 134217728 pixels.* cut the image into tiles"),
        (bomb(12_000, 12_000), r"more than 134217728 pixels \(12000x12000\)"),
        (bomb(300, 300), "not a readable image"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_a_file_that_would_fill_the_memory_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.write(b"\xff\xd8")
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"sparse\.jpg: an image file of over 1073741824 bytes is refused"):
        read_image(tmp_path / "sparse.jpg")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg: no such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)


def test_a_truncated_image_comes_with_the_way_to_leave_it_out(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode(picture(64, 48))[:500])
    with pytest.raises(InputError, match=r"truncated; .*check_data\.py --fix-list LIST .*leave_out=LIST"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("read", [read_image, stored_view, low_bit_depth])
def test_only_regular_files_are_opened(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match=r"pipe\.jpg: is a named pipe"):
        read(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="/dev/zero: is a device"):
        read(Path("/dev/zero"))


def test_too_little_memory_for_an_image_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    (tmp_path / "a.png").write_bytes(encode(picture(64, 48), ".png"))
    monkeypatch.setattr(cv2, "imdecode", refuse)
    with pytest.raises(InputError, match=r"a\.png: too little memory to decode this image; cut it"):
        read_image(tmp_path / "a.png")


def ramp(top: int) -> Array:
    """A 16-bit image with every value from 0 to ``top``, in equal channels."""
    row = np.linspace(0, top, 4096).round().astype(np.uint16).reshape(64, 64)
    return np.dstack([row] * 3)


def with_significant_bits(png: bytes, bits: int) -> bytes:
    data = b"sBIT" + bytes([bits] * 3)
    return png[:33] + struct.pack(">I", 3) + data + struct.pack(">I", zlib.crc32(data)) + png[33:]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm"])
@pytest.mark.parametrize(
    ("top", "brightest", "words"),
    [
        (65535, 255, None),
        (20000, 78, None),
        (4096, 16, "values end at 4096 of 65535, as if they were data of 14 bits"),
        (4095, 15, "values end at 4095 of 65535, as if they were data of 12 bits"),
        (3500, 13, "no pixel is brighter than 13 of 255"),
        (3500, 13, "multiply the values of all its images by 16,"),
        (255, 0, "values end at 255 of 65535, as if they were data of 8 bits"),
        (0, 0, None),
    ],
)
def test_the_depth_of_sixteen_bit_files_is_not_guessed(
    tmp_path: Path, suffix: str, top: int, brightest: int, words: str | None
) -> None:
    """A maximum of 3900 became 243 and one of 4200 became 16: images of one data set differed 16-fold."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(cv2.imencode(suffix, ramp(top))[1].tobytes())
    image = read_image(path, (64, 64))
    assert (image.dtype, image.shape, image.min()) == (np.dtype(np.uint8), (64, 64, 3), 0)
    assert abs(int(image.max()) - brightest) <= 1  # OpenCV rounds some formats
    found = low_bit_depth(path)
    assert found is None if words is None else words in str(found)


def test_a_declared_depth_counts(tmp_path: Path) -> None:
    dark = ramp(700)
    for bits, brightest in ((10, 175), (12, 43), (14, 10), (16, 2)):
        (tmp_path / "a.png").write_bytes(with_significant_bits(cv2.imencode(".png", dark)[1].tobytes(), bits))
        assert read_image(tmp_path / "a.png").max() == brightest
        assert low_bit_depth(tmp_path / "a.png") is None
    (tmp_path / "a.pgm").write_bytes(b"P5\n# camera\n64 64\n4095\n" + dark[:, :, 0].astype(">u2").tobytes())
    assert read_image(tmp_path / "a.pgm").max() == 43
    assert low_bit_depth(tmp_path / "a.pgm") is None
    page = Image.fromarray(dark[:, :, 0])
    page.save(tmp_path / "a.tif", tiffinfo={281: 16383})
    assert read_image(tmp_path / "a.tif").max() == 10
    assert low_bit_depth(tmp_path / "a.tif") is None


@pytest.mark.parametrize("scale", ["shift", "proportion"])
@pytest.mark.parametrize("bits", [9, 12, 15])
def test_significant_bits_that_are_scaled_as_png_says(tmp_path: Path, bits: int, scale: str) -> None:
    """A dark image of such a data set is as dark as the others' dark pixels."""
    for share in (0.02, 1):
        steps = (ramp(round(((1 << bits) - 1) * share))).astype(np.uint32)
        values = steps << (16 - bits) if scale == "shift" else (steps * (65535 / ((1 << bits) - 1))).round()
        png = cv2.imencode(".png", values.astype(np.uint16))[1].tobytes()
        (tmp_path / "a.png").write_bytes(with_significant_bits(png, bits))
        assert (read_image(tmp_path / "a.png") == values.astype(int) >> 8).all()
        assert low_bit_depth(tmp_path / "a.png") is None


def test_the_largest_value_of_a_single_tiff_is_no_depth(tmp_path: Path) -> None:
    for top in (3900, 4200):
        Image.fromarray(ramp(top)[:, :, 0]).save(tmp_path / "a.tif", tiffinfo={281: top})
        assert abs(int(read_image(tmp_path / "a.tif").max()) - (top >> 8)) <= 1
        assert f"values end at {top}" in str(low_bit_depth(tmp_path / "a.tif"))


def test_values_beyond_the_declared_depth_are_reported(tmp_path: Path) -> None:
    Image.fromarray(ramp(60000)[:, :, 0]).save(tmp_path / "a.tif", tiffinfo={281: 4095})
    assert abs(int(read_image(tmp_path / "a.tif").max()) - (60000 >> 8)) <= 1
    assert "declares data of 12 bits, whose values end at 60000" in str(low_bit_depth(tmp_path / "a.tif"))


def test_a_wrong_declaration_never_cuts_values_off(tmp_path: Path) -> None:
    png = cv2.imencode(".png", ramp(60000))[1].tobytes()
    (tmp_path / "a.png").write_bytes(with_significant_bits(png, 9))
    assert read_image(tmp_path / "a.png").max() == 60000 >> 8


def test_eight_bit_files_are_not_decoded_for_their_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in (".jpg", ".png", ".tif", ".bmp"):
        (tmp_path / f"a{suffix}").write_bytes(encode(picture(64, 48), suffix))
        with monkeypatch.context() as patch:
            patch.setattr(cv2, "imdecode", None)
            assert low_bit_depth(tmp_path / f"a{suffix}") is None


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif"])
def test_a_cheap_check_refuses_what_reading_refuses(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save(path)
    check_image(path)
    check_image(path, (20, 30))
    with pytest.raises(InputError, match="the image is 30x20 pixels, its annotation says 20x30"):
        check_image(path, (30, 20))
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    with pytest.raises(InputError, match=rf"a\.{suffix}"):
        check_image(path)
    if suffix in ("jpg", "png"):
        path.write_bytes(whole[:-20])
        with pytest.raises(TruncatedImage):
            check_image(path)
    path.unlink()
    with pytest.raises(InputError, match=rf"a\.{suffix}"):
        check_image(path)


def test_a_cheap_check_takes_a_turned_photograph_either_way(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    for size in ((20, 30), (30, 20)):
        check_image(tmp_path / "a.jpg", size)
        assert read_image(tmp_path / "a.jpg", size).shape[:2] == size
    with pytest.raises(InputError, match="its annotation says"):
        check_image(tmp_path / "a.jpg", (21, 30))


STORED = (6, 9)


def encoded(suffix: str, exif: Image.Exif | None) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*STORED, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, suffix, **({} if exif is None else {"exif": exif}))
    return file.getvalue()


@pytest.mark.parametrize("orientation", [*range(1, 9), 9, None])
@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_is_the_decoded_ones(tmp_path: Path, suffix: str, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path = tmp_path / "a"
    path.write_bytes(encoded(suffix, exif))
    assert stored_view(path) == (STORED, orientation if orientation in range(1, 9) else 1)
    assert upright_size(path) == read_image(path).shape[:2]
    for size in (STORED, STORED[::-1]):
        outcomes = set()
        for look in (check_image, read_image):
            try:
                look(path, size)
                outcomes.add("accepted")
            except InputError as error:
                outcomes.add(str(error))
        assert len(outcomes) == 1


def test_exif_behind_a_pngs_pixels_counts_and_is_all_that_is_decoded_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    block = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    path, png = tmp_path / "a.png", encoded("PNG", None)
    path.write_bytes(png[:-12] + chunk + png[-12:])
    assert upright_size(path) == read_image(path).shape[:2] == STORED[::-1]
    path.write_bytes(png)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert upright_size(path) == STORED


def test_an_orientation_only_in_xmp_does_not_count(tmp_path: Path) -> None:
    words = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    jpeg = encoded("JPEG", None)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(words) + 2) + words + jpeg[2:])
    assert stored_view(path) == (STORED, 1)
    assert upright_size(path) == read_image(path).shape[:2] == STORED


@pytest.mark.parametrize("read", [stored_view, upright_size, check_image, low_bit_depth])
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    def refuse(*_: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.png"
    path.write_bytes(encode(picture(8, 8), ".png"))
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(InputError, match=r"a\.png: cannot read the image: Permission denied"):
        read(path)
