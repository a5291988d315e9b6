"""What browsers are told: security headers, and which pages may call the API."""

import json
from typing import Any

import pytest

from supervisord_llm.config.keys.doors import read_origin
from supervisord_llm.config.model import Server
from supervisord_llm.gateway.browser import READABLE, cors
from tests.gateway.conftest import CHAT, Build, client, config, key, model

PAGE = "https://app.example.org"
RULES = {"cors_origins": (PAGE,)}
SECURITY = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-XSS-Protection": "1; mode=block",
}


def asking(
    origin: str = PAGE, method: str = "POST", headers: str = "authorization, content-type"
) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }


def granted(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("Access-Control-")}


# --- which origins ---------------------------------------------------------------------------

ORIGINS: dict[str, tuple[str, str, bool]] = {
    "itself": ("https://a.org", "https://a.org", True),
    "another": ("https://a.org", "https://b.org", False),
    "another scheme": ("https://a.org", "http://a.org", False),
    "another port": ("https://a.org", "https://a.org:8443", False),
    "its own default port": ("https://A.org:443", "https://a.org", True),
    "a longer host": ("https://a.org", "https://a.org.evil.com", False),
    "a subdomain": ("https://*.a.org", "https://x.y.a.org", True),
    "not the domain itself": ("https://*.a.org", "https://a.org", False),
    "a host that ends alike": ("https://*.a.org", "https://evila.org", False),
    "a host behind it": ("https://*.a.org", "https://x.a.org.evil.com", False),
    "no path in a star": ("https://*.a.org", "https://evil.com/.a.org", False),
    "no user in a star": ("https://*.a.org", "https://evil.com@x.a.org", False),
    "any port": ("http://localhost:*", "http://localhost:5173", True),
    "any port of that host": ("http://localhost:*", "http://localhost.evil.com:5173", False),
    "an extension": ("chrome-extension://abcdef", "chrome-extension://abcdef", True),
    "everybody": ("*", "https://b.org", True),
    "everybody, files too": ("*", "null", True),
    "not files": ("https://a.org", "null", False),
}


@pytest.mark.parametrize(("written", "origin", "allowed"), ORIGINS.values(), ids=ORIGINS)
def test_an_origin_may_or_may_not(written: str, origin: str, allowed: bool) -> None:
    rules = cors((read_origin(written),))
    assert rules is not None
    assert rules.allows(origin) is allowed


# --- preflights ------------------------------------------------------------------------------------


async def test_a_preflight_is_answered_without_a_key_and_without_an_engine(build: Build) -> None:
    async with build(config(model("alpha"), clients=(client("a"),), **RULES)) as house:
        answer = await house.ask("OPTIONS", "/v1/chat/completions", headers=asking())
        assert (answer.status, answer.body) == (204, b"")
        assert granted(answer.headers) == {
            "Access-Control-Allow-Origin": PAGE,
            "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
            "Access-Control-Allow-Headers": "authorization, content-type",
            "Access-Control-Max-Age": "7200",
            "Access-Control-Expose-Headers": READABLE,
        }
        assert answer.headers["Vary"] == "Origin, Access-Control-Request-Headers"
        assert house.launcher.launches == []


async def test_a_preflight_may_ask_for_any_header_but_those_of_proxies(build: Build) -> None:
    asked = (
        "x-stainless-retry-count,x-api-key, openai-beta ,X-Forwarded-For,x-real-ip,for\tged,anthropic-version"
    )
    async with build(config(model("alpha"), **RULES)) as house:
        answer = await house.ask("OPTIONS", "/v1/messages", headers=asking(headers=asked))
        allowed = answer.headers["Access-Control-Allow-Headers"]
        assert allowed == "x-stainless-retry-count, x-api-key, openai-beta, anthropic-version"
        none = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
        answer = await house.ask("OPTIONS", "/v1/models", headers=none)
        assert answer.headers["Access-Control-Allow-Headers"] == "Authorization, Content-Type, X-API-Key"


async def test_a_page_on_the_internet_may_reach_into_the_network_if_it_is_allowed(build: Build) -> None:
    asked = asking() | {"Access-Control-Request-Private-Network": "true"}
    async with build(config(model("alpha"), **RULES)) as house:
        answer = await house.ask("OPTIONS", "/v1/models", headers=asked)
        assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
        answer = await house.ask("OPTIONS", "/v1/models", headers=asked | {"Origin": "https://evil.org"})
        assert granted(answer.headers) == {}


async def test_other_pages_get_no_rights(build: Build) -> None:
    async with build(config(model("alpha"), **RULES)) as house:
        for origin in ("https://evil.org", "null", "https://app.example.org.evil.org"):
            answer = await house.ask("OPTIONS", "/v1/chat/completions", headers=asking(origin))
            assert granted(answer.headers) == {}
            answer = await house.ask("GET", "/v1/models", headers={"Origin": origin})
            assert granted(answer.headers) == {}
            assert answer.headers["Vary"] == "Origin"


