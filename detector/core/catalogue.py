"""What can be downloaded: data sets and weights, with their addresses, sizes, checksums, licences and places.

Sources: addresses and MD5 of PASCAL VOC are those of ``torchvision.datasets.voc``, and the tests compare
them; addresses and SHA-256 of weights are asked of ``torchvision.models``, whose file names end with the
first digits of the SHA-256. COCO publishes no checksums: the MD5 here are those that many public projects
check, among them PaddleDetection. GitHub packs the archive of BCCD when it is asked for, so that its bytes
may change: its content has a checksum instead, computed from a copy of the data set.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from detector.core.errors import InputError, nearest

SCRIPT = "tools/download.py"
"""The command, as messages name it; see `detector.core.command_line.as_called`."""
WEIGHTS = "weights:"
"""What the name of weights begins with, in the command's arguments."""
WEIGHTS_FOLDER, DOWNLOADS_FOLDER = "weights", "downloads"
"""Folders below the root: of the weights, and of the archives of the data sets."""
CAFFE_VGG16 = "vgg16_caffe"
PROJECT_WEIGHTS = (
    "alexnet", "mobilenet_v2", "resnet18", "resnet50", "squeezenet1_0", "vgg16", CAFFE_VGG16
)  # fmt: skip
"""Weights that the shipped configs and ``model.backbone.weights: default`` of this project's networks use."""
MIB = 1 << 20
MB = 1_000_000
"""Bytes of the MB that messages and tables print."""
ANY_FOLDER = "*/"
"""What the place of a member begins with whose first folder may have any name; see `Archive`."""
CHECKSUM_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth$")
"""The end of the names of torchvision's weights files: the first digits of the SHA-256."""


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file in the web: ``urls`` are tried in this order, and it is kept under ``name``."""

    name: str
    urls: tuple[str, ...]
    page: str
    """Where a person can find the file."""
    size: int | None = None
    """Its exact number of bytes; None if unknown."""
    about: int = 0
    """An estimate of its number of bytes where ``size`` is unknown; 0 if there is none."""
    checksum: str | None = None
    """``md5:DIGITS`` or ``sha256:DIGITS``, perhaps only the first digits; None if there is none."""

    @property
    def expected_bytes(self) -> int:
        return self.size or self.about


@dataclass(frozen=True, kw_only=True)
class Archive(PublishedFile):
    """A ``.tar`` or ``.zip`` of a data set.

    ``places`` says where its members belong: a member whose name begins with the first text gets the second
    instead, below the data set's folder. Members for which there is no place are not unpacked. A first text
    that begins with `ANY_FOLDER` leaves the name of the archive's own folder open: GitHub calls it by the
    commit or by the branch that a person has chosen.
    """

    places: tuple[tuple[str, str], ...]
    unpacked: int
    """The most bytes that its members may have, and the space that they need."""


class Count(NamedTuple):
    """How many files match ``pattern`` in a folder of a data set, or how many lines a list (``.txt``) has."""

    pattern: str
    number: int


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set: ``folder`` below the root is the ``data.root`` of the configs that use it."""

    name: str
    title: str
    folder: str
    archives: tuple[Archive, ...]
    counts: tuple[Count, ...]
    licence: str
    page: str
    content: str | None = None
    """SHA-256 of the content of `content_folders`, see `detector.core.installing.content_digest`."""
    content_folders: tuple[str, ...] = ()
    made_from: tuple[str, ...] = ()
    """Names of the data sets that it consists of, if it has no archives of its own."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of a network; they are kept in ``weights/`` below the root."""

    name: str
    file: PublishedFile
    licence: str


_VOC_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/"
_VOC_LICENCE = "flickr's terms of use"


def _voc_archive(year: int, name: str, size: int, md5: str) -> Archive:
    return Archive(
        name=name,
        urls=(
            f"https://thor.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}",
            f"http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}",
            f"https://data.pjreddie.com/files/{name}",  # a mirror; the checksum decides
        ),
        page=_VOC_PAGE.format(year=year),
        size=size,
        checksum=f"md5:{md5}",
        places=((f"VOCdevkit/VOC{year}/", ""),),
        unpacked=size,
    )


def _coco_archive(path: str, size: int, md5: str, unpacked: int, place: str) -> Archive:
    return Archive(
        name=path.rpartition("/")[2],
        urls=(
            f"http://images.cocodataset.org/{path}",
            f"https://s3.amazonaws.com/images.cocodataset.org/{path}",
        ),
        page="https://cocodataset.org/#download",
        size=size,
        checksum=f"md5:{md5}",
        places=((place, place),),
        unpacked=unpacked,
    )


