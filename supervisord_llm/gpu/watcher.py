"""The daemon's end of the child that looks at the GPUs: asks it, with a deadline, and ends it."""

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from supervisord_llm.gpu.sensor import GpuReading
from supervisord_llm.gpu.watch import decode

COMMAND = (sys.executable, "-m", "supervisord_llm.gpu.watch")

LINE_LIMIT = 1 << 22
"""Bytes of one reading: sixteen cards with a thousand processes each."""

ONCE_S = 6.0
"""For one look by a child of its own. NVML takes milliseconds, on a cold driver up to two seconds."""

END_S = 1.0
"""What SIGKILL may take; longer takes a process that hangs inside the driver."""


class WatchError(Exception):
    """There is no reading. The message is a clause: "NVML does not answer within 5 s"."""


class Watcher:
    """One such child, from `start` to `end`."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    @classmethod
    async def start(
        cls, command: Sequence[str] = COMMAND, environment: Mapping[str, str] | None = None
    ) -> "Watcher":
        """
        Raises:
            WatchError: it cannot be spawned.
        """
        try:
            child = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the daemon; and the daemon takes it for no orphan
                limit=LINE_LIMIT,
            )
        except OSError as error:
            raise WatchError(f"{command[0]} cannot be run ({error.strerror})") from error
        return cls(child)

    async def look(self, deadline_s: float) -> GpuReading:
        """Ask for one reading. After an error the child is of no use any more: end it.

        Raises:
            WatchError: it hangs, crashed, or NVML as a whole tells nothing.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            async with asyncio.timeout(deadline_s):
                self._child.stdin.write(b"\n")
                line = await self._child.stdout.readline()
                if not line:
                    raise WatchError(_ending(await self._child.wait()))
            reading = decode(line)
        except TimeoutError:
            raise WatchError(f"NVML does not answer within {deadline_s:g} s") from None
        except ValueError as error:
            raise WatchError(f"the process that asks NVML writes nonsense ({error})") from error
        if reading.failure:
            raise WatchError(reading.failure)
        return reading

    async def end(self) -> bool:
        """Kill and reap it; False where it hangs inside the driver: it is reaped when it comes out."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with suppress(ProcessLookupError):
            self._child.kill()
        self._child.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                while await self._child.stdout.read(LINE_LIMIT):  # to its end, which closes the pipe
                    pass
                await self._child.wait()
        return self.has_ended

    @property
    def has_ended(self) -> bool:
        return self._child.returncode is not None


async def look_once(deadline_s: float = ONCE_S) -> GpuReading:
    """One reading, out of reach of a driver that hangs or crashes: that too is a sentence in its problems."""
    try:
        watcher = await Watcher.start()
        try:
            return await watcher.look(deadline_s)
        finally:
            await watcher.end()
    except WatchError as error:
        return GpuReading(problems=(str(error),))


def _ending(code: int) -> str:
    if code >= 0:
        return f"the process that asks NVML ended with exit code {code}"
    return f"NVML crashed the process that asks it ({signal.Signals(-code).name})"
