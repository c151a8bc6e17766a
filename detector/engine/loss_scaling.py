"""Training in float16: the loss is scaled, so that small gradients do not become zero.

float16 has no numbers between 0 and 6e-8, which many gradients are. The loss is multiplied by a scale, and
the gradients are divided by it before they are clipped and used. A scale that makes a gradient overflow is
halved and the step is skipped; after 2000 steps without that it is doubled (torch's rule).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LossScaler(torch.amp.GradScaler):
    """A ``GradScaler`` for one fused optimizer, which counts the skipped steps. The host never waits."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device | str) -> None:
        super().__init__(torch.device(device).type)
        self.optimizer = optimizer
        self._skipped: Tensor | int = 0
        _start_momenta(optimizer)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scaled ``loss``."""
        self.scale(loss).backward()

    def unscale(self) -> None:
        """Divide the gradients by the scale, once per step and before they are clipped."""
        self.unscale_(self.optimizer)
        for found in self._found_inf_per_device(self.optimizer).values():
            self._skipped = self._skipped + found

    def apply(self) -> None:
        """Take the optimizer's step, which it skips where a gradient overflowed, and adapt the scale."""
        self.step(self.optimizer)
        self.update()

    def record(self) -> dict[str, float]:
        """Return ``loss_scale``, and ``skipped_steps`` since the last record; this waits for the GPU."""
        skipped, self._skipped = float(self._skipped), 0
        return {"loss_scale": float(self.get_scale()), "skipped_steps": skipped}

    def state(self) -> dict[str, float | int]:
        """Return what a checkpoint keeps: the scale, and the number of steps since it changed."""
        whole = self.state_dict()
        return {"scale": float(whole["scale"]), "steps": int(whole["_growth_tracker"])}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.load_state_dict(
            {**self.state_dict(), "scale": state["scale"], "_growth_tracker": state["steps"]}
        )


def _start_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD momenta of zero. Otherwise, if its very first step is skipped, torch's fused SGD would take
    the memory of momenta that were never written for momenta (``torch.optim.sgd._fused_sgd``).
    """
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
