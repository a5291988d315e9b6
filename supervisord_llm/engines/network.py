"""What keeps engines from the LAN and the internet here: the daemon's unit, a namespace, or nothing."""

import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from supervisord_llm.config.model import Model, Peer
from supervisord_llm.config.remotes import is_here
from supervisord_llm.engines import namespace
from supervisord_llm.engines.template import takes_port
from supervisord_llm.runtime.ports import Reach

VARIABLE = "LLM_SUPERVISOR_NETWORK"
"""The unit sets it to "isolated" beside its IPAddressDeny=, which holds for all that the daemon starts."""

LOOK_S = 10.0

WAY_OUT = (
    "run the daemon as the service or as root, or let its user make namespaces (on Ubuntu: "
    "sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
)
PORT = (
    "a server that listens on a port has to be in the network of the daemon; "
    "have it listen on {socket} if it can, or run the daemon as the service"
)
OPEN_FOR_REMOTE = "the unit keeps the daemon from it; install the drop-in remote.conf of docs/systemd.md"
OPEN_THE_UNIT = "install the drop-in internet.conf of docs/systemd.md to open it"


@dataclass(frozen=True, slots=True)
class Network:
    """`why_not` there is no namespace to be had, where nothing else isolates either."""

    by: Literal["unit", "namespace", "nothing"] = "nothing"
    why_not: str = ""

    def enters(self, model: Model) -> bool:
        """Whether its engine is to be launched in a namespace."""
        return self.by == "namespace" and model.network == "isolated" and not takes_port(model)

    def reach(self, model: Model) -> Reach:
        """How far its engine gets, and in a sentence why not as configured."""
        if model.engine == "remote":
            return Reach("host", OPEN_FOR_REMOTE if self.by == "unit" and not is_here(model.url) else "")
        if self.by == "unit" and model.network == "host":
            return Reach("isolated", f'network = "host" has no effect: the unit isolates; {OPEN_THE_UNIT}')
        if self.by == "namespace" and model.network == "isolated" and takes_port(model):
            return Reach("host", f"cannot isolate it from the network: {PORT}")
        if self.by == "nothing" and model.network == "isolated":
            return Reach("host", f"cannot isolate it from the network: {self.why_not}; {WAY_OUT}")
        return Reach(model.network)

    def peer_note(self, peer: Peer) -> str:
        """Why this peer is out of reach; "" where nothing says so."""
        return OPEN_FOR_REMOTE if self.by == "unit" and not is_here(peer.url) else ""

    def notes(self, models: Iterable[Model]) -> dict[str, list[str]]:
        """Each sentence that is to be said of some of the models, with their names; for peers' see there."""
        found: dict[str, list[str]] = {}
        for model in models:
            if not model.peer and (note := self.reach(model).network_note):
                found.setdefault(note, []).append(model.name)
        return found


OPEN = Network()


def look(environ: Mapping[str, str]) -> Network:
    """Find out. Blocks for about 20 ms."""
    if environ.get(VARIABLE) == "isolated":
        return Network("unit")
    try:
        done = subprocess.run(entering(()), capture_output=True, text=True, timeout=LOOK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as why:
        return Network("nothing", str(why))
    if done.returncode == 0:
        return Network("namespace")
    said = done.stderr.strip().rpartition("\n")[2]
    return Network("nothing", said.partition("network: ")[2] or said or f"status {done.returncode}")


def entering(argv: tuple[str, ...]) -> tuple[str, ...]:
    """`argv`, run in a network namespace of its own from its first instruction on."""
    return (sys.executable, "-IS", namespace.__file__, *argv)
