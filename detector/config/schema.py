"""The typed schema of an experiment: every key with its type, range, default and meaning.

"Paper" is Girshick, "Fast R-CNN" (2015), "release" the code published with it. A config is frozen, accepts
no other keys, and does not convert types. Whatever can be checked without reading a file is checked here.

Where one key decides which others exist (``model.pool.kind``, ``proposals.method``, the ``kind`` of a stage),
each choice is a subclass of a common base (`Kind`), and a key of another choice is an error.

The text below a key is its description in ``docs/configuration.md`` and ``configs/schema.json``, which
`detector.config.reference` writes; a key that holds a section has the description of the section.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from detector.core.errors import InputError, nearest
from detector.core.libraries import LIBRARIES, check_network_name

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
"""Length of a side of the network's input; an input of 8192 x 8192 takes 800 MB before any layer."""
_SEVERAL = Field(min_length=1, max_length=64)
Scales = Annotated[tuple[Pixels, ...], _SEVERAL]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Resize = Literal["shorter", "square", "none"]
Precision = Literal["float32", "bfloat16", "float16"]
TestPrecision = Literal[Precision, "int8"]
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class KnownOrOwn:
    """The values of a text: one of ``choices``, or ``module:Name``, which is code of the user."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        own = {"type": "string", "pattern": f"^{_FUNCTION.pattern}$"}
        return {"anyOf": [{"type": "string", "enum": list(self.choices)}, own]}

    def _check(self, value: str) -> str:
        if value in self.choices or _FUNCTION.fullmatch(value):
            return value
        *first, last = map(repr, self.choices)
        raise ValueError(
            f"expected {', '.join(first)} or {last}, or module:Name for code of yours"
            f"{nearest(value, self.choices)}"
        )


def is_own(name: str | None) -> bool:
    """Return whether the value of a key with `KnownOrOwn` names code of the user."""
    return name is not None and ":" in name


class Section(BaseModel):
    """Base of all sections: immutable, strict about names, no silent conversion of types, no infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Kind(Section):
    """Base of sections that a key chooses from; sections with the same direct base are alternatives."""

    choice: ClassVar[str]
    """The key and the value that choose this section, for messages."""

    def __init_subclass__(cls, choice: str = "", **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.choice = choice

    @classmethod
    def kinds_with(cls, name: str) -> list[type[Kind]]:
        """Return the alternatives to this section that have the key ``name``."""
        base: type[Kind] = cls.__mro__[1]
        return [other for other in base.__subclasses__() if other is not cls and name in other.model_fields]

    @model_validator(mode="before")
    @classmethod
    def _drop_defaults_of_other_kinds(cls, values: Any) -> Any:
        """Older checkpoints have the keys of all kinds: those of other kinds are ignored at their default."""
        if not isinstance(values, dict):
            return values
        elsewhere = {name: cls.kinds_with(name) for name in values if name not in cls.model_fields}
        return {
            name: value
            for name, value in values.items()
            if value not in [_plain_default(kind, name) for kind in elsewhere.get(name, [])]
        }


def _plain_default(section: type[Section], name: str) -> Any:
    default = section.model_fields[name].get_default(call_default_factory=True)
    return dict(default) if isinstance(default, Section) else default


def sections_of(annotation: Any) -> dict[str, type[Section]]:
    """Return the sections that a key may hold: by tag where there are kinds, else one under ``""``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {"": annotation}
    inner: dict[str, type[Section]] = {}
    for part in get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]:
        inner |= sections_of(part)
    tags = [item.tag for item in getattr(annotation, "__metadata__", ()) if isinstance(item, Tag)]
    return {tag: section for tag in tags for section in inner.values()} if tags else inner


def _kind_of(default: str | None) -> Discriminator:
    """Return a discriminator that reads ``kind``; ``default`` is the kind of a config without this key."""

    def kind_of(values: Any) -> str | None:
        if isinstance(values, Mapping):
            return str(values["kind"]) if "kind" in values else default
        return getattr(values, "kind", None)

    return Discriminator(kind_of)


class GenerateConfig(Section):
    """How to make the images of ``data.root`` where they are missing; for the quick start and lessons.

    They are made in a folder that the shipped configs name (``data/quickstart``, ``data/arrangements``), and
    in a folder of another name only if it exists and is empty. Leave this null for a data set of your own.
    """

    kind: Literal["scenes", "arrangements"] = "scenes"
    """What the classes are. "scenes": the shapes in an image. "arrangements": how two shapes lie relative to
    each other; a mirrored image then has another class: see ``train.flip``."""
    train_images: int = Field(default=240, ge=1, le=100_000)
    """Number of training images."""
    test_images: int = Field(default=80, ge=1, le=100_000)
    """Number of test images."""
    seed: Seed = 0
    """Another seed makes other images."""


_NAMES = {
    "coco": ("annotations/instances_{split}.json", "{split}"),
    "yolo": ("data.yaml", "."),
    "labelme": (".", "."),
    "labelstudio": ("{split}.json", "."),
}
"""The defaults of ``data.annotations`` and ``data.images`` of the formats that differ from VOC's."""


class DataConfig(Section):
    """The data set, how it is divided into splits, and how faulty annotations are treated."""

    format: Annotated[str, KnownOrOwn("voc", "coco", "yolo", "labelme", "labelstudio")] = "voc"
    """How objects are annotated. "voc": one XML file per image. "coco": one JSON file for all images. "yolo":
    a data.yaml, and one text file of labels per image. "labelme": one JSON file per image, of LabelMe or
    X-AnyLabeling. "labelstudio": one JSON file, exported by Label Studio in the format JSON.
    docs/annotations.md describes each. "module:Name": a function of yours that takes ``root`` and the name of
    a split, and yields, per image, its path below the root and its objects; see docs/extend.md."""
    root: str
    """Folder of the data set. A relative path starts at the working directory."""
    annotations: str = "Annotations"
    """voc: the folder of the XML files. coco: the JSON file, by default
    ``annotations/instances_{split}.json``. yolo: the YAML file, by default ``data.yaml``. labelme: the folder
    of the JSON files, by default ``.``. labelstudio: the JSON file, by default ``{split}.json``. Here and in
    ``images``, ``{split}`` stands for the split's name. Relative to ``root``."""
    images: str = "JPEGImages"
    """The folder of the images, relative to ``root``; with coco the default is ``{split}``, with labelme and
    labelstudio it is ``.``. With yolo the YAML file names the images."""
    splits: str | None = "ImageSets/Main"
    """voc and labelme: the folder, relative to ``root``, with one text file per split. null takes every
    annotated image for every split."""
    split_ratio: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] | None = None
    """Divides all annotated images at random instead of reading split files, for instance
    ``{train: 0.8, test: 0.2}``: each split's share, together at most 1. null reads split files."""
    split_seed: Seed = 0
    """Another seed divides the images in another way. The top-level ``seed`` has no influence on it."""
    leave_out: str | None = None
    """A text file with the paths, relative to ``root``, of images to leave out of every split, one per line,
    as ``tools/check_data.py --fix-list`` writes it. An id works too where only one image has it. null leaves
    no image out."""
    train_split: str = "trainval"
    """Name of the split that is trained on."""
    test_split: str = "test"
    """Name of the split that the finished network is scored on."""
    val_split: str | None = None
    """A split of images that are not trained on: ``train.evaluate_every`` chooses ``best.pt`` on it, and the
    score threshold that ``tools/demo.py`` uses is chosen on it. null takes the split that usually goes with a
    ``train_split`` such as "train" or "train2017": one with "val" or "valid" in its name, if the data set has
    one and it is not the test split. An image that is also trained on is an error. If there is no such split,
    see ``train.validation_fraction``."""
    classes: tuple[str, ...] | Literal["voc"] | None = None
    """Class names; "voc" stands for the twenty classes of PASCAL VOC. null takes the names that occur in the
    annotations."""
    other_classes: Literal["error", "ignore"] = "error"
    """What to do with objects of a class that ``classes`` does not name: stop with an error, or leave them
    out of training and evaluation."""
    attributes: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)] | None = None
    """Names of attributes of objects that count as further labels, for instance ``[colour, occluded]``: an
    object whose colour is red then has the label "colour=red" besides its class, and one with a flag has the
    flag's name. voc: ``<attributes>`` as CVAT writes them. coco: ``attributes`` of an annotation. labelme:
    flags and attributes of a shape. labelstudio: choices, ratings and numbers per region. An object with two
    labels counts once for each. null reads no attributes."""
    first_pixel: Literal[0, 1] = 1
    """voc: the coordinate of an image's first pixel in the XML files and in VOC result files. The standard
    counts from 1; some tools write coordinates that count from 0."""
    difficult: Literal["train", "skip"] = "train"
    """Whether objects marked ``difficult`` are trained on (the paper does) or skipped. Evaluation always
    follows the VOC rules."""
    invalid_boxes: Literal["drop", "clip", "error"] = "drop"
    """What to do with boxes that would corrupt training: swapped corners, a side shorter than
    ``min_box_size``, or outside the image."""
    min_box_size: float = Field(default=2.0, ge=0.0)
    """Shortest valid side of an annotated box, in pixels of the original image."""
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Number of threads that load images ahead; with 0 each batch is loaded when it is needed. null chooses
    from the number of cores and the device. Results are the same with any number."""
    generate: GenerateConfig | None = None
    """Makes a small data set where ``root`` has none; null for a data set of your own."""

    @model_validator(mode="before")
    @classmethod
    def _formats_have_names_of_their_own(cls, values: Any) -> Any:
        file_format = str(values.get("format")) if isinstance(values, dict) else "voc"
        if file_format not in _NAMES and not is_own(file_format):
            return values
        annotations, images = _NAMES.get(file_format, (".", "."))
        return {"annotations": annotations, "images": images, **values}

    @model_validator(mode="after")
    def _keys_fit_the_format(self) -> DataConfig:
        own_splits = self.splits not in (None, DataConfig.model_fields["splits"].default)
        if self.format in ("coco", "labelstudio") and own_splits:
            raise ValueError("data.splits names folders of data.format: voc; name the JSON of each split")
        if self.format == "yolo" and own_splits:
            raise ValueError("data.splits names folders of data.format: voc; data.yaml names the splits")
        if self.format == "yolo" and self.images != _NAMES["yolo"][1]:
            raise ValueError("data.images is not for data.format: yolo; data.yaml names the images")
        if self.format == "yolo" and self.attributes:
            raise ValueError("data.attributes is not for data.format: yolo, whose labels have none")
        if is_own(self.format):
            self._check_own_format(own_splits=own_splits)
        if self.format == "coco" and self.first_pixel == 0:
            raise ValueError("data.first_pixel is for data.format: voc; COCO's boxes always count from 0")
        if self.format != "voc" and self.first_pixel == 0:
            raise ValueError("data.first_pixel is for data.format: voc; the others always count from 0")
        return self

    def _check_own_format(self, *, own_splits: bool) -> None:
        unused = {
            "annotations": self.annotations != ".",
            "images": self.images != ".",
            "splits": own_splits,
            "attributes": bool(self.attributes),
        }
        for key, given in unused.items():
            if given:
                raise ValueError(
                    f"data.{key} is not for data.format: {self.format}, a function of yours; leave it out"
                )

    @model_validator(mode="after")
    def _splits_are_possible(self) -> DataConfig:
        if self.split_ratio is not None:
            if "{split}" in self.annotations:
                raise ValueError(
                    "data.split_ratio divides one set, but data.annotations has one file per {split}; drop "
                    "one of the two"
                )
            if sum(self.split_ratio.values()) > 1 + 1e-9:
                raise ValueError("data.split_ratio must not add up to more than 1")
            for key in ("train_split", "test_split", "val_split"):
                if getattr(self, key) not in (None, *self.split_ratio):
                    raise ValueError(
                        f"data.{key}: {getattr(self, key)} is not in data.split_ratio; set {key}"
                    )
        if self.val_split is not None and self.val_split in (self.train_split, self.test_split):
            raise ValueError(
                f"data.val_split: {self.val_split} is the training or the test split as well; name one of "
                "other images, or leave it out and set train.validation_fraction"
            )
        return self

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> DataConfig:
        if self.other_classes == "ignore" and self.classes is None:
            raise ValueError("data.other_classes: ignore needs the names of data.classes; add them")
        names = self.classes if isinstance(self.classes, tuple) else ("voc",)
        if not names or len(set(names)) != len(names):
            raise ValueError("data.classes must name at least one class, and none twice")
        return self


MOST_PROPOSALS = 200_000
"""The most proposals of one image that a config can ask for; no method makes as many."""
MAX_OPTIONS = 100_000
"""Characters of ``proposals.options``, written as JSON."""
METHODS = ("dense", "selective_search")


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    try:
        length = len(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise ValueError(
            "proposals.options may hold only numbers, text, true, false, null, and lists or mappings of these"
        ) from None
    if length > MAX_OPTIONS:
        raise ValueError(f"proposals.options is over {MAX_OPTIONS} characters long")
    return options


Options = Annotated[dict[str, Any], AfterValidator(_check_options)]


class ProposalsConfig(Kind):
    """Where the proposals come from, and which of them are used.

    A ``method`` makes them, or a ``file`` of a ``format`` holds them. Detection needs one of the two,
    classification needs none.
    """

    method: str | None = None
    """"dense": windows on a regular grid. "selective_search": boxes around regions of similar colour and
    texture. "module:function": a function of yours that takes an image (H, W, 3) uint8 RGB and returns boxes
    (P, 4), or boxes and scores (P,). null: a ``file`` is read, or there are no proposals."""
    file: str | dict[str, str] | None = None
    """A proposal file, or the folder of a ProposalStore; a mapping gives each split its own. null: a
    ``method`` makes the proposals, or there are none."""
    format: str | None = None
    """The format of ``file``; null without a file."""
    top_k_train: int = Field(default=2000, ge=1, le=MOST_PROPOSALS)
    """Proposals used per training image, the best-ranked first (paper: about 2000)."""
    top_k_test: int = Field(default=2000, ge=1, le=MOST_PROPOSALS)
    """Proposals used per test image, the best-ranked first (paper: about 2000)."""
    min_size: float = Field(default=0.0, ge=0.0)
    """Proposals with a side shorter than this are not used; in pixels of the original image."""
    missing: Literal["error", "skip", "full_image"] = "error"
    """What to do with images that have no proposals. "error": stop. "skip": do not train on them; evaluation
    counts them without detections. "full_image": give them one box, the whole image."""
    faults: Literal["error", "skip", "full_image"] = "error"
    """What to do with images that have no boxes in the file, or boxes that are not finite or leave the image:
    the same choices as for ``missing``."""

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, values: Any) -> Any:
        if isinstance(values, dict):
            method, file, file_format = (values.get(name) for name in ("method", "file", "format"))
            if method is not None and file is not None:
                raise ValueError("proposals needs either 'file' with 'format', or 'method', and not both")
            if (file is None) != (file_format is None):
                raise ValueError("proposals.file and proposals.format go together: give both or neither")
        return values


class NoProposals(ProposalsConfig, choice="proposals without method and file"):
    """No proposals: for classification, which pools whole images."""

    method: None = None
    file: None = None
    format: None = None


BoxConvention = Literal[
    "auto",
    "xyxy",
    "xyxy_inclusive",
    "xyxy_inclusive_1",
    "yxyx",
    "yxyx_inclusive",
    "yxyx_inclusive_1",
    "xywh",
    "xywh_normalized",
    "cxcywh_normalized",
    "xywh_percent",
]


FILE_FORMATS = (
    "mat",
    "detectron",
    "detectron2",
    "mmdetection",
    "npz",
    "npy",
    "coco",
    "text",
    "coco_annotations",
    "sam",
    "labels",
    "cellpose",
    "megadetector",
    "yolo",
    "voc",
    "labelme",
    "labelstudio",
    "store",
)
"""The formats of proposal files that this project reads."""


class FileProposals(ProposalsConfig, choice="proposals.file"):
    """Proposals that a file or a ProposalStore holds."""

    method: None = None
    file: str | dict[str, str]
    format: Annotated[str, KnownOrOwn(*FILE_FORMATS)]
    """The format of ``file``; data/README.md describes each. "store" is the folder of a ProposalStore.
    "module:Name" is a function of yours that takes the path and yields, per image, its name and its boxes
    (P, 4), as docs/extend.md describes; a change of its code is not noticed where the file has been converted
    already."""
    convention: BoxConvention | None = None
    """How the file writes a box: the order of the numbers, whether the last pixel is included, ``_1`` where
    pixels count from 1, ``_normalized`` and ``_percent`` where boxes are parts of the image. null takes the
    usual one of the format, "auto" compares the boxes with the annotations. A store has only one
    convention."""

    @model_validator(mode="after")
    def _store_has_one_convention(self) -> FileProposals:
        if self.convention is not None and self.format == "store":
            raise ValueError("proposals.convention only applies to a proposals.file that is not a store")
        return self


class DenseProposals(ProposalsConfig, choice="proposals.method dense"):
    """Windows of several sizes and shapes on a regular grid."""

    method: Literal["dense"]
    file: None = None
    format: None = None
    scales: Annotated[tuple[Annotated[float, Field(ge=0.01, le=10.0)], ...], _SEVERAL] | None = None
    """Sides of the windows as fractions of the image's shorter side; null takes the method's own."""
    aspects: Annotated[tuple[Annotated[float, Field(ge=0.001, le=1000.0)], ...], _SEVERAL] | None = None
    """Widths of the windows divided by their heights; null takes the method's own."""
    stride_fraction: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """Step between windows as a fraction of their side; null takes the method's own."""
    max_proposals: Annotated[int, Field(ge=1, le=MOST_PROPOSALS)] | None = None
    """Largest number of proposals made per image, the best-ranked; null sets no limit."""


