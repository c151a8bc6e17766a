"""Memory from which a GPU copies without making the host wait, and small tensors that go through it.

A copy is asynchronous only from page-locked memory: from other memory "the driver may synchronize with the
stream" (CUDA Runtime API, "API synchronization behavior"), and ``torch.cuda.set_sync_debug_mode`` does not
notice.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pins(device: torch.device | str) -> bool:
    """Say whether what goes to ``device`` should be in page-locked memory: it has a memory of its own."""
    return torch.device(device).type not in ("cpu", "meta")


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return ``tensor`` on ``device``; from the CPU it goes there through page-locked memory."""
    if tensor.device.type != "cpu" or not pins(device):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
