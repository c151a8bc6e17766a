"""Makes each of our pooling calls twice, so that Nsight Compute can profile the kernels.

The calls are made in the order of the table of cases, with uniform RoIs and NCHW features.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.gpu_check.pooling_cases import CASES, REHEARSAL, Size, call, make_rois
from benchmarks.gpu_check.result import part_arguments


def main() -> int:
    parser, _ = part_arguments(__doc__.splitlines()[0])
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry_run else "cuda"
    size = REHEARSAL if arguments.dry_run else Size()
    torch.manual_seed(0)
    for case in CASES:
        rois = make_rois("uniform", case, size, Path())
        features = torch.randn(case.images, size.channels, *size.map, device=device).relu_().to(case.dtype)
        rois = rois.to(device)
        pooled = case.ours(features, rois)
        call(case, case.ours, features, rois, torch.randn_like(pooled))()
        print(f"called: {case.name}", flush=True)
    if device == "cuda":
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
