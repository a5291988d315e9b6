"""A web service as one stands behind [sites.NAME]: run it, and it prints its port."""

import asyncio
import hashlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from aiohttp import WSMsgType, web

HUGE = 8 * 1024 * 1024


async def echo(request: web.Request) -> web.Response:
    """What came, as JSON."""
    body = await request.read()
    headers = [[name, value] for name, value in request.headers.items()]
    return web.json_response(
        {"method": request.method, "target": request.raw_path, "headers": headers, "body": body.decode()}
    )


async def page(request: web.Request) -> web.Response:
    response = web.Response(
        text="<h1>hello</h1>",
        content_type="text/html",
        headers={"X-Frame-Options": "SAMEORIGIN", "Server": "site", "ETag": '"1"'},
    )
    response.set_cookie("session", "s3cret", httponly=True)
    response.set_cookie("theme", "dark")
    return response


async def redirect(request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "/login?next=%2Fpage"})


async def cached(request: web.Request) -> web.Response:
    return web.Response(status=304, headers={"ETag": '"1"'})


async def events(request: web.Request) -> web.StreamResponse:
    """Each event waits for a GET /next."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(3):
        await response.write(b"data: %d\n\n" % number)
        await request.app["next"].get()
    return response


async def chunked(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for part in (b"in two ", b"parts"):
        await response.write(part)
    return response


async def following(request: web.Request) -> web.Response:
    request.app["next"].put_nowait(None)
    return web.Response()


async def upload(request: web.Request) -> web.Response:
    """The size and digest of what came; with ?pause=1 each piece but the first waits for GET /resume."""
    digest, size = hashlib.sha256(), 0
    async for chunk in request.content.iter_any():
        digest.update(chunk)
        size += len(chunk)
        if request.query.get("pause"):
            await request.app["resumed"].wait()
    return web.json_response({"size": size, "sha256": digest.hexdigest()})


async def resume(request: web.Request) -> web.Response:
    request.app["resumed"].set()
    return web.Response()


async def too_much(request: web.Request) -> web.Response:
    """Answers before it has read anything."""
    return web.Response(status=413, text="no", headers={"Connection": "close"})


async def download(request: web.Request) -> web.StreamResponse:
    """Far more than fits into buffers; /downloaded tells how much was taken."""
    response = web.StreamResponse()
    response.content_length = 64 * HUGE
    await response.prepare(request)
    with suppress(ConnectionError):
        for _ in range(64 * HUGE // 65536):
            await response.write(bytes(65536))
            request.app["downloaded"].append(65536)
    return response


async def downloaded(request: web.Request) -> web.Response:
    return web.json_response(sum(request.app["downloaded"]))


async def breaking(request: web.Request) -> web.StreamResponse:
    """Breaks off in the middle."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half")
    assert request.transport is not None
    request.transport.abort()
    return response


async def websocket(request: web.Request) -> web.StreamResponse:
    """Echoes; "close" ends with 4001, "headers" tells what came, "abort" ends without a word."""
    if request.query.get("refuse"):
        return web.Response(status=403, text="not for you")
    answer = web.WebSocketResponse(protocols=("chat.v2",), max_msg_size=0)
    await answer.prepare(request)
    async for message in answer:
        match message.type, message.data:
            case WSMsgType.TEXT, "close":
                await answer.close(code=4001, message=b"enough")
            case WSMsgType.TEXT, "headers":
                await answer.send_json([[name, value] for name, value in request.headers.items()])
            case WSMsgType.TEXT, "abort":
                assert request.transport is not None
                request.transport.abort()
            case WSMsgType.TEXT, text:
                await answer.send_str(text)
            case WSMsgType.BINARY, data:
                await answer.send_bytes(data)
    request.app["ended"].append(answer.close_code)
    return answer


async def ended(request: web.Request) -> web.Response:
    """The close codes of the websockets that have ended."""
    return web.json_response(request.app["ended"])


def application() -> web.Application:
    app = web.Application(client_max_size=0)
    app.update({"next": asyncio.Queue(), "resumed": asyncio.Event(), "ended": [], "downloaded": []})  # type: ignore[arg-type]
    for path, handler in {
        "/page": page,
        "/redirect": redirect,
        "/cached": cached,
        "/events": events,
        "/chunked": chunked,
        "/next": following,
        "/upload": upload,
        "/resume": resume,
        "/too-much": too_much,
        "/download": download,
        "/downloaded": downloaded,
        "/breaking": breaking,
        "/ws": websocket,
        "/ended": ended,
    }.items():
        app.router.add_route("*", path, handler)
    app.router.add_route("*", "/{rest:.*}", echo)
    return app


@contextmanager
def fake_site() -> Iterator[str]:
    """Its URL, while it runs as a process of its own."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    web.run_app(application(), sock=listening, print=None, access_log=None, handle_signals=sys.stdin is None)
