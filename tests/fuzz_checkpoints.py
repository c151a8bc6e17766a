"""Checkpoints for `tests.fuzz_readers`: damaged bytes, and sound files with other values at their keys."""

from __future__ import annotations

import copy
import io
import random
import zipfile
from pathlib import Path
from typing import Any

import torch

from detector.config import parse_config
from detector.config.load import parse_stored
from detector.core.errors import InputError
from detector.engine.checkpoint import load_resumable, random_states, save_checkpoint, set_random_states
from detector.engine.optim import load_optimizer_state
from detector.factory.model import build_model, build_optimizer, restore_model
from tests.fuzz_changes import change_instructions

CLASSES = ["cat", "dog"]
CONFIG = {
    "data": {"root": "nowhere"},
    "proposals": {"method": "dense"},
    "model": {
        "backbone": {"name": "small", "stage": "conv1"},
        "pool": {"output_size": 1},
        "head": {"hidden": [4]},
    },
    "train": {"steps": 4},
    "stages": [{"name": "first", "kind": "train", "settings": {"train": {"steps": 2}}}],
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**62, 2**100, -(2**70), 0.5, float("nan"), float("inf"), 1e300),
    *(
        "",
        "x",
        "pydoc:pipepager",
        "../../etc/passwd",
        "\x1b[2J",
        "\u202e",
        "\0",
        "y" * 2000,
        b"bytes",
        [],
        {},
    ),
    *(
        (),
        [1],
        [[]],
        {"a": 1},
        {1: 2},
        {"file": "/etc/passwd"},
        [400_000],
        [100_000] * 3,
        ["cat"],
        ["cat"] * 2,
    ),
    *(torch.zeros(0), torch.zeros(1), torch.zeros(1).expand(10**9), torch.ones(3, 4), torch.tensor(3)),
    *(
        torch.full((2,), torch.nan),
        torch.zeros(5056, dtype=torch.uint8),
        torch.zeros(2, dtype=torch.complex64),
    ),
    *(torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.int8), torch.get_rng_state()),
)


def write_checkpoint(folder: Path) -> Path:
    """Write a small checkpoint as a run leaves it."""
    config = parse_config(CONFIG, "the fuzz target")
    model = build_model(config, len(CLASSES))
    optimizer = build_optimizer(config, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {
        "step": 2,
        "evaluated": 2,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": config.model_dump(mode="json"),
        "classes": CLASSES,
        "random": random_states(),
        "best": {"metric": 0.5, "step": 2.0},
        "score_threshold": 0.4,
        "seconds": 3.5,
        "threads": 1,
        "data_fingerprint": {"training: trainval": "00ff"},
    }
    path = folder / "step_2.pt"
    save_checkpoint(path, state)
    return path


def read_checkpoint(path: Path) -> None:
    """Read a checkpoint as the demo, an evaluation and a resumed run do; each has its own config."""
    source = str(path)
    state = load_resumable(path)
    refused: list[InputError] = []
    try:
        restore_model(parse_stored(state["config"], [], source), state, source)
    except InputError as error:
        refused.append(error)
    config = parse_config(CONFIG, "the fuzz target")
    model = restore_model(config, state, source)
    load_optimizer_state(build_optimizer(config, model), state["optimizer"], source)
    set_random_states(state["random"])
    for first in refused:
        raise first


def change_checkpoint(content: bytes, rng: random.Random) -> bytes:
    """Return the checkpoint with one to three of its values replaced, removed, renamed or added."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change(state, rng)
    changed = io.BytesIO()
    torch.save(state, changed, _use_new_zipfile_serialization=rng.random() > 0.02)
    return changed.getvalue()


def change_checkpoint_pickle(content: bytes, rng: random.Random) -> bytes:
    """Change instructions of the pickle in the checkpoint's archive, whose checksums fit again."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(changed, "w") as written:
        for name in archive.namelist():
            member = archive.read(name)
            written.writestr(name, change_instructions(member, rng) if name.endswith("/data.pkl") else member)
    return changed.getvalue()


def _change(state: dict[Any, Any], rng: random.Random) -> None:
    place: Any = state
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.25:
            break
        place = inner
    value = copy.copy(rng.choice(VALUES))
    match rng.randrange(6):
        case 0:
            del place[key]
        case 1 if isinstance(place, dict):
            place[rng.choice((3, "extra", "", "\x1b[31m", None, "k" * 400))] = value
        case 2 if isinstance(place, dict):
            place[key] = place[rng.choice(keys)]
        case _:
            place[key] = value
