"""start, stop, restart, sleep, wake, switch, reload: tell the running daemon what to do."""

import argparse
import sys

from supervisord_llm.cli import render
from supervisord_llm.cli.client import Declined
from supervisord_llm.cli.command import CONFIG_INVALID, DONE, FAILED, Commands
from supervisord_llm.cli.locate import daemon_of, not_toml

ORDERS = {
    "start": ("start a model's engine and wait until it is ready", "ready"),
    "stop": ("let a model's open requests finish, end its engine and wait until it is gone", "stopped"),
    "restart": ("stop a model's engine, start it again and wait until it is ready", "ready"),
    "sleep": ("put a model's engine to sleep, which frees most of its GPU memory", "sleeping"),
    "wake": ("wake a model's engine and wait until it is ready", "ready"),
    "switch": ("stop the other engines, start this model's and wait until it is ready", "ready"),
}
"""Command -> what it does, and the state that means it worked."""

IDLE = frozenset({"stopped", "failed", "backoff"})
"""States of members of a route that an order to those that run has nothing to do with."""


def register(commands: Commands) -> None:
    """Add the commands."""
    for verb, (summary, _) in ORDERS.items():
        parser = commands.add(verb, _drive, summary)
        parser.set_defaults(verb=verb)
        parser.add_argument("model", metavar="MODEL", help="name or alias of a model or route")
    commands.add(
        "reload",
        _reload,
        "have the daemon read its configuration again",
        details="Models that did not change keep running. A configuration with mistakes changes nothing.",
    )


def _drive(args: argparse.Namespace) -> int:
    settled = daemon_of(args.config).post(args.verb, model=args.model)
    _, wanted = ORDERS[args.verb]
    if "model" in settled:
        by = f", the engine of {settled['served_by']}" if "served_by" in settled else ""
        print(f"{settled['model']}: {settled['state']}{by}")
        return DONE if settled["state"] == wanted else FAILED
    for name, state in settled["members"].items():
        print(f"{name}: {state}")
    return DONE if {wanted, *IDLE}.issuperset(settled["members"].values()) else FAILED


def _reload(args: argparse.Namespace) -> int:
    if not_toml(args.config) is not None:  # no daemon could take it, and which one is meant is not known
        from supervisord_llm.config.load import config_file, read_documents

        read_documents(config_file(args.config))
    try:
        changes = daemon_of(args.config).post("reload")
    except Declined as declined:
        if declined.code != "invalid_config":
            raise
        print(declined, file=sys.stderr)
        return CONFIG_INVALID
    print(render.reload(changes))
    return DONE
