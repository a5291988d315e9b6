"""Tables that a file leaves to be made: what a model `extends`, and its `replicas` with the route over them.

Both are written out as TOML values before anything is read. So whatever reads them knows neither key, and
`Document.causes` keeps where each value was written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from supervisord_llm.config.checks.checks import ranks
from supervisord_llm.config.document import Document, Report
from supervisord_llm.config.keys.derived import ADAPTER_KEYS, EXTENDS, REPLICAS
from supervisord_llm.config.keys.models import FLAGS
from supervisord_llm.config.kinds import Unreadable
from supervisord_llm.config.problem import KeyPath, did_you_mean, listing, quoted
from supervisord_llm.config.read import INVALID, read_kind

Values = dict[str, Any]

MERGED = ("flags", "env", "idle", "queue", "restart", "limits", "request")
"""Keys of a model that merge with what is below key by key; any other replaces what is below whole."""

MOST_GPUS = 1024
"""Of one replica: what a slip of the pen in `tensor_parallel` makes of a list."""

NOT_INHERITED = ("path", "aliases", "adapter_of")
"""Neither are `extends` and `replicas`, which no table has once it is expanded."""


def under(below: Mapping[str, Any], own: Mapping[str, Any]) -> Values:
    """`own` and what it leaves to what is `below` it: [defaults], or the model that it extends."""
    merged = {**below, **own}
    for key in MERGED:
        if isinstance(below.get(key), Mapping) and isinstance(own.get(key), Mapping):
            merged[key] = {**below[key], **own[key]}
    return merged


def expand(document: Document, report: Report) -> Document:
    """The document without `extends` and `replicas`, and with all that they stand for.

    One that has neither is returned as it is. What cannot be expanded is reported and left out.
    """
    models = document.values.get("models")
    tables = {name: table for name, table in _tables(models).items() if isinstance(table, dict)}
    if not any({"extends", "replicas"} & table.keys() for table in tables.values()):
        return document
    bases = _bases(report, tables)
    found = _Models(report, document.values, tables, bases)
    for name in tables:
        for each in reversed(_line(name, bases)):
            found.complete(each)
    values = found.expanded()
    return replace(document, values=values, causes=found.causes, numbered=frozenset(found.numbered))


def _tables(values: object) -> Values:
    """A table of tables, empty where it is none: who reads it tells."""
    return values if isinstance(values, dict) else {}


def _bases(report: Report, tables: Mapping[str, Values]) -> dict[str, str]:
    """Model -> the one that it extends, for those where that leads somewhere."""
    bases: dict[str, str] = {}
    for name, table in tables.items():
        path = ("models", name, "extends")
        if "extends" not in table or (base := read_kind(report, EXTENDS, table["extends"], path)) is INVALID:
            continue
        if base in tables:
            bases[name] = base
        else:
            known = [other for other in tables if other != name]
            hint = did_you_mean(base, known) or f"known: {listing(map(quoted, known), 'and')}"
            report.add(path, f"cannot find a model named {quoted(base)}", hint=hint)
    for name in tables:
        line = _line(name, bases)
        if bases.get(line[-1]) == name:
            circle = f"models.{name} extends {' extends '.join([*line[1:], name])}"
            report.add(("models", name, "extends"), f"cannot end: {circle}", hint="remove one of them")
            del bases[name]
    return bases


def _line(name: str, bases: Mapping[str, str]) -> list[str]:
    """A model, the one that it extends, the one that this extends, and so on, each once."""
    line = [name]
    while (base := bases.get(line[-1])) is not None and base not in line:
        line.append(base)
    return line


@dataclass(slots=True)
class _Models:
    """The tables of models on the way to being expanded."""

    report: Report
    document: Mapping[str, Any]
    written: Mapping[str, Values]
    bases: Mapping[str, str]
    whole: dict[str, Values] = field(default_factory=dict)
    """Those that have what they inherit."""
    causes: dict[KeyPath, KeyPath] = field(default_factory=dict)
    numbered: set[str] = field(default_factory=set)
    """Replicas whose GPUs follow from their number: on a host without any they run on the CPU."""

    # --- extends ------------------------------------------------------

    def complete(self, name: str) -> None:
        """Give a model the keys of its base, which is whole."""
        if name in self.whole:
            return
        own = {key: value for key, value in self.written[name].items() if key not in ("extends", "replicas")}
        base = self.bases.get(name)
        if base is not None:
            self._check_engine(name, own, base)
            left = _left(self.whole[base], own)
            self.causes["models", name, "source"] = ("models", base, "source")
            for key, value in left.items():
                if key not in own:
                    self.causes["models", name, key] = ("models", base, key)
                elif key in MERGED and isinstance(value, dict):
                    for inner in value:
                        self.causes["models", name, key, inner] = ("models", base, key, inner)
            own = under(left, own)
        self.whole[name] = own

    def _check_engine(self, name: str, own: Mapping[str, Any], base: str) -> None:
        """The keys of one engine mean little to another."""
        usual = _tables(self.document.get("defaults")).get("engine", "vllm")
        engine = self.whole[base].get("engine", usual)
        if own.get("engine", engine) != engine:
            found = f"cannot extend models.{base}, which has another engine: {quoted(engine)}"
            self.report.add(("models", name, "engine"), found, hint="remove it, or extends")

    # --- replicas -----------------------------------------------------

    def expanded(self) -> Values:
        """The whole document, with instances in the place of models that have replicas."""
        instances = {name: found for name in self.written if (found := self._instances(name))}
        placed = {each.name for found in instances.values() for each in found}
        instances = {name: found for name, found in instances.items() if name not in placed}
        models: Values = {}
        for name, written in self.document["models"].items():
            if name in instances:
                models |= {each.name: self._instance(each, name) for each in instances[name]}
            elif name not in placed:
                models[name] = self.whole.get(name, written)
        values = {**self.document, "models": models}
        routes = self.document.get("routes", {})
        if instances and isinstance(routes, dict):
            made = {name: self._route(name, found, routes.get(name, {})) for name, found in instances.items()}
            values["routes"] = {**routes, **made}
        return values

    def _instances(self, name: str) -> tuple["_Instance", ...]:
        """What takes the place of a model; nothing where it has no replicas, or none that can be made."""
        path = ("models", name, "replicas")
        raw = self.written[name].get("replicas")
        if raw is None or (count := read_kind(self.report, REPLICAS, raw, path)) is INVALID:
            return ()
        settings = under(_tables(self.document.get("defaults")), self.whole[name])
        found = ""
        if "adapter_of" in self.written[name]:
            found = "cannot replicate an adapter, which has no engine of its own"
        elif settings.get("engine") == "remote":
            found = "cannot replicate what runs elsewhere"
        if found:
            self.report.add(path, found, hint="remove it")
            return ()
        if "gpus" not in settings:
            self.causes["models", name, "gpus"] = path
        return tuple(each for each in self._placed(name, count, settings) if self._has_name(each.name, name))

    def _placed(self, name: str, count: int, settings: Mapping[str, Any]) -> tuple["_Instance", ...]:
        """As many instances, each on GPUs of its own; without GPUs they are numbered."""
        path, gpus = ("models", name, "gpus"), settings.get("gpus", "auto")
        each = ranks(settings.get("tensor_parallel"), _tables(settings.get("flags")))
        if gpus == "auto":
            firsts = [number * each for number in range(count)]
            each = min(each, MOST_GPUS)  # beyond, each is refused for its number of GPUs
            return tuple(
                _Instance(f"{name}_{first}", [*range(first, first + each)], is_numbered=True)
                for first in firsts
            )
        if not isinstance(gpus, list) or not all(isinstance(gpu, int | str) for gpu in gpus):
            return tuple(_Instance(f"{name}_{number}", gpus) for number in range(count))  # its reader tells
        if not gpus:
            return tuple(_Instance(f"{name}_{number}", []) for number in range(count))
        if len(gpus) != count * each:
            found = f"cannot place {count} replicas on {len(gpus)} GPUs: each needs {each}"
            self.report.add(path, found, hint=f'name {count * each} GPUs, or write "auto"')
            return ()
        if len(set(gpus)) < len(gpus):
            self.report.add(path, "cannot use a GPU twice", hint="name each GPU once")
            return ()
        return tuple(
            _Instance(f"{name}_{gpus[first]}", gpus[first : first + each], first, each)
            for first in range(0, len(gpus), each)
        )

    def _has_name(self, instance: str, name: str) -> bool:
        """Whether the name is free for a replica, or its table says that it is for that replica."""
        path = ("models", instance)
        if instance not in self.document["models"]:
            return True
        if self.bases.get(instance) != name:
            found = f"cannot tell it from the replica of models.{name} that has this name"
            way_out = f"add extends = {quoted(name)} for settings of that replica, or rename the model"
            self.report.add(path, found, hint=way_out)
            return False
        if "replicas" in self.written[instance]:
            found = f"cannot replicate a replica of models.{name}"
            self.report.add((*path, "replicas"), found, hint="remove it")
        return True

    def _instance(self, instance: "_Instance", name: str) -> Values:
        """The table of one replica: the one written for it, else the model's."""
        path = ("models", instance.name)
        written = self.written.get(instance.name)
        if written is None:
            self.causes[path] = ("models", name)
            table = {key: value for key, value in self.whole[name].items() if key not in NOT_INHERITED}
        else:
            table = self.whole[instance.name]
        if written is None or "gpus" not in written:
            table = {**table, "gpus": instance.gpus}
            if instance.is_numbered:
                self.numbered.add(instance.name)
            self.causes[(*path, "gpus")] = ("models", name, "gpus")
            for index in range(instance.listed):
                self.causes[(*path, "gpus", index)] = ("models", name, "gpus", instance.first + index)
        return {"path": False, **table}

    def _route(self, name: str, instances: tuple["_Instance", ...], written: object) -> object:
        """The route over the replicas, which has the model's path and aliases; what is written of it wins."""
        if not isinstance(written, dict):
            return written
        path = ("routes", name)
        route: Values = {"members": [each.name for each in instances]}
        for members in (("members",), *(("members", index) for index in range(len(instances)))):
            self.causes[(*path, *members)] = ("models", name, "replicas")
        if not written:
            self.causes[path] = ("models", name, "replicas")
        for key in ("path", "aliases"):
            if key not in self.written[name]:
                continue
            route[key] = self.written[name][key]
            if key in written:
                found = f"cannot tell which is meant: routes.{name} has its own"
                self.report.add(("models", name, key), found, hint="remove one of them")
            else:
                self.causes[(*path, key)] = ("models", name, key)
        return {**route, **written}


