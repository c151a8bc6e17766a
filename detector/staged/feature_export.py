"""Region features as one file for other programs: Parquet, or NumPy's npz.

Both are written in pieces of `PIECE` bytes, whatever the size of the features, and appear completely or not
at all.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import atomic_write
from detector.core.progress import ReportProgress
from detector.staged.region_features import RegionFeatures

PIECE = 2**25
"""Bytes of features that are in memory at a time, and in a row group of a Parquet file."""


def require_exporter(form: str) -> None:
    """Raise InputError, before any work, where the package that writes ``form`` is missing."""
    if form == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise InputError(
                '--to parquet needs the package pyarrow: pip install "region-detector[parquet]", or '
                "pip install pyarrow; or take --to npz"
            ) from None


def export(
    features: RegionFeatures,
    path: Path,
    form: str,
    dtype: str = "float16",
    progress: ReportProgress = lambda _done, _total: None,
) -> None:
    """Write ``features`` to ``path`` in ``form``, "parquet" or "npz", with values of ``dtype``.

    ``progress`` is called with the number of regions done and that of all.

    Raises:
        InputError: pyarrow is missing, the features are damaged, or the file cannot be written.
    """
    require_exporter(form)
    features.check()
    match form:
        case "parquet":
            _write_parquet(features, path, np.dtype(dtype), progress)
        case "npz":
            _write_npz(features, path, np.dtype(dtype), progress)
        case _:
            raise ValueError(f"{form!r} is neither parquet nor npz")


def _pieces(features: RegionFeatures, dtype: np.dtype[Any]) -> Iterator[slice]:
    """Yield parts of the regions whose features take at most `PIECE` bytes, at least one region each."""
    rows = max(PIECE // (features.width * dtype.itemsize), 1)
    for begin in range(0, len(features), rows):
        yield slice(begin, min(begin + rows, len(features)))


def _write_parquet(
    features: RegionFeatures, path: Path, dtype: np.dtype[Any], progress: ReportProgress
) -> None:
    """One row per region: ``image`` (its key), ``hash`` (of the image file), ``region`` (its number in the
    image), ``box``, ``score`` (null where the proposals have none) and ``features``, a list of fixed size.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = pa.float16() if dtype == np.float16 else pa.float32()
    schema = pa.schema(
        [
            ("image", pa.string()),
            ("hash", pa.string()),
            ("region", pa.int32()),
            ("box", pa.list_(pa.float32(), 4)),
            ("score", pa.float32()),
            ("features", pa.list_(number, features.width)),
        ]
    )
    keys = pa.array([key.encode("utf-8", "backslashreplace").decode() for key in features.images])
    hashes = pa.array([image.hash for image in features.plan.images])
    scores = features.all_scores
    with atomic_write(path) as file, pq.ParquetWriter(file, schema) as writer:
        for part in _pieces(features, dtype):
            rows = np.arange(part.start, part.stop)
            numbers = np.searchsorted(features.offsets, rows, side="right") - 1
            images = pa.array(numbers)
            score = np.full(len(rows), np.nan, np.float32) if scores is None else np.array(scores[part])
            columns = [
                keys.take(images),
                hashes.take(images),
                pa.array((rows - features.offsets[numbers]).astype(np.int32)),
                _lists(pa, features.all_boxes[part]),
                pa.array(score, mask=np.isnan(score)),
                _lists(pa, features.all_features[part].astype(dtype)),
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(rows))
            progress(part.stop, len(features))


def _lists(pa: Any, rows: NDArray[Any]) -> Any:
    """Return ``rows`` (n, D) as an array of n lists of fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).ravel()), rows.shape[1])


def _write_npz(features: RegionFeatures, path: Path, dtype: np.dtype[Any], progress: ReportProgress) -> None:
    """The arrays of the folder, ``images`` (N,), their keys, and ``hashes`` (N,), those of their files."""
    arrays = {
        "boxes": features.all_boxes,
        "offsets": features.offsets,
        "images": np.array(features.images, dtype=np.str_),
        "hashes": np.array([image.hash for image in features.plan.images], dtype=np.str_),
    }
    if features.all_scores is not None:
        arrays["scores"] = features.all_scores
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with _entry(archive, name) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
        with _entry(archive, "features") as entry:
            shape = (len(features), features.width)
            header = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(entry, header)
            for part in _pieces(features, dtype):
                entry.write(features.all_features[part].astype(dtype).tobytes())
                progress(part.stop, len(features))


def _entry(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(f"{name}.npy", "w", force_zip64=True)
