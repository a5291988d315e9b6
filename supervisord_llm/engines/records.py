"""Who runs what, on disk beside the engine sockets, so that a daemon that crashed finds its engines again.

Its successor makes a `survey` of them, asks those that live (adoption.py), and has `sweep` end all others
before anything is launched.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from supervisord_llm.engines import orphans
from supervisord_llm.engines.cgroup import Leaf
from supervisord_llm.engines.sleep import Canary
from supervisord_llm.engines.tree import Tree, marker_of, read_process
from supervisord_llm.runtime.ports import Backend

log = logging.getLogger("llm_supervisor.engines")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SCRATCH = "ipc-"
"""Prefix of the directories, one a launch, for sockets between an engine's own processes."""

VERSION = 2
"""Of the format. An engine with a record of another version is ended, never adopted."""


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
    leaf: str | None
    """Directory of its cgroup."""
    started_at: float
    """Wall clock, seconds since 1970: for people."""

    # What it takes to end an engine is above, the same in all versions; to go on with it takes the rest.
    version: int = VERSION
    port: int | None = None
    """On 127.0.0.1, where it listens on no socket."""
    log: str = ""
    log_begun: int = 0
    """The size in bytes of `log` at the launch."""
    launch: int = 0
    gpus: tuple[int, ...] = ()
    granted_bytes: tuple[int, ...] = ()
    """Of each GPU, while it is awake."""
    kv_bytes: int | None = None
    """The size of its KV cache on each GPU, as ordered or, once it was ready, as its log told."""
    signature: str = ""
    """Of the configuration that it was launched with."""
    sleep_level: int = 0
    adjusted: Mapping[str, int] = field(default_factory=dict)
    command: str = ""
    """A line to paste in a shell, without secrets."""
    canary: Canary = None
    """From before it fell asleep, until it is seen to have woken well."""

    @property
    def backend(self) -> Backend:
        """Where it serves."""
        if self.port is None:
            return Backend(Path(self.socket))
        return Backend(origin=f"http://127.0.0.1:{self.port}")

    @property
    def identity(self) -> tuple[int, int]:
        """Of its leader, within one boot."""
        return self.pid, self.start_time

    @classmethod
    def parse(cls, text: str) -> "Record":
        """
        Raises:
            ValueError: torn, or not ours.
        """
        try:
            found: dict[str, Any] = {"version": 1} | json.loads(text)
            names = NAMES if found["version"] == VERSION else IDENTIFYING
            given = {name: value for name, value in found.items() if name in names}
            lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
            record = cls(**given | lists | {"version": found["version"]})
        except (TypeError, ValueError) as why:
            raise ValueError(f"not a record of an engine: {why}") from why
        if wrong := [name for name in NAMES if not is_sound(name, getattr(record, name))]:
            raise ValueError(f"not a record of an engine: bad {', '.join(wrong)}")
        return record

    def tree(self) -> Tree:
        """Its processes, wherever they are by now."""
        leaf = Leaf(Path(self.leaf)) if self.leaf is not None else None
        log = Path(self.log) if self.log else None
        return Tree(self.pid, self.start_time, self.marker, leaf, log)


NAMES = tuple(each.name for each in fields(Record))
IDENTIFYING = NAMES[: NAMES.index("version")]


def is_sound(name: str, value: Any) -> bool:
    """Whether a field of a record may have this value."""
    match name:
        case "pid":
            return type(value) is int and value > 1
        case "marker" | "model":
            return isinstance(value, str) and value != ""
        case "boot_id" | "socket" | "log" | "signature" | "command":
            return isinstance(value, str)
        case "leaf":
            return isinstance(value, str | None)
        case "started_at":
            return isinstance(value, int | float)
        case "kv_bytes" | "port":
            return value is None or type(value) is int
        case "gpus" | "granted_bytes":
            return isinstance(value, tuple) and all(type(item) is int for item in value)
        case "adjusted":
            return isinstance(value, dict) and all(type(item) is int for item in value.values())
        case "canary":
            return isinstance(value, str | None) or (
                isinstance(value, tuple) and all(isinstance(item, int | float) for item in value)
            )
        case _:
            return type(value) is int


def boot_id() -> str:
    return BOOT_ID.read_text().strip()


def leaf_name(model: str, marker: str) -> str:
    """A directory name for the cgroup of one launch."""
    return f"{orphans.LEAF}{model}-{marker}"


def scratch_path(engines: Path, marker: str) -> Path:
    return engines / f"{SCRATCH}{marker[-8:]}"


def record_path(engines: Path, model: str) -> Path:
    return engines / f"{model}.json"


def socket_path(engines: Path, model: str) -> Path:
    return engines / f"{model}.sock"


def write_record(engines: Path, record: Record) -> None:
    """Write it whole or not at all."""
    path = record_path(engines, record.model)
    aside = path.with_suffix(".json.new")
    try:
        aside.write_text(json.dumps(asdict(record)))
        aside.chmod(0o600)
        aside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


