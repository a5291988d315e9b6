"""The configuration as the look-ups a request needs. Frozen: a reload replaces it as one value."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from supervisord_llm.config.model import Client, Config, Model, Network
from supervisord_llm.gateway.auth import Caller, Keyring
from supervisord_llm.gateway.browser import Browsers, browsers
from supervisord_llm.gateway.buckets import Bucket, bucket
from supervisord_llm.gateway.policy.policy import Policy, policy_of
from supervisord_llm.gateway.sites import Sites, sites


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the gateway reads of one configuration."""

    config: Config
    models: tuple[Model, ...]
    """The default one first, as clients with automatic choice take the first."""
    names: Mapping[str, str]
    """Name or alias -> model."""
    prefixes: Mapping[str, str]
    """Path prefix ("/coder") -> model."""
    default: str | None
    """The model of requests that name none."""
    keyring: Keyring
    control: Caller
    """Who comes by the control socket."""
    per_address: Bucket | None
    """What one address may send."""
    browsers: Browsers
    sites: Sites | None
    policies: Mapping[str, Policy]
    """What is changed in the requests of each model, and what they may not ask for."""
    prioritised: frozenset[str]
    """Models whose engines order requests by the priority that comes with them."""

    @property
    def trusted(self) -> tuple[Network, ...]:
        """The proxies that are believed."""
        return self.config.server.trusted_proxies

    def names_for(self, caller: Caller) -> list[str]:
        """Names and aliases the caller may use, in the order of `models`."""
        return [
            name
            for model in self.models
            if model.name in caller.models
            for name in (model.name, *model.aliases)
        ]


def settings(config: Config) -> Settings:
    """Build the tables."""
    names = {alias: model.name for model in config.models.values() for alias in model.aliases}
    names |= {name: name for name in config.models}
    prefixes = {model.path: model.name for model in config.models.values() if model.path}
    everything, default = frozenset(config.models), _default(config, names)
    return Settings(
        config=config,
        models=tuple(sorted(config.models.values(), key=lambda model: model.name != default)),
        names=MappingProxyType(names),
        prefixes=MappingProxyType(prefixes),
        default=default,
        keyring=Keyring(
            tuple(
                (digest, caller)
                for client in config.clients
                for caller in (_caller(config, client),)
                for digest in client.key_digests
            ),
            None if config.auth_required else Caller("anonymous", everything),
        ),
        control=Caller("control", everything, admin=True),
        browsers=browsers(config.cors_origins, security=config.server.security_headers),
        sites=sites(config.sites),
        per_address=bucket(config.rate_limit.per_ip, config.rate_limit.burst),
        policies=MappingProxyType({name: policy_of(model) for name, model in config.models.items()}),
        prioritised=frozenset(
            model.name
            for model in config.models.values()
            if model.flags.get("scheduling-policy") == "priority"
        ),
    )


def _caller(config: Config, client: Client) -> Caller:
    return Caller(
        client.name,
        _allowed(config, client.models),
        client.priority,
        client.admin,
        frozenset(client.while_waiting),
        client.endpoints,
    )


def _default(config: Config, names: Mapping[str, str]) -> str | None:
    """The one that is configured, or the only one there is."""
    if config.server.default_model is not None:
        return names.get(config.server.default_model)
    return next(iter(config.models)) if len(config.models) == 1 else None


def _allowed(config: Config, patterns: tuple[str, ...]) -> frozenset[str]:
    """Models whose name, or one of whose aliases, fits a pattern."""
    return frozenset(
        model.name
        for model in config.models.values()
        if any(fnmatchcase(name, pattern) for name in (model.name, *model.aliases) for pattern in patterns)
    )
