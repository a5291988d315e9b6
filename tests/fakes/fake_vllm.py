#!/usr/bin/env python3
"""A stand-in for `vllm serve DIR --uds PATH --served-model-name NAME...` that misbehaves by name.

Standard library only, up in a few tens of milliseconds. It is told what to do by its environment:

FAKE_VLLM          misbehaviours, comma-separated, some with a value: "leaves_grandchild,dies_after=0.5"
FAKE_LOAD_S        seconds from exec to listening (0)
FAKE_TOKENS_PER_S  pace of answers (0: as fast as possible)
FAKE_ANSWER        the text of every answer ("I am NAME.")
FAKE_VRAM_MIB      MiB that it holds of each of its GPUs once ready; half of it from half the load on
FAKE_RESIDUE_MIB   MiB that it keeps of each while it sleeps (1024, and no more than FAKE_VRAM_MIB)
FAKE_VRAM_GROWS    "MIB:SECONDS": it takes that much more, that long after it became ready
FAKE_KV_MIB        the KV cache that its log tells, unless --kv-cache-memory-bytes is given

What it holds is told to a stub of NVML: where $STUB_NVML_STATE is a directory, `procs/<pid>` in it has a line
`<index> <MiB>` for each GPU. The pid is that of the engine core, where there is one. The file stays behind:
whether the process still lives is for the reader to see.

MISBEHAVIOURS says what each one does; they can be combined.

A prompt that begins with "echo" is answered with the request's own body; `ignore_eos` with `max_tokens`
repeats the answer up to that many tokens. Constrained to choices, it answers with the one that the prompt has
most often. GET /fake/stats tells what the process saw.
GET /fake/reach/HOST:PORT tells whether it can connect there, and /fake/reach/own to itself on 127.0.0.1.
"""

import asyncio
import contextlib
import faulthandler
import hashlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Headers = list[tuple[str, str]]

MISBEHAVIOURS = {
    "never_ready": "logs its first lines, then never listens",
    "stalls_silently": "writes nothing at all and never listens",
    "stalls_but_logs": "writes a line that means nothing every 50 ms and never listens",
    "health_never_200": "listens, but /health says 503 for ever",
    "exits_while_loading": "=CODE (1): fails like vLLM with a root cause, after the load time",
    "dies_after": "=SECONDS (0.2): exits with code 1 that long after it became ready",
    "exits_zero_unasked": "=SECONDS (0.2): like dies_after, but /health says 503 first and the code is 0",
    "dies_before_first_byte": "exits with code 1 on the first generation request",
    "dies_mid_stream": "exits with code 1 after the second token",
    "ignores_sigterm": "SIGTERM does nothing",
    "swallows_sigterm_while_loading": "a SIGTERM during the load is swallowed and the load never ends",
    "hangs_on_sigterm_with_open_stream": "SIGTERM waits for open streams, which neither end nor fail",
    "leaves_grandchild": "a process of its own session, forked twice, that outlives everything",
    "engine_core": "a child titled VLLM::EngineCore, which a graceful exit kills and a SIGKILL orphans",
    "floods_log": "=MB per second (0: as fast as it goes)",
    "embeds_only": "serves embeddings and no completions",
    "sleep_hangs": "POST /sleep is never answered",
    "sleep_keeps_memory": "falls asleep and says so, and holds its memory all the same",
    "wake_fails": "POST /wake_up says 500",
    "wake_hangs": "POST /wake_up is never answered",
    "wakes_wrong": "answers something else once it has slept",
    "oom_while_loading": "=N (0): runs out of GPU memory while it loads, if max-num-seqs (256) is above N",
    "oom_always": "runs out of GPU memory while it loads, whatever the flags",
    "oom_serving": "=N (0): the same at the first generation request",
    "freezes": "=N (1): hangs from the N-th generation request on, deaf to SIGTERM; /health says 200",
    "logs_progress": "writes vLLM's own lines while it loads",
}

