"""The models that one caller may use, as lists of several APIs show them. From memory; starts nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from supervisord_llm.config.model import Model
from supervisord_llm.core.card import Card
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.state import State
from supervisord_llm.gateway.auth import Caller, check_model
from supervisord_llm.gateway.capabilities import Capabilities, capabilities
from supervisord_llm.gateway.ports import Facts
from supervisord_llm.gateway.route import model_not_found
from supervisord_llm.gateway.settings import Settings

STATUS: Mapping[State, str] = {
    State.STOPPED: "unloaded",
    State.PREPARING: "loading",
    State.QUEUED: "loading",
    State.STARTING: "loading",
    State.READY: "loaded",
    State.SLEEPING: "sleeping",
    State.WAKING: "loading",
    State.DRAINING: "unloaded",
    State.STOPPING: "unloaded",
    State.BACKOFF: "unloaded",
    State.FAILED: "unloaded",
    State.STUCK: "unloaded",
}
"""Our states in the words that Open WebUI and llama.cpp's clients know."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model under one of its names."""

    name: str
    model: Model
    engine: Engine | None
    card: Card | None
    """None while its weights are not here."""
    can: Capabilities

    @property
    def state(self) -> State:
        return State.STOPPED if self.engine is None else self.engine.state

    @property
    def status(self) -> str:
        return STATUS[self.state]

    @property
    def progress(self) -> dict[str, Any] | None:
        """How far the load has come, as llama.cpp tells it; None where that is not known."""
        if self.engine is None or self.status != "loading" or self.engine.fraction is None:
            return None
        phase = self.engine.phase or self.state.value
        return {"stages": [phase], "current": phase, "value": self.engine.fraction}


@dataclass(frozen=True, slots=True)
class Catalog:
    """What `caller` may use: names and aliases, the default model first."""

    settings: Settings
    caller: Caller
    fleet: Fleet
    created: int
    """Unix time, seconds: one for all, and the same until the daemon restarts."""
    facts: Facts

    def listed(self, only: str | None = None) -> Iterator[Listed]:
        """Every name; of the model `only`, where one is given."""
        for model in self.settings.models:
            if model.name in self.caller.models and only in (None, model.name):
                engine = self.fleet.engines.get(model.name)
                card, length = self.facts.card(model.name), self.facts.context_length(model.name)
                can = capabilities(model, engine, card, length, self.facts.tool_parser(model.name))
                for name in (model.name, *model.aliases):
                    yield Listed(name, model, engine, card, can)

    def find(self, asked: str, only: str | None = None) -> Listed:
        """
        Raises:
            Refused: `model_not_found`, `model_forbidden`.
        """
        names = self.settings.names
        if asked in names and only in (None, names[asked]):
            check_model(self.caller, names[asked])
            return next(one for one in self.listed(names[asked]) if one.name == asked)
        raise model_not_found(asked, [one.name for one in self.listed(only)])
