"""What the tests of several processes compare, in one start: ``python -m tests.multiprocess.cases FOLDER``.

It is started by ``torchrun``, or done by the process of the tests, in a working directory that holds
``tiny.yaml``. Every case has a folder of its own below FOLDER. Some read what the start with one process has
left in ``one``.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from detector.commands import cli
from detector.commands import evaluate as evaluate_command
from detector.commands.evaluate import score_checkpoint
from detector.config import Config, load_config
from detector.core import distributed
from detector.core.errors import InputError
from detector.core.progress import note
from detector.core.structures import Batch
from detector.engine.checkpoint import load_checkpoint
from detector.engine.run import Assessment
from detector.factory.data import split_records
from detector.factory.proposals import generate
from detector.staged.runner import StagedTraining
from detector.tasks.start import build_task, start_run

ONE = Path("one")
"""The folder of the start with one process."""
SIX = ("train.images_per_batch=6", "model.head.dropout=0", "train.scales=[64]", "train.max_size=100")
FIFTY = (*SIX, "train.steps=50", "train.checkpoint_every=25", "train.learning_rate=0.0005")
COCO = (*FIFTY, "test.metric=coco")
CLASSIFIER = (
    "task=classification",
    "model.pool={kind: spp, levels: [1, 2]}",
    "train.learning_rate=0.0005",
    "train.steps=8",
    "train.checkpoint_every=8",
    *SIX,
)
WEAK = (
    *("task=weak_detection", "train.learning_rate=0.01", "test.score_threshold=0.0001"),
    *("train.steps=6", "train.checkpoint_every=6", *SIX),
)
WITHOUT_BATCH_NORM = ("model.backbone.name=alexnet", "train.steps=4", "train.checkpoint_every=2", *SIX)

OPTIONS = (
    *("train.optimizer=adamw", "train.learning_rate=1e-4", "train.ema=0.8", "train.steps=12"),
    *("train.sampling={kind: ohem, rois_per_image: 8}", "train.validation_loss=true"),
    *("train.evaluate_every=2", "train.early_stopping=1", "train.evaluate_split=test"),
    "train.augment.color_jitter={brightness: 0.3, contrast: 0.3, saturation: 0.3, hue: 0.1}",
    *("train.augment.expand={probability: 0.7, max_ratio: 2}", "train.augment.crop={probability: 0.7}"),
    *("train.augment.cutout={probability: 0.7, count: 2}", "train.checkpoint_every=2", *SIX),
)
"""Settings that change what a step sees, computes and keeps, all together; the run ends early."""


def config_of(*overrides: str, file: str = "tiny.yaml") -> Config:
    return load_config(file, overrides)


def double_task(config: Config, device: str, state: dict[str, Any] | None) -> Any:
    """Build the config's task with a network that computes in float64."""
    task = build_task(config, device, state)
    inputs = task.model.inputs
    task.model.double()
    task.model.pixel_values = task.model.pixel_values.float()  # the operator makes float32
    task.model.inputs = lambda *given: inputs(*given).double()  # type: ignore[method-assign]
    return task


def train(folder: Path, *overrides: str, resume: bool = False, finish: bool = False) -> None:
    """Do a run with its evaluation and, with ``finish``, its result files."""
    run = start_run(config_of(*overrides), folder, "cpu", resume=resume)
    run.run()
    if finish:
        run.finish()


def in_float64(folder: Path) -> None:
    """Train 50 steps in float64 without an evaluation, and record what every step computes with."""
    run = start_run(config_of(*FIFTY), folder, "cpu", make_task=double_task)
    steps: list[dict[str, Any]] = []
    compute = run.task.step

    def recorded(batch: Batch, count: float) -> dict[str, torch.Tensor]:
        assert batch.sampled is not None
        images = [meta.image_id for meta in batch.metas]
        steps.append({"images": images, "shape": tuple(batch.images.shape[1:]), "rois": batch.sampled.rois})
        return compute(batch, count)

    class NoScorer:
        def assess(self, model: Any, **_options: Any) -> Assessment[Any]:
            raise StopIteration  # the detections of a network in float64 are of no use

    run.task.step = recorded  # type: ignore[method-assign]
    run.task.scorer = NoScorer()  # type: ignore[misc, assignment]
    try:
        run.run()
    except StopIteration:
        torch.save(steps, folder / f"steps_{distributed.rank()}.pt")


def in_float32(folder: Path) -> None:
    train(folder, *COCO, finish=True)


def with_dropout(folder: Path) -> None:
    if distributed.world_size() == 2:
        train(folder, "train.images_per_batch=6")


def classify(folder: Path) -> None:
    train(folder, *CLASSIFIER)


def from_image_labels(folder: Path) -> None:
    train(folder, *WEAK)


def with_options(folder: Path) -> None:
    train(folder, *OPTIONS)


def in_parts(folder: Path) -> None:
    """Train with ``train.accumulate``: two parts in one process and in three, three parts in two."""
    train(folder, *WITHOUT_BATCH_NORM, _parts())


def in_one_part(folder: Path) -> None:
    if distributed.world_size() == 1:
        train(folder, *WITHOUT_BATCH_NORM)


def resumed(folder: Path) -> None:
    """In three processes, go on after the first 25 of the 50 steps, as one process has done them."""
    if distributed.world_size() == 3:
        _go_on(ONE / "in_float32" / "checkpoints" / "step_25.pt", folder, *COCO)


def again(folder: Path) -> None:
    """In three processes, whose gradients can be added up in several orders, do two of four steps again."""
    if distributed.world_size() == 3:
        before = folder.parent / "in_parts" / "checkpoints" / "step_2.pt"
        _go_on(before, folder, *WITHOUT_BATCH_NORM, _parts())


