"""Sizes and orientations from headers, against what OpenCV decodes."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.core.errors import InputError
from detector.data.images import check_image, read_image, stored_view, upright_size

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


def test_an_orientation_in_xmp_alone_does_not_count(tmp_path: Path) -> None:
    words = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    jpeg = encoded("JPEG", None)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(words) + 2) + words + jpeg[2:])
    assert stored_view(path) == (STORED, 1)
    assert upright_size(path) == read_image(path).shape[:2] == STORED
