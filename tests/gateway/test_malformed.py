"""What no good client sends: always an answer, never a 5xx, nothing of it at an engine, nothing in the log.

Bytes over a socket, since every library would mend them.
"""

import asyncio
import contextlib
import gzip
import json
import logging
from contextlib import asynccontextmanager
from typing import Any

import pytest

from supervisord_llm.config.keys.doors import read_network
from supervisord_llm.config.model import Config, Server, Site
from supervisord_llm.gateway import body
from supervisord_llm.gateway.doors import server
from tests.gateway.conftest import Build, House, client, config, model
from tests.gateway.test_websocket import talking
from tests.gateway.wire import (
    CHAT,
    JSON,
    KEY,
    NotingEngine,
    Reply,
    chunked,
    framed,
    get,
    post,
    replies,
    request,
)

POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\n"
)
CHUNKED = JSON + b"Transfer-Encoding: chunked\r\n"
SIZED = JSON + b"Content-Length: %d\r\n" % len(CHAT)
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
HANDSHAKE = WEBSOCKET + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
NOT_HTTP = (400, "invalid_request")
NOT_JSON = (400, "invalid_json")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not read on what is left of a refused body, as is done for clients that send before they read."""
    monkeypatch.setattr(server, "LINGER_S", 0.05)


def sized(payload: bytes) -> bytes:
    return POST + b"Content-Length: %d\r\n\r\n%s" % (len(payload), payload)


def chat_with(more: bytes) -> bytes:
    return b'{"model":"alpha",' + more + b"}"


def upgrade(*lines: bytes) -> bytes:
    return get(b"/v1/realtime?model=alpha", b"".join(lines))


FORM = b"--b\r\nContent-Disposition: form-data; name=model\r\n\r\nalpha\r\n--b--\r\n"

LINES: dict[str, bytes] = {
    "no host": b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
    "two hosts": get(b"/healthz", b"Host: y\r\n"),
    "the same host twice": get(b"/healthz", b"Host: x\r\n"),
    "a user in the host": request(host=b"u@x"),
    "a space in the host": request(host=b"x y"),
    "a path in the host": request(host=b"x/y"),
    "two hosts in one": request(host=b"x,y"),
    "a host of no encoding": request(host=b"\xff"),
    "another host in the target": get(b"http://other/healthz"),
    "a user in the target": get(b"http://u:p@x/healthz"),
    "another port in the target": get(b"http://x:81/healthz"),
    "HTTP/2.0": request(b"GET /healthz HTTP/2.0"),
    "HTTP/0.9": request(b"GET /healthz HTTP/0.9"),
    "HTTP/1.2": request(b"GET /healthz HTTP/1.2"),
    "HTTP/9.9": request(b"GET /healthz HTTP/9.9"),
    "no version": b"GET /healthz\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tab for a space": request(b"GET\t/healthz HTTP/1.1"),
    "a space in the target": request(b"GET /heal thz HTTP/1.1"),
    "a method in small letters": request(b"get /healthz HTTP/1.1"),
    "no method": request(b"GE(T /healthz HTTP/1.1"),
    "no target": request(b"GET  HTTP/1.1"),
    "a target without a slash": request(b"GET x:80 HTTP/1.1"),
    "LF for CRLF": get(b"/healthz").replace(b"\r\n", b"\n"),
    "CR for CRLF": b"GET /healthz HTTP/1.1\rHost: x\r\r",
    "LF within a header": get(b"/healthz", b"X: 1\nY: 2\r\n"),
    "CR within a header": get(b"/healthz", b"X: 1\rY: 2\r\n"),
    "a folded header": get(b"/healthz", b"X: 1\r\n folded\r\n"),
    "a folded first header": b"GET /healthz HTTP/1.1\r\n Host: x\r\n\r\n",
    "a space before the colon": get(b"/healthz", b"X : 1\r\n"),
    "a space in a name": get(b"/healthz", b"Bad Header: 1\r\n"),
    "no name": get(b"/healthz", b": 1\r\n"),
    "no colon": get(b"/healthz", b"XYZ\r\n"),
    "a name of no encoding": get(b"/healthz", b"X-\xff: 1\r\n"),
    "NUL in a name": get(b"/healthz", b"X\0: 1\r\n"),
    "NUL in a value": get(b"/healthz", b"X: a\0b\r\n"),
    "NUL in the target": get(b"/v1/\0"),
    "NUL in the query": get(b"/healthz?a=\0"),
    "a target of no encoding": get(b"/v1/\xff"),
    "DEL in the target": get(b"/a\x7f"),
    "a long target": get(b"/" + b"a" * 100_000),
    "a long query": get(b"/healthz?" + b"a" * 100_000),
    "a long value": get(b"/healthz", b"X: " + b"a" * 100_000 + b"\r\n"),
    "a long name": get(b"/healthz", b"a" * 100_000 + b": 1\r\n"),
    "5000 headers": get(b"/healthz", b"".join(b"X-%d: 1\r\n" % n for n in range(5000))),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "nonsense": b"nonsense\r\n\r\n",
}
FRAMING: dict[str, bytes] = {
    "length and chunks": framed(CHUNKED + b"Content-Length: 4\r\n", chunked(CHAT)),
    "chunks and length": framed(JSON + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", chunked(CHAT)),
    "chunked twice": framed(CHUNKED + b"Transfer-Encoding: chunked\r\n", chunked(CHAT)),
    "chunked, then x": framed(CHUNKED + b"Transfer-Encoding: x\r\n", chunked(CHAT)),
    "x, then chunked": framed(b"Transfer-Encoding: x\r\n" + CHUNKED, chunked(CHAT)),
    "chunked, chunked": framed(JSON + b"Transfer-Encoding: chunked, chunked\r\n", chunked(CHAT)),
    "gzip, chunked": framed(JSON + b"Transfer-Encoding: gzip, chunked\r\n", chunked(gzip.compress(CHAT))),
    "chunked, gzip": framed(JSON + b"Transfer-Encoding: chunked, gzip\r\n", chunked(CHAT)),
    "identity": framed(SIZED + b"Transfer-Encoding: identity\r\n", CHAT),
    "xchunked": framed(JSON + b"Transfer-Encoding: xchunked\r\n", chunked(CHAT)),
    "chunked with a parameter": framed(JSON + b"Transfer-Encoding: chunked;q=1\r\n", chunked(CHAT)),
    "chunked in quotes": framed(JSON + b'Transfer-Encoding: "chunked"\r\n', chunked(CHAT)),
    "chunked after VT": framed(JSON + b"Transfer-Encoding: \x0bchunked\r\n", chunked(CHAT)),
    "chunked, folded": framed(JSON + b"Transfer-Encoding:\r\n chunked\r\n", chunked(CHAT)),
    "a space before its colon": framed(JSON + b"Transfer-Encoding : chunked\r\n", chunked(CHAT)),
    "an empty coding": framed(SIZED + b"Transfer-Encoding:\r\n", CHAT),
    "chunks in HTTP/1.0": framed(CHUNKED, chunked(CHAT)).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "two lengths": framed(SIZED + b"Content-Length: 5\r\n", CHAT),
    "the same length twice": framed(SIZED + b"Content-Length: %d\r\n" % len(CHAT), CHAT),
    "a list of lengths": framed(JSON + b"Content-Length: %d, %d\r\n" % (len(CHAT), len(CHAT)), CHAT),
    "a negative length": framed(JSON + b"Content-Length: -1\r\n", CHAT),
    "a length with a sign": framed(JSON + b"Content-Length: +%d\r\n" % len(CHAT), CHAT),
    "a length in hex": framed(JSON + b"Content-Length: 0x3d\r\n", CHAT),
    "a length with a gap": framed(JSON + b"Content-Length: 6 1\r\n", CHAT),
    "a length with letters": framed(JSON + b"Content-Length: 1x\r\n", CHAT),
    "a length with _": framed(JSON + b"Content-Length: 6_1\r\n", CHAT),
    "no length in it": framed(JSON + b"Content-Length:\r\n", CHAT),
    "digits of another script": framed(JSON + "Content-Length: ٦١\r\n".encode(), CHAT),
    "a huge length": framed(JSON + b"Content-Length: 99999999999999999999999\r\n", CHAT),
    "no size": framed(CHUNKED, b"\r\n%s\r\n0\r\n\r\n" % CHAT),
    "a size of letters": framed(CHUNKED, b"zz\r\n%s\r\n0\r\n\r\n" % CHAT),
    "a size with 0x": framed(CHUNKED, b"0x%x\r\n%s\r\n0\r\n\r\n" % (len(CHAT), CHAT)),
    "a negative size": framed(CHUNKED, b"-1\r\n%s\r\n0\r\n\r\n" % CHAT),
    "a size that runs over": framed(CHUNKED, b"ffffffffffffffffff\r\n%s\r\n0\r\n\r\n" % CHAT),
    "a space after a size": framed(CHUNKED, b"%x \r\n%s\r\n0\r\n\r\n" % (len(CHAT), CHAT)),
    "a space before a size": framed(CHUNKED, b" %x\r\n%s\r\n0\r\n\r\n" % (len(CHAT), CHAT)),
    "a size that is too small": framed(CHUNKED, b"3\r\n%s\r\n0\r\n\r\n" % CHAT),
    "no CRLF after a chunk": framed(CHUNKED, b"%x\r\n%s0\r\n\r\n" % (len(CHAT), CHAT)),
    "LF after a size": framed(CHUNKED, b"%x\n%s\n0\n\n" % (len(CHAT), CHAT)),
    "LF in an extension": framed(CHUNKED, b"%x;a\nb\r\n%s\r\n0\r\n\r\n" % (len(CHAT), CHAT)),
    "a length in a trailer": framed(CHUNKED, chunked(CHAT)[:-2] + b"Content-Length: 5\r\n\r\n"),
    "5000 trailers": framed(CHUNKED, chunked(CHAT)[:-2] + b"X: 1\r\n" * 5000 + b"\r\n"),
    "two types": framed(SIZED + b"Content-Type: text/plain\r\n", CHAT),
}
REFUSED: dict[str, tuple[bytes, tuple[int, str]]] = {
    **{name: (raw, NOT_HTTP) for name, raw in LINES.items()},
    **{name: (raw, NOT_HTTP) for name, raw in FRAMING.items()},
    "no body": (POST + b"\r\n", NOT_JSON),
    "half an object": (post(b"{"), NOT_JSON),
    "a list": (post(b"[]"), NOT_JSON),
    "a string": (post(b'"alpha"'), NOT_JSON),
    "null": (post(b"null"), NOT_JSON),
    "two objects": (post(CHAT + CHAT), NOT_JSON),
    "deep lists": (post(b"[" * 100_000), NOT_JSON),
    "deep lists in a field": (post(chat_with(b'"x":' + b"[" * 100_000 + b"]" * 100_000)), NOT_JSON),
    "deep objects": (post(chat_with(b'"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000)), NOT_JSON),
    "UTF-16": (post('{"model":"alpha"}'.encode("utf-16")), NOT_JSON),
    "Latin-1": (post(b'{"model":"caf\xe9"}'), NOT_JSON),
    "an overlong NUL": (post(b'{"model":"\xc0\x80"}'), NOT_JSON),
    "a byte order mark": (post(b"\xef\xbb\xbf" + CHAT), NOT_JSON),
    "half a surrogate": (post(b'{"model":"\\ud800"}'), NOT_JSON),
    "half a surrogate in a field": (post(chat_with(b'"x":"\\udc00"')), NOT_JSON),
    "half a surrogate in a key": (post(chat_with(b'"\\udc00":1')), NOT_JSON),
    "NaN": (post(chat_with(b'"temperature":NaN')), NOT_JSON),
    "Infinity": (post(chat_with(b'"temperature":-Infinity')), NOT_JSON),
    "a comment": (post(chat_with(b'"x":1/**/')), NOT_JSON),
    "a control character": (post(chat_with(b'"x":"\x01"')), NOT_JSON),
    "too many to count": (post(chat_with(b'"n":' + b"1" * 400)), (400, "invalid_request")),
    "too few to count": (post(chat_with(b'"n":-' + b"1" * 400)), (400, "invalid_request")),
    "10,000 digits": (post(chat_with(b'"n":' + b"1" * 10_000)), (400, "invalid_request")),
    "1e999": (post(chat_with(b'"n":1e999')), (400, "invalid_request")),
    "a stream by another name of true": (post(chat_with(b'"stream":1')), (400, "invalid_request")),
    "a model that is a number": (post(b'{"model":1}'), (400, "invalid_request")),
    "a model that is a list": (post(b'{"model":["alpha"]}'), (400, "invalid_request")),
    "a model of 1 MB": (post(b'{"model":"' + b"x" * 1_000_000 + b'"}'), (404, "model_not_found")),
    "a model that climbs": (post(b'{"model":"../../etc/passwd"}'), (404, "model_not_found")),
    "a model with NUL": (post(b'{"model":"alpha\\u0000"}'), (404, "model_not_found")),
    "a model in capitals": (post(b'{"model":"Alpha"}'), (404, "model_not_found")),
    "no type": (post(headers=b""), (415, "unsupported_media_type")),
    "plain text": (post(headers=b"Content-Type: text/plain\r\n"), (415, "unsupported_media_type")),
    "a type of no encoding": (post(headers=b"Content-Type: \xff\r\n"), (415, "unsupported_media_type")),
    "a form for what takes JSON": (
        post(FORM, b"Content-Type: multipart/form-data; boundary=b\r\n"),
        (415, "unsupported_media_type"),
    ),
    "a form without a boundary": (
        post(FORM, b"Content-Type: multipart/form-data\r\n", b"/v1/audio/transcriptions"),
        (400, "invalid_request"),
    ),
    "gzip": (post(headers=JSON + b"Content-Encoding: gzip\r\n"), (415, "unsupported_media_type")),
    "a bogus coding": (post(headers=JSON + b"Content-Encoding: bogus\r\n"), (415, "unsupported_media_type")),
    "two codings": (
        post(headers=JSON + b"Content-Encoding: gzip, identity\r\n"),
        (415, "unsupported_media_type"),
    ),
    "a bomb": (
        post(gzip.compress(b" " * 10_000_000), JSON + b"Content-Encoding: gzip\r\n"),
        (415, "unsupported_media_type"),
    ),
    "a miracle": (post(headers=JSON + b"Expect: a-miracle\r\n"), (417, "expectation_failed")),
    "an order that is no JSON": (post(b"{", target=b"/admin/start"), NOT_JSON),
    "an order without a name": (post(b"{}", target=b"/admin/start"), (400, "invalid_request")),
    "an unlisted method": (request(b"PUT /v1/chat/completions HTTP/1.1"), (405, "method_not_allowed")),
    "TRACE": (request(b"TRACE /v1/chat/completions HTTP/1.1"), (405, "method_not_allowed")),
    "CONNECT": (request(b"CONNECT x:80 HTTP/1.1"), (404, "not_found")),
    "CONNECT with a request in it": (
        request(b"CONNECT x:80 HTTP/1.1", b"Content-Length: 3\r\n", b"abc"),
        (404, "not_found"),
    ),
    "*": (request(b"OPTIONS * HTTP/1.1"), (404, "not_found")),
    "a websocket without a key": (upgrade(WEBSOCKET), (400, "invalid_request")),
    "one with a short key": (upgrade(WEBSOCKET, b"Sec-WebSocket-Key: YQ==\r\n"), (400, "invalid_request")),
    "one with a key that is no base64": (
        upgrade(WEBSOCKET, b"Sec-WebSocket-Key: !\r\n"),
        (400, "invalid_request"),
    ),
    "one with a key of no encoding": (
        upgrade(WEBSOCKET, b"Sec-WebSocket-Key: \xff\r\n"),
        (400, "invalid_request"),
    ),
    "one of version 99": (upgrade(HANDSHAKE.replace(b"13", b"99")), (400, "invalid_request")),
    "one without Connection": (
        upgrade(HANDSHAKE.replace(b"Connection: Upgrade\r\n", b"")),
        (400, "invalid_request"),
    ),
    "a request where only a websocket goes": (upgrade(), (400, "invalid_request")),
}
CLIMBS = (
    *(b"/alpha/../admin/status", b"/alpha/%2e%2e/admin/status", b"/alpha/..;/admin/status"),
    *(b"/alpha/%252e%252e/admin/status", b"/alpha/..%2fadmin/status", b"/alpha/..%5cadmin%5cstatus"),
    *(b"/./admin/status", b"//admin/status", b"/admin//status", b"/admin/./status", b"/admin/status/."),
    *(b"/admin/status%00", b"/admin/status;x", b"/admin%2fstatus", b"/ADMIN/status", b"/%61dmin/status"),
    *(b"http://x//admin/status", b"HTTP://x/admin/status", b"http://x/../admin/status"),
    *(b"/v1/../sleep", b"/v1/%2e%2e/sleep", b"/v1/%73leep", b"/sleep", b"/alpha/sleep", b"/alpha/v1/sleep"),
    *(b"/v1/chat/../../sleep", b"/v1/chat/completions/../../../sleep", b"/v1/chat%2fcompletions"),
    *(b"/v1/chat/completions%00", b"/v1/chat/completions%20", b"/v1/chat/completions;a=b"),
    *(b"/v1//chat/completions", b"//v1/chat/completions", b"/v1\\chat\\completions"),
    *(b"/v1/chat/completions#", b"/v1/chat/completions/x", b"/v1/chat/completions\\..\\..\\sleep"),
    *(b"/collective_rpc", b"/alpha/collective_rpc", b"/v1/load_lora_adapter", b"/invocations", b"/metrics/x"),
    *(b"/v1/responses/..", b"/v1/responses/%2e%2e", b"/v1/responses/../../sleep", b"/docs", b"/api/%2e"),
)
"""Ways to what is not there, or not there for everyone."""


async def ask(house: House, raw: bytes) -> Reply:
    """The one answer."""
    (reply,) = replies(await house.raw(raw))
    return reply


async def until_cut_off(house: House, start: bytes, more: bytes, pause_s: float) -> None:
    """Send `more` again and again, until the connection ends."""
    _, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(start)
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(more)
                await writer.drain()
                await asyncio.sleep(pause_s)
    writer.transport.abort()


async def test_every_malformed_request_has_its_answer_and_the_engine_sees_none_of_them(build: Build) -> None:
    engine = NotingEngine()
    wrong = {}
    everyone = config(model("alpha"), model("beta"), clients=(client("a", admin=True),))
    async with build(everyone, scripts={"alpha": engine, "beta": engine}) as house:
        assert (await ask(house, post(headers=KEY + JSON))).status == 200
        engine.seen.clear()
        for name, (raw, expected) in REFUSED.items():
            keyed = raw.replace(b"\r\nConnection: close\r\n", b"\r\nConnection: close\r\n" + KEY)
            reply = await ask(house, keyed)
            if (reply.status, reply.error["code"]) != expected or "x-request-id" not in reply.headers:
                wrong[name] = reply
        assert wrong == {}
        assert engine.seen == []
        assert (await ask(house, post(headers=KEY + JSON))).status == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_way_leads_to_what_is_not_offered(build: Build, method: str) -> None:
    engine = NotingEngine()
    found = {}
    async with build(config(model("alpha"), clients=(client("a"),)), scripts={"alpha": engine}) as house:
        for target in CLIMBS:
            line = method.encode() + b" " + target + b" HTTP/1.1"
            reply = await ask(house, request(line, KEY + SIZED, CHAT))
            if reply.status not in (404, 405):
                found[target] = reply
    assert found == {}
    assert engine.seen == []


PASSED: dict[str, bytes] = {
    "as usual": post(),
    "a header in Latin-1": post(headers=JSON + b"X-A: caf\xe9\r\n"),
    "a header in UTF-8": post(headers=JSON + "X-A: café\r\n".encode()),
    "chunks": framed(CHUNKED, chunked(CHAT[:5], CHAT[5:])),
    "CHUNKED": framed(JSON + b"Transfer-Encoding: CHUNKED\r\n", chunked(CHAT)),
    "zeros in front of a size": framed(CHUNKED, b"00000000%x\r\n%s\r\n0\r\n\r\n" % (len(CHAT), CHAT)),
    "an extension": framed(CHUNKED, b"%x;a=b;c\r\n%s\r\n0\r\n\r\n" % (len(CHAT), CHAT)),
    "a trailer": framed(CHUNKED, chunked(CHAT)[:-2] + b"X-Trailer: 1\r\n\r\n"),
    "no trailer at all": framed(JSON + b"Transfer_Encoding: chunked\r\n" + SIZED.replace(JSON, b""), CHAT),
    "zeros in front of a length": framed(JSON + b"Content-Length: 00%d\r\n" % len(CHAT), CHAT),
    "a host in the target": post(target=b"http://x/v1/chat/completions"),
    "no host in HTTP/1.0": post().replace(b"HTTP/1.1\r\nHost: x", b"HTTP/1.0"),
    "empty lines before": b"\r\n\r\n" + post(),
    "headers that concern us": post(headers=JSON + b"Connection: X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\n"),
    "another protocol": post(headers=JSON + b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n"),
    "a websocket that is a POST": post(headers=JSON + HANDSHAKE),
    "a request id that is none": post(headers=JSON + b"X-Request-Id: a b\xff\r\n"),
    "a patience that is none": post(headers=JSON + b"x-stainless-read-timeout: nan\r\n"),
}
NOT_FOR_ENGINES = b"Cookie: a=1\r\nOrigin: http://o\r\nReferer: http://o/?key-a\r\nX-Forwarded-For: 1\r\n"
NEVER_THERE = (
    *("upgrade", "te", "trailer", "x-trailer", "x-mine", "transfer-encoding", "expect", "cookie", "origin"),
    *("authorization", "x-api-key", "api-key", "referer", "sec-websocket-protocol", "x-forwarded-for"),
)


async def test_what_passes_is_framed_anew(build: Build) -> None:
    """The engine gets one request with one length, whatever the client wrote around it."""
    engine = NotingEngine()
    async with build(config(model("alpha"), clients=(client("a"),)), scripts={"alpha": engine}) as house:
        for name, raw in PASSED.items():
            engine.seen.clear()
            head, blank, rest = raw.rpartition(b"Content-Type: application/json\r\n")
            reply = await ask(house, head + KEY + NOT_FOR_ENGINES + blank + rest)
            assert reply.status == 200, (name, reply)
            ((line_and_headers, seen),) = engine.seen
            lines = line_and_headers.decode().split("\r\n")
            headers = [line.partition(":")[0].lower() for line in lines[1:-2]]
            assert lines[0] == "POST /v1/chat/completions HTTP/1.1", name
            assert seen == CHAT, name
            assert headers.count("content-length") == headers.count("host") == 1, name
            assert not {*headers} & {*NEVER_THERE}, name
            assert "key-a" not in line_and_headers.decode()


async def test_ollamas_bodies_may_nest_as_deep_as_others(build: Build) -> None:
    """What is made of them is deeper still, and must be read again."""
    engine = NotingEngine()
    async with build(config(model("alpha")), scripts={"alpha": engine}) as house:
        for depth in (200, *range(940, 1000, 3), 5000):
            schema = b'{"a":' * depth + b"1" + b"}" * depth
            for field in (
                b'"format":',
                b'"options":',
                b'"tools":[{}],"x":',
                b'"messages":[{"role":"user"}],"y":',
            ):
                raw = post(
                    b'{"model":"alpha","messages":[{"role":"x"}],' + field + schema + b"}", b"", b"/api/chat"
                )
                reply = await ask(house, raw)
                assert (reply.status, list(json.loads(reply.body))) == (400, ["error"])
    assert engine.seen == []


async def test_the_head_of_what_goes_on_for_ever_is_whole(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        (reply,) = replies(await house.raw(request(b"HEAD /models/sse HTTP/1.1")), "HEAD")
        assert (reply.status, reply.body) == (200, b"")


SMUGGLED = b"GET /admin/status HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n"


async def test_nothing_is_read_behind_what_cannot_be_read(build: Build) -> None:
    """Where one request ends is not certain then, so that the next may be the body of this one."""
    everyone = config(model("alpha"), clients=(client("a", admin=True),))
    async with build(everyone, scripts={"alpha": NotingEngine()}) as house:
        for name, raw in (LINES | FRAMING).items():
            raw = raw.replace(b"Connection: close\r\n", KEY)
            answers = replies(await house.raw(raw + SMUGGLED))
            assert [answer.status for answer in answers] == [400], name


async def test_pipelined_requests_are_answered_in_order_and_each_needs_its_key(build: Build) -> None:
    with_key = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nx-api-key: key-a\r\n\r\n"
    without = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with build(config(model("alpha"), clients=(client("a"),))) as house:
        answer = await house.raw(with_key + with_key + without)
        assert [reply.status for reply in replies(answer)] == [200, 200, 401]
        many = await house.raw(with_key * 500 + without)
        assert [reply.status for reply in replies(many)] == [200] * 500 + [401]


async def test_what_a_declined_upgrade_left_behind_is_a_request_like_others(build: Build) -> None:
    """aiohttp stops to parse there: what follows must neither be lost nor come in without its key."""
    asks = HANDSHAKE.replace(b"13", b"99")
    first = b"GET /v1/realtime?model=alpha HTTP/1.1\r\nHost: x\r\n" + KEY + asks + b"\r\n"
    async with build(config(model("alpha"), clients=(client("a"),))) as house:
        answer = await house.raw(first + SMUGGLED + get(b"/v1/models"))
        assert [reply.status for reply in replies(answer)] == [400, 403, 401]


@pytest.mark.parametrize(
    ("body", "routed"),
    [
        (b'{"model":"beta","model":"alpha"}', "alpha"),
        (b'{"model":"alpha","model":"beta"}', "beta"),
        (b'{"mod\\u0065l":"alpha","model":"beta"}', "beta"),
        (b'{"model":"alpha","mod\\u0065l":"beta"}', "beta"),
        (b'{"model":"alpha","model":null}', "beta"),
        (b'{"model":"alpha","Model":"beta"}', "alpha"),
        (b'{"model":"alpha","x":{"model":"beta"}}', "alpha"),
        (b'{"x":"\\",\\"model\\":\\"beta","model":"alpha"}', "alpha"),
    ],
)
async def test_the_engine_sees_the_model_that_the_request_was_routed_by(
    build: Build, body: bytes, routed: str
) -> None:
    alpha, beta = NotingEngine(), NotingEngine()
    settings = config(model("alpha"), model("beta"), server=Server(default_model="beta"))
    async with build(settings, scripts={"alpha": alpha, "beta": beta}) as house:
        assert (await ask(house, post(body))).status == 200
        ((_, seen),) = {"alpha": alpha, "beta": beta}[routed].seen
        assert json.loads(seen).get("model") in (routed, None)
        assert len(alpha.seen) + len(beta.seen) == 1


async def test_no_header_can_be_injected_by_a_name(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        for raw in (
            get(b"/v1/models/a%0d%0aX-Injected:%201"),
            get(b"/v1/models", b"X-Request-Id: a%0d%0aX-Injected: 1\r\n"),
            post(b'{"model":"a\\r\\nX-Injected: 1"}'),
            get(b"/v1/models", b"Origin: http://o%0d%0aX-Injected: 1\r\n"),
        ):
            assert "x-injected" not in (await ask(house, raw)).headers


async def test_bodies_above_the_limit_are_refused_unread(build: Build) -> None:
    engine = NotingEngine()
    small = config(model("alpha"), server=Server(max_body_bytes=1000))
    async with build(small, scripts={"alpha": engine}) as house:
        declared = await ask(house, POST + b"Content-Length: 1001\r\n\r\n")
        chunk = b"200\r\n" + b"x" * 512 + b"\r\n"
        pieces = await ask(house, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2)
        for reply in (declared, pieces):
            assert (reply.status, reply.error["code"]) == (413, "body_too_large")
            assert reply.headers["connection"] == "close"
        assert engine.seen == []
        assert (await ask(house, sized(CHAT + b" " * (1000 - len(CHAT))))).status == 200


async def test_an_endless_body_is_cut_off(build: Build) -> None:
    """Nobody reads it to its end, be it for an endpoint that takes a body or for one that does not."""
    small = config(model("alpha"), server=Server(max_body_bytes=1000))
    async with build(small, scripts={"alpha": NotingEngine()}) as house:
        for line in (b"POST /v1/chat/completions HTTP/1.1", b"GET /healthz HTTP/1.1"):
            chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
            await until_cut_off(house, request(line, CHUNKED), chunk, pause_s=0)


async def test_100_continue_is_sent_before_the_body_is_read(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(CHAT))
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(CHAT)
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_silent_connections_and_bodies_are_closed(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.05)
    monkeypatch.setattr(body, "SILENCE_S", 0.05)
    async with build(config(model("alpha"))) as house:
        assert await house.raw(b"") == b""
        assert await house.raw(b"GET /healthz HTTP/1.1\r\nHo") == b""
        for stalled in (
            POST + b"Content-Length: 100\r\n\r\n{",
            POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{",
            POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 100_000,
        ):
            assert (await ask(house, stalled)).error["code"] == "request_timeout"


async def test_a_head_that_trickles_ends(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a byte comes, on a new connection and on one that has been of use."""
    monkeypatch.setattr(server, "HEAD_S", 0.3)
    monkeypatch.setattr(server, "IDLE_S", 0.3)
    async with build(config(model("alpha"))) as house:
        for first in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
            await until_cut_off(house, first + b"GET / HTTP/1.1\r\nX: ", b"x", pause_s=0.02)


