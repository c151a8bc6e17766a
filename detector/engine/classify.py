"""Scores of the classes of a whole image, over one or several views of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detector.core.structures import Batch, HeadOutput

Network = Callable[[Tensor, Tensor], HeadOutput]


@torch.inference_mode()
def classify(
    model: Network,
    views: Sequence[tuple[Batch, Tensor]],
    scores: Callable[[HeadOutput], Tensor],
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Return the scores (K,) of one image on the CPU, the mean over its views (scales, mirror images).

    A view is a batch of one sample and its RoIs (1, 5), which say what of the map is the image. One view a
    forward pass, so that nothing is padded and the result does not depend on what else is in a batch. The
    model has to be in evaluation mode already.
    """
    rows = []
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        for batch, rois in views:
            images, rows_of_image = (part.to(device, non_blocking=True) for part in (batch.images, rois))
            rows.append(scores(model(images, rows_of_image))[0])
    return torch.stack(rows).mean(dim=0).cpu()
