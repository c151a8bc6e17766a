"""Show a trained detector in the browser, and detect objects for other programs over HTTP.

Open the printed address, and drop an image on the page. Other programs send images to POST /detect; the page
/docs describes all requests. The server answers only this machine unless --host says otherwise, and it asks
nobody for a password.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
from typing import TYPE_CHECKING, Any

from detector.commands import cli
from detector.core.errors import InputError
from detector.core.libraries import require_server
from detector.core.progress import note

if TYPE_CHECKING:
    from detector.config import Config
    from detector.server.gate import Limits


def main() -> int:
    arguments = parse()
    require_server()

    from detector.api import Detector
    from detector.engine.checkpoint import load_checkpoint
    from detector.factory.resources import choose_device, use_cores
    from detector.server.application import build_application
    from detector.server.running import build_server, listen
    from detector.server.service import Service

    checkpoint = load_checkpoint(cli.checkpoint_file(arguments.checkpoint))
    config = served_config(checkpoint, arguments.overrides)
    device = choose_device(arguments.device)
    use_cores(config, device, loaders=False)
    detector = Detector(config, checkpoint, device)
    gate = build_application(Service(detector, arguments.max_pixels), limits_of(arguments))
    server = build_server(gate)
    with listen(arguments.host, arguments.port) as opened:
        announce(arguments.host, opened.getsockname()[1])
        try:
            server.run(sockets=[opened])
        except KeyboardInterrupt:  # uvicorn ends its requests first, and then passes Ctrl-C on
            note("stopped")
    return 0


def served_config(checkpoint: dict[str, Any], overrides: list[str]) -> Config:
    """Return the checkpoint's config with the overrides of the command line.

    The proposal file of a checkpoint has no boxes of the images that will come: `Service` does not offer it.
    """
    from detector.config.load import parse_stored

    config = parse_stored(checkpoint["config"], overrides, checkpoint["file"])
    if config.task != "classification" and config.proposals.file is not None:
        note("the checkpoint's proposal file is for other images; making proposals by selective search")
    return config


def limits_of(arguments: argparse.Namespace) -> Limits:
    from detector.server.gate import Limits

    return Limits(
        queue=arguments.queue,
        in_flight=arguments.workers_in_flight,
        upload_bytes=round(arguments.max_upload_mb * 1e6),
        upload_seconds=arguments.upload_seconds,
        hosts=frozenset(name.lower() for name in (arguments.host, *arguments.allow_host)),
    )


def announce(host: str, port: int) -> None:
    """Print the address of the page, and a warning where other machines can reach it."""
    name = f"[{host}]" if ":" in host else host
    if not is_loopback(host):
        note(
            f"warning: --host {host} lets other machines use this server, and it asks nobody for a password; "
            "use it only in a network whose members you trust"
        )
    print(f"http://{name}:{port}/", flush=True)
    note("press Ctrl-C to stop")


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server on ``host``, a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def parse() -> argparse.Namespace:
    from detector.server.gate import Limits

    usual = Limits()
    parser = cli.make_parser(
        __doc__ or "", "python tools/serve.py --checkpoint runs/quickstart/checkpoints/best.pt"
    )
    cli.add_checkpoint_argument(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default: %(default)s, only this machine; 0.0.0.0: every machine that "
        "can reach this one)",
    )
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes a free one")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which the server may be called; IP addresses and localhost always may",
    )
    add_limits(parser, usual)
    cli.add_overrides_argument(parser)
    cli.add_device_argument(parser)
    arguments = parser.parse_args()
    check(arguments)
    return arguments


def add_limits(parser: argparse.ArgumentParser, usual: Limits) -> None:
    parser.add_argument(
        "--queue",
        type=int,
        default=usual.queue,
        metavar="N",
        help="maximum number of waiting requests; further ones are answered with 503 (default: %(default)s)",
    )
    parser.add_argument(
        "--workers-in-flight",
        type=int,
        default=usual.in_flight,
        metavar="N",
        help="maximum number of requests computed at the same time (default: %(default)s)",
    )
    parser.add_argument(
        "--max-upload-mb",
        type=float,
        default=20.0,
        metavar="MB",
        help="refuse larger uploads; in millions of bytes (default: %(default)g)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=50_000_000,
        metavar="N",
        help="refuse images of more pixels before they are decoded (default: %(default)s)",
    )
    parser.add_argument(
        "--upload-seconds",
        type=float,
        default=usual.upload_seconds,
        metavar="S",
        help="refuse uploads that take longer (default: %(default)g)",
    )


def check(arguments: argparse.Namespace) -> None:
    """Raise InputError for a number outside its range."""
    ranges = {
        "port": (0, 65535),
        "queue": (0, 10_000),
        "workers_in_flight": (1, 256),
        "max_upload_mb": (0.001, 1000),
        "max_pixels": (1, 2**27),
        "upload_seconds": (0.1, 86_400),
    }
    for name, (least, most) in ranges.items():
        value = getattr(arguments, name)
        if not (math.isfinite(value) and least <= value <= most):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} {value:g}: expected a number from {least:g} to {most:g}")
