"""The program of this daemon as it is installed now: tried, and executed in our place.

What it was started with is looked up anew, so that a link on the way (scripts/install switches one) leads to
what it leads to now.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from supervisord_llm.errors import Refused

TRY_S = 60.0
CONFIG_INVALID = 78
QUOTED_LINES = 5


def own_command(argv: list[str] | None = None, orig_argv: list[str] | None = None) -> tuple[str, ...]:
    """The words that start this program again: by its own name if it is executable, else by Python.

    The first line of a script names its interpreter, which may be another one than ours by the next time.
    """
    argv, orig_argv = argv or sys.argv, orig_argv or sys.orig_argv
    program = Path(argv[0]).absolute()
    if program.is_file() and os.access(program, os.X_OK):
        return (str(program), *argv[1:])
    return (sys.executable, *orig_argv[1:])


class Program:
    """What runs if the daemon is started again."""

    def __init__(self, command: tuple[str, ...]) -> None:
        """`command`: of a running daemon, `serve` included."""
        self.command = command

    async def tried(self) -> str:
        """Its version, once it was seen to run and to find the configuration valid.

        Raises:
            Refused: it does not.
        """
        code, out, err = await self._run("--check")
        if code == CONFIG_INVALID:
            raise Refused(
                "invalid_config",
                "cannot upgrade, the old version goes on: to the new one the configuration is invalid:\n"
                + err.rstrip(),
            )
        if code != 0:
            raise Refused(
                "not_possible",
                f"cannot upgrade: `{' '.join(self.command)} --check` fails with {code}:\n{_last(err)}\n"
                "install it again; the running version goes on",
            )
        return out.split()[-1] if out.split() else "unknown"

    async def _run(self, *more: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        try:
            child = await asyncio.create_subprocess_exec(
                *self.command,
                *more,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise Refused(
                "not_possible",
                f"cannot upgrade: {self.command[0]} cannot be run: {error.strerror}; install it again",
            ) from None
        try:
            async with asyncio.timeout(TRY_S):
                out, err = await child.communicate()
        except TimeoutError:
            raise Refused(
                "not_possible",
                f"cannot upgrade: `{' '.join(self.command)} {' '.join(more)}` does not end within "
                f"{TRY_S:.0f} s; see what it does by hand",
            ) from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        assert child.returncode is not None
        return child.returncode, out.decode(errors="replace"), err.decode(errors="replace")

    def execute(self, environ: Mapping[str, str]) -> NoReturn:
        """Become it, in this very process.

        Raises:
            OSError: it cannot be executed; nothing has changed.
        """
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.execve(self.command[0], self.command, environ)  # noqa: S606 - in our place, not beside us


def _last(text: str, lines: int = QUOTED_LINES) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])
