"""Real requests, broken at random, byte by byte: what they are made of and how they are sent."""

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.gateway.wire import CHAT, JSON, KEY, chunked, framed, get, post, replies, request

STREAM = CHAT[:-1] + b',"stream":true,"max_tokens":5}'
SPEECH = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nalpha\r\n--b\r\n'
    b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b"\x00\xff\x00\xff\r\n--b--\r\n"
)
PARTS = b'[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]'
UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
UPGRADE += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
ADMIN = b"x-api-key: key-admin\r\n"

SEEDS: Sequence[bytes] = (
    post(headers=KEY + JSON),
    post(STREAM, KEY + JSON),
    post(b'{"model":"alpha","messages":[{"role":"user","content":' + PARTS + b"}]}", KEY + JSON),
    post(STREAM, KEY + JSON, b"/alpha/v1/chat/completions?beta=true"),
    framed(KEY + JSON + b"Transfer-Encoding: chunked\r\n", chunked(CHAT[:9], CHAT[9:])),
    post(SPEECH, KEY + b"Content-Type: multipart/form-data; boundary=b\r\n", b"/v1/audio/transcriptions"),
    post(b'{"model":"alpha","input":["a","b","c"]}', KEY + JSON, b"/v1/embeddings"),
    post(b'{"model":"alpha","text_1":"a","text_2":"b"}', KEY + JSON, b"/v1/score2"),
    post(CHAT, KEY + JSON + b"Expect: 100-continue\r\n", b"/v1/messages"),
    post(CHAT, KEY + JSON + b"X-Request-Id: mine-1\r\n", b"/api/chat"),
    post(b'{"model":"alpha:latest","prompt":"hi","options":{"seed":1}}', KEY, b"/api/generate"),
    post(b'{"model":"alpha","input":["a"]}', KEY, b"/api/embed"),
    post(b'{"model":"alpha"}', KEY, b"/api/show"),
    post(CHAT, KEY + JSON).replace(b"HTTP/1.1", b"HTTP/1.0"),
    post(CHAT, KEY + JSON).replace(b"Connection: close\r\n", b"") + get(b"/v1/models", KEY),
    get(b"/v1/models/alpha", KEY),
    get(b"http://x/v1/responses/resp_1?stream=false", KEY),
    get(b"/v1/realtime?model=alpha", KEY + UPGRADE) + b"\x81\x82\0\0\0\0hi\x88\x82\0\0\0\0\x03\xe8",
    get(b"/site/page?a=b", b"Cookie: a=b\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n"),
    get(b"/site/socket", UPGRADE) + b"\x81\x82\0\0\0\0hi",
    framed(b"Transfer-Encoding: chunked\r\n", chunked(b"a", b"b"), b"/site/upload"),
    request(
        b"OPTIONS /v1/chat/completions HTTP/1.1",
        b"Origin: http://o\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: a\r\n",
    ),
    request(b"HEAD /healthz HTTP/1.1"),
    get(b"/admin/status", ADMIN),
    get(b"/admin/logs/alpha?n=5", ADMIN),
    get(b"/metrics", KEY),
)
TOKENS = (
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b'"', b"\\", b"/", b"%", b"?", b"#"),
    *(b"\xff", b"\r\n\r\n", b"..", b"%2e%2e", b"%00", b"//", b"0\r\n\r\n", b"ffffffff\r\n", b"-1", b"1e999"),
    *(
        b"NaN",
        b"9" * 5000,
        b"[" * 200,
        b'{"a":' * 200,
        b"null",
        b"true",
        b"[]",
        b"{}",
        b"\\u0000",
        b"\\ud800",
    ),
    *("é".encode(), b'"model":"beta",', b'"n":99,', b"data: {", b"[DONE]", b"key-a", b"key-admin", b"admin"),
    *(
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"GET ",
        b"POST ",
        b"HEAD ",
        b"DELETE ",
        b"CONNECT ",
        b"alpha",
        b"v1",
        UPGRADE,
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Host: y\r\n"),
    *(b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Origin: http://o\r\n"),
    *(b"X-Forwarded-For: \xff\r\n", b"Connection: keep-alive\r\n"),
)
_STATUS = re.compile(rb"^HTTP/1\.[01] ([0-9]{3}) ", re.MULTILINE)
_LENGTH = re.compile(rb"(\r\nContent-Length: )[0-9]+")
OURS = (500, 502, 503, 504)
"""Statuses that say that we failed, or the engine did."""


def mutated(chance: random.Random, seeds: Sequence[bytes] = SEEDS) -> bytes:
    """One of the seeds, changed anywhere, or only in a body whose length is told all the same."""
    raw = chance.choice(seeds)
    head, blank, body = raw.partition(b"\r\n\r\n")
    if not body or chance.random() < 0.5:
        return _changed(chance, raw, seeds)
    body = _changed(chance, body, [seed.partition(b"\r\n\r\n")[2] for seed in seeds])
    return _LENGTH.sub(b"\\g<1>%d" % len(body), head) + blank + body


def _changed(chance: random.Random, start: bytes, others: Sequence[bytes]) -> bytes:
    """After one to six changes."""
    raw = bytearray(start)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 6))):
        at = chance.randrange(len(raw) + 1)
        end = min(len(raw), at + chance.choice((1, 1, 2, 4, 16, 64)))
        match chance.randrange(8):
            case 0 if at < len(raw):
                raw[at] ^= 1 << chance.randrange(8)
            case 1:
                raw[at:at] = chance.randbytes(chance.choice((1, 2, 8)))
            case 2:
                del raw[at:end]
            case 3:
                raw[at:at] = raw[at:end] * chance.choice((1, 2, 100))
            case 4:
                raw[at:] = chance.choice(others)[at:]
            case 5:
                lines = bytes(raw).split(b"\r\n")
                chance.shuffle(lines)
                raw[:] = b"\r\n".join(lines)
            case 6:
                del raw[at:]
            case _:
                raw[at:end] = chance.choice(TOKENS)
    return bytes(raw)


