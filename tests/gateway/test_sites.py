"""Other web services behind the same door, with a real one as a child process."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

from supervisord_llm.config.keys.doors import read_network
from supervisord_llm.config.model import Config, Server, Site
from supervisord_llm.gateway.sites import relay as siterelay
from supervisord_llm.gateway.sites.sites import sites
from tests.fakes.fake_site import fake_site
from tests.gateway.conftest import Build, House, client, config, model

CHAT = {"Host": "chat.lan"}
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """The URL of a fake site."""
    with fake_site() as url:
        yield url


def behind(upstream: str, *, trusted: tuple[str, ...] = (), **site: Any) -> Config:
    """A house that needs keys for its API, and a site that does not."""
    site = {"hosts": ("chat.lan",)} | site
    return config(
        model("alpha"),
        clients=(client("a"),),
        server=Server(trusted_proxies=tuple(map(read_network, trusted))),
        sites=(Site(name="webui", upstream=upstream, **site),),
    )


def sent(answer: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.json["headers"]}


# --- which site -----------------------------------------------------------------------------

TABLE = sites((
    Site(name="chat", upstream="http://a", hosts=("chat.lan", "[::1]")),
    Site(name="graphs", upstream="http://b", path="/grafana"),
    Site(name="box", upstream="http://c", hosts=("box.lan",), path="/flows"),
    Site(name="deep", upstream="http://d", hosts=("box.lan",), path="/flows/deep"),
))  # fmt: skip
FOUND: dict[str, tuple[str, str, str | None]] = {
    "its host": ("chat.lan", "/", "chat"),
    "another host": ("other.lan", "/", None),
    "no host": ("", "/v1/models", None),
    "an address": ("192.168.1.5:8000", "/v1/models", None),
    "with a port": ("chat.lan:8000", "/v1/models", "chat"),
    "in capitals": ("Chat.LAN", "/", "chat"),
    "with a final dot": ("chat.lan.", "/", "chat"),
    "with both": ("chat.lan.:8000", "/", "chat"),
    "IPv6": ("[::1]:8000", "/", "chat"),
    "a subdomain": ("a.chat.lan", "/", None),
    "a path": ("anything", "/grafana", "graphs"),
    "below a path": ("anything", "/grafana/d/1", "graphs"),
    "not a path that begins alike": ("anything", "/grafana2", None),
    "not a path in capitals": ("anything", "/Grafana", None),
    "a path on a host of its own": ("box.lan", "/flows/1", "box"),
    "the longest path": ("box.lan", "/flows/deep/1", "deep"),
    "the rest of that host": ("box.lan", "/v1/models", None),
    "a path of every host on it": ("box.lan", "/grafana", "graphs"),
    "not on other hosts": ("other.lan", "/flows/1", None),
    "a host alone takes all paths": ("chat.lan", "/grafana", "chat"),
}


@pytest.mark.parametrize(("host", "path", "name"), FOUND.values(), ids=FOUND)
def test_a_site_is_found_by_host_and_path(host: str, path: str, name: str | None) -> None:
    assert TABLE is not None
    found = TABLE.find(host, path)
    assert (found.name if found else None) == name


async def test_the_api_stays_where_it_is_on_other_hosts(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        assert (await house.ask("GET", "/v1/models")).status == 401
        assert (await house.ask("GET", "/healthz")).json["status"] == "ok"
        assert (await house.ask("GET", "/v1/models", headers=CHAT)).json["target"] == "/v1/models"
        assert (await house.ask("GET", "/healthz", headers=CHAT)).json["target"] == "/healthz"
        over_control = await house.ask("GET", "/healthz", headers=CHAT, control=True)
        assert over_control.json["status"] == "ok"


# --- what passes ------------------------------------------------------------------------------


async def test_a_request_reaches_the_site_as_it_was(build: Build, upstream: str) -> None:
    headers = CHAT | {"Authorization": "Bearer its-own", "Cookie": "session=1", "Origin": "http://chat.lan"}
    async with build(behind(upstream)) as house:
        answer = await house.ask("PATCH", "/a%2Fb//c?d=%20e&d=f", headers=headers, data=b"body")
        assert answer.json["method"] == "PATCH"
        assert answer.json["target"] == "/a%2Fb//c?d=%20e&d=f"
        assert answer.json["body"] == "body"
        assert headers.items() <= dict(answer.json["headers"]).items()
        assert sent(answer)["content-length"] == "4"
        assert "transfer-encoding" not in sent(answer)


async def test_an_answer_reaches_the_client_as_it_was(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        answer = await house.ask("GET", "/page", headers=CHAT)
        assert (answer.status, answer.body) == (200, b"<h1>hello</h1>")
        assert answer.headers["Server"] == "site"
        assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
        assert "X-Request-Id" not in answer.headers
        assert "Referrer-Policy" not in answer.headers
        cookies = answer.headers.getall("Set-Cookie")
        assert [cookie.split(";")[0] for cookie in cookies] == ["session=s3cret", "theme=dark"]
        head = await house.ask("HEAD", "/page", headers=CHAT)
        assert (head.status, head.headers["Content-Length"], head.body) == (200, "14", b"")
        assert (await house.ask("GET", "/cached", headers=CHAT)).status == 304


@asynccontextmanager
async def plain_site() -> AsyncIterator[str]:
    """The URL of a site that answers with the head of the request, as nothing in particular."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(head), head))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_an_answer_without_a_type_stays_without_one(build: Build) -> None:
    async with plain_site() as url, build(behind(url)) as house:
        answer = await house.ask("GET", "/", headers=CHAT)
        assert answer.status == 200
        assert "Content-Type" not in answer.headers


