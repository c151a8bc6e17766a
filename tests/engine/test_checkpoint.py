"""Checkpoints are whole or absent, and only ours are read."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detector.core.errors import InputError
from detector.engine.checkpoint import (
    DamagedCheckpoint,
    check_model_state,
    load_checkpoint,
    load_resumable,
    numbered_checkpoints,
    random_states,
    save_checkpoint,
    set_random_states,
)
from tests.conftest import PROJECT
from tests.devices import on_cuda


def state(step: int = 3, model: nn.Module | None = None) -> dict[str, Any]:
    model = model or nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(3, next(model.parameters()).shape[1])).sum().backward()
    optimizer.step()
    return {
        "step": step,
        "config": {"train": {"steps": 5, "scales": [600]}},
        "classes": ["cat", "dog"],
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": random_states(),
        "best": {"metric": 0.5, "step": 2.0},
    }


def test_everything_comes_back(tmp_path: Path) -> None:
    saved = state()
    path = tmp_path / "checkpoints" / "step_3.pt"  # the folder is made
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    for key in ("step", "config", "classes", "best"):
        assert loaded[key] == saved[key]
    assert all(torch.equal(loaded["model"][name], value) for name, value in saved["model"].items())
    momentum = loaded["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, saved["optimizer"]["state"][0]["momentum_buffer"])
    assert [found.name for found in path.parent.iterdir()] == ["step_3.pt"]


def test_random_states_repeat_what_followed() -> None:
    saved = random_states()
    first = torch.rand(5)
    set_random_states(saved)
    assert torch.equal(torch.rand(5), first)


def test_states_of_gpus_are_taken_once_in_use_and_put_back_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    put: dict[int, torch.Tensor] = {}
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, number: put.update({number: state}))
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.tensor([7]), torch.tensor([8])])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert random_states()["cuda"] == []  # a run on the CPU does not start CUDA
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    saved = random_states()
    for count in (0, 1, 2, 3):
        put.clear()
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)  # noqa: B023 - used in this turn
        set_random_states(saved)
        assert put == dict(enumerate(saved["cuda"][:count]))


def test_a_state_that_no_gpu_takes_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("RNG state is wrong size")

    monkeypatch.setattr(torch.cuda, "set_rng_state", refuse)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="'random' has a state that does not belong to a GPU's"):
        set_random_states({"torch": torch.get_rng_state(), "cuda": [torch.zeros(3, dtype=torch.uint8)]})


@on_cuda
def test_dropout_on_a_gpu_goes_on_where_it_was(device: str, tmp_path: Path) -> None:
    ones = torch.ones(1000, device=device)
    save_checkpoint(tmp_path / "step_3.pt", state())
    first = nn.functional.dropout(ones)
    assert not torch.equal(nn.functional.dropout(ones), first)
    set_random_states(load_checkpoint(tmp_path / "step_3.pt")["random"])
    assert torch.equal(nn.functional.dropout(ones), first)


@pytest.mark.parametrize("unit", ["bit", "page"])
def test_damage_is_noticed_or_changes_nothing(tmp_path: Path, unit: str) -> None:
    """400 flipped bits and 300 lost pages, each in a checkpoint of its own."""
    path, saved = tmp_path / "step_3.pt", state(model=nn.Linear(100, 100))
    save_checkpoint(path, saved)
    whole, rng, noticed = path.read_bytes(), random.Random(1), 0
    for _ in range(400 if unit == "bit" else 300):
        damaged = bytearray(whole)
        if unit == "bit":
            place = rng.randrange(8 * len(whole))
            damaged[place // 8] ^= 1 << place % 8
        else:
            place = rng.randrange(len(whole) // 4096) * 4096
            damaged[place : place + 4096] = bytes(4096)
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
        except DamagedCheckpoint:
            noticed += 1
            continue
        for name, tensor in saved["model"].items():
            assert torch.equal(found["model"][name], tensor)
        assert (found["config"], found["classes"], found["best"]) == (
            saved["config"],
            saved["classes"],
            saved["best"],
        )
        assert torch.equal(found["random"]["torch"], saved["random"]["torch"])
    assert noticed > 280


def test_damage_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "step_3.pt"
    save_checkpoint(path, state())
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole.replace(b"format", b"firmat", 1)):
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint, match=r"use an earlier step_N\.pt of the run"):
            load_checkpoint(path)
    torch.save(state(), path)  # sound, and no checkpoint
    with pytest.raises(InputError, match="not a checkpoint of this project") as caught:
        load_checkpoint(path)
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_what_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step_3.pt"
    saved = state()
    saved["model"]["weight"] = torch.zeros(1).expand(10**11)
    save_checkpoint(path, saved)
    with pytest.raises(InputError, match=r"step_3\.pt: .*'model\.weight' has the shape \(100000000000,\)"):
        load_checkpoint(path)
    torch.save({"format": 1, **state()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"step_3\.pt: not readable as a checkpoint"):
        load_checkpoint(path)


def test_a_run_goes_on_from_a_whole_checkpoint_alone(tmp_path: Path) -> None:
    whole = {**state(), "evaluated": 0}
    path = tmp_path / "step_3.pt"
    save_checkpoint(path, whole)
    assert load_resumable(path)["file"] == str(path)
    for key in ("optimizer", "random", "best", "evaluated"):
        save_checkpoint(path, {name: value for name, value in whole.items() if name != key})
        load_checkpoint(path)  # its weights can be used
        with pytest.raises(InputError, match=rf"step_3\.pt: the checkpoint has no '{key}'.*initial_weights"):
            load_resumable(path)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.pt", state())
    whole = (tmp_path / "whole.pt").read_bytes()
    for number, share in enumerate((0.0, 0.3, 0.9, 0.999)):
        path = tmp_path / f"cut_{number}.pt"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match=rf"{path.name}: not readable as a checkpoint \(truncated"):
            load_checkpoint(path)
    torch.save(nn.Linear(2, 2), tmp_path / "object.pt")
    with pytest.raises(InputError, match=r"object\.pt: not readable as a checkpoint"):
        load_checkpoint(tmp_path / "object.pt")
    for number, foreign in enumerate(
        (
            [1, 2],
            nn.Linear(2, 2).state_dict(),
            {"format": 1, "step": 0, "config": {}, "classes": [], "model": [1]},
        )
    ):
        torch.save(foreign, tmp_path / f"foreign_{number}.pt")
        with pytest.raises(InputError, match=rf"foreign_{number}\.pt: not a checkpoint of this project"):
            load_checkpoint(tmp_path / f"foreign_{number}.pt")
    torch.save({"format": 99, **state()}, tmp_path / "later.pt")
    with pytest.raises(InputError, match="checkpoint format 99, this version reads format 1"):
        load_checkpoint(tmp_path / "later.pt")
    with pytest.raises(InputError, match=r"gone\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "gone.pt")


def test_another_architecture_is_named_tensor_by_tensor() -> None:
    saved = {"model": nn.Linear(4, 2).state_dict()}
    with pytest.raises(InputError, match=r"a\.pt: .*weight \(2, 4\) where \(3, 4\) is needed"):
        check_model_state(nn.Linear(4, 3), saved, "a.pt")
    with pytest.raises(InputError, match=r"missing 0\.weight; missing 0\.bias; unknown weight; unknown bias"):
        check_model_state(nn.Sequential(nn.Linear(4, 2)), saved, "a.pt")
    with pytest.raises(InputError, match="; and 2 more"):
        check_model_state(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)), saved, "a.pt")
    check_model_state(nn.Linear(4, 2), saved, "a.pt")


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.core.errors import InputError

path = Path(sys.argv[1])
kept = {"config": {}, "classes": [], "model": {"weight": torch.ones(1000)}}
save_checkpoint(path, {"step": 1, **kept})
for room in (0, 10_000, 2_000_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        save_checkpoint(path, {"step": 2, **kept, "more": torch.ones(1_000_000)})
    except InputError as error:
        print(error)
    print(load_checkpoint(path)["step"], [found.name for found in path.parent.iterdir()])
"""


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files fails the write as a full disk does, at the start or in the middle."""
    path = tmp_path / "step_2.pt"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done.stdout
    for message, rest in zip(lines[::2], lines[1::2], strict=True):
        assert message.startswith(f"{path}: cannot write the file: File too large; ")
        assert rest == "1 ['step_2.pt']"


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="cannot write the file: File exists"):
        save_checkpoint(tmp_path / "run" / "step_1.pt", state())


def test_checkpoints_are_listed_by_number(tmp_path: Path) -> None:
    for name in ("step_10.pt", "step_9.pt", "best.pt", "step_x.pt", "step_3.pt.tmp", ".step_4.pt.7.tmp"):
        (tmp_path / name).touch()
    assert [path.name for path in numbered_checkpoints(tmp_path)] == ["step_9.pt", "step_10.pt"]
    assert numbered_checkpoints(tmp_path / "missing") == []


KILLED = """
import io, os, random, signal, sys
from pathlib import Path
import torch
from detector.engine.checkpoint import load_checkpoint, save_checkpoint

