"""Who runs what, on disk beside the engine sockets, so that a daemon that crashed finds its engines again.

Today it finds them to end them: `sweep` runs once at start-up, before anything is launched.
"""

import contextlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.tree import Tree

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SWEEP_TIMEOUT_S = 10.0
SCRATCH = "ipc-"
"""Prefix of the directories, one a launch, for sockets between an engine's own processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One launch, as `<runtime>/engines/<model>.json`."""

    model: str
    marker: str
    pid: int
    start_time: int
    """Clock ticks since boot; with the pid and the boot it names one process for ever."""
    boot_id: str
    socket: str
    argv: tuple[str, ...]
    leaf: str | None
    """Directory of its cgroup."""
    started_at: float
    """Wall clock, seconds since 1970: for people."""

    @classmethod
    def of(cls, model: str, tree: Tree, socket: Path, argv: tuple[str, ...]) -> "Record":
        return cls(
            model=model,
            marker=tree.marker,
            pid=tree.leader,
            start_time=tree.start_time,
            boot_id=boot_id(),
            socket=str(socket),
            argv=argv,
            leaf=None if tree.leaf is None else str(tree.leaf.path),
            started_at=time.time(),
        )

    @classmethod
    def parse(cls, text: str) -> "Record":
        """
        Raises:
            ValueError: torn, or not ours.
        """
        try:
            record = cls(**json.loads(text))
        except (TypeError, ValueError) as why:
            raise ValueError(f"not a record of an engine: {why}") from why
        kinds = {"model": str, "marker": str, "pid": int, "start_time": int, "boot_id": str, "socket": str}
        if wrong := [name for name, kind in kinds.items() if type(getattr(record, name)) is not kind]:
            raise ValueError(f"not a record of an engine: bad {', '.join(wrong)}")
        if record.pid <= 1 or not record.marker or not isinstance(record.leaf, str | None):
            raise ValueError("not a record of an engine: bad pid, marker or leaf")
        return record


def boot_id() -> str:
    return BOOT_ID.read_text().strip()


def record_path(engines: Path, model: str) -> Path:
    return engines / f"{model}.json"


def write_record(engines: Path, record: Record) -> None:
    """Write it whole or not at all."""
    path = record_path(engines, record.model)
    aside = path.with_suffix(".json.new")
    aside.write_text(json.dumps(asdict(record)))
    aside.chmod(0o600)
    aside.replace(path)


def remove_record(engines: Path, model: str) -> None:
    with contextlib.suppress(OSError):  # a later sweep finds that it had ended
        record_path(engines, model).unlink()


def sweep(engines: Path) -> list[str]:
    """End every engine that an earlier life of the daemon left behind; one sentence for each thing done.

    What not even SIGKILL ended keeps its record, so that the next start-up tries again and says so again.
    Blocks for up to 10 s an engine.
    """
    done: list[str] = []
    for path in sorted(engines.glob("*.json")):
        try:
            record = Record.parse(path.read_text())
        except (OSError, ValueError) as why:
            done.append(f"removed {path}: {why}")
            path.unlink(missing_ok=True)
            continue
        is_gone, sentence = end(record)
        done.append(sentence)
        if is_gone:
            Path(record.socket).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    for torn in engines.glob("*.json.new"):
        torn.unlink(missing_ok=True)
    for scratch in engines.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)
    return done


def end(record: Record) -> tuple[bool, str]:
    """Kill the tree that `record` describes, if it is still there: whether it is gone, and what was done."""
    if record.boot_id != boot_id():
        return True, f"forgot the engine of {record.model}: it ran before the last boot"
    leaf = Leaf(Path(record.leaf)) if record.leaf is not None else None
    tree = Tree(record.pid, record.start_time, record.marker, leaf)
    if not any(not process.zombie for process in tree.members()):
        return True, f"forgot the engine of {record.model}: it had already ended"
    whose = f"{record.model} (pid {record.pid})"
    deadline = time.monotonic() + SWEEP_TIMEOUT_S
    while not tree.kill():
        if time.monotonic() > deadline:
            return False, f"cannot end the engine of {whose}: SIGKILL did not help; reboot"
        time.sleep(0.01)
    if leaf is not None:
        leaf.remove()
    return True, f"ended the engine of {whose}, left by an earlier run of the daemon"


def leaf_name(model: str, marker: str) -> str:
    """A directory name for the cgroup of one launch."""
    return f"engine-{model}-{marker}"
