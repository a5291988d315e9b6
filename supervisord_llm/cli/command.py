"""How a group of commands adds one to the parser."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

DONE = 0
FAILED = 1
CONFIG_INVALID = 78

Run = Callable[[argparse.Namespace], int]
"""Parsed arguments -> exit code. `args.parser.error(...)` is wrong usage."""


class Commands:
    """The commands of the parser."""

    def __init__(self, subparsers: "Subparsers") -> None:
        self._subparsers = subparsers

    def add(
        self, name: str, run: Run, summary: str, *, details: str = "", json: bool = False
    ) -> argparse.ArgumentParser:
        """Add a command that answers to --config, and to --json if it is a reading one."""
        parser = self._subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=details,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run, parser=parser, json=False)
        # SUPPRESS: a default here would overwrite a --config that stood before the command.
        parser.add_argument(
            "--config", metavar="PATH", type=Path, default=argparse.SUPPRESS, help="the configuration to use"
        )
        if json:
            parser.add_argument("--json", action="store_true", help="print JSON, for programs")
        return parser
