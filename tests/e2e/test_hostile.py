"""A real daemon among clients that mean harm: it goes on, gives back what they took, keeps its secrets."""

import asyncio
import base64
import contextlib
import hashlib
import json
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import aiohttp

from tests.e2e.house import House, chat, free_port, running
from tests.e2e.test_load import connections, open_descriptors, resident_bytes
from tests.gateway.mutator import SEEDS, UPGRADE, Fuzz
from tests.gateway.wire import CHAT, JSON, get, post, replies, request

MIB = 1024**2
KEYS = {"LLMS_WEBUI_KEY": "key-a", "LLMS_ADMIN_KEY": "key-admin"}
"""Those of the mutator's seeds."""


def guarded(house: House, **tables: dict[str, Any]) -> None:
    """A model behind keys, with pages of another origin and a site that is down."""
    house.environ.update(KEYS)
    clients: dict[str, dict[str, Any]] = {
        "clients.a": {"key_env": "LLMS_WEBUI_KEY"},
        "clients.admin": {"key_env": "LLMS_ADMIN_KEY", "admin": True},
        "cors": {"allow_origins": ["http://o"]},
        "sites.down": {"path": "/site", "upstream": f"http://127.0.0.1:{free_port()}"},
    }
    house.configure({"alpha": house.fake()}, **{"auth": {"required": True}, **clients, **tables})


async def ask(house: House, raw: bytes) -> bytes:
    """What comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(raw)
    async with asyncio.timeout(10):
        came = await reader.read()
    writer.close()
    return came


async def good(house: House) -> float:
    """Seconds that a good request takes."""
    began = time.monotonic()
    (reply,) = replies(await ask(house, post(CHAT, JSON + b"x-api-key: key-a\r\n")))
    assert reply.status == 200
    return time.monotonic() - began


async def until_at_most(house: House, descriptors: int) -> None:
    async with asyncio.timeout(10):
        while open_descriptors(house) > descriptors:
            await asyncio.sleep(0.05)


async def test_half_open_connections_keep_nobody_out_and_leave_nothing(house: House) -> None:
    guarded(house)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: key-a\r\n" + JSON
    async with running(house):
        await good(house)
        before, memory = open_descriptors(house), resident_bytes(house)
        async with (
            connections(house, 100),
            connections(house, 100, head),
            connections(house, 100, head + b"Content-Length: 100000\r\n\r\n{"),
            connections(house, 100, head + b"Transfer-Encoding: chunked\r\n\r\nfffff;"),
            connections(house, 50, get(b"/v1/realtime?model=alpha", UPGRADE)[:-2]),
            connections(house, 50, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ):
            took = [await good(house) for _ in range(10)]
            assert max(took) < 2
            assert resident_bytes(house) - memory < 20 * MIB
        await until_at_most(house, before + 2)


async def test_what_is_uploaded_beyond_the_limit_takes_no_memory(house: House) -> None:
    guarded(house, server={"max_body": "1MiB"})
    chunk = b"100000\r\n" + b"x" * MIB + b"\r\n"

    async def upload(key: bytes) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + JSON + key
        )
        writer.write(b"\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()

    async with running(house):
        await good(house)
        before, memory = open_descriptors(house), resident_bytes(house)
        async with asyncio.timeout(20):
            await asyncio.gather(*(upload(key) for key in (b"x-api-key: key-a\r\n", b"") * 10))
        await until_at_most(house, before + 2)
        assert resident_bytes(house) - memory < 30 * MIB
        await good(house)


async def test_a_storm_of_broken_requests_leaves_the_daemon_as_it_was(house: House) -> None:
    guarded(house)
    seeds = [seed for seed in SEEDS if b"/site" not in seed]
    async with running(house):
        await good(house)
        before, engines = open_descriptors(house), house.engines()
        fuzz = Fuzz(house.port, seed=int(time.time()), seeds=seeds)
        await fuzz.run(2)
        assert not fuzz.wrong, f"seed {fuzz.seed}: {fuzz.wrong[:3]}"
        await good(house)
        await until_at_most(house, before + 2)
        assert house.engines() == engines
    assert not [entry for entry in house.entries() if entry["level"] in ("error", "critical")]


# --- secrets --------------------------------------------------------------------------------------


class Secrets:
    """Texts that stand nowhere but where the test puts them, and every way in which they could be told."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def new(self, name: str) -> str:
        self.texts[name] = f"zebra{name}{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return self.texts[name]

    def found_in(self, told: bytes) -> list[str]:
        return [name for name, text in self.texts.items() if any(way in told for way in self._ways(text))]

    def _ways(self, text: str) -> Iterator[bytes]:
        raw = text.encode()
        digest = hashlib.sha256(raw)
        yield from (raw, raw[:-3], raw[3:], raw.upper(), urllib.parse.quote(raw, safe="").encode())
        yield from (digest.hexdigest().encode(), digest.digest(), base64.b64encode(digest.digest()))
        yield from (base64.b64encode(raw), base64.b64encode(b"user:" + raw), raw.hex().encode())


