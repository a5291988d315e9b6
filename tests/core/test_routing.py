"""Which member a route picks, and what it says of it: one table for each part of the order."""

from dataclasses import replace
from datetime import datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from supervisord_llm.core.calendar import Hours
from supervisord_llm.core.routes.pick import REASON_CHARS, pick, whose
from supervisord_llm.core.routes.reach import is_near_limit, models_of, routes_of
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

STOPPED, READY, SLEEPING, STARTING = State.STOPPED, State.READY, State.SLEEPING, State.STARTING


def route(*members: str, name: str = "r", **settings: Any) -> Route:
    return Route(name=name, members=members or ("a", "b", "c"), **settings)


def stands(**models: Any) -> dict[str, Standing]:
    """name = load, or a table of what differs from a ready model without requests."""
    return {
        name: Standing(name=name, **(told if isinstance(told, dict) else {"load": told}))
        for name, told in models.items()
    }


def picked(asked: Route, ask: Ask, standings: dict[str, Standing], *others: Route, **memory: Any) -> str:
    """The member's name, or the code of the refusal, and the reason or the message."""
    routes = {each.name: each for each in (asked, *others)}
    found = pick(asked.name, ask, standings, routes, **memory)
    match found:
        case Pick():
            return f"{found.member}: {found.reason}"
        case NoMember():
            return f"{found.code}: {found.message}"
        case Unlabelled():
            return f"ask {found.route}"


# --- rules ------------------------------------------------------------------------------------

MONDAY_NIGHT = datetime(2026, 11, 23, 3, tzinfo=ZoneInfo("Europe/Berlin"))
NIGHT = Hours(start=time(22), end=time(6), days=frozenset({6}))

APPLIES = {
    "more tokens": (Rule(use="b", tokens_over=10), Ask(tokens=11), "about 11 tokens, over 10"),
    "counted tokens": (Rule(use="b", tokens_over=10), Ask(tokens=11, is_exact=True), "11 tokens, over 10"),
    "a client": (Rule(use="b", clients=("n8n-*", "web")), Ask(client="n8n-1"), "client n8n-1"),
    "a header": (Rule(use="b", headers={"x-t": "*"}), Ask(headers={"x-t": "s3cret"}), "header x-t"),
    "a value": (Rule(use="b", headers={"x-t": "s*"}), Ask(headers={"x-t": "s3cret"}), "header x-t"),
    "an endpoint": (Rule(use="b", endpoints=("chat/*",)), Ask(endpoint="chat/x"), "endpoint chat/*"),
    "tools": (Rule(use="b", tools=True), Ask(tools=True), "tools"),
    "no tools": (Rule(use="b", tools=False), Ask(), "no tools"),
    "images": (Rule(use="b", images=True), Ask(images=True), "images"),
    "no images": (Rule(use="b", images=False), Ask(), "no images"),
    "hours": (Rule(use="b", hours=NIGHT), Ask(local=MONDAY_NIGHT), "from 22:00 to 06:00 Sun"),
    "all it names": (Rule(use="b", tools=True, images=True), Ask(tools=True, images=True), "tools, images"),
}


@pytest.mark.parametrize(("rule", "ask", "why"), APPLIES.values(), ids=APPLIES)
def test_a_rule_that_applies_decides(rule: Rule, ask: Ask, why: str) -> None:
    assert picked(route(rules=(rule,)), ask, stands(a=0, b=9, c=0)) == f"b: rule 1: {why}"


REST = {
    "as many tokens": (Rule(use="b", tokens_over=10), Ask(tokens=10)),
    "another client": (Rule(use="b", clients=("n8n-*",)), Ask(client="web")),
    "no header": (Rule(use="b", headers={"x-t": "*"}), Ask()),
    "another value": (Rule(use="b", headers={"x-t": "s*"}), Ask(headers={"x-t": "t"})),
    "one header of two": (Rule(use="b", headers={"x-t": "*", "x-u": "*"}), Ask(headers={"x-t": "t"})),
    "another endpoint": (Rule(use="b", endpoints=("chat/*",)), Ask(endpoint="embeddings")),
    "no tools": (Rule(use="b", tools=True), Ask()),
    "tools": (Rule(use="b", tools=False), Ask(tools=True)),
    "no images": (Rule(use="b", images=True), Ask()),
    "other hours": (Rule(use="b", hours=NIGHT), Ask(local=MONDAY_NIGHT.replace(hour=7))),
    "no clock": (Rule(use="b", hours=NIGHT), Ask()),
    "one of two": (Rule(use="b", tools=True, images=True), Ask(tools=True)),
}


