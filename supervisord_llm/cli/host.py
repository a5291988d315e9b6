"""What `check` finds out about this host: one Fact a line, none of which changes anything."""

import contextlib
import errno
import importlib.util
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil

from supervisord_llm.cli.client import Client
from supervisord_llm.cli.planning import broken_paths, resting_fleet
from supervisord_llm.cli.render import size
from supervisord_llm.config.credentials import Keys
from supervisord_llm.config.load import read_documents
from supervisord_llm.config.model import Address, Config, FlagValue, Model
from supervisord_llm.config.remotes import is_here
from supervisord_llm.core.calendar import Schedule, in_force, switches
from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.explain_schedule import SHOWN, named, stands
from supervisord_llm.core.placement import impossible
from supervisord_llm.core.planning.kept import conflicts
from supervisord_llm.engines.network import OPEN_FOR_REMOTE, OPEN_THE_UNIT, look
from supervisord_llm.engines.tool_parsers import PARSER_FLAG, flags_for
from supervisord_llm.errors import ProvisionError, SupervisorError
from supervisord_llm.gateway.doors.tls import fault
from supervisord_llm.gpu.budget import budgets
from supervisord_llm.gpu.sensor import GpuReading

LITTLE_DISK_BYTES = 10 * 1024**3
"""Less than one venv of vLLM with CUDA takes."""

Missing = Callable[[str], list[str]]
"""Model name -> what is missing or worth knowing before a start, one sentence each."""

Refusal = Callable[[Model], str]
"""Why the daemon would not launch what is there; "" where it would."""


@dataclass(frozen=True, slots=True)
class Fact:
    """`bad` keeps something from working, `hint` does not. `where` is a key of the file or a thing."""

    level: Literal["ok", "hint", "bad"]
    where: str
    text: str


def facts(
    config: Config,
    reading: GpuReading,
    missing: Missing,
    refusal: Refusal,
    *,
    is_serving: bool,
    estimate: Callable[[str], Estimate | None] = lambda _: None,
) -> Iterator[Fact]:
    """Everything there is to know.

    `is_serving`: a daemon of this configuration holds the ports. `estimate` tells what a model will take.
    """
    for index, address in enumerate(config.server.listen):
        yield _port(f"server.listen[{index}]", address, is_serving=is_serving)
    if config.server.tls is not None:
        bad = fault(config.server.tls)
        yield Fact("bad" if bad else "ok", "server.tls", bad or f"{config.server.tls.cert} fits its key")
    for name in ("state", "cache", "runtime"):
        yield _directory(f"paths.{name}", getattr(config.paths, name))
    yield _disk(config.paths.state)
    yield from _secrets(config)
    if config.schedule is not None:
        yield from _schedule(config.schedule, datetime.now(UTC))
    yield from _gpus(config, reading)
    fleet = resting_fleet(config, reading, estimate)
    crowded = conflicts(fleet)
    for engine in fleet:
        model = config.models[engine.name]
        if engine.name in crowded:
            yield Fact("hint", f"models.{engine.name}", crowded[engine.name])
        yield from _model(model, impossible(engine, fleet) or refusal(model), missing(model.name))
        for adapter in model.adapters:
            text = f"is a LoRA adapter that the engine of models.{model.name} serves"
            yield Fact("ok", f"models.{adapter.name}", text)
    yield from _packages()


def _schedule(schedule: Schedule, now: datetime) -> Iterator[Fact]:
    """Which zone counts, what is in force, and the next switches."""
    coming = tuple(switches(schedule, now))
    zone = f"{schedule.zone}, where it is {now.astimezone(schedule.zone):%a %H:%M}"
    yield Fact("ok", "schedule.timezone", zone)
    window = in_force(schedule, now)
    yield Fact("ok", "schedule", stands(schedule, window, coming[0] if coming else None, now))
    for switch in coming[:SHOWN]:
        at = switch.at.astimezone(schedule.zone)
        yield Fact("ok", "schedule", f"{at:%a %Y-%m-%d %H:%M}: {named(switch.window)}")
    there = [window, *(switch.window for switch in coming)]
    for each in schedule.windows:
        if each not in there:
            why = "others that stand before it in the list cover its hours"
            yield Fact("hint", "schedule.windows", f'window "{each.name}" is never in force: {why}')


def _port(where: str, address: Address, *, is_serving: bool) -> Fact:
    if address.path is not None:
        return _directory(where, address.path.parent)
    try:
        family, kind, _, _, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind) as probe:
            # As the daemon binds: connections of an earlier one, in TIME_WAIT, are not in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        if is_serving:
            return Fact("ok", where, f"{address} is served by the running daemon")
        why = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            why += f" by {_listener(address.port)}"
        return Fact("bad", where, f"cannot listen on {address}: {why}; change that, or server.listen")
    return Fact("ok", where, f"{address} is free")


def _listener(port: int) -> str:
    """Who listens on the port, as far as this user may know."""
    listening = (each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN)
    for connection in listening:
        if connection.pid and connection.laddr and connection.laddr.port == port:
            with contextlib.suppress(psutil.Error):
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "a process of another user"


def _directory(where: str, path: Path) -> Fact:
    there = _nearest(path)
    if os.access(there, os.W_OK | os.X_OK):
        return Fact("ok", where, f"{path} is writable" if there == path else f"{path} will be made")
    return Fact(
        "bad",
        where,
        f"cannot write to {there} as this user; run check as the user of the daemon, or set another path",
    )


