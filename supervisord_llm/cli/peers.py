"""What `check` says of peers: what is configured, and what a running daemon has found."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from supervisord_llm.cli.client import Client
from supervisord_llm.cli.host import Fact
from supervisord_llm.cli.render import one_line
from supervisord_llm.config.model import Config
from supervisord_llm.config.problem import listing, quoted
from supervisord_llm.config.remotes import is_here
from supervisord_llm.core.explain import count
from supervisord_llm.engines.network import OPEN_FOR_REMOTE, look
from supervisord_llm.errors import SupervisorError


def peers(config: Config, *, is_serving: bool, environ: Mapping[str, str] = os.environ) -> Iterator[Fact]:
    """Each peer, and whether the daemon, or else the service, can reach it."""
    if not config.peers:
        return
    found = _served(config) if is_serving else {}
    here = look(environ)
    for peer in config.peers:
        if peer.no_key:
            yield Fact("bad", f"peers.{peer.name}", f"cannot ask it for its models: {peer.no_key}")
            continue
        with_key = "without a key" if peer.key is None else "with a key"
        wanted = "all that it lists" if "*" in peer.models else listing(map(quoted, peer.models), "and")
        text = f"{peer.url} is asked {with_key}; wanted of its models: {wanted}"
        state = found.get(peer.name)
        if state is not None and not state["away"]:
            text += f"; it lists {count(state['listed'], 'model')}"
        yield Fact("ok", f"peers.{peer.name}", text)
        if state is not None and state["away"]:
            yield Fact("hint", f"peers.{peer.name}", f"is away: {one_line(state['away'])}")
        elif state is None and not is_here(peer.url):
            note = here.peer_note(peer) or f"out of reach for the service: {OPEN_FOR_REMOTE}"
            yield Fact("hint", f"peers.{peer.name}.url", note)


def _served(config: Config) -> Mapping[str, Any]:
    with contextlib.suppress(SupervisorError):
        answer: dict[str, Any] = Client(config.paths.control_socket).get("status")
        return answer.get("peers") or {}
    return {}
