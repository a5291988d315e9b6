"""The daemon as its user meets it: real processes, real HTTP, engines that misbehave by name."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import time
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.e2e.house import House, chat, running, say, until_state


async def engine_stats(web: aiohttp.ClientSession, house: House, model: str) -> dict[str, object]:
    """What the fake engine saw, asked behind the daemon's back."""
    connector = aiohttp.UnixConnector(str(house.root / "runtime" / "engines" / f"{model}.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as direct,
        direct.get("http://x/fake/stats") as answer,
    ):
        stats: dict[str, object] = await answer.json()
        return stats


class TestRequests:
    """From the first request to the last byte."""

    async def test_nothing_runs_until_the_first_request_which_is_answered(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake(load_s=0.2), "beta": house.fake()})
        async with running(house):
            async with web.get("/v1/models") as answer:
                assert [entry["id"] for entry in (await answer.json())["data"]] == ["alpha", "beta"]
            assert house.engines() == []
            assert await say(web, "alpha") == "I am alpha."
            assert await say(web, "beta") == "I am beta."

    async def test_a_stream_passes_event_by_event_and_tells_how_long_it_waited(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake(load_s=0.3)})
        async with (
            running(house),
            web.post("/v1/chat/completions", json=chat("alpha", stream=True)) as answer,
        ):
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert int(answer.headers["X-LLM-Wait-Ms"]) >= 300
            assert answer.headers["X-LLM-Model"] == "alpha"
            events = (await answer.text()).split("\n\n")
        assert events[-2] == "data: [DONE]"

    async def test_two_hundred_first_requests_make_one_start_and_get_two_hundred_answers(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake(load_s=0.5)})
        async with (
            running(house),
            aiohttp.ClientSession(house.url, connector=aiohttp.TCPConnector(limit=0)) as many,
        ):
            answers = await asyncio.gather(*(say(many, "alpha") for _ in range(200)))
            assert answers == ["I am alpha."] * 200
            assert house.status()["models"]["alpha"]["launch"] == 1

    async def test_a_long_load_sends_keep_alives_to_who_streams_and_nothing_to_who_does_not(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake(load_s=2.0)}, server={"heartbeat": "300ms"})
        async with running(house):
            silent = asyncio.create_task(say(web, "alpha"))
            async with web.post("/v1/chat/completions", json=chat("alpha", stream=True)) as answer:
                assert not silent.done(), "the stream's head came before the load was over"
                text = await answer.text()
            assert text.startswith(": keep-alive\n\n")
            assert text.count(": keep-alive\n\n") >= 3
            assert text.endswith("data: [DONE]\n\n")
            assert await silent == "I am alpha."

    async def test_a_client_that_leaves_is_aborted_at_the_engine_within_a_second(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake(env={"FAKE_TOKENS_PER_S": "20"})})
        async with running(house):
            body = chat("alpha", stream=True, ignore_eos=True, max_tokens=2000)
            async with web.post("/v1/chat/completions", json=body) as answer:
                await answer.content.readany()
            async with asyncio.timeout(1):
                while (await engine_stats(web, house, "alpha"))["running"] != 0:
                    await asyncio.sleep(0.02)
            assert (await engine_stats(web, house, "alpha"))["aborted"] == 1

    async def test_a_client_that_leaves_while_it_loads_does_not_cancel_the_load(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake(load_s=1.0)})
        async with running(house):
            with pytest.raises(TimeoutError):
                await web.post("/v1/chat/completions", json=chat("alpha"), timeout=aiohttp.ClientTimeout(0.3))
            retry = await say(web, "alpha")
            assert retry == "I am alpha."
            assert house.status()["models"]["alpha"]["launch"] == 1

    async def test_an_idle_engine_is_ended_and_comes_back(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake(idle={"stop_after": "300ms"})})
        async with running(house):
            assert await say(web, "alpha") == "I am alpha."
            await until_state(web, "alpha", "stopped")
            assert house.engines() == []
            assert await say(web, "alpha") == "I am alpha."

    async def test_max_concurrent_refuses_and_a_queue_waits(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        slow = {"FAKE_TOKENS_PER_S": "10"}
        house.configure(
            {
                "narrow": house.fake(env=slow, max_concurrent=1),
                "queued": house.fake(env=slow, max_concurrent=1, queue={"size": 10}),
            }
        )
        async with running(house):
            await say(web, "narrow")
            first = asyncio.create_task(say(web, "narrow"))
            await asyncio.sleep(0.1)
            async with web.post("/v1/chat/completions", json=chat("narrow")) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"]) == (503, "model_busy")
                assert int(answer.headers["Retry-After"]) >= 1
            await first
            assert await asyncio.gather(*(say(web, "queued") for _ in range(3))) == ["I am queued."] * 3


class TestFailures:
    """What goes wrong with engines, and what the client hears of it."""

    async def test_a_failed_start_tells_the_cause_the_last_lines_and_the_command(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake("exits_while_loading")})
        async with running(house):
            async with web.post("/v1/chat/completions", json=chat("alpha")) as answer:
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) >= 1
                error = (await answer.json())["error"]
            assert error["code"] == "start_failed"
            assert "No available memory for the cache blocks" in error["message"]
            assert f"{house.root}/venv/bin/vllm serve" in error["message"]
            assert error["message"] in house.status()["models"]["alpha"]["last_error"]
            assert "No available memory for the cache blocks" in house.cli("logs", "alpha").stdout

    async def test_an_exit_with_code_0_is_a_crash_and_the_next_request_gets_a_new_engine(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        fake = house.fake("exits_zero_unasked=0.2", restart={"backoff": "100ms..1s", "tries": 50})
        house.configure({"alpha": fake})
        async with running(house):
            assert await say(web, "alpha") == "I am alpha."
            await until_state(web, "alpha", "stopped")
            assert await say(web, "alpha") == "I am alpha."
            events = house.cli("events").stdout
            assert "code 0 although nobody asked" in events

    async def test_an_engine_that_dies_before_the_first_byte_is_a_502(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake("dies_before_first_byte")})
        async with (
            running(house),
            web.post("/v1/chat/completions", json=chat("alpha")) as answer,
        ):
            assert (answer.status, (await answer.json())["error"]["code"]) == (502, "engine_crashed")

    async def test_an_engine_that_dies_in_mid_stream_ends_it_with_an_error_event(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake("dies_mid_stream", env={"FAKE_TOKENS_PER_S": "20"})})
        async with (
            running(house),
            web.post("/v1/chat/completions", json=chat("alpha", stream=True)) as answer,
        ):
            assert answer.status == 200
            last = (await answer.text()).rstrip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_crashed"

    async def test_a_start_that_takes_too_long_is_killed_with_all_it_left(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake("never_ready,leaves_grandchild", start_timeout="700ms")})
        async with running(house):
            async with web.post("/v1/chat/completions", json=chat("alpha")) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (503, "start_timeout")
            await until_state(web, "alpha", "backoff")
            assert house.engines() == []

    async def test_a_start_that_says_nothing_is_given_up_before_its_time(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake("stalls_silently", stall_timeout="500ms")})
        async with running(house), web.post("/v1/chat/completions", json=chat("alpha")) as answer:
            error = (await answer.json())["error"]
            assert error["code"] == "start_timeout"
            assert "no sign of progress" in error["message"]

    async def test_killing_the_leader_leaves_no_orphan(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake("engine_core,leaves_grandchild")})
        async with running(house):
            await say(web, "alpha")
            record = json.loads((house.root / "runtime" / "engines" / "alpha.json").read_text())
            assert len(house.engines()) >= 3
            os.kill(record["pid"], signal.SIGKILL)
            await until_state(web, "alpha", "backoff")
            assert house.engines() == []

    async def test_a_missing_path_disables_that_model_alone(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"gone": house.fake(source=str(house.root / "nowhere")), "alpha": house.fake()})
        async with running(house):
            async with web.post("/v1/chat/completions", json=chat("gone")) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"]) == (503, "start_failed")
                assert str(house.root / "nowhere") in error["message"]
            assert await say(web, "alpha") == "I am alpha."
            assert house.status()["models"]["gone"]["state"] == "failed"
            done = house.cli("check", check=False)
            assert done.returncode == 1
            assert str(house.root / "nowhere") in done.stdout

    async def test_a_flood_of_output_disturbs_nobody_and_stays_bounded(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"loud": house.fake("floods_log=40"), "alpha": house.fake()})
        async with running(house):
            await say(web, "loud")
            await say(web, "alpha")
            assert house.process is not None
            daemon = psutil.Process(house.process.pid)
            before = daemon.memory_info().rss
            slowest = 0.0
            for _ in range(40):
                began = time.perf_counter()
                await say(web, "alpha")
                slowest = max(slowest, time.perf_counter() - began)
                await asyncio.sleep(0.05)
            assert slowest < 0.5
            assert daemon.memory_info().rss - before < 40 * 1024**2
            logs = sum(path.stat().st_size for path in (house.root / "state" / "logs").iterdir())
            assert logs < 80 * 1024**2


