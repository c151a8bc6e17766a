"""The store keeps what it is given, through replacement, compaction, merging, other processes and kill -9."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core.errors import InputError
from detector.core.records import Texts
from detector.core.structures import Proposals
from detector.proposals.filtering import Limits, filter_proposals
from detector.proposals.segments import FloatArray, checksum_of, segment_path
from detector.proposals.store import BOX_CONVENTION, Entry, ProposalStore, merge_stores
from tests.conftest import PROJECT


def make_proposals(count: int, seed: int = 0, scored: bool = True) -> Proposals:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=generator) if scored else None
    return Proposals(boxes=torch.rand(count, 4, generator=generator) * 100, scores=scores)


def make_store(path: Path, images: int = 3) -> ProposalStore:
    store = ProposalStore.create(path, generator="test", parameters={"k": 1})
    store.append({f"image_{i}": Entry(make_proposals(i, i), f"hash{i}", (10, 20)) for i in range(images)})
    return store


def assert_equal(found: Proposals, wanted: Proposals) -> None:
    assert torch.equal(found.boxes, wanted.boxes)
    assert (found.scores is None) == (wanted.scores is None)
    if found.scores is not None and wanted.scores is not None:
        assert torch.equal(found.scores, wanted.scores)


def test_gives_back_what_was_appended(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    store = ProposalStore.open(tmp_path / "store")
    assert store.ids() == ["image_0", "image_1", "image_2"]
    for i in range(3):
        assert_equal(store[f"image_{i}"], make_proposals(i, i))
    assert store.content_hash("image_2") == "hash2"
    assert store.image_size("image_2") == (10, 20)
    assert "image_2" in store
    assert "image_3" not in store
    assert (store.generator, store.parameters) == ("test", {"k": 1})
    assert not store.damaged()


def test_the_files_are_as_documented(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    assert (manifest["version"], manifest["boxes"]) == (1, BOX_CONVENTION)
    boxes = np.load(tmp_path / "store/segment_000001.boxes.npy")
    scores = np.load(tmp_path / "store/segment_000001.scores.npy")
    index = np.load(tmp_path / "store/index.npy")
    assert (boxes.dtype, boxes.shape, scores.shape) == (np.float32, (3, 4), (3,))
    assert index["id"].tolist() == [b"image_0", b"image_1", b"image_2"]
    assert index["offset"].tolist() == [0, 0, 1]
    assert index["boxes"].tolist() == [0, 1, 2]


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.text(
                st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="/."),
                min_size=1,
                max_size=20,
            ),
            st.tuples(st.integers(0, 5), st.booleans()),
            max_size=5,
        ),
        max_size=5,
    ),
    st.booleans(),
)
def test_behaves_like_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, batches: list[dict[str, tuple[int, bool]]], compact: bool
) -> None:
    store = ProposalStore.create(tmp_path_factory.mktemp("any") / "s", generator="g", parameters={})
    reader = ProposalStore.open(store.path)
    model: dict[str, Proposals] = {}
    for seed, batch in enumerate(batches):
        added = {key: make_proposals(count, seed, scored) for key, (count, scored) in batch.items()}
        store.append({key: Entry(value) for key, value in added.items()})
        model |= added
    if compact:
        store.compact()
    reader.reload()
    for view in (store, reader):
        assert view.ids() == sorted(model, key=str.encode)
        for key, wanted in model.items():
            assert_equal(view[key], wanted)
        assert not view.damaged()


def test_a_later_entry_wins_and_the_old_segment_stays_until_compact(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.append({"image_1": Entry(make_proposals(7, scored=False))})
    assert len(store) == 3
    assert_equal(store["image_1"], make_proposals(7, scored=False))
    assert_equal(store["image_2"], make_proposals(2, 2))
    assert segment_path(store.path, 1, "boxes").exists()

    stale_reader = ProposalStore.open(store.path)
    store.compact()
    assert not segment_path(store.path, 1, "boxes").exists()
    assert not segment_path(store.path, 2, "boxes").exists()
    assert_equal(store["image_2"], make_proposals(2, 2))
    assert_equal(stale_reader["image_1"], make_proposals(7, scored=False))


def test_compact_removes_what_killed_writers_left(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    left = (
        ".segment_000009.boxes.npy.4711.tmp",
        ".index.npy.4711.tmp",
        ".manifest.json.4711.tmp",
        "segment_000008.scores.npy.tmp",  # as earlier versions called it
        "segment_000007.boxes.npy",
    )
    for name in (*left, "notes.tmp"):
        (store.path / name).write_bytes(b"")
    store.compact()
    kept = {"index.npy", "manifest.json", "notes.tmp", "writer.lock"}
    assert {path.name for path in store.path.iterdir()} == kept | {
        "segment_000008.boxes.npy",
        "segment_000008.scores.npy",
    }
    assert_equal(store["image_2"], make_proposals(2, 2))


def test_what_is_read_is_a_copy(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store["image_2"].boxes.zero_()
    assert_equal(store["image_2"], make_proposals(2, 2))


def test_an_unknown_id_names_store_id_and_an_example(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    with pytest.raises(InputError, match=r"store has no proposals for image '000001'; .* 3 .* 'image_0'"):
        store["000001"]
    empty = ProposalStore.create(tmp_path / "empty", generator="g", parameters={})
    with pytest.raises(InputError, match=r"it has 0 images$"):
        empty["a"]


def test_create_opens_the_same_and_refuses_other_parameters(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    assert len(ProposalStore.create(tmp_path / "store", generator="test", parameters={"k": 1})) == 3
    with pytest.raises(InputError, match="k 1 there, 2 wanted"):
        ProposalStore.create(tmp_path / "store", generator="test", parameters={"k": 2})
    with pytest.raises(InputError, match="'test' there, 'other' wanted"):
        ProposalStore.create(tmp_path / "store", generator="other", parameters={"k": 1})


def test_create_leaves_foreign_folders_alone(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert not len(ProposalStore.create(tmp_path, generator="g", parameters={}))
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"not a proposal store and not empty.*holiday\.jpg"):
        ProposalStore.create(tmp_path, generator="g", parameters={})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot make the folder"):
        ProposalStore.create(tmp_path / "file" / "store", generator="g", parameters={})


@pytest.mark.parametrize("name", ["manifest.json", "index.npy", "segment_000001.boxes.npy"])
@pytest.mark.parametrize("damage", ["missing", "torn", "empty", "foreign"])
def test_a_damaged_file_is_one_error_that_names_it(tmp_path: Path, name: str, damage: str) -> None:
    store = make_store(tmp_path / "store")
    path = store.path / name
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "empty":
        path.write_bytes(b"")
    elif name == "manifest.json":
        path.write_text('{"format": "something else"}')
    else:
        np.save(path, np.zeros((3, 3)))
    wanted = "no manifest.json" if (name, damage) == ("manifest.json", "missing") else name
    with pytest.raises(InputError, match=wanted):
        ProposalStore.open(store.path)["image_2"]


def test_an_index_or_segment_that_needs_unpickling_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    np.save(store.path / "segment_000001.boxes.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="segment_000001"):
        ProposalStore.open(store.path)["image_2"]
    np.save(store.path / "index.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"index\.npy"):
        ProposalStore.open(store.path)


def flip_bit(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["boxes", "scores"])
def test_a_flipped_bit_is_found_when_its_image_is_first_read(tmp_path: Path, kind: str) -> None:
    store = make_store(tmp_path / "store")
    flip_bit(store.path / f"segment_000001.{kind}.npy", -1)
    damaged = ProposalStore.open(store.path)
    assert_equal(damaged["image_1"], make_proposals(1, 1))
    wanted = r"segment_000001\.boxes\.npy is damaged: image 'image_2' is not as it was written"
    with pytest.raises(InputError, match=rf"{wanted}; make the proposals again"):
        damaged["image_2"]
    assert [damage.image_ids for damage in damaged.damaged()] == [["image_2"]]
    reason = damaged.damaged()[0].reason
    assert re.search(rf"{wanted} \(1 of the 3 images of this file are lost\)", reason)
    with pytest.raises(InputError, match=wanted):
        damaged.compact()


def test_every_flipped_bit_of_a_store_is_noticed_or_harmless(tmp_path: Path) -> None:
    """What is read is right, or there is an error; the padding of a header may change."""
    store = make_store(tmp_path / "store", images=4)
    for path in sorted(store.path.iterdir()):
        content = path.read_bytes()
        for place in range(0, len(content), 3):
            flip_bit(path, place, place % 8)
            try:
                found = ProposalStore.open(store.path)
                read = {image_id: found[image_id] for image_id in found.ids()}
                sizes = [found.image_size(image_id) for image_id in found.ids()]
            except InputError:
                pass
            else:
                assert (found.generator, found.parameters) == ("test", {"k": 1})
                assert sizes == [(10, 20)] * 4
                for i in range(4):
                    assert_equal(read[f"image_{i}"], make_proposals(i, i))
            path.write_bytes(content)


def test_an_image_is_checked_when_it_is_first_read_and_after_a_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ProposalStore.open(make_store(tmp_path / "store").path)
    checked: list[int] = []

    def count(boxes: FloatArray, scores: FloatArray | None) -> int:
        checked.append(len(boxes))
        return checksum_of(boxes, scores)

    monkeypatch.setattr("detector.proposals.segments.checksum_of", count)
    for image_id in ("image_1", "image_2", "image_1"):
        store[image_id]
    assert checked == [1, 2]
    assert not store.damaged()
    assert checked == [1, 2, 0]  # image_0 had not been read
    store.reload()
    store["image_1"]
    assert checked == [1, 2, 0, 1]


def test_threads_read_what_one_thread_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.proposals.segments._OPEN_FILES", 3)
    make_store(tmp_path / "store")
    store = ProposalStore.open(tmp_path / "store")
    for i in range(3, 12):  # each in a segment of its own
        store.append({f"image_{i}": Entry(make_proposals(i, i))})
    with ThreadPoolExecutor(4) as threads:
        read = threads.map(lambda i: store[f"image_{i % 12}"], range(400))
        for i, proposals in enumerate(read):
            assert_equal(proposals, make_proposals(i % 12, i % 12))


@pytest.mark.parametrize("name", ["index.npy", "manifest.json"])
def test_a_store_of_an_earlier_version_has_no_checksum_of_its_own(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path / "store")
    path = store.path / name
    if name == "index.npy":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        content = json.loads(path.read_text())
        del content["crc32"]
        path.write_text(json.dumps(content))
    assert_equal(ProposalStore.open(store.path)["image_2"], make_proposals(2, 2))


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    path = store.path / "manifest.json"
    path.write_text(path.read_text().replace('"k": 1', '"k": 2'))
    with pytest.raises(InputError, match=r"manifest\.json is damaged or was edited"):
        ProposalStore.open(store.path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1"},
        {"version": [1]},
        {"notes": 3},
        {"generator": None},
        {"parameters": []},
        {"boxes": {}},
        {"crc32": "0"},
        {"crc32": {}},
        {"format": 1},
    ],
)
def test_a_manifest_of_other_types_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    store = make_store(tmp_path / "store")
    path = store.path / "manifest.json"
    content = json.loads(path.read_text())
    del content["crc32"]
    path.write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=r"manifest\.json"):
        ProposalStore.open(store.path)


def read_and_write(path: Path) -> None:
    found = ProposalStore.open(path)
    found["image_2"]
    found.append({"b": Entry(make_proposals(1))})


@pytest.mark.parametrize(
    "name",
    ["index.npy", "manifest.json", "segment_000001.boxes.npy", "segment_000001.scores.npy", "writer.lock"],
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_never_opened(tmp_path: Path, name: str, kind: str) -> None:
    store = make_store(tmp_path / "store")
    path = store.path / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=name):
        read_and_write(store.path)


def test_a_pipe_in_the_way_of_a_writer_is_removed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    os.mkfifo(store.path / f".index.npy.{os.getpid()}.tmp")
    store.append({"b": Entry(make_proposals(1))})
    assert_equal(ProposalStore.open(store.path)["b"], make_proposals(1))


def test_a_segment_number_is_never_used_again_while_a_reader_may_want_it(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    assert len(store["image_2"]) == 2  # its map is open
    reader = ProposalStore.open(store.path)
    store.discard(store.ids())
    store.append({"image_2": Entry(make_proposals(5))})
    assert_equal(store["image_2"], make_proposals(5))
    assert_equal(reader["image_2"], make_proposals(2, 2))


@pytest.mark.parametrize(
    "image_id", ["", "../a", "/a", "a\nb", "a\0", "a\u2028b", "\x9b", "x" * 4097, "\udc80"]
)
def test_ids_that_no_index_can_hold_are_refused(tmp_path: Path, image_id: str) -> None:
    store = make_store(tmp_path / "store")
    with pytest.raises(InputError, match="is not a valid image id"):
        store.append({image_id: Entry(make_proposals(1))})
    assert image_id not in store


NAMES = [
    "Screenshot 2024-05-01 at 9.41.00\u202fAM.png",  # as macOS writes it
    "no\xa0break",
    " blanks \u3000 ",
    "family \U0001f469\u200d\U0001f469\u200d\U0001f467",
    "e\u0301",
    "\u0645\u0631\u062d\u0628\u0627",
    "\U0001fadc of a later Unicode",
    "x" * 255,
    "/".join(["y" * 250] * 4),
]


@pytest.mark.parametrize("image_id", NAMES)
def test_every_name_that_can_be_shown_is_an_id(tmp_path: Path, image_id: str) -> None:
    store = make_store(tmp_path / "store")
    store.append({image_id: Entry(make_proposals(4))})
    assert_equal(ProposalStore.open(store.path)[image_id], make_proposals(4))
    assert image_id in ProposalStore.open(store.path).ids()


def test_boxes_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, float("nan"), 1]])
    with pytest.raises(InputError, match="box 1 of image 'bad' is not finite"):
        store.append({"bad": Entry(Proposals(boxes=boxes))})


def test_two_writers_do_not_clash(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    other = ProposalStore.open(store.path)
    other.append({"from_other": Entry(make_proposals(4))})
    store.append({"from_store": Entry(make_proposals(5))})
    assert ProposalStore.open(store.path).ids() == [
        "from_other",
        "from_store",
        "image_0",
        "image_1",
        "image_2",
    ]
    with store.lock(), pytest.raises(InputError, match="another process is writing"), other.lock():
        pass


def _read_in_child(store: ProposalStore, image_id: str, answers: multiprocessing.Queue[int]) -> None:
    answers.put(len(store[image_id]))


def test_a_forked_process_reads_it(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    assert len(store["image_2"]) == 2  # the maps are open when the child starts
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_read_in_child, args=(store, "image_2", answers))
    child.start()
    assert answers.get(timeout=60) == 2
    child.join()


_APPENDING = """
import sys, torch
from detector.proposals.store import Entry, ProposalStore
from detector.core.structures import Proposals
store = ProposalStore.open(sys.argv[1])
for number in range(30):
    store.append({f"new_{number}": Entry(Proposals(boxes=torch.ones(3, 4)))})
    if number % 10 == 9:
        store.compact()
