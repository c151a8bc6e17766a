#!/usr/bin/env python3
"""Times R-CNN, SPP-net and Fast R-CNN with one backbone, to show how much time shared convolutions save.

    python benchmarks/rcnn_vs_sppnet_vs_fast_rcnn.py --backbone vgg16 [--output FILE.json]

All have random weights, fc6 and fc7 of 4096, 20 classes, and the same image of 375 x 500 pixels with the same
2000 uniform boxes. Only the networks are timed, not what all three share: proposals, decoding of images, and
suppression.

A test image: R-CNN runs on crops of 224 x 224, SPP-net with the pyramid 6, 3, 2, 1 at one scale (688) and at
five, Fast R-CNN with 7 x 7 bins at the scale 600. A training step has 128 regions: R-CNN trains all layers on
128 crops, SPP-net its fully connected layers on stored feature maps, Fast R-CNN all layers but the first two
blocks, on two images.

The time of R-CNN's convolutions is proportional to the number of regions. So it is measured on --regions of
them and multiplied; its fully connected layers are measured on all regions. The times of whole trainings on
VOC 2007 (5011 images) are computed from these, with the published numbers of steps: R-CNN 70,000 steps and
one pass over all proposals for its SVMs; SPP-net one pass over all images at five scales and 300,000 steps;
Fast R-CNN 40,000 steps. They do not include fitting SVMs and box regressors, which favours R-CNN and SPP-net.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detector.core.structures import Embedded, HeadOutput, ImageMeta, Proposals, SampledRoIs
from detector.data.transforms import input_size
from detector.engine.inference import Orientation
from detector.evaluation.report import write_json
from detector.models.backbones import build_backbone, identity_backbone
from detector.models.box_coder import fixed_coder
from detector.models.crops import CropPooling
from detector.models.detector import RegionDetector
from detector.models.heads import BoxHead, BoxPredictor
from detector.models.losses import DetectionLoss
from detector.models.region_pools import LevelPool, PyramidPooling, RoIPooling
from detector.models.weights import normalization

SIZE = (375, 500)
PROPOSALS = 2000
CLASSES = 20
FIVE_SCALES = (480, 576, 688, 864, 1200)
STEP_REGIONS = 128
CHUNK = 64  # crops at a time
VOC07_IMAGES = 5011
STEPS = {"R-CNN": 70_000, "SPP-net": 300_000, "Fast R-CNN": 40_000}
PAPERS = {
    "test, SPP-net, 1 scale": "102x (SPP-net, ZF-5)",
    "test, SPP-net, 5 scales": "24x to 64x, 38x with the same net (SPP-net, ZF-5); 20x (Fast R-CNN, VGG16)",
    "test, Fast R-CNN": "146x, with truncated SVD 213x (Fast R-CNN, VGG16)",
    "convolutions, SPP-net, 1 scale": "271x (SPP-net, ZF-5)",
    "convolutions, SPP-net, 5 scales": "49x (SPP-net, ZF-5)",
    "training, SPP-net": "3.4x (Fast R-CNN, VGG16)",
    "training, Fast R-CNN": "8.8x VGG16, 14.0x M, 18.3x S (Fast R-CNN)",
}


@dataclass
class Pipeline:
    """A network, the scales of its input, and the number of images or crops that its convolutions ran on."""

    model: RegionDetector
    convolutions: nn.Module
    scales: tuple[int, ...]
    passes: int = 0

    def __post_init__(self) -> None:
        self.convolutions.register_forward_hook(self._count)

    def _count(self, _module: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
        self.passes += len(inputs[0])

    def images(self, number: int, device: str) -> list[Tensor]:
        """Return ``number`` random images at each scale."""
        sizes = [self._size(scale) for scale in self.scales]
        return [torch.randn(number, 3, *size, device=device) for size in sizes]

    def metas(self) -> list[ImageMeta]:
        sizes = [self._size(scale) for scale in self.scales]
        return [ImageMeta(image_id="image", original_size=SIZE, input_size=size) for size in sizes]

    @staticmethod
    def _size(scale: int) -> tuple[int, int]:
        return input_size(SIZE, scale, 2000)


def build(name: str, backbone: str, scales: Sequence[int], device: str) -> Pipeline:
    """Return the pipeline ``name`` with random weights."""
    torch.manual_seed(0)
    convolutions = build_backbone(backbone, freeze=2 if name == "Fast R-CNN" else 0)
    channels, stride = convolutions.channels, convolutions.stride
    image_backbone, pool = convolutions, LevelPool()
    match name:
        case "R-CNN":
            image_backbone = identity_backbone()
            pool = CropPooling(convolutions, 7, crop_size=224, context=16)
        case "SPP-net":
            pool = PyramidPooling(channels, (6, 3, 2, 1), stride, center=convolutions.center)
        case "Fast R-CNN":
            pool = RoIPooling(channels, 7, stride)
    head = BoxHead(pool.out_features, (4096, 4096), 0.5)
    coder = fixed_coder(CLASSES, (0.0,) * 4, (0.1, 0.1, 0.2, 0.2))
    predictor = BoxPredictor(4096, CLASSES)
    pixels = normalization("caffe")
    model = RegionDetector(image_backbone, pool, head, predictor, coder, 512, pixels)
    return Pipeline(model.to(device), convolutions, tuple(scales))


def boxes(count: int) -> Tensor:
    corners = torch.rand(count, 2, 2) * torch.tensor([SIZE[1], SIZE[0]])
    return torch.cat((corners.amin(1), corners.amax(1)), dim=1)


@dataclass(frozen=True)
class Times:
    """The times of one pipeline."""

    test: float
    """Seconds of a test image."""
    passes: int
    """Passes of the convolutions for a test image."""
    step: float
    """Seconds of a training step of 128 regions."""
    features: float
    """Seconds of only the convolutions for a test image: on all of its scales, or on all of its regions."""


class Stopwatch:
    """Returns the median of ``rounds`` timings on ``device``, after a warm-up call.

    ``clock`` is "wall" or "processor"; on a busy machine, the processor time of this process varies less.
    """

    def __init__(self, rounds: int, device: str, clock: str = "wall") -> None:
        self.rounds = rounds
        self.device = device
        self.now = time.process_time if clock == "processor" else time.perf_counter

    def __call__(self, call: Callable[[], object]) -> float:
        seconds = []
        for _ in range(self.rounds + 1):
            started = self.now()
            call()
            if self.device.startswith("cuda"):
                torch.cuda.synchronize(self.device)
            seconds.append(self.now() - started)
        return statistics.median(seconds[1:])


def time_shared(pipeline: Pipeline, seconds: Stopwatch) -> Times:
    """Time a network whose regions share the feature maps of the whole image."""
    model, images, regions = (
        pipeline.model.eval(),
        pipeline.images(1, seconds.device),
        Proposals(boxes=boxes(PROPOSALS)),
    )

    @torch.inference_mode()
    def features() -> list[Tensor]:
        return [level for image in images for level in model.features(image)]

    @torch.inference_mode()
    def detect() -> object:
        levels = features()
        return model.predict(
            levels, *Orientation(levels, pipeline.metas()).rois(regions, "area", seconds.device, model)
        )

    convolutions, test = seconds(features), seconds(detect)
    pipeline.passes = 0
    detect()
    return Times(test, pipeline.passes, time_shared_step(pipeline, seconds), convolutions)


def time_shared_step(pipeline: Pipeline, seconds: Stopwatch) -> float:
    """Return the seconds of a training step on regions of two images, at the middle scale."""
    model = pipeline.model.train()
    images = pipeline.images(2, seconds.device)[len(pipeline.scales) // 2]
    cached = None
    if isinstance(model.region_pool, PyramidPooling):  # no gradient reaches SPP-net's convolutions
        pipeline.convolutions.requires_grad_(False)
        cached = [level.detach() for level in model.features(images)]
    regions = boxes(STEP_REGIONS) * (images.shape[-1] / SIZE[1])
    rois = torch.cat((torch.arange(STEP_REGIONS)[:, None] % 2, regions), dim=1).to(seconds.device)
    return seconds(
        learn(model, lambda: model.predict(cached or model.features(images), rois), seconds.device)
    )


def time_rcnn(pipeline: Pipeline, count: int, seconds: Stopwatch) -> Times:
    """Time the convolutions on ``count`` regions, scaled to all, and the other layers on all regions."""
    model, image = pipeline.model, pipeline.images(1, seconds.device)
    pool, device = model.region_pool, seconds.device
    rois = torch.cat((torch.zeros(count, 1), boxes(count)), dim=1).to(device)
    pooled = torch.rand(PROPOSALS, pool.out_features, device=device)

    @torch.inference_mode()
    def crops() -> object:
        return [pool(image, rois[start : start + CHUNK], None) for start in range(0, count, CHUNK)]

    @torch.inference_mode()
    def classify() -> object:
        return model.predictor(Embedded(pooled, model.box_head(pooled)))

    model.eval()
    features = seconds(crops) * PROPOSALS / count
    test = features + seconds(classify)
    pipeline.passes = 0
    crops()
    passes = pipeline.passes * PROPOSALS // count
    model.train()
    trained = min(count, STEP_REGIONS)
    step = seconds(lambda: pool(image, rois[:trained], None).sum().backward()) * STEP_REGIONS / trained

    def head() -> HeadOutput:
        few = pooled[:STEP_REGIONS]
        return HeadOutput(*model.predictor(Embedded(few, model.box_head(few))))

    step += seconds(learn(model, head, device))
    return Times(test, passes, step, features)


def learn(model: RegionDetector, predict: Callable[[], HeadOutput], device: str) -> Callable[[], None]:
    """Return a function that runs one training step on the outputs of ``predict`` for 128 regions."""
    sampled = SampledRoIs(
        rois=torch.zeros(STEP_REGIONS, 5),
        labels=torch.arange(STEP_REGIONS) % (CLASSES + 1),
        box_targets=torch.randn(STEP_REGIONS, 4),
    ).to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, loss = torch.optim.SGD(trained, lr=1e-6, momentum=0.9), DetectionLoss()

    def step() -> None:
        losses = loss(predict(), sampled)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def ratios(times: dict[str, Times]) -> dict[str, float]:
    """Return how many times faster than R-CNN each is: test image, training step, and whole training."""
    rcnn, spp, fast = times["R-CNN"], times["SPP-net, 5 scales"], times["Fast R-CNN"]
    shared = {name: other for name, other in times.items() if other is not rcnn}
    faster = {f"test, {name}": rcnn.test / other.test for name, other in shared.items()}
    faster |= {f"convolutions, {name}": rcnn.features / other.features for name, other in shared.items()}
    faster |= {"step, SPP-net": rcnn.step / spp.step, "step, Fast R-CNN": rcnn.step / fast.step}
    whole = STEPS["R-CNN"] * rcnn.step + VOC07_IMAGES * rcnn.test
    staged = STEPS["SPP-net"] * spp.step + VOC07_IMAGES * spp.features
    faster |= {"training, SPP-net": whole / staged}
    return faster | {"training, Fast R-CNN": whole / (STEPS["Fast R-CNN"] * fast.step)}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time all pipelines and print the table."""
    pipelines = {
        "R-CNN": ("R-CNN", (SIZE[0],)),
        "SPP-net, 1 scale": ("SPP-net", (688,)),
        "SPP-net, 5 scales": ("SPP-net", FIVE_SCALES),
        "Fast R-CNN": ("Fast R-CNN", (600,)),
    }
    regions = min(arguments.regions or (PROPOSALS if arguments.device != "cpu" else 64), PROPOSALS)
    print(f"{arguments.backbone}, {PROPOSALS} proposals; R-CNN's convolutions timed on {regions}")
    times, seconds = {}, Stopwatch(arguments.rounds, arguments.device, arguments.clock)
    for label, (name, scales) in pipelines.items():
        pipeline = build(name, arguments.backbone, scales, arguments.device)
        timed = time_rcnn(pipeline, regions, seconds) if name == "R-CNN" else time_shared(pipeline, seconds)
        times[label] = timed
        print(
            f"{label:<18} test image {timed.test:9.3f} s, of which {timed.features:8.3f} s in "
            f"{timed.passes:4d} passes of the convolutions; training step {timed.step:7.3f} s",
            flush=True,
        )
    faster = ratios(times)
    for label, ratio in faster.items():
        print(f"{label:<31} {ratio:7.1f}x faster than R-CNN   paper: {PAPERS.get(label, 'not given')}")
    seconds_of = {label: asdict(timed) for label, timed in times.items()}
    settings = {"backbone": arguments.backbone, "device": arguments.device, "rcnn_regions": regions}
    settings |= {"clock": arguments.clock, "threads": torch.get_num_threads()}
    return {**settings, "seconds": seconds_of, "faster_than_rcnn": faster}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="vgg16", help="a name of model.backbone (default vgg16)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--regions", type=int, help="regions that R-CNN is timed on (default: 64 on a CPU, all on a GPU)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timings of each; the median counts")
    parser.add_argument("--threads", type=int, help="threads of the CPU (default: torch's number)")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor is for busy machines, best with --threads 1, and not for a GPU (default wall)",
    )
    parser.add_argument("--output", metavar="FILE.json", help="write the results there")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results = run(arguments)
    if arguments.output:
        write_json(Path(arguments.output), results)


if __name__ == "__main__":
    main()
