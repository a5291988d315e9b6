"""From the merged TOML to a Config, or to every problem with it. Pure: reading files is load.py's part."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any

from supervisord_llm.config import adapters, commands, peers, remotes
from supervisord_llm.config.checks.checks import check
from supervisord_llm.config.document import Document, Report
from supervisord_llm.config.expand import expand, under
from supervisord_llm.config.keys.models import VENV
from supervisord_llm.config.keys.root import ROOT
from supervisord_llm.config.model import (
    Client,
    Config,
    Host,
    Limits,
    Model,
    Paths,
    Queue,
    RateLimit,
    RequestPolicy,
    Restart,
    Server,
    Site,
    Tls,
    Venv,
    Vram,
)
from supervisord_llm.config.problem import KeyUnavailable, Problem, did_you_mean, listing, quoted
from supervisord_llm.config.read import read_table
from supervisord_llm.config.routes import read_routes, with_names
from supervisord_llm.config.schedule import resolved, schedule_of

Values = dict[str, Any]
"""What read_table returns: attribute name -> value, for the keys that were set and valid."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


KEY_WAYS = ("key_env", "key_file", "key_credential", "key_sha256")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the TOML does not say."""

    folder: Path
    """Where relative paths begin."""
    paths: Paths
    """Where things live unless [paths] says otherwise."""
    key_digest: Callable[[str, str], bytes]
    """("key_env" | "key_file" | "key_credential", value) -> SHA-256 of the key; raises KeyUnavailable."""
    key: remotes.ReadKey = lambda way, name: None
    """The same for the key itself; None where keys are left unread."""
    zone: tzinfo = UTC
    """The host's own."""


def parse(document: Document, around: Surroundings) -> Config | list[Problem]:
    """The configuration, or all of its problems in the order of the files."""
    report = Report(document)
    document = report.document = expand(document, report)
    values = read_table(report, ROOT, document.values, ())
    venvs = {
        name: _venv(report, found, around.folder, ("venvs", name))
        for name, found in values.get("venvs", {}).items()
    }
    server = _server(report, values.get("server", {}), around.folder)
    routes = read_routes(report, values.get("routes", {}))
    schedule = schedule_of(report, values.get("schedule"), around.zone)
    there = peers.read_peers(report, values.get("peers", {}), around.key)
    config = Config(
        files=document.files,
        server=server,
        paths=_paths(values.get("paths", {}), around),
        auth_required=values.get("auth", {}).get("required", True),
        clients=_clients(report, values.get("clients", {}), around),
        rate_limit=RateLimit(**values.get("rate_limit", {})),
        vram=Vram(**values.get("vram", {})),
        gpu_budgets={key: gpu["budget"] for key, gpu in values.get("gpus", {}).items() if "budget" in gpu},
        host=Host(**values.get("host", {})),
        models=_models(report, values, venvs, around) | peers.named(there, server, routes.values(), schedule),
        cors_origins=values.get("cors", {}).get("allow_origins", ()),
        sites=_sites(report, values.get("sites", {})),
        routes=routes,
        schedule=schedule,
        local_zone=around.zone,
        peers=there,
        metrics_enabled=values.get("metrics", {}).get("enabled", True),
        metrics_public=values.get("metrics", {}).get("public", False),
        log_format=values.get("log", {}).get("format", "auto"),
    )
    check(report, config)
    return report.in_order() or adapters.joined(_resolve_names(config))


def _server(report: Report, values: Values, folder: Path) -> Server:
    tls, path = values.pop("tls", None), ("server", "tls")
    if tls is None:
        return Server(**values)
    missing = [name for name in ("cert", "key") if name not in tls]
    if missing and report.clean(path):
        report.add(path, "cannot speak TLS with half of a pair", f'{missing[0]} = "…"')
    files = {name: folder / file for name, file in tls.items()}
    return Server(**values, tls=None if missing else Tls(**files))


