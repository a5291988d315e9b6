"""From TOML values to what the program uses, guided by the description in keys/. Reports every misfit."""

from collections.abc import Mapping
from typing import Any, Final

from supervisord_llm.config.document import Report
from supervisord_llm.config.kinds import Kind, ListOf, MapOf, OneOf, Table, Unreadable, Value
from supervisord_llm.config.problem import KeyPath, did_you_mean, listing, quoted

INVALID: Final = object()
"""Stands for a value that could not be read; its problem is in the report."""

_TYPES = (
    (dict, "a table"),
    (list, "a list"),
    (str, "a string"),
    (bool, "a boolean"),
    (int | float, "a number"),
)


def read_table(report: Report, table: Table, raw: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
    """The keys of `raw` that were set and valid, by attribute name."""
    known = {key.name: key for key in table.keys}
    values: dict[str, Any] = {}
    for name, value in raw.items():
        at = (*path, name)
        key = known.get(name)
        if key is None:
            hint = did_you_mean(name, known) or f"known here: {listing(_supported(table), 'and')}"
            report.add(at, f"cannot use the unknown key {quoted(name)}", hint=hint)
        elif not key.supported:
            report.add(at, f"cannot use {quoted(name)}: it is not supported yet", hint="remove it")
        elif (read := read_kind(report, key.kind, value, at)) is not INVALID:
            values[key.attribute] = read
    return values


def read_kind(report: Report, kind: Kind, raw: Any, path: KeyPath) -> Any:
    """What `raw` means, or INVALID."""
    match kind:
        case Value():
            return _read_value(report, kind, raw, path)
        case ListOf():
            return _read_list(report, kind, raw, path)
        case OneOf():
            return _read_one_of(report, kind, raw, path)
        case Table() | MapOf():
            if not isinstance(raw, dict):
                return _misfit(report, kind, raw, path)
            if isinstance(kind, MapOf):
                return _read_map(report, kind, raw, path)
            return read_table(report, kind, raw, path)


def _supported(table: Table) -> list[str]:
    return [key.name for key in table.keys if key.supported]


def _read_value(report: Report, kind: Value, raw: Any, path: KeyPath) -> Any:
    try:
        return kind.read(raw)
    except Unreadable as misfit:
        return _misfit(report, kind, raw, path, misfit)


def _misfit(
    report: Report, kind: Kind, raw: Any, path: KeyPath, misfit: Unreadable | None = None, what: str = "read"
) -> Any:
    """Report that `raw` is not of `kind`. A way out that the kind knows stands in for what it accepts."""
    found = f"cannot {what} {_shown(kind, raw)}" + (f": {misfit.why}" if misfit and misfit.why else "")
    replaced = misfit is not None and misfit.why and misfit.way_out
    report.add(path, found, "" if replaced else kind.accepts, misfit.way_out if misfit else "")
    return INVALID


def _shown(kind: Kind, raw: Any) -> str:
    structure = isinstance(raw, dict | list) or isinstance(kind, Table | MapOf | ListOf)
    if structure:
        return next((name for known, name in _TYPES if isinstance(raw, known)), "this value")
    if _is_secret(kind):
        return "this value (not shown)"
    return quoted(raw)


def _is_secret(kind: Kind) -> bool:
    match kind:
        case Value():
            return kind.secret
        case OneOf():
            return any(map(_is_secret, kind.options))
        case _:
            return False


def _read_list(report: Report, kind: ListOf, raw: Any, path: KeyPath) -> Any:
    if not isinstance(raw, list):
        return _misfit(report, kind, raw, path)
    items = [read_kind(report, kind.item, item, (*path, index)) for index, item in enumerate(raw)]
    return INVALID if INVALID in items else tuple(items)


def _read_map(report: Report, kind: MapOf, raw: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for written, item in raw.items():
        at = (*path, written)
        try:
            name = kind.name.read(written)
        except Unreadable as misfit:
            _misfit(report, kind.name, written, at, misfit, f"use the {kind.named}")
            if not isinstance(kind.item, Table):
                continue
            name = written  # so that all else that is wrong in its table is told as well
        if name in values:
            report.add(
                at,
                f"cannot use {quoted(written)}: it is there in another spelling",
                hint="remove one of them",
            )
            continue
        read = read_kind(report, kind.item, item, at)
        if read is not INVALID:
            values[name] = read
    return values


def _read_one_of(report: Report, kind: OneOf, raw: Any, path: KeyPath) -> Any:
    for structure, options in ((dict, (Table, MapOf)), (list, (ListOf,))):
        if isinstance(raw, structure):
            for option in kind.options:
                if isinstance(option, options):
                    return read_kind(report, option, raw, path)
    hints: list[Unreadable] = []
    for option in kind.options:
        if isinstance(option, Value):
            try:
                return option.read(raw)
            except Unreadable as misfit:
                hints.append(misfit)
    hint = next((misfit for misfit in hints if misfit.why or misfit.way_out), None)
    return _misfit(report, kind, raw, path, hint)
