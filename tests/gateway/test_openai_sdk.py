"""The real openai package against the gateway: results, streams, and its own exception classes."""

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from supervisord_llm.errors import ProvisionError
from tests.gateway.conftest import Build, House, client, config, model

MESSAGES: Any = [{"role": "user", "content": "hi"}]


def sdk(house: House, key: str = "key-me", base: str = "/v1") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=house.url + base, api_key=key, max_retries=0)


async def test_lists_chats_streams_and_embeddings(build: Build) -> None:
    async with (
        build(config(model("alpha", aliases=("a",)), clients=(client("me"),))) as house,
        sdk(house) as api,
    ):
        assert [entry.id async for entry in api.models.list()] == ["alpha", "a"]
        assert (await api.models.retrieve("alpha")).owned_by == "llm-supervisor"
        whole = await api.chat.completions.create(model="alpha", messages=MESSAGES)
        assert whole.choices[0].message.content == "I am alpha."
        assert whole._request_id
        stream = await api.chat.completions.create(model="a", messages=MESSAGES, stream=True)
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(words) == "I am alpha."
        vectors = await api.embeddings.create(model="alpha", input=["x", "y"])
        assert [round(number, 1) for number in vectors.data[1].embedding] == [0.6, 0.8, 0.0]
        async with sdk(house, base="/alpha/v1") as prefixed:
            text = await prefixed.completions.create(model="anything", prompt="x")
            assert text.choices[0].text == "I am alpha."


@pytest.mark.parametrize(
    ("key", "asked", "expected", "code"),
    [
        ("wrong", "alpha", openai.AuthenticationError, "invalid_api_key"),
        ("key-me", "beta", openai.PermissionDeniedError, "model_forbidden"),
        ("key-me", "alpa", openai.NotFoundError, "model_not_found"),
        ("key-me", "alpha", openai.InternalServerError, "start_failed"),
    ],
)
async def test_errors_are_its_exceptions(
    build: Build, key: str, asked: str, expected: type[openai.APIStatusError], code: str
) -> None:
    clients = (client("me", models=("alpha",)),)
    async with (
        build(config(model("alpha"), model("beta"), clients=clients)) as house,
        sdk(house, key) as api,
    ):
        house.provisioner.error = ProvisionError("cannot find the weights; run `pull`")
        with pytest.raises(expected) as raised:
            await api.chat.completions.create(model=asked, messages=MESSAGES)
        assert raised.value.code == code
        assert raised.value.request_id


async def test_a_crash_within_a_stream_is_an_api_error_with_the_sentence(build: Build) -> None:
    async with (
        build(config(model("alpha"), clients=(client("me"),)), env={"FAKE_VLLM": "dies_mid_stream"}) as house,
        sdk(house) as api,
    ):
        stream = await api.chat.completions.create(model="alpha", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="cannot finish this answer"):
            _ = [chunk async for chunk in stream]
