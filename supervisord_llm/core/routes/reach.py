"""Where a route may lead to, and at which numbers of tokens its choice turns."""

from collections.abc import Mapping

from supervisord_llm.core.routes.obstacles import SLACK, needed
from supervisord_llm.core.routes.route import Ask, Route, Standing


def routes_of(name: str, routes: Mapping[str, Route]) -> tuple[str, ...]:
    """The route and those that it may lead through, nearest first."""
    found = [name]
    for each in found:
        found.extend(target for target in routes[each].targets if target in routes and target not in found)
    return tuple(found)


def models_of(name: str, routes: Mapping[str, Route]) -> tuple[str, ...]:
    """Every model that a route may lead to, its own members first."""
    through = routes_of(name, routes)
    targets = (target for each in through for target in routes[each].targets)
    return tuple(dict.fromkeys(target for target in targets if target not in routes))


def is_near_limit(
    name: str, ask: Ask, standings: Mapping[str, Standing], routes: Mapping[str, Route]
) -> bool:
    """Whether the estimate is so close to the limit of a rule, or a context, that only a count can decide."""
    if ask.is_exact:
        return False
    rules = (rule for each in routes_of(name, routes) for rule in routes[each].rules)
    if any(rule.tokens_over is not None and _is_near(ask.tokens, rule.tokens_over) for rule in rules):
        return True
    found = (standings[model] for model in models_of(name, routes) if model in standings)
    return any(one.context is not None and _is_near(needed(ask, one.name), one.context) for one in found)


def _is_near(tokens: int, limit: int) -> bool:
    return abs(tokens - limit) <= SLACK * limit
