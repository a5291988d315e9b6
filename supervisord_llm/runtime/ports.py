"""What the runtime asks of the world. The edges implement these; daemon.py joins them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of slow work: a `phase` in a few words and, where it can be known, a `fraction` of 1."""

    phase: str
    fraction: float | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Exit:
    """How an engine ended, told once every process of it is reaped.

    `code` is the leader's exit code, negative for a signal, None if it could not be learnt.
    `reason` is one sentence for people; `tail` the last lines of output; `command` can be pasted in a shell.
    """

    code: int | None
    reason: str
    tail: tuple[str, ...] = ()
    command: str = ""


class Provisioner(Protocol):
    """Makes what an engine needs before it can be launched."""

    async def prepare(self, model: str, report: Report) -> None:
        """Make the model's venv and weights present and look for mistakes a launch would find late.

        Called only while no engine of the model runs. Cheap when nothing is missing. Cancellation stops the
        work and leaves nothing half-made.

        Raises:
            ProvisionError: what is missing or wrong, in one sentence with a way out.
        """


class Engine(Protocol):
    """One launched engine, alive or not."""

    @property
    def socket(self) -> Path:
        """The unix socket it serves HTTP on."""

    async def ready(self) -> None:
        """Return within 25 ms of the engine answering /health with 200. Never returns if it never does."""

    async def wait(self) -> Exit:
        """Return when the leader has ended, for whatever reason, and every process of its tree is reaped.

        What the leader left behind (grandchildren, other sessions) is killed first.
        """

    async def stop(self, *, kill: bool) -> None:
        """End it: SIGTERM, a bounded wait, SIGKILL of the whole tree; with `kill` the tree is killed at once.

        Returns when every process is reaped, or when SIGKILL did not help for a while: then `wait` has not
        returned and the engine still holds its memory. Safe to call twice.
        """


class Launcher(Protocol):
    """Starts engine processes."""

    async def launch(self, model: str, launch: int, gpus: tuple[int, ...], report: Report) -> Engine:
        """Spawn the engine of `model` on `gpus` (indices; () is CPU). `launch` tells two lives apart.

        `report` gets a Progress for each sign of life (recognised phase, or output at all with phase "").

        Raises:
            LaunchError: it could not be spawned.
        """


class Upstreams(Protocol):
    """The gateway's connections to engines, seen from the runtime."""

    async def close(self, model: str) -> None:
        """Close every connection to the model's engine, streams included.

        vLLM can hang for good on SIGTERM while a stream is open, so this precedes every stop.
        """
