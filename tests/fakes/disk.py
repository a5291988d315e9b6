"""A small disk that can be filled."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1024**2


class Disk:
    """A file system of its own at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Take all the room that is left."""
        with (self.path / "ballast").open("ab", buffering=0) as ballast:
            for size in (MIB, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        ballast.write(b"x" * size)

    def empty(self) -> None:
        """Give it back."""
        (self.path / "ballast").unlink()


@contextlib.contextmanager
def mounted(path: Path, size_mib: int) -> Iterator[Disk]:
    """A disk of that size at `path`, which is made; the test is skipped where none can be had."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", path], check=False)
    if done.returncode != 0:
        pytest.skip("this container may not mount")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
