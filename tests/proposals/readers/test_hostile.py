"""Files that want to run code, fill the memory or leave their folder are refused by name, quickly."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from detector.core.errors import InputError
from detector.proposals.convert import source_parameters
from detector.proposals.readers import FORMATS, read_images
from detector.proposals.readers.pickles import read_pickle
from detector.proposals.recognition import guess_format
from tests.proposals.formats import (
    make_boxes,
    make_records,
    write_coco,
    write_detectron,
    write_detectron2,
    write_mat,
    write_mmdetection,
    write_npz,
)


def read_all(source: Path, file_format: str) -> list[Any]:
    return list(read_images(source, file_format))


def refused(source: Path, file_format: str, message: str) -> None:
    start = time.process_time()  # not the clock's: other work on the machine is no fault of the reader
    with pytest.raises(InputError, match=message) as caught:
        read_all(source, file_format)
    assert str(source) in str(caught.value)
    assert time.process_time() - start < 5


class _Runs:
    """Pickles to a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (eval, "eval"), (Path, "Path"), (zlib.decompress, "zlib.decompress")],
)
@pytest.mark.parametrize("file_format", ["detectron", "detectron2", "mmdetection"])
def test_a_pickle_runs_nothing(
    tmp_path: Path, file_format: str, function: Any, name: str, protocol: int
) -> None:
    source = tmp_path / "code.pkl"
    mark = tmp_path / "mark"
    source.write_bytes(pickle.dumps({"boxes": [_Runs(function, f"touch {mark}")], "ids": [1]}, protocol))
    refused(source, file_format, rf"wants to run \S*{name}; only numpy arrays")
    assert not mark.exists()


