"""upgrade: have the daemon become the program that is installed now, and see what came of it."""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import psutil

from supervisord_llm.cli.client import Client, Declined, Unreachable
from supervisord_llm.cli.command import CONFIG_INVALID, DONE, FAILED, Commands
from supervisord_llm.cli.locate import daemon_of
from supervisord_llm.errors import SupervisorError

POLL_S = 0.2
GONE_S = 15.0
"""After the process has ended: systemd, if it is to, starts another one sooner."""
RUNNING = ("ready", "sleeping", "waking", "draining")
RESTART = "restart it instead: `systemctl restart llm-supervisor` leaves the engines alone, too"


def register(commands: Commands) -> None:
    """Add the command."""
    commands.add(
        "upgrade",
        _upgrade,
        "have the running daemon become the version that is installed now",
        json=True,
        details="Engines go on, nobody is refused, requests may finish first. A version that does not run,\n"
        "or finds the configuration invalid, is refused before anything is given up.",
    )


def _upgrade(args: argparse.Namespace) -> int:
    daemon = daemon_of(args.config)
    before = daemon.get("status")
    try:
        begun = daemon.post("upgrade")
    except Declined as declined:
        if declined.code == "invalid_config":
            print(declined, file=sys.stderr)
            return CONFIG_INVALID
        if declined.code == "not_found":
            raise SupervisorError(
                f"cannot upgrade: the daemon that runs does not know how to; {RESTART}"
            ) from None
        raise
    after = _successor(daemon, before, begun["within_s"])
    kept = [name for name, launch in _running(before).items() if _running(after).get(name) == launch]
    lost = [name for name in _running(before) if name not in kept]
    if args.json:
        print(json.dumps({"from": before["version"], "to": after["version"], "kept": kept, "lost": lost}))
    else:
        print(f"{before['version']} -> {after['version']}; {_engines('kept', kept)}")
        if lost:
            print(f"{_engines('gone', lost)}; see `llm-supervisor events`", file=sys.stderr)
    return FAILED if lost else DONE


def _successor(daemon: Client, before: Mapping[str, Any], within_s: float) -> Mapping[str, Any]:
    """The status of the program that took over.

    Raises:
        SupervisorError: it did not.
    """
    deadline = time.monotonic() + within_s
    why = f"no new daemon answers within {within_s:.0f} s"
    while time.monotonic() < deadline:
        try:
            found: Mapping[str, Any] = daemon.get("status")
        except Unreachable:  # for a moment
            found = before
            if not psutil.pid_exists(before["pid"]):  # a stop, or a crash
                deadline = min(deadline, time.monotonic() + GONE_S)
                why = "the daemon ended meanwhile, and no other answers"
        if found["started_at"] != before["started_at"]:
            if found["upgrade_failure"]:
                raise SupervisorError(found["upgrade_failure"])
            return found
        time.sleep(POLL_S)
    raise SupervisorError(f"cannot upgrade: {why}; see `journalctl -u llm-supervisor`")


def _running(status: Mapping[str, Any]) -> dict[str, int]:
    """The launch of each engine that can be taken over: of one elsewhere there is nothing here to take."""
    return {
        name: model["launch"]
        for name, model in status["models"].items()
        if model["state"] in RUNNING and model.get("engine") != "remote"
    }


def _engines(what: str, names: list[str]) -> str:
    count = f"{len(names)} engine{'' if len(names) == 1 else 's'} {what}"
    return f"{count}: {', '.join(names)}" if names else count
