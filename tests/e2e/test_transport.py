"""A real daemon behind its own TLS: the certificate at start and by reload, and a site beside the API."""

import asyncio
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from tests.e2e.house import COMMAND, House
from tests.fakes.fake_site import fake_site

AUTHORITY = trustme.CA()


def write_pair(root: Path) -> dict[str, str]:
    made = AUTHORITY.issue_cert("localhost", "chat.lan")
    made.private_key_pem.write_to_path(str(root / "key.pem"))
    made.cert_chain_pems[0].write_to_path(str(root / "cert.pem"))
    return {"cert": "cert.pem", "key": "key.pem"}


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


async def shown(house: House) -> str:
    _, writer = await asyncio.open_connection(
        "127.0.0.1", house.port, ssl=trusting(), server_hostname="localhost"
    )
    serial: str = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    await writer.wait_closed()
    return serial


async def started(house: House) -> None:
    """House.start speaks plain HTTP."""
    process = house.spawn()
    async with asyncio.timeout(15):
        while True:
            assert process.poll() is None, house.log
            try:
                await shown(house)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                return


async def reload(house: House) -> Any:
    connector = aiohttp.UnixConnector(str(house.root / "runtime" / "control.sock"))
    async with aiohttp.ClientSession("http://control", connector=connector) as http:
        return await (await http.post("/admin/reload")).json()


@pytest.fixture
def site() -> Iterator[str]:
    with fake_site() as url:
        yield url


async def test_a_daemon_serves_api_and_site_over_tls_and_renews_its_certificate(
    house: House, site: str
) -> None:
    house.configure(
        {"alpha": house.fake()},
        server={"tls": write_pair(house.root), "preload": ["alpha"]},
        sites={"webui": {"hosts": ["chat.lan"], "upstream": site}},
    )
    await started(house)
    first = await shown(house)
    url = f"https://localhost:{house.port}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting())) as http:
        body = {"model": "alpha", "messages": [], "stream": True}
        async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
            assert (await answer.text()).endswith("data: [DONE]\n\n")
            assert "Strict-Transport-Security" in answer.headers
        async with http.get(f"{url}/x", headers={"Host": "chat.lan"}) as answer:
            headers = {name.lower(): value for name, value in (await answer.json())["headers"]}
            assert headers["x-forwarded-proto"] == "https"
        async with http.ws_connect(f"{url}/ws", headers={"Host": "chat.lan"}) as socket:
            await socket.send_str("before")
            assert await socket.receive_str(timeout=5) == "before"
            write_pair(house.root)
            assert (await reload(house))["needs_restart"] == []
            second = await shown(house)
            assert second != first
            (house.root / "key.pem").write_text("broken")
            await reload(house)
            assert await shown(house) == second
            assert "the certificate from before stays in use" in house.log
            await socket.send_str("after")
            assert await socket.receive_str(timeout=5) == "after"
    assert await house.stop() == 0


async def test_a_daemon_without_its_certificate_says_so_and_ends(house: House) -> None:
    house.configure({}, server={"tls": {"cert": "none.pem", "key": "none.pem"}})
    process = house.spawn()
    assert await asyncio.to_thread(process.wait, 15) == 1
    assert (
        f"cannot read {house.root / 'none.pem'}: No such file or directory; see `tls` in [server]"
        in house.log
    )
    checked = await asyncio.to_thread(
        subprocess.run,
        [*COMMAND, "check", "--config", str(house.config)],
        capture_output=True,
        text=True,
        env=os.environ | house.environ,
    )
    assert checked.returncode == 1
    assert f"cannot read {house.root / 'none.pem'}" in checked.stdout