# --- websockets -----------------------------------------------------------------------------------


def frame(first: int, payload: bytes = b"", length: bytes = b"") -> bytes:
    """A frame as a client sends it, masked with zeros; `first` is FIN, RSV and opcode."""
    size = length or bytes([0x80 | len(payload)])
    return bytes([first]) + size + b"\0\0\0\0" + payload


FRAMES: dict[str, tuple[bytes, int]] = {
    "a reserved bit": (frame(0xC1, b"hi"), 1002),
    "a reserved opcode": (frame(0x83, b"hi"), 1002),
    "a reserved control": (frame(0x8B), 1002),
    "half a ping": (frame(0x09, b"hi"), 1002),
    "a long ping": (frame(0x89, b"x" * 126, b"\xfe\x00\x7e"), 1002),
    "a rest without a beginning": (frame(0x80, b"hi"), 1002),
    "a beginning within a message": (frame(0x01, b"a") + frame(0x81, b"b"), 1002),
    "a text that is none": (frame(0x81, b"\xff\xfe"), 1007),
    "a text that ends within a character": (frame(0x01, b"\xe6") + frame(0x80, b""), 1007),
    "a huge message": (frame(0x82, b"", b"\xff\x00\x00\x00\xff\x00\x00\x00\x00"), 1009),
    "a length below zero": (frame(0x82, b"", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"), 1009),
    "many small parts of a huge message": (frame(0x02) + frame(0x00, b"x" * 100) * 100, 1009),
    "a goodbye of one byte": (frame(0x88, b"x"), 1002),
    "a goodbye with a code that is none": (frame(0x88, b"\x00\x63"), 1002),
    "a goodbye that is no text": (frame(0x88, b"\x03\xe8\xff"), 1007),
    "a request": (get(b"/healthz"), 1002),
}


async def test_frames_that_are_none_end_a_websocket_with_the_code_for_it(build: Build) -> None:
    settings = config(model("alpha"), clients=(client("a"),), server=Server(max_body_bytes=5000))
    got = {}
    async with talking(build, settings) as house:
        for name, (raw, _) in FRAMES.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
            writer.write(upgrade(KEY, HANDSHAKE) + raw)
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 101 "), (name, head)
                rest = await reader.read()
            closing = rest.rpartition(b"\x88")[2]  # after its length: the code
            got[name] = int.from_bytes(closing[1:3], "big")
            writer.close()
        await house.until(lambda: not house.runtime.fleet.engines["alpha"].leases)
    assert got == {name: code for name, (_, code) in FRAMES.items()}


# --- sites and proxies ----------------------------------------------------------------------------


@asynccontextmanager
async def beside_a_site(build: Build, port: int) -> Any:
    """(house, what the site saw, what the engine saw): a site by host and one by path, both the same."""
    site, engine = NotingEngine(), NotingEngine()
    listening = await asyncio.start_server(site, "127.0.0.1", port)
    upstream = f"http://127.0.0.1:{port}/part"
    settings: Config = config(
        model("alpha"),
        clients=(client("a"),),
        server=Server(trusted_proxies=(read_network("127.0.0.0/8"),)),
        cors_origins=("http://o",),
        sites=(
            Site(name="chat", upstream=upstream, hosts=("chat.lan",)),
            Site(name="graphs", upstream=upstream, path="/grafana"),
        ),
    )
    async with build(settings, scripts={"alpha": engine}) as house:
        yield house, site.seen, engine.seen
    listening.close()


HOSTS: dict[str, tuple[bytes, int]] = {
    "the site's": (request(host=b"chat.lan"), 200),
    "the target's": (request(b"GET http://chat.lan/ HTTP/1.1", host=b"chat.lan"), 200),
    "the target's alone": (request(b"GET http://chat.lan/ HTTP/1.1", host=b"x"), 400),
    "the header's alone": (request(b"GET http://x/ HTTP/1.1", host=b"chat.lan"), 400),
    "the second": (request(headers=b"Host: chat.lan\r\n"), 400),
    "with a user": (request(host=b"u@chat.lan"), 400),
    "with a space": (request(host=b"chat.lan x"), 400),
    "with two ports": (request(b"GET /v1/models HTTP/1.1", host=b"chat.lan:1:2"), 401),
    "with a port that is none": (request(b"GET /v1/models HTTP/1.1", host=b"chat.lan:x"), 401),
    "another's": (request(b"GET /v1/models HTTP/1.1", host=b"xchat.lan"), 401),
}


async def test_a_site_is_had_by_its_own_host_alone(build: Build, unused_tcp_port: int) -> None:
    async with beside_a_site(build, unused_tcp_port) as (house, seen, _):
        for name, (raw, status) in HOSTS.items():
            seen.clear()
            assert (await ask(house, raw)).status == status, name
            assert len(seen) == (status == 200), name


OUT_OF_A_SITE = (
    *(b"/grafana/..", b"/grafana/../x", b"/grafana/./x", b"/grafana/%2e%2E/x", b"/grafana/..;/x"),
    *(b"/grafana/..%2fx", b"/grafana/..%5cx", b"/grafana/..\\x", b"/grafana/%252e%252e/x", b"/grafana/.;a/x"),
    *(b"/grafana/%2e%2e%2f%2e%2e%2fx", b"/grafana/a%2f..%2f..", b"/grafana/%252e%252e%252fx"),
)


async def test_no_way_leads_out_of_a_site(build: Build, unused_tcp_port: int) -> None:
    async with beside_a_site(build, unused_tcp_port) as (house, seen, _):
        for target in OUT_OF_A_SITE:
            assert (await ask(house, get(target))).error["code"] == "not_found", target
        assert seen == []
        for target in (b"/grafana/a..b/...", b"/grafana/%2f", b"/grafana/a%20b", b"/grafana/?../.."):
            assert (await ask(house, get(target))).status == 200, target


async def test_what_a_client_says_of_itself_is_no_more_than_a_claim(
    build: Build, unused_tcp_port: int
) -> None:
    claims = (
        b"X-Forwarded-For: " + b"1.1.1.1," * 1000 + b"\r\n",
        b"X-Forwarded-For: \xff, ,::1%\x41,1.2.3.4:99999999,[::1,,,\r\n",
        b"X-Forwarded-For: " + b"9" * 8000 + b"\r\n",
        b"X-Forwarded-Proto: javascript\r\nX-Forwarded-Host: \xff, a\r\n",
        b"X-Original-URL: /admin/status\r\nX-Rewrite-URL: /admin/status\r\n",
        b"X-HTTP-Method-Override: DELETE\r\nForwarded: for=127.0.0.1\r\n",
    )
    async with beside_a_site(build, unused_tcp_port) as (house, seen, engine_saw):
        for claim in claims:
            assert (await ask(house, get(b"/v1/models", claim))).status == 401
            assert (await ask(house, get(b"/grafana/", claim))).status == 200
            assert (await ask(house, post(headers=KEY + JSON + claim))).status == 200
        for head, _ in engine_saw:
            assert b"forwarded" not in head.lower()
            assert b"x-original" not in head.lower()
        assert len(seen) == len(claims)


async def test_a_preflight_is_never_an_error(build: Build, unused_tcp_port: int) -> None:
    lines = (
        b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: " + b"a," * 3900 + b"\r\n",
        b"Access-Control-Request-Method: \xff\r\nAccess-Control-Request-Headers: \xff, a b, (\r\n",
        b"Access-Control-Request-Method: POST\r\n",
    )
    async with beside_a_site(build, unused_tcp_port) as (house, _, engine_saw):
        for origin in (b"http://o", b"null", b"\xff", b"http://o, http://evil", b"http://O"):
            for line in lines:
                asks = b"Origin: " + origin + b"\r\n" + line
                reply = await ask(house, request(b"OPTIONS /v1/chat/completions HTTP/1.1", asks))
                assert reply.status == 204
                allowed = reply.headers.get("access-control-allow-origin")
                assert allowed == ("http://o" if origin == b"http://o" else None)
        assert engine_saw == []


# --- the log --------------------------------------------------------------------------------------


async def test_neither_keys_nor_prompts_are_logged(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = b"Authorization: Bearer sk-verysecret\r\n"
    payload = b'{"model":"alpha","messages":[{"role":"user","content":"my-private-prompt"}]}'
    async with build(config(model("alpha"))) as house:
        await house.raw(sized(payload).replace(b"Host: x\r\n", b"Host: x\r\n" + secret))
        await house.raw(sized(payload).replace(b"Host: x\r\n", b"Host: x\r\nBad Header: 1\r\n" + secret))
        await house.raw(POST + secret + b"Transfer-Encoding: chunked\r\n\r\nzz" + payload)
        await house.raw(sized(b'{"model":"a\\u001b[31m\\nFAKE","x":"my-private-prompt"}'))
        await house.raw(get(b"/v1/models?api_key=sk-verysecret"))
        await house.raw(get(b"/my-private-prompt/v1/verysecret"))
    lines = [record.getMessage() + str(record.exc_info or "") for record in caplog.records]
    assert any("POST /v1/chat/completions 200" in line for line in lines)
    assert any("GET /*/v1/* 404" in line for line in lines)
    for line in lines:
        assert "verysecret" not in line
        assert "my-private-prompt" not in line
        assert "\x1b" not in line


async def test_a_key_in_the_query_opens_nothing_and_goes_no_further(build: Build) -> None:
    engine = NotingEngine()
    async with build(config(model("alpha"), clients=(client("a"),)), scripts={"alpha": engine}) as house:
        for query in (b"api_key=key-a", b"key-a", b"a=1&key=key%2Da", b"key-a=1", b"=key-a&beta=true"):
            target = b"/v1/chat/completions?" + query
            assert (await ask(house, post(target=target))).status == 401
            assert (await ask(house, post(headers=KEY + JSON, target=target))).status == 200
        lines = [head.partition(b" HTTP/1.1\r\n")[0].rpartition(b"completions")[2] for head, _ in engine.seen]
        assert lines == [b"", b"", b"?a=1", b"", b"?beta=true"]
