"""schedule: what the schedule has in force, and putting something else in force for a while."""

import argparse
import json

from supervisord_llm.cli import render
from supervisord_llm.cli.command import DONE, Commands
from supervisord_llm.cli.locate import daemon_of


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "schedule",
        _schedule,
        "show which window of the schedule is in force, or put one in force by hand",
        json=True,
        details=(
            "examples:\n"
            "  llm-supervisor schedule                    what is in force, and the next three switches\n"
            "  llm-supervisor schedule night --for 2h     as in the window `night`, for two hours\n"
            "  llm-supervisor schedule none               every model may run, until the next switch\n"
            "  llm-supervisor schedule auto               by the hours again"
        ),
    )
    parser.add_argument(
        "window",
        metavar="WINDOW",
        nargs="?",
        help='name of a window; "none": no window; "auto": by the hours',
    )
    parser.add_argument(
        "--for", dest="duration", metavar="DURATION", help="until then (1h, 30m); else until the next switch"
    )


def _number(duration: str) -> str | float:
    """Seconds may be written without their unit."""
    try:
        return float(duration)
    except ValueError:
        return duration


def _schedule(args: argparse.Namespace) -> int:
    if args.window is None and args.duration is not None:
        args.parser.error("cannot tell what to put in force: name a window before --for")
    daemon = daemon_of(args.config)
    if args.window is None:
        found = daemon.get("schedule")
    else:
        limit = {} if args.duration is None else {"for": _number(args.duration)}
        found = daemon.post("schedule", window=None if args.window == "none" else args.window, **limit)
    print(json.dumps(found, indent=2) if args.json else render.schedule(found))
    return DONE
