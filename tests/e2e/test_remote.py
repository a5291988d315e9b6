"""Models elsewhere behind a real daemon: TLS, another machine, reloads, restarts, and where no key is."""

import asyncio
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import trustme

from tests.e2e.house import House, chat, running
from tests.fakes.fake_provider import KEY, FakeProvider, fails, provider

AUTHORITY = trustme.CA()


def certificate(*names: str) -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert(*names).configure_cert(tls)
    return tls


def trusts(house: House) -> None:
    """Have the daemon trust our authority, as an operator would."""
    file = house.root / "authority.pem"
    file.write_bytes(AUTHORITY.cert_pem.bytes())
    house.environ["SSL_CERT_FILE"] = str(file)


def grok(fake: FakeProvider, **keys: object) -> dict[str, object]:
    return {"engine": "remote", "url": fake.url, "key_env": "XAI_API_KEY", "source": "grok-4", **keys}


async def ask(web: aiohttp.ClientSession, model: str = "grok", **more: Any) -> tuple[int, str]:
    async with web.post("/v1/chat/completions", json=chat(model, **more)) as reply:
        return reply.status, await reply.text()


@asynccontextmanager
async def secure(house: House, **keys: object) -> AsyncIterator[FakeProvider]:
    """An API over HTTPS, and a house that has it as its model grok."""
    trusts(house)
    house.environ["XAI_API_KEY"] = KEY
    async with provider(certificate("127.0.0.1")) as fake:
        house.configure({"grok": grok(fake, **keys)})
        yield fake


async def test_an_api_over_tls_with_an_authority_of_our_own(house: House, web: aiohttp.ClientSession) -> None:
    async with secure(house) as fake, running(house):
        status, body = await ask(web)
        assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "hello")
        status, body = await ask(web, stream=True)
        assert (status, body.count("data: ")) == (200, 3)
        assert fake.probes == 1
        assert house.engines() == [], "there is no process"


async def test_a_certificate_of_another_name_gets_no_key(house: House, web: aiohttp.ClientSession) -> None:
    trusts(house)
    house.environ["XAI_API_KEY"] = KEY
    async with provider(certificate("api.example.com")) as fake:
        house.configure({"grok": grok(fake)})
        async with running(house):
            status, body = await ask(web)
            assert (status, json.loads(body)["error"]["code"]) == (503, "start_failed")
            assert "its certificate is not trusted" in body
            assert (fake.seen, fake.probes) == ([], 0)


async def test_the_key_is_nowhere_but_in_requests_to_the_api(
    house: House, web: aiohttp.ClientSession
) -> None:
    """A canary: grepped for in all that the daemon says, writes and starts."""
    models = {"chat": house.fake()}
    async with secure(house) as fake:
        house.configure({"grok": grok(fake), **models})
        async with running(house):
            told = [await ask(web, "grok"), await ask(web, "chat")]
            fake.key = "another"  # so that it quotes ours in its 401
            told += [await ask(web, "grok") for _ in range(7)]
            told.append(await ask(web, "nothing"))
            for path in (
                "/",
                "/healthz",
                "/health",
                "/routes",
                "/stats",
                "/metrics",
                "/v1/models",
                "/api/tags",
            ):
                async with web.get(path) as reply:
                    told.append((reply.status, await reply.text() + repr(reply.headers)))
            commands = (
                "status --json",
                "status",
                "events",
                "check --json",
                "check",
                "plan --json",
                "logs grok",
            )
            printed = [house.cli(*command.split(), check=False) for command in commands]
            assert all("grok" in done.stdout for done in printed[:-1]), printed
            environments = [process.environ() for process in house.engines()]
            assert environments
        assert "does not accept the key (401)" in told[3][1]
        assert any(seen.headers.get("authorization") == f"Bearer {KEY}" for seen in fake.seen)
    everything = [repr(told), repr(printed), repr(environments), house.log]
    files = (file for file in house.root.rglob("*") if file.is_file() and "venv" not in file.parts)
    everything += [file.read_bytes().decode(errors="replace") for file in files]
    assert KEY not in "".join(everything)
    assert "provider" not in "".join(body for status, body in told)


