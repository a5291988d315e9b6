"""A model elsewhere, engine = "remote": what of a model's settings it has, and where its key comes from."""

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from supervisord_llm.config.document import Report
from supervisord_llm.config.keys.remotes import KEY_WAYS, REMOTE_KEYS
from supervisord_llm.config.model import Config, Model
from supervisord_llm.config.problem import KeyPath, KeyUnavailable, listing, quoted

Values = dict[str, Any]
ReadKey = Callable[[str, str], str | None]
"""("key_env" | "key_file" | "key_credential", value) -> the key, None: keys are not read; raises
KeyUnavailable."""

OF_A_PROCESS: Mapping[str, str] = {
    **dict.fromkeys(("gpus", "tensor_parallel", "vram"), "it takes no GPU of this host"),
    **dict.fromkeys(("idle", "keep", "min_residency"), "it holds nothing here that another could need"),
    **dict.fromkeys(
        (
            *("revision", "venv", "flags", "env", "limits", "network", "start_timeout", "restart"),
            *("command", "health", "adapter_of", "replicas"),
        ),
        "no process of it runs here",
    ),
}
"""Keys of a model that mean nothing for one elsewhere, and why."""

PRIVATE_DOMAINS = (".local", ".lan", ".home", ".internal", ".home.arpa", ".localhost", ".test")


def inherited(defaults: Values) -> Values:
    """What of [defaults] a remote model takes: what is about a process passes it by."""
    return {name: value for name, value in defaults.items() if _key(name) not in OF_A_PROCESS}


def read(report: Report, name: str, own: Values, values: Values, read_key: ReadKey) -> Values:
    """`values` with `key` in place of `key_…`, and `source` filled in.

    What does not belong into its `own` table is reported.
    """
    path = ("models", name)
    for key in map(_key, own):
        if key in OF_A_PROCESS:
            found = f"cannot use {quoted(key)} for a model elsewhere: {OF_A_PROCESS[key]}"
            report.add((*path, key), found, hint="remove it")
    if "url" not in values and report.clean((*path, "url")):
        report.add(path, "cannot tell where this model is", 'url = "https://…/v1"')
    others = {key: value for key, value in values.items() if key not in KEY_WAYS}
    nothing_here: Values = {"gpus": (), "idle": {"stop_after_s": 0.0}}
    secret = key_of(report, path, values, read_key)
    return {"source": name, "url": ""} | others | nothing_here | {"key": secret}


def refuse_elsewhere(report: Report, name: str, own: Mapping[str, Any]) -> None:
    """Report the keys of a remote model in the table of one that runs here."""
    for key in REMOTE_KEYS:
        if key.attribute in own and report.clean(("models", name, "engine")):
            found = f"cannot use {quoted(key.name)} for a model that runs here"
            report.add(("models", name, key.name), found, hint='remove it, or write engine = "remote"')


def key_of(report: Report, path: KeyPath, values: Values, read_key: ReadKey) -> str | None:
    """The key that `values` lead to; None where they name none, or it cannot be had, which is reported."""
    ways = [way for way in KEY_WAYS if way in values]
    if len(ways) > 1:
        found = f"cannot use two keys: {listing(ways, 'and')} are both there"
        report.add((*path, ways[1]), found, hint="remove one")
        return None
    try:
        return read_key(ways[0], str(values[ways[0]])) if ways else None
    except KeyUnavailable as unavailable:
        report.add((*path, ways[0]), f"cannot find the key: {unavailable}")
        return None


def _key(attribute: str) -> str:
    return attribute.removesuffix("_s").removesuffix("_bytes")


# --- warnings ----------------------------------------------------------


def unencrypted(config: Config) -> Iterator[str]:
    """One sentence for each model or peer whose key anybody on the way could read."""
    own = (model for model in config.models.values() if not model.peer)
    there = [(f"models.{model.name}", model.url, model.key) for model in own]
    there += [(f"peers.{peer.name}", peer.url, peer.key) for peer in config.peers]
    for table, url, key in there:
        if key is not None and url.startswith("http://") and is_public(urlsplit(url).hostname or ""):
            yield (
                f"{table}.url: its key crosses the internet unencrypted, since this begins with "
                "http://; write https://"
            )


def host_of(model: Model) -> str:
    """The host of its `url`, without brackets."""
    return urlsplit(model.url).hostname or ""


def is_public(host: str) -> bool:
    """Whether a host is on the internet, as far as its name or address tells."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(PRIVATE_DOMAINS)
