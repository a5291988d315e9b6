"""The configuration as the look-ups a request needs. Frozen: a reload replaces it as one value."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from supervisord_llm.config.model import Config, Model
from supervisord_llm.gateway.auth import Caller, Keyring


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the gateway reads of one configuration."""

    config: Config
    names: Mapping[str, str]
    """Name or alias -> model."""
    prefixes: Mapping[str, str]
    """Path prefix ("/coder") -> model."""
    default: str | None
    """The model of requests that name none."""
    keyring: Keyring
    control: Caller
    """Who comes by the control socket."""

    @property
    def models(self) -> list[Model]:
        """The default one first, as clients with automatic choice take the first."""
        return sorted(self.config.models.values(), key=lambda model: model.name != self.default)

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
    everything = frozenset(config.models)
    return Settings(
        config=config,
        names=MappingProxyType(names),
        prefixes=MappingProxyType(prefixes),
        default=_default(config, names),
        keyring=Keyring(
            tuple(
                (
                    client.key_digest,
                    Caller(client.name, _allowed(config, client.models), client.priority, client.admin),
                )
                for client in config.clients
            ),
            None if config.auth_required else Caller("anonymous", everything),
        ),
        control=Caller("control", everything, admin=True),
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