"""


def test_eight_threads_read_while_another_process_writes(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", images=60).path
    store = ProposalStore.open(path)
    keys = [f"image_{i}" for i in range(60)]
    wanted = {key: filter_proposals(store[key], (500, 500)) for key in keys}
    writer = subprocess.Popen([sys.executable, "-c", _APPENDING, str(path)], cwd=PROJECT)

    def read_all(thread: int) -> int:
        rounds = 0
        while writer.poll() is None or not rounds:
            if thread == 0:
                store.reload()
            for key in keys:
                found = store.filtered(key, (500, 500), Limits())
                assert found is not None
                assert_equal(found, wanted[key])
                assert len(store[key]) >= len(found)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(8) as threads:
        assert min(threads.map(read_all, range(8))) > 0
    assert writer.wait() == 0
    store.reload()
    assert len(store) == 90


def test_more_segments_than_a_process_may_open_files(tmp_path: Path) -> None:
    import resource

    store = ProposalStore.create(tmp_path / "store", generator="g", parameters={})
    for i in range(80):
        store.append({f"{i}": Entry(make_proposals(3, i))})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 140, hard))
    try:
        for i in range(80):
            assert_equal(store[f"{i}"], make_proposals(3, i))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


_WRITER = """
import sys, torch
from detector.proposals.store import Entry, ProposalStore
from detector.core.structures import Proposals
store = ProposalStore.create(sys.argv[1], generator="kill", parameters={})
print("ready", flush=True)
for number in range(len(store), 10**6):
    boxes = torch.full((number % 50 + 1, 4), float(number))
    store.append({f"{number:06d}": Entry(Proposals(boxes=boxes, scores=boxes[:, 0]))})
    print(number, flush=True)
    if number % 3 == 2:
        store.compact()