async def test_a_new_key_and_a_new_address_take_effect_with_a_reload(
    house: House, web: aiohttp.ClientSession
) -> None:
    async with provider() as fake, provider() as other:
        (house.root / "key").write_text(KEY)
        model = grok(fake, key_file="key")
        del model["key_env"]
        house.configure({"grok": model})
        async with running(house):
            assert (await ask(web))[0] == 200
            (house.root / "key").write_text("sk-renewed-00000000\n")
            fake.key = "sk-renewed-00000000"
            house.cli("reload")
            assert (await ask(web))[0] == 200
            assert fake.probes == 1, "nothing was started anew"
            other.key = fake.key
            house.configure({"grok": model | {"url": other.url}})
            house.cli("reload")
            assert (await ask(web))[0] == 200
            assert len(other.seen) == 1


async def test_a_key_that_is_gone_disables_that_model_alone_until_it_is_back(
    house: House, web: aiohttp.ClientSession
) -> None:
    async with provider() as fake, provider(key=None) as other:
        key = house.root / "key"
        model = {"engine": "remote", "url": fake.url, "key_file": "key", "source": "grok-4"}
        house.configure({"grok": model, "open": {"engine": "remote", "url": other.url}})
        async with running(house):
            why = f"cannot start grok: its key_file leads to no key: the file {key} cannot be read"
            assert f"models.grok: {why.partition(': ')[2]}" in house.log
            for _ in range(2):
                status, text = await ask(web)
                error = json.loads(text)["error"]
                assert (status, error["code"]) == (503, "start_failed")
                assert error["message"].startswith(why)
            assert (await ask(web, "open"))[0] == 200
            assert why in house.cli("status").stdout
            key.write_text(KEY)
            house.cli("reload")
            assert (await ask(web))[0] == 200
            key.unlink()
            house.cli("reload")
            assert (await ask(web))[0] == 503
            assert fake.seen[-1].headers["authorization"] == f"Bearer {KEY}"
            key.write_text(KEY)
            house.cli("reload")
            assert (await ask(web))[0] == 200
            assert len(fake.seen) == 2, "nothing was sent without the key"


async def test_a_reload_asks_at_once_who_was_out_of_reach(house: House, web: aiohttp.ClientSession) -> None:
    async with provider() as fake, provider() as other:
        house.environ["XAI_API_KEY"] = KEY
        for moved in (False, True):
            house.configure({"grok": grok(fake)})
            fake.models_status = 503
            async with running(house):
                assert (await ask(web))[0] == 503
                assert house.status()["models"]["grok"]["state"] == "backoff"
                if moved:
                    house.configure({"grok": grok(other)})
                else:
                    fake.models_status = 200
                assert "probed: grok" in (await asyncio.to_thread(house.cli, "reload")).stdout
                assert (await ask(web))[0] == 200
                assert "probed" not in house.cli("reload").stdout


async def test_a_restart_of_the_daemon_asks_again_and_leaves_nothing_to_adopt(
    house: House, web: aiohttp.ClientSession
) -> None:
    async with secure(house) as fake:
        async with running(house):
            assert (await ask(web))[0] == 200
            assert list((house.root / "runtime" / "engines").glob("grok*")) == []
        async with running(house):
            assert (await ask(web))[0] == 200
        assert fake.probes == 2


async def test_an_outage_is_told_at_once_and_is_over_when_it_is(
    house: House, web: aiohttp.ClientSession
) -> None:
    async with secure(house) as fake, running(house):
        assert (await ask(web))[0] == 200
        fake.answer = fails(503)
        codes = [json.loads((await ask(web))[1])["error"]["code"] for _ in range(8)]
        assert codes == ["engine_crashed"] * 5 + ["start_failed"] * 3
        asked = len(fake.seen)
        shown = house.status()["models"]["grok"]
        assert (shown["state"], shown["has_process"], shown["used_bytes"]) == ("backoff", False, None)
        assert 0 < shown["retry_in_s"] <= 2
        fake.answer = None
        await asyncio.to_thread(house.cli, "start", "grok")  # we are the API that it asks
        assert (await ask(web))[0] == 200
        assert len(fake.seen) == asked + 1


