"""What a route looks at in a request, how its models stand, and what it remembers."""

import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from supervisord_llm.config.model import RequestPolicy
from supervisord_llm.core.calendar import Hours
from supervisord_llm.core.fleet import Engine, Fleet, Gpu, Learnt, ModelSpec, Waiting
from supervisord_llm.core.routes.route import Choice, Route, Rule, Sticky
from supervisord_llm.core.state import State
from supervisord_llm.gateway.choosing.features import Features, Needs, features_of, needs_of, own_bytes
from supervisord_llm.gateway.choosing.standing import standing
from supervisord_llm.gateway.policy.fields import Fields
from supervisord_llm.gateway.policy.policy import policy_of, shape
from tests.gateway.conftest import model

CHAT = "chat/completions"
PLAIN = Needs(through=("r",), models=("a",), session=False, hours=False, evictions=False, most_answer=None)
ALL = replace(PLAIN, session=True)
GIB = 1024**3


def fields(body: Any) -> Fields:
    return msgspec.json.decode(msgspec.json.encode(body), type=Fields)


def look(
    body: Any, endpoint: str = CHAT, headers: dict[str, str] | None = None, needs: Needs = ALL
) -> Features:
    return features_of(CIMultiDict(headers or {}), endpoint, fields(body), needs)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


# --- what is in a body --------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "body", "least", "most"),
    [
        (CHAT, {"messages": [user("x" * 900)]}, 900, 950),
        (CHAT, {"messages": [user("hi")], "tools": [{"name": "n" * 300}]}, 300, 400),
        (CHAT, {"messages": [user("hi")], "metadata": {"x": "y" * 5000}}, 20, 60),
        ("messages", {"system": "s" * 500, "messages": [user("hi")]}, 500, 560),
        ("responses", {"instructions": "s" * 500, "input": "hi"}, 500, 520),
        ("responses", {"input": [user("x" * 700)]}, 700, 760),
        ("completions", {"prompt": "x" * 400}, 400, 402),
        ("completions", {"prompt": ["x" * 400, "y" * 600]}, 600, 602),
        ("completions", {"prompt": [1, 2, 3]}, 12, 12),
        ("embeddings", {"input": ["x" * 400] * 100}, 400, 402),
        ("embeddings", {"input": [[1, 2], [3, 4, 5]]}, 12, 12),
        ("embeddings", {"input": []}, 0, 4),
        ("rerank", {"query": "q", "documents": ["d" * 500]}, 0, 0),
        (CHAT, {"messages": None}, 0, 0),
        (CHAT, {"messages": 5}, 0, 1),
        (CHAT, {}, 0, 0),
    ],
)
def test_the_size_is_that_of_what_has_to_be_held_at_once(
    endpoint: str, body: Any, least: int, most: int
) -> None:
    assert least <= look(body, endpoint).size <= most


@pytest.mark.parametrize(
    ("content", "images", "is_plain"),
    [
        ("plain", 0, True),
        ('they say "image_url" and "image"', 0, True),
        ([{"type": "text", "text": "hi"}], 0, True),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}] * 2, 2, False),
        ([{"type": "input_image", "image_url": "data:image/png;base64,AA"}] * 3, 3, False),
        ([{"type": "image", "source": {"type": "base64", "data": "AA"}}], 1, False),
        ([{"type": "input_audio", "input_audio": {"data": "AA"}}], 0, False),
        ([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA"}}], 0, False),
    ],
)
def test_pictures_and_sound_are_seen(content: Any, images: int, is_plain: bool) -> None:
    for endpoint, body in (
        (CHAT, {"messages": [user(content)]}),
        ("messages", {"messages": [user(content)]}),
        ("responses", {"input": [user(content)]}),
    ):
        found = look(body, endpoint)
        assert (found.images, found.is_plain) == (images, is_plain)


@pytest.mark.parametrize("name", ["image", "file", "document", "input_image"])
def test_a_tool_that_takes_pictures_is_none(name: str) -> None:
    schema = {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}
    tool = {"type": "function", "function": {"name": "show", "parameters": schema}}
    for endpoint, body in ((CHAT, {"messages": [user("hi")]}), ("responses", {"input": "hi"})):
        found = look(body | {"tools": [tool]}, endpoint)
        assert (found.images, found.is_plain, found.tools) == (0, True, True)


@pytest.mark.parametrize(
    ("endpoint", "body", "is_plain"),
    [
        ("completions", {"prompt": "x"}, True),
        ("completions", {"prompt": ["x"]}, True),
        ("completions", {"prompt": ["x", "y"]}, False),
        ("completions", {"prompt": [1, 2]}, False),
        ("embeddings", {"input": "x"}, True),
        ("embeddings", {"input": ["x", "y"]}, False),
        ("responses", {"input": "x"}, True),
        ("responses", {"input": [user("x")]}, True),
    ],
)
def test_of_several_prompts_the_size_is_not_what_is_reported(
    endpoint: str, body: Any, is_plain: bool
) -> None:
    assert look(body, endpoint).is_plain == is_plain