def in_odd_places(key: str, admin: str) -> list[bytes]:
    """Requests with keys where clients put them by mistake, some of them broken."""
    raw = key.encode()
    basic, boss = base64.b64encode(b"user:" + raw), admin.encode()
    lines = (
        *(b"Authorization: Bearer " + raw, b"Authorization: Basic " + basic, b"Authorization: " + raw),
        *(b"Authorization: Bearer " + raw + b" x", b"X-Api-Key: " + raw, b"X-Goog-Api-Key: " + raw),
        *(b"Api-Key: " + raw + b"\r\nApi-Key: x", b"Cookie: key=" + raw, b"Referer: http://o/?key=" + raw),
        *(b"Proxy-Authorization: Bearer " + raw, b"Origin: http://" + raw, b"X-Forwarded-For: " + raw),
        *(b"Bad Header: " + raw, b"Authorization: Bearer " + raw + b"\0", b"Content-Type: " + raw),
        *(b"Expect: " + raw, b"Content-Encoding: " + raw, b"Transfer-Encoding: " + raw),
        b"Sec-WebSocket-Protocol: openai-insecure-api-key." + raw + b"\r\n" + UPGRADE.strip(),
        b"Authorization: Bearer " + boss + b"\r\nX-Auth-Token: " + raw,
    )
    targets = (
        *(b"/v1/models?api_key=" + raw, b"/v1/chat/completions?" + raw, b"/" + raw + b"/v1/models"),
        *(b"/v1/" + raw, b"/v1/models/" + raw, b"/admin/logs/" + raw, b"/api/" + raw, b"/alpha/" + raw),
        *(b"/v1/responses/" + raw, b"http://user:" + raw + b"@x/v1/models", b"/site/" + raw, raw),
        *(b"/\xff" + raw, b"/v1/realtime?model=" + raw + b"&key=" + raw, b"/v1/chat/completions?key=" + raw),
    )
    bodies = (
        *(b'{"model":"' + raw + b'"}', b'{"model":"alpha","api_key":"' + raw + b'"', raw),
        *(CHAT[:-1] + b',"user":"' + raw, b'{"model":"alpha","' + raw + b'":1e'),
        *(CHAT[:-1] + b',"chat_template":"' + raw + b'"}', b'{"model":"alpha","n":"' + raw + b'"}'),
        b'{"model":"alpha","messages":"' + raw + b'"}',
    )
    keyed = JSON + b"X-Api-Key: " + raw + b"\r\n"
    return [
        *(get(b"/v1/models", line + b"\r\n") for line in lines),
        *(post(CHAT, JSON + line + b"\r\n") for line in lines),
        *(post(CHAT, keyed + line + b"\r\n") for line in lines),
        *(get(target) for target in targets),
        *(post(CHAT, keyed, target) for target in targets),
        *(post(body, keyed, path) for body in bodies for path in (b"/v1/chat/completions", b"/api/chat")),
        *(request(raw + b" / HTTP/1.1"), request(b"GET / " + raw), request(host=raw), raw + b"\r\n\r\n"),
    ]


READ = (
    *("/healthz", "/health", "/routes", "/stats", "/metrics", "/v1/models", "/api/ps", "/admin/status"),
    *("/admin/plan", "/admin/explain/alpha", "/admin/explain/broken", "/admin/events?n=100&follow=0"),
    *("/admin/logs/alpha", "/admin/logs/broken"),
)
RUN = ("status", "events", "logs broken", "check", "doctor")


