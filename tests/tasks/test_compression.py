"""Compressed checkpoints: the search against brute force, and a round trip through every reader."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detector import Detector
from detector.config import Config
from detector.config.load import override, parse_config
from detector.core.errors import InputError
from detector.engine.checkpoint import load_checkpoint, load_resumable, save_checkpoint
from detector.factory.data import class_names
from detector.factory.model import build_model, initial_model, restore_model
from detector.tasks.compression import (
    Candidate,
    Ranks,
    chosen_ranks,
    compressed_checkpoint,
    factorize,
    pick,
    search,
    stored_config,
    usual_ranks,
)
from detector.tasks.scoring import headline
from detector.tasks.start import build_scorer
from tests.test_api import save_random

Load = Callable[..., Config]
LOW = ("test.score_threshold=0.0", "model.roi_chunk=50", "proposals.top_k_test=90")
CHOICES: list[list[int | None]] = [[None, 9, 2], [None, 4, 1]]


def made(config: Config, path: Path, ranks: Ranks, **changes: Any) -> Path:
    """Write the compressed form of the random network of ``config`` to ``path``."""
    checkpoint = load_checkpoint(save_random(config, path.with_name("whole.pt")))
    factors = factorize(restore_model(config, checkpoint, "whole.pt"), "whole.pt")
    stored = stored_config(checkpoint, "whole.pt")
    save_checkpoint(path, compressed_checkpoint(checkpoint, stored, factors, ranks, **changes))
    return path


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("test.refinements=1", "test.flip=true", "model.head.class_agnostic=true"),
        ("model.pool={kind: spp, levels: [3, 1]}", "test.scales=[64,96]"),
    ],
    ids=["roi", "refined", "spp"],
)
def test_the_search_scores_as_evaluation_does_and_picks_the_smallest(
    tiny: Load, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    config = tiny(*LOW, *overrides)
    checkpoint = load_checkpoint(save_random(config, tmp_path / "whole.pt"))
    model = restore_model(config, checkpoint, "whole.pt")
    factors = factorize(model, "whole.pt")
    scorer = build_scorer(config, classes=checkpoint["classes"], split="test")
    expected: dict[Ranks, tuple[int, float]] = {}
    for ranks in itertools.product(*CHOICES):
        state = compressed_checkpoint(checkpoint, config, factors, ranks)
        one = restore_model(config, {**state, "file": "compressed"}, "compressed")
        score = headline(config, scorer.evaluate(one).metrics)
        hidden = one.box_head.state_dict()
        expected[ranks] = sum(t.numel() for n, t in hidden.items() if n.endswith("weight")), score
    allowed = expected[None, None][1] - sorted(score for _, score in expected.values())[3]

    found = search(config, model, factors, CHOICES, scorer, allowed)
    assert {one.ranks: (one.weights, one.score) for one in found.candidates} == expected
    smaller = [
        (weights, -score, ranks)
        for ranks, (weights, score) in expected.items()
        if any(ranks) and expected[None, None][1] - score <= allowed + 1e-9
    ]
    assert found.picked is not None
    assert found.evaluation is not None
    assert found.picked.ranks == min(smaller, key=lambda one: one[:2])[2]
    assert headline(config, found.evaluation.metrics) == found.picked.score
    assert found.picked.seconds is not None
    assert found.whole.ratio is not None
    assert all((one.seconds is None) != one.on_front for one in found.candidates)


def test_the_pick_is_the_smallest_within_the_loss() -> None:
    draws = random.Random(0)
    for _ in range(200):
        every = [Candidate((number,), draws.randint(1, 9), draws.randint(0, 9) / 10) for number in range(6)]
        loss = draws.randint(-3, 8) / 10
        good = [
            (one.weights, -one.score, number)
            for number, one in enumerate(every)
            if one.weights < every[0].weights and round(10 * (every[0].score - one.score)) <= round(10 * loss)
        ]
        best = min(good, default=None)
        assert pick(every, loss) == (None if best is None else every[best[2]])


def test_a_compressed_checkpoint_is_read_like_any_other(tiny: Load, tmp_path: Path) -> None:
    config = tiny(*LOW)
    path = made(config, tmp_path / "small.pt", (7, None), score_threshold=0.25)
    state = load_checkpoint(path)
    assert state["config"]["model"]["head"]["rank"] == [7, None]
    assert {"box_head.layers.fc6_v.weight", "box_head.layers.fc7.weight"} <= set(state["model"])
    detector = Detector.load(path, "cpu")
    assert detector.best_threshold == 0.25
    image = next(iter(sorted((Path(config.data.root) / "JPEGImages").iterdir())))
    whole = restore_model(config, load_checkpoint(tmp_path / "whole.pt"), "whole.pt")
    weight = whole.box_head.layers.get_parameter("fc6.weight")
    u, singular, vh = torch.linalg.svd(weight.detach())
    with torch.no_grad():
        weight.copy_((u[:, :7] * singular[:7]) @ vh[:7])
    reference = Detector.load(tmp_path / "whole.pt", "cpu")
    reference._model.load_state_dict(whole.state_dict())
    torch.testing.assert_close(detector(image).scores, reference(image).scores, rtol=0, atol=1e-4)
    small = restore_model(config, state, str(path))  # with the config of the whole network
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in small.state_dict().items())
    with pytest.raises(InputError, match="has no 'optimizer', so a run cannot be resumed"):
        load_resumable(path)


def test_a_compressed_network_can_be_trained_on(tiny: Load, tmp_path: Path) -> None:
    config = tiny(*LOW)
    path = made(config, tmp_path / "small.pt", (7, 3))
    classes = list(class_names(config))
    again = tiny(*LOW, "model.head.rank=[7,3]", f"train.initial_weights={path}")
    model = initial_model(again, classes)
    stored = load_checkpoint(path)["model"]
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match=r"model\.head\.rank = \[7, 3\], the config says None"):
        initial_model(tiny(*LOW, f"train.initial_weights={path}"), classes)
    with pytest.raises(InputError, match=r"model\.head\.rank = \[7, 3\], the config says \[5, 3\]"):
        restore_model(tiny(*LOW, "model.head.rank=[5,3]"), load_checkpoint(path), str(path))


def test_a_compressed_checkpoint_can_be_compressed_again(tiny: Load, tmp_path: Path) -> None:
    config = tiny(*LOW)
    path = made(config, tmp_path / "small.pt", (7, 3))
    checkpoint = load_checkpoint(path)
    model = restore_model(config, checkpoint, str(path))
    stored = stored_config(checkpoint, str(path))
    state = compressed_checkpoint(checkpoint, stored, factorize(model, str(path)), (5, None))
    assert state["config"]["model"]["head"]["rank"] == [5, 3]
    assert "box_head.layers.fc6.weight" not in state["model"]
    once = compressed_checkpoint(
        load_checkpoint(tmp_path / "whole.pt"),
        config,
        factorize(restore_model(config, load_checkpoint(tmp_path / "whole.pt"), "w"), "w"),
        (5, 3),
    )
    products = [
        one["model"]["box_head.layers.fc6_u.weight"] @ one["model"]["box_head.layers.fc6_v.weight"]
        for one in (state, once)
    ]
    torch.testing.assert_close(*products, rtol=0, atol=1e-4)


def test_averaged_weights_are_the_ones_compressed(tiny: Load, tmp_path: Path) -> None:
    config = tiny(*LOW)
    averaged = {name: value + 1 for name, value in build_model(config, 5).state_dict().items()}
    checkpoint = load_checkpoint(save_random(config, tmp_path / "both.pt", ema=averaged))
    model = restore_model(config, checkpoint, "both.pt")
    state = compressed_checkpoint(checkpoint, config, factorize(model, "both.pt"), (None, 3))
    assert "ema" not in state
    name = "box_head.layers.fc6.weight"
    assert torch.equal(state["model"][name], averaged[name])


def test_ranks_that_do_not_fit_are_refused(tiny: Load, tmp_path: Path) -> None:
    config = tiny()
    checkpoint = load_checkpoint(save_random(config, tmp_path / "whole.pt"))
    factors = factorize(restore_model(config, checkpoint, "whole.pt"), "whole.pt")
    assert chosen_ranks(factors, {"fc7": [3, None]}) == [[None], [3, None]]
    with pytest.raises(InputError, match=r"--rank fc8: the network has no such layer; it has fc6, fc7"):
        chosen_ranks(factors, {"fc8": [3]})
    with pytest.raises(InputError, match=r"fc7: rank 16 makes the layer no smaller.*give at most 15"):
        chosen_ranks(factors, {"fc7": [16]})
    assert usual_ranks(factors["fc7"]) == [None, 11, 8, 4, 2, 1]
    whole = config.model_dump(mode="json")
    for given, message in (
        ("[3]", r"has 1 ranks, and model\.head\.hidden 2 layers"),
        ("[3,0]", "rank"),
    ):
        with pytest.raises(InputError, match=message):
            parse_config(override(whole, [f"model.head.rank={given}"]), "x")
    low = tiny("model.head.rank=[3,16]")
    with pytest.raises(InputError, match="fc7: rank 16 makes the layer no smaller"):
        build_model(low, 5)


def test_heads_without_such_layers_are_refused(tiny: Load, tmp_path: Path) -> None:
    config = tiny("model.head.hidden=[]")
    checkpoint = load_checkpoint(save_random(config, tmp_path / "none.pt"))
    with pytest.raises(InputError, match=r"none\.pt: the network has no fc6 to compress"):
        factorize(restore_model(config, checkpoint, "none.pt"), "none.pt")
