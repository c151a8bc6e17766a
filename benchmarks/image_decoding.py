#!/usr/bin/env python3
"""Decoding large JPEG photographs in a smaller size: the time that it saves, and what it does to the pixels.

    python benchmarks/image_decoding.py data/bccd/JPEGImages --sides 960 1280 2560 3840

A few images of a folder are enlarged to each longer side and saved as JPEG files. Each is then brought to the
network's input (shorter side 480, at most 640, or as the options say) in two ways: decoded as
`detector.data.images.open_image` does it for training and evaluation, and decoded whole. Both ways are timed
in turns. The pixels of both are compared with a resize that averages over all pixels (INTER_AREA).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from detector.data.images import open_image, reduction, stored_view
from detector.data.transforms import ImageTransform, transformed


def main() -> None:
    arguments = parse()
    cv2.setNumThreads(1)
    sources = sorted(Path(arguments.folder).glob("*.jp*g"))[: arguments.images]
    transform = ImageTransform(scales=(arguments.scale,), max_size=arguments.max_size)
    print("| longer side | divided by | whole, ms | smaller, ms | ratio | whole: off | smaller: off |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for side in arguments.sides:
            files = [enlarged(source, side, Path(folder)) for source in sources]
            compare(files, side, transform, arguments.rounds)


def compare(files: list[Path], side: int, transform: ImageTransform, rounds: int) -> None:
    """Print the row of one size: medians over files and rounds, mean absolute differences of pixel values."""
    whole, smaller, ratios = [], [], []
    off: list[tuple[float, float]] = []
    for number in range(rounds):
        for file in files:
            if number == 0:
                off.append(differences(file, transform))
            pair = {reduce: seconds(file, transform, reduce) for reduce in order(number)}
            whole.append(pair[False])
            smaller.append(pair[True])
            ratios.append(pair[False] / pair[True])
    size = open_image(files[0]).size
    factor = reduction(size, transform.size_of(size))
    times = " | ".join(f"{1e3 * statistics.median(values):.1f}" for values in (whole, smaller))
    means = " | ".join(f"{value:.2f}" for value in np.mean(off, axis=0))
    print(f"| {side} | {factor} | {times} | {statistics.median(ratios):.1f} | {means} |", flush=True)


def order(number: int) -> tuple[bool, bool]:
    return (False, True) if number % 2 else (True, False)


def prepared(file: Path, transform: ImageTransform, size: tuple[int, int], reduce: bool) -> np.ndarray:
    meta = transform.plan(size, file.name)
    wanted = meta.input_size if reduce else None
    return transformed(open_image(file, size, wanted).pixels(wanted), meta).numpy()


def seconds(file: Path, transform: ImageTransform, reduce: bool) -> float:
    size = stored_view(file)[0]
    started = time.perf_counter()
    prepared(file, transform, size, reduce)
    return time.perf_counter() - started


def differences(file: Path, transform: ImageTransform) -> tuple[float, float]:
    """Return the mean absolute difference from the averaging resize, for the whole image and the smaller."""
    image = open_image(file)
    height, width = transform.size_of(image.size)
    best = cv2.resize(image.pixels(), (width, height), interpolation=cv2.INTER_AREA).astype(int)
    whole, smaller = (
        float(np.abs(prepared(file, transform, image.size, reduce) - best).mean()) for reduce in (False, True)
    )
    return whole, smaller


def enlarged(source: Path, side: int, folder: Path) -> Path:
    """Write the image ``source`` with ``side`` pixels on its longer side, and return the file."""
    image = np.asarray(cv2.imread(str(source)))
    factor = side / max(image.shape[:2])
    target = folder / f"{source.stem}_{side}.jpg"
    cv2.imwrite(str(target), cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC))
    return target


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="a folder of JPEG files")
    parser.add_argument("--images", type=int, default=10, help="how many of them (default 10)")
    parser.add_argument("--sides", type=int, nargs="+", default=[960, 1280, 2560, 3840], help="in pixels")
    parser.add_argument("--scale", type=int, default=480, help="shorter side of the input (default 480)")
    parser.add_argument("--max-size", type=int, default=640, help="limit of the longer side (default 640)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    return parser.parse_args()


if __name__ == "__main__":
    main()
