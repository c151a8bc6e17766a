"""Download data sets and published weights, verified, to where the configs look for them.

A name is one of --list, or weights:NAME for any network by which torchvision classifies images. What is there
already is not downloaded again; a download that was stopped continues. The exit status is 1 if a name could
not be downloaded, 2 if the command is wrong or the disk has too little space.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from detector.commands import cli
from detector.core import installing
from detector.core.catalogue import (
    DATA_SETS,
    MB,
    PROJECT_WEIGHTS,
    WEIGHTS,
    Archive,
    PublishedFile,
    find_weights,
)
from detector.core.download import require_space
from detector.core.errors import InputError, nearest
from detector.core.progress import note, show


@dataclass(frozen=True, kw_only=True)
class Item:
    """A data set or weights: what the command says of it, and how it is installed."""

    name: str
    title: str
    licence: str
    path: Path
    size: int
    needs: int
    there: bool
    files: tuple[tuple[PublishedFile, Path], ...]
    install: Callable[[], tuple[Path, bool]]


def main() -> int:
    arguments = parse()
    root = Path(arguments.root)
    if arguments.list:
        names = [*DATA_SETS, *(f"{WEIGHTS}{name}" for name in PROJECT_WEIGHTS)]
        show_list([find(name, root) for name in names], as_json=arguments.json)
        return 0
    items = [find(name, root, remove_archives=arguments.remove_archives) for name in arguments.names]
    if arguments.dry_run:
        show_plan(items, as_json=arguments.json)
        return 0
    require_space(root, sum(item.needs for item in items), ", ".join(item.name for item in items))
    results = [obtain(item) for item in items]
    if arguments.json:
        show(json.dumps(results, indent=1))
    return int(any(result["state"] == "failed" for result in results))


def find(name: str, root: Path, *, remove_archives: bool = False) -> Item:
    """Return what a name of the command line means below ``root``. Raises InputError for an unknown one."""
    if name.startswith(WEIGHTS):
        weights = find_weights(name.removeprefix(WEIGHTS))
        path = installing.weights_path(weights, root)
        return Item(
            name=f"{WEIGHTS}{weights.name}",
            title=f"{installing.WEIGHTS_FOLDER}/{weights.file.name}",
            licence=weights.licence,
            path=path,
            size=weights.file.expected_bytes,
            needs=installing.weights_bytes_needed(weights, root),
            there=path.is_file(),
            files=((weights.file, path),),
            install=lambda: installing.install_weights(weights, root),
        )
    if name not in DATA_SETS:
        known = f"known: {', '.join(DATA_SETS)} and {WEIGHTS}NAME; --list prints them"
        raise InputError(f"{name}: no such data set{nearest(name, DATA_SETS)}; {known}")
    data_set = DATA_SETS[name]
    parts = [data_set, *(DATA_SETS[part] for part in data_set.made_from)]
    return Item(
        name=name,
        title=data_set.title,
        licence=data_set.licence,
        path=root / data_set.folder,
        size=installing.total_size(data_set),
        needs=installing.bytes_needed(data_set, root),
        there=not installing.what_is_missing(data_set, root),
        files=tuple(
            (archive, installing.archive_path(archive, root)) for part in parts for archive in part.archives
        ),
        install=lambda: installing.install(data_set, root, remove_archives=remove_archives),
    )


def obtain(item: Item) -> dict[str, Any]:
    """Install an item and return what became of it; a fault is printed and does not stop the others."""
    try:
        path, there = item.install()
    except InputError as error:
        note(f"error: {item.name}: {error}")
        return {"name": item.name, "state": "failed", "path": str(item.path), "reason": str(error)}
    state = "was there" if there else "downloaded"
    note(f"{item.name}: {path} {'was there already' if there else 'is there, verified'}")
    return {"name": item.name, "state": state, "path": str(path)}


def show_list(items: Sequence[Item], *, as_json: bool) -> None:
    """Print what can be downloaded."""
    if as_json:
        show(json.dumps([_described(item) for item in items], indent=1))
        return
    table = Table()
    table.add_column("name", no_wrap=True)
    for column in ("what", "size", "there", "licence"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for item in items:
        cells = (item.name, item.title, _size(item), "yes" if item.there else "no", item.licence)
        table.add_row(*map(Text, cells))
    show(table)
    show(f"and {WEIGHTS}NAME of any other network by which torchvision classifies images")


def show_plan(items: Sequence[Item], *, as_json: bool) -> None:
    """Print what would be downloaded from where."""
    if as_json:
        show(json.dumps([_described(item) for item in items], indent=1))
        return
    for item in items:
        state = "is there already" if item.there else f"needs {-(-item.needs // MB)} MB on the disk"
        show(f"{item.name}: {item.path} {state}; {item.licence}")
        for file, path in () if item.there else item.files:
            show(f"  {file.urls[0]}\n    to {path}{' (there)' if path.exists() else ''}; {_check(file)}")


def _described(item: Item) -> dict[str, Any]:
    return {
        "name": item.name,
        "title": item.title,
        "licence": item.licence,
        "path": str(item.path),
        "there": item.there,
        "download_bytes": item.size,
        "needed_bytes": item.needs,
        "files": [
            {
                "urls": list(file.urls),
                "path": str(path),
                "bytes": file.size,
                "about_bytes": file.expected_bytes,
                "checksum": file.checksum,
                "page": file.page,
            }
            for file, path in item.files
        ],
    }


def _size(item: Item) -> str:
    return f"{item.size / MB:.0f} MB"


def _check(file: PublishedFile) -> str:
    if file.checksum:
        return f"checked by {file.checksum}"
    return "its content is checked" if isinstance(file, Archive) else "it has no checksum"


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/download.py voc2007 weights:vgg16 --root data\n  python tools/download.py --list",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a data set, or weights:NETWORK")
    parser.add_argument("--root", default="data", help="the folder for all of it (default: data)")
    parser.add_argument("--list", action="store_true", help="print what there is, and end")
    parser.add_argument("--dry-run", action="store_true", help="print what would be downloaded, and end")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_argument(
        "--remove-archives",
        action="store_true",
        help="remove the archives of a data set after unpacking them",
    )
    arguments = parser.parse_args()
    if bool(arguments.names) == arguments.list:
        parser.error("give names, or --list")
    return arguments
