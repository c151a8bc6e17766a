"""Generating proposals: what is done stays done, what has changed is done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import file_hash
from detector.core.structures import ImageRecord, Proposals, Targets
from detector.data.images import check_image
from detector.ops import SelectiveSearchConfig, selective_search
from detector.proposals.dense import dense_proposals
from detector.proposals.generate import generate_store
from detector.proposals.journal import encode_entry
from detector.proposals.methods import full_parameters, store_name
from detector.proposals.store import Entry, ProposalStore
from tests.typed import float32, present

CORNERS = "tests.proposals.test_generate:bright_corner"


def read_image(path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{path}: not an image")
    assert size is None or image.shape[:2] == size
    return np.ascontiguousarray(image[:, :, ::-1])


def bright_corner(image: NDArray[np.uint8], side: int = 5) -> tuple[list[list[int]], list[float]]:
    """One box whose score tells the image's first red value; hanging over the border."""
    return [[-3, 0, side, side], [0, 0, 0, 0]], [float(image[0, 0, 0]), 0.0]


def broken(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    raise KeyError("sky")


def wrong_shape(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.zeros((3, 5))


def write_images(folder: Path, count: int) -> list[ImageRecord]:
    folder.mkdir(exist_ok=True)
    records = []
    for i in range(count):
        height, width = 40 + i % 7, 60 + i % 5
        image = np.full((height, width, 3), i % 200, np.uint8)
        path = folder / f"{i:04d}.png"
        cv2.imwrite(str(path), image)
        record = ImageRecord(
            image_id=path.stem, path=path, height=height, width=width, targets=Targets.empty()
        )
        records.append(record)
    return records


def generate(records: list[ImageRecord], path: Path, **arguments: Any) -> ProposalStore:
    return generate_store(records, path, read_image=read_image, **arguments)


def test_dense_windows_of_each_image(tmp_path: Path) -> None:
    records = write_images(tmp_path / "images", 3)
    steps: list[tuple[int, int]] = []
    store = generate(
        records, tmp_path / "store", method="dense", progress=lambda done, all_: steps.append((done, all_))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for record in records:
        size = (record.height, record.width)
        assert torch.equal(store[record.image_id].boxes, dense_proposals(size).boxes)
        assert store.image_size(record.image_id) == size
        assert store.content_hash(record.image_id) == file_hash(record.path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_function_of_the_user(tmp_path: Path, workers: int) -> None:
    records = write_images(tmp_path / "images", 11)
    store = generate(records, tmp_path / "store", method=CORNERS, parameters={"side": 9}, workers=workers)
    assert len(store) == 11
    for i, record in enumerate(records):
        found = store[record.image_id]
        assert found.boxes.tolist() == [[0, 0, 9, 9]]  # clipped, and the empty box is gone
        assert found.scores is not None
        assert found.scores.tolist() == [i]


def test_only_missing_and_changed_images_are_done(tmp_path: Path) -> None:
    records = write_images(tmp_path / "images", 5)
    generate(records[:3], tmp_path / "store", method=CORNERS)
    image = np.full((records[1].height, records[1].width, 3), 99, np.uint8)
    cv2.imwrite(str(records[1].path), image)
    done: list[int] = []
    store = generate(
        records, tmp_path / "store", method=CORNERS, progress=lambda _, total: done.append(total)
    )
    assert done == [3, 3, 3]
    scores = [store[record.image_id].scores for record in records]
    assert [score.tolist() for score in scores if score is not None] == [[0], [99], [2], [3], [4]]
    generate(records, tmp_path / "store", method=CORNERS, progress=lambda *_: pytest.fail("nothing is left"))


def test_other_parameters_are_refused_by_name(tmp_path: Path) -> None:
    records = write_images(tmp_path / "images", 1)
    generate(records, tmp_path / "store", method="dense")
    with pytest.raises(InputError, match=r"stride_fraction 0\.2 there, 0\.3 wanted"):
        generate(records, tmp_path / "store", method="dense", parameters={"stride_fraction": 0.3})
    with pytest.raises(InputError, match=r"no parameter 'stride'.*did you mean 'stride_fraction'"):
        generate(records, tmp_path / "store", method="dense", parameters={"stride": 0.3})
    with pytest.raises(InputError, match=r"'dens' is unknown .did you mean 'dense'.*module:function"):
        generate(records, tmp_path / "store", method="dens")


def test_names_differ_exactly_where_parameters_do() -> None:
    name = store_name("dense")
    assert name == store_name("dense", {"stride_fraction": 0.2})
    assert name != store_name("dense", {"stride_fraction": 0.3})
    assert name != store_name("selective_search")
    assert name.startswith("dense_")
    assert store_name("my.module:function", {"a": 1}).startswith("my_module_function_")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "failed on .*0000.png: KeyError: 'sky'"),
        ("wrong_shape", r"shape \(3, 5\)"),
    ],
)
def test_a_faulty_function_is_one_clear_error(tmp_path: Path, function: str, message: str) -> None:
    records = write_images(tmp_path / "images", 2)
    with pytest.raises(InputError, match=f"2 of 2 images got no proposals.*{message}"):
        generate(records, tmp_path / "store", method=f"tests.proposals.test_generate:{function}")


@pytest.mark.parametrize(
    ("function", "message"), [("absent", "cannot be loaded"), ("CORNERS", "is not a function")]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_no_function_at_all_is_said_before_any_work(
    tmp_path: Path, function: str, message: str, workers: int
) -> None:
    records = write_images(tmp_path / "images", 2)
    method = f"tests.proposals.test_generate:{function}"
    with pytest.raises(InputError, match=f"^proposal method .*{function}.* {message}"):
        generate(records, tmp_path / "store", method=method, workers=workers)


def test_a_bad_image_does_not_cost_the_others(tmp_path: Path) -> None:
    records = write_images(tmp_path / "images", 4)
    records[0].path.write_bytes(b"no image")
    records[2].path.unlink()
    with pytest.raises(InputError, match=r"0002\.png: no such file"):
        generate([records[2], records[3]], tmp_path / "store", method=CORNERS)
    with pytest.raises(InputError, match=r"1 of 2 images .*0000\.png: not an image"):
        generate([records[i] for i in (0, 1, 3)], tmp_path / "store", method=CORNERS)
    assert ProposalStore.open(tmp_path / "store").ids() == ["0001", "0003"]


BAD_NAMES = ["new\nline", "tab\t", "escape\x1b[31m", "\u2028", "latin\udce4"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_no_store_can_hold_is_one_error_before_any_work(tmp_path: Path, name: str) -> None:
    records = write_images(tmp_path / "images", 3)
    records[1] = replace(records[1], key=name)
    with pytest.raises(InputError, match=r"0001\.png.* is not a valid image id: .*; rename the image$"):
        generate(records, tmp_path / "store", method=CORNERS)
    assert not (tmp_path / "store").exists()


def test_a_journal_with_such_a_name_does_not_lock_the_store(tmp_path: Path) -> None:
    """As earlier versions left it behind."""
    records = write_images(tmp_path / "images", 3)
    generate(records[:1], tmp_path / "store", method=CORNERS)
    entry = Entry(Proposals(boxes=torch.ones(1, 4)), "cafe", (40, 60))
    rows = [encode_entry("new\nline", entry), encode_entry("0001", entry)]
    (tmp_path / "store" / "unfinished.journal").write_bytes(b"".join(rows))
    store = generate(records, tmp_path / "store", method=CORNERS)
    assert store.ids() == ["0000", "0001", "0002"]


def test_images_whose_names_have_every_kind_of_blank(tmp_path: Path) -> None:
    records = write_images(tmp_path / "images", 3)
    names = ["9.41\u202fAM", "a\xa0b", "\U0001f469\u200d\U0001f467 c"]
    for i, name in enumerate(names):
        path = records[i].path.with_name(f"{name}.png")
        records[i].path.rename(path)
        records[i] = replace(records[i], key=name, path=path)
    store = generate(records, tmp_path / "store", method=CORNERS)
    assert sorted(store.ids()) == sorted(names)
    generate(
        records, tmp_path / "store", method=CORNERS, progress=lambda *_: pytest.fail("nothing is missing")
    )


def test_unreadable_images_are_found_before_any_work_and_what_was_made_stays(tmp_path: Path) -> None:
    records = write_images(tmp_path / "images", 5)
    generate(records[:2], tmp_path / "store", method=CORNERS)
    whole = records[4].path.read_bytes()
    records[4].path.write_bytes(whole[:-20])
    records[3] = replace(records[3], height=records[3].height + 1)
    done: list[int] = []
    with pytest.raises(
        InputError, match=r"2 of 3 images cannot be read.*0003\.png.*check_data\.py --fix-list"
    ):
        generate(
            records,
            tmp_path / "store",
            method=CORNERS,
            check_image=check_image,
            progress=lambda number, _: done.append(number),
        )
    assert done == []
    assert ProposalStore.open(tmp_path / "store").ids() == ["0000", "0001"]
    records[4].path.write_bytes(whole)
    records[3] = replace(records[3], height=records[3].height - 1)
    store = generate(records, tmp_path / "store", method=CORNERS, check_image=check_image)
    assert len(store) == 5


@pytest.mark.parametrize("damage", ["bit", "missing", "header"])
def test_only_what_a_damaged_segment_has_lost_is_made_again(tmp_path: Path, damage: str) -> None:
    records = write_images(tmp_path / "images", 5)
    generate(records[:3], tmp_path / "store", method=CORNERS)
    generate(records, tmp_path / "store", method=CORNERS)
    path = tmp_path / "store" / "segment_000001.scores.npy"
    data = bytearray(path.read_bytes())
    data[3 if damage == "header" else -1] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data)
    said: list[str] = []
    totals: list[int] = []
    store = generate(
        records,
        tmp_path / "store",
        method=CORNERS,
        on_damage=said.append,
        progress=lambda _, total: totals.append(total),
    )
    assert totals == ([1] if damage == "bit" else [3, 3, 3])
    assert len(said) == 1
    assert "segment_000001" in said[0]
    for i, record in enumerate(records):
        scores = store[record.image_id].scores
        assert scores is not None
        assert scores.tolist() == [i]
    assert not store.damaged()


def test_a_pipe_as_an_image_is_a_failure(tmp_path: Path) -> None:
    records = write_images(tmp_path / "images", 2)
    records[0].path.unlink()
    os.mkfifo(records[0].path)
    failures: dict[str, str] = {}
    store = generate(records, tmp_path / "store", method="dense", on_failure=failures.__setitem__)
    assert store.ids() == ["0001"]
    assert "named pipe" in failures["0000"]


def test_a_long_job_ends_in_few_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.proposals.generate._SEGMENT_IMAGES", 1)
    store = generate(write_images(tmp_path / "images", 40), tmp_path / "store", method=CORNERS)
    assert store.segment_count() == 1
    assert len(store) == 40
    assert not store.damaged()


_JOB = """
import sys
from pathlib import Path
from tests.proposals import test_generate as own
if __name__ == "__main__":
    records = own.write_images(Path(sys.argv[1]) / "images", 300)
    print("ready", flush=True)
    own.generate(records, Path(sys.argv[1]) / "store", method=sys.argv[2], workers=int(sys.argv[3]),
                 parameters={"log": sys.argv[1] + "/log"})
"""
LOGGED = "tests.proposals.test_generate:logged"


def logged(image: NDArray[np.uint8], log: str) -> list[list[int]]:
    """One box for an image, a letter in the log for each call."""
    time.sleep(0.001)
    with Path(log).open("ab") as file:
        file.write(b".")
    return [[0, 0, 30, 30 + int(image[0, 0, 0]) // 20]]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(0, 2), (2, 1)])
def test_a_job_killed_again_and_again_does_nothing_twice(tmp_path: Path, workers: int, kills: int) -> None:
    """Killed by signal 9 a few times, at any moment; an image is lost only while it is being made."""
    (tmp_path / "job.py").write_text(_JOB)
    command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path), LOGGED, str(workers)]
    log = tmp_path / "log"
    log.touch()
    rng = np.random.default_rng(workers)
    for _ in range(kills):
        done = log.stat().st_size
        job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 200
        while log.stat().st_size < done + rng.integers(10, 60):
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        job.send_signal(signal.SIGKILL)
        job.communicate()
        assert not ProposalStore.open(tmp_path / "store").damaged()

    time.sleep(0.1)  # workers of a killed job finish the image they have
    kept = log.stat().st_size
    records = write_images(tmp_path / "images", 300)
    todo: list[int] = []
    store = generate(
        records,
        tmp_path / "store",
        method=LOGGED,
        parameters={"log": str(log)},
        progress=lambda _, total: todo.append(total),
    )
    assert len(todo) < 300
    assert log.stat().st_size <= 300 + kills * max(workers, 1)
    assert log.stat().st_size == kept + todo[0]
    assert len(store) == 300
    assert not store.damaged()
    for record in records:
        assert torch.equal(store[record.image_id].boxes, torch.from_numpy(_logged_box(record)))
    assert not (tmp_path / "store/unfinished.journal").exists()


def _logged_box(record: ImageRecord) -> NDArray[np.float32]:
    first = int(record.image_id) % 200 // 20
    return float32([[0, 0, 30, min(30 + first, record.height)]])


def slow_or_dying(image: NDArray[np.uint8]) -> list[list[int]]:
    if image[0, 0, 0] == 1:
        time.sleep(60)
    if image[0, 0, 0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return [[0, 0, 5, 5]]


@pytest.mark.slow
def test_a_slow_image_and_one_that_crashes_are_named_and_the_others_done(tmp_path: Path) -> None:
    records = write_images(tmp_path / "images", 5)
    failures: dict[str, str] = {}
    store = generate(
        records,
        tmp_path / "store",
        method="tests.proposals.test_generate:slow_or_dying",
        time_limit=1.0,
        on_failure=failures.__setitem__,
    )
    assert store.ids() == ["0000", "0003", "0004"]
    assert sorted(failures) == ["0001", "0002"]
    assert failures["0001"].endswith("0001.png took over 1 seconds")
    assert failures["0002"].endswith("0002.png ended its process (exit status -9)")


def test_a_changed_image_that_fails_loses_its_old_boxes_and_one_out_of_reach_keeps_them(
    tmp_path: Path,
) -> None:
    records = write_images(tmp_path / "images", 4)
    generate(records, tmp_path / "store", method=CORNERS)
    records[1].path.write_bytes(b"no image any more")
    records[2].path.unlink()
    failures: dict[str, str] = {}
    store = generate(records, tmp_path / "store", method=CORNERS, on_failure=failures.__setitem__)
    assert sorted(failures) == ["0001", "0002"]
    assert store.ids() == ["0000", "0002", "0003"]
    assert ProposalStore.open(store.path).ids() == store.ids()
    assert not store.damaged()


def test_two_jobs_of_one_store_share_the_work(tmp_path: Path) -> None:
    """As the ranks of a training do: one works, the others wait and find everything there."""
    (tmp_path / "job.py").write_text(_JOB)
    command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path), LOGGED, "0"]
    (tmp_path / "log").touch()
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while (tmp_path / "log").stat().st_size < 10:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    waited: list[bool] = []
    records = write_images(tmp_path / "others", 300)
    store = generate(
        records,
        tmp_path / "store",
        method=LOGGED,
        parameters={"log": str(tmp_path / "log")},
        wait=200.0,
        on_wait=lambda: waited.append(True),
    )
    assert waited == [True]
    assert job.wait(timeout=200) == 0
    assert (tmp_path / "log").stat().st_size == 300
    assert len(store) == 300


def test_an_image_of_unknown_size_takes_that_of_its_file(tmp_path: Path) -> None:
    records = write_images(tmp_path / "images", 2)
    unknown = [replace(record, height=0, width=0) for record in records]
    store = generate(unknown, tmp_path / "store", method="dense")
    for record in records:
        size = (record.height, record.width)
        assert store.image_size(record.image_id) == size
        assert torch.equal(store[record.image_id].boxes, dense_proposals(size).boxes)


def test_selective_search(tmp_path: Path) -> None:
    records = write_images(tmp_path / "images", 2)
    rng = np.random.default_rng(0)
    for record in records:
        cv2.imwrite(str(record.path), rng.integers(0, 255, (record.height, record.width, 3), np.uint8))
    given = {"seed": 3, "scales": [50, 80], "min_side": 4, "max_proposals": 9}
    store = generate(records, tmp_path / "store", method="selective_search", parameters=given)
    manifest = json.loads((store.path / "manifest.json").read_text())["parameters"]
    assert manifest["seed"] == 3
    assert manifest["color_spaces"] == ["hsv", "lab"]  # the mode's own, named too
    config = SelectiveSearchConfig(scales=(50.0, 80.0), min_side=4)
    for record in records:
        image = read_image(record.path, None)
        wanted = selective_search(image, config, seed=3, max_proposals=9)
        assert torch.equal(store[record.image_id].boxes, wanted.boxes)
        assert torch.equal(present(store[record.image_id].scores), present(wanted.scores))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "fats"}, "no selective search mode 'fats' .did you mean 'fast'"),
        ({"min_sides": 3}, "no parameter 'min_sides'.*did you mean 'min_side'"),
        ({"scales": ["a"]}, "scales is 'a'"),
        ({"min_side": 1.5}, "min_side is 1.5"),
        ({"color_spaces": ["hsx"]}, "color_spaces is 'hsx'"),
    ],
)
def test_selective_search_parameters_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        full_parameters("selective_search", given)