"""


def test_kill_at_any_moment_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    finished = 0
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        for _ in range(rng.integers(1, 6)):
            finished = int(writer.stdout.readline()) + 1
        time.sleep(rng.uniform(0, 0.02))
        writer.send_signal(signal.SIGKILL)
        said = writer.communicate()[0].split("\n")
        finished = max([finished, *(int(line) + 1 for line in said[:-1])])
        store = ProposalStore.open(tmp_path / "store")
        assert len(store) in (finished, finished + 1)  # it may die between finishing and saying so
        assert not store.damaged()
        for number in range(len(store)):
            proposals = store[f"{number:06d}"]
            assert len(proposals) == number % 50 + 1
            assert (proposals.boxes == number).all()
            assert proposals.scores is not None
            assert (proposals.scores == number).all()


def make_entry(seed: int, count: int = 5) -> Entry:
    torch.manual_seed(seed)
    scores = torch.rand(count) if seed % 2 else None
    return Entry(Proposals(boxes=torch.rand(count, 4), scores=scores), f"{seed:032x}", (seed + 1, 9))


def make_part(path: Path, seeds: list[int], side: int = 3, note: str | None = None) -> ProposalStore:
    store = ProposalStore.create(path, generator="mine:boxes", parameters={"side": side})
    store.append({f"image_{seed}": make_entry(seed) for seed in seeds})
    if note:
        store.annotate([note])
    return store


def test_everything_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.proposals.store._SEGMENT_BOXES", 8)
    make_part(tmp_path / "a", [0, 3, 6], note="first")
    make_part(tmp_path / "b", [1, 4, 3], note="second")
    make_part(tmp_path / "c", [])
    steps: list[tuple[int, int]] = []
    sources = [tmp_path / name for name in "abc"]
    merged = merge_stores(sources, tmp_path / "all", progress=lambda done, total: steps.append((done, total)))
    assert steps == [(3, 6), (6, 6), (6, 6)]
    assert merged.ids() == [f"image_{seed}" for seed in (0, 1, 3, 4, 6)]
    assert (merged.generator, merged.parameters) == ("mine:boxes", {"side": 3})
    assert merged.notes == ["first", "second"]
    assert merged.segment_count() == 1
    assert not merged.damaged()
    monkeypatch.setattr("detector.proposals.store._COMPACT_BOXES", 8)
    merged.compact()
    assert merged.segment_count() == 3  # two images of five boxes each, and the fifth
    for seed in (0, 1, 3, 4, 6):
        wanted = make_entry(seed)
        found = merged[f"image_{seed}"]
        assert torch.equal(found.boxes, wanted.proposals.boxes)
        assert (found.scores is None) == (wanted.proposals.scores is None)
        assert merged.content_hash(f"image_{seed}") == wanted.content_hash
        assert merged.image_size(f"image_{seed}") == wanted.size


def test_merging_again_and_into_a_part_changes_nothing(tmp_path: Path) -> None:
    make_part(tmp_path / "a", [0, 1])
    make_part(tmp_path / "b", [2])
    first = merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "a")
    before = {key: first.fingerprint(key) for key in first.ids()}
    again = merge_stores([tmp_path / "b", tmp_path / "a"], tmp_path / "a")
    assert {key: again.fingerprint(key) for key in again.ids()} == before
    assert len(before) == 3


def test_stores_of_other_parameters_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    make_part(tmp_path / "a", [0])
    make_part(tmp_path / "b", [1], side=4)
    with pytest.raises(InputError, match=r"/b and .*/a were made in different ways.*'side': 4.*'side': 3"):
        merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert len(ProposalStore.open(tmp_path / "all")) == 0


def test_two_versions_of_an_image_are_refused_by_name(tmp_path: Path) -> None:
    make_part(tmp_path / "a", [0, 1])
    other = make_part(tmp_path / "b", [2])
    other.append({"image_1": make_entry(7)})
    with pytest.raises(InputError, match=r"/b and .*/all hold different proposals for image 'image_1'"):
        merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert ProposalStore.open(tmp_path / "all").ids() == ["image_0", "image_1"]


def test_a_segment_that_is_removed_while_it_is_opened_is_read_from_the_new_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ProposalStore.create(tmp_path / "store", generator="g", parameters={})
    for number in range(3):
        store.append({f"image_{number}": Entry(make_proposals(number + 1, number))})
    reader = ProposalStore.open(store.path)
    store.compact()
    monkeypatch.setattr(Path, "exists", lambda _: True)  # what a look just before the removal says
    assert_equal(reader["image_1"], make_proposals(2, 1))


def test_what_is_asked_of_many_images_is_of_one_index_while_another_thread_reloads(tmp_path: Path) -> None:
    """The order of the ids, and with it every place, changes when the store is reloaded."""
    store = ProposalStore.create(tmp_path / "store", generator="g", parameters={})
    store.append({"m": Entry(make_proposals(7))})
    reader = ProposalStore.open(store.path)
    before = reader.digest(Texts.of(["m"]))
    store.append({"a": Entry(make_proposals(1)), "b": Entry(make_proposals(2))})
    ids = Texts.of(["m"])

    class ReloadFirst(dict[str, str]):
        def get(self, name: str, other: Any = None) -> Any:
            reader.reload()
            return super().get(name, other)

    stale = reader._index
    reader._names = ReloadFirst({"x": "y"})
    for ask, wanted in ((lambda: reader.counts(ids).tolist(), [7]), (lambda: reader.digest(ids), before)):
        reader._index = stale
        assert ask() == wanted