@pytest.mark.parametrize(("rule", "ask"), REST.values(), ids=REST)
def test_a_rule_that_does_not_apply_is_left_out(rule: Rule, ask: Ask) -> None:
    assert picked(route(rules=(rule,)), ask, stands(a=0, b=0, c=0)) == "a: least busy of 3: 0 in hand"


RULES = (Rule(use="a", tools=True), Rule(use="b", tools=True), Rule(use="x", images=True))


def test_the_first_rule_counts_and_one_whose_target_cannot_take_it_falls_through() -> None:
    ask = Ask(tools=True, images=True, tokens=50)
    asked = route(rules=RULES, spillover=2)
    assert picked(asked, ask, stands(a=1, b=0, c=0, x=0)) == "a: rule 1: tools"
    short = {"context": 40}
    assert picked(asked, ask, stands(a=short, b=0, c=0, x=0)) == (
        "b: rule 2: tools; not a (rule 1): holds 40 tokens"
    )
    found = picked(asked, ask, stands(a={"unable": "cannot run"}, b=2, c=0, x=7))
    assert (
        found
        == "x: rule 3: images; not a (rule 1): cannot take it now (start_failed); not b (rule 2): 2 in hand"
    )
    found = picked(asked, ask, stands(a=0, b=0, c=0, x=0), tried=("a", "b", "x"))
    assert found.startswith("c: the only one that can take it; not a (rule 1): has just failed; not b")
    twice = route("a", "b", rules=(Rule(use="a", tools=True), Rule(use="a", images=True)))
    found = picked(twice, ask, stands(a=short, b=0))
    assert found == "b: the only one that can take it; not a (rule 1): holds 40 tokens"


def test_a_target_need_not_be_a_member() -> None:
    assert picked(route(rules=RULES), Ask(images=True), stands(a=0, b=0, c=0, x=5)) == "x: rule 3: images"


# --- policies -----------------------------------------------------------------------------------

