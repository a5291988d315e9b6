"""[peers.NAME], and the models that are found by it.

A peer's model is called `NAME/model` here, whatever else there is; `model` alone is an alias of it where
nothing of this configuration, and no peer before it, has that name; one that begins with a peer's name is
never an alias. Those that the configuration names, as the member of a route or the like, are there from the
start, found or not, so that names can be checked.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from supervisord_llm.config.checks.names import offered, path_of
from supervisord_llm.config.document import Report
from supervisord_llm.config.keys.remotes import KEY_WAYS
from supervisord_llm.config.model import MINUTES, Config, Model, Peer, Server
from supervisord_llm.config.problem import quoted
from supervisord_llm.config.remotes import ReadKey, key_of, own_address
from supervisord_llm.core.calendar import Schedule
from supervisord_llm.core.card import Card
from supervisord_llm.core.routes.route import Choice, Route

STALL_S = 15 * MINUTES
"""How long a peer may send nothing: it answers once its model is loaded, and says by itself what fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a peer says of one of its models."""

    name: str
    max_model_len: int | None = None
    card: Card | None = None


def read_peers(report: Report, peers: Mapping[str, dict[str, Any]], read_key: ReadKey) -> tuple[Peer, ...]:
    """The peers. What is missing in them is reported."""
    found: list[Peer] = []
    for name, values in peers.items():
        path = ("peers", name)
        if "url" not in values and report.clean((*path, "url")):
            report.add(path, "cannot tell where this peer is", 'url = "http://host:8000"')
        own = {key: value for key, value in values.items() if key not in KEY_WAYS}
        found.append(Peer(name=name, **{"url": "", **own}, **key_of(report, path, values, read_key)))
    return tuple(found)


def named(
    peers: Iterable[Peer], server: Server, routes: Iterable[Route], schedule: Schedule | None
) -> dict[str, Model]:
    """The models of peers that the configuration names."""
    by_name = {peer.name: peer for peer in peers}
    models: dict[str, Model] = {}
    for name in _references(server, routes, schedule):
        peer, slash, source = name.partition("/")
        if slash and source and peer in by_name:
            models[name] = _model(by_name[peer], Offer(name=source))
    return models


def _references(server: Server, routes: Iterable[Route], schedule: Schedule | None) -> Iterator[str]:
    yield from server.preload
    yield server.default_model or ""
    for route in routes:
        yield from route.members
        yield from (rule.use for rule in route.rules)
        if (classifier := route.classifier) is not None:
            yield from (classifier.model, *classifier.labels.values(), classifier.fallback)
    for window in () if schedule is None else schedule.windows:
        yield from (*(window.only or ()), *window.preload, window.fallback or "")


def _model(peer: Peer, offer: Offer, aliases: tuple[str, ...] = ()) -> Model:
    return Model(
        name=f"{peer.name}/{offer.name}",
        source=offer.name,
        engine="remote",
        peer=peer.name,
        url=f"{peer.url}/v1",
        key=peer.key,
        no_key=peer.no_key,
        aliases=aliases,
        max_model_len=offer.max_model_len,
        gpus=(),
        flags={},
        env={},
        idle_stop_after_s=None,
        stall_timeout_s=STALL_S,
    )


# --- checks ----------------------------------------------------------


def check_peers(report: Report, config: Config) -> None:
    """Report peers that are one, or this daemon itself, and names that would be taken for a peer's models."""
    known: dict[str, str] = {}
    for peer in config.peers:
        path = ("peers", peer.name, "url")
        if not peer.url:
            continue
        owner = known.setdefault(peer.url, peer.name)
        if owner != peer.name:
            found = f"cannot use this address twice: peers.{owner} has it"
            report.add(path, found, hint="remove one of them")
        own = own_address(peer.url, config)
        if own is not None:
            report.add(path, f"cannot be a peer of itself: this daemon listens on {own}", hint="remove it")
    for table, offer in offered(config):
        for index, alias in enumerate(offer.aliases):
            name, slash, _ = alias.partition("/")
            if slash and any(name == peer.name for peer in config.peers):
                found = f"cannot use the alias {quoted(alias)}: models of peers.{name} are called so"
                report.add((*path_of(table), "aliases", index), found, hint="write another one")


# --- what is found ----------------------------------------------------------


def merged(config: Config, offers: Mapping[str, Iterable[Offer]]) -> Config:
    """The configuration as it was read, with what its peers offer, by peer."""
    models, taken = dict(config.models), set(config.names)
    reserved = tuple(f"{peer.name}/" for peer in config.peers)
    for peer in config.peers:
        for offer in offers.get(peer.name, ()):
            if any(fnmatchcase(offer.name, pattern) for pattern in peer.models):
                is_free = offer.name not in taken and not offer.name.startswith(reserved)
                found = _model(peer, offer, (offer.name,) if is_free else ())
                models[found.name] = found
                taken.add(offer.name)
        for model in config.models.values():
            is_unlisted = model.peer == peer.name and models[model.name] is model  # yet it is named here
            if is_unlisted and model.source not in taken and not model.source.startswith(reserved):
                models[model.name] = replace(model, aliases=(model.source,))
                taken.add(model.source)
    return replace(config, models=models)


def alone(config: Config) -> Config:
    """Without any peer's models: all that this machine answers for itself, which is what peers may use."""
    models = {name: model for name, model in config.models.items() if not model.peer}
    if len(models) == len(config.models):
        return config
    kept = {name for name, route in config.routes.items() if any(each in models for each in route.members)}
    there = kept | models.keys()
    routes = {name: _narrowed(config.routes[name], there) for name in config.routes if name in kept}
    return replace(config, models=models, routes=routes)


def _narrowed(route: Route, there: Iterable[str]) -> Route:
    """The route as far as it leads to what is there."""
    classifier, policy = route.classifier, route.policy
    if classifier is not None:
        labels = {label: name for label, name in classifier.labels.items() if name in there}
        whole = bool(labels) and classifier.model in there and classifier.fallback in there
        classifier = replace(classifier, labels=labels) if whole else None
        policy = policy if whole or policy is not Choice.CLASSIFIER else Choice.LEAST_BUSY
    return replace(
        route,
        members=tuple(name for name in route.members if name in there),
        rules=tuple(rule for rule in route.rules if rule.use in there),
        classifier=classifier,
        policy=policy,
    )
