"""A real vLLM on the CPU, installed by our own provisioning, behind the daemon, asked by the real openai SDK.

One daemon and one engine serve the whole module, in the order written: the first chat is what starts it.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import anthropic
import ollama
import openai
import psutil
import pytest

from tests.e2e.house import House, chat
from tests.e2e.real_engine import RealEngine

pytestmark = pytest.mark.slow

KEY = "sk-real-test"
PHRASE = "I am a tiny test model."


@pytest.fixture(scope="module")
def house(real_engine: RealEngine) -> Iterator[House]:
    model = real_engine.tiny()
    models = {"tiny": model | {"idle": {"sleep_level": 1}}, "again": model}
    client = {"key_env": "TEST_KEY", "admin": True}
    tables = {"auth": {"required": True}, "clients.sdk": client}
    with real_engine.serving(models, {"TEST_KEY": KEY}, **tables) as house:
        yield house


@pytest.fixture
def sdk(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def engine_get(house: House, model: str, path: str) -> str:
    """Ask the engine itself, behind the daemon's back."""

    async def get() -> str:
        socket = house.root / "runtime" / "engines" / f"{model}.sock"
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
            session.get(f"http://engine{path}") as answer,
        ):
            return await answer.text()

    return asyncio.run(get())


def running(house: House, model: str) -> float:
    metrics = engine_get(house, model, "/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in metrics if line.startswith("vllm:num_requests_running"))


def test_models_are_listed_and_nothing_runs(house: House, sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["tiny", "again"]
    assert sdk.models.retrieve("tiny").id == "tiny"
    assert house.engines() == []


def test_the_first_stream_starts_the_engine_and_streams_its_tokens(house: House, sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Who are you?"}], stream=True
    )
    words = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(words).strip() == PHRASE
    assert len(words) > 2, "it came in pieces"


def test_chat_completions_and_usage(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    assert (answer.choices[0].message.content or "").strip() == PHRASE
    assert answer.usage is not None
    assert answer.usage.total_tokens > 5


def test_anthropics_sdk_talks_streams_and_counts(house: House) -> None:
    hello: list[Any] = [{"role": "user", "content": "hi"}]
    with anthropic.Anthropic(base_url=house.url, api_key=KEY, max_retries=0) as client:
        whole = client.messages.create(model="tiny", max_tokens=64, messages=hello)
        assert whole.content[0].text.strip() == PHRASE  # type: ignore[union-attr]
        with client.messages.stream(model="tiny", max_tokens=64, messages=hello) as stream:
            assert "".join(stream.text_stream).strip() == PHRASE
        assert client.messages.count_tokens(model="tiny", messages=hello).input_tokens > 0


def test_ollamas_client_talks_and_streams(house: House) -> None:
    hello = [{"role": "user", "content": "hi"}]
    options = {"temperature": 0, "repeat_penalty": 1.0, "top_k": 0, "num_ctx": 512}
    with ollama.Client(house.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        whole = client.chat("tiny", hello, options=options, think=False)
        assert (whole.message.content or "").strip() == PHRASE
        *parts, last = client.generate("tiny:latest", "hi", stream=True, options=options)
        assert "".join(part.response for part in parts).strip() == PHRASE
        assert (last.done_reason, last.prompt_eval_count > 0, last.eval_count > 2) == ("stop", True, True)
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        formed = client.generate("tiny", "hi", format=schema, options={"num_predict": 64})
        assert formed.response.lstrip().startswith("{")


def test_the_access_log_tells_the_tokens_and_the_client(house: House) -> None:
    served = [entry for entry in house.entries() if entry.get("tokens")]
    assert served[-1]["source"] == "sdk"
    assert served[-1]["model"] == "tiny"


def test_raw_bytes_are_passed_through_unchanged(house: House, sdk: openai.OpenAI) -> None:
    """The head of the answer is ours; its body is the engine's own, and so are its streams' content types."""
    with sdk.chat.completions.with_streaming_response.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
    ) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.read().endswith(b"data: [DONE]\n\n")


def test_completions_and_tokenize(house: House, sdk: openai.OpenAI) -> None:
    assert PHRASE in sdk.completions.create(model="tiny", prompt="hi", max_tokens=20).choices[0].text
    answer = sdk.post("/tokenize", body={"model": "tiny", "prompt": "hi"}, cast_to=object)
    assert isinstance(answer, dict)
    assert answer["count"] == 2


def test_a_generating_model_says_that_it_has_no_embeddings(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        sdk.embeddings.create(model="tiny", input="hi")


def test_cancelling_a_stream_aborts_it_at_the_engine_within_a_second(
    house: House, sdk: openai.OpenAI
) -> None:
    stream = sdk.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        max_tokens=1900,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    assert running(house, "tiny") == 1
    stream.close()
    deadline = time.monotonic() + 1
    while running(house, "tiny"):
        assert time.monotonic() < deadline


def test_sleep_and_wake_follow_its_protocol(house: House, sdk: openai.OpenAI) -> None:
    """On the CPU both do nothing, but they answer as on a GPU."""
    before = json.loads((house.root / "runtime" / "engines" / "tiny.json").read_text())["pid"]
    house.cli("sleep", "tiny")
    assert house.status()["models"]["tiny"]["state"] == "sleeping"
    assert json.loads(engine_get(house, "tiny", "/is_sleeping")) == {"is_sleeping": True}
    answer = sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    assert (answer.choices[0].message.content or "").strip() == PHRASE
    assert json.loads(engine_get(house, "tiny", "/is_sleeping")) == {"is_sleeping": False}
    assert json.loads((house.root / "runtime" / "engines" / "tiny.json").read_text())["pid"] == before
    with pytest.raises(openai.NotFoundError):
        sdk.post("/sleep", body={"model": "tiny"}, cast_to=object)


def test_errors_become_the_exceptions_of_the_sdk(house: House, sdk: openai.OpenAI) -> None:
    hi = chat("tiny")["messages"]
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.chat.completions.create(model="tinny", messages=hi)  # type: ignore[call-overload]
    assert unknown.value.code == "model_not_found"
    assert "tiny" in str(unknown.value)
    with pytest.raises(openai.BadRequestError):
        sdk.chat.completions.create(model="tiny", messages=hi, max_tokens=-1)  # type: ignore[call-overload]
    with pytest.raises(openai.BadRequestError, match="2048"):
        sdk.completions.create(model="tiny", prompt="x" * 5000, max_tokens=5)
    with pytest.raises(openai.AuthenticationError) as wrong:
        sdk.with_options(api_key="sk-wrong").models.list()
    assert wrong.value.code == "invalid_api_key"


def test_a_second_model_of_the_same_spec_shares_the_files_of_its_venv(
    house: House, sdk: openai.OpenAI, real_engine: RealEngine
) -> None:
    answer = sdk.chat.completions.create(model="again", messages=[{"role": "user", "content": "hi"}])
    assert answer.model == "again"
    one, other = (
        next(
            (real_engine.state / "venvs" / name).resolve().glob("lib/python3*/site-packages/vllm/__init__.py")
        )
        for name in ("tiny", "again")
    )
    assert one != other
    assert one.samefile(other)


def test_killing_the_api_server_leaves_no_engine_core(house: House) -> None:
    record = json.loads((house.root / "runtime" / "engines" / "again.json").read_text())
    tree = [psutil.Process(record["pid"]), *psutil.Process(record["pid"]).children(recursive=True)]
    assert any("EngineCore" in process.name() or "VLLM" in process.name() for process in tree)
    os.kill(record["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(process.is_running() for process in tree):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stop_with_an_open_stream_is_clean_and_bounded(house: House, sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        max_tokens=1900,
        extra_body={"ignore_eos": True},
    )
    events = iter(stream)
    next(events)
    began = time.monotonic()
    house.cli("stop", "tiny")
    assert time.monotonic() - began < 25
    assert house.engines() == []
    with contextlib.suppress(openai.APIError):  # it finished within the drain, or was cut with an error event
        for _ in events:
            pass


def test_mistakes_that_vllm_takes_long_to_report_are_found_before_the_launch(
    house: House, real_engine: RealEngine
) -> None:
    broken = house.root / "broken"
    broken.mkdir()
    for path in real_engine.model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    future = json.loads((broken / "config.json").read_text()) | {"architectures": ["FutureForCausalLM"]}
    cases: dict[str, tuple[dict[str, object], str]] = {
        "missing": ({"source": str(house.root / "nowhere")}, "nowhere"),
        "arch": ({"source": str(broken)}, "FutureForCausalLM"),
        "flag": ({"source": str(real_engine.model), "flags": {"max-modle-len": 10}}, "max-model-len"),
    }
    (broken / "config.json").write_text(json.dumps(future))
    house.configure(
        {name: {"gpus": [], **keys} for name, (keys, _) in cases.items()},
        paths={"state": str(real_engine.state), "cache": str(real_engine.cache)},
    )
    house.cli("reload")
    for name, (_, hint) in cases.items():
        done = house.cli("start", name, check=False)
        assert done.returncode == 1
        assert hint in done.stderr
    assert house.engines() == []
