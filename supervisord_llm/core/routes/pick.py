"""Which member of a route serves a request. Pure; the values are in route.py.

The order, inside each route: members that cannot take the request are out; then the first rule that applies
and whose target can take it; then the one that the client or session was with; then the policy. What a policy
prefers, of the members that can:

    least-busy   the fewest requests in hand; of equals the warmest, then the first of the list
    round-robin  each in turn
    warm         one that runs, then one that wakes, sleeps, starts, and last a cold one; of equals the least
                 busy. It never makes another engine give way as long as a member could take the request
    classifier   what the label names, else the fallback, else the least busy

One that failed a moment ago, and waits before it is tried again, is left alone as long as there is another.
One at its `max_concurrent` comes after those that are not. With `spillover`, a member with that many requests
in hand is passed over by rules, stickiness and policy while another has fewer and starts without eviction.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from supervisord_llm.core.routes.obstacles import CONTEXT, SLACK, Obstacle, obstacle, refusal
from supervisord_llm.core.routes.route import (
    Ask,
    Choice,
    NoMember,
    Pick,
    Route,
    Standing,
    Sticky,
    Unlabelled,
)
from supervisord_llm.core.routes.rules import applies
from supervisord_llm.core.state import State

REASON_CHARS = 200

WARMTH: Mapping[State, int] = {
    State.READY: 0,
    State.WAKING: 1,
    State.SLEEPING: 2,
    State.STARTING: 3,
    State.QUEUED: 4,
    State.PREPARING: 5,
    State.BACKOFF: 7,
    State.FAILED: 8,
    State.STUCK: 8,
}
COLD = 6
"""Of all other states."""

_NONE: Mapping[str, int] = MappingProxyType({})
_NOBODY: Mapping[str, str] = MappingProxyType({})


def pick(
    name: str,
    ask: Ask,
    standings: Mapping[str, Standing],
    routes: Mapping[str, Route],
    *,
    turns: Mapping[str, int] = _NONE,
    stuck: Mapping[str, str] = _NOBODY,
    tried: Collection[str] = (),
) -> Pick | NoMember | Unlabelled:
    """What route `name` chooses for the request.

    An estimate alone refuses nothing: a prompt that nobody could hold by it goes to the longest context that
    holds what it has beyond doubt, whose engine counts for itself.

    Args:
        standings: of every model in `models_of(name, routes)`.
        turns: route -> how many requests it has chosen for so far (round-robin counts them).
        stuck: route -> what it chose last for whoever `whose(route, ask)` is.
        tried: models that have failed this request.
    """
    given = _Given(ask, standings, routes, turns, stuck, tried)
    found = _choose(given, routes[name], ())
    is_doubtful = isinstance(found, NoMember) and not ask.is_exact
    if isinstance(found, NoMember) and is_doubtful:
        found = _in_doubt(given, routes[name], found)
    if not isinstance(found, _Found):
        return found
    return Pick(member=found.member, reason=plain(found.why), hops=dict(found.hops), is_doubtful=is_doubtful)


def whose(route: Route, ask: Ask) -> str | None:
    """By what the route remembers its choice: the client's name or the session; None: it remembers none."""
    match route.sticky:
        case Sticky.NONE:
            return None
        case Sticky.CLIENT:
            return ask.client or None
        case Sticky.SESSION:
            return ask.session or None


# --- inside one route -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Given:
    ask: Ask
    standings: Mapping[str, Standing]
    routes: Mapping[str, Route]
    turns: Mapping[str, int]
    stuck: Mapping[str, str]
    tried: Collection[str]


@dataclass(frozen=True, slots=True)
class _Found:
    member: str
    why: str
    hops: tuple[tuple[str, str], ...]


_Outcome = _Found | NoMember | Unlabelled


def _choose(given: _Given, route: Route, line: tuple[str, ...]) -> _Outcome:
    """A member by rule, stickiness or policy; what was passed over on the way is told in the reason.

    `line`: the routes that led here. Each is gone through once; config checks refuse circles.
    """
    able: list[Standing] = []
    obstacles: list[Obstacle] = []
    for member in route.members:
        found = obstacle(member, given.ask, given.standings.get(member), given.tried)
        if isinstance(found, Standing):
            able.append(found)
        else:
            obstacles.append(found)
    able = [one for one in able if one.state is not State.BACKOFF] or able
    passed: dict[str, str] = {}
    for target, why in _wishes(given, route):
        if target is None:
            return Unlabelled(route=route.name)
        if target in passed:
            continue
        wished = _enter(given, route, target, why, able, line)
        if isinstance(wished, _Found):
            return replace(wished, why="; ".join((wished.why, *passed.values())))
        if isinstance(wished, Unlabelled):
            return wished
        passed[target] = f"not {target} ({why.partition(':')[0]}): {wished.short}"
        if wished.name not in route.members:
            obstacles.append(wished)
    if not able:
        return refusal(route.name, given.ask, obstacles)
    member, why = _by_policy(route, able, given.turns.get(route.name, 0))
    return _Found(member, "; ".join((why, *passed.values())), ((route.name, member),))