def array_pickle(shape: bytes, kind: bytes = b"\x8c\x02f4") -> bytes:
    """An array of ``shape`` without the bytes for it, by the newest protocol's function."""
    return (
        b"\x80\x05\x8c\x13numpy._core.numeric\x8c\x0b_frombuffer\x93(C\x04abcd"
        b"\x8c\x05numpy\x8c\x05dtype\x93" + kind + b"\x85R" + shape + b"\x8c\x01Ct\x52."
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read the pickle"),
        (b"\x80\x04", "is not a readable pickle"),
        (b"]" * 3_000_000 + b".", "more objects than a file of its size"),
        (b"]" + b"\x94" * 3_000_000 + b".", "more objects than a file of its size"),
        (b"]r\xff\xff\xff\xff.", None),  # a place in the memo that would take 64 GiB as a table
        (b"\x8e" + struct.pack("<Q", 1 << 62) + b".", "ends too early"),
        (b"\x8b\xff\xff\xff\x7f.", "the pickle instruction"),  # an integer of 2 GiB
        (b"I0x" + b"f" * 100_000 + b"\n.", "is not a readable pickle"),
        (b"I" + b"9" * 100_000 + b"\n.", "is not a readable pickle"),
        (b"(" * 1000 + b"t.", None),
        (b"\x95" + b"\xff" * 8 + b"].", None),  # a frame longer than the file, which no reader needs
        (b"})" + b"\x85" * 900_000 + b"Ns.", "entries of something"),  # a key that would overflow the stack
        (b"}" + b"h\x00q\x00" * 3 + b".", "is not a readable pickle"),
        (b"\x97.", "the pickle instruction"),
        (b"Pid\n.", "the pickle instruction"),
        (b"cos\nsystem\n.", "wants to run os.system"),
        (b"]}b.", "a state for something that has none"),
        (b"]0.", "is not a readable pickle"),
        (array_pickle(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"), "array of shape"),
        (array_pickle(b"J\xff\xff\xff\xff\x85"), "array of shape"),
        (array_pickle(b"K\x01\x85", b"\x8c\x02V4"), "an array of 'V4'"),
        (array_pickle(b"K\x01\x85", b"\x8c\x01O"), "array of objects"),
    ],
)
def test_pickles_made_by_hand(tmp_path: Path, content: bytes, message: str | None) -> None:
    source = tmp_path / "hand.pkl"
    source.write_bytes(content)
    if message is None:
        read_pickle(source)
    else:
        with pytest.raises(InputError, match=message):
            read_pickle(source)


def test_lists_that_contain_themselves_and_each_other(tmp_path: Path) -> None:
    itself: list[Any] = []
    itself.append(itself)
    laughs: list[Any] = [0.0] * 10
    for _ in range(30):
        laughs = [laughs] * 10
    for name, rows in (("itself", itself), ("laughs", laughs)):
        source = tmp_path / f"{name}.pkl"
        source.write_bytes(pickle.dumps([rows]))
        refused(source, "mmdetection", "a box that")


def npz(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: np.ndarray[Any, Any], pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


def test_npz_bombs_and_impostors(tmp_path: Path) -> None:
    header = npy(np.zeros((4, 4), np.float32))[:128]
    huge = header.replace(b"(4, 4)", b"(999999999, 4)").replace(b" " * 8 + b"\n", b"\n")
    huge += b" " * (128 - len(huge))
    source = tmp_path / "a.npz"
    many = {f"{i}.npy": npy(np.zeros((100_000, 4))) for i in range(30)}
    refused(npz(source, many), "npz", "over 100 times its size")
    refused(npz(source, {"a.npy": npy(np.zeros((1_100_000, 5)))}), "npz", "at most 1000000 boxes")
    refused(npz(source, {"a.npy": huge}), "npz", "image 'a'")
    refused(npz(source, {"a.npy": npy(np.array([{}]), pickled=True)}), "npz", "not plain numbers")
    refused(npz(source, {"a.npy": npy(np.zeros((2, 4), complex))}), "npz", "not plain numbers")
    refused(npz(source, {"a.npy": npy(np.zeros((2, 3)))}), "npz", r"not float64 of shape \(2, 3\)")
    refused(npz(source, {"a.npy": npy(np.zeros((2, 4)))[:-5]}), "npz", "ends after 59 of 64 bytes")
    refused(npz(source, {"readme.txt": b""}), "npz", "is not an array")
    source.write_bytes(b"PK\x03\x04 no archive")
    refused(source, "npz", "not a readable .npz archive")


HEADERS = [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), \n",  # no closing brace
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4\n",
    b"{'descr': '<f4', 'fortran_order': False}\n",
    b"{'descr': ['<f4'], 'fortran_order': False, 'shape': (2, 4)}\n",
    b"{'descr': '<f4', 'fortran_order': 3, 'shape': (2, 4)}\n",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 4)}\n",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1" + b"0" * 30 + b")}\n",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, None)}\n",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4)}\n",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': 8}\n",
    b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 4)}\n",
    b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 4)}\n",
    b"{'descr': 'V2147483647', 'fortran_order': False, 'shape': (2, 4)}\n",
    b"[" * 9_000,
    b"'\n\t  \\N{",
    b"\xff" * 100,
    b"",
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_headers_of_arrays_made_by_hand(tmp_path: Path, header: bytes) -> None:
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(32)
    refused(npz(tmp_path / "a.npz", {"a.npy": content}), "npz", "image 'a'")
    (tmp_path / "a.npy").write_bytes(content)
    refused(tmp_path, "npy", r"a\.npy")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_an_npz_packed_in_another_way_is_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("a.npy", npy(np.zeros((2, 4))))
    refused(tmp_path / "a.npz", "npz", "compressed in a way numpy does not use")


