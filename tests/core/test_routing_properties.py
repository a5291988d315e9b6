"""What holds of every route, however it is made and whatever is asked of it; and how long a choice takes."""

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from datetime import time as clock
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import event, given, settings
from hypothesis import strategies as st

from supervisord_llm.core.calendar import Hours
from supervisord_llm.core.routes.obstacles import SLACK, needed
from supervisord_llm.core.routes.pick import REASON_CHARS, pick
from supervisord_llm.core.routes.reach import models_of, routes_of
from supervisord_llm.core.routes.route import (
    Ask,
    Choice,
    Classifier,
    NoMember,
    Pick,
    Route,
    Rule,
    Standing,
    Sticky,
    Unlabelled,
)
from supervisord_llm.core.state import State

MODELS, ROUTES = ("a", "b", "c", "d"), ("r", "s", "t")
ZONE = ZoneInfo("Europe/Berlin")

standings = st.fixed_dictionaries({
    name: st.builds(
        Standing,
        name=st.just(name),
        state=st.sampled_from(State),
        load=st.integers(0, 6),
        max_concurrent=st.none() | st.integers(1, 4),
        context=st.none() | st.sampled_from([10, 100, 1000]),
        evicts=st.booleans(),
        unable=st.sampled_from(["", "", "", "cannot start it: it failed"]),
        retry_after_s=st.none() | st.floats(0, 60),
    )
    for name in MODELS
})  # fmt: skip
targets = st.sampled_from(MODELS + ROUTES)
rules = st.builds(
    Rule,
    use=targets,
    tokens_over=st.none() | st.sampled_from([1, 50, 500]),
    clients=st.sampled_from([(), ("web",), ("n8n-*", "x")]),
    headers=st.sampled_from([{}, {"x-team": "*"}]),
    tools=st.none() | st.booleans(),
    hours=st.none() | st.just(Hours(start=clock(22), end=clock(6))),
)
classifiers = st.builds(
    Classifier,
    model=st.just("a"),
    labels=st.dictionaries(st.sampled_from(["easy", "hard"]), targets, min_size=1),
    fallback=targets,
)


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Route]:
    """Routes that may lead anywhere, also in circles."""

    def route(name: str) -> Route:
        policy = draw(st.sampled_from(Choice))
        return Route(
            name=name,
            members=tuple(draw(st.lists(st.sampled_from(MODELS), min_size=1, unique=True))),
            rules=tuple(draw(st.lists(rules, max_size=4))),
            policy=policy,
            sticky=draw(st.sampled_from(Sticky)),
            spillover=draw(st.none() | st.integers(1, 3)),
            classifier=draw(classifiers) if policy is Choice.CLASSIFIER else None,
        )

    return {name: route(name) for name in ROUTES}


ANY_ASK = st.builds(
    Ask,
    tokens=st.sampled_from([0, 9, 11, 60, 110, 900, 1100, 5000]),
    tokens_by=st.dictionaries(st.sampled_from(MODELS), st.sampled_from([9, 60, 900, 5000])),
    least_tokens=st.sampled_from([0, 8, 90, 1001]),
    is_exact=st.booleans(),
    answer_tokens=st.sampled_from([0, 50]),
    client=st.sampled_from(["web", "n8n-1", "é\r\n"]),
    headers=st.sampled_from([{}, {"x-team": "s3cret"}]),
    tools=st.booleans(),
    session=st.sampled_from(["", "s"]),
    local=st.none() | st.just(datetime(2026, 11, 23, 3, tzinfo=ZONE)),
    labels=st.dictionaries(st.sampled_from(ROUTES), st.sampled_from(["easy", "hard", "odd", None])),
)
asks = ANY_ASK.map(
    lambda ask: replace(ask, least_tokens=min(ask.least_tokens, ask.tokens, *ask.tokens_by.values()))
)
memories = st.fixed_dictionaries({
    "turns": st.dictionaries(st.sampled_from(ROUTES), st.integers(0, 9)),
    "stuck": st.dictionaries(st.sampled_from(ROUTES), targets),
    "tried": st.lists(st.sampled_from(MODELS), unique=True).map(tuple),
})  # fmt: skip


def answered(ask: Ask, *args: Any, **memory: Any) -> Pick | NoMember:
    """With every classifier silent that is still to be asked. Each is asked once."""
    for _ in range(len(ROUTES) + 1):
        found = pick("r", ask, *args, **memory)
        if not isinstance(found, Unlabelled):
            return found
        assert found.route not in ask.labels
        ask = Ask(**{**_fields(ask), "labels": {**ask.labels, found.route: None}})
    raise AssertionError("a classifier is asked again and again")


def _fields(ask: Ask) -> Mapping[str, Any]:
    return {name: getattr(ask, name) for name in Ask.__slots__}


