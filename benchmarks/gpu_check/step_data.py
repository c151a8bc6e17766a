"""The config of the timed training step, with the data that this machine has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from detector.config import Config, load_config
from detector.config.schema import TrainConfig
from detector.data.generated import generate_voc

CONFIG = Path(__file__).parent / "vgg16.yaml"
TEST_IMAGES = 10
REHEARSAL = [
    "model.head.hidden=[32,32]",
    "train.scales=[64]",
    "train.max_size=96",
    "train.sampling.rois_per_image=8",
    "test.scales=[64]",
    "test.max_size=96",
    "proposals.top_k_train=60",
    "proposals.top_k_test=60",
]
"""The same network with small hidden layers on small images, for a CPU."""


def step_config(data: Path, folder: Path, overrides: Iterable[str], *, rehearsal: bool) -> tuple[Config, str]:
    """Return the config and what its data are.

    ``data`` is the project's folder of data sets. Blood cells are taken, as many as are there with an image,
    an annotation and proposals; without any, generated images with sliding windows. ``folder`` receives what
    has to be made.
    """
    found = bccd_overrides(data, folder) or generated_overrides(folder)
    changes = [*found[0], *(REHEARSAL if rehearsal else []), *overrides]
    return load_config(CONFIG, changes), found[1]


def bccd_overrides(data: Path, folder: Path) -> tuple[list[str], str] | None:
    """Return the config's changes for the blood cells that are there and a name for them; None for none."""
    root, proposals = data / "bccd", data / "bccd_opencv_fast_proposals.npz"
    if not (root / "ImageSets/Main").is_dir() or not proposals.is_file():
        return None
    with np.load(proposals, allow_pickle=False) as file:
        known = set(file.files)
    images = {path.stem for path in (root / "JPEGImages").glob("*.jpg")}
    usable = known & images & {path.stem for path in (root / "Annotations").glob("*.xml")}
    splits = {name: listed(root / f"ImageSets/Main/{name}.txt", usable) for name in ("trainval", "test")}
    if not any(splits.values()):
        return None
    training = splits["trainval"] or splits["test"]
    testing = (splits["test"] or splits["trainval"])[:TEST_IMAGES]
    (folder / "splits").mkdir(parents=True, exist_ok=True)
    (folder / "splits/trainval.txt").write_text("\n".join(training) + "\n")
    (folder / "splits/test.txt").write_text("\n".join(testing) + "\n")
    changes = [f"data.root={root}", f"data.splits={folder / 'splits'}", f"proposals.file={proposals}"]
    return changes, f"BCCD, {len(training)} training and {len(testing)} test images"


def listed(path: Path, usable: set[str]) -> list[str]:
    """Return the ids of a split file that are usable; none where there is no such file."""
    return [name for name in path.read_text().split() if name in usable] if path.is_file() else []


def generated_overrides(folder: Path) -> tuple[list[str], str]:
    root = folder / "generated"
    if not root.exists():
        generate_voc(root, train_images=24, test_images=TEST_IMAGES, image_size=(600, 800), seed=0)
    changes = [f"data.root={root}", "proposals={method: dense, top_k_train: 1400, top_k_test: 1400}"]
    return changes, "generated images of 600 to 800 pixels with sliding windows (BCCD is not there)"


def deterministic_default() -> bool:
    """Return the default of ``train.deterministic``."""
    return bool(TrainConfig.model_fields["deterministic"].default)
