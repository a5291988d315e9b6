"""What must hold of names: models and routes share one set of them and one of paths."""

from collections.abc import Iterator

from supervisord_llm.config.document import Report
from supervisord_llm.config.model import Config, Model
from supervisord_llm.config.problem import KeyPath, did_you_mean, listing, quoted
from supervisord_llm.core.routes.route import Route

RESERVED_PATHS = ("v1", "admin", "ui", "health", "healthz", "metrics", "routes", "stats", "models", "api")
"""First path segments that the gateway answers itself, in every case of letters."""


def check_names(report: Report, config: Config) -> None:
    """Report names and aliases that stand for two things."""
    for name in config.routes:
        if name in config.models:
            found = f"cannot use the name {quoted(name)}: models.{name} has it"
            report.add(("routes", name), found, hint="rename one of them")
    owners: dict[str, str] = {}
    tables = {offer.name: table for table, offer in offered(config)}
    for table, offer in offered(config):
        for index, alias in enumerate(offer.aliases):
            path = (*path_of(table), "aliases", index)
            if alias in tables:
                whose = "its own name" if alias == offer.name else f"the name of {tables[alias]}"
                report.add(path, f"cannot use the alias {quoted(alias)}: it is {whose}", hint="remove it")
            elif alias in owners:
                taken = f"{owners[alias]} has it already"
                report.add(path, f"cannot use the alias {quoted(alias)}: {taken}", hint="remove one of them")
            owners.setdefault(alias, table)


def check_prefixes(report: Report, config: Config) -> None:
    """Report paths at which two would answer."""
    owners: dict[str, str] = {}
    for table, offer in offered(config):
        prefix, path = offer.path, (*path_of(table), "path")
        if prefix is None or not report.clean(path):
            continue
        way_out = "write another path, or path = false for none"
        if prefix[1:].lower() in RESERVED_PATHS:
            found = f"cannot use the path {quoted(prefix)}: the supervisor answers there"
            report.add(path, found, hint=way_out)
        elif prefix in owners:
            taken = f"{owners[prefix]} has it already"
            report.add(path, f"cannot use the path {quoted(prefix)}: {taken}", hint=way_out)
        owners.setdefault(prefix, table)


def check_references(report: Report, config: Config) -> None:
    """Report what [server] names and what is not there."""
    server = config.server
    for index, name in enumerate(server.preload):
        expect(report, config, ("server", "preload", index), name)
    if server.default_model is not None:
        expect(report, config, ("server", "default_model"), server.default_model)
    missing = server.default_model is None and report.clean(("server", "default_model"))
    if server.unknown_model == "default" and missing:
        found = 'cannot use "default": there is no default_model'
        report.add(("server", "unknown_model"), found, hint='add default_model, or write "reject"')


def expect(report: Report, config: Config, path: KeyPath, name: str, what: str = "model or route") -> None:
    """Report that `name`, written at `path`, is not there; one that could not be read counts as there."""
    names = {*config.names, *_written(report)}
    if name in names:
        return
    barred = config.routes if what == "model" else path[1:2] if path[0] == "routes" else ()
    there = [quoted(each) for each in (*config.models, *config.routes) if each not in barred]
    known = f"known: {listing(there, 'and')}" if there else "add its table"
    near = (each for each in names if config.names.get(each) not in barred)
    hint = did_you_mean(name, near) or known
    report.add(path, f"cannot find a {what} named {quoted(name)}", hint=hint)


def offered(config: Config) -> Iterator[tuple[str, Model | Route]]:
    """All that clients may name, each with its table ("models.chat")."""
    yield from ((f"models.{name}", model) for name, model in config.models.items())
    yield from ((f"routes.{name}", route) for name, route in config.routes.items())


def path_of(table: str) -> KeyPath:
    """Of "models.chat", the keys that lead to it. A name may have dots."""
    kind, _, name = table.partition(".")
    return kind, name


def _written(report: Report) -> Iterator[str]:
    for kind in ("models", "routes"):
        tables = report.document.values.get(kind)
        for name, table in tables.items() if isinstance(tables, dict) else ():
            yield name
            aliases = table.get("aliases") if isinstance(table, dict) else None
            if isinstance(aliases, list):
                yield from (alias for alias in aliases if isinstance(alias, str))