@dataclass(frozen=True, slots=True)
class _Instance:
    """One of a model's replicas."""

    name: str
    gpus: Any
    """A list; what was written, where that is none."""
    first: int = 0
    listed: int = 0
    """How many of the model's own GPUs it has, from the `first` of them on; 0 where the model lists none."""
    is_numbered: bool = False


def _left(base: Mapping[str, Any], own: Mapping[str, Any]) -> Values:
    """What a model that extends `base` leaves to it."""
    left = {key: value for key, value in base.items() if key not in NOT_INHERITED}
    if "source" in own:
        left.pop("revision", None)  # that of another source
    if "adapter_of" in own:
        left = {key: value for key, value in left.items() if key in ADAPTER_KEYS}
    if isinstance(own.get("flags"), dict) and isinstance(left.get("flags"), dict):
        taken = {_flag(name) for name in own["flags"]}
        left["flags"] = {name: value for name, value in left["flags"].items() if _flag(name) not in taken}
    for key in MERGED:
        if isinstance(own.get(key), dict) and isinstance(left.get(key), dict):
            left[key] = {inner: value for inner, value in left[key].items() if inner not in own[key]}
    return left


def _flag(name: str) -> str:
    """Flags have two spellings that mean one."""
    try:
        return str(FLAGS.name.read(name))
    except Unreadable:
        return name