class SelectiveSearchProposals(ProposalsConfig, choice="proposals.method selective_search"):
    """Boxes around regions of similar colour and texture: selective search (Uijlings et al., 2013)."""

    method: Literal["selective_search"]
    file: None = None
    format: None = None
    mode: str | None = None
    """Name of a preset; null is "fast"."""
    seed: int | None = None
    """Seed of the ranking; null is 0."""
    width: Pixels | None = None
    """Search each image resized to this width in pixels; null searches it at its own size, or smaller where
    it is large."""
    max_proposals: Annotated[int, Field(ge=1, le=MOST_PROPOSALS)] | None = None
    """Largest number of proposals made per image, the best-ranked; null sets no limit."""
    time_limit: Positive | None = None
    """Time limit per image in seconds; an image that takes longer gets no proposals. null sets no limit."""
    options: Options = Field(default_factory=dict)
    """Values that replace those of the preset, such as ``{min_side: 8}``. Other options make other
    proposals, which are stored separately."""

    @model_validator(mode="after")
    def _search_is_possible(self) -> SelectiveSearchProposals:
        own: dict[str, Any] = {"mode": self.mode, "width": self.width}
        given = {name: value for name, value in own.items() if value is not None} | self.options
        if not given:
            return self
        # Importing it loads the native libraries, which a config without these keys does not need.
        from detector.ops.selective_search_config import SelectiveSearchConfig, as_config

        try:
            preset = asdict(as_config(given.get("mode", "fast")))
        except InputError as error:
            raise ValueError(f"proposals.mode: {error}") from None
        valid = {*preset, "mode", "seed", "max_proposals"}  # these may be given in either place
        for name in self.options:
            if name not in valid:
                raise ValueError(
                    f"proposals.options: selective search has no option {name!r}{nearest(name, valid)}; it "
                    f"has {', '.join(sorted(valid))}"
                )
        for name, lowest in (("seed", 0), ("max_proposals", 1)):
            value = self.options.get(name)
            if value is not None and (type(value) is not int or value < lowest):
                raise ValueError(
                    f"proposals.options.{name} = {value!r:.80}: expected a whole number of at least {lowest}"
                )
        try:
            SelectiveSearchConfig(**{name: given.get(name, value) for name, value in preset.items()})
        except InputError as error:
            raise ValueError(f"proposals.options: {error}") from None
        return self


