"""Make a checkpoint smaller and faster: fc6, fc7 and so on by truncated SVD (Fast R-CNN, section 3.1).

The ranks are given by --rank, or searched for on validation images by --search. The result is a checkpoint
like any other.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from detector.commands import cli
from detector.core.errors import InputError
from detector.core.files import require_regular
from detector.core.machine import process_seconds
from detector.core.progress import note, show
from detector.evaluation.report import write_json

if TYPE_CHECKING:
    from detector.config import Config
    from detector.models.low_rank import Factors
    from detector.tasks.compression import Ranks, Search
    from detector.tasks.scoring import Scorer

MAX_LOSS = 0.003
"""Fast R-CNN's own compressed VGG16 loses 0.003 mAP (section 4.4)."""
WHOLE = "whole"
NAMES = {"voc07": "voc07_mAP", "voc": "voc_mAP", "coco": "AP"}
"""The headline metric by ``test.metric``, as `tasks.scoring.headline` reads it."""


def main() -> int:
    arguments = parse()
    place = cli.checkpoint_file(arguments.checkpoint)
    output = output_file(arguments, place)
    given = parse_ranks(arguments.rank, several=arguments.search)

    from detector.config.load import parse_stored
    from detector.engine.checkpoint import load_checkpoint
    from detector.factory.model import restore_model
    from detector.factory.resources import choose_device, use_cores
    from detector.tasks.compression import chosen_ranks, compute_factors, factorize, stored_config

    checkpoint = load_checkpoint(place)
    source = checkpoint["file"]
    config = parse_stored(checkpoint["config"], arguments.overrides, source)
    device = choose_device(arguments.device)
    use_cores(config, device)
    model = restore_model(config, checkpoint, source)
    factors = factorize(model, source)
    choices = chosen_ranks(factors, given, searching=arguments.search)
    first: Ranks = tuple(each[0] for each in choices)
    if not arguments.search and not any(first):
        raise InputError("--rank: every layer stays as it is; give a rank, such as --rank fc6=64")
    if arguments.search:
        scorer = open_scorer(config, checkpoint, arguments.split, source, device)
    compute_factors(factors, choices)
    ranks: Ranks | None = first
    report: dict[str, Any] = {"checkpoint": source, "step": checkpoint["step"], "layers": list(factors)}
    changes: dict[str, Any] = {}
    if arguments.search:
        found = searched(config, model.to(device), factors, choices, scorer, arguments.max_loss)
        ranks = None if found.picked is None else found.picked.ranks
        changes = new_threshold(checkpoint, scorer, found)
        show(search_table(found, list(factors)))
        report |= search_report(found, list(factors), arguments.max_loss)
    else:
        show(layers_table(factors, first))
        report |= {"weights": layers_report(factors, first)}
    report |= {"ranks": None if ranks is None else dict(zip(factors, ranks, strict=True))}
    report |= {"output": None if ranks is None else str(output), "seconds": round(process_seconds(), 1)}
    if ranks is not None:
        save(output, checkpoint, stored_config(checkpoint, source), factors, ranks, changes)
    write_json(output.with_suffix(".json"), report)
    return finish(output, ranks, arguments.max_loss)


def finish(output: Path, ranks: Ranks | None, max_loss: float) -> int:
    """Print where the result is, or that there is none; return the exit status."""
    if ranks is None:
        note(
            f"no smaller network loses at most {max_loss:g}; no checkpoint is written, and all candidates "
            f"are in {output.with_suffix('.json')}: allow more with --max-loss"
        )
        return 1
    note(f"wrote {output} and {output.with_suffix('.json')}")
    command = ["python", "tools/demo.py", "--checkpoint", str(output), "photos/", "--output", "drawn"]
    note(f"use it like any other checkpoint: {shlex.join(command)}")
    return 0


def open_scorer(
    config: Config, checkpoint: Mapping[str, Any], split: str | None, source: str, device: str
) -> Scorer[Any]:
    """Return what scores networks on the run's validation images, or on ``split``; never on the test split.

    Raises:
        InputError: the test split, or no split where the run has no validation images.
    """
    from detector.core.progress import said_once
    from detector.factory.data import find_validation
    from detector.tasks.compression import measured_in_float32
    from detector.tasks.start import build_scorer

    if split == config.data.test_split:
        raise InputError(
            f"--split {split}: this is the test split, and ranks that were chosen on it would flatter its "
            "results; name a validation split"
        )
    if split is None and not find_validation(config):
        raise InputError(
            f"{source}: its run has no validation images (data.val_split, train.validation_fraction) on "
            "which a loss could be measured; name a split of its data set with --split, such as --split val"
        )
    if split is not None:
        note_shared_images(config, split)
    with said_once():
        return build_scorer(
            measured_in_float32(config),
            device,
            classes=checkpoint["classes"],
            split=split,
            only_validation=split is None,
        )


