"""The requests of the server: the results of the API, and one sentence for everything else."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detector import Detector
from tests.server.conftest import LOW, Make

Open = Callable[..., Any]
BOXES = [[5, 5, 60, 60], [20.5, 10, 90, 80.25], [0, 0, 40, 90]]


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def large_png(width: int, height: int) -> bytes:
    """A small file that claims to hold many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def without(answer: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in keys}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "rotated"])
def test_results_are_those_of_the_api(
    kind: str, detector: Detector, photo: Path, open_client: Open, tmp_path: Path
) -> None:
    pixels = np.asarray(Image.open(photo).convert("RGB"))
    exif = Image.Exif()
    exif[274] = 6
    content = encoded(pixels, "JPEG", exif=exif) if kind == "rotated" else encoded(pixels, kind)
    path = tmp_path / "image"
    path.write_bytes(content)
    client = open_client(detector)

    for threshold in (None, float(detector(path).scores.median())):
        fields = {} if threshold is None else {"score_threshold": str(threshold)}
        answer = client.post("/detect", files={"image": content}, data=fields).json()
        expected = detector(str(path), score_threshold=threshold).to_dict()
        assert expected["detections"]
        assert without(answer, "classes", "seconds", "proposals") == {**expected, "image": None}
        assert answer["classes"] == list(detector.classes)

    answer = client.post("/detect", files={"image": content}, data={"boxes": json.dumps(BOXES)}).json()
    expected = detector(str(path), boxes=np.array(BOXES)).to_dict()
    assert without(answer, "classes", "seconds", "proposals") == {**expected, "image": None}
    assert answer["proposals"] == {"method": "boxes", "count": 3}


def test_a_large_photograph_is_reduced_as_in_the_api(
    detector: Detector, open_client: Open, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 41, 3), dtype=np.uint8)
    content = encoded(np.kron(pixels, np.ones((40, 40, 1), np.uint8)), "JPEG")
    (tmp_path / "large.jpg").write_bytes(content)
    answer = open_client(detector).post("/detect", files={"image": content}).json()
    assert answer["detections"] == detector(tmp_path / "large.jpg").to_dict()["detections"] != []


def test_proposals_may_be_chosen(detector_of: Make, photo: Path, open_client: Open) -> None:
    client = open_client(detector_of(LOW))
    names = [choice["name"] for choice in client.get("/model").json()["proposals"]]
    assert names == ["checkpoint", "selective_search_fast", "selective_search_quality", "dense"]
    for name in names[1:3]:
        mode = name.removeprefix("selective_search_")
        search = f"proposals={{method: selective_search, mode: {mode}, top_k_test: 300}}"
        answer = client.post("/detect", files={"image": photo.read_bytes()}, data={"proposals": name}).json()
        assert answer["proposals"]["method"] == name
        assert answer["detections"] == detector_of(LOW, search)(photo).to_dict()["detections"]


def test_a_checkpoint_of_a_proposal_file_gets_selective_search(
    detector_of: Make, photo: Path, open_client: Open
) -> None:
    client = open_client(detector_of(LOW, "proposals={file: boxes.npz, format: npz}"))
    names = [choice["name"] for choice in client.get("/model").json()["proposals"]]
    assert names[0] == "selective_search_fast"
    assert "checkpoint" not in names
    answer = client.post("/detect", files={"image": photo.read_bytes()})
    assert answer.json()["proposals"]["method"] == names[0]


def test_scores_of_regions_are_those_of_the_api(detector: Detector, photo: Path, open_client: Open) -> None:
    client = open_client(detector)
    answer = client.post(
        "/classify", files={"image": photo.read_bytes()}, data={"boxes": json.dumps(BOXES)}
    ).json()
    expected = detector.classify(photo, np.array(BOXES))
    scores = [[region["background"], *region["scores"]] for region in answer["regions"]]
    assert torch.equal(torch.tensor(scores), expected.scores)
    best = expected.scores[:, 1:].argmax(dim=1)
    for row, region in enumerate(answer["regions"]):
        assert region["box"] == BOXES[row]
        assert region["best"]["class"] == detector.classes[best[row]]
        assert region["best"]["box"] == expected.boxes[row, 1 + best[row]].tolist()
    empty = client.post("/classify", files={"image": photo.read_bytes()}, data={"boxes": "[]"})
    assert (empty.status_code, empty.json()["regions"]) == (200, [])