class FunctionProposals(ProposalsConfig, choice="proposals.method module:function"):
    """Proposals that a function of yours makes."""

    method: str
    file: None = None
    format: None = None
    time_limit: Positive | None = None
    """Time limit per image in seconds; an image that takes longer gets no proposals. null sets no limit."""
    options: Options = Field(default_factory=dict)
    """Keyword arguments of the function. Other options make other proposals, which are stored separately; a
    change of the function's code is not noticed, so give it a version number here."""

    @field_validator("method")
    @classmethod
    def _is_a_function_name(cls, method: str) -> str:
        if not _FUNCTION.fullmatch(method):
            raise ValueError(
                f"proposals.method {method!r} is unknown{nearest(method, METHODS)}; use one of "
                f"{', '.join(METHODS)}, or module:function for a function of yours"
            )
        return method


ProposalsWithOptions = SelectiveSearchProposals | FunctionProposals
"""The methods that have ``options`` and a ``time_limit``."""


def _proposals_kind(values: Any) -> str | None:
    if not isinstance(values, Mapping | ProposalsConfig):
        return None
    given = values if isinstance(values, Mapping) else dict(values)
    method = given.get("method")
    if method is not None:
        return method if method in METHODS else "module:function"
    return "none" if given.get("file") is None and given.get("format") is None else "file"


Proposals = Annotated[
    Annotated[NoProposals, Tag("none")]
    | Annotated[FileProposals, Tag("file")]
    | Annotated[DenseProposals, Tag("dense")]
    | Annotated[SelectiveSearchProposals, Tag("selective_search")]
    | Annotated[FunctionProposals, Tag("module:function")],
    Discriminator(_proposals_kind),
]


NETWORKS = ("vgg16", "alexnet", "caffenet", "resnet18", "resnet50", "squeezenet1_0", "small")
"""The networks of this project; those of libraries and of users have a colon in their names."""


class BackboneConfig(Section):
    """The convolutions: which network, up to which block, and where their weights come from."""

    name: str
    """The network: "vgg16", "alexnet", "caffenet", "resnet18", "resnet50", "squeezenet1_0" or "small";
    "torchvision:NAME", a classification network of torchvision, such as "torchvision:mobilenet_v2";
    "timm:NAME", a network of the package timm; or "module:function", a function of yours without parameters
    that returns a ``torch.nn.Module``, which turns images (N, 3, H, W) into a map (N, C, h, w). Of a vision
    transformer, the patch tokens are the map."""
    stage: str | None = None
    """Name of the last block that is kept, such as "fire8" or "layer3"; an unknown name is answered with a
    list of them. null keeps all up to the last convolution (ResNet: C4), or up to the last block of stride 16
    in networks with a colon in their name."""
    weights: str | None = None
    """A state dict file (``.pth`` or ``.safetensors``) with torchvision's, timm's or Caffe's names; null
    starts from random weights. "default" stands for the ImageNet weights that torchvision (IMAGENET1K_V1,
    where there are several) or timm publishes for this network: the first of these files that exists in
    ``data/weights/``: the published name (for instance ``resnet18-f37072fd.pth``), for squeezenet1_0 also
    ``squeezenet1_0-dc_tvnorm-fba6d0e6.pth``, and ``NAME.pth`` or ``NAME.safetensors`` with the network's name
    (without its library). If there is none, the published file is downloaded there and its checksum verified.
    A file whose name really is "default" is written ``./default``."""
    allow_partial: bool = False
    """Accept a weights file that does not fit completely: take what fits and start the rest from random
    weights."""
    convention: Literal["torchvision", "caffe"] = "torchvision"
    """The input that the weights expect. "torchvision": RGB in [0, 1], normalised with mean and standard
    deviation. "caffe": BGR in 0..255 minus a mean (102.9801, 115.9465, 122.7717, as in the release)."""
    pixel_mean: tuple[float, float, float] | None = None
    """Another mean, in the channel order and range of ``convention``; null is the convention's own, or that
    of timm's published weights for a network of timm."""
    pixel_std: tuple[Positive, Positive, Positive] | None = None
    """Another standard deviation, by which pixels are divided after the mean is subtracted, in the channel
    order and range of ``convention``; null as for ``pixel_mean``. (x - 127) / 128 is ``pixel_mean`` 127 / 255
    and ``pixel_std`` 128 / 255 in the convention "torchvision"."""
    freeze: int | Literal["none", "all"] = 0
    """How many of the first blocks do not train, or "none", or "all"."""
    feature_scale: Positive = 1.0
    """Factor on the features. It brings the activations of other networks to the magnitude that a new head
    expects."""
    reduce_channels: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Output channels of a 1x1 convolution after the features, which makes fc6 cheaper; null adds none (as
    in the paper)."""

    @field_validator("name")
    @classmethod
    def _is_a_network(cls, name: str) -> str:
        if name not in NETWORKS and not _FUNCTION.fullmatch(name):
            raise ValueError(
                f"expected {', '.join(NETWORKS)}, torchvision:NAME, timm:NAME, or module:function for a "
                f"function of yours{nearest(name, NETWORKS)}"
            )
        try:
            check_network_name(name)
        except InputError as error:
            raise ValueError(str(error)) from None
        return name

    @property
    def function(self) -> str | None:
        """The function of the user that ``name`` names; None for other networks."""
        return self.name if ":" in self.name and self.name.partition(":")[0] not in LIBRARIES else None

    @model_validator(mode="after")
    def _default_weights_exist(self) -> BackboneConfig:
        if self.weights == "default" and (self.name in ("caffenet", "small") or self.function is not None):
            raise ValueError(
                f"model.backbone.weights: default: {self.name} has no published weights; take alexnet, "
                "resnet18, resnet50, squeezenet1_0, vgg16, torchvision:NAME or timm:NAME, or name a file"
            )
        if self.weights == "default" and self.convention != "torchvision":
            raise ValueError(
                "model.backbone.weights: default means torchvision's weights; leave out "
                "model.backbone.convention"
            )
        return self


Cells = Annotated[int, Field(ge=1, le=128)]
"""Bins or cells along one side of what is pooled."""
MAX_CROPS = 2**30
"""Pixels of all crops that go through the network at a time."""


class PoolConfig(Kind):
    """How a region becomes a row of fixed length: RoI pooling, RoIAlign, a pyramid or a crop."""

    kind: str
    """"roi": Fast R-CNN's RoI pooling. "roi_align": Mask R-CNN's, which rounds nothing. "spp": SPP-net's
    pyramid, also what a classifier pools whole images with. "warp" and "crop": R-CNN's; each region is cut
    out of the image, resized to ``crop_size``, and passes through the convolutions by itself.
    "module:Name": a class or function of yours. A config without this key means "roi"."""


MaskUse = Literal["none", "cells", "weighted"]


class RoIPoolConfig(PoolConfig, choice="model.pool.kind roi"):
    """Fast R-CNN's RoI pooling (paper, section 2.1)."""

    kind: Literal["roi"] = "roi"
    output_size: Cells = 7
    """Bins per side (paper: 7 for VGG16, 6 for AlexNet)."""
    center: Literal["caffe", "network"] | None = None
    """Where a cell of the feature map lies in the image: "caffe" puts cell k at k * stride, as the release
    does, "network" at the centre of its receptive field. null is "caffe", as published."""
    mask: MaskUse = "none"
    """How masks of regions are used, where the proposals have them: "none" pools boxes; "cells" takes the
    maximum over the cells of a bin whose centre the mask covers; "weighted" takes the average, weighted by
    how much of each cell the mask covers. Regions without a mask, or with one that covers no cell's centre,
    are pooled as boxes, by the same maximum or average."""


