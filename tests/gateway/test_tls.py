"""HTTPS at the door: which pairs are good, how they are renewed, and who comes with something else."""

import asyncio
import logging
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from supervisord_llm.config.model import Address, Tls
from supervisord_llm.errors import SupervisorError
from supervisord_llm.gateway.doors import doors as doors_module
from supervisord_llm.gateway.doors import entrance
from supervisord_llm.gateway.doors.doors import Doors
from supervisord_llm.gateway.doors.listeners import Listeners
from supervisord_llm.gateway.doors.tls import Certificate, fault
from tests.gateway.conftest import CHAT, Build, House, client, config, model
from tests.gateway.test_websocket import echo, talking

AUTHORITY = trustme.CA()


def write(directory: Path, *names: str) -> Tls:
    """A new pair in the directory, over an earlier one."""
    made = AUTHORITY.issue_cert(*(names or ("127.0.0.1", "localhost")))
    tls = Tls(cert=directory / "cert.pem", key=directory / "key.pem")
    tls.key.write_bytes(made.private_key_pem.bytes())
    tls.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    return tls


# --- which pairs are good -----------------------------------------------------------------------


def test_a_good_pair_has_no_fault(tmp_path: Path) -> None:
    assert fault(write(tmp_path)) == ""


def test_what_is_wrong_with_a_pair_is_told(tmp_path: Path) -> None:
    tls = write(tmp_path)
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other")
    nothing, garbage = tmp_path / "nothing.pem", tmp_path / "garbage.pem"
    garbage.write_text("hello")
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:x", "-in", str(tls.key), "-out", str(locked)]
    if shutil.which("openssl") and subprocess.run(command, capture_output=True).returncode == 0:
        assert "needs a passphrase" in fault(Tls(cert=tls.cert, key=locked))
    assert fault(Tls(cert=nothing, key=tls.key)).startswith(f"cannot read {nothing}: No such file")
    assert fault(Tls(cert=tls.cert, key=nothing)).startswith(f"cannot read {nothing}: No such file")
    assert "it is not the key of" in fault(Tls(cert=tls.cert, key=other.key))
    assert fault(Tls(cert=garbage, key=tls.key)).startswith(f"cannot use {garbage} and ")
    for broken in (Tls(cert=tmp_path, key=tls.key), Tls(cert=tls.cert, key=garbage)):
        assert fault(broken).startswith("cannot ")
        assert fault(broken).endswith("; see `tls` in [server]")
    if os.geteuid() != 0:
        tls.key.chmod(0)
        assert "Permission denied" in fault(tls)
    with pytest.raises(SupervisorError, match="cannot read"):
        Certificate(Tls(cert=nothing, key=nothing))


# --- renewal --------------------------------------------------------------------------------------


def test_a_renewed_pair_is_noticed_and_a_broken_one_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    certificate = Certificate(write(tmp_path))
    before = certificate.context
    certificate.look()
    assert certificate.context is before
    tls = write(tmp_path)
    certificate.look()
    renewed = certificate.context
    assert renewed is not before
    tls.key.unlink()  # halfway
    certificate.look()
    certificate.look()
    assert certificate.context is renewed
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]
    assert caplog.records[-1].getMessage().endswith("the certificate from before stays in use")
    write(tmp_path)
    certificate.look()
    assert certificate.context is not renewed


def test_a_link_that_leads_elsewhere_is_noticed(tmp_path: Path) -> None:
    """As certbot renews: live/… are links into archive/…"""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    link = tmp_path / "live"
    link.symlink_to("one")
    certificate = Certificate(Tls(cert=link / "cert.pem", key=link / "key.pem"))
    before = certificate.context
    link.unlink()
    link.symlink_to("two")
    certificate.look()
    assert certificate.context is not before


# --- at the door ----------------------------------------------------------------------------------


@dataclass
class Open:
    house: House
    doors: Doors
    port: int
    unix: Path
    tls: Tls

    async def shown(self, *, server_hostname: str | None = "localhost") -> int:
        """The serial number of the certificate that a new connection is shown."""
        connection = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=trusting(), server_hostname=server_hostname
        )
        found = connection[1].get_extra_info("peercert")["serialNumber"]
        connection[1].close()
        await connection[1].wait_closed()
        return int(found, 16)


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture
def opened(build: Build, tmp_path: Path) -> Any:
    """opened(config) is an async context with doors that have TLS; `listening` as systemd would pass it."""

    @asynccontextmanager
    async def opened(
        *clients: Any, listening: socket.socket | None = None, scripts: Any = None, **fields: Any
    ) -> AsyncIterator[Open]:
        pair = write(tmp_path)
        async with build(config(model("alpha"), clients=clients, **fields)) as house:
            listeners = Listeners(() if listening is None else (listening,))
            doors = Doors(house.gateway, tmp_path / "c.sock", listeners)
            unix = tmp_path / "public.sock"
            tcp = Address("127.0.0.1", 0)
            try:
                await doors.open((tcp, Address(path=unix)), pair)
                bound = listening or (await listeners.at(tcp))[0]
                yield Open(house, doors, bound.getsockname()[1], unix, pair)
            finally:
                await doors.close()
                listeners.close_all_but(())

    return opened


