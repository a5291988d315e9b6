"""The models and routes that one caller may use, as lists of several APIs show them. Starts nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from supervisord_llm.config.model import Model
from supervisord_llm.core.card import Card
from supervisord_llm.core.fleet import Engine, Fleet
from supervisord_llm.core.routes.route import Route
from supervisord_llm.core.state import State
from supervisord_llm.gateway.api.capabilities import Capabilities, capabilities
from supervisord_llm.gateway.api.status import nearest
from supervisord_llm.gateway.auth import Caller, check_model
from supervisord_llm.gateway.ports import Facts
from supervisord_llm.gateway.settings import Settings
from supervisord_llm.gateway.target import model_not_found

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
    """A model or a route under one of its names."""

    name: str
    offer: Model | Route
    model: Model
    """Of a route, the member that is up, or nearest to it."""
    engine: Engine | None
    """That model's."""
    card: Card | None
    """None while its weights are not here."""
    can: Capabilities

    @property
    def route(self) -> Route | None:
        """None for a model."""
        return self.offer if isinstance(self.offer, Route) else None

    @property
    def is_alias(self) -> bool:
        return self.name != self.offer.name

    @property
    def is_of_peer(self) -> bool:
        return self.route is None and bool(self.model.peer)

    @property
    def source(self) -> str:
        """Where its weights come from; of a route, which models answer."""
        return self.model.source if self.route is None else ", ".join(self.route.members)

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
    """What `caller` may use: names and aliases, the default one first."""

    settings: Settings
    caller: Caller
    fleet: Fleet
    created: int
    """Unix time, seconds: one for all, and the same until the daemon restarts."""
    facts: Facts

    def listed(self, only: str | None = None) -> Iterator[Listed]:
        """Every name; of the model or route `only`, where one is given."""
        for offer in self.settings.offers:
            if offer.name in self.caller.models and only in (None, offer.name):
                found = self._of_route(offer) if isinstance(offer, Route) else self._of_model(offer)
                names = (offer.name, *offer.aliases)
                if only is None and found.is_of_peer and len(names) > 1:
                    names = offer.aliases  # once is enough; both can be asked for
                for name in names:
                    yield replace(found, name=name)

    def _of_model(self, model: Model) -> Listed:
        engine_name = self.settings.config.engine_of(model.name)
        engine = self.fleet.engines.get(engine_name)
        card, length = self.facts.card(model.name), self.facts.context_length(model.name)
        can = capabilities(model, engine, card, length, self.facts.tool_parser(engine_name))
        return Listed(model.name, model, model, engine, card, can)

    def _of_route(self, route: Route) -> Listed:
        """What the best of its members is, and all that any of them can."""
        of = {name: self._of_model(self.settings.config.models[name]) for name in route.members}
        members, best = of.values(), of[nearest(self.settings, self.fleet, route)]
        lengths = [one.can.max_model_len for one in members if one.can.max_model_len is not None]
        tools = {one.can.tools for one in members}
        can = replace(
            best.can,
            inputs=tuple(dict.fromkeys(word for one in members for word in one.can.inputs)),
            tools=True if True in tools else None if None in tools else False,
            thinking=any(one.can.thinking for one in members),
            max_model_len=max(lengths, default=None),
        )
        return replace(best, name=route.name, offer=route, can=can)

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