class RoIAlignPoolConfig(PoolConfig, choice="model.pool.kind roi_align"):
    """RoIAlign (Mask R-CNN, He et al. 2017, section 3): torchvision's operator with ``aligned=True``."""

    kind: Literal["roi_align"]
    output_size: Cells = 7
    """Bins per side (Mask R-CNN: 7 for boxes)."""
    sampling_ratio: int = Field(default=0, ge=0, le=32)
    """Samples per bin along each side; 0 takes as many as the bin has cells, rounded up, as detectron2
    does."""
    center: Literal["aligned", "network"] | None = None
    """Where a cell of the feature map lies in the image: "aligned" puts the centre of cell k at
    (k + 0.5) * stride, "network" at the centre of its receptive field. null is "aligned", as published."""
    mask: MaskUse = "none"
    """As for roi, except that "cells" takes the maximum over the samples of a bin that lie in covered cells,
    and that "weighted" also weights each cell as the samples do."""


class SPPPoolConfig(PoolConfig, choice="model.pool.kind spp"):
    """SPP-net's spatial pyramid (He et al., 2014), of regions or, for classification, of whole images."""

    kind: Literal["spp"]
    levels: Annotated[tuple[Cells, ...], Field(min_length=1, max_length=16)] = (6, 3, 2, 1)
    """Bins per side of each grid of the pyramid (SPP-net's release: 6, 3, 2, 1)."""
    reduction: Literal["max", "avg"] = "max"
    """Whether a bin keeps the maximum or the average of its cells."""
    rule: Literal["adaptive", "sliding"] = "adaptive"
    """classification: "adaptive" bins fit a map of any size; "sliding" has windows of ceil(a/n) cells every
    floor(a/n) cells, as the paper trains on a map of a x a cells."""
    window: Literal["spp", "roi"] = "spp"
    """detection: which cells a box covers: by SPP-net's projection, or rounded as RoI pooling does."""
    center: Literal["caffe", "network"] | None = None
    """detection: where a cell of the feature map lies in the image: "caffe" puts cell k at k * stride,
    "network" at the centre of its receptive field. null is "network", as published."""
    shrink: float | None = None
    """detection: by how many input pixels the projection moves the edges of a box inwards; null is half a
    stride."""
    mask: MaskUse = "none"
    """detection: as for roi, in all grids. "cells" and "weighted" take the place of ``reduction``."""


class CropPoolConfig(PoolConfig, choice="model.pool.kind warp or crop"):
    """R-CNN's regions, cut out of the image: "warp" ignores a region's proportions, "crop" keeps them."""

    kind: Literal["warp", "crop"] = "warp"
    output_size: Cells = 7
    """Cells per side to which the feature map of a crop is pooled before fc6."""
    crop_size: int = Field(default=224, ge=1, le=2048)
    """Side of the network's input in pixels (R-CNN: 227)."""
    context: int = Field(default=16, ge=0)
    """How many pixels of ``crop_size``, on each side, show the surroundings of the region (R-CNN: 16)."""

    @model_validator(mode="after")
    def _region_has_room(self) -> CropPoolConfig:
        if 2 * self.context >= self.crop_size:
            raise ValueError("model.pool.context leaves nothing of model.pool.crop_size for the region")
        return self


class FunctionPoolConfig(PoolConfig, choice="model.pool.kind module:Name"):
    """A region pool of yours: a ``torch.nn.Module`` with ``out_features`` and ``windows``, called with
    (levels, rois, roi_levels, masks), that returns a row per region."""

    kind: str
    options: Options = Field(default_factory=dict)
    """Keyword arguments of the class or function, besides ``channels``, ``strides`` and ``centers``."""

    @field_validator("kind")
    @classmethod
    def _is_a_name(cls, kind: str) -> str:
        if not _FUNCTION.fullmatch(kind):
            raise ValueError(
                f"model.pool.kind {kind!r} is unknown{nearest(kind, POOLS)}; use one of {', '.join(POOLS)}, "
                "or module:Name for a pool of yours"
            )
        return kind


POOLS = ("roi", "roi_align", "spp", "warp", "crop")
"""The pools of this project."""


def _pool_kind(values: Any) -> str | None:
    kind = values.get("kind", "roi") if isinstance(values, Mapping) else getattr(values, "kind", None)
    return kind if kind is None or kind in POOLS else "module:Name"


Pool = Annotated[
    Annotated[RoIPoolConfig, Tag("roi")]
    | Annotated[RoIAlignPoolConfig, Tag("roi_align")]
    | Annotated[SPPPoolConfig, Tag("spp")]
    | Annotated[CropPoolConfig, Tag("warp")]
    | Annotated[CropPoolConfig, Tag("crop")]
    | Annotated[FunctionPoolConfig, Tag("module:Name")],
    Discriminator(_pool_kind),
]


class HeadConfig(Kind):
    """What decides the class of a region from its pooled features, and how the class scores are read."""

    kind: str
    """"softmax": a linear layer after fc6, fc7 and so on, trained with gradients, end to end or on stored
    features. The others are fitted on stored features, by a stage of kind ``head`` or ``train.head_only``:
    "logistic": multinomial logistic regression. "svm": linear SVMs, each class against the rest.
    "prototypes": cosine similarity to the mean features of each class, and "knn": a vote of the nearest
    examples; both work with a few examples per class. docs/heads.md helps to choose. "module:Name": a class
    or function of yours, whose layers take the place of fc6, fc7 and so on. A config without this key means
    "softmax"."""
    scores: Literal["softmax", "sigmoid", "svm"] = "softmax"
    """How the output of cls_score is read: "softmax" as probabilities that exclude each other; "sigmoid", for
    heads of kind ``softmax`` and ``logistic`` and for layers of yours, as an independent probability per
    class, so that an object can have several labels (docs/multilabel.md); "svm" as the margins of linear
    SVMs, which the stage ``svm`` or the head of kind ``svm`` trains. Margins may be negative: choose
    ``test.score_threshold`` accordingly. A classifier of whole images always has independent scores."""


class SoftmaxHeadConfig(HeadConfig, choice="model.head.kind softmax"):
    """The fully connected layers."""

    kind: Literal["softmax"] = "softmax"
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(max_length=16)] = (4096, 4096)
    """Widths of fc6, fc7 and so on; ``[]`` has no hidden layer."""
    rank: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)] | None, ...], Field(max_length=16)] | None = (
        None
    )
    """One rank per layer of ``hidden``, null for a layer that is whole. A layer of rank t is two: one of t
    outputs without bias, and one that reads them (truncated SVD: Fast R-CNN, section 3.1). tools/compress.py
    makes such a network of a trained one and chooses the ranks. null: all layers are whole, or as in the
    checkpoint that is evaluated or used."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Probability with which a hidden unit is set to zero in training."""
    weights: bool = False
    """Take fc6 and fc7 from the backbone's weights file too (VGG16, AlexNet and CaffeNet)."""
    class_agnostic: bool = False
    """One box regressor for all classes instead of one per class."""

    @model_validator(mode="after")
    def _a_rank_per_layer(self) -> SoftmaxHeadConfig:
        if self.rank is None:
            return self
        if len(self.rank) != len(self.hidden):
            raise ValueError(
                f"model.head.rank has {len(self.rank)} ranks, and model.head.hidden {len(self.hidden)} "
                "layers; give one rank per layer, null for a layer that is whole"
            )
        if self.weights:
            raise ValueError(
                "model.head.weights takes fc6 and fc7 from a file, which has them whole; leave out "
                "model.head.rank, and compress the trained checkpoint with tools/compress.py"
            )
        return self


class FunctionHeadConfig(HeadConfig, choice="model.head.kind module:Name"):
    """Layers of yours in the place of fc6, fc7 and so on, trained on images: a ``torch.nn.Module`` with
    ``out_features`` that turns pooled features (R, D) into hidden ones (R, ``out_features``)."""

    kind: str
    options: Options = Field(default_factory=dict)
    """Keyword arguments of the class or function, besides ``in_features`` and ``num_classes``."""
    class_agnostic: bool = False
    """One box regressor for all classes instead of one per class."""

    @field_validator("kind")
    @classmethod
    def _is_a_name(cls, kind: str) -> str:
        if not _FUNCTION.fullmatch(kind):
            raise ValueError(
                f"model.head.kind {kind!r} is unknown{nearest(kind, HEADS)}; use one of {', '.join(HEADS)}, "
                "or module:Name for layers of yours"
            )
        return kind


TrainedHead = SoftmaxHeadConfig | FunctionHeadConfig
"""The heads that are trained with gradients; the others are fitted on stored features."""
FitRows = Annotated[int, Field(ge=1, le=10_000_000)]