def note_shared_images(config: Config, split: str) -> None:
    """Warn if the network may have been trained on images of ``split``; refuse images of the test split."""
    from detector.commands.label import keys_of
    from detector.factory.data import ensure_data

    ensure_data(config)
    names = (split, config.data.train_split, config.data.test_split)
    own, trained, tested = (set(keys_of(config, name)) for name in names)
    if own & tested:
        raise InputError(
            f"--split {split}: {len(own & tested)} of its images are in the test split "
            f"{config.data.test_split} too; name a split without them"
        )
    if own & trained:
        note(
            f"warning: {len(own & trained)} of {len(own)} images of {split} are in the training split "
            f"{config.data.train_split} too: the loss on other images may be larger"
        )


def searched(
    config: Config,
    model: Any,
    factors: Mapping[str, Factors],
    choices: Sequence[Sequence[int | None]],
    scorer: Scorer[Any],
    max_loss: float,
) -> Search:
    """Return the search among the ``choices`` of each layer."""
    from detector.engine.determinism import cuda_algorithms
    from detector.tasks.compression import measured_in_float32, search

    with cuda_algorithms(scorer.device, deterministic=config.train.deterministic):
        return search(measured_in_float32(config), model, factors, choices, scorer, max_loss)


def new_threshold(checkpoint: Mapping[str, Any], scorer: Scorer[Any], found: Search) -> dict[str, Any]:
    """Return the score threshold that is best on the images of the search, if the checkpoint has one."""
    if checkpoint.get("score_threshold") is None or found.evaluation is None:
        return {}
    point = scorer.choose_point(found.evaluation)
    return {} if point is None else {"score_threshold": point.score_threshold}


def save(
    output: Path,
    checkpoint: Mapping[str, Any],
    config: Config,
    factors: Mapping[str, Factors],
    ranks: Ranks,
    changes: Mapping[str, Any],
) -> None:
    from detector.engine.checkpoint import save_checkpoint
    from detector.tasks.compression import compressed_checkpoint

    save_checkpoint(output, compressed_checkpoint(checkpoint, config, factors, ranks, **changes))


