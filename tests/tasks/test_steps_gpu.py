"""Training steps on a GPU: the host never waits for it, and the way of the batches changes no bit."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detector.config import Config
from detector.core.structures import Batch
from detector.factory import loaders
from detector.tasks.start import build_task, start_run
from tests.tasks.test_start import NETWORKS, assert_identical, final_state, train

pytestmark = pytest.mark.gpu

STEPS, WARM_UP = 10, 3
CHOSEN = (
    *("vgg16", "bfloat16", "float16", "averaged", "mined"),
    *("pyramid", "crops", "agnostic", "classes", "sliding"),
)


class OnlyPinned(TorchDispatchMode):
    """Refuses copies to the GPU from memory that is not page-locked, unlike torch's own check.

    An empty tensor has no memory, so it is never page-locked; nobody waits for its copy.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            target = args[0].device if name == "copy_" else kwargs.get("device") or source.device
            if torch.device(target).type == "cuda" and source.device.type == "cpu":
                pinned = source.is_pinned() or not source.numel()
                assert pinned, f"a copy of {tuple(source.shape)} from pageable memory"
        return func(*args, **kwargs)


def without_waiting(*given: Any) -> Any:
    """Return the config's task, for which waiting for the GPU is an error, but in the first and last steps.

    This includes taking the batch from the loader, the backward pass, clipping, the optimizer, and all that
    the run keeps about a step that is not logged.
    """
    task: Any = build_task(*given)
    batches, step = task.batches, task.step

    def watched(start: int) -> Generator[Any, None, None]:
        with closing(batches(start)) as made:
            try:
                for number in range(STEPS):
                    strict = WARM_UP <= number < STEPS - 1
                    torch.cuda.set_sync_debug_mode("error" if strict else "default")
                    with OnlyPinned():
                        batch = next(made)
                    yield batch
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def stepped(batch: Any, count: float) -> Any:
        with OnlyPinned():
            return step(batch, count)

    task.batches, task.step = watched, stepped
    return task


@pytest.fixture
def checked_waits() -> Generator[None, None, None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("checked_waits")
@pytest.mark.parametrize("settings", [NETWORKS[name] for name in CHOSEN], ids=CHOSEN)
def test_a_step_does_not_wait_for_the_gpu(
    tiny: Callable[..., Config], tmp_path: Path, settings: list[str]
) -> None:
    run = ["train.log_every=1000", "train.checkpoint_every=1000", "train.clip_gradient_norm=5"]
    config = tiny(f"train.steps={STEPS}", *run, "data.workers=2", "test.max_images=1", *settings)
    start_run(config, tmp_path / "run", "cuda", make_task=without_waiting).run()


@pytest.mark.usefixtures("checked_waits")
def test_a_wait_is_noticed() -> None:
    number = torch.ones(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchroniz"):
        number.item()
    torch.cuda.set_sync_debug_mode("default")
    with OnlyPinned(), pytest.raises(AssertionError, match="pageable"):
        torch.ones(3).to("cuda", non_blocking=True)


@pytest.mark.parametrize("name", ["bfloat16", "crops", "classes"])
def test_training_is_the_same_if_each_batch_is_waited_for(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = tiny("data.workers=2", "test.max_images=1", *NETWORKS[name])
    train(config, tmp_path / "usual", "cuda")
    monkeypatch.setattr(loaders, "on_device", waited_for)
    monkeypatch.setattr(loaders, "pins", lambda _device: False)
    train(config, tmp_path / "waited", "cuda")
    assert_identical(final_state(tmp_path / "usual"), final_state(tmp_path / "waited"))


def waited_for(batches: Iterable[Batch], device: str) -> Generator[Batch, None, None]:
    """Copy each batch in the stream that computes, from pageable memory, and wait on both sides of it."""
    for batch in batches:
        torch.cuda.synchronize()
        moved = batch.to(device)
        torch.cuda.synchronize()
        yield moved
