"""The flat route table, and the one handler behind both doors.

    gateway = Gateway(runtime, upstreams, recorder=recorder, logs=logs, reload=reload)
    gateway.configure(config)                             # again on every reload
    runner = web.ServerRunner(build_public_app(gateway))  # needs a running loop

The public door asks for a key; who comes by the control socket is an admin.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from typing import NamedTuple
from urllib.parse import unquote

from aiohttp import web

from supervisord_llm.config.model import Config
from supervisord_llm.core.planning.suggest import LongestContext
from supervisord_llm.errors import Refused
from supervisord_llm.gateway import admin, errors, openai, overview, status
from supervisord_llm.gateway.auth import Caller, check_admin
from supervisord_llm.gateway.errors import MethodNotAllowed
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.inference import infer
from supervisord_llm.gateway.ports import ContextLength, Logs, Reload, Runtime, UsageOf
from supervisord_llm.gateway.relay import Upstreams
from supervisord_llm.gateway.route import Listing, parse, split_target
from supervisord_llm.gateway.server import HttpServer, http_server
from supervisord_llm.gateway.settings import Settings, settings
from supervisord_llm.gateway.status import json_response
from supervisord_llm.telemetry.recorder import Recorder

log = logging.getLogger("llm_supervisor.http")

CLOSE_GRACE_S = 1.0
"""At shutdown: how long answers may take to end by themselves."""

NOBODY = Caller("", frozenset())
"""Who asks, until a key has told."""


class Access(IntEnum):
    """Who may call an endpoint."""

    OPEN = 0
    KEY = 1
    ADMIN = 2


class Endpoint(NamedTuple):
    """One of our own endpoints. `answer` returns a response, or None when it has sent one itself."""

    method: str
    access: Access
    answer: Callable[["Gateway", Exchange, str], Awaitable[web.StreamResponse | None]]


class Gateway:
    """Both doors' shared state: the settings, the runtime, the connections to engines."""

    def __init__(
        self,
        runtime: Runtime,
        upstreams: Upstreams,
        *,
        recorder: Recorder,
        logs: Logs,
        reload: Reload,
        context_length: ContextLength,
        longest_context: LongestContext | None = None,
        usage_of: UsageOf = lambda model: None,
    ) -> None:
        self.runtime = runtime
        self.recorder = recorder
        self.logs = logs
        self.reload = reload
        self.context_length = context_length
        self.longest_context = longest_context
        self.usage_of = usage_of
        self.upstreams = upstreams
        self.created = int(time.time())
        self.is_leaving = False
        """Another run is about to take our place: each connection ends with its answer."""
        self._settings: Settings | None = None
        self._handlers: set[asyncio.Task[object]] = set()

    @property
    def settings(self) -> Settings:
        assert self._settings is not None, "configure() comes first"
        return self._settings

    def configure(self, config: Config) -> None:
        """Take a configuration; requests that have begun keep the one they began with."""
        self._settings = settings(config)
        self.recorder.configure(tuple(config.models))

    async def close(self) -> None:
        """End every answer that still goes on (followed logs, too) and every connection to an engine."""
        me = asyncio.current_task()
        waiting = {task for task in self._handlers if task is not me}
        if waiting:
            # Streams whose engine is gone are about to tell their client so.
            _, waiting = await asyncio.wait(waiting, timeout=CLOSE_GRACE_S)
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
        await self.upstreams.close_all()

    async def handle(self, request: web.BaseRequest, caller: Caller | None) -> web.StreamResponse:
        """Answer one request. `caller` None: its key tells who asks."""
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        exchange = Exchange(
            request,
            self.settings,
            asyncio.get_running_loop().time(),
            NOBODY if caller is None else caller,
            is_last=lambda: self.is_leaving,
        )
        left = False
        try:
            return await self._answer(exchange, caller)
        except (asyncio.CancelledError, ConnectionError):
            left = True
            raise
        finally:
            self._handlers.discard(task)
            self.recorder.request(exchange.record(left=left))

    async def _answer(self, exchange: Exchange, caller: Caller | None) -> web.StreamResponse:
        try:
            await self._dispatch(exchange, caller)
        except Refused as refused:
            await exchange.refuse(refused)
        except ConnectionError:
            raise
        except Exception:
            log.exception("cannot answer request %s", exchange.request_id)
            await exchange.refuse(errors.internal(exchange.request_id))
        assert exchange.response is not None
        return exchange.response

    async def _dispatch(self, exchange: Exchange, caller: Caller | None) -> None:
        """Own endpoint or engine; key first, then path, then the right to the model, then the body."""
        request, settings = exchange.request, exchange.settings
        exchange.path, exchange.query = split_target(request.raw_path)
        own, argument = _find(exchange.path)
        method = "GET" if request.method == "HEAD" else request.method
        access = min((endpoint.access for endpoint in own), default=Access.KEY)
        if own is ENDPOINTS["/metrics"] and settings.config.metrics_public:
            access = Access.OPEN
        if caller is None and access > Access.OPEN:
            exchange.caller = settings.keyring.authenticate(request.headers)
        if own:
            if access is Access.ADMIN:
                check_admin(exchange.caller)
            answer = next((endpoint.answer for endpoint in own if endpoint.method == method), None)
            if answer is None:
                allow = tuple(endpoint.method for endpoint in own)
                raise MethodNotAllowed(request.method, exchange.path, allow)
            response = await answer(self, exchange, argument)
            if response is not None:
                await exchange.begin(response)
            return
        target = parse(request.method, exchange.path, exchange.query, settings.prefixes)
        if isinstance(target, Listing):
            found = openai.models(
                target,
                settings,
                exchange.caller,
                self.runtime.fleet,
                self.created,
                self.context_length,
            )
            await exchange.begin(json_response(found))
        else:
            await infer(exchange, target, self.runtime, self.upstreams)


