"""status, logs, events: look at the running daemon."""

import argparse
import json
import time
from typing import Any

from supervisord_llm.cli import render
from supervisord_llm.cli.client import Client, Unreachable
from supervisord_llm.cli.command import DONE, Commands
from supervisord_llm.cli.locate import daemon_of
from supervisord_llm.cli.terminal import look

REDRAW_S = 1.0
CLEAR = "\x1b[H\x1b[J"
"""Cursor home, erase below."""


def register(commands: Commands) -> None:
    """Add the commands."""
    status = commands.add("status", _status, "show models, their states, requests and GPUs", json=True)
    status.add_argument("--watch", action="store_true", help="show it again each second, until Ctrl-C")

    logs = commands.add("logs", _logs, "show what a model's engine wrote", json=True)
    logs.add_argument("model", metavar="MODEL", help="name or alias of a model")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what it writes from now on")
    logs.add_argument("-n", "--lines", type=_count, default=100, metavar="N", help="how many (default 100)")

    events = commands.add(
        "events", _events, "show the supervisor's decisions, each with its reason", json=True
    )
    events.add_argument("-f", "--follow", action="store_true", help="go on with those to come")
    events.add_argument("-n", "--lines", type=_count, default=100, metavar="N", help="how many (default 100)")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"cannot use {text!r}: write a whole number")
    return int(text)


def _status(args: argparse.Namespace) -> int:
    daemon = daemon_of(args.config)
    if not args.watch:
        found = daemon.get("status")
        print(json.dumps(found, indent=2) if args.json else render.status(found, look()))
        return DONE
    while True:
        print(_frame(daemon, as_json=args.json), flush=True)
        time.sleep(REDRAW_S)


def _frame(daemon: Client, *, as_json: bool) -> str:
    """One picture of --watch; a daemon that restarts is waited for."""
    try:
        found = daemon.get("status")
    except Unreachable as why:
        found = {"error": str(why)}
    if as_json:
        return json.dumps(found)
    shown = look()
    text = found.get("error") or render.status(found, shown)
    return CLEAR + text if shown.width else text + "\n"


def _logs(args: argparse.Namespace) -> int:
    daemon = daemon_of(args.config)
    if args.follow:
        for data in daemon.events("logs", args.model, n=args.lines, follow=1):
            _print_line(json.loads(data)["line"], as_json=args.json)
    else:
        for line in daemon.lines("logs", args.model, n=args.lines):
            _print_line(line, as_json=args.json)
    return DONE


def _print_line(line: str, *, as_json: bool) -> None:
    print(json.dumps({"line": line}) if as_json else line, flush=True)


def _events(args: argparse.Namespace) -> int:
    daemon = daemon_of(args.config)
    for data in daemon.events("events", n=args.lines, follow=int(args.follow)):
        entry: dict[str, Any] = json.loads(data)
        print(data if args.json else render.event(entry, look()), flush=True)
    return DONE