def layers_table(factors: Mapping[str, Factors], ranks: Ranks) -> Table:
    """Return the table of given ranks: what each layer had and has."""
    table = Table(title="truncated SVD")
    for title in ("layer", "rank", "weights", "were", "ratio", "energy kept"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for (name, factored), rank in zip(factors.items(), ranks, strict=True):
        before, now = factored.weights(None), factored.weights(rank)
        kept = "" if rank is None else f"{factored.kept(rank):.4f}"
        table.add_row(name, shown_rank(rank), f"{now:,}", f"{before:,}", f"{now / before:.3f}", kept)
    return table


def layers_report(factors: Mapping[str, Factors], ranks: Ranks) -> dict[str, Any]:
    """Return `layers_table` as plain values, by layer."""
    return {
        name: {
            "weights": factored.weights(rank),
            "were": factored.weights(None),
            "energy_kept": None if rank is None else factored.kept(rank),
        }
        for (name, factored), rank in zip(factors.items(), ranks, strict=True)
    }


def search_table(found: Search, layers: Sequence[str]) -> Table:
    """Return the networks that score higher than all smaller ones, the largest first, and mark the pick."""
    table = Table(
        title=Text(f"{len(found.candidates)} networks on {found.images} images of {found.split}"),
        caption="weights: of these layers, in thousands; head: fc6 to bbox_pred. Shown are the networks that "
        "score higher than all smaller ones.",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in (*layers, "weights", "ratio", "head ms", "ratio", NAMES[found.metric], "loss", ""):
        table.add_column(name, justify="right", no_wrap=True)
    shown = sorted((one for one in found.candidates if one.on_front), key=lambda one: -one.weights)
    for one in shown:
        seconds = "" if one.seconds is None else f"{1e3 * one.seconds:.2f}"
        ratio = "" if one.ratio is None else f"{one.ratio:.3f}"
        sizes = f"{one.weights / 1000:,.1f}", f"{one.weights / found.whole.weights:.3f}"
        loss = f"{found.whole.score - one.score:+.4f}"
        mark = "picked" if one is found.picked else ""
        ranks = (shown_rank(rank) for rank in one.ranks)
        table.add_row(*ranks, *sizes, seconds, ratio, f"{one.score:.4f}", loss, mark)
    return table


def search_report(found: Search, layers: Sequence[str], max_loss: float) -> dict[str, Any]:
    """Return a search as plain values, with all its candidates."""
    candidates = [
        {
            "ranks": dict(zip(layers, one.ranks, strict=True)),
            "weights": one.weights,
            NAMES[found.metric]: one.score,
            "loss": found.whole.score - one.score,
            "head_seconds_per_image": one.seconds,
            "head_time_ratio": one.ratio,
            "picked": one is found.picked,
        }
        for one in found.candidates
    ]
    return {
        "split": found.split,
        "images": found.images,
        "max_loss": max_loss,
        "search_seconds": round(found.seconds, 1),
        "candidates": candidates,
    }


def shown_rank(rank: int | None) -> str:
    return WHOLE if rank is None else str(rank)


def output_file(arguments: argparse.Namespace, checkpoint: Path) -> Path:
    """Return where the compressed checkpoint goes.

    Raises:
        InputError: a file is there already, or one beside it with the name of the report is another one.
    """
    default = checkpoint.with_name(f"{checkpoint.stem}_compressed.pt")
    output = default if arguments.output is None else Path(arguments.output)
    if output.suffix != ".pt":
        raise InputError(f"--output {output}: name a .pt file")
    if output.exists():
        raise InputError(
            f"--output {output}: exists already, and is never overwritten; remove it, or give another file"
        )
    report = output.with_suffix(".json")
    if (report.exists() or report.is_symlink()) and not is_report(report):
        raise InputError(
            f"--output {output}: its report would overwrite {report}, which is no report of this command; "
            "give another file"
        )
    return output


def is_report(path: Path) -> bool:
    """Say whether ``path`` is a report that this command has written."""
    try:
        require_regular(path)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (InputError, OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= {"checkpoint", "layers", "ranks", "output", "seconds"}


def parse_ranks(options: Sequence[str], *, several: bool) -> dict[str, list[int | None]]:
    """Return the ranks of --rank by layer, None for "whole"; ``several`` accepts more than one of a layer.

    Raises:
        InputError: not LAYER=RANK, a layer twice, or several ranks where there is no search.
    """
    ranks: dict[str, list[int | None]] = {}
    for option in options:
        name, equals, values = option.partition("=")
        words = values.split(",")
        good = all(
            word == WHOLE or (word.isascii() and word.isdigit() and 0 < int(word) < 2**31) for word in words
        )
        if not equals or not name or not good:
            raise InputError(
                f"--rank {option}: expected a layer and its rank, such as fc6=1024; {WHOLE} leaves the layer "
                "whole"
            )
        if name in ranks:
            raise InputError(f"--rank {option}: {name} is given twice")
        if len(words) > 1 and not several:
            raise InputError(f"--rank {option}: several ranks of a layer need --search, which chooses one")
        ranks[name] = [None if word == WHOLE else int(word) for word in dict.fromkeys(words)]
    return ranks


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/compress.py --checkpoint runs/mine --search --max-loss 0.003\n  "
        "python tools/compress.py --checkpoint runs/vgg16/checkpoints/best.pt --rank fc6=1024 --rank fc7=256",
    )
    cli.add_checkpoint_argument(parser)
    parser.add_argument(
        "--search",
        action="store_true",
        help="score networks of several ranks on validation images, and take the smallest within --max-loss",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        default=MAX_LOSS,
        metavar="X",
        help="the largest loss of the headline metric, absolute: 0.003 is 0.3 points of mAP in percent "
        f"(default: {MAX_LOSS:g})",
    )
    parser.add_argument(
        "--rank",
        action="append",
        default=[],
        metavar="LAYER=RANK",
        help='rank of a layer, or "whole" to leave it as it is; can be given once per layer, and other '
        "layers stay as they are. With --search, those to choose from: fc6=64,128,whole (default: 7 ranks "
        "per layer, and whole)",
    )
    parser.add_argument(
        "--split", help="split to search on (default: the validation images of the checkpoint's run)"
    )
    parser.add_argument(
        "--output",
        metavar="FILE.pt",
        help="the compressed checkpoint; a FILE.json with the table is written beside it (default: beside "
        "the checkpoint, with _compressed added to its name)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values to replace, e.g. data.root=photos"
    )
    cli.add_device_argument(parser)
    arguments = parser.parse_intermixed_args()
    if not arguments.search and not arguments.rank:
        raise InputError("give --search, or the ranks by --rank, such as --rank fc6=1024 --rank fc7=256")
    if not arguments.search and arguments.split is not None:
        raise InputError("--split is where --search measures; add --search")
    if not math.isfinite(arguments.max_loss):
        raise InputError(f"--max-loss {arguments.max_loss:g}: expected a finite number")
    return arguments
