"""The program beside an exported network: ``run.py``, which needs no part of this project."""

from __future__ import annotations

from pathlib import Path

_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "torch_export": "torch"}
_IMPORTS = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "torch_export": "torch",
}
_RUN = {
    "onnx": """    model, providers = str(HERE / "model.onnx"), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model, providers=providers)
    return session.run(None, {given.name: value for given, value in zip(session.get_inputs(), inputs)})
""",
    "openvino": """    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # no bfloat16 on processors that have it
    network = openvino.Core().compile_model(str(HERE / "model.xml"), "CPU", exact)
    return [np.array(value) for value in network(list(inputs)).values()]
""",
    "torch_export": """    network = torch.export.load(str(HERE / "model.pt2")).module()
    return [value.detach().numpy() for value in network(*map(torch.from_numpy, inputs))]
""",
}
_VISION = ", torchvision  # registers operators of this network"

_START = '''"""$SUMMARY. It needs $PACKAGES, numpy and OpenCV."""
import json, pathlib, runpy, sys, cv2, numpy as np, $IMPORTS
HERE = pathlib.Path(__file__).resolve().parent
ABOUT = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
def read(path):  # the image, RGB, in the size of the network's input, and its own (height, width)
    image, view = cv2.imread(path), ABOUT["image"]
    size = image.shape[:2] if image is not None else sys.exit(f"{path}: not an image that OpenCV can read")
    factor = 1 if view["resize"] == "none" else view["scale"] / min(size)
    if round(factor * max(size)) > view["max_size"]: factor = view["max_size"] / max(size)
    goal = [view["scale"]] * 2 if view["resize"] == "square" else [max(1, round(s * factor)) for s in size]
    if min(goal) < view["smallest_side"]: sys.exit(f"{path}: too small: its input would be {goal[::-1]}")
    parts = [part for part in (8, 4, 2) if all(-(-side // part) >= least for side, least in zip(size, goal))]
    if parts and not 0 < abs(size[0] - size[1]) < 8 and open(path, "rb").read(2) == b"\\xff\\xd8":
        image = cv2.imread(path, getattr(cv2, f"IMREAD_REDUCED_COLOR_{parts[0]}"))  # as the project reads it
    return cv2.cvtColor(cv2.resize(image, goal[::-1]), cv2.COLOR_BGR2RGB), size  # resized bilinearly
def run(*inputs):
$RUN'''

_DETECT = """def read_regions(path, size):  # rows x1, y1, x2, y2 in pixels of the image: .npy, .json or text
    try:
        if path.endswith(".npy"): rows = np.load(path)
        elif path.endswith(".json"): rows = json.load(open(path))
        else: rows = [row.replace(",", " ").split() for row in open(path) if row.strip()]
        boxes = np.asarray(rows, np.float32).reshape(len(rows), 4)
    except Exception as error: sys.exit(f"{path}: not rows of x1, y1, x2, y2: {error}")
    if not ((boxes >= 0) & (boxes <= [*size[::-1]] * 2)).all() or (boxes[:, :2] >= boxes[:, 2:]).any():
        sys.exit(f"{path}: a box is not x1, y1, x2, y2 with x1 < x2 and y1 < y2 within the image")
    return boxes
if len(sys.argv) < $LEAST: sys.exit(__doc__)
image, size = read(sys.argv[1])
$REGIONS
*found, scores, boxes = run(image, regions, np.float32(size), np.float32(np.divide(image.shape[:2], size)))
if not found:  # without post-processing inside: the likeliest class of each region
    rows, labels = np.arange(len(scores)), scores[:, 1:].argmax(1) + 1
    found = boxes[rows, labels], scores[rows, labels], labels
rows = zip(*(part.tolist() for part in found))
objects = [{"class": ABOUT["classes"][k - 1], "score": score, "box": box} for box, score, k in rows]
print(json.dumps({"image": sys.argv[1], "height": size[0], "width": size[1], "detections": objects}))
"""
_GIVEN = "regions = read_regions(sys.argv[2], size)"
_SEARCH = """search = runpy.run_path(str(HERE / "selective_search.py"))["propose"]
regions = read_regions(sys.argv[2], size) if len(sys.argv) > 2 else search(sys.argv[1])"""

_CLASSIFY = """
if len(sys.argv) < 2: sys.exit(__doc__)
image, size = read(sys.argv[1])
(scores,) = run(image)
order = np.argsort(-scores, kind="stable")
ranked = [{"class": ABOUT["classes"][k], "score": float(scores[k])} for k in order]
print(json.dumps({"image": sys.argv[1], "height": size[0], "width": size[1], "scores": ranked}))
"""


def run_program(form: str, *, classifies: bool, torchvision: bool, search: bool) -> str:
    """Return the text of ``run.py`` for a format.

    ``torchvision`` says whether a program of ``torch.export`` holds operators of torchvision, ``search``
    whether ``selective_search.py`` lies beside it.
    """
    packages, imports = _PACKAGES[form], _IMPORTS[form]
    if torchvision and form == "torch_export":
        packages, imports = f"{packages}, torchvision", imports + _VISION
    if classifies:
        summary = "Name the classes of an image: python run.py IMAGE"
    else:
        regions = "[REGIONS]" if search else "REGIONS"
        summary = f"Score regions of an image: python run.py IMAGE {regions}"
    text = _START + (_CLASSIFY if classifies else _DETECT)
    values = {
        "$SUMMARY": summary,
        "$PACKAGES": packages,
        "$IMPORTS": imports,
        "$RUN": _RUN[form],
        "$LEAST": "2" if search else "3",
        "$REGIONS": _SEARCH if search else _GIVEN,
    }
    if not search:
        text = text.replace("pathlib, runpy, sys", "pathlib, sys")
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def selective_search_program() -> str:
    """Return the text of ``selective_search.py``."""
    return (Path(__file__).parent / "selective_search.py").read_text(encoding="utf-8")