OWN = "Speak like a pirate. " * 20


@pytest.mark.parametrize("mode", ["default", "always"])
@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, {"messages": [user("hi")]}),
        (CHAT, {"messages": [user("hi")], "tools": [{"name": "system"}]}),
        (CHAT, {"messages": [{"role": "system", "content": "s"}, user('of a "system"')]}),
        (CHAT, {"messages": [{"role": "developer", "content": "s"}, user("hi")]}),
        ("messages", {"messages": [user("hi")]}),
        ("messages", {"system": "", "messages": [user("hi")]}),
        ("messages", {"system": "s", "messages": [user("hi")]}),
        ("responses", {"input": "hi"}),
        ("responses", {"instructions": "s", "input": "hi"}),
        ("completions", {"prompt": "hi"}),
    ],
)
def test_a_models_own_system_prompt_counts_where_it_is_put(endpoint: str, body: Any, mode: Any) -> None:
    policy = policy_of(model("a", system_prompt=OWN, system_prompt_mode=mode))
    found, sent = look(body, endpoint), shape(policy, endpoint, fields(body), {}).fields
    more = look(sent, endpoint).size - found.size
    assert own_bytes(policy, endpoint, found) == pytest.approx(more, abs=40)
    assert own_bytes(policy_of(model("a")), endpoint, found) == 0


@pytest.mark.parametrize(
    ("body", "most", "expected"),
    [
        ({}, None, 0),
        ({"max_tokens": 100}, None, 100),
        ({"max_completion_tokens": 100, "max_tokens": 20}, None, 100),
        ({"max_output_tokens": 7}, None, 7),
        ({"max_tokens": 32_000}, 4096, 4096),
        ({"max_tokens": None}, None, 0),
        ({"max_tokens": -1}, None, 0),
        ({"max_tokens": "9"}, None, 0),
        ({"max_tokens": 10**30}, None, 0),
    ],
)
def test_the_most_that_is_to_be_answered(body: Any, most: int | None, expected: int) -> None:
    needs = replace(PLAIN, most_answer=most)
    assert look(body, needs=needs).answer_tokens == expected


def test_tools_are_offered_by_a_list_that_has_some() -> None:
    assert look({"tools": [{"type": "function"}]}).tools
    assert not look({"tools": []}).tools
    assert not look({"tools": None}).tools


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
NAMES = ("messages", "input", "prompt", "system", "instructions", "tools", "metadata", "user", "max_tokens")


@given(
    st.dictionaries(st.sampled_from(NAMES), JSON), st.sampled_from([CHAT, "messages", "responses", "score"])
)
def test_nothing_that_is_json_breaks_it(body: Any, endpoint: str) -> None:
    assert look(body, endpoint).size >= 0


# --- sessions ------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (({"X-Session-Id": "1"}, {}), ({"x-session-id": "1"}, {"user": "me"})),
        (({"X-OpenWebUI-Chat-Id": "1"}, {}), ({"X-Session-Id": "1"}, {})),
        (({}, {"prompt_cache_key": "k", "user": "a"}), ({}, {"prompt_cache_key": "k", "user": "b"})),
        (({}, {"metadata": {"user_id": "u", "n": 1}}), ({}, {"metadata": {"user_id": "u"}})),
        (({}, {"user": "u", "metadata": {"n": 1}}), ({}, {"user": "u"})),
        (({}, {"messages": [SYSTEM, user("a")]}), ({}, {"messages": [SYSTEM, user("a"), user("b")]})),
    ],
)
def test_requests_of_one_session(one: Any, other: Any) -> None:
    first, second = (look(body, headers=headers).session for headers, body in (one, other))
    assert first == second != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (({"X-Session-Id": "1"}, {}), ({"X-Session-Id": "2"}, {})),
        (({}, {"messages": [SYSTEM, user("a")]}), ({}, {"messages": [SYSTEM, user("b")]})),
        (({}, {"messages": [SYSTEM, user("a")]}), ({}, {"messages": [user("a")]})),
        (({}, {"user": ""}), ({}, {"user": "u"})),
        (({}, {"user": ["u"]}), ({}, {"user": "u"})),
    ],
)
def test_requests_of_two_sessions(one: Any, other: Any) -> None:
    first, second = (look(body, headers=headers).session for headers, body in (one, other))
    assert first != second