class RecordFile:
    """The record of a live engine, on disk for as long as it lives."""

    def __init__(self, engines: Path, record: Record) -> None:
        self._engines = engines
        self.record = record
        self._is_failing = False

    def keep(self, **changes: Any) -> None:
        """Write it down, changed. A full disk must not leave an engine that nobody owns, so never raises."""
        self.record = replace(self.record, **changes)
        model = self.record.model
        try:
            write_record(self._engines, self.record)
        except OSError as why:
            if not self._is_failing:
                log.warning(
                    "cannot write %s: %s; until it can, a restart of the daemon would end the engine of %s "
                    "instead of taking it over: free some space",
                    record_path(self._engines, model),
                    why.strerror,
                    model,
                )
            self._is_failing = True
        else:
            self._is_failing = False

    def retry(self) -> None:
        """Write down what could not be written."""
        if self._is_failing:
            self.keep()

    def remove(self) -> None:
        """Its engine is gone; so goes all that the launch had in our directory."""
        with contextlib.suppress(OSError):  # a later sweep finds that it had ended
            record_path(self._engines, self.record.model).unlink()
        shutil.rmtree(scratch_path(self._engines, self.record.marker), ignore_errors=True)


# ---- what an earlier life left -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Survey:
    """What the records say, compared with the processes there are."""

    alive: tuple[Record, ...]
    """Whose leader lives and is who it was: one for each engine, and one for each model."""
    others: tuple[str, ...]
    """A sentence for each other record: why its engine cannot be adopted."""


def survey(engines: Path) -> Survey:
    """Look, and touch nothing. Blocks for some milliseconds."""
    found, torn = read_all(engines)
    alive: dict[tuple[int, int], Record] = {}
    others = [f"cannot read {path}: {why}" for path, why in torn]
    for path, record in found:
        if not is_original(engines, path, record) or record.identity in alive:
            others.append(f"cannot go by {path}: it is a copy of another record")
        elif why := why_lost(record):
            others.append(f"cannot adopt the engine of {record.model}: {why}")
        else:
            alive[record.identity] = record
    return Survey(tuple(alive.values()), tuple(others))


def why_lost(record: Record) -> str | None:
    """Why it is not an engine that may be adopted; None where it may, if it answers."""
    if record.boot_id != boot_id():
        return "it ran before the last boot"
    leader = read_process(record.pid)
    if leader is None and record.leaf is not None and record.pid in Leaf(Path(record.leaf)).members():
        return "/proc hides it from us; in the unit, use ProtectProc=invisible or PrivateUsers=, not both"
    if leader is None or leader.identity != record.identity or leader.zombie:
        return "it has ended"
    if marker_of(record.pid) not in (None, record.marker):
        return "its pid is that of another launch"
    if record.version != VERSION:
        return "its record was written by another version of llm-supervisor"
    return None


def read_all(engines: Path) -> tuple[list[tuple[Path, Record]], list[tuple[Path, str]]]:
    """Every record with its file; and every file that holds none, with the reason."""
    found: list[tuple[Path, Record]] = []
    torn: list[tuple[Path, str]] = []
    for path in sorted(engines.glob("*.json")):
        try:
            found.append((path, Record.parse(path.read_text())))
        except (OSError, ValueError) as why:
            torn.append((path, str(why)))
    return found, torn


def sweep(engines: Path, keep: Collection[str] = (), root: Path | None = None) -> list[str]:
    """End every engine that an earlier life of the daemon left behind; one sentence for each thing done.

    What not even SIGKILL ended keeps its record, so that the next start-up tries again and says so again.
    Blocks for up to 10 s an engine.

    Args:
        keep: markers of the records whose engines, being adopted, are left alone.
        root: the delegated cgroup, to find there what no record tells of.
    """
    found, torn = read_all(engines)
    kept = {
        record.identity: path
        for path, record in reversed(found)
        if record.marker in keep and is_original(engines, path, record)
    }
    stuck: set[str] = set()
    done: list[str] = []
    for path, why in torn:
        done.append(f"removed {path}: {why}")
        path.unlink(missing_ok=True)
    for path, record in found:
        if kept.get(record.identity) == path:
            continue
        if record.identity in kept or record.marker in keep:
            done.append(f"removed {path}: it is a copy of another record")
            path.unlink(missing_ok=True)
            continue
        is_gone, sentence = end(record)
        done.append(sentence)
        if not is_gone:
            stuck.add(record.marker)
        else:
            path.unlink(missing_ok=True)
            if is_original(engines, path, record):
                Path(record.socket).unlink(missing_ok=True)
    done += orphans.end_strays(engines, {*keep, *stuck})
    if root is not None:
        done += orphans.end_leaves(root, {*keep, *stuck})
    for aside in engines.glob("*.json.new"):
        aside.unlink(missing_ok=True)
    in_use = {scratch_path(engines, marker) for marker in (*keep, *stuck)}
    for scratch in set(engines.glob(f"{SCRATCH}*")) - in_use:
        shutil.rmtree(scratch, ignore_errors=True)
    return done


def is_original(engines: Path, path: Path, record: Record) -> bool:
    """Whether the record is where it was written to, and about what it was written about."""
    socket = str(socket_path(engines, record.model))
    return (path, record.socket) == (record_path(engines, record.model), socket)


def end(record: Record) -> tuple[bool, str]:
    """Kill the tree that `record` describes, if it is still there: whether it is gone, and what was done."""
    if record.boot_id != boot_id():
        return True, f"forgot the engine of {record.model}: it ran before the last boot"
    leader = read_process(record.pid)
    is_same = leader is not None and leader.identity == record.identity
    if is_same and marker_of(record.pid) not in (None, record.marker):
        return True, f"forgot the engine of {record.model}: its pid is that of another launch"
    tree = record.tree()
    if not tree.is_alive():
        return True, f"forgot the engine of {record.model}: it had already ended"
    whose = f"{record.model} (pid {record.pid})"
    if not orphans.end_tree(tree):
        return False, f"cannot end the engine of {whose}: SIGKILL did not help; reboot"
    return True, f"ended the engine of {whose}, left by an earlier run of the daemon"