def test_a_classifier_names_classes(classifier: Detector, photo: Path, open_client: Open) -> None:
    client = open_client(classifier)
    answer = client.post("/detect", files={"image": photo.read_bytes()}).json()
    assert without(answer, "classes", "seconds") == {**classifier(photo).to_dict(), "image": None}
    assert client.get("/model").json()["task"] == "classification"
    assert client.post("/classify", files={"image": photo.read_bytes()}).status_code == 404
    assert "/classify" not in client.get("/openapi.json").json()["paths"]


def test_a_detector_with_svms_has_margins(detector_of: Make, photo: Path, open_client: Open) -> None:
    overrides = ("model.pool={kind: spp, levels: [3, 1]}", "model.head.scores=svm", "test.score_threshold=-9")
    svm = detector_of(*overrides, "model.box.regression=ridge")
    client = open_client(svm)
    model = client.get("/model").json()
    assert (model["scores"], model["shown_threshold"], model["score_threshold"]) == ("svm", 0, -9)
    answer = client.post("/detect", files={"image": photo.read_bytes()}).json()
    assert answer["detections"] == svm(photo).to_dict()["detections"]


def test_the_model_is_described(detector: Detector, open_client: Open) -> None:
    model = open_client(detector, upload_bytes=12_345, max_pixels=678).get("/model").json()
    assert model["classes"] == list(detector.classes)
    assert len(set(model["colours"])) == len(detector.classes)
    assert model["shown_threshold"] == model["chosen_threshold"] == 0.25
    assert (model["max_upload_bytes"], model["max_pixels"]) == (12_345, 678)
    assert open_client(detector, queue=3, in_flight=2).get("/health").json() == {
        "status": "ok",
        "inside": 0,
        "limit": 5,
    }


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"boxes": "[[1, 2, 3]]"}, "boxes.0: List should have at least 4 items"),
        ({"boxes": "[[1, 2, 3"}, "boxes: Invalid JSON"),
        ({"boxes": '{"a": 1}'}, "boxes: Input should be a valid array"),
        ({"boxes": "[[1, 2, 3, NaN]]"}, "box 0, [1.0, 2.0, 3.0, nan], is not finite"),
        ({"boxes": "[[1, 2, 1e400, 3]]"}, "is not finite"),
        ({"boxes": "[[0, 0, 9, 9], [9, 2, 3, 8]]"}, "the image: box 1, [9.0, 2.0, 3.0, 8.0], is reversed"),
        ({"boxes": "[[0, 0, 9, 999]]"}, "leaves the image of"),
        ({"boxes": json.dumps([[0, 0, 9, 9]] * 4001)}, "at most 4000 items"),
        ({"boxes": "[[0, 0, 9, 9]]", "proposals": "dense"}, "give only one of boxes and proposals"),
        ({"proposals": "/etc/passwd"}, "'/etc/passwd' is unknown; known: checkpoint, selective_search_fast"),
        ({"score_threshold": "nan"}, "score_threshold: Input should be a finite number"),
        ({"score_threshold": "high"}, "score_threshold: Input should be a valid number"),
        ({"boxes": ""}, "The field 'boxes' is empty; give a value or leave it out."),
        ({"proposals": ""}, "The field 'proposals' is empty"),
        ({"score_threshold": ""}, "The field 'score_threshold' is empty"),
        ({"boxes": " "}, "boxes: Invalid JSON"),
        ({"score_threshold": ["0.1", "0.1"]}, "The field 'score_threshold' is given 2 times; give it once."),
        ({"boxes": ["[[0, 0, 9, 9]]", "[]", ""]}, "The field 'boxes' is given 3 times"),
        ({"proposals": ["dense", "dense"]}, "The field 'proposals' is given 2 times"),
        ({"image": "again"}, "The field 'image' is given 2 times"),
        ({"threshold": "0.5"}, "The field 'threshold' is unknown; known: boxes, image, proposals"),
    ],
)
def test_faulty_fields_are_named(
    fields: dict[str, str | list[str]], problem: str, detector: Detector, photo: Path, open_client: Open
) -> None:
    answer = open_client(detector).post("/detect", files={"image": photo.read_bytes()}, data=fields)
    assert answer.status_code == 422
    assert problem in answer.json()["detail"]