def _secrets(config: Config) -> Iterator[Fact]:
    """Files of keys that every user of this host may read; a group is made on purpose."""
    main = config.files[0]
    values = read_documents(main).values
    tables = (values.get(name, {}) for name in ("clients", "models", "peers"))
    holders = [holder for table in tables for holder in table.values()]
    written = (holder.get("key_file", []) for holder in holders)
    several = ([each] if isinstance(each, str) else each for each in written)
    key_files = [main.parent / path for paths in several for path in paths]
    if config.server.tls is not None:
        key_files.append(config.server.tls.key)
    for path in (*Keys(main.parent, {}).files, *key_files):
        with contextlib.suppress(OSError):
            if path.stat().st_mode & 0o004:
                yield Fact("hint", "keys", f"{path} can be read by every user of this host; chmod o-r {path}")


def _disk(state: Path) -> Fact:
    free = shutil.disk_usage(_nearest(state)).free
    if free < LITTLE_DISK_BYTES:
        return Fact("hint", "disk", f"{size(free)} free for {state}: a venv of vLLM takes up to 10 GiB")
    return Fact("ok", "disk", f"{size(free)} free for {state}")


def _nearest(path: Path) -> Path:
    """The path, or the nearest parent that exists."""
    return next(each for each in (path, *path.parents) if os.path.exists(each))  # noqa: PTH110 - never raises


# --- GPUs ----------------------------------------------------------


def _gpus(config: Config, reading: GpuReading) -> Iterator[Fact]:
    budgeted = budgets(config.vram, config.gpu_budgets, reading)
    if reading.unknown:
        yield Fact("bad", "gpus", f"it is not known which GPUs can be used: {reading.unknown}")
    elif reading.absence:
        yield Fact("hint", "gpus", f'{reading.absence}; gpus = "auto" means CPU here')
    for gpu in budgeted.gpus:
        text = f"{gpu.name}, {size(gpu.total_bytes)}, {size(gpu.budget_bytes)} of it for engines"
        yield Fact("ok", f"gpus.{gpu.index}", text)
    for fact in budgeted.facts:
        if fact not in (reading.absence, reading.unknown):
            yield Fact("hint", "gpus", fact)


# --- models ----------------------------------------------------------


def _model(model: Model, why_never: str, missing: list[str]) -> Iterator[Fact]:
    where = f"models.{model.name}"
    broken = list(broken_paths(model))
    if why_never:
        yield Fact("bad", where, why_never)
    for text in missing:
        level: Literal["hint", "bad"] = "bad" if any(str(path) in text for path in broken) else "hint"
        yield Fact(level, where, text)
    if why_never:
        return
    if model.engine == "remote":
        with_key = "without a key" if model.key is None else "with a key"
        yield Fact("ok", where, f"is called {model.source} at {model.url}, and asked {with_key}")
    elif not broken:
        yield Fact("ok", where, "can start")


def network(config: Config, *, is_serving: bool, environ: Mapping[str, str] = os.environ) -> Iterator[Fact]:
    """Models whose engines are not as isolated, or not as open, as configured: here, or for the daemon."""
    for name, note in (_served_notes(config) if is_serving else _own_notes(config, environ)).items():
        key = "url" if config.models[name].engine == "remote" else "network"
        yield Fact("hint", f"models.{name}.{key}", note)


def _served_notes(config: Config) -> dict[str, str]:
    ours = (name for name, model in config.models.items() if not model.peer)
    with contextlib.suppress(SupervisorError):
        models = Client(config.paths.control_socket).get("status")["models"]
        return {name: note for name in ours if (note := models.get(name, {}).get("network_note"))}
    return {}


def _own_notes(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    here = look(environ)
    notes = {model.name: here.reach(model).network_note for model in config.with_engines}
    for model in config.with_engines:
        if model.peer:
            notes[model.name] = ""  # told of the peer
        elif model.engine == "remote" and not is_here(model.url) and not notes[model.name]:
            notes[model.name] = f"out of reach for the service: {OPEN_FOR_REMOTE}"
        elif model.engine != "remote" and model.network == "host" and not notes[model.name]:
            notes[model.name] = f'network = "host" has no effect as a service: {OPEN_THE_UNIT}'
    return {name: note for name, note in notes.items() if note}


def tools(config: Config, weights_of: Callable[[str], str], venv_of: Callable[[str], Path]) -> Iterator[Fact]:
    """What becomes of the tools that clients offer, for each model whose weights and venv are here."""
    for model in config.with_engines:
        with contextlib.suppress(ProvisionError):
            ours = flags_for(model, Path(weights_of(model.name)), venv_of(model.name))
            parser = model.flags.get(PARSER_FLAG, ours.get(PARSER_FLAG))
            yield Fact("ok", f"models.{model.name}.tools", _tools(model, parser))


def _tools(model: Model, parser: FlagValue | None) -> str:
    if model.tools == "strip":
        return "dropped from requests, as configured"
    if parser is not None:
        return f"calls are read by vLLM's parser {parser}"
    return "pass as they are" if model.tools == "pass" else "dropped from requests: no parser is known for it"


# --- the software itself ----------------------------------------------------------


def _packages(environ: Mapping[str, str] = os.environ) -> Iterator[Fact]:
    compiled = importlib.util.find_spec("aiohttp._http_parser") is not None
    if not compiled or environ.get("AIOHTTP_NO_EXTENSIONS"):
        yield Fact(
            "hint",
            "aiohttp",
            "runs without its C extensions, which makes every request slower; "
            "install a wheel of it and unset AIOHTTP_NO_EXTENSIONS",
        )
