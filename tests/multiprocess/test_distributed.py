"""What happens to all processes of a training when one of them ends, hangs or finds an error."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from detector.config import load_config
from detector.core.distributed import check_shares
from detector.core.errors import InputError
from detector.data.samplers import TrainingBatches
from detector.factory.data import load_training
from tests.multiprocess.conftest import Start
from tests.multiprocess.launch import run, started, tool, torchrun
from tests.multiprocess.test_run import DROPOUT, FAULTY, identical, weights

PROCESS_ENDS = "another process of this training has ended or does not answer"


def training(output: str, *more: str) -> list[str]:
    return ["--config", "tiny.yaml", "--output", output, "--device", "cpu", *DROPOUT, *more]


def own_words(text: str) -> str:
    """Return what the processes have printed, without what torchrun adds in the end."""
    return text.partition("Traceback (most recent call last)")[0]


def test_a_rank_that_dies_ends_the_job(place: Path) -> None:
    began = time.monotonic()
    done = run(torchrun(2, "-m", FAULTY, "exits", "1", "3", "-", *training("dies")), place)
    assert done.returncode != 0
    assert "exitcode  : 7" in done.stdout
    assert own_words(done.stdout).count(PROCESS_ENDS) <= 1
    assert time.monotonic() - began < 30 + 30  # the second half is for the start of the job
    assert not (place / "dies" / ".run.lock").exists()


def test_an_error_of_another_rank_names_it(place: Path, start: Start) -> None:
    start(1)  # the proposals are there
    config = load_config(place / "tiny.yaml", [*DROPOUT])
    records = load_training(config, config.data.classes or (), training=False).records
    last = next(iter(TrainingBatches(len(records), 6, config.seed)))[5][0]
    path = records[last].path
    content = path.read_bytes()
    try:
        given = ["loses_an_image", "1", "0", str(path), *training("lost")]
        done = run(torchrun(2, "-m", FAULTY, *given), place)
    finally:
        path.write_bytes(content)
    text = own_words(done.stdout)
    assert done.returncode != 0
    assert "rank 1: error: " in text
    assert path.name in text.partition("rank 1: error: ")[2].splitlines()[0]
    assert text.count("error: another process") <= 1


def test_torchrun_goes_on_by_itself_after_a_kill(place: Path, start: Start) -> None:
    whole = weights(start(2) / "with_dropout")
    options = ("--standalone", "--max-restarts=3")
    given = ["dies_once", "1", "6", str(place / "killed.once"), *training("restarted", "--resume")]
    done = run(torchrun(2, "-m", FAULTY, *given, options=options), place)
    assert done.returncode == 0, done.stdout
    assert (place / "killed.once").exists()
    assert identical(whole, weights(place / "restarted"))


def test_a_rank_that_hangs_ends_the_job(place: Path) -> None:
    given = ["hangs", "1", "2", "-", *training("hangs")]
    with started(torchrun(2, "-m", FAULTY, *given), place) as job:
        text, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "rank 0: error: rank 1 has given no sign of life for 6 seconds" in text


def test_images_that_cannot_be_divided_give_one_error(place: Path) -> None:
    given = ["--config", "tiny.yaml", "--output", "odd", "--device", "cpu", "train.images_per_batch=3"]
    done = run(torchrun(2, tool("train"), *given), place)
    assert done.returncode != 0
    assert own_words(done.stdout).count("error: train.images_per_batch: 3 images per step cannot be") == 1
    assert not (place / "odd").exists()


def test_the_error_names_the_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.core.distributed.world_size", lambda: 4)
    check_shares(24, 3)
    with pytest.raises(InputError, match=r"train.images_per_batch: 12 .* 4 processes in 2 parts .* of 8$"):
        check_shares(12, 2)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_two_agents_on_loopback_equal_two_processes_of_one(place: Path, start: Start) -> None:
    whole = weights(start(2) / "with_dropout")
    address = ("--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}")

    def agent(rank: int) -> list[str]:
        options = (*address, f"--node-rank={rank}")
        return torchrun(1, tool("train"), *training("agents"), options=options)

    with started(agent(0), place) as first, started(agent(1), place) as second:
        outputs = [job.communicate(timeout=240)[0] for job in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0], "\n".join(outputs)
    assert identical(whole, weights(place / "agents"))