PROGRESS = (
    "(APIServer pid=1) INFO 11-21 03:12:40 [utils.py:253] non-default args: {'model': 'x'}",
    "(APIServer pid=1) INFO 11-21 03:12:42 [model.py:733] Resolved architecture: LlamaForCausalLM",
    "(EngineCore pid=2) INFO 11-21 03:12:44 [core.py:93] Initializing a V1 LLM engine (v0.32.0) with config",
    "(EngineCore pid=2) INFO 11-21 03:12:45 [model_runner.py:3] Starting to load model x...",
    "\rLoading safetensors checkpoint shards:   0% Completed | 0/5 [00:00<?, ?it/s]",
    "\rLoading safetensors checkpoint shards:  40% Completed | 2/5 [00:00<00:00, 8.51it/s]",
    "\rLoading safetensors checkpoint shards: 100% Completed | 5/5 [00:00<00:00, 8.51it/s]\n",
    "(EngineCore pid=2) INFO 11-21 03:12:46 [default_loader.py:267] Loading weights took 0.01 seconds",
    "(EngineCore pid=2) INFO 11-21 03:12:47 [backends.py:8] Dynamo bytecode transform time: 4.61 s",
    "(EngineCore pid=2) INFO 11-21 03:12:48 [worker.py:3] Available KV cache memory: 0.06 GiB",
    "(EngineCore pid=2) INFO 11-21 03:12:48 [kv_cache_utils.py:8] GPU KV cache size: 262,144 tokens",
    "(EngineCore pid=2) INFO 11-21 03:12:49 [core.py:255] init engine (profile, create kv cache) took 1.00 s",
)

FAILURE = """\
(EngineCore pid=2) ERROR 11-21 03:12:44 [core.py:901] EngineCore failed to start.
(EngineCore pid=2) ERROR 11-21 03:12:44 [core.py:901] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-21 03:12:44 [core.py:901] ValueError: No available memory for the cache blocks. \
Try increasing `gpu_memory_utilization` when initializing the engine.
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.
"""

OOM = """\
(EngineCore pid=2) ERROR 11-21 03:12:46 [core.py:901] {where}
(EngineCore pid=2) ERROR 11-21 03:12:46 [core.py:901] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-21 03:12:46 [core.py:901]   File "gpu_model_runner.py", line 1, in run
(EngineCore pid=2) ERROR 11-21 03:12:46 [core.py:901] torch.OutOfMemoryError: CUDA out of memory. Tried to \
allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.06 GiB is free.
"""

SLEEP_REFUSED = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig
  Value error, Sleep mode is not supported on current platform. [type=value_error, input_value=...]
"""

MIB = 1024**2
GARBAGE = "!!!! zebra !!!!"


def say(line: str) -> None:
    os.write(1, (line if line.endswith("\n") or line.startswith("\r") else line + "\n").encode())


def parse_argv(argv: list[str]) -> tuple[str, dict[str, list[str]]]:
    """("serve" DIR --flag v1 v2 --other) -> (DIR, {"--flag": ["v1", "v2"], "--other": []})."""
    if argv[:1] == ["--version"]:
        say("0.32.0+fake")
        raise SystemExit(0)
    flags: dict[str, list[str]] = {}
    positional: list[str] = []
    values = positional
    for word in argv[1:]:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            values = flags.setdefault(name, [])
            values.extend([value] if equals else [])
        else:
            values.append(word)
    if "--help" in flags:
        say("  --uds\n  --served-model-name\n  --max-model-len\n  --enforce-eager, --no-enforce-eager")
        raise SystemExit(0)
    unknown = [name for name in flags if name.startswith("--no-such")]
    if unknown:
        say(f"vllm: error: unrecognized arguments: {' '.join(unknown)}")
        raise SystemExit(2)
    return (positional or [""])[0], flags


def spawn_engine_core() -> int:
    """A child in our session whose name reads like vLLM's; it lives until it is killed."""
    pid = os.fork()
    if pid == 0:
        with open("/proc/self/comm", "w") as comm:  # noqa: PTH123
            comm.write("VLLM::EngineCor")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while True:
            signal.pause()
    return pid