_VOC2007 = DataSet(
    name="voc2007",
    title="PASCAL VOC 2007, trainval and test",
    folder="VOC2007",
    archives=(
        _voc_archive(2007, "VOCtrainval_06-Nov-2007.tar", 460032000, "c52e279531787c972589f7e41ab4ae64"),
        _voc_archive(2007, "VOCtest_06-Nov-2007.tar", 451020800, "b6e924de25625d8de591ea690078ad9f"),
    ),
    counts=(
        Count("JPEGImages/*.jpg", 9963),
        Count("Annotations/*.xml", 9963),
        Count("ImageSets/Main/trainval.txt", 5011),
        Count("ImageSets/Main/test.txt", 4952),
    ),
    licence=_VOC_LICENCE,
    page=_VOC_PAGE.format(year=2007),
)
_VOC2012 = DataSet(
    name="voc2012",
    title="PASCAL VOC 2012, trainval",
    folder="VOC2012",
    archives=(
        _voc_archive(2012, "VOCtrainval_11-May-2012.tar", 1999639040, "6cd6e144f989b92b3379bac3b3de84fd"),
    ),
    counts=(
        Count("JPEGImages/*.jpg", 17125),
        Count("Annotations/*.xml", 17125),
        Count("ImageSets/Main/trainval.txt", 11540),
    ),
    licence=_VOC_LICENCE,
    page=_VOC_PAGE.format(year=2012),
)
_VOC0712 = DataSet(
    name="voc0712",
    title="trainval of VOC 2007 and 2012 together, test of VOC 2007",
    folder="VOC0712",
    archives=(),
    counts=(
        Count("JPEGImages/*.jpg", 21503),
        Count("Annotations/*.xml", 21503),
        Count("ImageSets/Main/trainval.txt", 16551),
        Count("ImageSets/Main/test.txt", 4952),
    ),
    licence=_VOC_LICENCE,
    page=_VOC_PAGE.format(year=2012),
    made_from=("voc2007", "voc2012"),
)
_COCO2017 = DataSet(
    name="coco2017",
    title="COCO 2017, train and val, with annotations",
    folder="coco",
    archives=(
        _coco_archive(
            "annotations/annotations_trainval2017.zip",
            252907541,
            "f4bbac642086de4f52a3fdda2de5fa2c",
            900 * MIB,
            "annotations/",
        ),
        _coco_archive(
            "zips/val2017.zip", 815585330, "442b8da7639aecaf257c1dceb8ba8c80", 850 * MIB, "val2017/"
        ),
        _coco_archive(
            "zips/train2017.zip", 19336861798, "cced6f7f71b7629ddf16f17bbcfab6b2", 19500 * MIB, "train2017/"
        ),
    ),
    counts=(
        Count("train2017/*.jpg", 118287),
        Count("val2017/*.jpg", 5000),
        Count("annotations/instances_*.json", 2),
    ),
    licence="CC BY 4.0; photographs: flickr licences",
    page="https://cocodataset.org/#download",
)
_BCCD_COMMIT = "862b232accac2e8d4ee2d95738d51195f0476395"
_BCCD_FOLDERS = ("Annotations", "ImageSets", "JPEGImages")
_BCCD = DataSet(
    name="bccd",
    title="BCCD, 364 photographs of blood cells",
    folder="bccd",
    archives=(
        Archive(
            name=f"BCCD_Dataset-{_BCCD_COMMIT[:8]}.zip",
            urls=(f"https://github.com/Shenggan/BCCD_Dataset/archive/{_BCCD_COMMIT}.zip",),
            page="https://github.com/Shenggan/BCCD_Dataset",
            about=9 * MIB,
            places=tuple(
                (f"{ANY_FOLDER}{source}", target)
                for source, target in [
                    *((f"BCCD/{folder}/", f"{folder}/") for folder in _BCCD_FOLDERS),
                    ("LICENSE", "LICENSE"),
                ]
            ),
            unpacked=64 * MIB,
        ),
    ),
    counts=(
        Count("JPEGImages/*.jpg", 364),
        Count("Annotations/*.xml", 364),
        Count("ImageSets/Main/trainval.txt", 292),
        Count("ImageSets/Main/test.txt", 72),
    ),
    licence="MIT",
    page="https://github.com/Shenggan/BCCD_Dataset",
    content="9358971741c3024a99b84f230651fabb7f0d28dad10b752e0732c9798b99391a",
    content_folders=_BCCD_FOLDERS,
)
DATA_SETS = {each.name: each for each in (_VOC2007, _VOC2012, _VOC0712, _COCO2017, _BCCD)}
"""The data sets by the names that the command takes."""

