"""The console command ``region-detector``: every command of ``tools/`` under one name."""

from __future__ import annotations

import sys
from importlib import import_module

from detector.commands import cli
from detector.core.command_line import COMMANDS, PROGRAM


def main() -> None:
    """Run the command that the first argument names, with the rest of the arguments."""
    commands = {command.name: command for command in COMMANDS}
    if len(sys.argv) > 1 and sys.argv[1] in commands:
        name = sys.argv.pop(1)
        sys.argv[0] = f"{PROGRAM} {name}"
        cli.run(import_module(f"detector.commands.{name}").main, together=commands[name].together)
    _parser().parse_args()  # ends with the help, the version or an error that lists the commands


def _parser() -> cli.Parser:
    from detector import __version__

    parser = cli.make_parser(
        "Train and run Fast R-CNN and SPP-net detectors on given regions.",
        f"{PROGRAM} train --config quickstart --output runs/quickstart",
    )
    parser.prog = PROGRAM
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        commands.add_parser(command.name, help=command.summary, add_help=False)
    return parser
