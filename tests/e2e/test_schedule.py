"""The schedule of a real daemon: windows that begin in seconds, by the clock as it is."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from tests.e2e.house import House, chat, running


def at(from_now_s: float) -> str:
    """A time of day as the configuration has it."""
    return f"{datetime.now(UTC) + timedelta(seconds=from_now_s):%H:%M:%S}"


def window(name: str, begins_in_s: float, ends_in_s: float, **more: object) -> dict[str, object]:
    return {"name": name, "from": at(begins_in_s), "to": at(ends_in_s), **more}


def schedule(*windows: Mapping[str, object]) -> dict[str, object]:
    return {"timezone": "UTC", "windows": list(windows)}


NOW = (-7200, 7200)
"""A window that is on for as long as any test."""


async def until(house: House, web: aiohttp.ClientSession, **states: str) -> None:
    async with asyncio.timeout(20):
        while True:
            async with web.get("/healthz") as answer:
                routes = (await answer.json())["routes"]
            if all(routes[name]["state"] == state for name, state in states.items()):
                return
            await asyncio.sleep(0.05)


def messages(house: House) -> list[str]:
    return [entry["message"] for entry in house.entries()]


async def refusal(web: aiohttp.ClientSession, model: str) -> tuple[dict[str, Any], Mapping[str, str]]:
    async with web.post("/v1/chat/completions", json=chat(model)) as answer:
        assert answer.status == 503, await answer.text()
        return (await answer.json())["error"], answer.headers


async def answered_by(web: aiohttp.ClientSession, model: str) -> tuple[str, Mapping[str, str]]:
    async with web.post("/v1/chat/completions", json=chat(model)) as answer:
        assert answer.status == 200, await answer.text()
        return (await answer.json())["choices"][0]["message"]["content"], answer.headers


@pytest.fixture
async def control(house: House) -> AsyncIterator[aiohttp.ClientSession]:
    """The control socket, where everybody is an admin."""
    connector = aiohttp.UnixConnector(str(house.root / "runtime" / "control.sock"))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
        yield session


class TestSwitch:
    """A window begins, and ends."""

    async def test_it_begins_by_the_clock_closes_what_runs_and_starts_what_is_wanted(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        models = {"day": house.fake(), "night": house.fake()}
        house.configure(models, server={"preload": ["day"]})
        async with running(house):
            await until(house, web, day="ready", night="stopped")
            dark = window("dark", 2, 3602, only=["night"], preload=["night"])
            house.configure(models, schedule=schedule(dark), server={"preload": ["day"]})
            house.cli("reload")
            await until(house, web, day="stopped", night="ready")
            error, headers = await refusal(web, "day")
            assert (error["code"], error["param"]) == ("out_of_schedule", "model")
            assert 'window "dark" of the schedule does not let it run until' in error["message"]
            assert 3500 <= int(headers["Retry-After"]) <= 3602
            assert headers["X-Should-Retry"] == "false"
            assert house.status()["models"]["day"]["closed"].startswith('window "dark"')
            assert (await answered_by(web, "night"))[0] == "I am night."
        told = [text for text in messages(house) if 'window "dark" of the schedule is in force' in text]
        assert len(told) == 1
        assert "only night may run, until" in told[0]
        assert told[0].endswith("(UTC), then no window")
        assert any(text.startswith('stops day: window "dark" of the schedule') for text in messages(house))

    async def test_what_is_always_preloaded_comes_back_when_it_ends(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        dark = window("dark", -3600, 4, only=["night"], preload=["night"])
        models = {"day": house.fake(), "night": house.fake()}
        house.configure(models, schedule=schedule(dark), server={"preload": ["day"]})
        async with running(house):
            await until(house, web, day="ready", night="ready")  # nothing closes night by day

    async def test_requests_in_flight_may_finish_and_those_that_wait_are_told(
        self, house: House, web: aiohttp.ClientSession, control: aiohttp.ClientSession
    ) -> None:
        dark = window("dark", 3600, 7200, only=[])
        slowly = {"FAKE_TOKENS_PER_S": "10"}
        models = {"day": house.fake(env=slowly), "slow": house.fake(load_s=30)}
        house.configure(models, schedule=schedule(dark))
        async with running(house):
            body = chat("day", stream=True, max_tokens=20, ignore_eos=True)
            async with web.post("/v1/chat/completions", json=body) as stream:
                await stream.content.readany()
                waiting = asyncio.create_task(refusal(web, "slow"))
                await until(house, web, slow="starting")
                async with control.post("/admin/schedule", json={"window": "dark"}) as answer:
                    assert answer.status == 200
                error, _ = await waiting
                assert error["code"] == "out_of_schedule"
                assert "was put in force by hand" in error["message"]
                await refusal(web, "day")
                assert (await stream.text()).endswith("data: [DONE]\n\n")
            await until(house, web, day="stopped", slow="stopped")

    async def test_new_requests_are_refused_while_it_drains(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        dark = window("dark", 60, 3600, only=["night"], preload=["night"], drain="10m")
        house.configure({"day": house.fake(), "night": house.fake()}, schedule=schedule(dark))
        async with running(house):
            error, headers = await refusal(web, "day")
            assert 'window "dark" of the schedule begins at' in error["message"]
            assert 3500 < int(headers["Retry-After"]) <= 3600
            assert headers["X-Should-Retry"] == "false"
            assert (await answered_by(web, "night"))[0] == "I am night."


class TestClosed:
    """A window is on."""

    async def test_orders_for_it_are_refused_and_it_is_not_preloaded(
        self, house: House, web: aiohttp.ClientSession, control: aiohttp.ClientSession
    ) -> None:
        house.configure(
            {"day": house.fake(keep=True), "night": house.fake()},
            schedule=schedule(window("dark", *NOW, only=["night"])),
            server={"preload": ["day", "night"]},
        )
        async with running(house):
            await until(house, web, day="stopped", night="ready")
            for verb in ("start", "wake", "switch", "restart"):
                async with control.post(f"/admin/{verb}", json={"model": "day"}) as answer:
                    assert answer.status == 503
                    error = (await answer.json())["error"]
                    assert error["code"] == "out_of_schedule"
                    assert "`llm-supervisor schedule none`" in error["message"]
            await until(house, web, day="stopped", night="ready")  # `switch` stopped nothing

    async def test_the_fallback_answers_in_its_place(self, house: House, web: aiohttp.ClientSession) -> None:
        dark = window("dark", *NOW, only=["night"], fallback="night")
        house.configure({"day": house.fake(), "night": house.fake()}, schedule=schedule(dark))
        async with running(house):
            text, headers = await answered_by(web, "day")
            assert text == "I am night."
            assert headers["X-LLM-Model"] == "night"
            assert "schedule" in headers["X-LLM-Route-Reason"]

    async def test_an_engine_that_is_taken_over_is_drained(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        models = {"day": house.fake(), "night": house.fake()}
        house.configure(models, server={"on_stop": "keep"})
        async with running(house):
            await answered_by(web, "day")
            assert await house.stop() == 0
            assert house.engines() != []
            house.configure(models, schedule=schedule(window("dark", *NOW, only=["night"])))
            await house.start()
            await until(house, web, day="stopped")
            assert "takes over day" in house.log

    async def test_a_reload_brings_and_takes_a_schedule(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        models = {"day": house.fake(), "night": house.fake()}
        house.configure(models, server={"preload": ["day"]})
        async with running(house):
            await until(house, web, day="ready")
            dark = window("dark", *NOW, only=["night"], preload=["night"])
            house.configure(models, schedule=schedule(dark), server={"preload": ["day"]})
            house.cli("reload")
            await until(house, web, day="stopped", night="ready")
            house.configure(models, server={"preload": ["day"]})
            house.cli("reload")
            await until(house, web, day="ready", night="ready")


class TestOverride:
    """POST /admin/schedule and `llm-supervisor schedule`."""

    async def test_a_restart_of_the_daemon_keeps_it(
        self, house: House, web: aiohttp.ClientSession, control: aiohttp.ClientSession
    ) -> None:
        models = {"day": house.fake(), "night": house.fake()}
        house.configure(models, schedule=schedule(window("dark", *NOW, only=["night"])))
        async with running(house):
            await refusal(web, "day")
            async with control.post("/admin/schedule", json={"window": None, "for": "1h"}) as answer:
                found = await answer.json()
            assert (found["window"], found["override"], found["closed"]) == (None, True, {})
            assert [switch["window"] for switch in found["switches"][:2]] == ["dark", None]
            assert await house.stop() == 0
            await house.start()
            assert (await answered_by(web, "day"))[0] == "I am day."
            async with control.get("/admin/schedule") as answer:
                assert (await answer.json())["override_until"] == found["override_until"]

    async def test_it_ends_by_itself(
        self, house: House, web: aiohttp.ClientSession, control: aiohttp.ClientSession
    ) -> None:
        house.configure({"day": house.fake()}, schedule=schedule(window("dark", *NOW, only=[])))
        async with running(house):
            kept = house.root / "state" / "schedule.json"
            async with control.post("/admin/schedule", json={"window": None, "for": 2}) as answer:
                assert answer.status == 200
            assert kept.exists()
            assert (await answered_by(web, "day"))[0] == "I am day."
            await until(house, web, day="stopped")
            assert (await refusal(web, "day"))[0]["code"] == "out_of_schedule"
            assert not kept.exists()

    async def test_it_ends_with_its_window(
        self, house: House, web: aiohttp.ClientSession, control: aiohttp.ClientSession
    ) -> None:
        models = {"day": house.fake()}
        house.configure(models, schedule=schedule(window("dark", 3600, 7200, only=[])))
        async with running(house):
            async with control.post("/admin/schedule", json={"window": "dark"}) as answer:
                assert answer.status == 200
            await refusal(web, "day")
            house.configure(models, schedule=schedule(window("gloom", 3600, 7200, only=[])))
            house.cli("reload")
            assert (await answered_by(web, "day"))[0] == "I am day."
        assert any('there is no window "dark" any more' in text for text in messages(house))

    async def test_by_the_command_line_until_the_next_switch_or_until_it_is_ended(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        models = {"day": house.fake(), "night": house.fake()}
        dark = window("dark", 3600, 7200, only=["night"], preload=["night"])
        house.configure(models, schedule=schedule(dark))
        async with running(house):
            assert "every model may run" in house.cli("schedule").stdout
            by_hand = house.cli("schedule", "dark").stdout
            assert 'window "dark" of the schedule is in force: only night may run, by hand, until' in by_hand
            await until(house, web, night="ready")
            assert (await refusal(web, "day"))[0]["code"] == "out_of_schedule"
            assert 'window "dark" of the schedule is in force' in house.cli("status").stdout
            assert "by hand" not in house.cli("schedule", "auto").stdout
            assert (await answered_by(web, "day"))[0] == "I am day."

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("schedule", "drak"), 'did you mean "dark"?'),
            (("schedule", "auto", "--for", "1h"), 'leave out "for"'),
            (("schedule", "dark", "--for", "soon"), "write a duration"),
            (("schedule", "dark", "--for", "0s"), "up to 366 days"),
            (("schedule", "--for", "1h"), "name a window"),
        ],
    )
    async def test_what_cannot_be_put_in_force_says_why(
        self, house: House, words: tuple[str, ...], told: str
    ) -> None:
        house.configure({"day": house.fake()}, schedule=schedule(window("dark", *NOW, only=["day"])))
        async with running(house):
            done = house.cli(*words, check=False)
            assert done.returncode in (1, 2)
            assert told in done.stderr

    async def test_without_a_schedule_there_is_nothing_to_override(self, house: House) -> None:
        house.configure({"day": house.fake()})
        async with running(house):
            assert "there is no [schedule]" in house.cli("schedule").stdout
            assert "add windows" in house.cli("schedule", "none", check=False).stderr
