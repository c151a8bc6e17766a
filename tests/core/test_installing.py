"""Data sets and weights put into their places: whole or not at all, also after kills and beside others."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detector.core import catalogue, download, installing
from detector.core.catalogue import Archive, Count, DataSet, PublishedFile, Weights
from detector.core.download import Unavailable
from detector.core.errors import InputError
from detector.core.installing import bytes_needed, content_digest, install, install_weights, what_is_missing
from tests.conftest import PROJECT
from tests.core.test_archives import content, write_tar, write_zip
from tests.web import Web, serving

BCCD = PROJECT / "data" / "bccd"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Web]:
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(os, "sync", lambda: None)  # it would wait for all that others write
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        yield server


def archive_of(web: Web, name: str, place: str, files: dict[str, bytes], tmp_path: Path) -> Archive:
    """An archive that the server has, with ``files`` below ``place``."""
    write = write_zip if name.endswith(".zip") else write_tar
    path = tmp_path / "published" / name
    path.parent.mkdir(exist_ok=True)
    web.files[name] = write(path, {f"{place}{file}": data for file, data in files.items()}).read_bytes()
    return Archive(
        name=name,
        urls=(web.url(name),),
        page=f"https://example.org/{name}",
        size=len(web.files[name]),
        checksum=f"sha256:{hashlib.sha256(web.files[name]).hexdigest()}",
        places=((place, ""),),
        unpacked=50_000,
    )


def voc_files(ids: list[str], **lists: list[str]) -> dict[str, bytes]:
    files = {f"JPEGImages/{image}.jpg": f"photo {image}".encode() for image in ids}
    files |= {f"Annotations/{image}.xml": f"<a>{image}</a>".encode() for image in ids}
    texts = {
        f"ImageSets/Main/{name}.txt": "".join(f"{i}\n" for i in images) for name, images in lists.items()
    }
    return files | {name: text.encode() for name, text in texts.items()}


def voc(web: Web, tmp_path: Path) -> DataSet:
    """A data set in two archives, as VOC 2007 is."""
    first = voc_files(["1", "3"], trainval=["1", "3"])
    second = voc_files(["2"], test=["2"])
    return DataSet(
        name="voc",
        title="a small one",
        folder="VOC",
        archives=(
            archive_of(web, "trainval.tar", "VOCdevkit/VOC/", first, tmp_path),
            archive_of(web, "test.tar", "VOCdevkit/VOC/", second, tmp_path),
        ),
        counts=(
            Count("JPEGImages/*.jpg", 3),
            Count("Annotations/*.xml", 3),
            Count("ImageSets/Main/trainval.txt", 2),
            Count("ImageSets/Main/test.txt", 1),
        ),
        licence="none",
        page="https://example.org/voc",
    )


VOC_CONTENT = voc_files(["1", "2", "3"], trainval=["1", "3"], test=["2"])


def test_two_archives_become_one_folder(web: Web, tmp_path: Path) -> None:
    data_set, root = voc(web, tmp_path), tmp_path / "data"
    assert what_is_missing(data_set, root)
    assert bytes_needed(data_set, root) == sum(map(len, web.files.values())) + 100_000
    assert install(data_set, root) == (root / "VOC", False)
    assert content(root / "VOC") == VOC_CONTENT
    assert sorted(path.name for path in root.iterdir()) == ["VOC", "downloads"]
    assert sorted(path.name for path in (root / "downloads").iterdir()) == ["test.tar", "trainval.tar"]
    assert bytes_needed(data_set, root) == 0
    assert install(data_set, root) == (root / "VOC", True)
    assert len(web.asked) == 2


def test_archives_put_there_by_hand_are_used_and_removed_only_on_request(web: Web, tmp_path: Path) -> None:
    data_set, root = voc(web, tmp_path), tmp_path / "data"
    shutil.copytree(tmp_path / "published", root / "downloads")
    assert bytes_needed(data_set, root) == 100_000
    install(data_set, root, remove_archives=True)
    assert not web.asked
    assert not list((root / "downloads").iterdir())
    shutil.rmtree(root)
    shutil.copytree(tmp_path / "published", root / "downloads")
    (root / "downloads" / "test.tar").write_bytes(b"another file")
    with pytest.raises(InputError, match=r"downloads/test\.tar: not the published file: it has 12 bytes"):
        install(data_set, root)
    assert not (root / "VOC").exists()


def test_an_address_that_has_gone_gives_the_page_and_the_place(web: Web, tmp_path: Path) -> None:
    data_set, root = voc(web, tmp_path), tmp_path / "data"
    del web.files["test.tar"]
    with pytest.raises(Unavailable) as caught:
        install(data_set, root)
    assert "answered 404" in str(caught.value)
    place = root / "downloads" / "test.tar"
    assert f"Get it by hand from https://example.org/test.tar and put it at {place}" in str(caught.value)
    shutil.copy(tmp_path / "published" / "test.tar", place)
    install(data_set, root)
    assert content(root / "VOC") == VOC_CONTENT


def test_a_folder_that_is_something_else_is_left_as_it_is(web: Web, tmp_path: Path) -> None:
    data_set, root = voc(web, tmp_path), tmp_path / "data"
    (root / "VOC" / "JPEGImages").mkdir(parents=True)
    (root / "VOC" / "JPEGImages" / "1.jpg").write_bytes(b"my own")
    with pytest.raises(InputError) as caught:
        install(data_set, root)
    assert "VOC exists, but is not the whole of voc: JPEGImages/ has 1 of 3 files *.jpg" in str(caught.value)
    assert "ImageSets/Main/test.txt has 0 of 1 lines. Move it away, or complete it by hand" in str(
        caught.value
    )
    assert content(root / "VOC") == {"JPEGImages/1.jpg": b"my own"}
    assert not web.asked
    shutil.rmtree(root / "VOC" / "JPEGImages")
    install(data_set, root)  # an empty folder is in nobody's way
    assert content(root / "VOC") == VOC_CONTENT


def test_a_folder_made_by_hand_is_taken(web: Web, tmp_path: Path) -> None:
    data_set = voc(web, tmp_path)
    for name, data in VOC_CONTENT.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(data)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "VOC").symlink_to(tmp_path / "mine")
    assert install(data_set, tmp_path / "data") == (tmp_path / "data" / "VOC", True)
    assert not web.asked


@pytest.mark.parametrize("fault", ["count", "content"])
def test_archives_with_something_else_in_them_leave_nothing(web: Web, tmp_path: Path, fault: str) -> None:
    data_set, root = voc(web, tmp_path), tmp_path / "data"
    digest = {"content": "0" * 64, "content_folders": ("Annotations",)}
    counts = {"counts": (*data_set.counts, Count("JPEGImages/*.png", 1))}
    wrong = dataclasses.replace(data_set, **(digest if fault == "content" else counts))
    says = "SHA-256 of the content is" if fault == "content" else r"JPEGImages/ has 0 of 1 files \*\.png"
    says = f"^the archives of voc do not hold what they should: .*{says}"
    archives = rf"{root}/downloads/trainval\.tar and {root}/downloads/test\.tar"
    by_hand = rf"Remove {archives} to download again, or get .* into {root}/VOC yourself"
    with pytest.raises(InputError, match=f"{says}.*{by_hand}"):
        install(wrong, root)
    assert [path.name for path in root.iterdir()] == ["downloads"]


def test_content_has_the_same_digest_wherever_it_comes_from(tmp_path: Path) -> None:
    names = ["b/x", "a/z/y", "a-b", "c"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 3)
    expected = hashlib.sha256()
    for name in ("a/z/y", "b/x"):
        expected.update(name.encode() + b"\0" + hashlib.sha256(name.encode() * 3).digest())
    assert content_digest(tmp_path, ["b", "a"]) == expected.hexdigest()
    (tmp_path / "a" / "more").write_bytes(b"")
    assert content_digest(tmp_path, ["b", "a"]) != expected.hexdigest()


@pytest.mark.skipif(not BCCD.is_dir(), reason="data/bccd is not there")
def test_blood_cells_have_the_content_of_the_catalogue() -> None:
    bccd = catalogue.DATA_SETS["bccd"]
    assert not what_is_missing(bccd, BCCD.parent)
    assert content_digest(BCCD, bccd.content_folders) == bccd.content


@pytest.mark.skipif(not BCCD.is_dir(), reason="data/bccd is not there")
@pytest.mark.parametrize("name", ["862b232accac2e8d4ee2d95738d51195f0476395", "master"])
def test_blood_cells_arrive_as_github_packs_them(web: Web, tmp_path: Path, name: str) -> None:
    """GitHub says no length, refuses ranges, and packs more than the data set; a person may take a branch."""
    bccd, top = catalogue.DATA_SETS["bccd"], f"BCCD_Dataset-{name}"
    (archive,) = bccd.archives
    files = {f"{top}/BCCD/{name}": data for name, data in content(BCCD).items() if name != "LICENSE"}
    files |= {f"{top}/LICENSE": b"MIT", f"{top}/BCCD/.DS_Store": b"x", f"{top}/README.md": b"x"}
    web.files["bccd.zip"] = write_zip(tmp_path / "bccd.zip", files).read_bytes()
    web.length, web.ranges, web.etag = False, False, 'W/"weak"'
    local = dataclasses.replace(archive, urls=(web.url("bccd.zip"),))
    target, _ = install(dataclasses.replace(bccd, archives=(local,)), tmp_path / "data")
    assert sorted(path.name for path in target.iterdir()) == [
        "Annotations",
        "ImageSets",
        "JPEGImages",
        "LICENSE",
    ]


KILLED = """
    import os, signal, sys, pickle
    from pathlib import Path
    from detector.core import archives, installing

    data_set, root, survived = pickle.load(sys.stdin.buffer), Path(sys.argv[1]), int(sys.argv[2])
    real, done = archives._extract, 0
    def extract(*arguments):
        global done
        if done == survived:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        real(*arguments)
    archives._extract = extract
    os.sync = lambda: None
    installing.install(data_set, root)