class LogisticHeadConfig(HeadConfig, choice="model.head.kind logistic"):
    """Multinomial logistic regression (scikit-learn) on standardised features, with background as a class."""

    kind: Literal["logistic"]
    c: Positive = 0.001
    """Weight of the training errors against the L2 penalty on the weights (scikit-learn's ``C``)."""
    max_iterations: int = Field(default=100, ge=1, le=100_000)
    """Limit on the iterations of the solver (L-BFGS)."""
    max_examples: FitRows = 3000
    """Regions per class, drawn at random where there are more."""
    max_background: FitRows = 10_000
    """Regions of background, drawn at random where there are more."""


class SVMHeadConfig(HeadConfig, choice="model.head.kind svm"):
    """Linear SVMs (scikit-learn), each class against the rest, on standardised features."""

    kind: Literal["svm"]
    scores: Literal["softmax", "sigmoid", "svm"] = "svm"
    """How the margins are read: "svm" as they are, which may be negative (choose ``test.score_threshold``
    accordingly, for instance -1), "softmax" as if they were logits."""
    c: Positive = 1e-4
    """Weight of the training errors against the L2 penalty on the weights (liblinear's ``C``)."""
    max_examples: FitRows = 2000
    """Regions per class, drawn at random where there are more."""
    max_background: FitRows = 5000
    """Regions of background, drawn at random where there are more."""


class PrototypesHeadConfig(HeadConfig, choice="model.head.kind prototypes"):
    """The mean feature of each class; a region has the class of the most similar one.

    Features are centred and scaled to length 1 before means and similarities (SimpleShot, Wang et al., 2019).
    """

    kind: Literal["prototypes"]
    temperature: Positive = 0.1
    """Cosine similarities are divided by this before the softmax; smaller values make surer scores."""
    background_prototypes: int = Field(default=16, ge=1, le=4096)
    """Number of prototypes of the background, which looks more varied than a class (k-means)."""
    max_examples: FitRows = 3000
    """Regions per class, drawn at random where there are more."""
    max_background: FitRows = 5000
    """Regions of background, drawn at random where there are more."""


class KnnHeadConfig(HeadConfig, choice="model.head.kind knn"):
    """The most similar stored examples vote for their classes.

    Features are centred and scaled to length 1 (SimpleShot, Wang et al., 2019).
    """

    kind: Literal["knn"]
    k: int = Field(default=10, ge=1, le=1000)
    """Number of examples that vote on a region."""
    temperature: Positive = 0.1
    """A vote has the weight exp(similarity / ``temperature``), where the similarity is the cosine."""
    max_examples: FitRows = 500
    """Examples stored per class, drawn at random where there are more."""
    max_background: FitRows = 2000
    """Examples of background stored, drawn at random where there are more."""


HEADS = ("softmax", "logistic", "svm", "prototypes", "knn")
"""The heads of this project."""


def _head_kind(values: Any) -> str | None:
    kind = values.get("kind", "softmax") if isinstance(values, Mapping) else getattr(values, "kind", None)
    return kind if kind is None or kind in HEADS else "module:Name"


Head = Annotated[
    Annotated[SoftmaxHeadConfig, Tag("softmax")]
    | Annotated[LogisticHeadConfig, Tag("logistic")]
    | Annotated[SVMHeadConfig, Tag("svm")]
    | Annotated[PrototypesHeadConfig, Tag("prototypes")]
    | Annotated[KnnHeadConfig, Tag("knn")]
    | Annotated[FunctionHeadConfig, Tag("module:Name")],
    Discriminator(_head_kind),
]


class BoxConfig(Section):
    """Whether and how boxes are regressed, and how the targets of the regression are standardised."""

    regression: Literal["linear", "ridge", "none"] = "linear"
    """"linear": bbox_pred on fc7, trained with the network; heads that are fitted (``model.head.kind`` other
    than "softmax") fit it by ridge regression. "ridge": SPP-net's ridge regression on the pooled features,
    which the stages ``box_ridge`` and ``head`` fit. "none": no box layer."""
    normalize: Literal["fixed", "dataset"] = "dataset"
    """linear: "dataset" measures mean and standard deviation on the training set, per class, as the release
    does, or over all classes with ``model.head.class_agnostic``; "fixed" uses ``means`` and ``deviations``
    for all classes."""
    means: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """fixed: means of the targets (x, y, log width, log height), as fractions of the proposal's size."""
    deviations: tuple[Positive, Positive, Positive, Positive] = (0.1, 0.1, 0.2, 0.2)
    """fixed: standard deviations of the targets, in the same order and units."""


class FpnConfig(Section):
    """The feature pyramid of ``model.neck: fpn``."""

    channels: Annotated[int, Field(ge=1, le=65536)] = 256
    """Channels of all levels (paper: 256)."""