@dataclass
class Fuzz:
    """Many connections at once, each with a mutated request; what came back."""

    port: int
    seed: int = 0
    wait_s: float = 0.1
    """How long an answer may take to go on before the request counts as incomplete."""
    seeds: Sequence[bytes] = SEEDS
    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    wrong: list[tuple[bytes, str]] = field(default_factory=list)
    """Requests whose answers are none, or say that we failed."""

    async def run(self, seconds: float, at_once: int = 16) -> None:
        """Until the time is over, or ten requests went wrong."""
        chance, ends_at = random.Random(self.seed), time.monotonic() + seconds

        async def send_on() -> None:
            while time.monotonic() < ends_at and len(self.wrong) < 10:
                await self.send(mutated(chance, self.seeds))

        await asyncio.gather(*(send_on() for _ in range(at_once)))

    async def send(self, raw: bytes) -> None:
        """One request; its answers are judged."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        came = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            writer.write(raw)
            while True:
                async with asyncio.timeout(self.wait_s):
                    chunk = await reader.read(65536)
                if not chunk:
                    break
                came += chunk
        writer.transport.abort()
        self.sent += 1
        self._judge(raw, came)

    def _judge(self, raw: bytes, came: bytes) -> None:
        if b" 101 Switching" in came or b"HEAD" in raw:  # what follows are frames, or maybe no body
            found = [int(status) for status in _STATUS.findall(came)]
        else:
            try:
                found = [answer.status for answer in replies(came)]
            except (ValueError, KeyError) as why:
                self.wrong.append((raw, f"{type(why).__name__} {why} in {came[:500]!r}"))
                return
        self.statuses.update(found)
        if set(found) & {*OURS}:
            self.wrong.append((raw, repr(came[:1000])))
