"""An exponential average of the weights over the steps of a run (Polyak averaging)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedWeights:
    """A copy of a network, ``network``, whose weights are ``decay * average + (1 - decay) * weights``.

    It starts as the network is, is in evaluation mode, and follows the network with every `update`. Buffers,
    such as batch statistics and the constants of the box targets, are copied. ``AveragedModel`` of torch does
    the same, but copies a number to the GPU in every step, for which the host waits.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network: Any = copy.deepcopy(network).requires_grad_(False).eval()
        self._average = get_ema_multi_avg_fn(decay)
        pairs = zip(self.network.parameters(), network.parameters(), strict=True)
        trained = [(mine, theirs) for mine, theirs in pairs if theirs.requires_grad]
        self._own, self._weights = [mine for mine, _ in trained], [theirs for _, theirs in trained]
        self._own_buffers = list(self.network.buffers())
        self._buffers = list(network.buffers())

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's weights of this step into the average."""
        if self._own:
            self._average(self._own, [weight.detach() for weight in self._weights], 0)
        for mine, theirs in zip(self._own_buffers, self._buffers, strict=True):
            mine.copy_(theirs, non_blocking=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights and the buffers, by the names that the network's own have."""
        state: dict[str, Tensor] = self.network.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from averages that `state_dict` returned."""
        self.network.load_state_dict(state)
