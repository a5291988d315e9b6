"""A model elsewhere, engine = "remote": what of a model's settings it has, and where its key comes from."""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from supervisord_llm.config.document import Report
from supervisord_llm.config.keys.remotes import KEY_WAYS, REMOTE_KEYS
from supervisord_llm.config.model import Address, Config
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

_ENDPOINT = re.compile(r"/(?:(?:chat/)?completions|embeddings|messages|models|responses)$")
PRIVATE_DOMAINS = (".local", ".lan", ".home", ".internal", ".home.arpa", ".localhost", ".test")


def inherited(defaults: Values) -> Values:
    """What of [defaults] a remote model takes: what is about a process passes it by."""
    return {name: value for name, value in defaults.items() if _key(name) not in OF_A_PROCESS}


def read(report: Report, name: str, own: Values, values: Values, read_key: ReadKey) -> Values:
    """`values` with `key` or `no_key` in place of `key_…`, and `source` filled in.

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
    return {"source": name, "url": ""} | others | nothing_here | secret


def refuse_elsewhere(report: Report, name: str, own: Mapping[str, Any]) -> None:
    """Report the keys of a remote model in the table of one that runs here."""
    for key in REMOTE_KEYS:
        if key.attribute in own and report.clean(("models", name, "engine")):
            found = f"cannot use {quoted(key.name)} for a model that runs here"
            report.add(("models", name, key.name), found, hint='remove it, or write engine = "remote"')


def key_of(report: Report, path: KeyPath, values: Values, read_key: ReadKey) -> Values:
    """The `key` that `values` lead to, if to any; or `no_key`, which is no mistake but a fact of the host."""
    ways = [way for way in KEY_WAYS if way in values]
    if len(ways) > 1:
        found = f"cannot use two keys: {listing(ways, 'and')} are both there"
        report.add((*path, ways[1]), found, hint="remove one")
    if len(ways) != 1:
        return {}
    try:
        return {"key": read_key(ways[0], str(values[ways[0]]))}
    except KeyUnavailable as unavailable:
        return {"no_key": f"its {ways[0]} leads to no key: {unavailable}"}


def _key(attribute: str) -> str:
    return attribute.removesuffix("_s").removesuffix("_bytes")


# --- checks ----------------------------------------------------------


def check_remotes(report: Report, config: Config) -> None:
    """Report models elsewhere that are this daemon's own."""
    for model in config.models.values():
        own = None if model.peer else own_address(model.url, config)
        if own is not None:
            path = ("models", model.name, "url")
            report.add(path, f"cannot be elsewhere: this daemon listens on {own}", hint="remove it")


def own_address(url: str, config: Config) -> Address | None:
    """Where this daemon listens, if the URL certainly leads there. Names are not looked up."""
    there = urlsplit(url)
    try:
        port = there.port or {"http": 80, "https": 443}.get(there.scheme)
    except ValueError:
        return None
    host = there.hostname or ""
    for address in config.server.listen:
        is_same = host == address.host or (is_loopback(host) and _takes_loopback(address))
        if is_same and port == address.port:
            return address
    return None


def _takes_loopback(address: Address) -> bool:
    return address.host in {"0.0.0.0", "::"} or is_loopback(address.host)  # noqa: S104 - it is compared


# --- warnings ----------------------------------------------------------


def keyless(config: Config) -> Iterator[str]:
    """One sentence for each model or peer whose key cannot be had."""
    own = (model for model in config.models.values() if not model.peer)
    there = [(f"models.{model.name}", model.no_key) for model in own]
    there += [(f"peers.{peer.name}", peer.no_key) for peer in config.peers]
    yield from (f"{table}: {no_key}" for table, no_key in there if no_key)


def with_endpoint(config: Config) -> Iterator[str]:
    """One sentence for each model whose `url` has the path of an endpoint at its end."""
    for model in config.models.values():
        if found := _ENDPOINT.search(model.url):
            yield (
                f"models.{model.name}.url: ends with {found[0]}, which follows with each request; "
                f'write "{model.url[: found.start()]}"'
            )


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


def is_here(url: str) -> bool:
    """Whether a URL leads to this very machine, as far as its host tells."""
    return is_loopback(urlsplit(url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a host, without brackets, is this very machine by its name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_public(host: str) -> bool:
    """Whether a host is on the internet, as far as its name or address tells."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(PRIVATE_DOMAINS)