def test_a_text_is_known_by_its_beginning() -> None:
    texts = ("x" * 2000, "x" * 2000 + "more", "y" * 2000)
    first, longer, other = (look({"prompt": text}, "completions").session for text in texts)
    assert first == longer != other


def test_thousands_of_messages_are_not_gone_through() -> None:
    said = fields({"messages": [{"role": "tool", "content": "x"}] * 25_000 + [user("hi")]})
    began = time.process_time()
    assert features_of({}, CHAT, said, ALL).session
    assert time.process_time() - began < 0.03


def test_a_session_that_nobody_asks_for_is_not_looked_for() -> None:
    assert look({"messages": [user("a")]}, headers={"X-Session-Id": "1"}, needs=PLAIN).session == ""
    assert features_of({"X-Session-Id": "1"}, "audio/transcriptions", None, ALL).session


# --- what a route needs --------------------------------------------------


def test_needs_are_those_of_all_routes_it_leads_through() -> None:
    capped = model("b", request=RequestPolicy(max={"max_tokens": 50}))
    models = {"a": model("a"), "b": capped}
    hours = Hours.__new__(Hours)
    routes = {
        "outer": Route(name="outer", members=("a",), rules=(Rule(use="inner", tools=True),)),
        "inner": Route(
            name="inner",
            members=("b",),
            sticky=Sticky.SESSION,
            policy=Choice.WARM,
            rules=(Rule(use="b", hours=hours),),
        ),
    }
    assert needs_of("outer", routes, models) == Needs(
        through=("outer", "inner"),
        models=("a", "b"),
        session=True,
        hours=True,
        evictions=True,
        most_answer=None,
    )
    assert needs_of("inner", routes, models).most_answer == 50
    plain = {"r": Route(name="r", members=("a",))}
    assert needs_of("r", plain, models) == PLAIN


# --- how models stand ----------------------------------------------------


def engine(name: str = "a", state: State = State.READY, **fields: Any) -> Engine:
    spec = ModelSpec(name=name, **fields.pop("spec", {}))
    return Engine(spec=spec, state=state, **fields)


def stands(one: Engine, *others: Engine, gpus: tuple[Gpu, ...] = (), evictions: bool = False) -> Any:
    fleet = Fleet(engines={each.name: each for each in (one, *others)}, gpus={gpu.index: gpu for gpu in gpus})
    return standing(fleet, one, 100.0, lambda name: 4096, evictions=evictions)


def test_load_is_what_is_in_hand_and_what_waits() -> None:
    waits = Waiting(request=9, source="", priority=0, since=99.0)
    found = stands(engine(leases=frozenset({1, 2}), waiting=(waits,)))
    assert (found.load, found.unable, found.context) == (3, "", 4096)


def test_the_context_is_that_in_force() -> None:
    assert stands(engine(spec={"max_model_len": 1000})).context == 1000
    learnt = Learnt(adjusted=(("max-model-len", 500),))
    assert stands(engine(spec={"max_model_len": 1000}, learnt=learnt)).context == 500


@pytest.mark.parametrize(
    ("one", "code", "retry_after_s"),
    [
        (engine(state=State.FAILED, retry_at=130.0, last_error="cannot start a: no"), "start_failed", 30.0),
        (engine(state=State.STUCK, last_error="cannot end a"), "start_failed", 5.0),
        (engine(leases=frozenset({1}), spec={"max_concurrent": 1}), "model_busy", 5.0),
        (engine(state=State.STOPPED, spec={"disabled": "cannot start a: no GPU"}), "no_vram", 60.0),
        (engine(spec={"closed": "the schedule says so", "opens_at": 160.0}), "out_of_schedule", 60.0),
    ],
)
def test_what_keeps_it_from_taking_requests(one: Engine, code: str, retry_after_s: float | None) -> None:
    found = stands(one)
    assert found.unable
    assert (found.code, found.retry_after_s) == (code, retry_after_s)


def test_a_start_that_costs_another_its_place() -> None:
    gpu = Gpu(index=0, uuid="GPU-a", name="Card", total_bytes=24 * GIB, budget_bytes=20 * GIB)
    held: dict[str, Any] = {"gpus": (0,), "granted_bytes": (15 * GIB,), "awake_bytes": (15 * GIB,)}
    pinned = {"pinned": (0,), "grant": 15 * GIB}
    other = engine("b", spec=pinned, **held)
    cold = engine("a", State.STOPPED, spec=pinned)
    assert stands(cold, other, gpus=(gpu,), evictions=True).evicts
    assert not stands(cold, other, gpus=(gpu,)).evicts, "nobody asked"
    assert not stands(cold, gpus=(gpu,), evictions=True).evicts, "there is room"
    assert not stands(other, cold, gpus=(gpu,), evictions=True).evicts, "it runs"
