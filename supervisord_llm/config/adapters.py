"""LoRA adapters, `adapter_of`: what of a model's settings they have, and what they take from their base."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from supervisord_llm.config.document import Report
from supervisord_llm.config.keys.derived import ADAPTER_KEYS
from supervisord_llm.config.keys.models import MODEL
from supervisord_llm.config.model import Config, Model
from supervisord_llm.config.problem import did_you_mean, listing, quoted

Values = dict[str, Any]

OWN_SETTINGS = (
    *("name", "source", "revision", "path", "aliases", "adapter_of"),
    *("system_prompt", "system_prompt_mode", "request", "tools"),
)
"""Attributes of an adapter that are not its base's."""


def inherited(defaults: Values, base: Values) -> Values:
    """What an adapter takes where its own table is silent: of [defaults], and `tools` of its base."""
    taken = {name: value for name, value in defaults.items() if name in ADAPTER_KEYS}
    return taken | {name: base[name] for name in ("tools",) if name in base}


def read(report: Report, name: str, own: Values) -> Values:
    """What an adapter's own table may say; the keys of an engine in it are reported."""
    for key in MODEL.keys:
        if key.attribute in own and key.name not in ADAPTER_KEYS:
            why = f"the engine of models.{own['adapter_of']} serves it"
            found = f"cannot use {quoted(key.name)} for an adapter: {why}"
            report.add(("models", name, key.name), found, hint="remove it")
    return {key: value for key, value in own.items() if key in ADAPTER_KEYS}


def check_adapters(report: Report, config: Config) -> None:
    """Report adapters of what has no engine to load them."""
    written = report.document.values.get("models", {})
    for model in config.models.values():
        path = ("models", model.name, "adapter_of")
        if model.adapter_of is None:
            continue
        if model.adapter_of in config.models:
            _check_base(report, model, config.models[model.adapter_of])
        elif model.adapter_of in config.routes:
            members = listing(map(quoted, config.routes[model.adapter_of].members))
            found = f"cannot add an adapter to the route {quoted(model.adapter_of)}"
            report.add(path, found, hint=f"write one for each of its engines: {members}")
        elif model.adapter_of not in written:
            bases = [name for name, other in config.models.items() if other.adapter_of is None]
            known = f"known: {listing(map(quoted, bases), 'and')}" if bases else "add its table"
            found = f"cannot find a model named {quoted(model.adapter_of)}"
            report.add(path, found, hint=did_you_mean(model.adapter_of, bases) or known)


def _check_base(report: Report, model: Model, base: Model) -> None:
    path = ("models", model.name, "adapter_of")
    if base.adapter_of is not None:
        of = f"models.{base.name} is one itself" if base.name != model.name else "this is the model itself"
        report.add(path, f"cannot add an adapter to an adapter: {of}", hint="name a model that has an engine")
    elif base.engine != "vllm":
        found = (
            f'cannot add an adapter to models.{base.name}: only vLLM loads them, and it is "{base.engine}"'
        )
        report.add(path, found, hint="remove it")
    for flag, refused in (("lora-modules", None), ("enable-lora", False)):
        if flag in base.flags and refused in (None, base.flags[flag]):
            found = (
                f"cannot use the flag {quoted(flag)} beside an adapter that has a table, models.{model.name}"
            )
            at = ("models", base.name, "flags")
            written = next((one for one in (flag, flag.replace("-", "_")) if report.is_set((*at, one))), flag)
            report.add((*at, written), found, hint="remove it, and give each adapter a table with adapter_of")


def joined(config: Config) -> Config:
    """With each adapter in its base, and with the settings of its base's engine. Its base is there."""
    adapters: dict[str, tuple[Model, ...]] = {}
    for model in config.models.values():
        if model.adapter_of is not None:
            adapters[model.adapter_of] = (*adapters.get(model.adapter_of, ()), model)
    if not adapters:
        return config
    models = {name: _joined(model, config.models, adapters) for name, model in config.models.items()}
    preload = [config.engine_of(name) for name in config.server.preload]
    server = replace(config.server, preload=tuple(dict.fromkeys(preload)))
    return replace(config, models=models, server=server)


def _joined(model: Model, models: Mapping[str, Model], adapters: Mapping[str, tuple[Model, ...]]) -> Model:
    if model.adapter_of is None:
        return replace(model, adapters=adapters.get(model.name, ()))
    own = {name: getattr(model, name) for name in OWN_SETTINGS}
    return replace(models[model.adapter_of], **own)
