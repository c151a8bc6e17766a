"""Shipped configs are found by name from anywhere; a path still works and wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.config import load_config
from detector.config.files import SHIPPED, find_config
from detector.core.errors import InputError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("quickstart", "quickstart.yaml"),
        ("quickstart.yaml", "quickstart.yaml"),
        ("ablation/svm", "ablation/svm.yaml"),
        ("_base_/voc07", "_base_/voc07.yaml"),
    ],
)
def test_a_shipped_config_has_a_name(name: str, file: str) -> None:
    assert find_config(name) == SHIPPED / file


def test_a_path_wins_and_a_folder_does_not(elsewhere: Path) -> None:
    (elsewhere / "quickstart").mkdir()
    assert find_config("quickstart") == SHIPPED / "quickstart.yaml"
    (elsewhere / "quickstart.yaml").write_text("seed: 3")
    assert find_config("quickstart.yaml") == Path("quickstart.yaml")
    assert find_config("quickstart.yaml", elsewhere) == elsewhere / "quickstart.yaml"
    assert find_config(str(elsewhere / "quickstart.yaml")).read_text() == "seed: 3"


@pytest.mark.parametrize("base", ["quickstart", "quickstart.yaml", "[quickstart, ablation/dense]"])
def test_a_base_may_be_a_name(base: str, elsewhere: Path) -> None:
    (elsewhere / "deep").mkdir()
    (elsewhere / "deep" / "mine.yaml").write_text(f"_base_: {base}\nseed: 7\n")
    config = load_config("deep/mine.yaml")
    assert (config.seed, config.train.steps) == (7, 1500)
    assert config.proposals.method == ("dense" if "dense" in base else "selective_search")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("quikstart", r"quikstart: no such config file; shipped configs of similar names: quickstart"),
        ("ablation/train_conv3", r"similar names: ablation/train_conv"),
        ("my/far/away.yaml", r"my/far/away\.yaml: no such config file$"),
        ("suites/fast_rcnn_paper", r"no such config file"),
        ("../quickstart", r"\.\./quickstart: no such config file"),
        ("/quickstart", r"^/quickstart: no such config file"),
        ("", r"no such config file"),
        (".", r"no such config file"),
    ],
)
def test_a_name_that_is_not_found_lists_similar_ones(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_config(name)
