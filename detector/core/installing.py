"""Put a data set or weights of the catalogue where the configs look for them: whole, or not at all.

Archives are unpacked into ROOT/.FOLDER.unpacking, which is renamed to ROOT/FOLDER when everything is there,
checked and on the disk. After a kill the next call continues: with the bytes of an archive that have arrived,
and with the archives that are not unpacked yet.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from detector.core.archives import unpack
from detector.core.catalogue import (
    DATA_SETS,
    DOWNLOADS_FOLDER,
    MB,
    SCRIPT,
    WEIGHTS_FOLDER,
    Archive,
    DataSet,
    PublishedFile,
    Weights,
)
from detector.core.download import fetch, held, require_space
from detector.core.errors import InputError
from detector.core.files import link_or_copy, make_folder, read_short_text, sync_folder, write_text
from detector.core.progress import note, progress_bar

_CONTENT, _JOURNAL = "content", "finished.json"
"""In the folder of the work: what is unpacked, and the names of the archives that are so completely."""


def archive_path(archive: Archive, root: Path) -> Path:
    """Return where an archive is downloaded to, and where a person can put it by hand."""
    return root / DOWNLOADS_FOLDER / archive.name


def weights_path(weights: Weights, root: Path) -> Path:
    return root / WEIGHTS_FOLDER / weights.file.name


def what_is_missing(data_set: DataSet, root: Path) -> list[str]:
    """Return how the folder of a data set below ``root`` differs from what it should hold; empty if whole.

    Files and lines of lists are counted; nothing is read or compared.
    """
    return _miscounts(data_set, root / data_set.folder)


def bytes_needed(data_set: DataSet, root: Path) -> int:
    """Return how many bytes the disk must have free to install ``data_set``; 0 if it is there."""
    if not what_is_missing(data_set, root):
        return 0
    parts = [DATA_SETS[name] for name in data_set.made_from]
    coming = sum(_still_to_come(archive, archive_path(archive, root)) for archive in _left(data_set, root))
    return sum(bytes_needed(part, root) for part in parts) + coming + _bytes_to_unpack(data_set, root)


def _left(data_set: DataSet, root: Path) -> list[Archive]:
    """Return the archives that no earlier process has unpacked completely."""
    finished = _read_journal(_work_folder(data_set, root) / _JOURNAL)
    return [archive for archive in data_set.archives if archive.name not in finished]


def _bytes_to_unpack(data_set: DataSet, root: Path) -> int:
    """Return the space that unpacking still takes: files of an earlier process are written over."""
    left = sum(archive.unpacked for archive in _left(data_set, root))
    if not left:
        return 0
    finished = sum(archive.unpacked for archive in data_set.archives) - left
    content = _work_folder(data_set, root) / _CONTENT
    there = sum(path.stat().st_size for path in content.rglob("*") if path.is_file())
    return max(0, left - max(0, there - finished))


def _work_folder(data_set: DataSet, root: Path) -> Path:
    return root / f".{data_set.folder}.unpacking"


def weights_bytes_needed(weights: Weights, root: Path) -> int:
    return _still_to_come(weights.file, weights_path(weights, root))


def _still_to_come(file: PublishedFile, path: Path) -> int:
    if path.exists():
        return 0
    part = path.with_name(f"{path.name}.part")
    return max(0, file.expected_bytes - (part.stat().st_size if part.exists() else 0))


def install_weights(weights: Weights, root: Path) -> tuple[Path, bool]:
    """Return the file of ``weights`` below ``root``, and whether it was there; else it is downloaded.

    It is verified in both cases. Raises InputError; see `detector.core.download.fetch`.
    """
    path = weights_path(weights, root)
    there = path.exists()
    return fetch(weights.file, path), there


def install(data_set: DataSet, root: Path, *, remove_archives: bool = False) -> tuple[Path, bool]:
    """Return the folder of ``data_set`` below ``root``, and whether it was there; else it is downloaded.

    Archives that are in the downloads folder already are verified and used. ``remove_archives`` removes them
    at the end.

    Raises:
        InputError: the folder exists and is not this data set, an archive cannot be had (`Unavailable`), is
            damaged or holds something else, or the disk is full.
    """
    target = root / data_set.folder
    work = _work_folder(data_set, root)
    if _is_whole(data_set, target):
        if work.is_dir() and not work.is_symlink():
            shutil.rmtree(work, ignore_errors=True)  # a process was killed after the last step but one
        _clear_up(data_set, root, remove_archives)
        return target, True
    for name in data_set.made_from:
        install(DATA_SETS[name], root, remove_archives=remove_archives)
    make_folder(root)
    with held(work, f"unpacks {data_set.name}", folder=True):
        there = _is_whole(data_set, target)  # another process may have done it meanwhile
        if not there:
            _fill(data_set, root, work)
            _publish(work / _CONTENT, target)
        shutil.rmtree(work, ignore_errors=True)
    _clear_up(data_set, root, remove_archives)
    return target, there


def _clear_up(data_set: DataSet, root: Path, remove: bool) -> None:
    """Remove the archives of a data set that is there, or say that they could be removed."""
    left = [path for archive in data_set.archives if (path := archive_path(archive, root)).exists()]
    size = sum(path.stat().st_size for path in left) // MB
    if remove:
        for path in left:
            path.unlink(missing_ok=True)
    elif left:
        note(
            f"{data_set.name}: the archives in {left[0].parent} ({size} MB) are no longer needed; {SCRIPT} "
            f"{data_set.name} --root {shlex.quote(str(root))} --remove-archives removes them"
        )


def _is_whole(data_set: DataSet, target: Path) -> bool:
    """Say whether the data set is there, False if there is nothing. Raises InputError for something else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    faults = _miscounts(data_set, target)
    if faults:
        raise InputError(
            f"{target} exists, but is not the whole of {data_set.name}: {'; '.join(faults)}. Move it away, "
            "or complete it by hand"
        )
    return True


