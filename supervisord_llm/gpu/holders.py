"""Who holds the memory of a GPU: the processes that the driver tells, as engines and strangers."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisord_llm.core.fleet import Stranger
from supervisord_llm.gpu.sensor import GpuProcess, GpuSeen

PID_NAMESPACE = Path("/proc/self/ns/pid")
HOST_PID_NAMESPACE = "pid:[4026531836]"
"""The kernel's PROC_PID_INIT_INO: pids here are those that the driver tells."""

Owners = Callable[[Collection[int]], Mapping[int, str]]
"""Of these pids, those that belong to engines of ours, and to which model's. Called in a thread."""


@dataclass(frozen=True, slots=True)
class Held:
    """Who holds a GPU: bytes by model, and the rest by process."""

    engines: Mapping[str, int]
    strangers: tuple[Stranger, ...]
    ended: frozenset[int]
    """Pids that nobody has any more."""


def holders(gpus: Sequence[GpuSeen], owners: Owners, ended_before: frozenset[int]) -> dict[str, Held | None]:
    """By UUID; None where it cannot be learnt."""
    pids = sorted({process.pid for gpu in gpus for process in gpu.processes or ()})
    models = owners(pids) if pids else {}
    names = {pid: _name(pid) for pid in pids if pid not in models}
    are_ours = str(PID_NAMESPACE.readlink()) == HOST_PID_NAMESPACE

    def of(processes: tuple[GpuProcess, ...] | None) -> Held | None:
        if processes is None:
            return None
        ended = frozenset(process.pid for process in processes if names.get(process.pid, "") is None)
        if ended and not are_ours:
            return None  # it is a pid of another namespace
        engines: dict[str, int] = {}
        strangers: list[Stranger] = []
        for pid, used_bytes in ((process.pid, process.used_bytes) for process in processes):
            if pid in models:
                engines[models[pid]] = engines.get(models[pid], 0) + used_bytes
            # One that ended since the driver told of it was anybody's: an engine's, perhaps.
            elif pid not in ended or pid in ended_before:
                strangers.append(Stranger(pid=pid, name=names[pid] or "?", used_bytes=used_bytes))
        return Held(engines, tuple(strangers), ended)

    return {gpu.uuid: of(gpu.processes) for gpu in gpus}


def _name(pid: int) -> str | None:
    """None where there is no such process; "?" where it may not be seen."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?" if _exists(pid) else None


def _exists(pid: int) -> bool:
    """Also where /proc hides the processes of others."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