async def test_a_stop_by_hand_holds_until_the_next_request(house: House, web: aiohttp.ClientSession) -> None:
    async with secure(house) as fake, running(house):
        assert (await ask(web))[0] == 200
        house.cli("stop", "grok")
        assert house.status()["models"]["grok"]["state"] == "stopped"
        assert (await ask(web))[0] == 200
        assert fake.probes == 2


async def test_switching_to_another_model_leaves_it_alone(house: House, web: aiohttp.ClientSession) -> None:
    async with secure(house) as fake:
        house.configure({"grok": grok(fake), "chat": house.fake()})
        async with running(house):
            fake.answer = fake.streams_on
            async with web.post("/v1/chat/completions", json=chat("grok", stream=True)) as reply:
                assert b"one" in await reply.content.readany()
                await asyncio.to_thread(house.cli, "switch", "chat")
                assert house.status()["models"]["grok"]["state"] == "ready"
                fake.release.set()
                assert b"[DONE]" in await reply.content.read()


async def test_another_machine_is_a_model_with_its_own_queue_and_start(
    house: House, web: aiohttp.ClientSession
) -> None:
    """Two daemons: the far one launches its engine when the near one asks."""
    with tempfile.TemporaryDirectory(prefix="llms-") as root:
        far = House(Path(root))
        far.configure({"llama": far.fake()})
        house.configure({"far": {"engine": "remote", "url": f"{far.url}/v1", "source": "llama"}})
        async with running(far), running(house):
            status, body = await ask(web, "far", stream=True)
            assert status == 200
            assert body.rstrip().endswith("data: [DONE]")
            assert far.status()["models"]["llama"]["state"] == "ready"
            async with web.post("/tokenize", json={"model": "far", "prompt": "hi"}) as reply:
                assert reply.status == 200


async def test_check_asks_nobody_and_names_what_it_found(house: House) -> None:
    async with secure(house) as fake:
        done = house.cli("check")
        assert f"models.grok: is called grok-4 at {fake.url}, and asked with a key" in done.stdout
        assert (fake.probes, fake.seen) == (0, [])
        house.configure({"grok": grok(fake, url="https://api.example.com/v1")})
        house.environ["LLM_SUPERVISOR_NETWORK"] = "isolated"  # as the unit has it
        found = json.loads(house.cli("check", "--json").stdout)["facts"]
        (fact,) = [fact for fact in found if fact["where"] == "models.grok.url"]
        assert fact["level"] == "hint"
        assert "remote.conf" in fact["text"]
        del house.environ["XAI_API_KEY"]
        done = house.cli("check", check=False)
        assert done.returncode == 1
        [bad] = [line for line in done.stdout.splitlines() if line.startswith("bad")]
        assert "models.grok: cannot start grok: its key_env leads to no key: the variable XAI_API_KEY" in bad


@pytest.mark.slow
async def test_hundreds_of_streams_at_once_leave_no_connection_behind(
    house: House, web: aiohttp.ClientSession
) -> None:
    async with provider(key=None) as fake:
        house.configure({"grok": {"engine": "remote", "url": fake.url}})
        async with running(house):
            for _ in range(3):
                answers = await asyncio.gather(*(ask(web, stream=True) for _ in range(200)))
                assert {status for status, _ in answers} == {200}
            assert house.process is not None
            daemon = psutil.Process(house.process.pid)
            async with asyncio.timeout(60):
                while any(
                    each.raddr and each.raddr.port == fake.port for each in daemon.net_connections("tcp")
                ):
                    await asyncio.sleep(0.5)