def build_public_app(gateway: Gateway) -> HttpServer:
    """The door to the network."""
    return http_server(lambda request: gateway.handle(request, None))


def build_control_app(gateway: Gateway) -> HttpServer:
    """The door for the command line: a unix socket whose mode is the key."""
    return http_server(lambda request: gateway.handle(request, gateway.settings.control))


async def _hint(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    return status.hint()


async def _healthz(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    return json_response(status.healthz(exchange.settings, gateway.runtime.fleet))


async def _health(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    return json_response(status.health(exchange.settings, gateway.runtime.fleet))


async def _routes(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    return json_response(status.routes(exchange.settings, exchange.caller, gateway.runtime.fleet))


async def _stats(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    fleet = gateway.runtime.fleet
    return json_response(status.stats(exchange.settings, exchange.caller, fleet, gateway.recorder))


async def _metrics(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    if not exchange.settings.config.metrics_enabled:
        raise Refused("not_found", "cannot find /metrics: `enabled` is false in [metrics]")
    return status.metrics(gateway.recorder, exchange.request.headers.get("Accept", ""))


def _order(verb: admin.Verb) -> Endpoint:
    async def answer(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
        return await admin.drive(exchange, gateway.runtime, verb)

    return Endpoint("POST", Access.ADMIN, answer)


async def _reload(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    return await admin.reload_config(gateway.reload)


async def _status(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    uptime_s = gateway.recorder.stats.uptime_s
    return json_response(
        overview.status(exchange.settings, gateway.runtime.fleet, uptime_s, gateway.usage_of)
    )


async def _plan(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    return json_response(await overview.whole_plan(gateway.runtime.fleet, gateway.longest_context))


async def _explain(gateway: Gateway, exchange: Exchange, asked: str) -> web.Response:
    model = admin.model_of(exchange, asked)
    return json_response(overview.explanation(gateway.runtime, model))


async def _events(gateway: Gateway, exchange: Exchange, _: str) -> None:
    await admin.events(exchange, gateway.runtime)


async def _logs(gateway: Gateway, exchange: Exchange, model: str) -> None:
    await admin.logs(exchange, gateway.logs, model)


ENDPOINTS: Mapping[str, tuple[Endpoint, ...]] = {
    "/": (Endpoint("GET", Access.OPEN, _hint),),
    "/healthz": (Endpoint("GET", Access.OPEN, _healthz),),
    "/health": (Endpoint("GET", Access.OPEN, _health),),
    "/routes": (Endpoint("GET", Access.KEY, _routes),),
    "/stats": (Endpoint("GET", Access.KEY, _stats),),
    "/metrics": (Endpoint("GET", Access.KEY, _metrics),),
    "/admin/start": (_order("start"),),
    "/admin/stop": (_order("stop"),),
    "/admin/restart": (_order("restart"),),
    "/admin/sleep": (_order("sleep"),),
    "/admin/wake": (_order("wake"),),
    "/admin/switch": (_order("switch"),),
    "/admin/reload": (Endpoint("POST", Access.ADMIN, _reload),),
    "/admin/status": (Endpoint("GET", Access.ADMIN, _status),),
    "/admin/plan": (Endpoint("GET", Access.ADMIN, _plan),),
    "/admin/explain/": (Endpoint("GET", Access.ADMIN, _explain),),
    "/admin/events": (Endpoint("GET", Access.ADMIN, _events),),
    "/admin/logs/": (Endpoint("GET", Access.ADMIN, _logs),),
}
"""By exact path. One that ends in "/" takes the rest of the path, decoded, as its argument."""

WITH_ARGUMENT = tuple(path for path in ENDPOINTS if path.endswith("/") and path != "/")


def _find(path: str) -> tuple[tuple[Endpoint, ...], str]:
    """Our endpoints at a path, and their argument."""
    for prefix in WITH_ARGUMENT:
        if path.startswith(prefix):
            return ENDPOINTS[prefix], unquote(path.removeprefix(prefix))
    found = ENDPOINTS.get(path)
    if found is None and len(path) > 2:
        found = ENDPOINTS.get(path.removesuffix("/"))
    return found or (), ""
