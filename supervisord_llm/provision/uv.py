"""uv as a child process: where it looks for packages, what it says while it works, why it failed."""

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import termios
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import uv

from supervisord_llm.config.model import Venv
from supervisord_llm.errors import ProvisionError
from supervisord_llm.provision import pip_config
from supervisord_llm.provision.waiting import SIGN_OF_LIFE, SIGN_S
from supervisord_llm.runtime.ports import Progress, Report

_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|LANG|LC_\w+|XDG_\w+|SSL_CERT_\w+|NETRC|(?i:\w+_proxy)|UV_\w+"
    r"|CC|CXX|C(XX|PP)?FLAGS|LDFLAGS|CUDA_HOME|MAX_JOBS"
)
"""The variables uv and the build back ends it runs may see: a daemon's environment holds keys, too."""

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = re.compile(r"(\S+) +-+ +([\d.]+) ([KMGT]?i?B)/([\d.]+) ([KMGT]?i?B)")
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SILENT = {"building packages", "installing", "compiling bytecode", "checking"}
"""Phases that use this machine alone and may print nothing for minutes."""
_TERMINAL = struct.pack("HHHH", 100, 300, 0, 0)  # rows, columns: every progress bar fits in one line


def environment(environ: Mapping[str, str], venv: Venv, cache: Path, pythons: Path) -> dict[str, str]:
    """uv's environment. The venv's own index settings win over uv's variables, those over pip's settings."""
    own = {name: value for name, value in environ.items() if _PASSED_ON.fullmatch(name)}
    merged = pip_config.uv_environment(pip_config.read(environ), own) | own
    if venv.index_url:
        merged.pop("UV_INDEX_URL", None)
        merged["UV_DEFAULT_INDEX"] = venv.index_url
    if venv.extra_index_urls:
        merged["UV_INDEX"] = " ".join(filter(None, (*venv.extra_index_urls, merged.get("UV_INDEX"))))
        merged.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    if venv.find_links:
        merged["UV_FIND_LINKS"] = ",".join(filter(None, (*venv.find_links, merged.get("UV_FIND_LINKS"))))
    merged.setdefault("UV_CACHE_DIR", str(cache))
    merged.setdefault("UV_PYTHON_INSTALL_DIR", str(pythons))
    merged.setdefault("UV_PYTHON_PREFERENCE", "system")
    return merged


class Output:
    """Understands what uv draws on a terminal: plain lines are kept, progress bars become Progress."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=40)
        self._rest = ""
        self._bars: dict[str, tuple[float, float]] = {}

    def feed(self, text: str) -> Progress | None:
        """Take what uv wrote next; the newest Progress in it, if there is one."""
        text = _ESCAPES.sub("", self._rest + text)
        *lines, self._rest = re.split(r"\r?\n", text)
        self._rest = self._rest[-4000:]
        for line in lines:
            plain = line.rpartition("\r")[2].rstrip()
            if plain and not _BAR.search(plain):
                self.lines.append(plain)
        return self._progress(text)

    def _progress(self, text: str) -> Progress | None:
        seen = {
            name: (float(done) * _UNITS[unit], float(total) * _UNITS[of])
            for name, done, unit, total, of in _BAR.findall(text)
            if unit in _UNITS and of in _UNITS
        }
        if seen:
            for name in self._bars.keys() - seen.keys():  # a bar that is no longer drawn has finished
                self._bars[name] = (self._bars[name][1], self._bars[name][1])
            self._bars |= seen
            done, total = (sum(column) for column in zip(*self._bars.values(), strict=True))
            largest = max(seen, key=lambda name: seen[name][1] - seen[name][0])
            return Progress(f"downloading {largest}", round(done / total, 2) if total else None)
        for mark, phase in (
            ("Bytecode compiled", "checking"),
            ("Installed ", "compiling bytecode"),
            ("Installing wheels", "installing"),
            ("Prepared ", "installing"),
            ("Building ", "building packages"),
            ("Preparing packages", "downloading"),
            ("Resolving dependencies", "resolving"),
        ):
            if mark in text:
                return Progress(phase)
        return None


async def run(
    arguments: Sequence[str | Path],
    environ: Mapping[str, str],
    cwd: Path,
    locks: Sequence[int],
    report: Report,
) -> None:
    """Run `uv ARGUMENTS` to its end, in its own session on a pseudo terminal.

    It inherits `locks` (see lock.py). Cancelling kills it.

    Each new Progress is told at once; any other output is a sign of life, one a second at most. So is being
    alive in a phase that may be silent, but not in one that uses the network: uv draws all the time there and
    gives up by itself (30 s for a read, some retries) where nothing arrives.

    Raises:
        ProvisionError: it failed; the message holds its last lines. Its `temporary` says network or disk.
    """
    # Progress bars are drawn on a terminal only
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, _TERMINAL)
    os.set_blocking(terminal, False)
    output = Output()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    told: Progress | None = None
    told_at = time.monotonic()

    def read() -> None:
        nonlocal told, told_at
        try:
            data = os.read(terminal, 1 << 16)
        except BlockingIOError:
            return
        except OSError:  # EIO: every process on the other side is gone
            data = b""
        if not data:
            loop.remove_reader(terminal)
            ended.set()
        elif (progress := output.feed(data.decode(errors="replace"))) not in (None, told):
            told, told_at = progress, time.monotonic()
            report(progress)
        else:
            show_life()

    def show_life() -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= SIGN_S:
            told_at = time.monotonic()
            report(SIGN_OF_LIFE)

    try:
        child = await asyncio.create_subprocess_exec(
            uv.find_uv_bin(),
            *map(str, arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=side,
            stderr=side,
            cwd=cwd,
            env=environ,
            start_new_session=True,
            pass_fds=locks,
        )
    except BaseException:
        os.close(terminal)
        raise
    finally:
        os.close(side)
    loop.add_reader(terminal, read)
    try:
        while not ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), SIGN_S)
            if not ended.is_set() and told is not None and told.phase in _SILENT:
                show_life()
        code = await child.wait()
    finally:
        loop.remove_reader(terminal)
        os.close(terminal)
        if child.returncode is None:
            with suppress(ProcessLookupError):  # it ended meanwhile, and all it started
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    if code != 0:
        raise failure(tuple(output.lines))


class NoSpace(ProvisionError):
    """A disk is full."""


def failure(lines: Sequence[str]) -> ProvisionError:
    """uv's last lines as an error: what it says from its `error:` on, and what to do."""
    start = next((at for at in range(len(lines) - 1, -1, -1) if lines[at].startswith("error")), -6)
    said = " ".join(line.strip() for line in lines[start:]) or "it said nothing"
    if "No space left on device" in said or "os error 28" in said or "Disk quota exceeded" in said:
        return NoSpace(
            f"no space is left on the disk: free some, or set [paths] state to a larger one ({said})",
            temporary=True,
        )
    if re.search(r"dns error|error sending request|Could not connect|timed out|Failed to fetch", said):
        return ProvisionError(
            "a package index cannot be reached: check the network, or the index that pip's configuration or "
            f"the model's venv names ({said})",
            temporary=True,
        )
    if "No interpreter found" in said:
        return ProvisionError(f"that Python is not here: install it, or set python in the venv ({said})")
    return ProvisionError(f"uv failed: {said}; correct the venv's requirements or index")