class TestLife:
    """Start, reload, stop, crash of the daemon itself."""

    async def test_sigterm_lets_open_streams_finish_refuses_new_ones_and_leaves_nothing(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake(env={"FAKE_TOKENS_PER_S": "10"})})
        async with running(house):
            await say(web, "alpha")
            body = chat("alpha", stream=True, ignore_eos=True, max_tokens=12)
            async with web.post("/v1/chat/completions", json=body) as answer:
                await answer.content.readany()
                assert house.process is not None
                house.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.2)
                async with web.post("/v1/chat/completions", json=chat("alpha")) as late:
                    assert (late.status, (await late.json())["error"]["code"]) == (503, "shutting_down")
                assert (await answer.text()).endswith("data: [DONE]\n\n")
            assert await house.stop() == 0
            assert not (house.root / "runtime" / "control.sock").exists()

    async def test_a_stream_that_outlasts_the_drain_is_ended_with_an_error_event(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        fake = house.fake("hangs_on_sigterm_with_open_stream", env={"FAKE_TOKENS_PER_S": "10"})
        house.configure({"alpha": fake}, server={"drain_timeout": "500ms"})
        async with running(house):
            body = chat("alpha", stream=True, ignore_eos=True, max_tokens=5000)
            async with web.post("/v1/chat/completions", json=body) as answer:
                await answer.content.readany()
                began = time.monotonic()
                assert await house.stop() == 0
                assert time.monotonic() - began < 5, "its connection was not closed before SIGTERM"
                last = (await answer.text()).rstrip().split("\n\n")[-1]
            assert "error" in json.loads(last.removeprefix("data: "))

    async def test_a_second_sigterm_ends_the_drain(self, house: House, web: aiohttp.ClientSession) -> None:
        house.configure(
            {"alpha": house.fake(env={"FAKE_TOKENS_PER_S": "10"})}, server={"drain_timeout": "60s"}
        )
        async with running(house):
            body = chat("alpha", stream=True, ignore_eos=True, max_tokens=5000)
            async with web.post("/v1/chat/completions", json=body) as answer:
                await answer.content.readany()
                assert house.process is not None
                house.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.2)
                assert await house.stop(timeout_s=15) == 0

    async def test_sigterm_while_an_engine_loads_kills_it_at_once(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake("swallows_sigterm_while_loading", load_s=60)})
        async with running(house):
            waiting = asyncio.create_task(web.post("/v1/chat/completions", json=chat("alpha")))
            await until_state(web, "alpha", "starting")
            began = time.monotonic()
            assert await house.stop() == 0
            assert time.monotonic() - began < 3
            async with await waiting as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (503, "shutting_down")

    async def test_reload_keeps_what_did_not_change_and_relaunches_what_did(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({name: house.fake() for name in ("same", "changed", "removed")})
        async with running(house):
            for name in ("same", "changed", "removed"):
                await say(web, name)
            pids = {name: (await engine_stats(web, house, name))["pid"] for name in ("same", "changed")}
            changed = house.fake(flags={"max-model-len": 1024})
            house.configure({"same": house.fake(), "changed": changed, "added": house.fake()})
            assert house.process is not None
            house.process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(10):
                while "added" not in house.status()["models"] or "removed" in house.status()["models"]:
                    await asyncio.sleep(0.05)
            for name in ("same", "changed", "added"):
                assert await say(web, name) == f"I am {name}."
            assert (await engine_stats(web, house, "same"))["pid"] == pids["same"]
            assert (await engine_stats(web, house, "changed"))["pid"] != pids["changed"]
            async with web.post("/v1/chat/completions", json=chat("removed")) as answer:
                assert answer.status == 404

    async def test_what_needs_a_restart_is_told_until_it_is_undone(self, house: House) -> None:
        house.configure({"alpha": house.fake()})
        async with running(house):
            house.configure({"alpha": house.fake()}, log={"format": "text"})
            for _ in range(2):
                assert "log.format" in house.cli("reload").stdout
            house.configure({"alpha": house.fake()})
            assert "log.format" not in house.cli("reload").stdout

    async def test_a_bad_file_keeps_the_old_configuration_and_says_every_problem(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake()})
        async with running(house):
            await say(web, "alpha")
            house.configure({"alpha": house.fake(gpu="x", start_timeout="soon")})
            done = house.cli("reload", check=False)
            assert done.returncode == 78
            assert "models.alpha.gpu" in done.stderr
            assert "models.alpha.start_timeout" in done.stderr
            assert await say(web, "alpha") == "I am alpha."
            assert house.status()["models"]["alpha"]["launch"] == 1

    async def test_a_second_daemon_on_the_same_runtime_directory_refuses_to_start(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake()})
        async with running(house):
            await say(web, "alpha")
            assert house.process is not None
            done = house.cli("serve", check=False)
            assert done.returncode == 1
            assert f"pid {house.process.pid}" in done.stderr
            assert await say(web, "alpha") == "I am alpha."

    async def test_a_taken_port_is_told_with_a_way_out(self, house: House) -> None:
        house.configure({"alpha": house.fake()})
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", house.port))
            taken.listen()
            done = house.cli("serve", check=False)
        assert done.returncode == 1
        assert f"cannot listen on 127.0.0.1:{house.port}: Address already in use" in done.stderr

    async def test_every_problem_of_a_config_is_told_at_once_with_exit_78(self, house: House) -> None:
        house.configure({"alpha": house.fake(idel={}, vram="64 gigs")}, server={"preload": ["beta"]})
        for command in ("serve", "check"):
            done = house.cli(command, check=False)
            assert done.returncode == 78
            for path in ("models.alpha.idel", "models.alpha.vram", "server.preload"):
                assert path in done.stderr

    async def test_systemd_is_told(self, house: House) -> None:
        path = house.root / "notify.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(path))
            listener.settimeout(5)
            house.environ |= {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}
            house.configure({"alpha": house.fake()})
            async with running(house):
                said = [listener.recv(4096).decode() for _ in range(4)]
            with contextlib.suppress(BlockingIOError):
                listener.setblocking(False)
                while True:
                    said.append(listener.recv(4096).decode())
        assert any(message.startswith("READY=1\nSTATUS=0/1 models ready") for message in said)
        assert sum(message.startswith("WATCHDOG=1") for message in said) >= 2
        assert any(message.startswith("STOPPING=1") for message in said)

    async def test_a_socket_of_systemd_wins_over_listen_and_no_engine_holds_it(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        port = house.port
        with socket.create_server(("127.0.0.1", port)) as listener:
            house.configure({"alpha": house.fake()}, server={"listen": ["127.0.0.1:1"]})
            house.inherited = listener
            async with running(house):
                assert await say(web, "alpha") == "I am alpha."
                record = json.loads((house.root / "runtime" / "engines" / "alpha.json").read_text())
                engine = psutil.Process(record["pid"])
                assert [each.laddr for each in engine.net_connections("tcp") if each.laddr.port == port] == []

    async def test_preload_starts_in_order_without_a_request(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure(
            {name: house.fake(load_s=0.2) for name in ("a", "b", "c")}, server={"preload": ["c", "a"]}
        )
        async with running(house):
            await until_state(web, "a", "ready")
            starts = [entry["message"] for entry in house.entries() if entry["message"].startswith("starts ")]
            assert starts == ["starts c on the CPU", "starts a on the CPU"]


class TestCommands:
    """The command line against the running daemon."""

    async def test_start_status_stop_restart(self, house: House, web: aiohttp.ClientSession) -> None:
        house.configure({"alpha": house.fake()})
        async with running(house):
            house.cli("start", "alpha")
            assert house.status()["models"]["alpha"]["state"] == "ready"
            before = (await engine_stats(web, house, "alpha"))["pid"]
            house.cli("restart", "alpha")
            assert (await engine_stats(web, house, "alpha"))["pid"] != before
            assert "alpha" in house.cli("status").stdout
            house.cli("stop", "alpha")
            assert house.status()["models"]["alpha"]["state"] == "stopped"
            assert house.engines() == []

    async def test_start_of_a_model_that_fails_exits_1_and_says_why(self, house: House) -> None:
        house.configure({"alpha": house.fake("exits_while_loading")})
        async with running(house):
            done = house.cli("start", "alpha", check=False)
            assert done.returncode == 1
            assert "No available memory" in done.stderr

    async def test_without_a_daemon_the_command_says_how_to_start_one(self, house: House) -> None:
        house.configure({"alpha": house.fake()})
        done = house.cli("status", check=False)
        assert done.returncode == 1
        assert "llm-supervisor serve" in done.stderr


class TestSecrets:
    """Keys open the door and go nowhere else."""

    async def test_keys_are_asked_for_and_never_reach_the_engine_or_the_log(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        (house.root / ".env").write_text("WEBUI_KEY=sk-test-12345\nADMIN_KEY=sk-admin-67890\n")
        house.configure(
            {"alpha": house.fake(), "beta": house.fake()},
            auth={"required": True},
            **{
                "clients.webui": {"key_env": "WEBUI_KEY", "models": ["alpha"]},
                "clients.boss": {"key_env": "ADMIN_KEY", "admin": True},
            },
        )
        user = {"Authorization": "Bearer sk-test-12345"}
        boss = {"x-api-key": "sk-admin-67890"}
        async with running(house):
            async with web.post("/v1/chat/completions", json=chat("alpha")) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (401, "invalid_api_key")
            async with web.post("/v1/chat/completions", json=chat("alpha"), headers=user) as answer:
                assert answer.status == 200
            async with web.post("/v1/chat/completions", json=chat("beta"), headers=user) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (403, "model_forbidden")
            async with web.post("/admin/stop", json={"model": "alpha"}, headers=user) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (403, "admin_required")
            seen = json.dumps(await engine_stats(web, house, "alpha"))
            async with web.post("/admin/stop", json={"model": "alpha"}, headers=boss) as answer:
                assert (answer.status, (await answer.json())["state"]) == (200, "stopped")
        for secret in ("sk-test-12345", "sk-admin-67890"):
            assert secret not in seen
            assert secret not in house.log
        access = [entry for entry in house.entries() if entry.get("latency_ms") is not None]
        assert {"timestamp", "level", "model", "tokens", "latency_ms", "source"} <= access[0].keys()
        assert "webui" in {entry["source"] for entry in access}

    async def test_engine_sockets_and_the_control_socket_are_not_for_everyone(
        self, house: House, web: aiohttp.ClientSession
    ) -> None:
        house.configure({"alpha": house.fake()})
        async with running(house):
            await say(web, "alpha")
            runtime = Path(house.root / "runtime")
            assert stat.S_IMODE((runtime / "engines").stat().st_mode) == 0o700
            assert stat.S_IMODE((runtime / "control.sock").stat().st_mode) == 0o660