async def test_the_cookies_of_a_single_sign_on_pass(build: Build) -> None:
    cookie = "token=" + "a" * 20_000
    async with plain_site() as url, build(behind(url)) as house:
        answer = await house.ask("GET", "/", headers=CHAT | {"Cookie": cookie})
        assert cookie.encode() in answer.body


async def test_redirects_are_left_to_the_browser(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        answer = await house.ask("GET", "/redirect", headers=CHAT, allow_redirects=False)
        assert (answer.status, answer.headers["Location"]) == (302, "/login?next=%2Fpage")


async def test_hop_by_hop_headers_end_here(build: Build, upstream: str) -> None:
    request = (
        b"GET /x HTTP/1.1\r\nHost: chat.lan\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n"
        b"Keep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: Basic eDp5\r\nUpgrade: h2c\r\n\r\n"
    )
    async with build(behind(upstream)) as house:
        answer = (await house.raw(request)).lower()
        assert answer.startswith(b"http/1.1 200 ")
        for name in (b"x-mine", b"keep-alive", b'"te"', b"proxy-authorization", b"upgrade"):
            assert name not in answer


async def test_of_two_hosts_the_site_sees_the_one_that_chose_it(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        answer = await house.raw(
            b"GET /x HTTP/1.1\r\nHost: chat.lan\r\nHost: other.lan\r\nConnection: close\r\n\r\n"
        )
        assert b"other.lan" not in answer


async def test_expect_is_answered_here(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(b"POST /x HTTP/1.1\r\nHost: chat.lan\r\nConnection: close\r\n")
        writer.write(b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"expect" not in answer.lower()
        writer.close()


async def test_http_1_0_gets_no_chunks(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        answer = await house.raw(b"GET /chunked HTTP/1.0\r\nHost: chat.lan\r\nConnection: keep-alive\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 200 ")
        assert b"transfer-encoding" not in answer.lower()
        assert answer.endswith(b"\r\n\r\nin two parts")


# --- who it was ----------------------------------------------------------------------------------


async def test_the_site_is_told_where_a_request_came_from(build: Build, upstream: str) -> None:
    lies = {
        "X-Forwarded-For": "6.6.6.6",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.org",
        "X-Real-IP": "6.6.6.6",
        "CF-Connecting-IP": "6.6.6.6",
        "Forwarded": "for=6.6.6.6",
    }
    async with build(behind(upstream)) as house:
        headers = sent(await house.ask("GET", "/x", headers={"Host": "chat.lan:80"} | lies))
        assert headers["host"] == headers["x-forwarded-host"] == "chat.lan:80"
        assert headers["x-forwarded-for"] == headers["x-real-ip"] == "127.0.0.1"
        assert headers["x-forwarded-proto"] == "http"
        assert not {"cf-connecting-ip", "forwarded", "x-forwarded-prefix"} & headers.keys()


async def test_a_trusted_proxy_is_believed(build: Build, upstream: str) -> None:
    told = {
        "Host": "127.0.0.1:8000",
        "X-Forwarded-For": "6.6.6.6, 203.0.113.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "Chat.lan",
        "CF-Connecting-IP": "203.0.113.7",
    }
    async with build(behind(upstream, trusted=("127.0.0.1",))) as house:
        headers = sent(await house.ask("GET", "/x", headers=told))
        assert headers["x-forwarded-for"] == "6.6.6.6, 203.0.113.7, 127.0.0.1"
        assert headers["x-real-ip"] == headers["cf-connecting-ip"] == "203.0.113.7"
        assert (headers["x-forwarded-proto"], headers["x-forwarded-host"]) == ("https", "Chat.lan")


# --- paths ----------------------------------------------------------------------------------------


async def test_the_path_of_a_site_is_replaced_by_that_of_its_upstream(build: Build, upstream: str) -> None:
    async with build(behind(upstream, hosts=(), path="/grafana")) as house:
        answer = await house.ask("GET", "/grafana/d/1?x=%20")
        assert answer.json["target"] == "/d/1?x=%20"
        assert sent(answer)["x-forwarded-prefix"] == "/grafana"
        assert (await house.ask("GET", "/grafana/")).json["target"] == "/"
        answer = await house.ask("GET", "/grafana?x=1", allow_redirects=False)
        assert (answer.status, answer.headers["Location"]) == (308, "grafana/?x=1")
        assert (await house.ask("GET", "/grafana?x=1")).json["target"] == "/?x=1"
    async with build(behind(f"{upstream}/grafana", hosts=(), path="/grafana")) as house:
        assert (await house.ask("GET", "/grafana/d/1")).json["target"] == "/grafana/d/1"
        answer = await house.ask("GET", "/grafana")
        assert answer.json["target"] == "/grafana/" or answer.json["target"] == "/grafana"
        assert "x-forwarded-prefix" not in sent(answer)


@pytest.mark.parametrize(
    "path", ["/grafana/../admin", "/grafana/%2e%2E/admin", "/grafana/./x", "/grafana/.."]
)
async def test_nothing_leads_out_of_a_site(build: Build, upstream: str, path: str) -> None:
    async with build(behind(f"{upstream}/sub", hosts=(), path="/grafana")) as house:
        answer = await house.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 404 ")


# --- bodies ---------------------------------------------------------------------------------------


async def test_a_large_upload_passes_whole(build: Build, upstream: str) -> None:
    body = hashlib.sha256(b"seed").digest() * (50 * MIB // 32)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), MIB):
            yield body[at : at + MIB]

    async with build(behind(upstream)) as house:
        for data in (io.BytesIO(body), pieces()):
            answer = await house.ask("POST", "/upload", headers=CHAT, data=data)
            assert answer.json == {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}


async def test_a_slow_site_slows_the_upload_down(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        _, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(
            b"POST /upload?pause=1 HTTP/1.1\r\nHost: chat.lan\r\nContent-Length: %d\r\n\r\n" % (64 * MIB)
        )
        taken = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while taken < 64 * MIB:
                    writer.write(bytes(MIB))
                    await writer.drain()
                    taken += MIB
        assert taken < 32 * MIB
        writer.close()
        await house.ask("GET", "/resume", headers=CHAT)


async def test_a_slow_client_slows_the_site_down(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house, house.http.get("/download", headers=CHAT) as answer:
        assert answer.status == 200
        before = -1
        async with asyncio.timeout(5):
            while (now := (await house.ask("GET", "/downloaded", headers=CHAT)).json) != before:
                before = now
                await asyncio.sleep(0.2)
        assert now < answer.content_length / 4
        answer.close()


async def test_events_pass_as_they_come(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house, house.http.get("/events", headers=CHAT) as answer:
        for number in range(3):
            async with asyncio.timeout(5):
                assert await answer.content.readuntil(b"\n\n") == b"data: %d\n\n" % number
            await house.ask("GET", "/next", headers=CHAT)
        assert await answer.content.read() == b""


async def test_a_site_may_limit_its_uploads(build: Build, upstream: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(100_000)

    async with build(behind(upstream, max_body_bytes=MIB)) as house:
        assert (await house.ask("POST", "/upload", headers=CHAT, data=io.BytesIO(bytes(MIB)))).status == 200
        answer = await house.ask("POST", "/upload", headers=CHAT, data=io.BytesIO(bytes(MIB + 1)))
        assert (answer.status, answer.code) == (413, "body_too_large")
        answer = await house.ask("POST", "/upload", headers=CHAT, data=pieces())
        assert (answer.status, answer.code) == (413, "body_too_large")


async def test_a_site_may_answer_before_it_has_the_body(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        answer = await house.raw(
            b"POST /too-much HTTP/1.1\r\nHost: chat.lan\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000)
        )
        assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_client_that_stops_in_the_middle_is_told(
    build: Build, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siterelay, "SILENCE_S", 0.05)
    async with build(behind(upstream)) as house:
        answer = await house.raw(b"POST /upload HTTP/1.1\r\nHost: chat.lan\r\nContent-Length: 10\r\n\r\nhalf")
        assert answer.startswith(b"HTTP/1.1 408 ")


# --- sites that fail -------------------------------------------------------------------------------


async def test_a_site_that_is_down_is_a_502_that_says_so(build: Build, unused_tcp_port: int) -> None:
    async with build(behind(f"http://127.0.0.1:{unused_tcp_port}")) as house:
        answer = await house.ask("GET", "/", headers=CHAT)
        assert (answer.status, answer.code) == (502, "site_unavailable")
        assert "cannot reach webui: nothing listens there" in answer.json["error"]["message"]
        assert str(unused_tcp_port) not in answer.body.decode()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await house.http.ws_connect("/ws", headers=CHAT)
        assert refusal.value.status == 502
    async with build(behind("http://no-such-host.invalid")) as house:
        answer = await house.ask("GET", "/", headers=CHAT)
        assert "its host has no address" in answer.json["error"]["message"]
    async with build(behind(f"https://127.0.0.1:{unused_tcp_port}")) as house:
        assert (await house.ask("GET", "/", headers=CHAT)).status == 502


async def test_a_site_that_does_not_take_the_connection_is_given_up(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siterelay, "CONNECT_S", 0.1)
    async with build(behind("http://192.0.2.1:9")) as house:  # TEST-NET-1: nobody, and no answer
        answer = await house.ask("GET", "/", headers=CHAT)
        assert (answer.status, answer.code) == (502, "site_unavailable")


async def test_an_answer_that_breaks_off_is_cut_off_visibly(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        with pytest.raises(aiohttp.ClientPayloadError):
            await house.ask("GET", "/breaking", headers=CHAT)
        assert (await house.ask("GET", "/page", headers=CHAT)).status == 200


# --- websockets -----------------------------------------------------------------------------------


async def ended(house: House, *codes: int | None) -> None:
    async with asyncio.timeout(5):
        while (await house.ask("GET", "/ended", headers=CHAT)).json[-len(codes) :] != list(codes):
            await asyncio.sleep(0.01)


async def test_websockets_pass_both_ways(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        offer = {
            "headers": CHAT | {"Cookie": "session=1"},
            "protocols": ("chat.v1", "chat.v2"),
            "max_msg_size": 0,
        }
        async with house.http.ws_connect("/ws", **offer) as socket:
            assert socket.protocol == "chat.v2"
            await socket.send_str("grüß")
            assert await socket.receive_str(timeout=5) == "grüß"
            for size in (0, 1, 70_000, 5 * MIB):
                await socket.send_bytes(bytes(size))
                assert await socket.receive_bytes(timeout=5) == bytes(size)
            await socket.send_str("headers")
            headers = {name.lower(): value for name, value in await socket.receive_json(timeout=5)}
            assert (headers["cookie"], headers["host"]) == ("session=1", "chat.lan")
            assert headers["x-forwarded-for"] == "127.0.0.1"
        await ended(house, 1000)


async def test_each_side_of_a_websocket_learns_how_the_other_ended(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        async with house.http.ws_connect("/ws", headers=CHAT) as socket:
            await socket.send_str("close")
            message = await socket.receive(timeout=5)
            assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "enough")
        async with house.http.ws_connect("/ws", headers=CHAT) as socket:
            await socket.send_str("abort")
            assert (await socket.receive(timeout=5)).data == 1011
        async with house.http.ws_connect("/ws", headers=CHAT) as socket:
            await socket.close(code=4002)
        await ended(house, 4002)
        socket = await house.http.ws_connect("/ws", headers=CHAT)
        assert socket._response.connection is not None
        socket._response.connection.transport.abort()
        await ended(house, 1001)


async def test_a_message_beyond_the_limit_ends_a_websocket(
    build: Build, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siterelay, "MAX_MESSAGE_BYTES", 1000)
    async with build(behind(upstream)) as house, house.http.ws_connect("/ws", headers=CHAT) as socket:
        await socket.send_bytes(bytes(2000))
        assert (await socket.receive(timeout=5)).data == 1009


async def test_a_websocket_that_is_refused_is_refused_with_the_same_status(
    build: Build, upstream: str
) -> None:
    async with build(behind(upstream)) as house:
        for path, status in (("/ws?refuse=1", 403), ("/page", 200)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                await house.http.ws_connect(path, headers=CHAT)
            assert refusal.value.status == status
        upgrade = b"Host: chat.lan\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n"
        key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        redirected = await house.raw(b"GET /redirect HTTP/1.1\r\n" + upgrade + key + b"\r\n")
        assert redirected.startswith(b"HTTP/1.1 302 ")
        assert b"Location: /login?next=%2Fpage\r\n" in redirected
        broken = await house.raw(b"GET /ws HTTP/1.1\r\n" + upgrade + b"\r\n")
        assert broken.startswith(b"HTTP/1.1 400 ")


async def test_the_end_of_the_daemon_ends_websockets(build: Build, upstream: str) -> None:
    async with build(behind(upstream)) as house:
        socket = await house.http.ws_connect("/ws", headers=CHAT)
        await socket.send_str("here")
        assert await socket.receive_str(timeout=5) == "here"
        closing = asyncio.create_task(house.gateway.close())
        message = await socket.receive(timeout=5)
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        await socket.close()
        await asyncio.wait_for(closing, 5)
