#!/usr/bin/env python3
"""How fast the HTTP interface of ``tools/serve.py`` answers, and where the time goes.

    python -m benchmarks.server --checkpoint runs/quickstart/checkpoints/best.pt
    python -m benchmarks.server --checkpoint runs/quickstart --clients 1 2 --requests 32 --queue 4 --json

The server runs in a process of its own on a free port of the loopback address, on the CPU. Clients in this
process send images of the quick start's generated data set to POST /detect; each client has one connection,
and sends its next request when it has an answer. A round sends so many requests with each number of clients,
and the next round goes through the numbers in the opposite order. In the last row there are twice as many
clients as the server lets in (those that run and those that wait), so that it refuses some requests with 503.
A refused client sends its next request at once.

Printed are the answered requests per second (the median of the rounds) and medians of the milliseconds per
answered request: all, as the client sees it; waiting, decode, proposals and network, as the answer says; and
transport, which is the rest: connection, form, JSON, and the client's own work. Clients and server share the
cores. ``OMP_NUM_THREADS`` sets the server's compute threads.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from detector.commands import cli
from detector.core.errors import InputError
from detector.core.machine import available_cores
from detector.core.progress import show
from detector.server.gate import Limits

IMAGES = 32
"""Different images; they are the first test images of the quick start."""
WARM_UP = 8
"""Requests that are not counted."""
PARTS = ("waiting", "decode", "proposals", "network")
_SERVE = Path(__file__).parents[1] / "tools" / "serve.py"
_BOUNDARY = "4f1d7c0e9a2b4b6f8d3e5a7c"
_END_SECONDS = 20


@dataclass(frozen=True)
class Answer:
    """An answer's status, the seconds that the client waited for it, and the seconds of each part."""

    status: int
    seconds: float
    parts: dict[str, float]


@contextmanager
def serving(options: Sequence[object]) -> Iterator[str]:
    """Start ``tools/serve.py`` with these options, provide its address, and stop it at the end.

    Raises:
        InputError: the server ended before it had an address; says what it printed.
    """
    command = [sys.executable, _SERVE, "--port", 0, "--device", "cpu", *options]
    with tempfile.TemporaryFile("w+") as notes:
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=notes, text=True)
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                process.wait()
                notes.seek(0)
                raise InputError(f"the server did not start: {notes.read().strip()}")
            yield address
        finally:
            stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def forms() -> list[bytes]:
    """Return a request's form for each image."""
    from detector.data.generated.dataset import generate_voc

    with tempfile.TemporaryDirectory() as folder:
        generate_voc(Path(folder) / "voc", train_images=0, test_images=IMAGES)
        files = sorted((Path(folder) / "voc" / "JPEGImages").iterdir())
        return [form(path.read_bytes()) for path in files]


def form(content: bytes) -> bytes:
    """Return the multipart form (RFC 7578) with the image file ``content``."""
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()


def ask(connection: HTTPConnection, body: bytes) -> Answer:
    """Send one image, and return the answer.

    Raises:
        InputError: the status is neither 200 nor 503; says what the server says.
    """
    begin = time.perf_counter()
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    connection.request("POST", "/detect", body, headers)
    answer = connection.getresponse()
    content = answer.read()
    seconds = time.perf_counter() - begin
    if answer.status not in (200, 503):
        raise InputError(f"the server answered {answer.status}: {content.decode(errors='replace'):.300}")
    parts = json.loads(content)["seconds"] if answer.status == 200 else {}
    return Answer(answer.status, seconds, parts)


def send(address: str, bodies: Sequence[bytes], clients: int, requests: int) -> tuple[float, list[Answer]]:
    """Send ``requests`` requests, divided among the clients; return the seconds of all, and the answers."""
    place = urlsplit(address)
    connections = [HTTPConnection(str(place.hostname), place.port, timeout=120) for _ in range(clients)]

    def work(client: int) -> list[Answer]:
        return [
            ask(connections[client], bodies[number % len(bodies)])
            for number in range(client, requests, clients)
        ]

    try:
        with ThreadPoolExecutor(clients) as pool:
            for _ in pool.map(HTTPConnection.connect, connections):
                pass
            begin = time.perf_counter()
            answers = [answer for part in pool.map(work, range(clients)) for answer in part]
            return time.perf_counter() - begin, answers
    finally:
        for connection in connections:
            connection.close()


def summary(clients: int, rounds: Sequence[tuple[float, Sequence[Answer]]]) -> dict[str, Any]:
    """Return the row of a number of clients, over all rounds."""
    answers = [answer for _, found in rounds for answer in found]
    served = [answer for answer in answers if answer.status == 200]
    speeds = [sum(answer.status == 200 for answer in found) / seconds for seconds, found in rounds]
    everything = sorted(answer.seconds for answer in served)
    parts = {name: [answer.parts[name] for answer in served] for name in PARTS}
    parts["transport"] = [answer.seconds - sum(answer.parts.values()) for answer in served]
    return {
        "clients": clients,
        "requests": len(answers),
        "refused": len(answers) - len(served),
        "requests_per_second": statistics.median(speeds),
        "ms": {
            "all": 1e3 * statistics.median(everything),
            "p95": 1e3 * everything[math.ceil(0.95 * len(everything)) - 1],
            **{name: 1e3 * statistics.median(values) for name, values in parts.items()},
        },
    }


def measure(address: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each number of clients, and one for twice as many as the server lets in."""
    bodies, inside = forms(), arguments.queue + arguments.workers_in_flight
    send(address, bodies, 1, WARM_UP)
    counts = [*arguments.clients, 2 * inside]
    found: dict[int, list[tuple[float, list[Answer]]]] = {place: [] for place in range(len(counts))}
    for number in range(arguments.rounds):
        for place in reversed(found) if number % 2 else found:
            requests = max(arguments.requests, counts[place])
            found[place].append(send(address, bodies, counts[place], requests))
    return [summary(counts[place], rounds) for place, rounds in found.items()]


def lines(found: dict[str, Any]) -> str:
    """Return the results as a table."""
    parts = list(found["rows"][0]["ms"])
    text = [
        f"{found['cores']} cores; queue {found['queue']}, {found['in_flight']} in flight; {found['rounds']} "
        "rounds; milliseconds",
        f"{'clients':>7} {'requests':>8} {'with 503':>8} {'per second':>10}"
        + "".join(f" {name:>9}" for name in parts),
    ]
    for row in found["rows"]:
        text.append(
            f"{row['clients']:7} {row['requests']:8} {row['refused']:8} {row['requests_per_second']:10.1f}"
            + "".join(f" {value:9.2f}" for value in row["ms"].values())
        )
    return "\n".join(text)


def main() -> None:
    arguments = parse()
    options = ("--queue", arguments.queue, "--workers-in-flight", arguments.workers_in_flight)
    with serving(("--checkpoint", arguments.checkpoint, *options)) as address:
        rows = measure(address, arguments)
    found = {
        "cores": available_cores(),
        "queue": arguments.queue,
        "in_flight": arguments.workers_in_flight,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    show(json.dumps(found, indent=2) if arguments.json else lines(found))


def parse() -> argparse.Namespace:
    usual = Limits()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="or the folder of a run")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 4], metavar="N", help="default: 1 4, one after another"
    )
    parser.add_argument(
        "--requests", type=int, default=64, metavar="N", help="per round and number of clients (default: 64)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--queue", type=int, default=usual.queue, metavar="N", help="of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--workers-in-flight",
        type=int,
        default=usual.in_flight,
        metavar="N",
        help="of the server (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