def _sites(report: Report, sites: Mapping[str, Values]) -> tuple[Site, ...]:
    for name, values in sites.items():
        path = ("sites", name)
        if "upstream" not in values and report.clean((*path, "upstream")):
            report.add(path, "cannot reach a site without its upstream", 'upstream = "http://host:port"')
        values.setdefault("upstream", "http://127.0.0.1")
    return tuple(Site(name=name, **values) for name, values in sites.items())


def _paths(values: Values, around: Surroundings) -> Paths:
    return replace(around.paths, **{name: around.folder / path for name, path in values.items()})


# --- clients ----------------------------------------------------------


def _clients(report: Report, clients: Mapping[str, Values], around: Surroundings) -> tuple[Client, ...]:
    built: list[Client] = []
    for name, values in clients.items():
        digests = _key_digests(report, name, values, around)
        rest = {key: value for key, value in values.items() if key not in KEY_WAYS}
        if not digests:
            continue
        twin = next((client for client in built if set(client.key_digests) & set(digests)), None)
        if twin is not None:
            report.add(
                ("clients", name),
                f"cannot tell it from clients.{twin.name}: both have the same key",
                hint="give each client a key of its own",
            )
        built.append(Client(name=name, key_digests=digests, **rest))
    return tuple(built)


def _key_digests(report: Report, name: str, values: Values, around: Surroundings) -> tuple[bytes, ...]:
    """All keys of a client; none where one of them cannot be had."""
    path = ("clients", name)
    written = [way for way in KEY_WAYS if report.document.values["clients"][name].get(way, []) != []]
    if not written:
        report.add(path, "cannot do without a key", f"at least one of {listing(KEY_WAYS)}")
    digests: list[bytes] = []
    is_whole = True
    for way in written:
        if way not in values:
            return ()  # told already
        several = isinstance(values[way], tuple)
        for index, value in enumerate(values[way] if several else (values[way],)):
            try:
                digests.append(_key_digest(way, value, around))
            except KeyUnavailable as unavailable:
                is_whole = False
                at = (*path, way, index) if several else (*path, way)
                report.add(at, f"cannot find the key: {unavailable}")
    return tuple(dict.fromkeys(digests)) if is_whole else ()


def _key_digest(way: str, value: Any, around: Surroundings) -> bytes:
    if way == "key_sha256":
        return bytes.fromhex(value)
    return around.key_digest(way, str(around.folder / value if way == "key_file" else value))


# --- models ----------------------------------------------------------


def _models(
    report: Report, values: Values, venvs: Mapping[str, Venv], around: Surroundings
) -> dict[str, Model]:
    defaults, folder = values.get("defaults", {}), around.folder
    models: dict[str, Model] = {}
    for name, own in values.get("models", {}).items():
        merged = under(defaults, own)
        path = ("models", name)
        if "adapter_of" in own:
            base = values["models"].get(own["adapter_of"], {})
            merged = under(adapters.inherited(defaults, base), adapters.read(report, name, own))
        elif merged.get("engine") == "remote":
            merged = under(remotes.inherited(defaults), own)
            models[name] = _model(name, remotes.read(report, name, own, merged, around.key))
            continue
        elif merged.get("engine") == "command":
            remotes.refuse_elsewhere(report, name, own)
            merged = under(commands.inherited(defaults), own)
            models[name] = _model(name, commands.read(report, name, own, merged, folder))
            continue
        else:
            remotes.refuse_elsewhere(report, name, own)
            commands.refuse_elsewhere(report, name, own, "vllm")
        if "source" not in merged:
            _, owner, *_ = report.document.written((*path, "source"))
            if report.clean((*path, "source"), (*path, "engine"), ("models", owner, "extends")):
                accepted = 'source = "…", a hub id or a directory'
                report.add((*path, "source"), "cannot do without the key", accepted)
            merged["source"] = "?"
        else:
            merged["source"] = _source(report, merged["source"], folder, (*path, "source"))
        if "venv" in merged:
            merged["venv"] = _model_venv(report, merged["venv"], venvs, folder, (*path, "venv"))
        models[name] = _model(name, merged)
    numbered = report.document.numbered
    return {
        name: replace(model, is_numbered=True) if name in numbered else model
        for name, model in models.items()
    }


