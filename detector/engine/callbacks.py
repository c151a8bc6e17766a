"""What a run tells others while it goes on: experiment trackers, or a class of your own.

Only the process of rank 0 calls callbacks. An error in one of them never ends a training: it is reported
once, and this callback is not called again.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.progress import note


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of a run when it starts or goes on."""

    folder: Path
    """The run's folder; it holds ``config.yaml``, ``environment.json`` and ``log.jsonl`` by now."""
    config: Mapping[str, Any]
    """The resolved config as plain values."""
    environment: Mapping[str, Any]
    """What this process runs on: the last entry of ``environment.json``."""
    step: int
    """The number of steps that are done; more than 0 means that the run was resumed."""


class Callback:
    """Base class of everything that follows a run; each method does nothing unless it is overridden.

    The methods are called between two steps of the training, which waits for them.
    """

    def on_start(self, facts: RunFacts) -> None:
        """The run starts, or goes on after ``facts.step`` steps."""

    def on_log(self, kind: str, values: Mapping[str, Any]) -> None:
        """A line was added to ``log.jsonl``; ``values["step"]`` is the number of steps done.

        ``kind`` is "data" (once, at step 0), "train" (losses, learning rate and speed), "evaluate" (metrics
        on the images that choose best.pt), "test" or "early_stopping".
        """

    def on_images(self, name: str, images: Sequence[np.ndarray], step: int) -> None:
        """Images with the network's results were drawn, each (H, W, 3) uint8 RGB."""

    def on_checkpoint(self, path: Path, step: int) -> None:
        """The checkpoint ``path`` was written, completely. A later one may remove it."""

    def on_finish(self, metrics: Mapping[str, Any], folder: Path) -> None:
        """The run is finished: ``metrics`` is the content of ``metrics.json`` in its ``folder``."""

    def on_error(self, error: BaseException) -> None:
        """The run ends early because of ``error``.

        This is `detector.engine.run.StopRequested` where a signal stopped the run, which can be resumed.
        """

    def close(self) -> None:
        """Nothing else will be called; always the last call, after `on_finish` or `on_error`."""


class Callbacks(Callback):
    """Calls each of several callbacks, and switches off those that fail."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._active = list(callbacks)

    def __bool__(self) -> bool:
        """Whether any of them is still called."""
        return bool(self._active)

    def on_start(self, facts: RunFacts) -> None:
        self._each("on_start", facts)

    def on_log(self, kind: str, values: Mapping[str, Any]) -> None:
        self._each("on_log", kind, values)

    def on_images(self, name: str, images: Sequence[np.ndarray], step: int) -> None:
        self._each("on_images", name, images, step)

    def on_checkpoint(self, path: Path, step: int) -> None:
        self._each("on_checkpoint", path, step)

    def on_finish(self, metrics: Mapping[str, Any], folder: Path) -> None:
        self._each("on_finish", metrics, folder)

    def on_error(self, error: BaseException) -> None:
        self._each("on_error", error)

    def close(self) -> None:
        self._each("close")
        self._active = []

    @contextmanager
    def told_of_errors(self) -> Iterator[None]:
        """Call `on_error` and `close` if the block raises."""
        try:
            yield
        except BaseException as error:
            self.on_error(error)
            self.close()
            raise

    def _each(self, name: str, *given: Any) -> None:
        for callback in list(self._active):
            try:
                getattr(callback, name)(*given)
            except Exception as error:
                self._active.remove(callback)
                who = type(callback).__name__
                note(f"warning: {who} is switched off, the run goes on: {_told(name, error)}")
                if name != "close":
                    with suppress(Exception):  # it has failed already, and that was reported
                        callback.close()


def _told(name: str, error: Exception) -> str:
    """Return what failed in one line: the method, the error, and the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{name}: {type(error).__name__}: {lines[0]:.500}{where}"
