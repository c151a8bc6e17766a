"""Exported region features hold what the folder holds, as the libraries of each format read them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from detector.core.errors import InputError
from detector.staged import feature_export
from detector.staged.feature_export import export
from detector.staged.region_features import RegionFeatures
from tests.staged.test_region_features import Parts, embed, none_for_first, parts

__all__ = ["parts"]


@pytest.fixture
def features(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RegionFeatures:
    """Features of four images, one without regions, exported in pieces that end within an image."""
    found = embed(parts._replace(source=none_for_first), tmp_path / "features")
    monkeypatch.setattr(feature_export, "PIECE", 3 * 2 * found.width)
    return found


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_parquet_has_a_row_per_region(features: RegionFeatures, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "out.parquet"
    done: list[tuple[int, int]] = []
    export(features, path, "parquet", dtype, lambda *counts: done.append(counts))
    assert done[-1] == (len(features), len(features))
    assert pq.ParquetFile(path).num_row_groups == len(done) > 3
    table = pq.read_table(path)
    assert table.column_names == ["image", "hash", "region", "box", "score", "features"]
    assert str(table.schema.field("features").type).endswith(f"[{features.width}]")
    rows = table.to_pylist()
    assert len(rows) == len(features)
    for key, image in zip(features.images, features.plan.images, strict=True):
        own = [row for row in rows if row["image"] == key]
        assert {row["hash"] for row in own} <= {image.hash}
        scores = features.scores(key)
        assert [row["region"] for row in own] == list(range(len(features.boxes(key))))
        assert [row["score"] for row in own] == ([None] * len(own) if scores is None else scores.tolist())
        if own:
            np.testing.assert_array_equal([row["box"] for row in own], features.boxes(key))
            read = np.array([row["features"] for row in own], dtype)
            np.testing.assert_array_equal(read, features.features(key).astype(dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_npz_has_the_arrays_of_the_folder(features: RegionFeatures, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "out.npz"
    export(features, path, "npz", dtype)
    with np.load(path, allow_pickle=False) as read:
        assert read["features"].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(read["features"], features.all_features.astype(dtype))
        np.testing.assert_array_equal(read["boxes"], features.all_boxes)
        np.testing.assert_array_equal(read["scores"], features.all_scores)
        np.testing.assert_array_equal(read["offsets"], features.offsets)
        assert tuple(read["images"]) == features.images
        assert read["hashes"].tolist() == [image.hash for image in features.plan.images]


@pytest.mark.parametrize("form", ["parquet", "npz"])
def test_damaged_features_leave_the_old_file(features: RegionFeatures, tmp_path: Path, form: str) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with (features.folder / "features.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x77")
    with pytest.raises(InputError, match="not as they were written"):
        export(RegionFeatures.open(features.folder), path, form)
    assert path.read_text() == "old"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    feature_export.require_exporter("npz")
    with pytest.raises(InputError, match=r"pyarrow: pip install .*\[parquet\].* or take --to npz"):
        feature_export.require_exporter("parquet")