class ModelConfig(Section):
    """The network."""

    backbone: BackboneConfig
    neck: Literal["fpn"] | None = None
    """"fpn": a feature pyramid (FPN, Lin et al., 2017) over the last block of each stride from 4 on, up to
    ``model.backbone.stage``, whose default is then the last block. A region is pooled from the level that its
    size chooses: side 224 from stride 16, half the side from half the stride. null pools from the last
    block."""
    fpn: FpnConfig = FpnConfig()
    pool: Pool = RoIPoolConfig()
    head: Head = SoftmaxHeadConfig()
    box: BoxConfig = BoxConfig()
    roi_chunk: int = Field(default=1024, ge=1, le=16384)
    """RoIs that inference pools and classifies at a time. It bounds memory and changes results by no more
    than the last digits."""

    @model_validator(mode="after")
    def _neck_fits(self) -> ModelConfig:
        if self.neck is None:
            if self.fpn != FpnConfig():
                raise ValueError("model.fpn is for model.neck: fpn, which is not set")
            return self
        if isinstance(self.pool, CropPoolConfig):
            raise ValueError(
                f"model.neck: fpn has no use with model.pool.kind: {self.pool.kind}, which runs the "
                "convolutions on each region; set model.neck to null"
            )
        if self.backbone.reduce_channels is not None:
            raise ValueError(
                "model.backbone.reduce_channels: the levels of model.neck: fpn have model.fpn.channels; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> ModelConfig:
        if isinstance(self.head, TrainedHead):
            self._trained_head_fits(self.head)
        if isinstance(self.pool, CropPoolConfig):
            crops = self.roi_chunk * self.pool.crop_size**2
            if crops > MAX_CROPS:
                raise ValueError(
                    f"model.roi_chunk crops of model.pool.crop_size are {crops} pixels, over {MAX_CROPS}; "
                    "take a smaller model.roi_chunk"
                )
        return self

    @property
    def published_head(self) -> bool:
        """Whether fc6 and fc7 come from the file of ``backbone.weights``."""
        return isinstance(self.head, SoftmaxHeadConfig) and self.head.weights

    @property
    def agnostic_boxes(self) -> bool:
        """Whether there is one box regressor for all classes."""
        return isinstance(self.head, TrainedHead) and self.head.class_agnostic

    def _trained_head_fits(self, head: TrainedHead) -> None:
        if self.published_head and self.backbone.weights is None:
            raise ValueError(
                "model.head.weights takes fc6 and fc7 from model.backbone.weights, which is null; name the "
                "file there, or set model.head.weights to false"
            )
        if self.box.regression == "ridge" and head.class_agnostic:
            raise ValueError("model.box.regression: ridge is one regression per class; unset class_agnostic")


class SamplingConfig(Kind):
    """Which RoIs a step trains on."""

    kind: Literal["random", "ohem"]
    """"random": drawn at random with a fixed share of foreground (paper, section 2.3). "ohem": those with the
    highest losses (online hard example mining). A config without this key means "random"."""
    rois_per_image: int = Field(default=64, ge=1, le=100_000)
    """RoIs per image that are trained on."""
    foreground_iou: Fraction = 0.5
    """A RoI is foreground if its IoU with an object is at least this."""
    add_targets: bool = True
    """Whether the ground-truth boxes are added to the proposals."""


class RandomSamplingConfig(SamplingConfig, choice="train.sampling.kind random"):
    """RoIs drawn at random (paper, section 2.3)."""

    kind: Literal["random"] = "random"
    foreground_fraction: Fraction = 0.25
    """Largest share of foreground RoIs."""
    background_iou: tuple[Fraction, Fraction] = (0.1, 0.5)
    """Background RoIs have their best IoU in [low, high)."""
    far_background_fraction: Fraction = 0.0
    """Share of the background RoIs that is drawn from those whose best IoU is below the low end of
    ``background_iou``, far from all objects. The paper draws none, and a detector that never saw such places
    reports objects there. With ``background_iou: [0.0, 0.5]`` they would be nearly all of the background, and
    the harder regions near objects would be rare."""

    @model_validator(mode="after")
    def _ordered(self) -> RandomSamplingConfig:
        low, high = self.background_iou
        if low >= high:
            raise ValueError("train.sampling.background_iou must be [low, high) with low < high")
        if high > self.foreground_iou:
            raise ValueError("train.sampling.background_iou must end at or below foreground_iou")
        return self


class OhemSamplingConfig(SamplingConfig, choice="train.sampling.kind ohem"):
    """Online hard example mining (Shrivastava et al., 2016): all RoIs of an image pass through the head
    without a gradient, and those with the highest losses are trained on. Of RoIs that overlap by more than
    0.7 IoU, the one with the highest loss comes first. Every RoI below ``foreground_iou`` is background, and
    there is no fixed share of foreground."""

    kind: Literal["ohem"]


Sampling = Annotated[
    Annotated[RandomSamplingConfig, Tag("random")] | Annotated[OhemSamplingConfig, Tag("ohem")],
    _kind_of("random"),
]


class ScheduleConfig(Section):
    """The learning rate over the run. Points in time are fractions of its steps."""

    kind: Literal["step", "cosine"] = "step"
    """"step" lowers the rate at ``milestones``; "cosine" lowers it continuously along half a cosine wave."""
    milestones: Annotated[tuple[Fraction, ...], Field(max_length=1000)] = (0.75,)
    """step: where the rate is multiplied by ``gamma``, in rising order (paper: after 30k of 40k steps)."""
    gamma: Positive = 0.1
    """step: factor on the rate at each milestone."""
    final: Fraction = 0.0
    """cosine: the last rate as a fraction of ``learning_rate``."""
    warmup: Fraction = 0.0
    """Length of the linear warm-up as a fraction of the run; 0 has none."""
    warmup_start: Fraction = 0.1
    """First rate of the warm-up as a fraction of ``learning_rate``."""

    @model_validator(mode="after")
    def _ordered(self) -> ScheduleConfig:
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError("train.schedule.milestones must rise")
        return self


Jitter = Annotated[float, Field(gt=0.0, le=16.0)]


class ColorJitterConfig(Section):
    """Random changes of the colours of every image, as ``ColorJitter`` of torchvision; 0 changes nothing."""

    brightness: Fraction = 0.0
    """b: the brightness is multiplied by a factor within 1 ± b."""
    contrast: Fraction = 0.0
    """c: the differences from the image's mean grey are multiplied by a factor within 1 ± c."""
    saturation: Fraction = 0.0
    """s: the differences from grey are multiplied by a factor within 1 ± s."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """h: the hue is shifted by up to ± h of the colour circle."""

    @property
    def active(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue))


class _RandomConfig(Section):
    """Base of changes that are made to some of the images."""

    probability: Fraction = 0.0
    """Probability with which an image is changed like this."""

    @property
    def active(self) -> bool:
        return self.probability > 0


class ExpandConfig(_RandomConfig):
    """Puts the image on a larger canvas of the mean colour, so that its objects become smaller (zoom-out)."""

    max_ratio: Annotated[float, Field(ge=1.0, le=8.0)] = 4.0
    """Sides of the canvas divided by those of the image: drawn from [1, ``max_ratio``] (SSD: 4)."""


class CropConfig(_RandomConfig):
    """Cuts a random rectangle out of the image, which still shows at least one of its objects.

    Objects and proposals whose centre lies outside are left out; all others are clipped (SSD). After
    ``expand`` the rectangle is cut out of the canvas.
    """

    min_scale: Annotated[float, Field(ge=0.05, le=1.0)] = 0.3
    """Shortest sides of the crop as fractions of the image's; both are drawn from [``min_scale``, 1]."""
    aspect_ratio: tuple[Jitter, Jitter] = (0.5, 2.0)
    """Limits [low, high] of the crop's width divided by its height (SSD: 0.5 and 2)."""
    min_coverage: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the area of at least one object that the crop must show."""

    @model_validator(mode="after")
    def _ordered(self) -> CropConfig:
        if self.aspect_ratio[0] > self.aspect_ratio[1]:
            raise ValueError("train.augment.crop.aspect_ratio must be [low, high] with low <= high")
        return self


HoleSide = Annotated[float, Field(gt=0.0, le=1.0)]


class CutoutConfig(_RandomConfig):
    """Paints squares of the mean colour over the image (cut-out, DeVries and Taylor, 2017).

    Objects and proposals that a square hides by more than 60 % are left out.
    """

    count: int = Field(default=1, ge=1, le=64)
    """Number of squares."""
    size: tuple[HoleSide, HoleSide] = (0.1, 0.3)
    """Side of a square as a fraction of the image's shorter side, drawn from [low, high]."""

    @model_validator(mode="after")
    def _ordered(self) -> CutoutConfig:
        if self.size[0] > self.size[1]:
            raise ValueError("train.augment.cutout.size must be [low, high] with low <= high")
        return self


class AugmentConfig(Section):
    """Random changes of training images, meant for data sets of a few hundred; all are off by default.

    Boxes and proposals change together with the image. ``tools/draw_samples.py`` shows the result. The order
    is expand, crop, resize and flip, colours, cut-out. Stages that work on cached features allow none.
    """

    color_jitter: ColorJitterConfig = ColorJitterConfig()
    expand: ExpandConfig = ExpandConfig()
    crop: CropConfig = CropConfig()
    cutout: CutoutConfig = CutoutConfig()

    @property
    def active(self) -> bool:
        """Whether anything is done."""
        return any(part.active for part in (self.color_jitter, self.expand, self.crop, self.cutout))


class CallbackConfig(Kind):
    """An experiment tracker that a run reports to; docs/trackers.md says what it gets."""

    kind: Literal["wandb", "mlflow"]
    """"wandb": Weights & Biases. "mlflow": MLflow. Each needs its package: ``pip install ".[wandb]"`` or
    ``".[mlflow]"``."""
    name: str | None = None
    """The run's name in the tracker; null is the name of the run's folder."""


class WandbConfig(CallbackConfig, choice="a callback of kind wandb"):
    """Weights & Biases. Its key comes from ``wandb login`` or ``WANDB_API_KEY``."""

    kind: Literal["wandb"]
    project: Annotated[str, Field(min_length=1)]
    """Name of the project."""
    entity: str | None = None
    """The user or team that the project belongs to; null is the default of the account."""
    mode: Literal["online", "offline", "disabled"] = "online"
    """"offline" only writes into ``wandb/`` in the run's folder, for ``wandb sync`` later; "disabled" does
    nothing."""


class MlflowConfig(CallbackConfig, choice="a callback of kind mlflow"):
    """MLflow: a server, a database or a folder."""

    kind: Literal["mlflow"]
    tracking_uri: str | None = None
    """The server's address, a database such as ``sqlite:///mlflow.db`` (which needs ``pip install mlflow``),
    or a folder; null is MLflow's own choice, such as ``MLFLOW_TRACKING_URI``."""
    experiment: Annotated[str, Field(min_length=1)]
    """Name of the experiment, which is made if it is missing."""

    @field_validator("tracking_uri")
    @classmethod
    def _holds_no_password(cls, uri: str | None) -> str | None:
        if uri is not None and re.search(r"://[^/]*@", uri):
            raise ValueError(
                "train.callbacks: tracking_uri holds a user name or a password, which would be stored with "
                "the run; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI"
            )
        return uri


Tracker = Annotated[
    Annotated[WandbConfig, Tag("wandb")] | Annotated[MlflowConfig, Tag("mlflow")], _kind_of(None)
]


class TrainConfig(Section):
    """How the network is trained."""

    steps: Count | None = None
    """Number of optimizer steps of the run. Exactly one of this and ``epochs`` is given."""
    epochs: Positive | None = None
    """Passes over the training images: the run has ceil(epochs * images / ``images_per_batch``) steps, which
    its log records. In a config that inherits the other of the two, the one that is given replaces it."""
    images_per_batch: int = Field(default=2, ge=1, le=4096)
    """Images per step, those of all processes and of all ``accumulate`` parts together. It is divided evenly
    among them."""
    accumulate: int = Field(default=1, ge=1, le=4096)
    """Into how many parts each process divides its images of a step, computing one after the other: N parts
    take about 1/N of the memory. The gradient is that of the whole step, so no other setting changes with it;
    only batch normalisation that is being trained averages over each part."""
    scales: Scales = (600,)
    """Sides of the input in pixels; which side is set by ``resize``. One is drawn at random per image, or as
    ``scale_per`` says."""
    scale_per: Literal["image", "batch", "epoch"] = "image"
    """What shares one random scale and jitter: each image has its own, the images of a batch share one, or
    those of an epoch do, as SPP-net was trained (180 in one epoch, 224 in the next)."""
    resize: Resize = "shorter"
    """"shorter" brings the shorter side to the scale; "square" brings both sides to it, whatever the
    proportions; "none" keeps the image's own size and does not use the scales."""
    max_size: Pixels = 1000
    """Largest length of the longer side in pixels; not used by ``resize: square``."""
    scale_jitter: tuple[Jitter, Jitter] | None = None
    """A further random factor on the size, drawn log-uniformly from [low, high]; null applies none."""
    flip: Fraction = 0.5
    """Probability of a left-right flip."""
    vertical_flip: Fraction = 0.0
    """Probability of a top-bottom flip, for images without a fixed top, such as microscopy or aerial
    photographs."""
    augment: AugmentConfig = AugmentConfig()
    group_by_aspect: bool = True
    """Put landscape images into batches with landscape images and portrait with portrait, which saves
    padding."""
    sampling: Sampling = RandomSamplingConfig()
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """"sgd" is SGD with momentum, as published. "adamw" is AdamW (Loshchilov and Hutter, 2019), which needs a
    much lower ``learning_rate``, for instance 1e-4. A resumed run keeps its optimizer."""
    learning_rate: Positive = 1e-3
    """Learning rate at the start, after the warm-up."""
    bias_lr_factor: Positive = 2.0
    """Learning rate of biases divided by that of weights (release: 2; the paper's text: 1)."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """sgd: momentum. adamw: beta1, the decay of the mean of the gradients; beta2, that of their squares, is
    0.999."""
    weight_decay: float = Field(default=5e-4, ge=0.0)
    """sgd: L2 penalty on the weights. adamw: the part of the weights that is subtracted per step, divided by
    the learning rate; 0.01 to 0.05 are usual."""
    bias_decay: bool = False
    """Whether biases decay too (release: no; the paper's text: yes)."""
    schedule: ScheduleConfig = ScheduleConfig()
    clip_gradient_norm: Positive | None = None
    """Gradients with a larger L2 norm over all parameters are scaled down to it; null clips none."""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Keep an exponential average of the weights with this decay per step, for instance 0.999: evaluations
    and everything that uses a checkpoint take the averaged weights, and the raw ones are trained on. It looks
    back over about 1 / (1 - ``ema``) steps. null keeps none."""
    box_loss_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the box loss relative to the class loss (paper: 1)."""
    smooth_l1_beta: Positive = 1.0
    """Where smooth L1 changes from quadratic to linear (paper: 1)."""
    precision: Precision = "float32"
    """"bfloat16" and, on a GPU, "float16" run the network under autocast; RoIs and losses stay float32. With
    "float16" the loss is scaled so that small gradients do not become zero; a step whose gradients overflow
    because of the scale is skipped, and the scale is lowered."""
    compile: bool = False
    """Compile the convolutions and the head for training with torch.compile, which needs a C++ compiler, on a
    GPU also Triton. The first steps take up to a few minutes. Evaluations run the network as it is."""
    deterministic: bool = True
    """On a GPU, use only algorithms that give the same bits on every run: two runs of one config are equal,
    and a run that was interrupted continues exactly. false lets cuDNN measure its algorithms for each new
    input size and use the fastest, which can pay off where sizes repeat. On the CPU every run is exact."""
    log_every: Count = 20
    """Steps between two lines of the log."""
    checkpoint_every: Count = 1000
    """Steps between two checkpoints."""
    keep_checkpoints: Count | None = None
    """How many numbered checkpoints are kept; null removes none."""
    evaluate_every: Count | None = None
    """Steps between evaluations, the best of which chooses ``best.pt``; null evaluates only at the end. They
    use validation images: those of ``data.val_split``, or of ``validation_fraction``."""
    early_stopping: Count | None = None
    """End the run after this many evaluations in a row without a gain of the headline metric
    (``test.metric``); null trains all steps. It needs ``evaluate_every``."""
    validation_loss: bool = False
    """Also compute the losses of training on the validation images at each evaluation. The network runs over
    them a second time for this, so an evaluation takes up to twice as long."""
    evaluate_split: str | None = None
    """The split that is scored at the end; null is ``data.test_split``. If it is given and there are no
    validation images, ``evaluate_every`` uses it too, and ``best.pt`` is then chosen on it."""
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of the training images that is set aside for validation if there is no validation split. Which
    images these are depends only on ``data.split_seed`` and the images' names. null sets none aside, except
    that ``evaluate_every`` without a validation split and without ``evaluate_split`` sets aside 0.15."""
    trainable: Literal["all", "boxes"] = "all"
    """"boxes" trains only bbox_pred, as the second stage of stage-wise training does. Which convolutions
    train is set by ``model.backbone.freeze``."""
    head_only: bool = False
    """Train only the head, ``model.head``, on stored features of the regions: every image passes through the
    convolutions once, and not again when another head or other labels are tried. It is short for one stage
    of kind ``head``."""
    features_folder: str = "data/features"
    """Where stages of kind ``head`` store the features of regions and look for them. Runs may share it:
    what is stored is found by the weights, the scales and the regions that it was made with."""
    cache_dtype: Literal["float16", "float32"] = "float16"
    """Type in which stages that work on cached features store them on disk."""
    draw_images: int = Field(default=4, ge=0, le=1000)
    """Images drawn into TensorBoard at each evaluation."""
    callbacks: Annotated[tuple[Tracker, ...], Field(max_length=16)] = ()
    """Experiment trackers that the run reports to."""
    initial_weights: str | None = None
    """A checkpoint from which only the weights are taken. cls_score, bbox_pred and the constants of the box
    targets start from scratch if the classes or the task differ. null starts from
    ``model.backbone.weights``."""
    allow_partial: bool = False
    """Accept ``initial_weights`` that do not fit completely: take what fits and start the rest from random
    weights."""

    @model_validator(mode="after")
    def _length_and_jitter_are_valid(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else "both"
            raise ValueError(f"train needs exactly one of train.steps and train.epochs; {given} is given")
        if self.early_stopping is not None and self.evaluate_every is None:
            raise ValueError(
                "train.early_stopping counts evaluations, and without train.evaluate_every there is only one "
                "at the end; set train.evaluate_every"
            )
        if self.images_per_batch % self.accumulate:
            raise ValueError(
                f"train.accumulate: {self.images_per_batch} images per step (train.images_per_batch) cannot "
                f"be divided evenly into {self.accumulate} parts"
            )
        if self.scale_jitter is not None and self.scale_jitter[0] > self.scale_jitter[1]:
            raise ValueError("train.scale_jitter must be [low, high] with low <= high")
        return self


MAX_INPUT = 2**28
"""Pixels of the inputs of an image at all scales; each takes 12 bytes before any layer."""


class TestConfig(Section):
    """How the network is tested, and used by ``tools/demo.py``."""

    __test__ = False  # not a test class, whatever its name

    metric: Literal["voc07", "voc", "coco"] = "voc07"
    """The headline metric, which also chooses the best checkpoint: VOC's 11-point AP ("voc07"), its area AP
    ("voc"), or COCO's AP. With "coco" its twelve metrics are computed as well, for data of either format."""
    scales: Scales = (600,)
    """Lengths of the shorter side in pixels; ``scale_rule`` says how several are used."""
    scale_rule: Literal["area", "side", "all"] = "area"
    """With several scales, each proposal is scored at the one where its area comes closest to 224 x 224
    ("area", Fast R-CNN's release and SPP-net's paper) or the square root of its area closest to 208 ("side",
    SPP-net's release); "all" scores it at every scale and merges the results before suppression."""
    flip: bool = False
    """Score the mirrored image too and merge the results before suppression."""
    box_regression: bool = True
    """Whether detections have the regressed boxes, or those of the proposals."""
    resize: Resize = "shorter"
    """As ``train.resize``; with "none" the scales are not used."""
    max_size: Pixels = 1000
    """Largest length of the longer side in pixels; not used by ``resize: square``."""
    score_threshold: float = 0.05
    """Detections score more than this: a probability, or the margin of an SVM."""
    nms_threshold: Fraction = 0.3
    """Of two boxes of one class with a higher IoU than this, the one with the lower score is dropped."""
    nested_threshold: Fraction | None = None
    """Of two boxes of one class that share more than this fraction of the smaller one's area, the one with
    the lower score is dropped, however small their IoU: a part of an object that is reported beside the
    whole. null drops none for this reason, as in the paper."""
    max_detections: int = Field(default=100, ge=1, le=1_000_000)
    """Detections kept per image, all classes together."""
    max_images: Count | None = None
    """Score only this many images, the first of the split, where a network is too slow for all; the metrics
    are then those of these images (``images`` in metrics.json). null scores all."""
    refinements: int = Field(default=0, ge=0, le=100)
    """How many times detections are pooled and classified again from their own boxes (iterative
    localisation). It costs little, since the features are computed once. The paper does not do it."""
    precision: TestPrecision = "float32"
    """"bfloat16" and, on a GPU, "float16" run the network under autocast. "int8", on a CPU, computes fc6, fc7
    and so on with integers of 8 bits, and everything else in float32 (docs/compress.md)."""

    @model_validator(mode="after")
    def _views_fit_into_memory(self) -> TestConfig:
        if self.input_pixels > MAX_INPUT:
            raise ValueError(
                f"test.scales and test.max_size ask for {self.input_pixels} pixels of each image, over "
                f"{MAX_INPUT}; take fewer or smaller scales"
            )
        return self

    @property
    def input_pixels(self) -> int:
        """The most input pixels per test image, all scales together; 0 where images keep their own size."""
        if self.resize == "none":
            return 0
        return sum(min(scale, self.max_size) * self.max_size for scale in self.scales)


class SVMConfig(Section):
    """Per-class linear SVMs with hard negative mining; the defaults are those of SPP-net's release."""

    features: Literal["fc7", "pooled"] = "fc7"
    """What they are trained on: the head's last hidden features, or the pooled ones."""
    c: Positive = 1e-3
    """Weight of the training errors against the margin (liblinear's ``-c``)."""
    positive_weight: Positive = 2.0
    """Factor on ``c`` for positives."""
    bias_multiplier: Positive = 10.0
    """The bias is the weight of a feature with this constant value, so it is hardly regularised."""
    feature_norm: Positive = 20.0
    """Features are scaled to this mean norm."""
    negative_iou: Fraction = 0.3
    """Regions whose best IoU with the objects of a class is below this are negatives of the class."""
    hard_score: float = -1.0001
    """Negatives that score above this are added."""
    evict_score: float = -1.2
    """Negatives that score below this after a retraining are dropped."""
    retrain_after: int = Field(default=2000, ge=1, le=10_000_000)
    """A class is retrained once it has this many new negatives, and after the last image."""
    negative_overlap: Fraction | None = None
    """Drop a new negative that overlaps another by more than this IoU (paper: 0.7); null drops none, as in
    the release."""
    missing_positives: Literal["error", "never"] = "error"
    """What to do with a class without positives: stop with an error, or never report the class."""


class RidgeConfig(Section):
    """Ridge regression of boxes per class, on pooled features; with the defaults of SPP-net's release."""

    penalty: Positive = 4000.0
    """Lambda; the bias is penalised too."""
    min_iou: Fraction = 0.5
    """Regions with a higher IoU than this with an object of the class are its training rows."""
    max_rows: int = Field(default=20000, ge=1, le=10_000_000)
    """Rows per class, drawn at random where there are more."""
    whitening: Positive = 1e-3
    """Added to the eigenvalues of the targets' covariance before it is inverted."""


class StageConfig(Kind):
    """One stage of a staged training. It starts from the weights of the stage before it."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Name of the stage and of its folder: lower-case letters, digits and underscores."""
    kind: Literal["train", "fine_tune", "svm", "box_ridge", "head"]
    """"train" trains on images as a config without stages does; "fine_tune" trains the fully connected layers
    on cached features; "svm" and "box_ridge" fit their layer on cached features; "head" trains or fits
    ``model.head`` on stored features of the regions, and may be the first stage."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Changes to the config for this stage, written like a config."""


class TrainStageConfig(StageConfig, choice="a stage of kind train or fine_tune"):
    """Trains the network, or its fully connected layers."""

    kind: Literal["train", "fine_tune"]


class SVMStageConfig(StageConfig, choice="a stage of kind svm"):
    """Replaces cls_score by linear SVMs."""

    kind: Literal["svm"]
    svm: SVMConfig = SVMConfig()


class RidgeStageConfig(StageConfig, choice="a stage of kind box_ridge"):
    """Fits bbox_pred by ridge regression."""

    kind: Literal["box_ridge"]
    ridge: RidgeConfig = RidgeConfig()


class HeadStageConfig(StageConfig, choice="a stage of kind head"):
    """Trains or fits ``model.head`` on stored features of the regions; the convolutions stay as they are."""

    kind: Literal["head"]
    ridge: RidgeConfig = RidgeConfig()


Stage = Annotated[
    Annotated[TrainStageConfig, Tag("train")]
    | Annotated[TrainStageConfig, Tag("fine_tune")]
    | Annotated[SVMStageConfig, Tag("svm")]
    | Annotated[RidgeStageConfig, Tag("box_ridge")]
    | Annotated[HeadStageConfig, Tag("head")],
    _kind_of(None),
]


def pools_by_masks(pool: Pool) -> bool:
    """Return whether ``pool`` uses the masks of regions; not every kind can."""
    return getattr(pool, "mask", "none") != "none"


class Config(Section):
    """An experiment."""

    seed: Seed = 0
    """Seed of the weights and of everything random in training."""
    task: Literal["detection", "weak_detection", "classification"] = "detection"
    """"weak_detection" trains a detector from the classes of whole images, without their boxes (WSDDN).
    "classification" trains and scores a network for the classes of whole images (SPP-net, section 3)."""
    data: DataConfig
    proposals: Proposals = NoProposals()
    model: ModelConfig
    train: TrainConfig
    test: TestConfig = TestConfig()
    stages: Annotated[tuple[Stage, ...], Field(max_length=32)] = ()
    """The stages of a staged training, in order; without any, the network is trained in one run."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        pool = self.model.pool
        if self.model.neck is not None and self.task == "classification":
            raise ValueError("model.neck: fpn pools regions; task: classification pools whole images")
        if self.model.neck is not None and isinstance(self.train.sampling, OhemSamplingConfig):
            raise ValueError(
                "train.sampling.kind: ohem chooses the regions on the device, and model.neck: fpn has to "
                "know their levels before; use random"
            )
        if self.task != "classification":
            if isinstance(self.proposals, NoProposals):
                raise ValueError("proposals needs either 'file' with 'format', or 'method'")
            if isinstance(pool, SPPPoolConfig) and pool.rule == "sliding":
                raise ValueError("model.pool.rule: sliding is for whole images, task: classification")
            if isinstance(pool, SPPPoolConfig) and (pool.mask, pool.reduction) == ("cells", "avg"):
                raise ValueError(
                    "model.pool.mask: cells is a maximum, reduction: avg an average; set weighted"
                )
        elif not isinstance(self.model.head, SoftmaxHeadConfig):
            raise ValueError(
                f"model.head.kind: {self.model.head.kind} is for regions; task: classification has softmax"
            )
        elif self.test.metric == "coco":
            raise ValueError("test.metric: coco scores boxes; task: classification has voc07 and voc")
        elif not isinstance(pool, SPPPoolConfig):
            raise ValueError(
                "task: classification pools whole images by a pyramid; set model.pool.kind to spp"
            )
        elif pool.mask != "none":
            raise ValueError("model.pool.mask: task: classification pools whole images; set none")
        if pools_by_masks(pool) and isinstance(self.train.sampling, OhemSamplingConfig):
            raise ValueError(
                "train.sampling.kind: ohem chooses the regions on the device, and model.pool.mask has to "
                "know them before; use random, or model.pool.mask: none"
            )
        if self.model.head.scores == "sigmoid":
            self._check_sigmoid()
        if self.task == "weak_detection":
            self._check_weak()
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("stages: each needs a name of its own, which names its folder")
        return self

    def _check_sigmoid(self) -> None:
        """Refuse sigmoid scores where nothing trains or reads independent scores."""
        kinds = {stage.kind for stage in self.stages}
        if not isinstance(self.model.head, TrainedHead | LogisticHeadConfig):
            raise ValueError(
                "model.head.scores: sigmoid is for model.head.kind softmax or logistic, not "
                f"{self.model.head.kind}, and for layers of yours"
            )
        if "svm" in kinds:
            raise ValueError(
                "model.head.scores: sigmoid does not read the SVMs of a stage of kind svm; set it to svm"
            )

    def _check_weak(self) -> None:
        """Refuse what needs boxes of objects, or what weak_detection's network does not have."""
        augment = self.train.augment
        refused = {
            "train.augment.crop": (augment.crop.active, "a crop may not show what the image's labels name"),
            "train.augment.cutout": (augment.cutout.active, "a hole may hide what the image's labels name"),
            "train.sampling.kind": (
                isinstance(self.train.sampling, OhemSamplingConfig),
                "all regions are trained on, and no region has a loss of its own",
            ),
            "train.trainable": (self.train.trainable == "boxes", "there is no box layer to train"),
            "model.head.kind": (self.model.head.kind != "softmax", "its two streams are trained on images"),
            "model.head.scores": (self.model.head.scores != "softmax", "its scores come from two streams"),
            "test.refinements": (self.test.refinements > 0, "there is no box layer that moves boxes"),
            "stages": (bool(self.stages), "it is trained in one run"),
        }
        for key, (given, reason) in refused.items():
            if given:
                raise ValueError(f"{key}: not for task: weak_detection, since {reason}; leave the key out")

    @model_validator(mode="after")
    def _head_can_be_trained(self) -> Config:
        head = self.model.head
        if self.train.head_only and self.stages:
            raise ValueError("train.head_only is for a config without stages; use a stage of kind head there")
        if not self.train.head_only:
            return self
        if self.task != "detection":
            raise ValueError("train.head_only works on the features of regions, task: detection")
        if isinstance(head, FunctionHeadConfig):
            raise ValueError(
                f"model.head.kind: {head.kind} is trained on images, and train.head_only and stages of kind "
                f"head work on stored features; leave them out, or take one of {', '.join(HEADS)}"
            )
        if isinstance(self.model.pool, CropPoolConfig):
            raise ValueError(
                f"train.head_only: model.pool.kind: {self.model.pool.kind} has no features that the regions "
                "of an image share; take roi or spp"
            )
        if isinstance(self.train.sampling, OhemSamplingConfig):
            raise ValueError(
                "train.sampling.kind: ohem compares the regions of one image; a head on stored "
                "features draws from all images: take random"
            )
        if self.train.augment.active:
            raise ValueError(
                "train.head_only works on stored features, which train.augment cannot change; leave it out"
            )
        if isinstance(head, SoftmaxHeadConfig) and self.train.trainable == "boxes":
            raise ValueError("train.trainable: boxes leaves the classes as they are; unset train.head_only")
        return self

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """The stages, with that of ``train.head_only``; empty where the network is trained in one run."""
        return (HeadStageConfig(name="head", kind="head"),) if self.train.head_only else self.stages
