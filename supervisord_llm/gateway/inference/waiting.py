"""What a client sees while its model starts.

A streaming client gets, after a short grace, the head of its event stream and then a comment every heartbeat,
which keeps it and every proxy on the way patient; a failure that comes later is an event of that stream. Any
other client is held silently, because its status cannot be taken back, unless it would give up before the
model can be there: then it is told so at once. A client may ask for more, see `WhileWaiting`.
"""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from supervisord_llm.core.eta import ready_in_s, told_to_waiting
from supervisord_llm.core.explain import span
from supervisord_llm.core.fleet import Engine
from supervisord_llm.errors import Refused
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.runtime.lease import Lease
from supervisord_llm.runtime.ports import Backend

GRACE_S = 1.0
"""So that an immediate refusal still gets its own status."""

HEARTBEAT = b": keep-alive\n\n"
"""The comment that vLLM sends, too. Not a ping: some clients take that for the end."""

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
"""Anthropic's own, which its clients know."""

SDK_TRIES = 3
"""How often the SDKs of OpenAI and Anthropic send a request: once, and two retries unless told otherwise."""

NODE_PATIENCE_S = 300.0
"""Node's fetch gives up on an answer without a head after that, whatever the SDK's own limit is."""


class WhileWaiting(StrEnum):
    """What a client may ask to get while its model starts, by `while_waiting` or X-LLM-While-Waiting."""

    PROGRESS = "progress"
    """Streams: the state in words, in a chat as reasoning, which chat clients show, elsewhere as comments."""
    WHITE_SPACE = "white-space"
    """Other answers: a head at once, then spaces before the JSON. An error comes with status 200 then."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """One who waits: `tail` is its endpoint ("chat/completions"), `engine` the engine as it is at a time.

    `since`: loop time at which it began to, be it for another engine than this one.
    """

    exchange: Exchange
    lease: Lease
    since: float
    tail: str
    streams: bool
    engine: Callable[[], Engine]
    now: Callable[[], float]

    @property
    def wishes(self) -> Collection[str]:
        """Of the client's configuration and of this request's header."""
        header = self.exchange.request.headers.get("X-LLM-While-Waiting", "")
        return {*self.exchange.caller.while_waiting, *(word.strip().lower() for word in header.split(","))}

    def beat(self, told: str) -> bytes:
        """What it gets at a heartbeat; `told`: the sentence to tell it, if any."""
        if not self.streams:
            return b" "
        if told and self.tail == "chat/completions":
            return _reasoning(self.exchange, told)
        if told:
            return b": " + told.encode() + b"\n\n"
        return PING if self.tail == "messages" else HEARTBEAT


async def admitted(waiter: Waiter) -> Backend:
    """Where the engine serves, once the request may use it.

    Raises:
        Refused: it never may, or not before its client gives up.
    """
    lease, exchange = waiter.lease, waiter.exchange
    admission, heartbeat_s = lease.admission, exchange.settings.config.server.heartbeat_s
    if not admission.done():
        wishes = waiter.wishes
        is_json = not waiter.tail.startswith(("audio/", "realtime"))
        fills = WhileWaiting.WHITE_SPACE in wishes and is_json
        if heartbeat_s > 0 and (waiter.streams or fills):
            await _keep_alive(waiter, heartbeat_s, tells=WhileWaiting.PROGRESS in wishes)
        else:
            now = waiter.now()
            check_patience(exchange.request.headers, waiter.engine(), now, now - exchange.started_at)
    await lease.settled("serve this request")
    until = waiter.now() if lease.admitted_at is None else lease.admitted_at
    exchange.wait_s = until - waiter.since
    return admission.result()


async def _keep_alive(waiter: Waiter, heartbeat_s: float, *, tells: bool) -> None:
    exchange, lease = waiter.exchange, waiter.lease
    await asyncio.wait([lease.admission], timeout=GRACE_S)
    last = ""
    while not lease.admission.done():
        told = told_to_waiting(waiter.engine(), lease.request, waiter.now()) if tells else ""
        if exchange.response is None:
            exchange.wait_s = waiter.now() - waiter.since
            exchange.is_held = True
            await (exchange.begin_events() if waiter.streams else exchange.begin_json())
        await exchange.beat(waiter.beat(told if told != last else ""))
        last = told
        await asyncio.wait([lease.admission], timeout=heartbeat_s)


def check_patience(headers: Mapping[str, str], engine: Engine, now: float, spent_s: float = 0.0) -> None:
    """`spent_s`: how long the client has waited already.

    Raises:
        Refused: `start_timeout`, the client has told that it gives up before the engine can be ready.
    """
    patience_s = patience(headers)
    left_s = ready_in_s(engine, now)
    if patience_s is None or left_s is None or spent_s + left_s <= patience_s:
        return
    raise Refused(
        "start_timeout",
        f"cannot answer in time: {engine.name} is ready in about {span(left_s)}, and this client waits for "
        f"{span(patience_s)} in all; ask again then, raise the client's timeout, or use `stream`",
        retry_after_s=left_s,
    )


def patience(headers: Mapping[str, str]) -> float | None:
    """How long the SDKs of OpenAI and Anthropic wait, with the tries left; None if it is not told."""
    told = headers.get("x-stainless-read-timeout") or headers.get("x-stainless-timeout")
    try:
        once_s = float(told or "")
        tried = int(headers.get("x-stainless-retry-count") or 0)
    except ValueError:
        return None
    if not math.isfinite(once_s) or once_s <= 0:
        return None
    if headers.get("x-stainless-lang") == "js":
        once_s = min(once_s, NODE_PATIENCE_S)
    return once_s * max(1, SDK_TRIES - tried)


def _reasoning(exchange: Exchange, told: str) -> bytes:
    """A chunk of a chat's stream that clients show as thinking."""
    chunk = {
        "id": f"chatcmpl-{exchange.request_id}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": exchange.model,
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": "", "reasoning_content": told + "\n"},
                "finish_reason": None,
            }
        ],
    }
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