def _parts() -> str:
    return f"train.accumulate={3 if distributed.world_size() == 2 else 2}"


def _go_on(checkpoint: Path, folder: Path, *overrides: str) -> None:
    """Resume a run from a checkpoint, in a folder of its own."""
    if distributed.is_main():
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(checkpoint, folder / "checkpoints")
    distributed.barrier()
    train(folder, *overrides, resume=True)


def evaluate(folder: Path) -> None:
    """Score the networks that one process has trained, by several metrics and on few images."""
    for name, source, overrides in (
        ("coco", "in_float32", ("test.metric=coco",)),
        ("voc", "in_float32", ("test.metric=voc07",)),
        ("few", "in_float32", ("test.metric=coco", "test.max_images=1")),
        ("classes", "classify", CLASSIFIER),
    ):
        path = sorted((ONE / source / "checkpoints").glob("step_*.pt"))[-1]
        config = config_of(*overrides)
        saved = None if name == "classes" else folder / f"{name}.npz"
        metrics = score_checkpoint(
            config, load_checkpoint(path), str(path), "test", folder / name, "cpu", save_scores=saved
        )
        (folder / f"{name}_{distributed.rank()}.json").write_text(json.dumps(metrics))


def evaluate_tool(folder: Path) -> None:
    """In several processes, do what ``tools/evaluate.py`` does once they have joined."""
    if distributed.world_size() == 1:
        return
    given = ["--config", "tiny.yaml", "--checkpoint", str(ONE / "in_float32" / "checkpoints" / "step_50.pt")]
    sys.argv[1:] = [*given, "--device", "cpu", "--output", str(folder / "m.json"), "test.metric=coco"]
    arguments = evaluate_command.parse()
    evaluate_command.report(arguments, evaluate_command.score_given(arguments, "cpu"))


def proposals(folder: Path) -> None:
    """Generate data, and make their proposals, in a folder of the case's own."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    method = {"method": "tests.multiprocess.boxes:boxes_of", "options": {"calls": str(folder / "calls")}}
    config = config_of(
        f"data.root={data}",
        "data.generate={train_images: 7, test_images: 4}",
        f"proposals={json.dumps(method)}",
    )
    records = list(split_records(config)["trainval"])
    if distributed.is_main():
        Image.new("RGB", (40, 40)).save(folder / "square.png")
    square = replace(records[2], path=folder / "square.png", key="square.png", height=40, width=40)
    for given in ([*records[:5], square, *records[5:]], records):  # the second time nothing is left to do
        store, failures = generate(config.proposals, given, folder / "store")
        assert len(store) == len(records)
        assert list(failures) == (["square.png"] if square in given and distributed.is_main() else [])


def staged(folder: Path) -> None:
    """Do all stages in one process; in two, those after the first one, which is taken from there."""
    _stages(folder, done=1)


def fits(folder: Path) -> None:
    """In two processes, do the stages that fit a layer, after those that one process has done."""
    if distributed.world_size() > 1:
        _stages(folder, done=2)


def _stages(folder: Path, done: int) -> None:
    if distributed.world_size() == 3:
        return
    if distributed.world_size() == 2 and distributed.is_main():
        for name in ("01_classify", "02_fine_tune")[:done]:
            shutil.copytree(ONE / "staged" / "stages" / name, folder / "stages" / name)
    distributed.barrier()
    training = StagedTraining(config_of(file="staged.yaml"), folder, "cpu")
    evaluation = training.run()
    assert evaluation is not None
    training.finish(evaluation)


def dropped(folder: Path) -> None:
    """Leave the numbers that dropout draws in two steps, after the same seed in every process."""
    drawn = []
    for step in (0, 1, 0):
        torch.manual_seed(7)
        distributed.draw_apart(3, step)
        drawn.append(torch.rand(4))
    torch.save(torch.stack(drawn), folder / f"drawn_{distributed.rank()}.pt")


def talk(folder: Path) -> None:
    """Leave what the functions of `detector.core.distributed` return in each process."""
    rank, order = distributed.rank(), folder / "order.txt"
    rows = torch.full((rank, 2), float(rank))
    with distributed.main_first(), order.open("a") as file:
        file.write(f"{rank} enters\n")
        time.sleep(0.05)
        file.write(f"{rank} leaves\n")
    if rank == 0:
        with distributed.busy():
            time.sleep(0.2)
    found: dict[str, Any] = {
        "rows": [part.tolist() for part in distributed.gather_rows(rows)],
        "texts": distributed.gather_texts("grün" * rank),
        "total": distributed.total(rank, 1),
    }
    try:
        distributed._check_devices(f"kind {rank}")
    except InputError as error:
        found["devices"] = str(error)
    (folder / f"talk_{rank}.json").write_text(json.dumps(found))


CASES: tuple[Callable[[Path], None], ...] = (
    *(
        in_float64,
        in_float32,
        with_dropout,
        classify,
        from_image_labels,
        in_one_part,
        in_parts,
        resumed,
        again,
        evaluate,
    ),
    *(evaluate_tool, with_options, proposals, staged, fits, dropped, talk),
)


def do(root: Path, wanted: Sequence[str] = ()) -> None:
    """Do the ``wanted`` cases, or all, each in its folder below ``root``."""
    for case in CASES:
        if wanted and case.__name__ not in wanted:
            continue
        folder = root / case.__name__
        if distributed.is_main():
            folder.mkdir(parents=True)
        distributed.barrier()
        began = time.monotonic()
        case(folder)
        distributed.barrier()
        note(f"{case.__name__} took {time.monotonic() - began:.1f} seconds")


def main() -> None:
    root, wanted = Path(sys.argv[1]), sys.argv[2:]
    with cli.processes("cpu"):
        do(root, wanted)


if __name__ == "__main__":
    cli.run(main, together=True)
