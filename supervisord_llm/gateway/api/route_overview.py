"""The close look at routes, for admins: their part of /admin/status, and /admin/explain."""

import asyncio
from dataclasses import asdict
from typing import Any

from supervisord_llm.core.calendar import Hours
from supervisord_llm.core.explain import count
from supervisord_llm.core.routes.reach import models_of
from supervisord_llm.core.routes.route import Choice, Pick, Route, Rule, Standing, Sticky
from supervisord_llm.gateway.api.orders import outcome
from supervisord_llm.gateway.api.overview import DECISIONS, REMEMBERED, entry_as_json
from supervisord_llm.gateway.api.status import state_of
from supervisord_llm.gateway.choosing.search import Engines, stand
from supervisord_llm.gateway.settings import Settings


def routes(settings: Settings, engines: Engines) -> dict[str, Any]:
    """Of GET /admin/status: every route, what its members are at, and how often it chose them."""
    return {
        name: {
            "state": state_of(settings, engines.runtime.fleet, name).value,
            "policy": route.policy.value,
            "members": list(route.members),
            **_counts(settings, engines, name),
        }
        for name, route in settings.config.routes.items()
    }


def explanation(settings: Settings, engines: Engines, name: str) -> dict[str, Any]:
    """GET /admin/explain/{route}: what it would choose now and why, and what is to be said of each member."""
    route, now = settings.config.routes[name], asyncio.get_running_loop().time()
    models = models_of(name, settings.config.routes)
    standings = stand(settings, engines, models, now, evictions=True)
    entries = engines.runtime.events.recent(REMEMBERED)
    return {
        "route": name,
        "state": state_of(settings, engines.runtime.fleet, name).value,
        "summary": _summary(route),
        "outlook": _outlook(settings, engines, route),
        "rules": [_rule(rule) for rule in route.rules],
        "members": {model: _standing(one) for model, one in standings.items()},
        **_counts(settings, engines, name),
        "decisions": [entry_as_json(entry) for entry in entries if entry.model in models][-DECISIONS:],
    }


def _counts(settings: Settings, engines: Engines, name: str) -> dict[str, dict[str, int]]:
    """Of what it leads to now: a reload may have taken models from it."""
    there = models_of(name, settings.config.routes)
    counts = engines.recorder.stats.of_route(name)
    return {what: {each: n for each, n in of.items() if each in there} for what, of in counts.items()}


def _summary(route: Route) -> str:
    rules = f"{count(len(route.rules), 'rule')}, then " if route.rules else ""
    sticky = "" if route.sticky is Sticky.NONE else f"whom the {route.sticky} was with, then "
    spills = "" if route.spillover is None else f", spilling over at {route.spillover} requests"
    return f"{route.name} chooses among {', '.join(route.members)}: {rules}{sticky}{route.policy}{spills}"


def _outlook(settings: Settings, engines: Engines, route: Route) -> str:
    found = outcome(settings, engines, route.name)
    unless = " unless a rule or its label says otherwise" if route.policy is Choice.CLASSIFIER else ""
    if isinstance(found, Pick):
        return f"a request would go to {found.member}{unless}: {found.reason}"
    return f"a request would be refused: {found.message}"


def _rule(rule: Rule) -> dict[str, Any]:
    """As it is written, without what it does not name."""
    told = asdict(rule) | {"hours": _hours(rule.hours) if rule.hours else None}
    return {name: value for name, value in told.items() if value not in (None, (), {})}


def _hours(hours: Hours) -> dict[str, Any]:
    return {"from": f"{hours.start:%H:%M}", "to": f"{hours.end:%H:%M}", "days": sorted(hours.days)}


def _standing(one: Standing) -> dict[str, Any]:
    return {
        "state": one.state.value,
        "requests": one.load,
        "max_concurrent": one.max_concurrent,
        "context": one.context,
        "evicts": one.evicts,
        "unable": one.unable,
    }