_OF_TORCHVISION = "BSD-3-Clause; ImageNet's terms"
_OF_SWAG = "CC BY-NC 4.0 (SWAG)"
_CAFFE = Weights(
    name=CAFFE_VGG16,
    file=PublishedFile(
        name=f"{CAFFE_VGG16}.pth",
        urls=(
            "https://web.eecs.umich.edu/~justincj/models/vgg16-00b39a1b.pth",
            "https://s3-us-west-2.amazonaws.com/jcjohns-models/vgg16-00b39a1b.pth",
        ),
        page="https://github.com/jcjohnson/pytorch-vgg",
        about=528 * MIB,
        checksum="sha256:00b39a1b",
    ),
    licence="CC BY 4.0",
)
_WITHOUT_ADDRESS = {
    "squeezenet1_0-dc_tvnorm-fba6d0e6.pth": "squeezenet1_0",
    "mobilenet_v2_features.pth": "mobilenet_v2",
}
"""Files that shipped configs name although no address has them, and the weights that replace them."""
_BY_HAND = (
    "data/cards",
    "data/coco256",
    "data/bccd_opencv_fast_proposals.npz",
    "data/voc0712_selective_search.npz",
    "data/voc2007_selective_search.npz",
    "weights/efficientnet-lite0-57934424.pth",
)
"""What else shipped configs name that no address has in the form that is needed: the ends of the paths."""
_PAGE = "docs/data_and_weights.md says where it can be had"


def find_weights(name: str) -> Weights:
    """Return the weights of a network by its name, without or with ``torchvision:``, or of vgg16_caffe.

    Of torchvision's weights these are IMAGENET1K_V1, or the default ones of a network that has no others.

    Raises:
        InputError: neither vgg16_caffe nor a network that torchvision classifies images with.
    """
    if name == CAFFE_VGG16:
        return _CAFFE
    own = name.removeprefix("torchvision:")
    known = _torchvision_names()
    if own not in known:
        raise InputError(
            f"{WEIGHTS}{name}: no such weights{nearest(own, [*known, CAFFE_VGG16])}; known: {CAFFE_VGG16} "
            "and the networks by which torchvision classifies images, such as vgg16 or resnet50"
        )
    chosen = torchvision_weights(own)
    file = chosen.url.rpartition("/")[2]
    digits = CHECKSUM_IN_NAME.search(file)
    return Weights(
        name=own,
        file=PublishedFile(
            name=file,
            urls=(chosen.url,),
            page=chosen.url,  # no page links to the file
            about=round(chosen.meta["_file_size"] * MIB),
            checksum=f"sha256:{digits[1]}" if digits else None,
        ),
        licence=_OF_SWAG if "swag" in file else _OF_TORCHVISION,
    )


def torchvision_weights(name: str) -> Any:
    """Return the entry of torchvision's enumeration of weights that this project uses for a network."""
    from torchvision import models

    weights = models.get_model_weights(name)
    return weights["IMAGENET1K_V1"] if "IMAGENET1K_V1" in weights.__members__ else weights["DEFAULT"]


@cache
def _torchvision_names() -> tuple[str, ...]:
    from torchvision import models

    return tuple(models.list_models(module=models))


def how_to_get(path: Path) -> str:
    """Return the end of a message that ``path`` is missing: the command that downloads it, or the page.

    It begins with "; " and is empty for what is not in the catalogue, or would come to lie at another place.
    """
    for place in (path, *path.parents):
        if not _is_absent_or_empty(place):
            break
        for data_set in DATA_SETS.values():
            if place.name == data_set.folder:
                return f"; {_command(data_set.name, place.parent)} downloads it"
        if "/".join(place.parts[-2:]) in _BY_HAND:
            return f"; {_PAGE}"
    if path.parent.name != WEIGHTS_FOLDER:
        return ""
    return _how_to_get_weights(path.name, path.parent.parent)


def _command(name: str, root: Path) -> str:
    return f"{SCRIPT} {name} --root {shlex.quote(str(root))}"


def _is_absent_or_empty(place: Path) -> bool:
    try:
        return not place.exists() or (place.is_dir() and not any(place.iterdir()))
    except OSError:  # a folder that may not be read
        return False


def _how_to_get_weights(file: str, root: Path) -> str:
    if file in _WITHOUT_ADDRESS:
        name = _WITHOUT_ADDRESS[file]
        return (
            f"; this file has no public address. {_command(f'{WEIGHTS}{name}', root)} downloads "
            "torchvision's weights of the same network, which model.backbone.weights=default uses; for the "
            f"file itself, {_PAGE}"
        )
    if file == _CAFFE.file.name:
        return f"; {_command(f'{WEIGHTS}{CAFFE_VGG16}', root)} downloads it"
    if CHECKSUM_IN_NAME.search(file):
        for name in _torchvision_names():
            if torchvision_weights(name).url.endswith(f"/{file}"):
                return f"; {_command(f'{WEIGHTS}{name}', root)} downloads it"
    return ""
