"""One region of one image, cut out by every rule of R-CNN's: what the teaching picture shows."""

from __future__ import annotations

import numpy as np
import torch

from detector.models import weights
from detector.models.crops import cut_windows, region_windows
from detector.visualize.crops import RegionCrop


def crop_every_way(
    image: np.ndarray, box: tuple[float, float, float, float], crop_size: int, context: int
) -> list[RegionCrop]:
    """Return ``box`` (x1, y1, x2, y2) of ``image`` (H, W, 3) warped and cropped, without and with context.

    Outside the image is the mean colour of torchvision's normalisation.
    """
    mean = 255 * torch.tensor(weights.normalization("torchvision").mean).view(3, 1, 1)
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() - mean
    region = torch.tensor([box], dtype=torch.float32)
    found = []
    for name, square in (("warp", False), ("crop", True)):
        for around in (0, context):
            window = region_windows(region, crop_size, around, square)
            crop = cut_windows(pixels[None], window, torch.zeros(1), crop_size)[0] + mean
            shown = crop.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
            x1, y1, x2, y2 = window[0].tolist()
            title = f"{name}, context {around}"
            found.append(RegionCrop(name=title, crop=shown, window=(x1, y1, x2, y2), context=around))
    return found
