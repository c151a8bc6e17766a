"""Write a trained network as ONNX, OpenVINO or torch.export, with a program that runs it, and check it.

Regions are an input of the exported network, beside the image. Scores and boxes of all regions are compared
with those of the network itself before the folder is put in its place.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.commands import cli
from detector.core.errors import InputError
from detector.core.progress import note, progress_bar, show

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from detector.config import Config
    from detector.core.structures import Batch, Detections
    from detector.data.transforms import ImageTransform
    from detector.export.checks import Case, Compare, Compared, Row, Tolerances
    from detector.export.formats import Runner, Signature
    from detector.models.detector import RegionDetector


def main() -> int:
    arguments = parse()

    from detector.engine.checkpoint import load_checkpoint
    from detector.export.folder import check_free, whole_folder
    from detector.export.formats import needed, require

    folder = Path(arguments.output)
    check_free(folder, overwrite=arguments.overwrite)
    require(*needed(arguments.format))
    checkpoint = load_checkpoint(cli.checkpoint_file(arguments.checkpoint))
    export = prepared(checkpoint, arguments)
    try:
        with whole_folder(folder, overwrite=arguments.overwrite) as unfinished:
            export.write(unfinished)
            rows = export.check(unfinished, arguments.check_images)
            report = {"limits": export.limits._asdict(), "rows": [row.to_dict() for row in rows]}
            write_json(unfinished / "check.json", report)
            if not all(row.passed for row in rows):
                raise _Differs
    except _Differs:
        show_report(arguments, rows, {**report, "passed": False, "folder": None})
        note(
            f"error: the exported network is not equal to the checkpoint's; nothing was written to {folder}. "
            "If the differences are only those of rounding, in a network with large images or many layers, "
            "accept larger ones with --score-tolerance and --box-tolerance"
        )
        return 1
    show_report(arguments, rows, {**report, "passed": True, "folder": str(folder)})
    note(f"wrote {folder}: python {folder / 'run.py'} {export.usage}")
    return 0


class _Differs(Exception):
    """The exported network gives other results than the checkpoint's."""


