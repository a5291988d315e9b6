"""keys: make keys for clients. Nothing is written: the client gets the key, the configuration its hash."""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from supervisord_llm.cli.command import DONE, Commands
from supervisord_llm.errors import ConfigError

KEY_BYTES = 32
"""Of randomness; nobody can guess one of these."""


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "keys",
        _keys,
        "make a key for a client, and print it with the lines for the configuration",
        json=True,
        details=(
            "`keys new NAME` prints the key in its first line and nowhere else: the configuration needs its\n"
            "hash alone. For a client that has a key it prints the line with which both are valid."
        ),
    )
    parser.add_argument("action", metavar="new", choices=("new",), help="make a key")
    parser.add_argument("name", metavar="NAME", help="the client, as in [clients.NAME]")


@dataclass(frozen=True, slots=True)
class Lines:
    """What to write, and what to do with it."""

    config: str
    advice: str


def _keys(args: argparse.Namespace) -> int:
    import hashlib
    import secrets

    from supervisord_llm.config.keys.clients import CLIENT_NAME
    from supervisord_llm.config.kinds import Unreadable

    try:
        CLIENT_NAME.read(args.name)
    except Unreadable as misfit:
        why, way_out = misfit.why and f": {misfit.why}", misfit.way_out or f"write {CLIENT_NAME.accepts}"
        args.parser.error(f"cannot name a client {args.name!r}{why}; {way_out}")
    key = f"sk-{secrets.token_urlsafe(KEY_BYTES)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    lines = lines_for(args.name, digest, _configured(args))
    if args.json:
        told = {"name": args.name, "key": key, "key_sha256": digest, "config": lines.config}
        print(json.dumps(told, indent=2))
    else:
        print(f"{key}\n\nIt is shown this once. {lines.advice}:\n\n{lines.config}\n")
        print("Then: llm-supervisor reload")
    return DONE


def lines_for(name: str, digest: str, configured: Mapping[str, Any]) -> Lines:
    """`configured` is the client's table, empty where there is none."""
    from supervisord_llm.config.parse import KEY_WAYS
    from supervisord_llm.config.problem import dotted, listing

    table = f"[{dotted(('clients', name))}]"
    if not configured:
        return Lines(f'{table}\nkey_sha256 = "{digest}"', "The configuration needs")
    hashes = configured.get("key_sha256")
    old = [hashes] if isinstance(hashes, str) else hashes if isinstance(hashes, list) else []
    if old:
        return Lines(
            f"key_sha256 = {json.dumps([digest, *old])}",
            f"In {table} this line takes the place of its key_sha256; old and new keys are valid together",
        )
    ways = [way for way in KEY_WAYS if way in configured]
    beside = f" beside {listing(ways, 'and')}; old and new keys are valid together" if ways else ""
    return Lines(f'key_sha256 = "{digest}"', f"Add this line to {table}{beside}")


def _configured(args: argparse.Namespace) -> Mapping[str, Any]:
    """The client's table as it is written; one that cannot be read is told of, and is as good as none."""
    from supervisord_llm.config.load import config_file, read_documents

    file = config_file(args.config)
    try:
        if not file.exists():
            return {}
        clients = read_documents(file).values.get("clients")
    except (ConfigError, OSError) as error:
        print(f"cannot tell whether {args.name} has a key already:\n{error}", file=sys.stderr)
        return {}
    found = clients.get(args.name) if isinstance(clients, dict) else None
    return found if isinstance(found, dict) else {}