def _wishes(given: _Given, route: Route) -> Iterator[tuple[str | None, str]]:
    """Targets in the order in which they are wanted before any policy, and why; None: for a label to say."""
    ask = given.ask
    for number, rule in enumerate(route.rules, 1):
        if (why := applies(rule, ask)) is not None:
            yield rule.use, f"rule {number}: {why}"
    if route.sticky is not Sticky.NONE:
        before = given.stuck.get(route.name)
        if before is not None and before in route.own:
            yield before, f"same {route.sticky} as before"
    if route.policy is Choice.CLASSIFIER and route.classifier is not None:
        if route.name not in ask.labels:
            yield None, ""
        label = ask.labels.get(route.name)
        if label is not None and label in route.classifier.labels:
            yield route.classifier.labels[label], f"classifier: {label}"
            yield route.classifier.fallback, "fallback"
        else:
            yield route.classifier.fallback, "fallback: no label from the classifier"


def _in_doubt(given: _Given, route: Route, refused: NoMember) -> _Outcome:
    """The choice where estimates are taken for less than they say, of the longest contexts first.

    Where a prompt fits none of them that is the least that it can be. Where one that holds it cannot take it
    now, others are to be asked only if they are within what an estimate may be wrong by.
    """
    ask, outcome = given.ask, refused
    contexts = {one.context for one in given.standings.values() if one.context is not None}
    for context in sorted(contexts, reverse=True):
        longest = [one.name for one in given.standings.values() if (one.context or 0) >= context]
        tokens = {name: ask.tokens_by.get(name, ask.tokens) for name in longest}
        least = {
            name: ask.least_tokens if refused.code == CONTEXT else int(told / (1 + SLACK))
            for name, told in tokens.items()
        }
        doubted = replace(given, ask=replace(ask, tokens_by={**ask.tokens_by, **least}))
        found = _choose(doubted, route, ())
        if not isinstance(found, NoMember):
            return found
        outcome = found
    return outcome


def _enter(
    given: _Given, route: Route, target: str, why: str, able: Sequence[Standing], line: tuple[str, ...]
) -> _Found | Obstacle | Unlabelled:
    """The model `target`, or what it chooses if it is a route."""
    if target in given.routes:
        line = (*line, route.name)
        if target in line:
            return Obstacle(
                target, "leads back here", f"cannot end: {target} leads back to it", "start_failed"
            )
        inner = _choose(given, given.routes[target], line)
        if isinstance(inner, NoMember):
            return Obstacle(target, "has no member for it", inner.message, inner.code, inner.retry_after_s)
        if isinstance(inner, Unlabelled):
            return inner
        hops = ((route.name, target), *inner.hops)
        return _Found(inner.member, f"{why}, then {target}: {inner.why}", hops)
    found = obstacle(target, given.ask, given.standings.get(target), given.tried)
    if isinstance(found, Obstacle):
        return found
    if found.state is State.BACKOFF and able and found not in able:
        return Obstacle(target, "failed a moment ago", "", "start_failed")
    is_spilled = target in route.members and _is_spilled(route, found)
    if is_spilled and any(not other.evicts and not _is_spilled(route, other) for other in able):
        return Obstacle(target, f"{found.load} in hand", "", "model_busy")
    return _Found(target, why, ((route.name, target),))


# --- policies -----------------------------------------------------------------------------------------


def _by_policy(route: Route, able: Sequence[Standing], turn: int) -> tuple[str, str]:
    """One of `able`, and why."""
    if len(able) == 1:
        return able[0].name, "its only member" if len(route.members) == 1 else "the only one that can take it"
    if route.policy is Choice.ROUND_ROBIN:
        free = [member for member in able if not _is_full(route, member)] or able
        return free[turn % len(free)].name, f"next in turn of {len(free)}"
    if route.policy is Choice.WARM:
        chosen = min(able, key=lambda one: (one.evicts, _is_full(route, one), warmth(one.state), one.load))
        return chosen.name, f"warmest of {len(able)}: {chosen.state}, {chosen.load} in hand"
    chosen = min(able, key=lambda one: (_is_full(route, one), one.load, warmth(one.state)))
    return chosen.name, f"least busy of {len(able)}: {chosen.load} in hand"


def _is_spilled(route: Route, member: Standing) -> bool:
    return route.spillover is not None and member.load >= route.spillover


def _is_full(route: Route, member: Standing) -> bool:
    at_most = member.max_concurrent
    return _is_spilled(route, member) or (at_most is not None and member.load >= at_most)


def warmth(state: State) -> int:
    """How far it is from serving: 0 serves."""
    return WARMTH.get(state, COLD)


def plain(words: str) -> str:
    """Printable ASCII, fit for a header. Names and labels come from the configuration, which may hold any."""
    found = "".join(char if " " <= char <= "~" else "?" for char in words)
    return found if len(found) <= REASON_CHARS else found[: REASON_CHARS - 3] + "..."
