"""[schedule]: from what was read to a Schedule, and what must hold of it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import time, tzinfo
from typing import Any

from supervisord_llm.config.document import Report
from supervisord_llm.config.model import Config
from supervisord_llm.config.problem import KeyPath, did_you_mean, listing, quoted
from supervisord_llm.core.calendar import EVERY_DAY, Hours, Schedule, Window

WINDOWS = ("schedule", "windows")


def schedule_of(report: Report, values: Mapping[str, Any] | None, local: tzinfo) -> Schedule | None:
    """What the table says; names in it are still as written. `local`: the zone where it names none."""
    if values is None:
        return None
    windows = (
        _window(report, window, (*WINDOWS, index)) for index, window in enumerate(values.get("windows", ()))
    )
    return Schedule(zone=values.get("timezone", local), windows=tuple(windows))


def _window(report: Report, values: Mapping[str, Any], path: KeyPath) -> Window:
    for name in ("name", "from", "to"):
        if name not in values and report.clean((*path, name)):
            report.add(path, f"cannot do without the key {quoted(name)}", f'{name} = "…"')
    written = report.document.values["schedule"]["windows"][path[-1]]
    if "to" in values and written.get("from") == written["to"]:
        found = "cannot tell a whole day from none: it ends when it begins"
        report.add((*path, "to"), found, 'from = "00:00" and to = "24:00" for a whole day')
    days = frozenset(values.get("days", EVERY_DAY))
    if not days:
        report.add((*path, "days"), "cannot begin on no day", "at least one day")
    rest = {key: value for key, value in values.items() if key not in ("name", "from", "to", "days")}
    hours = Hours(start=values.get("from", time(0)), end=values.get("to", time(0)), days=days)
    return Window(name=values.get("name", ""), hours=hours, **rest)


def check_schedule(report: Report, config: Config) -> None:
    """Report what is wrong between windows, and between them and the models."""
    if config.schedule is None:
        return
    taken: set[str] = set()
    for index, window in enumerate(config.schedule.windows):
        path = (*WINDOWS, index)
        if window.name in taken and window.name:
            report.add((*path, "name"), f"cannot use the name {quoted(window.name)} twice", hint="change one")
        taken.add(window.name)
        unknown = [at for at, name in _references(window, path) if not _is_known(report, config, at, name)]
        if not unknown:
            _check_window(report, config, window, path)


def _check_window(report: Report, config: Config, window: Window, path: KeyPath) -> None:
    if window.only is None:
        if not report.clean((*path, "only")):
            return
        for key, is_set in (("drain", window.drain_s > 0), ("fallback", window.fallback is not None)):
            if is_set:
                found = f"cannot use {quoted(key)}: every model may run in this window"
                report.add((*path, key), found, hint=f"add only, or remove {key}")
        return
    way_out = 'add it to "only"'
    may_run = {model for name in window.only for model in members_of(config, name)}
    for place, name in enumerate(window.preload):
        if not may_run.issuperset(members_of(config, name)):
            found = f"cannot preload {quoted(name)} in a window that does not let it run"
            report.add((*path, "preload", place), found, hint=way_out)
    if window.fallback is not None and may_run.isdisjoint(members_of(config, window.fallback)):
        found = f"cannot fall back to {quoted(window.fallback)}, which this window does not let run"
        report.add((*path, "fallback"), found, hint=way_out)


def _references(window: Window, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    for index, name in enumerate(window.only or ()):
        yield (*path, "only", index), name
    for index, name in enumerate(window.preload):
        yield (*path, "preload", index), name
    if window.fallback is not None:
        yield (*path, "fallback"), window.fallback


def _is_known(report: Report, config: Config, path: KeyPath, name: str) -> bool:
    names = config.names
    if name in names:
        return True
    if report.clean(("models",), ("routes",)):  # else it may be one that could not be read
        known = f"known: {listing(map(quoted, (*config.models, *config.routes)), 'and')}"
        hint = did_you_mean(name, names) or known
        report.add(path, f"cannot find a model or route named {quoted(name)}", hint=hint)
    return False


def resolved(schedule: Schedule, config: Config) -> Schedule:
    """With the names of models in place of aliases, routes and adapters; a fallback may be a route."""
    names = config.names

    def models(written: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(model for name in written for model in members_of(config, name)))

    windows = tuple(
        replace(
            window,
            only=None if window.only is None else models(window.only),
            preload=models(window.preload),
            fallback=None if window.fallback is None else names[window.fallback],
        )
        for window in schedule.windows
    )
    return replace(schedule, windows=windows)


def members_of(config: Config, name: str) -> tuple[str, ...]:
    """The models whose engines a name or alias stands for: of a route its members, of an adapter its base."""
    names = config.names
    own = names.get(name, name)
    members = config.routes[own].members if own in config.routes else (own,)
    models = (names.get(member, member) for member in members)
    return tuple(dict.fromkeys(config.engine_of(model) for model in models if model in config.models))