async def test_https_answers_with_hsts_and_speaks_http_1_1(opened: Any) -> None:
    async with opened() as it, aiohttp.ClientSession() as http:
        url = f"https://localhost:{it.port}"
        async with http.post(f"{url}/v1/chat/completions", json=CHAT, ssl=trusting()) as answer:
            assert answer.status == 200
            assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        async with http.post(
            f"{url}/v1/chat/completions", json=CHAT | {"stream": True}, ssl=trusting()
        ) as answer:
            assert (await answer.text()).endswith("data: [DONE]\n\n")
        _, writer = await asyncio.open_connection(
            "127.0.0.1", it.port, ssl=trusting(), server_hostname="localhost"
        )
        tls = writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == "http/1.1"
        assert tls.version() in ("TLSv1.2", "TLSv1.3")
        writer.close()
        await writer.wait_closed()


async def test_tls_below_1_2_is_refused(opened: Any) -> None:
    old = trusting()
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    async with opened() as it:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", it.port, ssl=old, server_hostname="localhost")


async def test_unix_sockets_stay_plain(opened: Any) -> None:
    async with opened() as it:
        connector = aiohttp.UnixConnector(str(it.unix))
        async with (
            aiohttp.ClientSession("http://x", connector=connector) as http,
            http.get("/healthz") as answer,
        ):
            assert answer.status == 200
            assert "Strict-Transport-Security" not in answer.headers


async def test_a_socket_of_systemd_speaks_tls_too(opened: Any) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    async with opened(listening=listening) as it, aiohttp.ClientSession() as http:
        answer = await http.get(f"https://localhost:{it.port}/healthz", ssl=trusting())
        assert answer.status == 200
    listening.close()


async def test_who_speaks_plain_http_is_let_go_quietly(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with opened() as it:
        for said in (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01garbage", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            writer.write(said)
            if said:
                async with asyncio.timeout(5):
                    with suppress(ConnectionError):
                        assert b"HTTP" not in await reader.read()
            writer.close()
        await it.shown()
        assert [record.getMessage() for record in caplog.records] == []


async def test_a_handshake_may_not_take_for_ever(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "HANDSHAKE_S", 0.05)
    async with opened() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_a_reload_renews_the_certificate_and_connections_go_on(opened: Any, tmp_path: Path) -> None:
    async with opened() as it, aiohttp.ClientSession() as http:
        first = await it.shown()
        stream = await http.get(
            f"https://localhost:{it.port}/healthz", ssl=trusting(), headers={"Connection": "keep-alive"}
        )
        assert stream.status == 200
        await stream.read()
        write(tmp_path)
        assert await it.shown() == first
        it.doors.renew(it.tls)
        second = await it.shown()
        assert second != first
        assert await it.shown(server_hostname="127.0.0.1") == second  # without SNI
        async with http.get(f"https://localhost:{it.port}/healthz", ssl=trusting()) as answer:
            assert answer.status == 200  # on the connection from before
        it.tls.cert.write_text("broken")
        it.doors.renew(it.tls)
        assert await it.shown() == second


async def test_files_that_change_are_read_by_themselves(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors_module, "LOOK_EVERY_S", 0.02)
    async with opened() as it:
        watching = asyncio.create_task(it.doors.watch())
        first = await it.shown()
        write(tmp_path)
        async with asyncio.timeout(5):
            while await it.shown() == first:
                await asyncio.sleep(0.01)
        watching.cancel()


async def test_expect_and_http_1_0_work_over_tls(opened: Any) -> None:
    body = b'{"model":"alpha","messages":[]}'
    async with opened() as it:

        async def ask(head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", it.port, ssl=trusting(), server_hostname="localhost"
            )
            writer.write(head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
            return reader, writer

        reader, writer = await ask(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
        )
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 ")
        writer.close()
        reader, writer = await ask(b"POST /v1/chat/completions HTTP/1.0\r\nExpect: 100-continue\r\n")
        writer.write(body)
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.0 200 ")
        writer.close()


async def test_curl_agrees(opened: Any, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    authority = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(str(authority))
    async with opened(client("a")) as it:
        told = ["-sS", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", "-H", "x-api-key: key-a"]
        url = f"https://localhost:{it.port}/v1/models"
        command = ["curl", *told, "--cacert", str(authority), "--max-time", "10", url]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert done.stdout == "1.1 200", done.stderr


async def test_websockets_go_over_tls(build: Build, tmp_path: Path) -> None:
    pair = write(tmp_path)
    async with talking(build, config(model("alpha")), echo) as house:
        listeners = Listeners()
        doors = Doors(house.gateway, tmp_path / "c.sock", listeners)
        tcp = Address("127.0.0.1", 0)
        await doors.open((tcp,), pair)
        port = (await listeners.at(tcp))[0].getsockname()[1]
        url = f"wss://localhost:{port}/v1/realtime"
        async with aiohttp.ClientSession() as http, http.ws_connect(url, ssl=trusting()) as socket:
            await socket.send_bytes(bytes(200_000))
            assert await socket.receive_bytes(timeout=5) == bytes(200_000)
        await doors.close()
        listeners.close_all_but(())