def spawn_grandchild() -> int:
    """A daemon by the book: forked twice, its own session, deaf to SIGTERM and SIGHUP."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(write, str(pid).encode())
            os._exit(0)
        for signum in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        while True:
            signal.pause()
    os.close(write)
    pid = int(os.read(read, 32))
    os.close(read)
    os.wait()
    return pid


class Fake:
    def __init__(self, argv: list[str]) -> None:
        self.directory, flags = parse_argv(argv)
        self.socket = flags["--uds"][0]
        self.names = flags.get("--served-model-name") or [self.directory]
        modules = map(json.loads, flags.get("--lora-modules", []) if "--enable-lora" in flags else [])
        self.adapters = {module["name"]: module["path"] for module in modules}
        self.max_model_len = int((flags.get("--max-model-len") or ["4096"])[0])
        self.behaviours = self.parse_behaviours(os.environ.get("FAKE_VLLM", ""))
        self.load_s = float(os.environ.get("FAKE_LOAD_S") or 0)
        pace = float(os.environ.get("FAKE_TOKENS_PER_S") or 0)
        self.token_s = 1 / pace if pace else 0.0
        self.answer = os.environ.get("FAKE_ANSWER") or f"I am {self.names[0]}."
        self.healthy = "health_never_200" not in self.behaviours
        self.loading = True
        self.stopping = False
        self.max_num_seqs = int((flags.get("--max-num-seqs") or ["256"])[0])
        self.kv_given = "--kv-cache-memory-bytes" in flags
        self.sleep_mode = "--enable-sleep-mode" in flags
        self.gpus = [index for index in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if index]
        self.vram_mib = int(os.environ.get("FAKE_VRAM_MIB") or 0)
        self.held_mib = 0
        self.sleeping: set[str] = set()
        """The tags that sleep: weights, kv_cache."""
        self.garbled = self.frozen = False
        self.operations: list[str] = []
        self.asked_asleep = self.generations = self.prompt_tokens = self.generation_tokens = 0
        self.ready_at = 0.0
        self.flooded_bytes = 0
        self.core_pid = self.grandchild_pid = 0
        self.requests = self.running = self.aborted = self.completed = 0
        self.last: dict[str, Any] = {}
        self.batches: list[int] = []

    @staticmethod
    def parse_behaviours(text: str) -> dict[str, str]:
        pairs = (item.strip().partition("=") for item in text.split(",") if item.strip())
        behaviours = {name: value for name, _, value in pairs}
        if unknown := behaviours.keys() - MISBEHAVIOURS.keys():
            sys.exit(f"fake vllm: no such misbehaviour: {', '.join(sorted(unknown))}")
        return behaviours

    def spawn_children(self) -> None:
        """Before there is an event loop, whose signal handling a forked child would share."""
        if "engine_core" in self.behaviours:
            self.core_pid = spawn_engine_core()
            say(f"engine core pid={self.core_pid}")
        if "leaves_grandchild" in self.behaviours:
            self.grandchild_pid = spawn_grandchild()
            say(f"grandchild pid={self.grandchild_pid}")

    # ---- life ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.on_sigterm)
        flood = asyncio.create_task(self.flood()) if "floods_log" in self.behaviours else None
        await self.load()
        self.hold(self.vram_mib)
        server = await asyncio.start_unix_server(self.serve, self.socket, backlog=1024)
        self.loading = False
        self.ready_at = time.monotonic()
        say("(APIServer pid=1) INFO:     Application startup complete.")
        growth = asyncio.create_task(self.grow())
        for name, code in (("dies_after", 1), ("exits_zero_unasked", 0)):
            if name in self.behaviours:
                await asyncio.sleep(float(self.behaviours[name] or 0.2))
                self.healthy = False
                await asyncio.sleep(0.1 if code == 0 else 0)
                self.exit(code)
        async with server:
            await asyncio.Event().wait()
        del flood, growth

    async def load(self) -> None:
        if "stalls_silently" in self.behaviours:
            await asyncio.Event().wait()
        say("(APIServer pid=1) INFO 11-21 03:12:39 [api_server.py:1] vLLM API server version 0.32.0 (fake)")
        while "stalls_but_logs" in self.behaviours:
            say("still here")
            await asyncio.sleep(0.05)
        if self.sleep_mode and not self.gpus:
            say(SLEEP_REFUSED)
            self.exit(1)
        if "logs_progress" in self.behaviours:
            for index, line in enumerate(PROGRESS):
                say(line)
                await asyncio.sleep(self.load_s / len(PROGRESS))
                if index == len(PROGRESS) // 2:
                    self.hold(self.vram_mib // 2)
        else:
            await asyncio.sleep(self.load_s / 2)
            self.hold(self.vram_mib // 2)
            await asyncio.sleep(self.load_s / 2)
        if "oom_always" in self.behaviours or self.is_too_much("oom_while_loading"):
            say(OOM.format(where="EngineCore failed to start."))
            say("(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.")
            self.exit(1)
        if (kv_mib := os.environ.get("FAKE_KV_MIB")) and not self.kv_given:
            self.tell_kv_cache(int(kv_mib))
        if "exits_while_loading" in self.behaviours:
            say(FAILURE)
            self.exit(int(self.behaviours["exits_while_loading"] or 1))
        if "never_ready" in self.behaviours:
            await asyncio.Event().wait()

    def is_too_much(self, name: str) -> bool:
        """Whether so many sequences run out of memory."""
        return name in self.behaviours and self.max_num_seqs > int(self.behaviours[name] or 0)

    def tell_kv_cache(self, mib: int) -> None:
        gib = mib / 1024
        prefix = "(EngineCore pid=2) INFO 11-21 03:12:48 [gpu_worker.py:563] "
        say(f"{prefix}Available KV cache memory: {gib + 0.2:.2f} GiB")
        say(
            f"{prefix}Free memory on device (22.45/23.99 GiB) on startup. Desired GPU memory utilization is "
            "(0.85, 20.39 GiB). Actual usage is 1.49 GiB for consumed memory (weights + non-torch), 0.25 GiB "
            "for peak activation, and 0.37 GiB for CUDAGraph memory. Replace gpu_memory_utilization config "
            f"with `--kv-cache-memory={mib * MIB}` ({gib:.2f} GiB) to fit into requested memory, or "
            f"`--kv-cache-memory={(mib + 2048) * MIB}` ({gib + 2:.2f} GiB) to fully utilize gpu memory. "
            f"Current kv cache memory in use is {gib + 0.2:.2f} GiB."
        )

    # ---- GPU memory ----------------------------------------------------------------------------------------

    def hold(self, mib: int) -> None:
        """Hold that much of each GPU, as far as the stub of NVML is concerned."""
        self.held_mib = mib
        state = os.environ.get("STUB_NVML_STATE")
        if not self.vram_mib or not state or not os.path.isdir(state):  # noqa: PTH112
            return
        pid = self.core_pid or os.getpid()
        os.makedirs(f"{state}/procs", exist_ok=True)  # noqa: PTH103
        with open(f"{state}/.procs-{pid}", "w") as file:  # noqa: PTH123
            file.writelines(f"{index} {mib}\n" for index in self.gpus)
        os.replace(f"{state}/.procs-{pid}", f"{state}/procs/{pid}")  # noqa: PTH105

    async def grow(self) -> None:
        if grows := os.environ.get("FAKE_VRAM_GROWS"):
            mib, _, seconds = grows.partition(":")
            await asyncio.sleep(float(seconds or 0))
            self.vram_mib += int(mib)
            self.hold(self.vram_mib)

    async def flood(self) -> None:
        rate = float(self.behaviours["floods_log"] or 0) * 1e6
        chunk = b"(EngineCore pid=2) INFO 11-21 03:12:44 [flood.py:1] " + b"x" * 200 + b"\n"
        chunk *= 65536 // len(chunk)
        started = time.monotonic()
        while True:
            self.flooded_bytes += os.write(1, chunk)
            ahead_s = self.flooded_bytes / rate - (time.monotonic() - started) if rate else 0.0
            await asyncio.sleep(max(0.0, ahead_s))

    def on_sigterm(self) -> None:
        if "ignores_sigterm" in self.behaviours or self.frozen:
            say("SIGTERM ignored")
        elif self.loading and "swallows_sigterm_while_loading" in self.behaviours:
            say("SIGTERM swallowed")
            self.behaviours["never_ready"] = ""
        elif self.running and "hangs_on_sigterm_with_open_stream" in self.behaviours:
            say("SIGTERM waits for open streams")
            self.stopping = True
        else:
            self.exit(0)

    def exit(self, code: int) -> None:
        if self.core_pid:
            os.kill(self.core_pid, signal.SIGKILL)
            os.waitpid(self.core_pid, 0)
        os._exit(code)  # the socket file stays behind, as vLLM's does

    # ---- HTTP ----------------------------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await self.read_head(reader):
                method, target, headers = head
                body = await self.read_body(reader, headers)
                await self.answer_request(method, target, headers, body, reader, writer)
                await writer.drain()
        writer.close()

    async def read_head(self, reader: asyncio.StreamReader) -> tuple[str, str, Headers] | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head[:-4].split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)
        ]
        return method, target, headers

    async def read_body(self, reader: asyncio.StreamReader, headers: Headers) -> bytes:
        fields = dict(headers)
        if "chunked" in fields.get("transfer-encoding", ""):
            body = b""
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
            return body
        return await reader.readexactly(int(fields.get("content-length", 0)))

    async def answer_request(
        self,
        method: str,
        target: str,
        headers: Headers,
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        path, _, query = target.partition("?")
        if os.environ.get("VLLM_SERVER_DEV_MODE") == "1" and (
            answer := await self.operate(method, path, query, body)
        ):
            self.send(writer, *answer)
            return
        if plain := self.plain_route(method, path):
            self.send(writer, *plain)
            return
        self.requests += 1
        self.last = {
            "method": method,
            "target": target,
            "headers": headers,
            "body": body[:65536].decode(errors="replace"),
            "body_bytes": len(body),
            "body_sha256": hashlib.sha256(body).hexdigest(),
        }
        generate = {
            "/v1/chat/completions": self.generate,
            "/v1/completions": self.generate,
            "/v1/responses": self.respond,
            "/v1/messages": self.message,
            "/v1/messages/count_tokens": self.count_tokens,
            "/v1/embeddings": self.embed,
            "/v1/audio/transcriptions": self.transcribe,
            "/tokenize": self.tokenize,
        }.get(path)
        if generate == self.generate and "embeds_only" in self.behaviours:
            generate = None
        if generate is None or method != "POST":
            self.send(writer, 404, {"detail": "Not Found"})
            return
        try:
            await self.guarded(generate(path, dict(headers), body, writer), reader)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as why:
            self.send(writer, 400, error("BadRequestError", f"not what was expected: {why!r}", None, 400))

    async def guarded(self, work: Awaitable[None], reader: asyncio.StreamReader) -> None:
        """Run one generation; a client that goes away aborts it, as vLLM does."""
        self.running += 1
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=0.01)
                if reader.at_eof() and not task.done():
                    self.aborted += 1
                    task.cancel()
                    raise ConnectionResetError
            task.result()
            self.completed += 1
        finally:
            if not self.frozen:  # its engine core never learns that a client left
                self.running -= 1
            if self.stopping and not self.running:
                self.exit(0)

    async def operate(self, method: str, path: str, query: str, body: bytes) -> tuple[int, Any] | None:
        """vLLM's endpoints for its operator, as far as sleeping goes."""
        options = [pair.partition("=")[::2] for pair in query.split("&") if pair]
        tags = {value for name, value in options if name == "tags"} or {"weights", "kv_cache"}
        if path in ("/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache") and method == "POST":
            what = json.loads(body).get("method", "") if path == "/collective_rpc" else query
            self.operations.append(f"{path[1:]} {what}".strip())
        match method, path:
            case "POST", "/sleep":
                if "sleep_hangs" in self.behaviours:
                    await asyncio.Event().wait()
                level = int(dict(options).get("level", "1"))
                self.sleeping = {"weights", "kv_cache"}
                self.garbled |= level == 2 or "wakes_wrong" in self.behaviours
                if "sleep_keeps_memory" not in self.behaviours:
                    self.hold(min(int(os.environ.get("FAKE_RESIDUE_MIB") or 1024), self.vram_mib))
                return 200, {"status": "sleeping", "level": level}
            case "POST", "/wake_up":
                if "wake_hangs" in self.behaviours:
                    await asyncio.Event().wait()
                if "wake_fails" in self.behaviours:
                    return 500, b"Internal Server Error"
                self.sleeping -= tags
                self.hold(self.vram_mib)
                return 200, b""
            case "GET", "/is_sleeping":
                return 200, {"is_sleeping": bool(self.sleeping)}
            case "POST", "/collective_rpc":
                if "weights" in self.sleeping:  # nowhere to read them to
                    return 500, b"Internal Server Error"
                if self.operations[-1].endswith("reload_weights"):
                    self.garbled = "wakes_wrong" in self.behaviours
                return 200, {"results": [None]}
            case "POST", "/reset_prefix_cache":
                return 200, b""
            case _:
                return None

    def plain_route(self, method: str, path: str) -> tuple[int, Any] | None:
        match method, path:
            case "GET", "/health":
                return (200 if self.healthy else 503), b""
            case "GET", "/v1/models":
                root = {"object": "model", "owned_by": "vllm", "root": self.directory, "parent": None}
                cards = [{"id": name, "max_model_len": self.max_model_len, **root} for name in self.names]
                return 200, {"object": "list", "data": cards}
            case "GET", "/version":
                return 200, {"version": "0.32.0+fake"}
            case "GET", "/metrics":
                return 200, self.metrics()
            case "GET", "/fake/stats":
                return 200, self.stats()
            case "GET", path if path.startswith("/fake/reach/"):
                return 200, {"reached": reaches(path.removeprefix("/fake/reach/"))}
            case _:
                return None

    def metrics(self) -> bytes:
        labels = f'{{engine="0",model_name="{self.names[0]}"}}'
        samples = {
            "vllm:num_requests_running": ("gauge", self.running),
            "vllm:num_requests_waiting": ("gauge", 0),
            "vllm:prompt_tokens_total": ("counter", self.prompt_tokens),
            "vllm:generation_tokens_total": ("counter", self.generation_tokens),
            "vllm:iteration_tokens_total_count": ("counter", self.generation_tokens),
        }
        lines = [
            f"# TYPE {name} {kind}\n{name}{labels} {value}.0\n" for name, (kind, value) in samples.items()
        ]
        return "".join(lines).encode()

    def stats(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "argv": sys.argv,
            "env": dict(os.environ),
            "ready_at": self.ready_at,  # CLOCK_MONOTONIC, so comparable with the asking process's
            "requests": self.requests,
            "running": self.running,
            "aborted": self.aborted,
            "completed": self.completed,
            "flooded_bytes": self.flooded_bytes,
            "core_pid": self.core_pid,
            "grandchild_pid": self.grandchild_pid,
            "held_mib": self.held_mib,
            "sleeps": self.operations,  # what an operator asked for, in order: "sleep level=1", "wake_up"
            "is_sleeping": bool(self.sleeping),
            "asked_asleep": self.asked_asleep,  # generation requests that came while it slept
            "last": self.last,
            "batches": self.batches,  # how many inputs each request for embeddings had
        }

    def send(self, writer: asyncio.StreamWriter, status: int, body: Any, kind: str = "") -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = kind or ("text/plain" if isinstance(body, bytes) else "application/json")
        writer.write(
            f"HTTP/1.1 {status} Fake\r\nserver: uvicorn\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(raw)}\r\n\r\n".encode()
            + raw
        )

    # ---- answers -------------------------------------------------------------------------------------------

    def parse_json(self, body: bytes, writer: asyncio.StreamWriter) -> dict[str, Any] | None:
        """The body, or None after a 400 or 404 has been sent."""
        try:
            asked = json.loads(body)
        except ValueError as why:
            self.send(writer, 400, error("BadRequestError", f"validation error: {why}", None, 400))
            return None
        if (model := asked.get("model", self.names[0])) not in (*self.names, *self.adapters):
            valid = ", ".join((*self.names, *self.adapters))
            message = f"The model `{model}` does not exist. Valid aliases: {valid}."
            self.send(writer, 404, error("NotFoundError", message, "model", 404))
            return None
        return dict(asked)

    def words(self, asked: dict[str, Any], body: bytes) -> list[str]:
        prompt = asked.get("prompt", "")
        if messages := asked.get("messages"):
            content = messages[-1].get("content", "")
            prompt = content if isinstance(content, str) else content[0].get("text", "")
        if str(prompt).startswith("echo"):
            return [body.decode(errors="replace")]
        choices = (asked.get("structured_outputs") or {}).get("choice")
        if choices:
            return [max(choices, key=str(prompt).count)]
        answer = f"I am {asked['model']}." if asked.get("model") in self.adapters else self.answer
        words = [word + " " for word in (GARBAGE if self.garbled else answer).split(" ")]
        words[-1] = words[-1][:-1]
        limit = asked.get("max_completion_tokens") or asked.get("max_tokens")
        if limit and asked.get("ignore_eos"):
            return [words[index % len(words)] for index in range(limit)]
        return words[:limit] if limit else words

    async def pace(self, words: list[str]) -> AsyncIterator[str]:
        for index, word in enumerate(words):
            if index == 2 and "dies_mid_stream" in self.behaviours:
                self.exit(1)
            if self.token_s or index % 256 == 255:
                await asyncio.sleep(self.token_s)
            self.generation_tokens += 1
            while self.stopping:  # vLLM's hang: the stream neither ends nor fails
                await asyncio.sleep(0.05)
            yield word

    async def generate(self, path: str, _: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        if "dies_before_first_byte" in self.behaviours:
            self.exit(1)
        if self.sleeping:
            self.asked_asleep += 1
            self.send(writer, 500, error("InternalServerError", "it sleeps", None, 500))
            return
        if self.is_too_much("oom_serving"):
            say(OOM.format(where="EngineCore encountered a fatal error."))
            self.exit(0)  # vLLM's API server ends like that when its engine has died
        self.generations += 1
        if "freezes" in self.behaviours and self.generations >= int(self.behaviours["freezes"] or 1):
            self.frozen = True
            await asyncio.Event().wait()
        self.prompt_tokens += 1
        asked = self.parse_json(body, writer)
        if asked is None:
            return
        chat = path.endswith("chat/completions")
        words = self.words(asked, body)
        usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": len(words) + 1}
        common = {"id": f"fake-{self.requests}", "created": int(time.time()), "model": self.names[0]}
        if asked.get("model") in self.adapters:
            common["model"] = asked["model"]
        if not asked.get("stream"):
            text = "".join([word async for word in self.pace(words)])
            part = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choice = {"index": 0, "finish_reason": "stop", "logprobs": None, **part}
            kind = "chat.completion" if chat else "text_completion"
            rest = {"prompt_token_ids": [7] * 5000} if asked.get("return_token_ids") else {}
            self.send(writer, 200, {**common, "object": kind, "choices": [choice], "usage": usage, **rest})
            return
        kind = "chat.completion.chunk" if chat else "text_completion"
        event = sse(writer, {**common, "object": kind})
        if chat:
            await event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        async for word in self.pace(words):
            part = {"delta": {"content": word}} if chat else {"text": word}
            await event([{"index": 0, "finish_reason": None, **part}])
        last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        await event([{"index": 0, "finish_reason": "stop", **last}])
        if (asked.get("stream_options") or {}).get("include_usage"):
            await event([], usage=usage)
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async def respond(self, _: str, __: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        """OpenAI's newer API, not streamed."""
        asked = self.parse_json(body, writer)
        if asked is None:
            return
        text = "".join([word async for word in self.pace(self.words(asked, body))])
        part = {"type": "output_text", "text": text, "annotations": []}
        message = {"id": f"msg_{self.requests}", "type": "message", "role": "assistant", "content": [part]}
        answer = {"id": f"resp_{self.requests}", "object": "response", "created_at": int(time.time())}
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        answer |= {"model": self.names[0], "status": "completed", "error": None, "usage": usage}
        self.send(writer, 200, {**answer, "output": [message | {"status": "completed"}]})

    async def message(self, _: str, __: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        """Anthropic's API."""
        asked = self.parse_json(body, writer)
        if asked is None:
            return
        words = self.words(asked, body)
        usage = {"input_tokens": 1, "output_tokens": len(words)}
        head = {"id": f"msg_{self.requests}", "type": "message", "role": "assistant", "model": self.names[0]}
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        if not asked.get("stream"):
            text = "".join([word async for word in self.pace(words)])
            content = [{"type": "text", "text": text}]
            self.send(writer, 200, {**head, **end, "content": content, "usage": usage})
            return
        send = sse(writer, {})
        begun = {"usage": usage | {"output_tokens": 0}}
        start = {**head, "stop_reason": None, "stop_sequence": None, "content": [], **begun}
        await send(None, type="message_start", message=start)
        await send(None, type="content_block_start", index=0, content_block={"type": "text", "text": ""})
        async for word in self.pace(words):
            delta = {"type": "text_delta", "text": word}
            await send(None, type="content_block_delta", index=0, delta=delta)
        await send(None, type="content_block_stop", index=0)
        await send(None, type="message_delta", delta=end, usage={"output_tokens": len(words)})
        await send(None, type="message_stop")
        writer.write(b"0\r\n\r\n")

    async def count_tokens(
        self, _: str, __: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if (asked := self.parse_json(body, writer)) is not None:
            self.send(writer, 200, {"input_tokens": len(str(asked["messages"]).split())})

    async def embed(self, _: str, __: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        asked = self.parse_json(body, writer)
        if asked is None:
            return
        texts = asked["input"] if isinstance(asked.get("input"), list) else [asked.get("input")]
        self.batches.append(len(texts))
        if "refuse" in texts:
            self.send(writer, 400, error("BadRequestError", "an input is refused", "input", 400))
            return
        vector: Any = [0.0, 0.6, -0.8] if self.garbled else [0.6, 0.8, 0.0]
        if asked.get("encoding_format") == "base64":
            vector = "mpkZP83MTD8AAAAA"
        data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(len(texts))]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        self.send(writer, 200, {"object": "list", "model": self.names[0], "data": data, "usage": usage})

    async def transcribe(
        self, _: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        """Answers with the sizes of the multipart fields, as JSON in `text`."""
        boundary = headers.get("content-type", "").partition("boundary=")[2].strip('"').encode()
        sizes = {}
        for part in body.split(b"--" + boundary)[1:-1] if boundary else []:
            head, _blank, content = part.partition(b"\r\n\r\n")
            name = head.partition(b'name="')[2].partition(b'"')[0].decode()
            sizes[name] = len(content) - 2
        self.send(writer, 200, {"text": json.dumps(sizes)})

    async def tokenize(self, _: str, __: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        asked = self.parse_json(body, writer)
        if asked is not None:
            text = str(asked.get("prompt", asked.get("messages", "")))
            tokens = list(range(len(text.split())))
            answer = {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens}
            self.send(writer, 200, answer)


def error(kind: str, message: str, param: str | None, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def chunk(raw: bytes) -> bytes:
    return f"{len(raw):x}\r\n".encode() + raw + b"\r\n"


def sse(writer: asyncio.StreamWriter, common: dict[str, Any]) -> Callable[..., Awaitable[None]]:
    """Send the head of an event stream; the function returned sends one event."""
    writer.write(
        b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )

    async def event(choices: list[dict[str, Any]] | None, **more: Any) -> None:
        """One of OpenAI's; without choices one of Anthropic's, which has its type in front."""
        raw = json.dumps({**common, **({} if choices is None else {"choices": choices}), **more})
        kind = "" if choices is not None else f"event: {more['type']}\n"
        writer.write(chunk(f"{kind}data: {raw}\n\n".encode()))
        await writer.drain()

    return event


def reaches(address: str) -> bool:
    with socket.socket() as own, contextlib.suppress(OSError):
        if address == "own":
            own.bind(("127.0.0.1", 0))
            own.listen()
            address = f"127.0.0.1:{own.getsockname()[1]}"
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    return False


def main() -> None:
    if os.environ.get("PYTHONFAULTHANDLER"):  # which Python does not see where it runs with -I
        faulthandler.enable()
    fake = Fake(sys.argv[1:])
    fake.spawn_children()
    asyncio.run(fake.run())


if __name__ == "__main__":
    main()
