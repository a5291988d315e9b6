"""A daemon without a way to the internet has another unit fetch venvs and weights: both ends of their socket.

systemd starts one process for each connection: `llm-supervisor pull --requested`. The daemon sends a line,

    MODEL

and gets JSON lines: {"phase": "weights: downloading", "fraction": 0.43} any number of times, then one of

    {"done": true}
    {"error": "cannot …", "temporary": true | false}

A line "stop" ends the work. A daemon that is gone does not: its successor asks again, and waits, by the locks
of venvs and weights, for the same work to be finished.

Engines run as the daemon's user and could ask, too. So nothing is taken from the socket but the name of a
model of the configuration, which root owns; what is fetched for it is said there.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from supervisord_llm.errors import ProvisionError
from supervisord_llm.runtime.ports import Progress, Report

log = logging.getLogger(__name__)

VARIABLE = "LLM_SUPERVISOR_FETCH"
"""In the daemon's environment: the path of the socket. Its unit sets it; without it the daemon downloads."""

STOP = "stop"
ASK_TIMEOUT_S = 10.0
"""How long a connection may take to name its model."""
STOP_TIMEOUT_S = 5.0
"""How long a fetch that is to stop is waited for."""
LINE_LIMIT = 1 << 20
JOURNAL = "journalctl -u 'llm-supervisor-fetch@*' tells why"


class FetchUnit:
    """The daemon's end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.goes_on = False
        """A successor of the daemon wants what is being fetched: a cancellation leaves it alone."""

    async def fetch(self, model: str, report: Report) -> None:
        """Have the model's venv and weights made, as its unit's configuration says. Cancelling stops that.

        Raises:
            ProvisionError: what the unit says, or that there is none.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._path, limit=LINE_LIMIT)
        except OSError as why:
            raise ProvisionError(
                f"cannot have {model} fetched: nobody answers at {self._path} ({why.strerror}): "
                "systemctl start llm-supervisor-fetch.socket",
                temporary=True,
            ) from why
        try:
            writer.write(f"{model}\n".encode())
            await self._follow(model, reader, report)
        except asyncio.CancelledError:
            if not self.goes_on:
                await _stop(reader, writer)
            raise
        finally:
            writer.close()

    async def _follow(self, model: str, reader: asyncio.StreamReader, report: Report) -> None:
        with contextlib.suppress(OSError, ValueError):  # as if it had ended
            async for line in reader:
                match _parse(line):
                    case {"phase": str(phase), "fraction": None | float() | int() as fraction}:
                        report(Progress(phase, fraction))
                    case {"error": str(error), "temporary": bool(temporary)}:
                        raise ProvisionError(error, temporary=temporary)
                    case {"done": True}:
                        return
                    case _:
                        pass
        raise ProvisionError(
            f"cannot have {model} fetched: the fetch ended without an answer; {JOURNAL}", temporary=True
        )


async def _stop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Tell it to stop, and wait until it has."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            writer.write(f"{STOP}\n".encode())
            while await reader.read(1 << 16):
                pass


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


class Requester:
    """The unit's end: whoever is at the other end of the socket `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._model = ""
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def asks_for(self) -> str:
        """The name that it sends; "" where none comes in time."""
        self._socket.setblocking(False)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return (await self._reader.readline()).decode().strip()
        return ""

    def report(self, step: Progress) -> None:
        """Tell a step of the work."""
        self._tell({"phase": step.phase, "fraction": step.fraction})

    async def answer(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do the work and tell what came of it, unless told to stop before; whether it was done."""
        working = asyncio.ensure_future(work())
        listening = asyncio.create_task(self._until_stopped(), name="listen for a stop")
        listening.add_done_callback(lambda _: working.cancel())
        try:
            await working
        except ProvisionError as error:
            log.error("%s", error)
            self._tell({"error": str(error), "temporary": error.temporary})
            return False
        except asyncio.CancelledError:
            log.info("stopped, as the daemon asked")
            return False
        else:
            self._tell({"done": True})
            return True
        finally:
            listening.cancel()
            self._writer.close()
            with contextlib.suppress(OSError, TimeoutError):  # who asked may not read
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._writer.wait_closed()

    async def _until_stopped(self) -> None:
        """Returns when told to stop; never where the daemon is gone."""
        with contextlib.suppress(OSError, ValueError):
            async for line in self._reader:
                if line.decode().strip() == STOP:
                    return
        await asyncio.Event().wait()

    def _tell(self, message: dict[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(f"{json.dumps(message)}\n".encode())
