"""A model of another server than vLLM, engine = "command": what of a model's settings it has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisord_llm.config.document import Report
from supervisord_llm.config.keys.commands import COMMAND_KEYS
from supervisord_llm.config.problem import KeyPath, quoted
from supervisord_llm.config.template import placeholders

Values = dict[str, Any]

OF_VLLM: Mapping[str, tuple[str, str]] = {
    "flags": ("it is not vLLM", "write them as words of command"),
    "venv": ("nothing is built for it", "name its program in command"),
    "revision": ("nothing is downloaded for it", "remove it"),
}
"""Keys of a model that mean nothing for such a one, why, and the way out."""

SLEEP = ("sleep_after", "sleep_level")
"""Keys of `idle` of which the same is true."""

ALSO_REMOTE = ("max_model_len",)
"""Of COMMAND_KEYS: a model elsewhere has them as well."""


def inherited(defaults: Values) -> Values:
    """What of [defaults] such a model takes: what is about vLLM passes it by."""
    taken = {name: value for name, value in defaults.items() if name not in OF_VLLM}
    if "idle" in taken:
        taken["idle"] = {name: value for name, value in taken["idle"].items() if not _is_sleep(name)}
    return taken


def read(report: Report, name: str, own: Values, values: Values, folder: Path) -> Values:
    """`values` with `source` filled in: what the server calls the model.

    What does not belong into its `own` table is reported; `folder` is where a relative program is sought.
    """
    path: KeyPath = ("models", name)
    for key, (why, way_out) in OF_VLLM.items():
        if key in own:
            report.add((*path, key), f"cannot use {quoted(key)} with another engine: {why}", hint=way_out)
    for key in SLEEP:
        if any(attribute.startswith(key) for attribute in own.get("idle", {})):
            found = f"cannot use {quoted(key)} with another engine: only vLLM can sleep"
            report.add((*path, "idle", key), found, hint="remove it and see stop_after")
    words = values.get("command", ())
    at = (*path, "command")
    if report.clean(at):
        _check(report, at if report.is_set(at) else path, words)
    if words and "/" in words[0]:
        values = values | {"command": (str(folder / words[0]), *words[1:])}
    return {"source": name} | {key: value for key, value in values.items() if key not in OF_VLLM}


def refuse_elsewhere(report: Report, name: str, own: Mapping[str, Any], engine: str) -> None:
    """Report the keys of such a model in the table of one that another engine serves."""
    if not report.clean(("models", name, "engine")):
        return
    for key in COMMAND_KEYS:
        if key.attribute not in own or (engine == "remote" and key.name in ALSO_REMOTE):
            continue
        hint = 'remove it, or write engine = "command"'
        if key.name == "max_model_len":
            hint = "write the flag: flags = { max-model-len = … }"
        found = f'cannot use {quoted(key.name)} with engine = "{engine}"'
        report.add(("models", name, key.name), found, hint=hint)


def _check(report: Report, path: KeyPath, words: tuple[str, ...]) -> None:
    if not words or not words[0]:
        report.add(path, "cannot tell what to run", 'command = ["…", "--port", "{port}"]')
        return
    if placeholders(words[:1]):
        found = "cannot run a program without knowing its name"
        report.add(path, found, hint="write it without a placeholder")
        return
    used = placeholders(words)
    if not used & {"port", "socket"}:
        accepted = '"{port}" or "{socket}" where the server is told to listen'
        report.add(path, "cannot reach a server that listens nobody knows where", accepted)
    elif {"port", "socket"} <= used:
        report.add(path, "cannot serve at a port and at a socket", hint="remove {port} or {socket}")


def _is_sleep(attribute: str) -> bool:
    return attribute.startswith(SLEEP)
