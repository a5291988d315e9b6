"""All checks, and those that have no file of their own; and what is allowed but probably not meant."""

import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

from supervisord_llm.config.adapters import check_adapters
from supervisord_llm.config.checks.names import (
    RESERVED_PATHS,
    check_names,
    check_prefixes,
    check_references,
    offered,
)
from supervisord_llm.config.checks.requests import check_requests
from supervisord_llm.config.checks.routes import check_routes, unused
from supervisord_llm.config.document import Report
from supervisord_llm.config.keys.models import MEMORY_FLAGS, means
from supervisord_llm.config.model import Address, Config, Model
from supervisord_llm.config.peers import check_peers
from supervisord_llm.config.problem import listing, quoted
from supervisord_llm.config.remotes import check_remotes, unencrypted, with_endpoint
from supervisord_llm.config.schedule import check_schedule

SOCKET_PATH_BYTES = 107
"""The longest path of a unix socket: sun_path has 108 bytes, the last one NUL (unix(7))."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def check(report: Report, config: Config) -> None:
    """Report everything that is wrong across settings."""
    checks: tuple[Callable[[Report, Config], None], ...] = (
        _listen, check_names, check_references, check_prefixes, check_routes, _sockets, _gpus, _memory_flags,
        _revisions, _remote_code, _sites, _bursts, check_requests, check_adapters, check_schedule,
        check_remotes, check_peers,
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


def _sockets(report: Report, config: Config) -> None:
    if not _socket_length(
        report, config.paths.control_socket, ("paths", "runtime"), "set a shorter paths.runtime"
    ):
        return
    for model in config.with_engines:
        if model.engine == "remote":
            continue
        socket = config.paths.engines / f"{model.name}.sock"
        way_out = "shorten the name, or set a shorter paths.runtime"
        _socket_length(report, socket, ("models", model.name), way_out)


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
    """How many GPUs its engine takes together."""
    return ranks(model.tensor_parallel, model.flags)


def ranks(tensor_parallel: object, flags: Mapping[str, object]) -> int:
    """vLLM takes one GPU for each rank of tensor, pipeline and data parallelism. Either spelling of flags."""
    told = {name.replace("_", "-"): value for name, value in flags.items()}
    sizes = (tensor_parallel, told.get("pipeline-parallel-size"), told.get("data-parallel-size"))
    return prod(size for size in sizes if isinstance(size, int) and size > 0)


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
    offers = {offer.path: owner for owner, offer in offered(config) if offer.path}
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
        owner = offers.get(f"/{first}", "the supervisor")
        if first.lower() in RESERVED_PATHS or f"/{first}" in offers:
            found = f"cannot use the path {quoted(site.path)}: {owner} answers there"
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
    if not config.models and not config.peers:
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
    for model in config.with_engines:
        sleep_after_s, stop_after_s = model.idle_sleep_after_s, model.idle_stop_after_s
        if sleep_after_s is not None and stop_after_s is not None and sleep_after_s >= stop_after_s:
            why = "it never sleeps, since stop_after comes before sleep_after"
            found.append(f"models.{model.name}.idle: {why}; make stop_after the longer one")
    found.extend(unencrypted(config))
    found.extend(with_endpoint(config))
    found.extend(unused(config))
    names = config.names
    for client in config.clients if not config.peers else ():  # whose models come and go
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
