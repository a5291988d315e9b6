"""A libnvidia-ml.so.1 of our own, compiled on the spot and loaded by the real nvidia-ml-py.

What it pretends is described at the top of stub_nvml.c. A process that is to hold memory of the stub's GPUs
writes `$STUB_NVML_STATE/procs/<its pid>`: one line a GPU, `<index> <MiB>`.
"""

import functools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest


def compile_stub(directory: Path, *, is_old: bool = False) -> Path:
    """The library's path; its folder belongs in LD_LIBRARY_PATH. `is_old`: without the newer functions."""
    library = directory / "libnvidia-ml.so.1"
    library.write_bytes(_compiled(is_old))
    return library


@functools.cache
def _compiled(is_old: bool) -> bytes:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stub NVML with")
    source = Path(__file__).with_name("stub_nvml.c")
    options = ["-DOLD_DRIVER"] if is_old else []
    with tempfile.NamedTemporaryFile(suffix=".so") as made:
        arguments = [*options, "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", made.name]
        subprocess.run([compiler, *arguments, str(source)], check=True)
        return Path(made.name).read_bytes()


@dataclass(frozen=True)
class Card:
    """One GPU of the stub. `used_mib` is held by nobody: the driver itself, say."""

    uuid: str
    total_mib: int
    used_mib: int = 0
    util: int | None = 0
    """Percent."""
    temp: int | None = 40
    """Celsius."""


CARDS = (Card("GPU-aaaa", 24 * 1024), Card("GPU-bbbb", 8 * 1024))


class StubNvml:
    """The stub in a directory, with a state that may change while others look at it."""

    def __init__(self, directory: Path, cards: tuple[Card, ...] = CARDS) -> None:
        self.cards = cards
        self.state = directory / "nvml"
        (self.state / "procs").mkdir(parents=True)
        self._lines: dict[str, None] = {}
        self.library = compile_stub(directory)
        self._write()

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs to see these GPUs and no others."""
        return {"LD_LIBRARY_PATH": str(self.library.parent), "STUB_NVML_STATE": str(self.state)}

    def say(self, *lines: str) -> None:
        """Add lines to the state: "lost 1", "hang", "wsl", "nomem 0", "lingering_s 2", …"""
        self._lines |= dict.fromkeys(lines)
        self._write()

    def unsay(self, *lines: str) -> None:
        for line in lines:
            del self._lines[line]
        self._write()

    def set_cards(self, *cards: Card) -> None:
        """Other cards from now on; their order is their index."""
        self.cards = cards
        self._write()

    def hold(self, pid: int, index: int, mib: int) -> None:
        """The living process `pid` holds `mib` of GPU `index`, and nothing else."""
        self._replace(self.state / "procs" / str(pid), f"{index} {mib}\n")

    def release(self, pid: int) -> None:
        """It gives all of it back."""
        (self.state / "procs" / str(pid)).unlink()

    def _write(self) -> None:
        lines = [
            " ".join(
                [f"gpu {index} uuid {card.uuid} total_mib {card.total_mib} used_mib {card.used_mib}"]
                + ([f"util {card.util}"] if card.util is not None else [])
                + ([f"temp {card.temp}"] if card.temp is not None else [])
            )
            for index, card in enumerate(self.cards)
        ]
        self._replace(self.state / "gpus", "\n".join([*lines, *self._lines]) + "\n")

    def _replace(self, path: Path, text: str) -> None:
        """In one step: the stub may read at any time."""
        descriptor, aside = tempfile.mkstemp(dir=self.state)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        Path(aside).replace(path)
