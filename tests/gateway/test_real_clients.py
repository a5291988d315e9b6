"""Real clients of other APIs than OpenAI's against the gateway: the packages `anthropic` and `ollama`."""

from typing import Any

import anthropic
import ollama
import pytest
from anthropic import AsyncAnthropic

from supervisord_llm.config.model import Server
from tests.gateway.conftest import Build, House, client, config, model

MESSAGES: Any = [{"role": "user", "content": "hi"}]
ONE = config(model("alpha", aliases=("claude",)), model("beta"), clients=(client("me", models=("alpha",)),))


def claude(house: House, key: str = "key-me") -> AsyncAnthropic:
    return AsyncAnthropic(base_url=house.url, api_key=key, max_retries=0)


def llama(house: House, key: str = "key-me") -> ollama.AsyncClient:
    return ollama.AsyncClient(house.url, headers={"Authorization": f"Bearer {key}"})


async def test_anthropic_talks_streams_and_counts(build: Build) -> None:
    async with build(ONE) as house, claude(house) as api:
        whole = await api.messages.create(model="claude", max_tokens=9, messages=MESSAGES)
        assert whole.content[0].text == "I am alpha."  # type: ignore[union-attr]
        assert whole.usage.output_tokens == 3
        async with api.messages.stream(model="alpha", max_tokens=9, messages=MESSAGES) as stream:
            assert "".join([text async for text in stream.text_stream]) == "I am alpha."
            assert (await stream.get_final_message()).stop_reason == "end_turn"
        counted = await api.messages.count_tokens(model="alpha", messages=MESSAGES)
        assert counted.input_tokens > 0
        assert house.recorder.stats.of("alpha")["requests"]["ok"] == 3


async def test_anthropic_streams_through_a_load(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the client patient, its own kind of ping, is nothing that it would show."""
    monkeypatch.setattr("supervisord_llm.gateway.inference.waiting.GRACE_S", 0.0)
    quick = config(model("alpha"), clients=(client("me"),), server=Server(heartbeat_s=0.01))
    async with (
        build(quick, env={"FAKE_LOAD_S": "0.2"}) as house,
        claude(house) as api,
        api.messages.stream(model="alpha", max_tokens=9, messages=MESSAGES) as stream,
    ):
        assert "".join([text async for text in stream.text_stream]) == "I am alpha."


@pytest.mark.parametrize(
    ("key", "asked", "expected"),
    [
        ("wrong", "alpha", anthropic.AuthenticationError),
        ("key-me", "beta", anthropic.PermissionDeniedError),
        ("key-me", "alpa", anthropic.NotFoundError),
    ],
)
async def test_errors_are_anthropics_exceptions(
    build: Build, key: str, asked: str, expected: type[anthropic.APIStatusError]
) -> None:
    async with build(ONE) as house, claude(house, key) as api:
        with pytest.raises(expected, match="cannot") as raised:
            await api.messages.create(model=asked, max_tokens=9, messages=MESSAGES)
        assert raised.value.request_id


async def test_ollama_lists_shows_talks_streams_and_embeds(build: Build) -> None:
    async with build(ONE) as house, llama(house) as api:
        assert [one.model for one in (await api.list()).models] == ["alpha", "claude"]
        assert (await api.show("alpha")).capabilities == ["completion", "tools"]
        assert (await api.ps()).models == []
        whole = await api.chat("alpha", MESSAGES, options={"num_predict": 2, "num_ctx": 8192})
        assert whole.message.content == "I am "
        stream = await api.chat("alpha:latest", MESSAGES, stream=True)
        parts = [part async for part in stream]
        assert "".join(part.message.content or "" for part in parts) == "I am alpha."
        assert (parts[-1].done, parts[-1].done_reason, parts[-1].eval_count) == (True, "stop", 3)
        assert (await api.generate("alpha", "hi")).response == "I am alpha."
        words = [part.response async for part in await api.generate("alpha", "hi", stream=True)]
        assert words == ["I ", "am ", "alpha.", ""]
        assert len((await api.embed("alpha", ["x", "y"])).embeddings) == 2
        (running,) = (await api.ps()).models
        assert running.model == "alpha"
        assert running.expires_at is not None


@pytest.mark.parametrize(("key", "asked", "status"), [("wrong", "alpha", 401), ("key-me", "beta", 403)])
async def test_errors_are_ollamas_exceptions(build: Build, key: str, asked: str, status: int) -> None:
    async with build(ONE) as house, llama(house, key) as api:
        with pytest.raises(ollama.ResponseError, match="cannot") as raised:
            await api.chat(asked, MESSAGES)
        assert raised.value.status_code == status


async def test_ollama_is_told_what_there_is_not(build: Build) -> None:
    async with build(ONE) as house, llama(house) as api:
        with pytest.raises(ollama.ResponseError, match="cannot serve /api/pull"):
            await api.pull("new")
