#!/usr/bin/env python3
"""A stand-in for any OpenAI-compatible server, at `--port N` or `--socket PATH`, that misbehaves by name.

Standard library only. MISBEHAVIOURS says what each word of --faults does; they can be combined. It answers
chats with "I am MODEL.", where MODEL is what the body calls it; GET /fake/stats tells what the process saw.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MISBEHAVIOURS = {
    "never_listens": "says that it loads, and goes on doing so",
    "unhealthy": "=SECONDS (for ever): says 503 where it is asked for its health, that long",
    "no_content": "its health is a 204",
    "dies_after": "=SECONDS (0.2): exits with code 1 that long after it listens",
    "dies_before_first_byte": "exits with code 1 on the first chat",
    "ignores_sigterm": "SIGTERM does nothing",
    "leaves_grandchild": "a process of its own session, forked twice, that outlives everything",
    "out_of_gpu_memory": "exits with code 1 after a line as CUDA has it, before it listens",
    "bad_metrics": "GET /metrics says 500",
    "slow": "=SECONDS (0.5): thinks that long before it answers a chat",
    "one_at_a_time": "serves one connection after the other, its health like all else",
    "reuse_port": "shares its port with others of its user that do the same",
}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    faults: dict[str, str]
    health = "/health"
    started_at = 0.0
    stats: dict[str, Any]

    def process_request(self, request: Any, client_address: Any) -> None:
        if "one_at_a_time" in self.faults:
            socketserver.BaseServer.process_request(self, request, client_address)
        else:
            super().process_request(request, client_address)


class UnixServer(Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", 0

    def get_request(self) -> tuple[Any, Any]:
        request, _ = super().get_request()
        return request, ("unix", 0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        faults = self.server.faults
        if self.path == self.server.health:
            self.server.stats["health_asked"] += 1
            limit_s = float(faults.get("unhealthy") or "inf") if "unhealthy" in faults else 0.0
            loads = time.monotonic() - self.server.started_at < limit_s
            self.answer(503 if loads else 204 if "no_content" in faults else 200, {"status": "ok"})
        elif self.path == "/metrics":
            self.answer(500 if "bad_metrics" in faults else 404, {})
        elif self.path == "/fake/stats":
            self.answer(200, self.server.stats)
        else:
            self.answer(404, {"error": {"message": f"no {self.path}"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        self.server.stats["requests"].append({"path": self.path, "body": body, "headers": dict(self.headers)})
        if "dies_before_first_byte" in self.server.faults:
            os._exit(1)
        if "slow" in self.server.faults:
            time.sleep(float(self.server.faults["slow"] or 0.5))
        words = f"I am {body.get('model')}.".split()
        if not body.get("stream"):
            message = {"role": "assistant", "content": " ".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.answer(200, {"object": "chat.completion", "model": body.get("model"), "choices": [choice]})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for word in words:
            delta = {"choices": [{"index": 0, "delta": {"content": f"{word} "}}]}
            self.wfile.write(f"data: {json.dumps(delta)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def answer(self, status: int, content: dict[str, Any]) -> None:
        body = b"" if status == 204 else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)


def leave_grandchild() -> int:
    """Its pid. It holds nothing of ours open, the listening socket least of all."""
    told, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if (pid := os.fork()) == 0:
            os.closerange(3, 100)
            while True:
                signal.pause()
        os.write(tell, str(pid).encode())
        os._exit(0)
    os.wait()
    return int(os.read(told, 32))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--socket")
    parser.add_argument("--health", default="/health")
    parser.add_argument("--faults", default="")
    args, others = parser.parse_known_args()
    faults = {
        name: value for name, _, value in (word.partition("=") for word in args.faults.split(",") if word)
    }
    assert faults.keys() <= MISBEHAVIOURS.keys(), faults
    print("loading the model", flush=True)
    if "ignores_sigterm" in faults:
        signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM ignored", flush=True))
    grandchild = leave_grandchild() if "leaves_grandchild" in faults else None
    if "out_of_gpu_memory" in faults:
        sys.exit("CUDA error: out of memory")
    while "never_listens" in faults:
        signal.pause()
    kind = UnixServer if args.socket else Server
    kind.allow_reuse_port = "reuse_port" in faults
    server = kind(args.socket or (args.host, args.port), Handler)  # type: ignore[arg-type]
    server.faults, server.health, server.started_at = faults, args.health, time.monotonic()
    server.stats = {
        "pid": os.getpid(),
        "grandchild_pid": grandchild,
        "argv": others,
        "env": dict(os.environ),
        "requests": [],
        "health_asked": 0,
    }
    if "one_at_a_time" in faults:
        Handler.protocol_version = "HTTP/1.0"  # one connection for each request
    if "dies_after" in faults:
        threading.Timer(float(faults["dies_after"] or 0.2), lambda: os._exit(1)).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
