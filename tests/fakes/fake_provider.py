"""An API elsewhere, in the test's own process: HTTP or HTTPS, and as bad as the test wants it."""

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "canary.0123456789.abcdefghijklmnop"
"""What it wants to be shown, and what must appear nowhere else; nothing tells that it is a key."""

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    """By their names in lower case."""
    body: Any


@dataclass(eq=False)
class FakeProvider:
    """Answers chats with "hello"; `answer`, where it is set, answers in its place."""

    key: str | None = KEY
    answer: Answer | None = None
    models_status: int = 200
    """Of GET /v1/models, for whoever has the key."""
    probe_s: float = 0.0
    """What that takes."""
    seen: list[Seen] = field(default_factory=list)
    probes: int = 0
    port: int = 0
    is_tls: bool = False
    release: asyncio.Event = field(default_factory=asyncio.Event)
    """What `hangs` and `streams_on` wait for."""

    @property
    def url(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://127.0.0.1:{self.port}/v1"

    @property
    def last(self) -> Seen:
        return self.seen[-1]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET" and request.path == "/v1/models":
            self.probes += 1
            await asyncio.sleep(self.probe_s)
        else:
            raw = await request.read()
            is_json = request.content_type == "application/json" and raw
            body = json.loads(raw) if is_json else raw
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.seen.append(Seen(request.method, request.raw_path, headers, body))
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return failure(401, f"Incorrect API key provided: {shown_key(request)}")
        if request.method == "GET" and request.path == "/v1/models":
            return web.json_response({"object": "list", "data": []}, status=self.models_status)
        if self.answer is not None:
            return await self.answer(request)
        if request.path != "/v1/chat/completions":
            return failure(404, f"no such path: {request.path}")
        if self.last.body.get("stream"):
            return await stream(request, ["hel", "lo"])
        return web.json_response(completion("hello"))

    async def hangs(self, request: web.Request) -> web.StreamResponse:
        """Never answers."""
        await self.release.wait()
        return failure(500, "released")

    async def streams_on(self, request: web.Request) -> web.StreamResponse:
        """Streams a word, and another one when it is released."""
        response = await begin_events(request)
        await response.write(event("one"))
        await self.release.wait()
        await response.write(event("two") + b"data: [DONE]\n\n")
        return response


def shown_key(request: web.Request) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def failure(status: int, message: str, **headers: str) -> web.Response:
    error = {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
    return web.json_response(
        error, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def fails(status: int, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return failure(status, "provider's own words", **headers)

    return answer


async def gzipped(request: web.Request) -> web.StreamResponse:
    """Compressed although nobody asked for it."""
    body = gzip.compress(json.dumps(completion("hello")).encode())
    return web.Response(body=body, content_type="application/json", headers={"Content-Encoding": "gzip"})


async def telling(request: web.Request) -> web.StreamResponse:
    """With headers that are no concern of our clients."""
    return web.json_response(
        completion("hello"),
        headers={
            "Set-Cookie": "session=1",
            "Strict-Transport-Security": "max-age=1000",
            "Alt-Svc": 'h3=":443"',
            "OpenAI-Organization": "org-secret",
            "X-RateLimit-Limit-Requests": "1",
            "Access-Control-Allow-Origin": "*",
        },
    )


def completion(content: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {
        "id": "c1", "object": "chat.completion", "created": 1, "model": "grok-4-0709",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }  # fmt: skip


def event(content: str) -> bytes:
    chunk = {"id": "c1", "choices": [{"index": 0, "delta": {"content": content}}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


async def begin_events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


async def stream(request: web.Request, words: list[str], pause_s: float = 0.0) -> web.StreamResponse:
    response = await begin_events(request)
    for word in words:
        await response.write(event(word))
        await asyncio.sleep(pause_s)
    usage = {"id": "c1", "choices": [], "usage": completion("")["usage"]}
    await response.write(b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n")
    return response


@asynccontextmanager
async def provider(tls: ssl.SSLContext | None = None, **fields: Any) -> AsyncIterator[FakeProvider]:
    """It serves on a port of 127.0.0.1 until the end of the block."""
    fake = FakeProvider(is_tls=tls is not None, **fields)
    runner = web.ServerRunner(
        web.Server(fake.handle, access_log=None, handler_cancellation=True), shutdown_timeout=0.5
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    fake.port = runner.addresses[0][1]
    try:
        yield fake
    finally:
        fake.release.set()
        await runner.cleanup()
