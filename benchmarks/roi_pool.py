"""Times detector.ops.roi_pool against torchvision's roi_pool, alternating in one process.

    python -m benchmarks.roi_pool [--proposals data/bccd_opencv_fast_proposals.npz]

The map is (1, 512, 38, 50), float32, with 7 x 7 bins. The last line shows the limit that this machine sets:
the time to write an output of this size to new memory, including page faults.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision.ops import roi_pool as torchvision_roi_pool

from benchmarks.paired import compare, copy_bandwidth, fresh_memory, proposal_rois, uniform_rois
from detector.ops import roi_pool

SIZE = (600, 800)  # of the image, pixels
STRIDE = 16


def inference(name: str, features: Tensor, rois: Tensor, rounds: int) -> None:
    with torch.no_grad():
        compare(
            name,
            lambda: roi_pool(features, rois, 7, 1 / STRIDE),
            lambda: torchvision_roi_pool(features, rois, 7, 1 / STRIDE),
            rounds,
        )


def training(label: str, features: Tensor, rois: Tensor, rounds: int) -> None:
    features = features.detach().requires_grad_()
    pooled = roi_pool(features, rois, 7, 1 / STRIDE)
    expected = torchvision_roi_pool(features, rois, 7, 1 / STRIDE)
    grad = torch.randn_like(pooled)
    compare(
        f"training forward, {label}",
        lambda: roi_pool(features, rois, 7, 1 / STRIDE),
        lambda: torchvision_roi_pool(features, rois, 7, 1 / STRIDE),
        rounds,
    )
    compare(
        f"training backward, {label}",
        lambda: torch.autograd.grad(pooled, features, grad, retain_graph=True),
        lambda: torch.autograd.grad(expected, features, grad, retain_graph=True),
        rounds,
    )


def half(label: str, features: Tensor, rois: Tensor, rounds: int) -> None:
    narrow = features.bfloat16()
    with torch.no_grad():
        compare(
            f"bfloat16 inference, {label}; torchvision with casts",
            lambda: roi_pool(narrow, rois, 7, 1 / STRIDE),
            lambda: torchvision_roi_pool(narrow.float(), rois, 7, 1 / STRIDE).bfloat16(),
            rounds,
        )


def chunks(features: Tensor, rois: Tensor, hidden: int, rounds: int) -> None:
    """Time pooling, fc6 and fc7 in chunks of RoIs against all RoIs at once, to choose ``model.roi_chunk``."""
    head = torch.nn.Sequential(
        torch.nn.Linear(512 * 49, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, hidden), torch.nn.ReLU()
    )

    def classify(chunk: int) -> Tensor:
        parts = (roi_pool(features, part, 7, 1 / STRIDE).flatten(1) for part in rois.split(chunk))
        return torch.cat([head(part) for part in parts])

    with torch.no_grad():
        for chunk in (64, 128, 256, 512, 1024):
            name = f"pool, fc6, fc7 of {hidden}: chunks of {chunk} against all at once"
            compare(name, partial(classify, chunk), partial(classify, len(rois)), rounds)


def peak(function: Callable[[], object]) -> float:
    """Return the MiB by which ``function`` raises the peak memory of a separate process."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the threads of the parent do not exist here
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        os._exit(min((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 4096, 255))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) * 4.0


def memory(features: Tensor, rois: Tensor) -> None:
    with torch.no_grad():
        for name, pool in (("ours", roi_pool), ("theirs", torchvision_roi_pool)):
            used = peak(partial(pool, features, rois, 7, 1 / STRIDE))
            print(
                f"peak memory of one inference call, {name}: {used:.0f} MiB (the map has 4, the output 191)"
            )


def small_pages() -> None:
    """Forbid huge pages in this process (Linux: PR_SET_THP_DISABLE)."""
    if ctypes.CDLL(None, use_errno=True).prctl(41, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "huge pages cannot be turned off here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--proposals", help=".npz file of proposals to time besides uniform boxes")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--chunks", action="store_true", help="compare sizes of chunks instead")
    parser.add_argument("--small-pages", action="store_true", help="forbid huge pages")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.small_pages:
        small_pages()
    kinds = {"uniform": uniform_rois}
    if arguments.proposals:
        kinds["proposals"] = lambda *options: proposal_rois(arguments.proposals, *options)
    memory(torch.randn(1, 512, 38, 50), uniform_rois(2000, 1, SIZE))
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for kind, make in kinds.items():
            label = f"{kind}, {threads} thread(s)"
            features, rois = torch.randn(1, 512, 38, 50), make(2000, 1, SIZE)
            if arguments.chunks:
                for hidden in (1024, 4096):
                    chunks(features, rois, hidden, arguments.rounds)
                continue
            inference(f"inference, 2000 RoIs, {label}", features, rois, arguments.rounds)
            inference(f"inference, 128 RoIs, {label}", features, rois[:128], 4 * arguments.rounds)
            half(f"2000 RoIs, {label}", features, rois, arguments.rounds)
            pair = make(128, 2, SIZE)
            training(f"128 RoIs on 2, {label}", torch.randn(2, 512, 38, 50), pair, 4 * arguments.rounds)
        print(
            f"{threads} thread(s): 201 MB of new memory {1e3 * fresh_memory(2000 * 512 * 49):.1f} ms,"
            f" copy bandwidth {copy_bandwidth() / 1e9:.1f} GB/s"
        )


if __name__ == "__main__":
    main()
