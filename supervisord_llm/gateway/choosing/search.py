"""Which engine a request goes to, and which one is next where that could not answer.

A model has one engine; a route has those of its members; and in place of a model that the schedule does not
let run, its fallback answers. Between a choice and the lease that follows from it nothing else runs, so that
requests that come together see each other's load. Bodies that are looked at off the loop are an exception.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime
from statistics import median_low

from supervisord_llm.config.model import Config
from supervisord_llm.core.routes.pick import pick, plain, whose
from supervisord_llm.core.routes.reach import is_near_limit
from supervisord_llm.core.routes.route import Ask, NoMember, Pick, Standing, Unlabelled
from supervisord_llm.core.routes.tokens import Calibration, least_tokens
from supervisord_llm.errors import Refused
from supervisord_llm.gateway import body as bodies
from supervisord_llm.gateway.choosing.classifier.classifying import Classifying
from supervisord_llm.gateway.choosing.counting import count_tokens
from supervisord_llm.gateway.choosing.features import Features, features_of, own_bytes
from supervisord_llm.gateway.choosing.standing import standing
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.expiring import Expiring
from supervisord_llm.gateway.inference.relay import Upstreams
from supervisord_llm.gateway.limits.rates import Rates
from supervisord_llm.gateway.policy.fields import Fields
from supervisord_llm.gateway.ports import Facts, Runtime
from supervisord_llm.gateway.settings import Settings
from supervisord_llm.telemetry.recorder import Recorder

ELSEWHERE = frozenset({
    "engine_crashed", "model_busy", "model_not_found", "no_vram", "out_of_schedule", "rate_limit_exceeded",
    "start_failed", "start_timeout",
})  # fmt: skip
"""Refusals that say nothing against another engine. Not found is a model that a reload took away by then."""

UNKNOWN = Calibration()

FORGOTTEN_AFTER_S = 3600.0
"""By then the prefix cache of its engine has gone to others."""

MOST_STUCK = 20_000


@dataclass(slots=True)
class Memory:
    """What routes know from earlier requests. It outlives a reload."""

    turns: Counter[str] = field(default_factory=Counter)
    """Route -> how many requests it has chosen for."""
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    """By model."""
    stuck: Expiring[tuple[str, str, str], str] = field(
        default_factory=lambda: Expiring(MOST_STUCK, FORGOTTEN_AFTER_S)
    )
    """Route, client, and session (or the client again) -> which member it was with."""


@dataclass(frozen=True, slots=True)
class Engines:
    """The way to them, what is known of them, and what has to do with the choice of one."""

    runtime: Runtime
    upstreams: Upstreams
    facts: Facts
    memory: Memory
    classifying: Classifying
    recorder: Recorder
    rates: Rates


class Search:
    """One request's way to its engine: each that may serve it is asked once."""

    def __init__(
        self,
        exchange: Exchange,
        engines: Engines,
        name: str,
        endpoint: str,
        body: bytes,
        fields: Fields | None,
    ) -> None:
        self._exchange, self._engines = exchange, engines
        self._name, self._endpoint = name, endpoint
        self._body, self._fields = body, fields
        self._tried: dict[str, Refused] = {}
        self._features = Features()
        self._asks: dict[str, Ask] = {}
        """By route."""
        self._verdicts: dict[str, str] = {}
        """By route: what its classifier said."""
        self._route: str | None = None
        """The one whose choice was asked last; None: it was a model."""
        self._turned: set[str] = set()
        """Routes whose turn this request has taken."""
        self._was_counted = False
        """An engine was asked for the number of tokens, be it in vain."""

    async def first(self) -> str:
        """The model to ask; `exchange.model` from here on.

        Raises:
            Refused: none can serve it.
        """
        return await self._next()

    async def after(self, refused: Refused) -> str:
        """The model to ask once the one before has refused.

        Raises:
            Refused: `refused`, where it is the client's to hear.
        """
        exchange, last, route = self._exchange, self._exchange.model, self._route
        if last is None or refused.code not in ELSEWHERE or not exchange.is_unanswered:
            raise refused
        self._tried[last] = refused
        try:
            following = await self._next()
        except Refused:
            exchange.model = last
            raise refused from None
        if route is not None:
            self._engines.recorder.route_retried(route, last)
        number = len(self._tried) + 1
        exchange.choice = f"try {number}, after {plain(last)}: {refused.code}; {exchange.choice}"
        return following

    def learn(self) -> None:
        """The engine has answered: how many tokens it has found in the prompt tells of its tokenizer."""
        told, model = self._exchange.told.found, self._exchange.model
        if self._asks and self._features.is_plain and told is not None and model is not None:
            known = self._engines.memory.calibrations
            known[model] = known.get(model, UNKNOWN).learn(self._size(model), told.prompt)

    async def _next(self) -> str:
        """A fallback of the schedule stands in for a model, or a whole route, that it does not let run."""
        settings, name, why = self._exchange.settings, self._name, ""
        passed: set[str] = set()
        while True:
            passed.add(name)
            found = await self._pick(name) if name in settings.config.routes else self._alone(name)
            if not isinstance(found, Refused):
                self._exchange.model, reason = found
                self._route = name if name in settings.config.routes else None
                self._exchange.choice = why + reason
                return found[0]
            routes = settings.config.routes
            closed = settings.needs[name].models[0] if name in routes else name
            instead = self._engines.facts.fallback(closed) if found.code == "out_of_schedule" else None
            if instead is None or settings.names.get(instead, name) in passed:
                raise found
            closes, name = f"the schedule closes {plain(name)}", settings.names[instead]
            why = f"{closes}, and {plain(name)} answers: " if name in routes else f"{closes}: "

    def _alone(self, model: str) -> tuple[str, str] | Refused:
        """A model that is no route: it, and why, which is only told where it is not what was asked for."""
        if (before := self._tried.get(model)) is not None:
            return before if self._engines.facts.fallback(model) is None else _closed(model)
        if self._engines.facts.fallback(model) is not None:
            return _closed(model)
        return model, "" if model == self._name else f"{plain(model)} answers in its place"

    async def _pick(self, name: str) -> tuple[str, str] | Refused:
        """What a route chooses: the model, and why."""
        settings, memory = self._exchange.settings, self._engines.memory
        ask = self._asks.get(name) or await self._ask(name)
        while True:
            now = asyncio.get_running_loop().time()
            found = choose(settings, self._engines, name, ask, now, tuple(self._tried))
            if isinstance(found, Unlabelled):
                ask = await self._labelled(found.route, ask)
            elif isinstance(found, Pick) and found.is_doubtful and not self._was_counted:
                ask = await self._counted(name, ask)
            else:
                break
        self._asks[name] = ask
        if isinstance(found, NoMember):
            return refused_by(found)
        for route, chosen in found.hops.items():
            memory.turns[route] += route not in self._turned
            of = settings.config.routes[route]
            who = whose(of, ask)
            may_know_better = ask.labels.get(route, "") is None  # its classifier, the next time
            if who is not None and chosen in of.own and not may_know_better:
                memory.stuck.set((route, ask.client, who), chosen, now)
            self._engines.recorder.route_chosen(route, found.member)
        self._turned.update(found.hops)
        said = ", ".join(self._verdicts[route] for route in found.hops if route in self._verdicts)
        return found.member, f"{found.reason} ({said})" if said else found.reason

    async def _ask(self, name: str) -> Ask:
        """What may be known of the request, as far as the route wants to know it."""
        exchange, settings = self._exchange, self._exchange.settings
        headers, needs = exchange.request.headers, settings.needs[name]
        seen = self._features = await bodies.off_loop(
            self._body, features_of, headers, self._endpoint, self._fields, needs
        )
        estimates = self._estimates(needs.models) if seen.size else {}
        ask = Ask(
            tokens=median_low(estimates.values()) if estimates else 0,
            is_exact=not estimates,
            tokens_by=estimates,
            least_tokens=least_tokens(seen.size),
            answer_tokens=seen.answer_tokens,
            client=exchange.caller.name,
            headers=headers,
            endpoint=self._endpoint,
            tools=seen.tools,
            images=seen.images > 0,
            session=seen.session,
            local=local_time(settings.config) if needs.hours else None,
        )
        standings = stand(settings, self._engines, needs.models, asyncio.get_running_loop().time())
        is_near = is_near_limit(name, ask, standings, settings.config.routes)
        return await self._counted(name, ask) if is_near else ask

    def _estimates(self, models: tuple[str, ...]) -> dict[str, int]:
        """Tokens, as each of them may find."""
        known, images = self._engines.memory.calibrations, self._features.images
        return {model: known.get(model, UNKNOWN).estimate(self._size(model), images) for model in models}

    def _size(self, model: str) -> int:
        """Of the prompt as the model's engine gets it."""
        policy = self._exchange.settings.policies[model]
        return self._features.size + own_bytes(policy, self._endpoint, self._features)

    async def _counted(self, name: str, ask: Ask) -> Ask:
        """With the exact number of tokens, if an engine tells it in time: of the longest context that can."""
        settings, engines, self._was_counted = self._exchange.settings, self._engines, True
        if self._fields is None or not self._features.is_plain:
            return ask
        standings = stand(settings, engines, settings.needs[name].models, asyncio.get_running_loop().time())
        longest = sorted(standings.values(), key=lambda one: one.context or 0, reverse=True)
        counters = (
            (settings.policies[one.name], backend)
            for one in longest
            if one.name in settings.countable and (backend := engines.runtime.backend(one.name)) is not None
        )
        told = await count_tokens(engines.upstreams, counters, self._endpoint, self._body, self._fields)
        return ask if told is None else replace(ask, tokens=told, tokens_by={}, is_exact=True)

    async def _labelled(self, name: str, ask: Ask) -> Ask:
        """With what the classifier of route `name` says."""
        settings = self._exchange.settings
        if self._fields is None:
            return replace(ask, labels={**ask.labels, name: None})
        verdict = await self._engines.classifying.label(
            settings, settings.config.routes[name], self._endpoint, self._body, self._fields
        )
        self._verdicts[name] = verdict.reason
        return replace(ask, labels={**ask.labels, name: verdict.label})