def _fill(data_set: DataSet, root: Path, work: Path) -> None:
    """Make the content of a data set in ``work``/content, and check it."""
    content, journal = work / _CONTENT, work / _JOURNAL
    content.mkdir(exist_ok=True)
    left = _left(data_set, root)
    for archive in left:
        fetch(archive, archive_path(archive, root))
    require_space(root, _bytes_to_unpack(data_set, root), f"unpacking {data_set.name}")
    finished = _read_journal(journal)
    for archive in left:
        with progress_bar(f"unpacking {archive.name}") as report:
            unpack(archive_path(archive, root), content, archive.places, archive.unpacked, report)
        os.sync()  # one call for all files: waiting for each of 100,000 takes many minutes
        finished.append(archive.name)
        write_text(journal, json.dumps(finished))
    if data_set.made_from:
        _join(data_set, root, content)
        os.sync()
    faults = _miscounts(data_set, content) or _other_content(data_set, content)
    if faults:
        shutil.rmtree(work, ignore_errors=True)
        archives = " and ".join(str(archive_path(archive, root)) for archive in data_set.archives)
        again = f"Remove {archives} to download again, or get" if archives else "Get"
        raise InputError(
            f"the archives of {data_set.name} do not hold what they should: {'; '.join(faults)}. Nothing of "
            f"them was put into {root / data_set.folder}. {again} the data set from {data_set.page} and put "
            f"its images, annotations and lists into {root / data_set.folder} yourself: a complete folder "
            "is used as it is"
        )


def _read_journal(journal: Path) -> list[str]:
    """Return the archives that were unpacked completely before this process."""
    try:
        names = json.loads(journal.read_text(encoding="utf-8"))
        return [str(name) for name in names] if isinstance(names, list) else []
    except (OSError, ValueError):
        return []


def _publish(content: Path, target: Path) -> None:
    try:
        content.replace(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be made: {error.strerror}; move away what is there") from None
    sync_folder(target.parent)


def _join(data_set: DataSet, root: Path, content: Path) -> None:
    """Make VOC0712 of VOC2007 and VOC2012, by hard links where the disk has them.

    trainval are the images of both years' trainval, 2007 before 2012; test is that of 2007.
    """
    first, *others = (root / DATA_SETS[name].folder for name in data_set.made_from)
    lists = content / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    test = _ids(first, "test")
    chosen = {folder: _ids(folder, "trainval") for folder in (first, *others)}
    write_text(lists / "test.txt", _lines(test))
    write_text(lists / "trainval.txt", _lines(image for ids in chosen.values() for image in ids))
    chosen[first] = [*chosen[first], *test]
    total = sum(map(len, chosen.values()))
    with progress_bar(f"joining {data_set.name}") as report:
        for number, (folder, image) in enumerate(
            ((folder, image) for folder, ids in chosen.items() for image in ids), start=1
        ):
            for file in (f"JPEGImages/{image}.jpg", f"Annotations/{image}.xml"):
                link_or_copy(folder / file, content / file)
            report(number, total)


def _ids(folder: Path, split: str) -> list[str]:
    return read_short_text(folder / "ImageSets" / "Main" / f"{split}.txt", "the split").split()


def _lines(ids: Iterable[str]) -> str:
    return "".join(f"{image}\n" for image in ids)


def _miscounts(data_set: DataSet, folder: Path) -> list[str]:
    """Return one text for each count of the data set that ``folder`` does not meet."""
    faults = []
    for pattern, number in data_set.counts:
        path = folder / pattern
        if "*" in pattern:
            found = _matches(path.parent, path.name)
            what = f"{path.parent.name}/ has {found} of {number} files {path.name}"
        else:
            found = _nonempty_lines(path)
            what = f"{pattern} has {found} of {number} lines"
        if found != number:
            faults.append(what)
    return faults


def _matches(folder: Path, pattern: str) -> int:
    try:
        with os.scandir(folder) as entries:
            return len(fnmatch.filter((entry.name for entry in entries), pattern))
    except OSError:
        return 0


def _nonempty_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    return len(read_short_text(path, "the split").split())


def _other_content(data_set: DataSet, folder: Path) -> list[str]:
    if data_set.content is None:
        return []
    actual = content_digest(folder, data_set.content_folders)
    if actual == data_set.content:
        return []
    return [f"the SHA-256 of the content is {actual[:16]}... instead of {data_set.content[:16]}..."]


def content_digest(folder: Path, parts: Iterable[str]) -> str:
    """Return one SHA-256, in hexadecimal digits, for the files in the folders ``parts`` of ``folder``.

    It is that of each file's path below ``folder``, a null byte and the SHA-256 of its bytes, in the order of
    the paths. So it does not depend on the archive that the files came from.
    """
    digest = hashlib.sha256()
    paths = (path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in paths):
        with path.open("rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def total_size(data_set: DataSet) -> int:
    """Return the bytes of all archives of a data set and of those that it is made from."""
    parts = sum(total_size(DATA_SETS[name]) for name in data_set.made_from)
    return parts + sum(archive.expected_bytes for archive in data_set.archives)