async def test_no_secret_is_told_by_anything_that_is_written_or_answered(house: House) -> None:
    """Keys of clients and of hubs, hashes of keys, and what engines get in their environment."""
    secrets = Secrets()
    key, boss, old = (secrets.new(name) for name in ("key", "boss", "old"))
    house.environ |= {"LLMS_WEBUI_KEY": key, "HF_TOKEN": f"hf_{secrets.new('hub')}"}
    (house.root / "boss.key").write_text(boss + "\n")
    (house.root / "boss.key").chmod(0o600)
    env = {
        "HF_TOKEN": f"hf_{secrets.new('enginehub')}",
        "AWS_SECRET_ACCESS_KEY": secrets.new("aws"),
        "DATABASE_URL": f"postgres://ann:{secrets.new('database')}@db.lan/x",
        "MY_PASSWORD": secrets.new("password"),
    }
    clients: dict[str, dict[str, Any]] = {
        "clients.webui": {"key_env": "LLMS_WEBUI_KEY"},
        "clients.boss": {"key_file": str(house.root / "boss.key"), "admin": True},
        "clients.old": {"key_sha256": hashlib.sha256(old.encode()).hexdigest()},
        "auth": {"required": True},
        "sites.down": {"path": "/site", "upstream": f"http://127.0.0.1:{free_port()}"},
    }
    models = {"alpha": house.fake(env=env), "broken": house.fake("exits_while_loading", env=env)}
    told: dict[str, bytes] = {}

    async def note_odd_requests() -> None:
        for place, raw in enumerate(in_odd_places(key, boss)):
            told[f"request {place}"] = (await ask(house, raw)).partition(b"\r\n\r\n")[0]

    def note(*words: str) -> None:
        done = house.cli(*words, check=False)
        told[f"{words} printed"] = (done.stdout + done.stderr).encode()

    house.configure(models, log={"format": "text"}, **clients)
    async with running(house):
        await note_odd_requests()
    house.configure(models, log={"format": "json"}, **clients)
    async with running(house):
        async with aiohttp.ClientSession(house.url, headers={"Authorization": f"Bearer {boss}"}) as web:
            for name in ("alpha", "broken"):
                async with web.post("/v1/chat/completions", json=chat(name)) as answer:
                    told[f"a chat with {name}"] = await answer.read()
            for path in READ:
                async with web.get(path) as answer:
                    assert answer.status == 200, path
                    told[path] = await answer.read()
        await note_odd_requests()
        for words in RUN:
            note(*words.split())
        house.config.write_text(
            house.config.read_text()
            + f'[clients.bad]\nkey = "{key}"\nkey_sha256 = "{old}"\nkey_env = "{old} x"\n'
            + f'[models.bad]\nsource = "a/b"\nenv = {{ A = ["{env["MY_PASSWORD"]}"] }}\n'
        )
        note("reload")
        note("check", "--json")
    written = {path for path in house.root.rglob("*") if path.is_file() and "venv" not in path.parts}
    written -= {house.config, house.root / "boss.key"}
    told |= {str(path): path.read_bytes() for path in written}
    assert any(path.endswith("daemon.log") for path in told)
    assert {name: secrets.found_in(text) for name, text in told.items() if secrets.found_in(text)} == {}


async def test_an_engine_gets_no_key_of_a_client_and_none_of_ours(house: House) -> None:
    secrets = Secrets()
    key, admin = secrets.new("key"), secrets.new("admin")
    house.environ |= {"LLMS_WEBUI_KEY": key, "LLMS_ADMIN_KEY": admin, "HF_TOKEN": secrets.new("hub")}
    clients = {
        "clients.a": {"key_env": "LLMS_WEBUI_KEY"},
        "clients.admin": {"key_env": "LLMS_ADMIN_KEY", "admin": True},
    }
    house.configure({"alpha": house.fake()}, **{"auth": {"required": True}, **clients})
    engine = aiohttp.UnixConnector(str(house.root / "runtime" / "engines" / "alpha.sock"))
    async with running(house), aiohttp.ClientSession(connector=engine) as web:
        await ask(house, post(CHAT, JSON + b"X-Api-Key: " + key.encode() + b"\r\n"))
        for raw in in_odd_places(key, admin):
            await ask(house, raw)
            async with web.get("http://engine/fake/stats") as answer:
                stats = await answer.json()
            last = stats["last"]["target"], stats["last"]["headers"], stats["env"], stats["argv"]
            told = json.dumps(last).replace(f"/v1/responses/{key}", "")  # an id may be anything
            assert secrets.found_in(told.encode()) == [], raw