@dataclass(frozen=True)
class Export:
    """A checkpoint's network and how it is to be exported."""

    config: Config
    model: RegionDetector
    about: dict[str, Any]
    form: str
    postprocess: bool
    search: bool
    limits: Tolerances

    @property
    def classifies(self) -> bool:
        return self.config.task == "classification"

    @property
    def usage(self) -> str:
        """The arguments of ``run.py``."""
        if self.classifies:
            return "IMAGE"
        return "IMAGE [REGIONS]" if self.search else "IMAGE REGIONS"

    @property
    def signature(self) -> Signature:
        from detector.export.formats import Signature

        if self.classifies:
            return Signature(("image",), (("height", "width", None),), ("scores",))
        detections = ("boxes", "scores", "labels") if self.postprocess else ()
        return Signature(
            ("image", "regions", "size", "scale"),
            (("height", "width", None), ("regions", None), (None,), (None,)),
            (*detections, "region_scores", "region_boxes"),
        )

    def write(self, folder: Path) -> None:
        """Write the network, ``model.json`` and the programs into the empty ``folder``."""
        import torch

        from detector.export.checks import test_image, test_regions
        from detector.export.formats import traced, write
        from detector.export.programs import run_program, selective_search_program
        from detector.factory.export import limits_of, portable_network

        limits, dense = limits_of(self.config, self.model), self.form == "torch_export"
        network = portable_network(self.config, self.model, postprocess=self.postprocess, dense=dense)
        size = (150, 200)
        case = (size, test_image(size, 0), test_regions(size, 5, 0))
        example = [torch.from_numpy(part) for part in self.inputs_of(case)]
        sides = limits.smallest, max(limits.largest)
        with progress_bar(f"writing {self.form}") as advance:
            program = traced(network, example, self.signature, sides, limits.regions)
            advance(1, 2)
            write(self.form, program, folder, self.signature)
            advance(2, 2)
        write_json(folder / "model.json", self.about)
        vision = any("torchvision" in str(node.target) for node in program.graph.nodes)
        text = run_program(self.form, classifies=self.classifies, torchvision=vision, search=self.search)
        (folder / "run.py").write_text(text)
        if self.search:
            (folder / "selective_search.py").write_text(selective_search_program())

    def check(self, folder: Path, images: int) -> list[Row]:
        """Compare the files of ``folder`` with the checkpoint's network, over the first ``images`` sizes."""
        from detector.export.checks import COUNTS, SIZES, compare_all
        from detector.export.formats import load

        sizes = [size for size in SIZES if min(self._view().size_of(size)) >= self._smallest()][:images]
        run = load(self.form, folder, self.signature)
        compare = self._classified(run) if self.classifies else self._detected(run)
        with progress_bar("checking") as advance:
            counts = (1,) if self.classifies else COUNTS
            return compare_all(compare, sizes, counts, advance, self.limits)

    def _view(self) -> ImageTransform:
        from detector.factory.export import view_of

        return view_of(self.config)

    def _smallest(self) -> int:
        smallest: int = self.about["image"]["smallest_side"]
        return smallest

    def _detected(self, run: Runner) -> Compare:
        import torch

        from detector.engine.inference import RegionPredictor
        from detector.export.checks import largest_difference
        from detector.factory.model import build_postprocess, build_predictor

        predictor = build_predictor(self.config, self.model, "cpu")
        postprocess = build_postprocess(self.config, self.model.box_coder)
        assert isinstance(predictor, RegionPredictor)

        def compare(case: Case) -> Compared:
            view, inputs = self.batch(case), self.inputs_of(case)
            expected = predictor.regions([view])
            *found, scores, boxes = run(inputs)
            equal = None
            if found:
                own = [(torch.from_numpy(boxes), torch.from_numpy(scores))]
                equal = same_detections(found, postprocess.select(own, case[0]))
            differences = (
                largest_difference(scores, expected.scores),
                largest_difference(boxes, expected.boxes),
            )
            return view.metas[0].input_size, *differences, equal

        return compare

    def _classified(self, run: Runner) -> Compare:
        from detector.export.checks import largest_difference
        from detector.factory.model import build_predictor

        predictor = build_predictor(self.config, self.model, "cpu")

        def compare(case: Case) -> Compared:
            view = self.batch(case)
            (scores,) = run(self.inputs_of(case))
            return view.metas[0].input_size, largest_difference(scores, predictor([view])), 0.0, None

        return compare

    def batch(self, case: Case) -> Batch:
        """Return the view of a case's image with its regions, as the predictor takes it."""
        from detector.api import record_of
        from detector.core.structures import Proposals
        from detector.data.images import LoadedImage
        from detector.data.samples import collate, make_sample

        size, pixels, regions = case
        record = record_of(Path("check"), size)
        meta = self._view().plan(size, record.image_id)
        return collate([make_sample(record, LoadedImage.of(pixels), Proposals(boxes=regions), meta)])

    def inputs_of(self, case: Case) -> list[np.ndarray]:
        """Return the inputs of the exported network for a case, in the order of the signature."""
        import numpy as np

        view = self.batch(case)
        image, meta = view.images[0].numpy(), view.metas[0]
        if self.classifies:
            return [image]
        regions = case[2].numpy()
        return [image, regions, np.array(meta.original_size, np.float32), np.array(meta.scale, np.float32)]


def prepared(checkpoint: dict[str, Any], arguments: argparse.Namespace) -> Export:
    """Return the network of a checkpoint and how it is to be exported.

    Raises:
        InputError: for a network that cannot be exported; says why.
    """
    from detector import __version__
    from detector.config.load import parse_stored
    from detector.export.checks import USUAL, Tolerances
    from detector.export.folder import FORMAT
    from detector.export.formats import FILES
    from detector.factory.export import (
        check_exportable,
        check_postprocess,
        describe,
        limits_of,
        refuse_own_parts,
    )
    from detector.factory.model import restore_model

    source = checkpoint["file"]
    refuse_own_parts(checkpoint["config"], source)
    values = [*arguments.overrides, "stages=[]"]
    config = parse_stored(checkpoint["config"], values, source, allow_code=_proposal_code(checkpoint))
    config = config.model_copy(update={"test": config.test.model_copy(update={"precision": "float32"})})
    check_exportable(config, source)
    if arguments.postprocess:
        check_postprocess(config, source)
    if arguments.selective_search and config.task == "classification":
        raise InputError(f"{source} classifies whole images, which needs no regions; omit --selective-search")
    model = restore_model(config, checkpoint, source)
    about = {
        "format": FORMAT,
        "version": __version__,
        "checkpoint": {"file": Path(source).name, "step": checkpoint["step"]},
        "network": {"format": arguments.format, "file": FILES[arguments.format]},
        **describe(config, checkpoint, limits_of(config, model), postprocess=arguments.postprocess),
    }
    search = arguments.selective_search
    given = arguments.score_tolerance, arguments.box_tolerance
    limits = Tolerances(*(usual if one is None else one for one, usual in zip(given, USUAL, strict=True)))
    export = Export(config, model, about, arguments.format, arguments.postprocess, search, limits)
    signature = export.signature
    about["inputs"] = {name: INPUTS[name] for name in signature.inputs}
    about["outputs"] = {name: OUTPUTS[name] for name in signature.outputs}
    return export