def test_an_npy_file_of_terabytes_takes_no_memory(tmp_path: Path) -> None:
    """A sparse file can be of any length on a small disk."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}\n"
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        file.truncate(8 << 40)
    refused(tmp_path, "npy", r"a\.npy has 8796093022208 bytes")


@pytest.mark.parametrize("file_format", [name for name in FORMATS if name not in ("npy", "text")])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_never_opened(tmp_path: Path, file_format: str, kind: str) -> None:
    source = tmp_path / "source.pkl"
    if kind == "pipe":
        os.mkfifo(source)
    else:
        source.symlink_to("/dev/zero")
    refused(source, file_format, "expected a regular file")
    with pytest.raises(InputError, match="expected a regular file"):
        guess_format(source)
    with pytest.raises(InputError, match="expected a regular file"):
        source_parameters(source, file_format)


@pytest.mark.parametrize(("file_format", "suffix"), [("npy", "npy"), ("text", "txt"), ("mat", "mat")])
def test_a_pipe_in_a_folder_is_no_file_of_it(tmp_path: Path, file_format: str, suffix: str) -> None:
    os.mkfifo(tmp_path / f"a.{suffix}")
    refused(tmp_path, file_format, f"has no .{suffix} files")


def test_names_cannot_leave_the_store(tmp_path: Path) -> None:
    """An id is looked up and never opened, but one that looks like a way out has no business here."""
    from detector.proposals.convert import convert

    for name in ("../../outside", "/etc/passwd", "a/../../b"):
        source = npz(tmp_path / "a.npz", {f"{name}.npy": npy(np.ones((1, 4)) * [[0, 0, 1, 1]])})
        with pytest.raises(InputError, match=r"a\.npz: .* is not a valid image id"):
            convert(source, "npz", tmp_path / "store")


def test_mat_bombs_and_impostors(tmp_path: Path) -> None:
    source = tmp_path / "a.mat"
    cells = np.empty((25, 1), object)
    for i in range(25):
        cells[i, 0] = np.zeros((100_000, 4))
    scipy.io.savemat(source, {"boxes": cells}, do_compression=True)
    assert source.stat().st_size < 1 << 20
    refused(source, "mat", "over 100 times its size")
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    head = struct.pack("<6I2i2I", 6, 8, 1, 0, 5, 8, 500, 400, 0x50001, 0)
    head = head[:-8] + struct.pack("<2I", 1, 5) + b"boxes".ljust(8, b"\0")
    source.write_bytes(header + struct.pack("<II", 14, 1 << 31) + head)
    refused(source, "mat", "200000 cells, more than a file of its size needs")
    source.write_bytes(header + struct.pack("<II", 14, 1 << 31))
    refused(source, "mat", "not a readable .mat file")
    source.write_bytes(header + bytes(1 << 20))
    refused(source, "mat", "an element of type 0 where a matrix belongs")
    source.write_bytes(b"MATLAB 7.3 MAT-file".ljust(128))
    refused(source, "mat", "save it with -v7")
    source.write_bytes(b"not MATLAB")
    refused(source, "mat", "not a readable .mat file")
    for value in (np.zeros((3, 4)) + 1j, "text", {"a": 1}, np.zeros((2, 2))):
        scipy.io.savemat(source, {"boxes": value})
        with pytest.raises(InputError, match=r"a\.mat"):
            read_all(source, "mat")
    scipy.io.savemat(source, {"other": np.zeros((3, 4))})
    refused(source, "mat", "no variable 'boxes'")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["f8", "f4", "u1", "u2", "i2", "i4", "u4", "i8"])
def test_mat_numbers_of_every_type(tmp_path: Path, kind: str, compressed: bool) -> None:
    rng = np.random.default_rng(0)
    boxes = {f"cell{i}": rng.integers(0, 100, (i, 4)).astype(kind) for i in range(4)}
    cells = np.empty((2, 2), object)
    for i, rows in enumerate(boxes.values()):
        cells[i % 2, i // 2] = rows
    scipy.io.savemat(tmp_path / "a.mat", {"first": "x", "boxes": cells, "z": 1.0}, do_compression=compressed)
    found = read_all(tmp_path / "a.mat", "mat")
    for image, rows in zip(found, boxes.values(), strict=True):
        assert np.array_equal(image.boxes, rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"image_id": 1000000000, "bbox": [0, 0, 1, 1], "score": 1}]', None),
        ('[{"image_id": ' + "9" * 5000 + ', "bbox": [0, 0, 1, 1]}]', "not a readable list"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, 1' + "0" * 400 + "]}]", "image 1: int too large"),
        ('[{"image_id": 1, "bbox": [0, 0, 1]}]', "bbox and score must be"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, "a"]}]', "bbox and score must be"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, true]}]', "bbox and score must be"),
        ('[{"image_id": 1, "bbox": 5}]', "bbox and score must be"),
        ('[{"image_id": [1], "bbox": [0, 0, 1, 1]}]', "neither a number nor a text"),
        ('[{"bbox": [0, 0, 1, 1]}]', "result 0: expected an object"),
        ("[" * 100_000, "not a readable list"),
        ('[{"a":' + "[" * 100_000, "not a readable list"),
        ('{"images": []}', "'\\[' expected"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, 1]} {"image_id"', "',' expected"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, 1]},]', "an object expected"),
        ("", "'\\[' expected, not ''"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, 1]}', "',' expected"),
    ],
)
def test_json_made_by_hand(tmp_path: Path, text: str, message: str | None) -> None:
    source = tmp_path / "results.json"
    source.write_text(text)
    if message is None:
        assert [image.key for image in read_all(source, "coco")] == ["1000000000"]
    else:
        refused(source, "coco", message)


def test_json_longer_than_a_block(tmp_path: Path) -> None:
    """Results are found across the blocks in which the file is read."""
    results = [
        {"image_id": i % 3, "bbox": [i, 0, 1, 1], "score": 0.5, "segmentation": "x" * (i * 37 % 4000)}
        for i in range(2000)
    ]
    source = tmp_path / "results.json"
    source.write_text(json.dumps(results, indent=3))
    images = read_all(source, "coco")
    assert [image.key for image in images] == ["0", "1", "2"]
    for k, image in enumerate(images):
        assert image.boxes[:, 0].tolist() == list(range(k, 2000, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 4\n1 2 3\n", "line 2: 3 numbers"),
        ("1 2 3 4\n1 2 3 4 5\n", "line 2: 5 numbers"),
        ("1 2 x 4", "line 1: could not convert"),
        ("1 2 3 4 5 6", "line 1: 6 numbers"),
        ("\n" * 64_000_000, "line 2000001: more than 2000000 lines are refused"),
        ("1 " * 32_000_000, "line 1: a line of over 1000 characters"),
        ("1" * 64_000_000, "line 1: a line of over 1000 characters"),
        ("\n" * 64_000_001, "has over 64000000 bytes"),
    ],
    ids=range(8),
)
def test_text_made_by_hand(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    refused(tmp_path, "text", message)


def test_text_with_nothing_but_comments_has_no_boxes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# none\n\n")
    (tmp_path / "b.txt").write_text("\n# one\n1, 2,3 4 0.5 # good\n")
    none, one = read_all(tmp_path, "text")
    assert none.boxes.shape == (0, 4)
    assert (one.boxes.tolist(), one.scores.tolist()) == ([[1, 2, 3, 4]], [0.5])


@pytest.mark.parametrize("file_format", FORMATS)
def test_an_absent_source(tmp_path: Path, file_format: str) -> None:
    refused(tmp_path / "absent", file_format, "absent")


def test_damaged_files_give_clean_errors(tmp_path: Path) -> None:
    """Bytes changed, cut out and doubled at random in files of every kind."""
    boxes = make_boxes(make_records(["000004", "000012"]), 6)
    sources = [
        ("npz", write_npz(tmp_path, boxes)),
        ("coco", write_coco(tmp_path, boxes)),
        ("mat", write_mat(tmp_path, boxes)),
        ("detectron", write_detectron(tmp_path, boxes)),
        ("detectron2", write_detectron2(tmp_path, boxes)),
        ("mmdetection", write_mmdetection(tmp_path, boxes, 0)),
    ]
    random_numbers = random.Random(0)
    clean = 0
    for file_format, source in sources:
        whole = source.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for _ in range(random_numbers.randint(1, 4)):
                place = random_numbers.randrange(len(damaged))
                match random_numbers.randrange(3):
                    case 0:
                        damaged[place] = random_numbers.randrange(256)
                    case 1:
                        del damaged[place : place + random_numbers.randint(1, 30)]
                    case _:
                        damaged[place:place] = damaged[place : place + random_numbers.randint(1, 30)]
            source.write_bytes(damaged)
            try:
                read_all(source, file_format)
            except InputError:
                clean += 1
    assert clean > 60
