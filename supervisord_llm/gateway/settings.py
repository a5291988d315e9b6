"""The configuration as the look-ups a request needs. Frozen: a reload replaces it as one value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from supervisord_llm.config.model import Client, Config, Model, Network
from supervisord_llm.core.routes.reach import models_of
from supervisord_llm.core.routes.route import Route
from supervisord_llm.gateway.auth import Caller, Keyring
from supervisord_llm.gateway.browser import Browsers, browsers
from supervisord_llm.gateway.choosing.features import Needs, needs_of
from supervisord_llm.gateway.limits.buckets import Bucket, bucket
from supervisord_llm.gateway.policy.policy import Policy, policy_of
from supervisord_llm.gateway.sites.sites import Sites, sites
from supervisord_llm.gateway.target import Opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the gateway reads of one configuration."""

    config: Config
    models: tuple[Model, ...]
    """The default one first, where it is none of the routes."""
    offers: tuple[Route | Model, ...]
    """All that a client may name, the default one first: clients with automatic choice take the first."""
    names: Mapping[str, str]
    """Name or alias -> model or route."""
    prefixes: Mapping[str, str]
    """Path prefix ("/coder") -> model or route."""
    default: str | None
    """The model or route of requests that name none."""
    keyring: Keyring
    control: Caller
    """Who comes by the control socket."""
    per_address: Bucket | None
    """What one address may send."""
    browsers: Browsers
    sites: Sites | None
    policies: Mapping[str, Policy]
    """What is changed in the requests of each model, and what they may not ask for."""
    opened: Opened
    needs: Mapping[str, Needs]
    """Of each route: what matters to its choice."""
    countable: frozenset[str]
    """Models whose engines count tokens where they are asked to."""
    served_as: Mapping[str, str]
    """What a body must call a model, where its engine does not know all that a client may call it."""
    prioritised: frozenset[str]
    """Models whose engines order requests by the priority that comes with them."""

    @property
    def trusted(self) -> tuple[Network, ...]:
        """The proxies that are believed."""
        return self.config.server.trusted_proxies

    def names_for(self, caller: Caller) -> list[str]:
        """Names and aliases the caller may use, in the order of `offers`."""
        return [
            name
            for offer in self.offers
            if offer.name in caller.models
            for name in (offer.name, *offer.aliases)
        ]


def settings(config: Config) -> Settings:
    """Build the tables."""
    offers: tuple[Route | Model, ...] = (*config.routes.values(), *config.models.values())
    names = {alias: offer.name for offer in offers for alias in offer.aliases}
    names |= {offer.name: offer.name for offer in offers}
    prefixes = {offer.path: offer.name for offer in offers if offer.path}
    everything, default = frozenset(offer.name for offer in offers), _default(config, names)
    return Settings(
        config=config,
        models=tuple(sorted(config.models.values(), key=lambda model: model.name != default)),
        offers=tuple(sorted(offers, key=lambda offer: offer.name != default)),
        names=MappingProxyType(names),
        prefixes=MappingProxyType(prefixes),
        default=default,
        keyring=Keyring(
            tuple(
                (digest, caller)
                for client in config.clients
                for caller in (_caller(client, offers),)
                for digest in client.key_digests
            ),
            None if config.auth_required else Caller("anonymous", everything),
        ),
        control=Caller("control", everything, admin=True),
        browsers=browsers(config.cors_origins, security=config.server.security_headers),
        sites=sites(config.sites),
        per_address=bucket(config.rate_limit.per_ip, config.rate_limit.burst),
        policies=MappingProxyType({name: policy_of(model) for name, model in config.models.items()}),
        opened=MappingProxyType(_opened(config)),
        needs=MappingProxyType(
            {name: needs_of(name, config.routes, config.models) for name in config.routes}
        ),
        countable=frozenset(model.name for model in config.with_engines if model.engine == "vllm"),
        served_as=MappingProxyType(_served_as(config)),
        prioritised=frozenset(
            model.name
            for model in config.models.values()
            if model.flags.get("scheduling-policy") == "priority"
        ),
    )


def _caller(client: Client, offers: Sequence[Route | Model]) -> Caller:
    return Caller(
        client.name,
        _allowed(offers, client.models),
        client.priority,
        client.admin,
        frozenset(client.while_waiting),
        client.endpoints,
    )


def _default(config: Config, names: Mapping[str, str]) -> str | None:
    """The one that is configured, or the only one there is beside the members of routes."""
    if config.server.default_model is not None:
        return names.get(config.server.default_model)
    members = {member for route in config.routes.values() for member in route.members}
    ours = [model.name for model in config.models.values() if not model.peer]
    alone = [name for name in (*config.routes, *ours) if name not in members]
    return alone[0] if len(alone) == 1 else None


def _served_as(config: Config) -> dict[str, str]:
    """Other engines call models by what is their `source` here; vLLM knows adapters by their name alone."""
    named = {model.name: model.name for model in config.models.values() if model.adapter_of is not None}
    elsewhere = (model for model in config.models.values() if model.engine != "vllm" and model.source)
    return named | {model.name: model.source for model in elsewhere}


def _opened(config: Config) -> Opened:
    """A route opens what every model does that it may lead to, so that its choice stays free."""
    opened: dict[str | None, frozenset[str]] = {
        model.name: model.request.opened for model in config.models.values()
    }
    for route in config.routes:
        opened[route] = frozenset.intersection(*(opened[each] for each in models_of(route, config.routes)))
    return {**opened, None: frozenset[str]().union(*opened.values())}


def _allowed(offers: Sequence[Route | Model], patterns: tuple[str, ...]) -> frozenset[str]:
    """Models and routes whose name, or one of whose aliases, fits a pattern."""
    return frozenset(
        offer.name
        for offer in offers
        if any(fnmatchcase(name, pattern) for name in (offer.name, *offer.aliases) for pattern in patterns)
    )