def _proposal_code(checkpoint: dict[str, Any]) -> list[str]:
    """Return the function of the user that made the proposals: an export does not call it."""
    proposals = checkpoint["config"].get("proposals")
    method = proposals.get("method") if isinstance(proposals, dict) else None
    return [method] if isinstance(method, str) else []


INPUTS = {
    "image": "uint8 (height, width, 3), RGB, in the size of the network's input",
    "regions": "float32 (regions, 4): x1, y1, x2, y2, half-open, in pixels of the original image, within it",
    "size": "float32 (2): height and width of the original image",
    "scale": "float32 (2): height and width of the network's input divided by those of the original image",
}
OUTPUTS = {
    "boxes": "float32 (detections, 4), in pixels of the original image, by falling score",
    "scores": "float32 (detections), or (classes) of a classifier",
    "labels": "int64 (detections), from 1: label k is class k - 1 of the list",
    "region_scores": "float32 (regions, 1 + classes); column 0 is the background",
    "region_boxes": "float32 (regions, 1 + classes, 4): the region as each class moves it, within the image",
}


def same_detections(found: Sequence[np.ndarray], expected: Detections) -> bool:
    """Say whether detections have the same labels in the same order, and the same boxes and scores."""
    from detector.export.checks import USUAL, largest_difference

    boxes, scores, labels = found
    return (
        largest_difference(labels, expected.labels) == 0
        and largest_difference(scores, expected.scores) <= USUAL.scores
        and largest_difference(boxes, expected.boxes) <= USUAL.boxes
    )


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def show_report(arguments: argparse.Namespace, rows: Sequence[Row], report: dict[str, Any]) -> None:
    """Print the differences as a table, or as JSON."""
    show(json.dumps(report, indent=2) if arguments.json else table(rows))


def table(rows: Sequence[Row]) -> Table:
    """Return the largest differences of each image, by the number of regions."""
    from rich.table import Table

    counts = list(rows[0].scores) if rows else []
    result = Table(
        title="largest differences of scores/boxes (pixels), by regions per image", box=None, pad_edge=False
    )
    for name in ("image", "input", *(f"{count}" for count in counts), ""):
        result.add_column(name, justify="right")
    for row in rows:
        cells = [
            f"{short(row.scores[count])}/{short(row.boxes[count])}"
            + ("" if row.detections.get(count, True) else " other detections")
            for count in counts
        ]
        sizes = [f"{width}x{height}" for height, width in (row.size, row.input_size)]
        result.add_row(*sizes, *cells, "ok" if row.passed else "FAILED")
    return result


def short(value: float) -> str:
    """Return a difference with one digit, such as 3e-5."""
    return f"{value:.0e}".replace("e-0", "e-") if value else "0"


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/export.py --checkpoint runs/quickstart --format onnx --output exported \\\n"
        "      --postprocess",
    )
    cli.add_checkpoint_argument(parser)
    parser.add_argument("--format", required=True, choices=("onnx", "torch_export", "openvino"))
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier export in DIR; other folders are refused"
    )
    parser.add_argument(
        "--postprocess",
        action="store_true",
        help="let the network also select the detections: score threshold, suppression and limit of test.*",
    )
    parser.add_argument(
        "--selective-search",
        action="store_true",
        help="add selective_search.py, with which run.py finds regions itself, similar to this project's",
    )
    parser.add_argument(
        "--check-images",
        type=int,
        default=20,
        metavar="N",
        help="compare on N sizes of images, 1 to 20 (default: 20)",
    )
    parser.add_argument(
        "--score-tolerance",
        type=float,
        metavar="D",
        help="the largest difference of scores that passes (default: 1e-4)",
    )
    parser.add_argument(
        "--box-tolerance",
        type=float,
        metavar="PIXELS",
        help="the largest difference of boxes that passes (default: 1e-3)",
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values to replace, e.g. test.scales=[480]"
    )
    arguments = parser.parse_intermixed_args()
    if not 1 <= arguments.check_images <= 20:
        raise InputError(f"--check-images {arguments.check_images}: give a number from 1 to 20")
    for name in ("score_tolerance", "box_tolerance"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} {value:g}: give a finite number of at least 0")
    return arguments
