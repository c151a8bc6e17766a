"""A second name for a checkpoint: one file where links are possible, a copy elsewhere."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from detector.core.errors import InputError
from detector.engine.links import link_or_copy


def test_a_link_stays_when_its_source_goes(tmp_path: Path) -> None:
    source, target = tmp_path / "step_4.pt", tmp_path / "best.pt"
    source.write_bytes(b"four")
    target.write_bytes(b"older")
    link_or_copy(source, target)
    assert source.samefile(target)
    link_or_copy(source, target)  # again: nothing to do, and no temporary file stays
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "step_4.pt"}
    source.unlink()
    assert target.read_bytes() == b"four"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK])
def test_a_copy_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "step_4.pt").write_bytes(b"four")
    link_or_copy(tmp_path / "step_4.pt", tmp_path / "best.pt")
    assert (tmp_path / "best.pt").read_bytes() == b"four"
    assert not (tmp_path / "step_4.pt").samefile(tmp_path / "best.pt")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_fails_leaves_the_older_file(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"older")
    with pytest.raises(InputError, match=r"best\.pt: cannot write the checkpoint"):
        link_or_copy(tmp_path / "step_4.pt", tmp_path / "best.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
    assert (tmp_path / "best.pt").read_bytes() == b"older"