path, moments = Path(sys.argv[1]), int(sys.argv[2])
kept = {"config": {}, "classes": [], "model": {"weight": torch.ones(3000)}}
save_checkpoint(path, {"step": 1, **kept})
draw, save, changes = random.Random(0), torch.save, {"open", "os.rename", "os.remove"}

def child(moment):
    seen = 0

    def notice(event, given):
        nonlocal seen
        if event in changes and str(path.parent) in str(given[0]):
            seen += 1
            if moment % 2 and seen == 1 + moment // 2:
                os.kill(os.getpid(), signal.SIGKILL)

    def part_of(content, file):
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: draw.randrange(whole.tell())])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    if moment % 2 == 0:
        torch.save = part_of
    sys.addaudithook(notice)
    save_checkpoint(path, {"step": 2, **kept})
    os._exit(0)

for moment in range(moments):
    draw.random()
    if (number := os.fork()) == 0:
        child(moment)
    killed = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == -signal.SIGKILL
    print(killed, load_checkpoint(path)["step"], flush=True)
    save_checkpoint(path, {"step": 1, **kept})
"""


def test_a_process_that_is_killed_while_it_writes_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """Killed in the middle of the bytes, and before every operation on a file."""
    path = tmp_path / "checkpoints" / "step_3.pt"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), "14"],
        cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[::2] == ["True 1"] * 7  # in the middle of the bytes
    assert set(lines[1::2]) <= {"True 1", "True 2", "False 2"}
    assert lines[1] == "True 1"
    assert {"True 2", "False 2"} & set(lines)  # the last moments come after the new file is there