async def test_without_cors_nothing_is_sent(build: Build) -> None:
    async with build(config(model("alpha"))) as house:
        answer = await house.ask("OPTIONS", "/v1/chat/completions", headers=asking())
        assert answer.status >= 400
        assert granted(answer.headers) == {}
        answer = await house.ask("GET", "/v1/models", headers={"Origin": PAGE})
        assert granted(answer.headers) == {}
        assert "Vary" not in answer.headers


async def test_a_foreign_page_starts_nothing_where_no_key_is_needed(build: Build) -> None:
    form = {"Content-Type": "text/plain", "Origin": "https://evil.org"}
    body = json.dumps({"model": "alpha", "messages": [{"role": "user", "content": "hi"}]})
    async with build(config(model("alpha"), **RULES)) as house:
        for origin in ("https://evil.org", "null"):
            answer = await house.ask("POST", "/api/chat", data=body, headers=form | {"Origin": origin})
            assert (answer.status, answer.json["error"][:19]) == (403, "cannot take a reque")
        assert house.launcher.launches == []
        for origin in (PAGE, house.url):
            assert (await house.chat(headers={"Origin": origin})).status == 200
    async with build(config(model("alpha"), clients=(client("a"),))) as house:
        answer = await house.chat(headers=key("a") | {"Origin": "https://evil.org"})
        assert answer.status == 200, answer.json  # a page that has the key; it cannot read this


@pytest.mark.parametrize("path", ["/admin/stop", "/admin/reload"])
async def test_what_is_for_admins_is_for_no_page(build: Build, path: str) -> None:
    async with build(
        config(model("alpha"), clients=(client("a", admin=True),), cors_origins=("*",))
    ) as house:
        answer = await house.ask("OPTIONS", path, headers=asking())
        assert answer.status >= 400
        assert granted(answer.headers) == {}
        answer = await house.ask("POST", path, headers=key("a") | {"Origin": PAGE}, json={"model": "alpha"})
        assert answer.status == 200
        assert granted(answer.headers) == {}
        answer = await house.ask("POST", path, headers={"Origin": PAGE}, json={"model": "alpha"})
        assert answer.status == 401
        assert granted(answer.headers) == {}
        for other in (path, "/admin/status", "/admin/nothing"):
            answer = await house.ask("DELETE", other, headers=key("a") | {"Origin": PAGE})
            assert answer.status in (404, 405)
            assert granted(answer.headers) == {}


# --- answers ------------------------------------------------------------------------------------------


async def test_every_answer_can_be_read_by_the_page_errors_too(build: Build) -> None:
    who = key("a") | {"Origin": PAGE}
    async with build(config(model("alpha"), clients=(client("a"),), **RULES)) as house:
        answers = [
            await house.chat(headers=who),
            await house.chat(headers=who, stream=True),
            await house.chat(headers=who, model="ghost"),
            await house.chat(headers={"Origin": PAGE}),
            await house.ask("POST", "/v1/chat/completions", headers=who, data=b"{"),
            await house.ask("GET", "/nothing", headers=who),
        ]
        assert [answer.status for answer in answers] == [200, 200, 404, 401, 415, 404]
        for answer in answers:
            assert granted(answer.headers) == {
                "Access-Control-Allow-Origin": PAGE,
                "Access-Control-Expose-Headers": READABLE,
            }
            assert answer.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in answers[0].headers


async def test_a_star_is_a_star(build: Build) -> None:
    async with build(config(model("alpha"), cors_origins=("*",))) as house:
        answer = await house.chat(headers={"Origin": "https://anybody.org"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Vary" not in answer.headers
        answer = await house.chat()
        assert granted(answer.headers) == {}


async def test_security_headers_are_on_every_answer(build: Build) -> None:
    async with build(config(model("alpha"), clients=(client("a"),))) as house:
        answers = [
            await house.ask("GET", "/"),
            await house.ask("GET", "/v1/models"),
            await house.ask("POST", "/v1/chat/completions", json=CHAT, headers=key("a")),
            await house.ask("POST", "/v1/chat/completions", json=CHAT | {"stream": True}, headers=key("a")),
            await house.ask("HEAD", "/healthz"),
        ]
        assert [answer.status for answer in answers] == [200, 401, 200, 200, 200]
        for answer in answers:
            assert SECURITY.items() <= dict(answer.headers).items()
            assert "Strict-Transport-Security" not in answer.headers
        malformed = await house.raw(b"GET / HTTP/1.1\r\nBad Header: 1\r\n\r\n")
        assert b" 400 " in malformed.split(b"\r\n")[0]
        assert b"X-Frame-Options: DENY\r\n" in malformed


async def test_security_headers_can_be_left_out(build: Build) -> None:
    async with build(config(model("alpha"), server=Server(security_headers=False))) as house:
        answer = await house.ask("GET", "/healthz")
        assert not SECURITY.keys() & answer.headers.keys()