def choose(
    settings: Settings, engines: Engines, name: str, ask: Ask, now: float, tried: tuple[str, ...] = ()
) -> Pick | NoMember | Unlabelled:
    """What route `name` chooses, as things stand. Changes nothing."""
    routes, needs, memory = settings.config.routes, settings.needs[name], engines.memory
    stuck: dict[str, str] = {}
    for each in needs.through:
        who = whose(routes[each], ask)
        before = None if who is None else memory.stuck.get((each, ask.client, who), now)
        if before is not None:
            stuck[each] = before
    standings = stand(settings, engines, needs.models, now, evictions=needs.evictions)
    return pick(name, ask, standings, routes, turns=memory.turns, stuck=stuck, tried=tried)


def stand(
    settings: Settings, engines: Engines, models: tuple[str, ...], now: float, *, evictions: bool = False
) -> dict[str, Standing]:
    """How these models stand; without those that the fleet does not know."""
    fleet, facts, engine_of = engines.runtime.fleet, engines.facts, settings.config.engine_of
    return {
        model: standing(fleet, engine, now, facts.context_length, name=model, evictions=evictions)
        for model in models
        if (engine := fleet.engines.get(engine_of(model))) is not None
    }


def local_time(config: Config) -> datetime:
    """Now, in the zone that hours are meant in."""
    return datetime.now(config.local_zone if config.schedule is None else config.schedule.zone)


def refused_by(found: NoMember) -> Refused:
    """What a client hears where a route has nobody for it."""
    return Refused(found.code, found.message, retry_after_s=found.retry_after_s, param=found.param)


def _closed(model: str) -> Refused:
    return Refused("out_of_schedule", f"cannot serve {model} now: the schedule does not let it run")
