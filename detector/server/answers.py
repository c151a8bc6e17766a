"""The forms of the server's answers, from which FastAPI writes the OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Box = Annotated[list[float], Field(min_length=4, max_length=4)]
"""x1, y1, x2, y2, half-open, in pixels of the upright image."""


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", serialize_by_alias=True, validate_by_name=True)


class Problem(_Answer):
    """What is wrong with a request, in a plain sentence."""

    detail: str


class ClassScore(_Answer):
    """A class and its score: a probability, or the margin of an SVM."""

    class_: Annotated[str, Field(alias="class")]
    score: float


class Detection(ClassScore):
    """A class, its score, and where the object is."""

    box: Annotated[Box, Field(description="x1, y1, x2, y2, half-open, in pixels of the upright image")]


class Seconds(_Answer):
    """How many seconds each part of the request took."""

    waiting: Annotated[float, Field(description="in the queue")]
    decode: float
    proposals: float = 0.0
    network: Annotated[float, Field(description="with the resizing of the image and the suppression")]


class Made(_Answer):
    """Where the regions that were scored came from, and their number."""

    method: Annotated[str, Field(description="a name of /model, or boxes for regions of the request")]
    count: int


class _OfImage(_Answer):
    image: Annotated[None, Field(description="always null: the name of the file is not used")] = None
    height: Annotated[int, Field(description="of the upright image, in pixels")]
    width: Annotated[int, Field(description="of the upright image, in pixels")]
    classes: list[str]
    seconds: Seconds


class Detections(_OfImage):
    """The detections of an image, by falling score."""

    detections: list[Detection]
    proposals: Made


class Scores(_OfImage):
    """The classes of an image, by falling score."""

    scores: list[ClassScore]


class Region(_Answer):
    """The scores of a region."""

    box: Annotated[Box, Field(description="as it was given")]
    scores: Annotated[list[float], Field(description="one per class, in the order of classes")]
    background: Annotated[float, Field(description="the score of no object; 0 for SVMs")]
    best: Annotated[Detection, Field(description="the class with the highest score, and the box it gives")]


class RegionScores(_OfImage):
    """The scores of each region, in the order in which the regions were given."""

    regions: list[Region]


class Choice(_Answer):
    """A way to make proposals."""

    name: Annotated[str, Field(description="for the field proposals of a request")]
    title: Annotated[str, Field(description="for people")]


class Model(_Answer):
    """What the server knows about its checkpoint, and its limits."""

    version: Annotated[str, Field(description="of region-detector")]
    task: Literal["detection", "classification"]
    classes: list[str]
    colours: Annotated[list[str], Field(description="a colour #rrggbb per class")]
    scores: Annotated[
        str, Field(description="softmax and sigmoid give probabilities, svm gives margins of SVMs")
    ]
    shown_threshold: Annotated[float, Field(description="the page shows detections from this score on")]
    chosen_threshold: Annotated[
        float | None, Field(description="the threshold with the best F1 on the validation images")
    ]
    score_threshold: Annotated[float | None, Field(description="detections score more than this")]
    nms_threshold: Annotated[
        float | None, Field(description="of two boxes of a class with a higher IoU, one is dropped")
    ]
    max_detections: Annotated[int | None, Field(description="per image")]
    scales: Annotated[list[int], Field(description="shorter sides of the network's input, in pixels")]
    max_size: Annotated[int, Field(description="of the longer side, in pixels")]
    proposals: Annotated[list[Choice], Field(description="what proposals of a request may be; default first")]
    max_pixels: Annotated[int, Field(description="of an image")]
    max_boxes: Annotated[int, Field(description="of a request")]
    max_upload_bytes: Annotated[int, Field(description="of a request")]
    formats: Annotated[list[str], Field(description="of image files, recognised by their content")]


class Health(_Answer):
    """That the server works, and how busy it is."""

    status: Literal["ok"]
    inside: Annotated[int, Field(description="requests that are uploaded, wait or run")]
    limit: Annotated[int, Field(description="one more request is answered with 503")]