def test_only_images_of_a_bearable_size_are_decoded(
    detector: Detector, photo: Path, open_client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = photo.read_bytes()
    client = open_client(detector, max_pixels=20_000)
    assert client.post("/detect", files={"image": content}).status_code == 200
    monkeypatch.setattr("detector.data.images._decode_raw", lambda *_: pytest.fail("decoded"))
    refused = {
        b"": (415, "not a readable image"),
        b"hello": (415, "give a whole image file of one of the formats JPEG, PNG"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>": (415, "not a readable image"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": (415, "not a readable image"),
        content[:-20]: (422, "the image: the image is truncated"),
        large_png(15_000, 8_000): (413, "more than 20000 pixels (15000x8000)"),
        large_png(200_000, 200_000): (413, "more than 20000 pixels"),
        encoded(np.zeros((150, 140, 3), np.uint8), "JPEG"): (413, "more than 20000 pixels (140x150)"),
    }
    for upload, (status, problem) in refused.items():
        answer = client.post("/detect", files={"image": upload})
        assert answer.status_code == status, answer.text
        assert problem in answer.json()["detail"]
        assert "data.leave_out" not in answer.text


def test_requests_that_are_no_form_are_refused(detector: Detector, photo: Path, open_client: Open) -> None:
    client = open_client(detector)
    content = photo.read_bytes()
    form = {"content-type": "multipart/form-data; boundary=b"}
    cases = [
        (client.post("/detect", content=content, headers={"content-type": "image/jpeg"}), 415),
        (client.post("/detect", json={"image": "photo.jpg"}), 415),
        (client.post("/detect", data={"image": "/etc/passwd"}), 415),
        (client.post("/detect", content=b"no parts", headers=form), 400),
        (client.post("/detect", content=b"", headers={"content-type": "multipart/form-data"}), 400),
        (client.post("/detect", files=[("image", content), ("image", content)]), 400),
        (client.post("/detect", files={"image": (None, "/etc/passwd")}), 422),
        (client.post("/detect", files={"other": (None, "x")}), 422),
        (client.get("/detect"), 405),
        (client.get("/../../etc/passwd"), 404),
        (client.get("/page.html"), 404),
    ]
    for answer, status in cases:
        assert answer.status_code == status, answer.text
        assert set(answer.json()) == {"detail"}


def test_the_name_of_the_file_is_not_used(
    detector: Detector, photo: Path, open_client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything written: an upload stays in memory, however large."""
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", lambda _: pytest.fail("written to a file"))
    content = photo.read_bytes() + bytes(3_000_000)  # a JPEG may end with anything
    answer = open_client(detector).post("/detect", files={"image": ("../../etc/passwd", content)})
    assert answer.status_code == 200
    assert answer.json()["image"] is None
    assert "passwd" not in answer.text


def test_a_failure_is_logged_and_not_told(
    detector: Detector,
    photo: Path,
    open_client: Open,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("detector.server.service.image_proposals", fail)
    client = open_client(detector)
    answer = client.post("/detect", files={"image": photo.read_bytes()})
    assert answer.status_code == 500
    assert answer.json() == {"detail": "The server failed on this request; its log says why."}
    assert capfd.readouterr().err.count("RuntimeError: secret") == 1
    assert client.get("/health").json()["inside"] == 0


def test_an_image_that_is_too_narrow_is_the_image(
    detector: Detector, classifier: Detector, open_client: Open
) -> None:
    content = encoded(np.zeros((20, 3000, 3), np.uint8), "PNG")
    for served in (detector, classifier):
        answer = open_client(served).post("/detect", files={"image": content})
        assert answer.status_code == 422
        assert re.match(r"the image: (an input of )?160x1 pixels", answer.json()["detail"])
    boxes = {"boxes": "[[0, 0, 9, 9]]"}
    answer = open_client(detector).post("/classify", files={"image": content}, data=boxes)
    assert answer.json()["detail"].startswith("the image: an input of 160x1 pixels")


def test_head_is_answered_where_get_is(detector: Detector, open_client: Open) -> None:
    client = open_client(detector)
    for path in ("/", "/docs", "/model", "/health", "/openapi.json"):
        answer = client.head(path)
        assert answer.status_code == client.get(path).status_code == 200
        assert answer.headers["content-type"] == client.get(path).headers["content-type"]
    assert all("head" not in path for path in client.get("/openapi.json").json()["paths"].values())


def test_pages_load_nothing_from_elsewhere(detector: Detector, open_client: Open) -> None:
    client = open_client(detector)
    for path in ("/", "/docs"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert "http:" not in policy
        links = answer.text.replace("http://www.w3.org/", "")  # the names of XML's languages
        assert "http://" not in links
        assert "https://" not in links
        assert " style=" not in links  # the policy forbids such attributes
        assert answer.headers["x-content-type-options"] == "nosniff"