COLD, ASLEEP, COMING = {"state": STOPPED}, {"state": SLEEPING}, {"state": STARTING}
POLICIES: dict[str, tuple[Choice, dict[str, Standing], str]] = {
    "the least busy": (Choice.LEAST_BUSY, stands(a=2, b=1, c=3), "b: least busy of 3: 1 in hand"),
    "of equals the first": (Choice.LEAST_BUSY, stands(a=2, b=1, c=1), "b: least busy of 3: 1 in hand"),
    "of equals the warm": (Choice.LEAST_BUSY, stands(a=COLD, b=ASLEEP, c=0), "c: least busy of 3: 0 in hand"),
    "a cold before a busier": (Choice.LEAST_BUSY, stands(a=1, b=COLD, c=1), "b: least busy of 3: 0 in hand"),
    "not one at its limit": (
        Choice.LEAST_BUSY,
        stands(a={"load": 1, "max_concurrent": 1}, b=2, c=3),
        "b: least busy of 3: 2 in hand",
    ),
    "a warm one": (Choice.WARM, stands(a=COLD, b=5, c=ASLEEP), "b: warmest of 3: ready, 5 in hand"),
    "the less busy of two": (Choice.WARM, stands(a=6, b=5, c=COLD), "b: warmest of 3: ready, 5 in hand"),
    "one asleep": (Choice.WARM, stands(a=COLD, b=COMING, c=ASLEEP), "c: warmest of 3: sleeping, 0 in hand"),
    "one on its way": (Choice.WARM, stands(a=COLD, b=COMING, c=COLD), "b: warmest of 3: starting, 0 in hand"),
    "a cold one before one at its limit": (
        Choice.WARM,
        stands(a={"load": 1, "max_concurrent": 1}, b=COLD, c=COLD),
        "b: warmest of 3: stopped, 0 in hand",
    ),
    "one at its limit before one that evicts": (
        Choice.WARM,
        stands(a={"load": 1, "max_concurrent": 1}, b=COLD | {"evicts": True}, c=ASLEEP | {"evicts": True}),
        "a: warmest of 3: ready, 1 in hand",
    ),
    "one that evicts rather than none": (
        Choice.WARM,
        stands(a={"unable": "cannot"}, b=COLD | {"evicts": True}, c=ASLEEP | {"evicts": True}),
        "c: warmest of 2: sleeping, 0 in hand",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("policy", "standings", "expected"), POLICIES.values(), ids=POLICIES)
def test_a_policy(policy: Choice, standings: dict[str, Standing], expected: str) -> None:
    assert picked(route(policy=policy), Ask(), standings) == expected


def test_round_robin_takes_each_in_turn_of_those_that_can() -> None:
    asked = route(policy=Choice.ROUND_ROBIN)
    all_three = [picked(asked, Ask(), stands(a=9, b=0, c=0), turns={"r": turn})[0] for turn in range(6)]
    assert "".join(all_three) == "abcabc"
    full = {"load": 1, "max_concurrent": 1}
    two = [picked(asked, Ask(), stands(a=0, b=full, c=0), turns={"r": turn})[0] for turn in range(4)]
    assert "".join(two) == "acac"
    none = [picked(asked, Ask(), stands(a=full, b=full, c=full), turns={"r": turn})[0] for turn in range(3)]
    assert "".join(none) == "abc"


@pytest.mark.parametrize("policy", [Choice.LEAST_BUSY, Choice.ROUND_ROBIN, Choice.WARM])
@pytest.mark.parametrize("other", [{"load": 9}, {"state": STOPPED}, {"state": STOPPED, "evicts": True}])
def test_one_that_failed_a_moment_ago_is_left_alone_while_there_is_another(
    policy: Choice, other: dict[str, Any]
) -> None:
    failed = {"state": State.BACKOFF}
    by_rule = {"policy": policy, "rules": (Rule(use="a", tools=True),)}
    ways: list[dict[str, Any]] = [{"policy": policy}, by_rule]
    for way in ways:
        asked = route("a", "b", sticky=Sticky.SESSION, **way)
        memory = {"stuck": {"r": "a"}}
        found = picked(asked, Ask(tools=True, session="s"), stands(a=failed, b=other), **memory)
        assert found.startswith("b: ")
        assert "failed a moment ago" in found
        alone = picked(asked, Ask(tools=True, session="s"), stands(a=failed, b=failed), **memory)
        assert alone.startswith("a: ")


def test_the_only_one_is_told_as_such() -> None:
    assert picked(route("a"), Ask(), stands(a=7)) == "a: its only member"
    assert picked(route("a", "b"), Ask(), stands(a=7)) == "a: the only one that can take it"


# --- spillover ----------------------------------------------------------------------------------

SPILLS = {
    "below": (stands(a=1, b=0, c=0), "a"),
    "at the number": (stands(a=2, b=1, c=1), "b"),
    "where nobody has fewer": (stands(a=3, b=2, c=2), "a"),
    "to a cold one": (stands(a=2, b=COLD, c=2), "b"),
    "never by eviction": (stands(a=2, b=COLD | {"evicts": True}, c=2), "a"),
    "never to one that cannot": (stands(a=2, b={"unable": "cannot"}, c=2), "a"),
}
WARM = {"policy": Choice.WARM}
BY_RULE: dict[str, Any] = {"rules": (Rule(use="a", tools=False),)}
BY_SESSION: dict[str, Any] = {"sticky": Sticky.SESSION}


@pytest.mark.parametrize("way", [BY_RULE, BY_SESSION], ids=["rule", "session"])
@pytest.mark.parametrize(("standings", "member"), SPILLS.values(), ids=SPILLS)
def test_spillover(standings: dict[str, Standing], member: str, way: dict[str, Any]) -> None:
    found = picked(route(spillover=2, **way), Ask(session="s"), standings, stuck={"r": "a"})
    assert found[0] == member


def test_without_spillover_a_rule_holds_whatever_the_load() -> None:
    assert picked(route(**BY_RULE), Ask(), stands(a=900, b=0, c=0)).startswith("a")


def test_warm_spills_to_a_cold_member_and_never_by_eviction() -> None:
    asked = route(spillover=2, **WARM)
    assert picked(asked, Ask(), stands(a=1, b=COLD, c=COLD)).startswith("a")
    assert picked(asked, Ask(), stands(a=2, b=COLD, c=COLD)).startswith("b")
    assert picked(asked, Ask(), stands(a=2, b=COLD | {"evicts": True}, c=2)).startswith("a")


# --- stickiness ---------------------------------------------------------------------------------


def test_a_session_stays_where_it_was_while_that_can_take_it() -> None:
    asked, ask = route(sticky=Sticky.SESSION), Ask(session="s", tokens=9)
    assert picked(asked, ask, stands(a=0, b=5, c=0), stuck={"r": "b"}) == "b: same session as before"
    found = picked(asked, ask, stands(a=0, b={"context": 8}, c=0), stuck={"r": "b"})
    assert found == "a: least busy of 2: 0 in hand; not b (same session as before): holds 8 tokens"
    assert picked(asked, ask, stands(a=0, b=0, c=0), stuck={"r": "gone"})[0] == "a"
    assert picked(route(), ask, stands(a=0, b=5, c=0), stuck={"r": "b"})[0] == "a"


def test_a_rule_comes_before_it_and_its_target_is_no_place_to_stay() -> None:
    """A route's member by another name may be closed, or dear: only the rule leads there."""
    asked = route(sticky=Sticky.SESSION, rules=(Rule(use="x", images=True),))
    everything = stands(a=0, b=0, c=0, x=0)
    assert picked(asked, Ask(images=True), everything, stuck={"r": "b"}) == "x: rule 1: images"
    assert picked(asked, Ask(), everything, stuck={"r": "x"}) == "a: least busy of 3: 0 in hand"


def test_whose_request_it_is() -> None:
    ask = Ask(client="web", session="s")
    assert whose(route(), ask) is None
    assert whose(route(sticky=Sticky.CLIENT), ask) == "web"
    assert whose(route(sticky=Sticky.SESSION), ask) == "s"
    assert whose(route(sticky=Sticky.SESSION), Ask(client="web")) is None


# --- a classifier ---------------------------------------------------------------------------------

JUDGE = Classifier(model="j", labels={"easy": "a", "hard": "x"}, fallback="b")
JUDGED = route("a", "b", policy=Choice.CLASSIFIER, classifier=JUDGE)
LABELLED = {
    "not asked yet": (Ask(), {}, "ask r"),
    "a member": (Ask(labels={"r": "easy"}), {}, "a: classifier: easy"),
    "another model": (Ask(labels={"r": "hard"}), {}, "x: classifier: hard"),
    "no answer": (Ask(labels={"r": None}), {}, "b: fallback: no label from the classifier"),
    "an unknown label": (Ask(labels={"r": "odd"}), {}, "b: fallback: no label from the classifier"),
    "its target cannot": (
        Ask(labels={"r": "hard"}),
        {"tried": ("x",)},
        "b: fallback; not x (classifier): has just failed",
    ),
    "nor can the fallback": (
        Ask(labels={"r": "hard"}),
        {"tried": ("x", "b")},
        ("a: the only one that can take it; not x (classifier): has just failed; "
         "not b (fallback): has just failed"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("ask", "memory", "expected"), LABELLED.values(), ids=LABELLED)
def test_a_classifier(ask: Ask, memory: dict[str, Any], expected: str) -> None:
    assert picked(JUDGED, ask, stands(a=0, b=0, x=0), **memory) == expected


def test_a_classifier_is_asked_only_where_its_word_counts() -> None:
    ruled = replace(JUDGED, rules=(Rule(use="b", tools=True),), sticky=Sticky.SESSION)
    standings = stands(a=0, b=0, x=0)
    assert picked(ruled, Ask(tools=True), standings) == "b: rule 1: tools"
    assert picked(ruled, Ask(), standings, stuck={"r": "x"}) == "x: same session as before"
    assert picked(ruled, Ask(), standings) == "ask r"


# --- routes within routes -------------------------------------------------------------------------

OUTER = route("a", name="outer", rules=(Rule(use="inner", tools=True),))
INNER = route("b", "c", name="inner", sticky=Sticky.SESSION)


def test_a_rule_may_lead_to_another_route() -> None:
    standings = stands(a=0, b=1, c=0)
    found = pick("outer", Ask(tools=True), standings, {"outer": OUTER, "inner": INNER})
    assert isinstance(found, Pick)
    assert (found.member, found.reason) == ("c", "rule 1: tools, then inner: least busy of 2: 0 in hand")
    assert list(found.hops.items()) == [("outer", "inner"), ("inner", "c")]
    stuck = picked(OUTER, Ask(tools=True, session="s"), standings, INNER, stuck={"inner": "b"})
    assert stuck == "b: rule 1: tools, then inner: same session as before"
    none = picked(OUTER, Ask(tools=True), standings, INNER, tried=("b", "c"))
    assert none == "a: its only member; not inner (rule 1): has no member for it"


def test_a_classifier_of_an_inner_route_is_asked_in_its_turn() -> None:
    inner = replace(JUDGED, name="inner")
    assert picked(OUTER, Ask(tools=True), stands(a=0, b=0, x=0), inner) == "ask inner"
    found = picked(OUTER, Ask(tools=True, labels={"inner": "hard"}), stands(a=0, b=0, x=0), inner)
    assert found == "x: rule 1: tools, then inner: classifier: hard"


def test_a_circle_ends() -> None:
    back = replace(INNER, rules=(Rule(use="outer", tools=True),))
    found = picked(OUTER, Ask(tools=True), stands(a=0, b=0, c=0), back)
    assert found == (
        "b: rule 1: tools, then inner: least busy of 2: 0 in hand; not outer (rule 1): leads back here"
    )


def test_what_a_route_leads_to() -> None:
    routes = {"outer": OUTER, "inner": replace(JUDGED, name="inner", rules=(Rule(use="outer", tools=True),))}
    assert routes_of("outer", routes) == ("outer", "inner")
    assert models_of("outer", routes) == ("a", "b", "x")
    assert routes_of("inner", routes) == ("inner", "outer")


# --- contexts ---------------------------------------------------------------------------------------

LONG, SHORT = {"context": 8000, "load": 5}, {"context": 1000}
HOLDS = {
    "any": (Ask(tokens=900), "b"),
    "the answer counts": (Ask(tokens=900, answer_tokens=200), "a"),
    "the long one": (Ask(tokens=7000), "a"),
    "an estimate just above": (Ask(tokens=9000), "a"),
    "an estimate far above": (Ask(tokens=90_000, least_tokens=8000), "a"),
    "where it is least": (Ask(tokens=900, tokens_by={"a": 900, "b": 1001}), "a"),
}


@pytest.mark.parametrize(("ask", "member"), HOLDS.values(), ids=HOLDS)
def test_a_prompt_goes_where_it_fits(ask: Ask, member: str) -> None:
    assert picked(route("a", "b"), ask, stands(a=LONG, b=SHORT))[0] == member


def test_an_estimate_just_above_goes_to_the_longest_of_those_that_can() -> None:
    asked, ask = route("a", "b", "c"), Ask(tokens=1100)
    assert picked(asked, ask, stands(a=LONG, b=SHORT, c={"context": 999}), tried=("a",))[0] == "b"
    gone = LONG | {"unable": "cannot start a"}
    assert picked(asked, ask, stands(a=gone, b=SHORT, c={"context": 999}))[0] == "b"
    assert picked(asked, replace(ask, is_exact=True), stands(a=gone, b=SHORT, c=SHORT)).startswith("start_fa")
    labelled = Ask(tokens=1100, least_tokens=200, labels={"r": "easy"})
    least, most = {"context": 100}, {"context": 1000}
    assert "has about 1100 tokens" in picked(JUDGED, labelled, stands(a=least, b=least, x=most))


def test_an_estimate_alone_refuses_nothing() -> None:
    asked, far = route("a", "b"), Ask(tokens=90_000, least_tokens=5000, answer_tokens=100)
    standings = stands(a=LONG, b=SHORT)
    found = pick("r", far, standings, {"r": asked})
    assert isinstance(found, Pick)
    assert (found.member, found.is_doubtful) == ("a", True)
    near = pick("r", Ask(tokens=900), standings, {"r": asked})
    assert isinstance(near, Pick)
    assert not near.is_doubtful
    for certain in ({"is_exact": True}, {"least_tokens": 7901}, {"answer_tokens": 3001}):
        assert picked(asked, replace(far, **certain), standings).startswith("context_length_exceeded")
    gone = stands(a=LONG | {"unable": "cannot start a"}, b=SHORT)
    assert picked(asked, far, gone).startswith("start_failed: cannot serve r: cannot start a")
    holds = replace(far, tokens=7000)
    assert picked(asked, holds, gone).startswith("start_failed"), "the other would refuse it"


def test_who_holds_most_is_asked_also_through_another_route() -> None:
    far = Ask(tokens=90_000, least_tokens=5000, tools=True)
    found = picked(OUTER, far, stands(a=SHORT, b=LONG, c={"context": 6000}), INNER)
    assert found.startswith("b: rule 1: tools, then inner")


def test_a_prompt_that_fits_nowhere_is_told_the_figures() -> None:
    asked, standings = route("a", "b"), stands(a=LONG, b=SHORT)
    assert picked(asked, Ask(tokens=9000, is_exact=True, answer_tokens=50), standings) == (
        "context_length_exceeded: cannot serve r: the prompt has 9000 tokens and its answer may have 50; "
        "a holds 8000 tokens, b holds 1000 tokens: send less, or ask for fewer max_tokens"
    )
    found = pick("r", Ask(tokens=20000, least_tokens=8001), standings, {"r": asked})
    assert isinstance(found, NoMember)
    assert found.param == "messages"
    assert "the prompt has about 20000 tokens; a holds" in found.message


def test_a_context_that_is_not_known_holds_anything() -> None:
    assert picked(route("a", "b"), Ask(tokens=10**7, is_exact=True), stands(a=0, b=SHORT))[0] == "a"


NEAR = {
    "far below": (Ask(tokens=100), False),
    "near a rule": (Ask(tokens=3300), True),
    "near a context": (Ask(tokens=900), True),
    "near one member's alone": (Ask(tokens=100, tokens_by={"b": 900}), True),
    "with its answer": (Ask(tokens=500, answer_tokens=480), True),
    "between": (Ask(tokens=1300), False),
    "far above": (Ask(tokens=50000), False),
    "counted": (Ask(tokens=4000, is_exact=True), False),
}


@pytest.mark.parametrize(("ask", "is_near"), NEAR.values(), ids=NEAR)
def test_a_limit_nearby_calls_for_a_count(ask: Ask, *, is_near: bool) -> None:
    asked = route("a", "b", rules=(Rule(use="a", tokens_over=4000),))
    assert is_near_limit("r", ask, stands(a=0, b=SHORT), {"r": asked}) is is_near


# --- refusals and reasons ---------------------------------------------------------------------------


def test_where_none_can_the_soonest_to_come_back_is_told() -> None:
    standings = stands(
        a={"unable": "cannot start a: it failed; see its log", "retry_after_s": 40.0},
        b={"unable": "cannot serve b before 06:00", "code": "out_of_schedule", "retry_after_s": 9.0},
        c=SHORT,
    )
    found = pick("r", Ask(tokens=2000), standings, {"r": route()})
    assert found == NoMember(
        code="out_of_schedule",
        message="cannot serve r: cannot serve b before 06:00 (and a: cannot take it now (start_failed), "
        "c: holds 1000 tokens)",
        retry_after_s=9.0,
    )


def test_a_target_that_cannot_is_told_once() -> None:
    asked = route("a", rules=(Rule(use="a", tools=True), Rule(use="x", images=True)))
    cannot = {"unable": "cannot start it"}
    found = picked(asked, Ask(tools=True, images=True), stands(a=cannot, x=cannot))
    assert found == (
        "start_failed: cannot serve r: cannot start it (and x: cannot take it now (start_failed))"
    )


def test_models_that_are_not_there_are_no_members() -> None:
    found = picked(route("a", "b"), Ask(), stands(b=0))
    assert found == "b: the only one that can take it"
    assert picked(route("a"), Ask(), {}) == "model_not_found: cannot serve r: cannot find the model a"


def test_a_reason_fits_a_header() -> None:
    many = tuple(Rule(use=f"x{number}", tools=True) for number in range(40))
    words = route("a", rules=(*many, Rule(use="ü\r\nSet-Cookie: a", images=True)))
    found = pick("r", Ask(tools=True, images=True), stands(a=0), {"r": words}, tried=("x1",))
    assert isinstance(found, Pick)
    assert len(found.reason) == REASON_CHARS
    assert found.reason.endswith("...")
    short = route("a", rules=(Rule(use="ü\r\nSet-Cookie: a", images=True),))
    found = pick("r", Ask(images=True), stands(a=0), {"r": short})
    assert isinstance(found, Pick)
    assert found.reason.isascii()
    assert found.reason.isprintable()
