"""What happens to all processes of a training when one of them ends, hangs or finds an error."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from detector.config import load_config
from detector.data.samplers import TrainingBatches
from detector.factory.data import class_names, load_training
from tests.multiprocess.conftest import Start
from tests.multiprocess.launch import run, started, tool, torchrun
from tests.multiprocess.test_run import DROPOUT, FAULTY, identical, weights

pytestmark = pytest.mark.slow

PROCESS_ENDS = "another process of this training has ended or does not answer"


def training(output: str, *more: str) -> list[str]:
    return ["--config", "tiny.yaml", "--output", output, "--device", "cpu", *DROPOUT, *more]


def own_words(text: str) -> str:
    """Return what the processes have printed, without what torchrun adds in the end."""
    return text.partition("Traceback (most recent call last)")[0]


def test_a_rank_that_dies_ends_the_job(place: Path) -> None:
    """In an evaluation, where the other process waits for it as long as it lives, whatever signal comes."""
    began = time.monotonic()
    done = run(torchrun(2, "-m", FAULTY, "exits", "1", "-1", "-", *training("dies")), place)
    assert done.returncode != 0
    assert "exitcode  : 7" in done.stdout
    assert own_words(done.stdout).count(PROCESS_ENDS) <= 1
    assert time.monotonic() - began < 30 + 30  # the second half is for the start of the job
    assert not (place / "dies" / ".run.lock").exists()


def test_an_error_of_another_rank_names_it(
    place: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(1)  # the proposals are there
    monkeypatch.chdir(place)
    config = load_config("tiny.yaml", DROPOUT)
    records = load_training(config, class_names(config), training=False).records
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


def test_a_rank_that_hangs_ends_the_job(place: Path) -> None:
    given = ["hangs", "1", "2", "-", *training("hangs")]
    told = "rank 0: error: rank 1 has given no sign of life for 6 seconds"
    with started(torchrun(2, "-m", FAULTY, *given), place) as job:
        assert job.stdout is not None
        lines = list(iter_until(job.stdout, "closing signal SIGTERM"))  # 30 seconds later comes SIGKILL
    assert any(told in line for line in lines), "".join(lines)
    assert "closing signal SIGTERM" in lines[-1]


def iter_until(lines: Iterable[str], wanted: str) -> Iterator[str]:
    for line in lines:
        yield line
        if wanted in line:
            return


def test_images_that_cannot_be_divided_give_one_error(place: Path) -> None:
    given = ["--config", "tiny.yaml", "--output", "odd", "--device", "cpu", "train.images_per_batch=3"]
    done = run(torchrun(2, tool("train"), *given), place)
    assert done.returncode != 0
    assert own_words(done.stdout).count("error: train.images_per_batch: 3 images per step cannot be") == 1
    assert not (place / "odd").exists()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Machines(NamedTuple):
    """How two torchruns are started that cannot tell that they are on one machine."""

    address: str
    prefixes: tuple[list[str], list[str]]
    interfaces: tuple[str, str]


LOOPBACK = Machines("127.0.0.1", ([], []), ("lo", "lo"))


@pytest.fixture
def machines() -> Iterator[Machines]:
    """Two network namespaces, connected by an Ethernet pair; the loopback where they cannot be made."""
    names = [f"detector{os.getpid()}{end}" for end in "ab"]
    first, second = (f"eth{name[-6:]}" for name in names)
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add {first} netns {names[0]} type veth peer name {second} netns {names[1]}")
    for number, (name, interface) in enumerate(zip(names, (first, second), strict=True), start=1):
        commands += [f"-n {name} addr add 10.97.0.{number}/24 dev {interface}"]
        commands += [f"-n {name} link set {one} up" for one in (interface, "lo")]
    if shutil.which("ip") is None:
        yield LOOPBACK
        return
    try:
        made = all(
            subprocess.run(["ip", *one.split()], capture_output=True).returncode == 0 for one in commands
        )
        inside = [["ip", "netns", "exec", name] for name in names]
        yield Machines("10.97.0.1", (inside[0], inside[1]), (first, second)) if made else LOOPBACK
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_two_machines_equal_two_processes_of_one(place: Path, start: Start, machines: Machines) -> None:
    """Train with two torchruns of one process each, and compare with two processes of one torchrun."""
    whole = weights(start(2) / "with_dropout")
    port = str(free_port())

    def agent(rank: int) -> list[str]:
        options = ("--nnodes=2", f"--node-rank={rank}", f"--master-addr={machines.address}")
        program = (tool("train"), *training("machines"))
        return [
            *machines.prefixes[rank],
            *torchrun(1, *program, options=(*options, f"--master-port={port}")),
        ]

    first, second = ({"GLOO_SOCKET_IFNAME": name} for name in machines.interfaces)
    with started(agent(0), place, **first) as one, started(agent(1), place, **second) as other:
        outputs = [job.communicate(timeout=240)[0] for job in (one, other)]
        assert [one.returncode, other.returncode] == [0, 0], "\n".join(outputs)
    assert identical(whole, weights(place / "machines"))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_processes_tell_each_other(start: Start, count: int) -> None:
    for rank in range(count):
        found = json.loads((start(count) / "talk" / f"talk_{rank}.json").read_text())
        assert found["rows"] == [[[float(other)] * 2] * other for other in range(count)]
        assert found["texts"] == ["grün" * other for other in range(count)]
        assert found["total"] == [sum(range(count)), count]
        devices = "; ".join(f"rank {other}: kind {other}" for other in range(count))
        assert (f"({devices})" in found.get("devices", "")) == (count > 1)
    lines = (start(count) / "talk" / "order.txt").read_text().splitlines()
    assert lines[:2] == ["0 enters", "0 leaves"]  # the others follow when it has left
    assert len(lines) == 2 * count
