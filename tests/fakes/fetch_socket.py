"""Stands for llm-supervisor-fetch.socket: starts `pull --requested` for each connection, as systemd does."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class FetchSocket:
    """Where it listens, and the fetches that it has started."""

    path: Path
    log: Path
    started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def running(self) -> "list[subprocess.Popen[bytes]]":
        return [fetch for fetch in self.started if fetch.poll() is None]

    def kill(self) -> None:
        """End every fetch, and what it has started, as systemd ends the control group of a unit."""
        for fetch in self.running:
            with contextlib.suppress(ProcessLookupError):
                fetch.send_signal(signal.SIGKILL)
            fetch.wait()


@contextlib.contextmanager
def listening(path: Path, config: Path, environ: Mapping[str, str]) -> Iterator[FetchSocket]:
    """Until the end of the block, when no fetch may be running any more."""
    command = [sys.executable, "-m", "supervisord_llm", "pull", "--requested", "--config", str(config)]
    unit = FetchSocket(path, path.with_suffix(".log"))
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = door.accept()
                    with connection, unit.log.open("ab") as log:
                        unit.started.append(
                            subprocess.Popen(
                                command,
                                stdin=connection.fileno(),
                                stdout=log,
                                stderr=log,
                                env={**os.environ, **environ},
                            )
                        )

        thread = threading.Thread(target=accept, name="fetch socket")
        thread.start()
        try:
            yield unit
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join()
            unit.kill()