"""


@pytest.mark.parametrize("survived", [1, 6])
def test_a_kill_while_unpacking_leaves_nothing_half_and_the_next_call_continues(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    import pickle

    data_set, root = voc(web, tmp_path), tmp_path / "data"
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(root), str(survived)],
        input=pickle.dumps(data_set),
        cwd=PROJECT,
        check=False,
    )
    assert process.returncode == -9
    assert not (root / "VOC").exists()
    assert len(content(root / ".VOC.unpacking" / "content")) == survived
    there = sum(map(len, content(root / ".VOC.unpacking" / "content").values()))
    assert bytes_needed(data_set, root) == (50_000 if survived == 6 else 100_000 - there)
    again: list[str] = []
    real = installing.unpack

    def unpack(archive: Path, *others: Any) -> None:
        again.append(archive.name)
        real(archive, *others)

    monkeypatch.setattr(installing, "unpack", unpack)
    install(data_set, root)
    assert content(root / "VOC") == VOC_CONTENT
    assert again == (["test.tar"] if survived == 6 else ["trainval.tar", "test.tar"])
    assert sorted(path.name for path in root.iterdir()) == ["VOC", "downloads"]
    assert len(web.asked) == 2


def test_what_is_unpacked_already_needs_neither_space_nor_its_archive(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_set, root = voc(web, tmp_path), tmp_path / "data"
    with monkeypatch.context() as patch:  # a process that ends just before the folder gets its name
        patch.setattr(installing, "_publish", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            install(data_set, root)
    usage = type("usage", (), {"free": download.RESERVE - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    shutil.rmtree(root / "downloads")
    assert bytes_needed(data_set, root) == 0
    install(data_set, root)
    assert content(root / "VOC") == VOC_CONTENT
    assert len(web.asked) == 2


def test_a_kill_after_the_last_rename_leaves_a_folder_that_is_removed(web: Web, tmp_path: Path) -> None:
    data_set, root = voc(web, tmp_path), tmp_path / "data"
    install(data_set, root)
    (root / ".VOC.unpacking").mkdir()
    (root / ".VOC.unpacking" / "finished.json").write_text("[]")
    install(data_set, root)
    assert not (root / ".VOC.unpacking").exists()


def test_several_at_once_do_the_work_once(web: Web, tmp_path: Path) -> None:
    data_set, root = voc(web, tmp_path), tmp_path / "data"
    web.pause = 0.001
    done: list[Path] = []
    threads = [threading.Thread(target=lambda: done.append(install(data_set, root)[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert done == [root / "VOC"] * 3
    assert content(root / "VOC") == VOC_CONTENT
    assert len(web.asked) == 2
    assert sorted(path.name for path in root.iterdir()) == ["VOC", "downloads"]


def test_a_data_set_made_of_two_others(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, root = voc(web, tmp_path), tmp_path / "data"
    more = voc_files(["2008_1", "2008_2"], trainval=["2008_1"])
    second = DataSet(
        name="voc2",
        title="",
        folder="VOC2",
        archives=(archive_of(web, "more.tar", "VOCdevkit/VOC2/", more, tmp_path),),
        counts=(Count("JPEGImages/*.jpg", 2),),
        licence="",
        page="",
    )
    both = dataclasses.replace(
        first,
        name="both",
        folder="BOTH",
        archives=(),
        counts=(Count("JPEGImages/*.jpg", 4), Count("ImageSets/Main/trainval.txt", 3)),
        made_from=("voc", "voc2"),
    )
    for each in (first, second, both):
        monkeypatch.setitem(catalogue.DATA_SETS, each.name, each)
    install(both, root)
    expected = voc_files(["1", "2", "3", "2008_1"], trainval=["1", "3", "2008_1"], test=["2"])
    assert content(root / "BOTH") == expected
    assert (root / "BOTH/JPEGImages/2008_1.jpg").samefile(root / "VOC2/JPEGImages/2008_1.jpg")
    assert bytes_needed(both, root) == 0


def test_weights_lie_in_the_folder_of_weights(web: Web, tmp_path: Path) -> None:
    web.files["net-1.pth"] = b"weights"
    file = PublishedFile(name="net-1.pth", urls=(web.url("net-1.pth"),), page="page", about=7)
    weights = Weights(name="net", file=file, licence="")
    assert installing.weights_bytes_needed(weights, tmp_path) == 7
    assert install_weights(weights, tmp_path) == (tmp_path / "weights" / "net-1.pth", False)
    assert (tmp_path / "weights" / "net-1.pth").read_bytes() == b"weights"
    assert install_weights(weights, tmp_path)[1]
    assert installing.weights_bytes_needed(weights, tmp_path) == 0


def test_a_link_in_the_place_of_the_working_folder_is_refused(web: Web, tmp_path: Path) -> None:
    data_set, root = voc(web, tmp_path), tmp_path / "data"
    root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (root / ".VOC.unpacking").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"\.VOC\.unpacking: cannot be written"):
        install(data_set, root)
    assert not list((tmp_path / "elsewhere").iterdir())