def _model(name: str, values: Values) -> Model:
    values = {key: value for key, value in values.items() if key not in KEY_WAYS}  # refused already
    idle = values.pop("idle", {})
    if "stop_after_s" in idle:
        values["idle_stop_after_s"] = idle["stop_after_s"] or None
    values["idle_sleep_after_s"] = idle.get("sleep_after_s") or None
    values["sleep_level"] = idle.get("sleep_level", 1 if values["idle_sleep_after_s"] else 0)
    if "queue" in values:
        values["queue"] = Queue(**values["queue"])
    if "restart" in values:
        values["restart"] = Restart(**values["restart"])
    if "limits" in values:
        values["limits"] = Limits(**values["limits"])
    if "request" in values:
        values["request"] = RequestPolicy(**values["request"])
    return Model(name=name, **{"path": f"/{name}", "flags": {}, "env": {}, **values})


def is_local(source: str) -> bool:
    """Whether a source (or a find_links entry) is a directory rather than a hub id or URL."""
    return source.startswith(("/", "./", "../")) or source in {".", ".."}


def _source(report: Report, source: str, folder: Path, path: tuple[str, ...]) -> str:
    if is_local(source):
        return str(folder / source)
    if not _HUB_ID.fullmatch(source):
        accepted = 'a hub id such as "Qwen/Qwen2.5-0.5B-Instruct", or a directory that begins with / or ./'
        report.add(path, f"cannot read {quoted(source)}", accepted)
    return source


def _model_venv(
    report: Report, written: str | Values, venvs: Mapping[str, Venv], folder: Path, path: tuple[str, ...]
) -> Venv | None:
    if isinstance(written, dict):
        return _venv(report, written, folder, path)
    if written not in venvs:
        known = f"known: {listing(map(quoted, venvs), 'and')}" if venvs else f"add a table [venvs.{written}]"
        report.add(
            path, f"cannot find a venv named {quoted(written)}", hint=did_you_mean(written, venvs) or known
        )
        return None
    return venvs[written]


def _venv(report: Report, values: Values, folder: Path, path: tuple[str, ...]) -> Venv:
    if "path" in values:
        builds = sorted(_toml_names(values) - {"path"})
        if builds:
            found = f"cannot build what exists: path and {listing(builds, 'and')} are both there"
            report.add(path, found, hint=f"remove path, or {listing(builds, 'and')}")
        values = {**values, "path": folder / values["path"]}
    elif not values.get("requirements") and report.clean(path):
        report.add(path, "cannot tell what is in this environment", 'path = "…" or requirements = ["…"]')
    links = tuple(str(folder / link) if is_local(link) else link for link in values.get("find_links", ()))
    return Venv(**{**values, "find_links": links})


def _toml_names(values: Values) -> set[str]:
    return {key.name for key in VENV.keys if key.attribute in values}


def _resolve_names(config: Config) -> Config:
    """Aliases become the names of what they stand for, so that nobody else has to look them up."""
    names = config.names
    routes = {name: with_names(route, names) for name, route in config.routes.items()}

    def started(name: str) -> tuple[str, ...]:
        return routes[name].members if name in routes else (name,)

    default = config.server.default_model
    server = replace(
        config.server,
        default_model=None if default is None else names[default],
        preload=tuple(dict.fromkeys(each for name in config.server.preload for each in started(names[name]))),
    )
    schedule = None if config.schedule is None else resolved(config.schedule, config)
    return replace(config, server=server, schedule=schedule, routes=routes)
