"""The benchmark of the HTTP interface: what it sends and sums up, and a run with a real server."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks import server
from benchmarks.exported import save_random
from benchmarks.server import Answer
from detector.config import Config
from detector.core.errors import InputError

SECONDS = {"waiting": 0.0, "decode": 0.0, "proposals": 0.0, "network": 0.0}


class Handler(BaseHTTPRequestHandler):
    """Answers with the status that the image spells."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        kind = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        _, image = message_from_bytes(kind + body).walk()
        assert image.get_param("name", header="content-disposition") == "image"
        content = json.dumps({"detail": "no", "seconds": SECONDS}).encode()
        self.send_response(int(str(image.get_payload())))
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()
        thread.join()


def test_requests_are_divided_among_the_clients(address: str) -> None:
    bodies = [server.form(b"200"), server.form(b"503")]
    seconds, answers = server.send(address, bodies, clients=3, requests=8)
    assert seconds > 0
    assert sorted(answer.status for answer in answers) == [200] * 4 + [503] * 4
    assert all(answer.parts == (SECONDS if answer.status == 200 else {}) for answer in answers)
    with pytest.raises(InputError, match="the server answered 422"):
        server.send(address, [server.form(b"422")], clients=1, requests=1)


def test_a_row_has_medians_of_what_was_answered() -> None:
    parts = {"waiting": 0.5, "decode": 0.25, "proposals": 0.125, "network": 0.0625}
    fast, slow, refused = Answer(200, 1.0, parts), Answer(200, 3.0, parts), Answer(503, 0.01, {})
    row = server.summary(2, [(4.0, [fast, refused, slow]), (1.0, [fast, fast]), (2.0, [fast])])
    assert (row["clients"], row["requests"], row["refused"]) == (2, 6, 1)
    assert row["requests_per_second"] == 0.5
    expected = {name: 1e3 * value for name, value in parts.items()} | {"all": 1e3, "p95": 3e3}
    assert row["ms"] == pytest.approx(expected | {"transport": 62.5})


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"the server did not start: .*expected a number from 1"),
        server.serving(("--checkpoint", tmp_path / "none.pt", "--workers-in-flight", 0)),
    ):
        pass


@pytest.mark.slow
def test_a_real_server_answers_and_refuses(
    tiny: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    checkpoint = save_random(tiny(), tmp_path / "a.pt", classes=3)
    options = ["--checkpoint", str(checkpoint), "--clients", "2", "--requests", "4", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["server.py", *options, "--queue", "1", "--json"])
    server.main()
    found = json.loads(capsys.readouterr().out)
    few, many = found["rows"]
    assert [(row["clients"], row["requests"]) for row in (few, many)] == [(2, 8), (4, 8)]
    assert few["refused"] == 0 < few["requests_per_second"]
    assert many["refused"] > 0
    assert few["ms"]["network"] > 0
    assert few["ms"]["all"] > few["ms"]["network"] + few["ms"]["proposals"]
    assert "with 503" in server.lines(found)
