"""The command that serves a checkpoint: its options, its warnings, and its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detector.commands import serve
from detector.config import Config
from detector.core.errors import InputError
from tests.commands.conftest import Tool
from tests.test_api import save_random

Load = Callable[..., Config]


@pytest.fixture
def checkpoint(tiny: Load, tmp_path: Path) -> Path:
    return save_random(tiny(), tmp_path / "random.pt")


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let every server end with Ctrl-C at once, and keep what it would have served."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    gates: list[Any] = []

    def run(server: Any, sockets: list[Any]) -> None:
        assert len(sockets) == 1
        gates.append(server.config.app)
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", run)
    return gates


def test_it_prints_its_address_and_ends_with_ctrl_c(tool: Tool, checkpoint: Path, ended: list[Any]) -> None:
    result = tool(
        "serve",
        "--checkpoint",
        checkpoint,
        "--port",
        0,
        "--device",
        "cpu",
        "--queue",
        3,
        "--max-upload-mb",
        1.5,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("http://127.0.0.1:")
    assert int(result.stdout.strip().strip("/").rsplit(":", 1)[1]) > 0
    assert "stopped" in result.stderr
    assert "warning" not in result.stderr
    (gate,) = ended
    assert (gate.most_inside, gate.limits.upload_bytes) == (4, 1_500_000)


def test_beyond_this_machine_it_warns(tool: Tool, checkpoint: Path, ended: list[Any]) -> None:
    arguments = ("--checkpoint", checkpoint, "--port", 0, "--device", "cpu")
    result = tool("serve", *arguments, "--host", "0.0.0.0", "--allow-host", "My-Machine")
    assert result.returncode == 0, result.stderr
    assert "lets other machines use this server, and it asks nobody for a password" in result.stderr
    assert "my-machine" in ended[0].limits.hosts


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--queue", "-1"), "--queue -1: expected a number from 0 to 10000"),
        (("--workers-in-flight", "0"), "--workers-in-flight 0: expected a number from 1"),
        (("--max-upload-mb", "nan"), "--max-upload-mb nan: expected a number"),
        (("--max-pixels", "999999999999"), "--max-pixels 1e+12: expected a number from 1 to 1.34218e+08"),
        (("--port", "70000"), "--port 70000: expected a number from 0 to 65535"),
    ],
)
def test_numbers_have_a_range(
    arguments: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["serve.py", "--checkpoint", "x.pt", *arguments])
    with pytest.raises(InputError) as error:
        serve.parse()
    assert problem in str(error.value)


def test_without_the_extra_it_says_what_to_install(
    tool: Tool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(serve.require_server.__globals__["_SERVER"], "fastapi", "no_such_module")
    result = tool("serve", "--checkpoint", checkpoint)
    assert result.returncode == 2
    assert 'the server needs fastapi: pip install "region-detector[serve]"' in result.stderr


def test_a_checkpoint_of_a_proposal_file_is_told(
    tool: Tool, tiny: Load, tmp_path: Path, ended: list[Any]
) -> None:
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    config = tiny("proposals={file: boxes.npz, format: npz}")
    checkpoint = save_random(config, tmp_path / "file.pt")
    result = tool("serve", "--checkpoint", checkpoint, "--port", 0, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "making proposals by selective search" in result.stderr
    choices = TestClient(ended[0], base_url="http://localhost").get("/model").json()["proposals"]
    assert [choice["title"] for choice in choices] == [
        "Selective search, fast",
        "Selective search, quality (slow)",
        "Dense grid of windows",
    ]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("my-machine", False),
    ],
)
def test_addresses_of_this_machine_only(host: str, loopback: bool) -> None:
    assert serve.is_loopback(host) is loopback