@settings(max_examples=500, deadline=None)
@given(ask=asks, standings=standings, routes=networks(), memory=memories)
def test_every_request_gets_one_model_that_can_take_it_or_one_error(
    ask: Ask, standings: dict[str, Standing], routes: dict[str, Route], memory: dict[str, Any]
) -> None:
    found = answered(ask, standings, routes, **memory)
    assert found == answered(ask, standings, routes, **memory), "the same again"
    if isinstance(found, NoMember):
        event(found.code)
        assert found.message.startswith("cannot ")
        assert found.code != "context_length_exceeded" or found.param == "messages"
        own = [standings[member] for member in routes["r"].members]
        assert not any(_holds(one, ask, memory["tried"]) for one in own), "a member could have taken it"
        if found.code == "context_length_exceeded" and not ask.is_exact:
            least = min(ask.least_tokens, *(needed(ask, one.name) for one in own)) + ask.answer_tokens
            assert all(one.context is not None and least > one.context for one in own), "an estimate refused"
        return
    event("picked")
    chosen = standings[found.member]
    assert not chosen.unable
    assert found.member not in memory["tried"]
    if chosen.context is not None and needed(ask, chosen.name) > chosen.context:
        assert not ask.is_exact
        assert found.is_doubtful
        at_least = min(ask.least_tokens, (needed(ask, chosen.name) - ask.answer_tokens) / (1 + SLACK))
        assert int(at_least) + ask.answer_tokens <= chosen.context
    assert found.member in models_of("r", routes)
    assert next(iter(found.hops)) == "r"
    assert [*found.hops.values()][-1] == found.member
    assert found.hops.keys() <= set(routes_of("r", routes))
    assert 0 < len(found.reason) <= REASON_CHARS
    assert found.reason.isascii()
    assert found.reason.isprintable()
    assert "s3cret" not in found.reason


def _holds(one: Standing, ask: Ask, tried: tuple[str, ...]) -> bool:
    fits = one.context is None or needed(ask, one.name) <= one.context
    return fits and not one.unable and one.name not in tried


simple = st.builds(
    Route,
    name=st.just("r"),
    members=st.lists(st.sampled_from(MODELS), min_size=1, unique=True).map(tuple),
    sticky=st.just(Sticky.SESSION),
    spillover=st.none() | st.integers(1, 3),
    policy=st.sampled_from([Choice.LEAST_BUSY, Choice.ROUND_ROBIN, Choice.WARM]),
)


@settings(deadline=None)
@given(ask=asks, standings=standings, route=simple, before=st.sampled_from(MODELS))
def test_a_session_stays_while_its_member_can_take_it(
    ask: Ask, standings: dict[str, Standing], route: Route, before: str
) -> None:
    found = pick("r", ask, standings, {"r": route}, stuck={"r": before})
    if before not in route.members or not _holds(standings[before], ask, ()):
        return
    event("it can")
    assert isinstance(found, Pick)
    if found.member != before:
        others = [standings[member] for member in route.members if member != before]
        if standings[before].state is State.BACKOFF:
            assert any(_holds(one, ask, ()) and one.state is not State.BACKOFF for one in others)
            return
        assert route.spillover is not None
        assert standings[before].load >= route.spillover
        assert any(_holds(one, ask, ()) and one.load < route.spillover for one in others)


def _free(one: Standing, route: Route) -> bool:
    limits = [limit for limit in (one.max_concurrent, route.spillover) if limit is not None]
    return all(one.load < limit for limit in limits)


@settings(deadline=None)
@given(ask=asks, standings=standings, route=simple)
def test_what_the_policies_prefer(ask: Ask, standings: dict[str, Standing], route: Route) -> None:
    found = pick("r", ask, standings, {"r": route})
    if not isinstance(found, Pick) or found.is_doubtful:
        return
    chosen = standings[found.member]
    could = [one for name in route.members if _holds(one := standings[name], ask, ())]
    could = [one for one in could if one.state is not State.BACKOFF] or could
    free = [one for one in could if _free(one, route)]
    event(route.policy)
    if route.policy is Choice.LEAST_BUSY:
        assert chosen.load == min(one.load for one in free or could)
    if route.policy is Choice.WARM:
        assert not chosen.evicts or all(one.evicts for one in could)
        running = [one for one in free if one.state is State.READY and not one.evicts]
        assert not running or chosen.state is State.READY
    if route.policy is Choice.ROUND_ROBIN:
        turns = range(len(free or could))
        members = {_member(pick("r", ask, standings, {"r": route}, turns={"r": turn})) for turn in turns}
        assert members == {one.name for one in free or could}, "each has its turn"


def _member(found: object) -> str:
    assert isinstance(found, Pick)
    return found.member


# --- speed --------------------------------------------------------------------------------------------

TIMES, LIMIT_S = 500, 0.0005
"""About ten times what it takes on one core of a server CPU of 2021."""


def test_a_choice_among_eight_members_by_twenty_rules_is_a_matter_of_microseconds(
    capsys: Any,
) -> None:
    members = tuple(f"model_{number}" for number in range(8))
    later = Hours(start=clock(22), end=clock(6))
    rules = [
        *(Rule(use=members[0], tokens_over=1000 * number, tools=True) for number in range(1, 6)),
        *(Rule(use=members[1], clients=(f"batch-{number}-*",)) for number in range(5)),
        *(Rule(use=members[2], headers={"x-team": f"team-{number}*"}) for number in range(5)),
        *(Rule(use=members[3], endpoints=("audio/*",), images=True) for _ in range(4)),
        Rule(use=members[4], hours=later),
    ]
    route = Route(name="r", members=members, rules=tuple(rules), sticky=Sticky.SESSION, spillover=4)
    stands = {name: Standing(name=name, load=at % 3, context=32768) for at, name in enumerate(members)}
    noon = datetime(2026, 11, 23, 12, tzinfo=ZONE)
    ask = Ask(tokens=5000, client="web", headers={"x-team": "other"}, endpoint="chat/completions", local=noon)
    routes = {"r": route}
    best = timedelta.max.total_seconds()
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(TIMES):
            pick("r", ask, stands, routes)
        best = min(best, (time.perf_counter() - began) / TIMES)
    with capsys.disabled():
        print(f" {best * 1e6:.0f} us", end="")
    assert best < LIMIT_S
