"""vLLM's sleep mode, told to the engine: asleep it holds next to no GPU memory and wakes in seconds.

Level 1 keeps the weights in main memory; level 2 drops them, and an engine that wakes from it without reading
them again answers garbage, with status 200. So a canary, the same few tokens asked before and after, tells
whether it woke as it fell asleep. The endpoints exist only with VLLM_SERVER_DEV_MODE=1.
"""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp

from supervisord_llm.engines.ask import Answer, ask
from supervisord_llm.errors import EngineError
from supervisord_llm.runtime.ports import Backend

CANARY_S = 30.0
SLEEP_S = 60.0
WAKE_S = 120.0

PROMPT = "The capital of France is"
"""Shorter than a block of the KV cache, so that it is computed again and never found in the prefix cache."""

MIN_COSINE = 0.99
"""Between embeddings of the same text by the same weights; other weights give next to 0."""

Canary = str | tuple[float, ...] | None
"""A few tokens as text, or an embedding, or nothing: the engine serves neither."""


class Sleeper:
    """Puts one engine to sleep and wakes it."""

    def __init__(
        self,
        model: str,
        backend: Backend,
        before: Canary = None,
        keep: Callable[[Canary], None] = lambda canary: None,
    ) -> None:
        """
        Args:
            before: the canary from before it slept, where somebody else put it to sleep.
            keep: called with the canary before it is put to sleep, and with None once it woke well.
        """
        self._model = model
        self._backend = backend
        self._before = before
        self._keep = keep

    async def sleep(self, level: int) -> None:
        """
        Raises:
            EngineError: it would not, or did not in time.
        """
        what = f"put {self._model} to sleep"
        async with self._within(CANARY_S, what):
            self._before = await self._canary(what)
        self._keep(self._before)
        async with self._within(SLEEP_S, what):
            await self._tell(what, f"/sleep?level={level}")
            await self._check(what, asleep=True)

    async def wake(self, level: int) -> None:
        """
        Raises:
            EngineError: it would not, did not in time, or answers otherwise than before.
        """
        what = f"wake {self._model}"
        async with self._within(WAKE_S, what):
            if level == 2:  # the weights have to be there again before the KV cache takes the rest
                await self._tell(what, "/wake_up?tags=weights")
                await self._tell(what, "/collective_rpc", {"method": "reload_weights"})
                await self._tell(what, "/wake_up?tags=kv_cache")
                await self._tell(what, "/reset_prefix_cache")
            else:
                await self._tell(what, "/wake_up")
            await self._check(what, asleep=False)
            await self._compare(what)
        self._keep(None)

    async def verify(self) -> None:
        """See that it is as before it slept, where it is not known how it fared since.

        Raises:
            EngineError: it answers otherwise than before, or not in time.
        """
        what = f"use {self._model}"
        async with self._within(CANARY_S, what):
            await self._compare(what)

    async def _compare(self, what: str) -> None:
        after = await self._canary(what)
        if not agree(self._before, after):
            raise EngineError(
                f"cannot {what}: it answers otherwise than before it slept ({show(self._before)}, now "
                f"{show(after)}); restart it, or set idle.sleep_level = 1 if it was 2"
            )

    @contextlib.asynccontextmanager
    async def _within(self, limit_s: float, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError as why:
            raise self._error(what, f"no answer within {limit_s:g} s") from why
        except (aiohttp.ClientError, OSError) as why:
            raise self._error(what, f"no answer from the engine ({why})") from why

    async def _tell(self, what: str, target: str, body: dict[str, Any] | None = None) -> None:
        answer = await ask(self._backend, "POST", target, body)
        if answer.status != 200:
            raise self._error(what, f"POST {target} answers {answer}")

    async def _check(self, what: str, *, asleep: bool) -> None:
        answer = await ask(self._backend, "GET", "/is_sleeping")
        if read(answer, "is_sleeping") is not asleep:
            raise self._error(what, f"it says that it {'does not sleep' if asleep else 'still sleeps'}")

    async def _canary(self, what: str) -> Canary:
        """The same words for the same weights, each time. Costs a few tokens; counted by no client."""
        asked: dict[str, Any] = {"model": self._model, "prompt": PROMPT, "max_tokens": 4}
        answer = await self._ask_canary(what, "/v1/completions", asked | {"temperature": 0, "seed": 0})
        text = read(answer, "choices", 0, "text")
        if isinstance(text, str):
            return text
        asked = {"model": self._model, "input": PROMPT}
        vector = read(await self._ask_canary(what, "/v1/embeddings", asked), "data", 0, "embedding")
        return tuple(map(float, vector)) if isinstance(vector, list) else None

    async def _ask_canary(self, what: str, target: str, body: dict[str, Any]) -> Answer:
        answer = await ask(self._backend, "POST", target, body)
        if answer.status >= 500:  # below: not served by this kind of model
            raise self._error(what, f"POST {target} answers {answer}")
        return answer

    def _error(self, what: str, why: str) -> EngineError:
        return EngineError(f"cannot {what}: {why}; see `llm-supervisor logs {self._model}`")


def read(answer: Answer, *path: str | int) -> Any:
    """What is at `path` of a JSON answer with status 200; None where there is no such thing."""
    if answer.status != 200:
        return None
    try:
        found = json.loads(answer.body)
        for key in path:
            found = found[key]
    except (ValueError, LookupError, TypeError):
        return None
    return found


def agree(before: Canary, after: Canary) -> bool:
    """Whether the weights that gave `after` are those that gave `before`."""
    if isinstance(before, tuple) and isinstance(after, tuple):
        return len(before) == len(after) and cosine(before, after) >= MIN_COSINE
    return before is None or before == after


def cosine(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Of the angle between them; not a number, which is above nothing, where one of them is broken."""
    norms = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else math.nan


def show(canary: Canary) -> str:
    return json.dumps(canary) if isinstance(canary, str) else "an embedding" if canary else "nothing"
