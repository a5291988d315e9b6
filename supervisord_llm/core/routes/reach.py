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


def limit_nearby(
    name: str, ask: Ask, standings: Mapping[str, Standing], routes: Mapping[str, Route]
) -> int | None:
    """The limit of a rule, or a member's context, that the estimate is too close to: an exact count decides.

    None: there is none such, or the count is exact.
    """
    if ask.is_exact:
        return None
    near = [
        rule.tokens_over
        for each in routes_of(name, routes)
        for rule in routes[each].rules
        if rule.tokens_over is not None and _is_near(ask.tokens, rule.tokens_over)
    ]
    contexts = (standings[model].context for model in models_of(name, routes) if model in standings)
    near += [context for context in contexts if context is not None and _is_near(needed(ask), context)]
    return min(near, key=lambda limit: abs(limit - ask.tokens), default=None)


def _is_near(tokens: int, limit: int) -> bool:
    return abs(tokens - limit) <= SLACK * limit
