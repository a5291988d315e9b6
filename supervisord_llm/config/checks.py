"""What must hold between settings. Each check reports problems; none of them asks the host."""

import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

from supervisord_llm.config.document import Report
from supervisord_llm.config.model import Address, Config, Model
from supervisord_llm.config.model_keys import MEMORY_FLAGS, means
from supervisord_llm.config.problem import did_you_mean, listing, quoted
from supervisord_llm.config.request_checks import check_requests

RESERVED_PATHS = ("v1", "admin", "ui", "health", "healthz", "metrics", "routes", "stats", "models", "api")
"""First path segments that the gateway answers itself, in every case of letters."""

SOCKET_PATH_BYTES = 107
"""The longest path of a unix socket: sun_path has 108 bytes, the last one NUL (unix(7))."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def check(report: Report, config: Config) -> None:
    """Report everything that is wrong across settings."""
    checks: tuple[Callable[[Report, Config], None], ...] = (
        _listen, _names, _model_references, _prefixes, _sockets, _gpus, _memory_flags, _revisions,
        _remote_code, _sites, _bursts, check_requests,
    )  # fmt: skip
    for each in checks:
        each(report, config)


def _listen(report: Report, config: Config) -> None:
    path = ("server", "listen")
    if not config.server.listen:
        report.add(path, "cannot serve without an address", 'at least one, such as ["127.0.0.1:8000"]')
    for index, address in enumerate(config.server.listen):
        if address in config.server.listen[:index]:
            report.add((*path, index), f"cannot listen on {address} twice", hint="remove one of them")
        if address.path is not None:
            _socket_length(report, address.path, (*path, index), "write a shorter path")


def _names(report: Report, config: Config) -> None:
    owners: dict[str, str] = {}
    for model in config.models.values():
        for index, alias in enumerate(model.aliases):
            path = ("models", model.name, "aliases", index)
            if alias in config.models:
                whose = "its own name" if alias == model.name else f"the name of models.{alias}"
                report.add(path, f"cannot use the alias {quoted(alias)}: it is {whose}", hint="remove it")
            elif alias in owners:
                taken = f"models.{owners[alias]} has it already"
                report.add(path, f"cannot use the alias {quoted(alias)}: {taken}", hint="remove one of them")
            owners.setdefault(alias, model.name)


def _model_references(report: Report, config: Config) -> None:
    server = config.server
    names = {*config.models, *(alias for model in config.models.values() for alias in model.aliases)}
    # A model or alias that could not be read is known all the same.
    names.update(_written_names(report))
    wanted = [(("server", "preload", index), name) for index, name in enumerate(server.preload)]
    if server.default_model is not None:
        wanted.append((("server", "default_model"), server.default_model))  # type: ignore[arg-type]
    for path, name in wanted:
        if name not in names:
            known = (
                f"known: {listing(map(quoted, config.models), 'and')}" if config.models else "add its table"
            )
            report.add(
                path, f"cannot find a model named {quoted(name)}", hint=did_you_mean(name, names) or known
            )
    missing = server.default_model is None and report.clean(("server", "default_model"))
    if server.unknown_model == "default" and missing:
        found = 'cannot use "default": there is no default_model'
        report.add(("server", "unknown_model"), found, hint='add default_model, or write "reject"')


def _written_names(report: Report) -> Iterator[str]:
    models = report.document.values.get("models")
    for name, table in models.items() if isinstance(models, dict) else ():
        yield name
        aliases = table.get("aliases") if isinstance(table, dict) else None
        if isinstance(aliases, list):
            yield from (alias for alias in aliases if isinstance(alias, str))


def _prefixes(report: Report, config: Config) -> None:
    owners: dict[str, str] = {}
    for model in config.models.values():
        prefix, path = model.path, ("models", model.name, "path")
        if prefix is None or not report.clean(path):
            continue
        way_out = "write another path, or path = false for none"
        if prefix[1:].lower() in RESERVED_PATHS:
            report.add(
                path, f"cannot use the path {quoted(prefix)}: the supervisor answers there", hint=way_out
            )
        elif prefix in owners:
            taken = f"models.{owners[prefix]} has it already"
            report.add(path, f"cannot use the path {quoted(prefix)}: {taken}", hint=way_out)
        owners.setdefault(prefix, model.name)


def _sockets(report: Report, config: Config) -> None:
    if not _socket_length(
        report, config.paths.control_socket, ("paths", "runtime"), "set a shorter paths.runtime"
    ):
        return
    for name in config.models:
        socket = config.paths.engines / f"{name}.sock"
        _socket_length(report, socket, ("models", name), "shorten the name, or set a shorter paths.runtime")


def _socket_length(report: Report, socket: Path, path: tuple[str | int, ...], way_out: str) -> bool:
    length = len(os.fsencode(socket))
    if length > SOCKET_PATH_BYTES:
        limit = f"its path has {length} bytes and a unix socket at most {SOCKET_PATH_BYTES}"
        report.add(path, f"cannot open the socket {socket}: {limit}", hint=way_out)
    return length <= SOCKET_PATH_BYTES


def _gpus(report: Report, config: Config) -> None:
    for model in config.models.values():
        path = ("models", model.name)
        if model.gpus == "auto" or not report.clean(
            (*path, "gpus"), (*path, "tensor_parallel"), (*path, "flags")
        ):
            continue
        if len(set(model.gpus)) < len(model.gpus):
            report.add((*path, "gpus"), "cannot use a GPU twice", hint="name each GPU once")
            continue
        if not model.gpus:
            if model.tensor_parallel > 1:
                found = f"cannot split the model {model.tensor_parallel} ways without GPUs"
                report.add((*path, "tensor_parallel"), found, hint="remove it, or name the GPUs")
            continue
        needed = gpus_needed(model)
        if needed != len(model.gpus):
            found = f"cannot run on {len(model.gpus)} pinned GPUs: the model needs {needed}"
            fitting = f"write tensor_parallel = {len(model.gpus)}, or name {needed} GPUs"
            report.add(
                (*path, "tensor_parallel" if model.tensor_parallel > 1 else "gpus"), found, hint=fitting
            )


def _memory_flags(report: Report, config: Config) -> None:
    """Only a model that may end up on a CPU can use them; for "auto" that is for the host to tell."""
    for model in config.models.values():
        path = ("models", model.name)
        speaks_for_gpu = model.gpus != "auto" or model.vram != "auto"
        if not model.gpus or not speaks_for_gpu or not report.clean((*path, "gpus"), (*path, "vram")):
            continue
        for flag in memory_flags(model):
            report.add(
                (*path, "flags", _as_written(report, (*path, "flags"), flag)),
                f"cannot use the flag {quoted(flag)} beside a grant of GPU memory",
                hint='remove it and see "vram"',
            )


def memory_flags(model: Model) -> tuple[str, ...]:
    """Those of its flags that size the memory of a GPU whatever the grant says."""
    return tuple(flag for flag in model.flags if any(means(flag, known) for known in MEMORY_FLAGS))


def _as_written(report: Report, path: tuple[str, ...], flag: str) -> str:
    spellings = (flag, flag.replace("-", "_"))
    return next((one for one in spellings if report.is_set((*path, one))), flag)


def gpus_needed(model: Model) -> int:
    """vLLM takes one GPU for each rank of tensor, pipeline and data parallelism."""
    ranks = [model.flags.get(flag) for flag in ("pipeline-parallel-size", "data-parallel-size")]
    return model.tensor_parallel * prod(rank for rank in ranks if isinstance(rank, int) and rank > 0)


def _revisions(report: Report, config: Config) -> None:
    for model in config.models.values():
        path = ("models", model.name, "revision")
        local = model.source.startswith("/")
        if local and model.revision is not None:
            report.add(path, "cannot pin a revision of a directory", hint="remove it")
        trusted = bool(model.flags.get("trust-remote-code"))
        if trusted and not local and not _COMMIT.fullmatch(model.revision or ""):
            report.add(
                path,
                "cannot trust remote code that can change",
                'revision = "…", the 40-digit commit hash that you have reviewed',
                "or remove the flag trust-remote-code",
            )


def _remote_code(report: Report, config: Config) -> None:
    for model in config.models.values():
        if model.flags.get("trust-remote-code") and model.network == "host":
            report.add(
                ("models", model.name, "network"),
                "cannot give the network to remote code",
                'network = "isolated"',
                "or remove the flag trust-remote-code",
            )


def _sites(report: Report, config: Config) -> None:
    owners: dict[tuple[str, str | None], str] = {}
    models = {model.path: model.name for model in config.models.values() if model.path}
    for site in config.sites:
        path = ("sites", site.name)
        if not site.hosts and site.path is None and report.clean((*path, "hosts"), (*path, "path")):
            report.add(path, "cannot tell what leads to it", 'hosts = ["…"], path = "/…" or both')
        for host in site.hosts or ("",):
            owner = owners.setdefault((host, site.path), site.name)
            if owner != site.name:
                what = f"{host}{site.path or ''}"
                found = f"cannot use {quoted(what)}: sites.{owner} has it"
                report.add(path, found, hint="change one of them")
        if site.hosts or site.path is None:
            continue
        first = site.path.split("/")[1]
        owned = f"models.{models[f'/{first}']} answers" if f"/{first}" in models else "the supervisor answers"
        if first.lower() in RESERVED_PATHS or f"/{first}" in models:
            found = f"cannot use the path {quoted(site.path)}: {owned} there"
            report.add((*path, "path"), found, hint="write another path, or add hosts")


def _bursts(report: Report, config: Config) -> None:
    """A burst alone limits nothing, so who wrote it means something else."""
    for client in config.clients:
        if client.burst is not None and client.rate is None:
            _burst_alone(report, ("clients", client.name), "rate")
    if config.rate_limit.burst is not None and config.rate_limit.per_ip is None:
        _burst_alone(report, ("rate_limit",), "per_ip")


def _burst_alone(report: Report, table: tuple[str, ...], rate: str) -> None:
    if report.clean((*table, rate)):
        way_out = f'add one, such as {rate} = "60/m"'
        report.add((*table, "burst"), f"cannot use a burst without {rate}", hint=way_out)


def warnings(config: Config, listen: Sequence[Address] | None = None) -> tuple[str, ...]:
    """What is allowed and probably not meant; one sentence each.

    Args:
        listen: where clients come in, if not at `server.listen`.
    """
    found: list[str] = []
    if not config.models:
        found.append("no models are configured: every request gets 404; add a [models.NAME] table")
    if config.auth_required and not config.clients:
        way_out = "add a [clients.NAME] table, or [auth] required = false"
        found.append(f"no clients are configured: every request gets 401; {way_out}")
    if not config.auth_required:
        addresses = config.server.listen if listen is None else listen
        exposed = [str(address) for address in addresses if _reachable(address.host)]
        if exposed:
            found.append(
                f"anyone who reaches {listing(exposed)} may use every model: [auth] required is false"
            )
        if "*" in config.cors_origins:
            found.append(
                "any web page that a browser here opens may use every model: [auth] required is false, and "
                '[cors] allow_origins has "*"'
            )
    for model in config.models.values():
        sleep_after_s, stop_after_s = model.idle_sleep_after_s, model.idle_stop_after_s
        if sleep_after_s is not None and stop_after_s is not None and sleep_after_s >= stop_after_s:
            why = "it never sleeps, since stop_after comes before sleep_after"
            found.append(f"models.{model.name}.idle: {why}; make stop_after the longer one")
    names = [name for model in config.models.values() for name in (model.name, *model.aliases)]
    for client in config.clients:
        found.extend(
            f"clients.{client.name}.models: {quoted(pattern)} matches no model"
            for pattern in client.models
            if not any(fnmatchcase(name, pattern) for name in names)
        )
    return tuple(found)


def _reachable(host: str) -> bool:
    """Whether others than this host can reach an address; a unix socket has no host."""
    if host in {"", "localhost"}:
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True
