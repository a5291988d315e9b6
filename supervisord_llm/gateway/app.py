"""The flat route table, and the one handler behind both doors.

    gateway = Gateway(runtime, upstreams, recorder=recorder, logs=logs, reload=reload)
    gateway.configure(config)                             # again on every reload
    runner = web.ServerRunner(build_public_app(gateway))  # needs a running loop

The public door asks for a key; who comes by the control socket is an admin.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from urllib.parse import unquote

from aiohttp import web

from supervisord_llm.config.model import Config
from supervisord_llm.config.peers import alone
from supervisord_llm.core.routes.reach import models_of
from supervisord_llm.core.routes.route import Choice
from supervisord_llm.errors import Refused
from supervisord_llm.gateway import errors
from supervisord_llm.gateway.api import (
    admin,
    llamacpp,
    ollama,
    openai,
    openapi,
    overview,
    route_overview,
    status,
)
from supervisord_llm.gateway.api.catalog import Catalog
from supervisord_llm.gateway.api.orders import Verb
from supervisord_llm.gateway.api.status import json_response
from supervisord_llm.gateway.auth import Caller, check_admin
from supervisord_llm.gateway.browser import check_origin, is_preflight
from supervisord_llm.gateway.choosing.classifier.classifying import Classifying
from supervisord_llm.gateway.choosing.search import Engines, Memory
from supervisord_llm.gateway.clock import iso
from supervisord_llm.gateway.doors.address import client_address, peer_address
from supervisord_llm.gateway.doors.server import HttpServer, http_server
from supervisord_llm.gateway.endpoint import Access, Endpoint
from supervisord_llm.gateway.errors import MethodNotAllowed
from supervisord_llm.gateway.exchange import Exchange
from supervisord_llm.gateway.inference.infer import infer
from supervisord_llm.gateway.inference.realtime import converse
from supervisord_llm.gateway.inference.relay import Upstreams
from supervisord_llm.gateway.limits.limits import Limits
from supervisord_llm.gateway.limits.rates import Rates
from supervisord_llm.gateway.ports import Facts, Logs, Reload, Runtime, Timetable, Upgrade
from supervisord_llm.gateway.settings import Settings, settings
from supervisord_llm.gateway.sites.relay import SiteRelay
from supervisord_llm.gateway.sites.sites import visit
from supervisord_llm.gateway.target import POSTED, Listing, parse, shown, split_target, words_of
from supervisord_llm.runtime.ports import PEER_HEADER
from supervisord_llm.runtime.tasks import Tasks
from supervisord_llm.telemetry.recorder import Recorder
from supervisord_llm.telemetry.usage import UsageStore

log = logging.getLogger("llm_supervisor.http")

CLOSE_GRACE_S = 1.0
"""At shutdown: how long answers may take to end by themselves."""

LULL_S = 0.5
"""A connection on which nobody asks anything for so long is idle."""

LULL_WAIT_S = 5.0

NOBODY = Caller("", frozenset())
"""Who asks, until a key has told."""


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
        facts: Facts | None = None,
        usage: UsageStore | None = None,
        upgrade: Upgrade | None = None,
        upgrade_failure: str = "",
        timetable: Timetable | None = None,
    ) -> None:
        self.runtime = runtime
        self.recorder = recorder
        self.logs = logs
        self.reload = reload
        self.upgrade = upgrade
        self.upgrade_failure = upgrade_failure
        """Why this is not the program that was to take over."""
        self.timetable = timetable
        self.facts = facts or Facts()
        self.upstreams = upstreams
        rates = Rates()
        upstreams.observers.append(rates.began)
        classifying = Classifying(runtime, upstreams, self.facts, recorder, rates)
        self.engines = Engines(runtime, upstreams, self.facts, Memory(), classifying, recorder, rates)
        """What requests for them go through."""
        self.site_relay = SiteRelay()
        self.limits = Limits(usage or UsageStore())
        self.started_at = time.time()
        self.created = int(self.started_at)
        self.is_leaving = False
        """Another run is about to take our place: each connection ends with its answer."""
        self._settings: Settings | None = None
        self._settings_for_peers: Settings | None = None
        """Nothing of theirs, so that no request goes in circles."""
        self._words = WORDS
        """Of paths, in the log."""
        self._handlers: set[asyncio.Task[object]] = set()
        self.orders = Tasks()
        """Starts and stops that go on when whoever asked for them has been answered."""
        self._heard_at = 0.0
        """Loop time at which a client's request last began or ended."""

    @property
    def settings(self) -> Settings:
        assert self._settings is not None, "configure() comes first"
        return self._settings

    def configure(self, config: Config) -> None:
        """Take a configuration; requests that have begun keep the one they began with."""
        self._settings = settings(config)
        ours = alone(config)
        self._settings_for_peers = self._settings if ours is config else settings(ours)
        opened = (entry.partition(" ")[2] for entry in self._settings.opened[None])
        self._words = WORDS | words_of((*self._settings.prefixes, *self._settings.names, *opened))
        self.limits.configure(config.clients)
        self.engines.rates.configure(config.models.values())
        self.recorder.configure(
            tuple(ours.models),
            tuple(client.name for client in config.clients),
            tuple(name for name, route in config.routes.items() if route.policy is Choice.CLASSIFIER),
            {name: models_of(name, config.routes) for name in config.routes},
            config.models.keys() - ours.models.keys(),
        )

    def settings_of(self, request: web.BaseRequest) -> Settings:
        """Who says that it is a peer, true or not, gets what is ours."""
        found = self._settings_for_peers if PEER_HEADER in request.headers else self._settings
        assert found is not None, "configure() comes first"
        return found

    async def lull(self) -> None:
        """While we leave: return once each client that asks again and again has had its last answer here."""
        clock = asyncio.get_running_loop().time
        self._heard_at = clock()  # a connection may have come just now, and its request not yet
        patience_ends = self._heard_at + LULL_WAIT_S
        while (calm_at := self._heard_at + LULL_S) > clock() and clock() < patience_ends:  # noqa: ASYNC110 - it waits for silence, which is no event
            await asyncio.sleep(calm_at - clock())

    def catalog(self, exchange: Exchange) -> Catalog:
        """What the caller may use, as things stand."""
        return Catalog(exchange.settings, exchange.caller, self.runtime.fleet, self.created, self.facts)

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
        await self.orders.cancel_all()
        await self.engines.classifying.close()
        await self.upstreams.close_all()
        await self.site_relay.close()

    async def handle(self, request: web.BaseRequest, caller: Caller | None) -> web.StreamResponse:
        """Answer one request. `caller` None: its key tells who asks."""
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self._hear(caller)
        exchange = Exchange(
            request,
            self.settings_of(request),
            asyncio.get_running_loop().time(),
            NOBODY if caller is None else caller,
            peer=client_address(peer_address(request.remote), request.headers, self.settings.trusted),
            for_browsers=self.settings.browsers.of(request),
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
            self._hear(caller)
            record = exchange.record(shown(exchange.path, self._words), left=left)
            if exchange.meter is not None and record.usage is not None:
                exchange.meter.spend(record.usage.total)
            self.recorder.request(record)

    def _hear(self, caller: Caller | None) -> None:
        if caller is None:  # who comes by the control socket is no client
            self._heard_at = asyncio.get_running_loop().time()

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
        request = exchange.request
        exchange.path, exchange.query = split_target(request.raw_path)
        own, argument = _find(exchange.path)
        if caller is None and await self._before_key(exchange, own):
            return
        method = "GET" if request.method == "HEAD" else request.method
        endpoint = next((endpoint for endpoint in own if endpoint.method == method), None)
        access = _access(own, endpoint, exchange.settings)
        if caller is None and access > Access.OPEN:
            self.limits.identify(exchange)
            if request.method == "POST" and exchange.caller is exchange.settings.keyring.anonymous:
                # A key is nothing that a foreign page has; without one, a form or `text/plain` would do.
                check_origin(request.headers, exchange.settings.browsers.cors, "take a request without a key")
        if access is Access.ADMIN:
            check_admin(exchange.caller)
        if endpoint is not None:
            response = await endpoint.answer(self, exchange, argument)
            if response is not None:
                await exchange.begin(response)
        elif own:
            raise MethodNotAllowed(request.method, exchange.path, tuple(each.method for each in own))
        else:
            await self._pass_to_engine(exchange)

    async def _pass_to_engine(self, exchange: Exchange) -> None:
        """What is at no path of ours: a list of models, or an engine's answer."""
        settings = exchange.settings
        query = settings.keyring.without_keys(exchange.query)
        method = exchange.request.method
        target = parse(method, exchange.path, query, settings.prefixes, settings.opened)
        if isinstance(target, Listing):
            await exchange.begin(json_response(openai.models(target, self.catalog(exchange))))
        elif target.tail == "realtime" and method == "GET":
            await converse(exchange, target, self.engines)
        else:
            await infer(exchange, target, self.engines)

    async def _before_key(self, exchange: Exchange, own: tuple[Endpoint, ...]) -> bool:
        """What needs no key: limits per address, sites, and what browsers ask. Whether that answered it."""
        request, settings = exchange.request, exchange.settings
        cors = settings.browsers.cors
        asks = is_preflight(request.method, request.headers)
        method = request.headers["Access-Control-Request-Method"] if asks else request.method
        if _is_for_admins(exchange.path, own, method):
            cors = None
        if cors is not None:
            exchange.for_browsers = {**exchange.for_browsers, **cors.headers(request.headers)}
        self.limits.check_address(exchange)
        if settings.sites is not None:
            peer, is_tls = peer_address(request.remote), request.secure
            came = visit(peer, exchange.peer, request.headers, settings.trusted, is_tls=is_tls)
            site = settings.sites.find(came.host, exchange.path)
            if site is not None:
                await self.site_relay.serve(exchange, site, came)
                return True
        if cors is None or not asks:
            return False
        exchange.for_browsers = {**exchange.for_browsers, **cors.preflight(request.headers)}
        await exchange.begin(web.Response(status=204))
        return True


def _access(own: tuple[Endpoint, ...], endpoint: Endpoint | None, settings: Settings) -> Access:
    """The right that a request needs; by a method that there is not, the least one of its path."""
    if own is ENDPOINTS["/metrics"] and settings.config.metrics_public:
        return Access.OPEN
    if endpoint is not None:
        return endpoint.access
    return min((each.access for each in own), default=Access.KEY)


def _is_for_admins(path: str, own: tuple[Endpoint, ...], method: str) -> bool:
    """Whether no page may ever read what is answered there."""
    return path.startswith("/admin/") or any(
        endpoint.access is Access.ADMIN and endpoint.method == method for endpoint in own
    )


def build_public_app(gateway: Gateway) -> HttpServer:
    """The door to the network."""
    return http_server(
        lambda request: gateway.handle(request, None), lambda: gateway.settings.browsers.headers
    )


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


def _order(verb: Verb) -> Endpoint:
    async def answer(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
        return await admin.drive(exchange, gateway.engines, verb)

    return Endpoint("POST", Access.ADMIN, answer)


async def _reload(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    return await admin.reload_config(gateway.reload)


async def _upgrade(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    if gateway.upgrade is None:
        raise Refused("not_possible", "cannot upgrade: there is no program to run in our place")
    return json_response(await gateway.upgrade())


async def _schedule(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    return json_response(_timetable(gateway).describe())


async def _override(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    return await admin.override(exchange, _timetable(gateway))


def _timetable(gateway: Gateway) -> Timetable:
    if gateway.timetable is None:
        raise Refused("not_possible", "cannot tell of a schedule: nothing keeps one here")
    return gateway.timetable


async def _status(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    uptime_s = gateway.recorder.stats.uptime_s
    found = overview.status(exchange.settings, gateway.runtime.fleet, uptime_s, gateway.facts)
    found |= {"started_at": iso(gateway.started_at), "upgrade_failure": gateway.upgrade_failure}
    found["routes"] = route_overview.routes(exchange.settings, gateway.engines)
    found["peers"] = gateway.facts.peers()
    found["schedule"] = None if gateway.timetable is None else gateway.timetable.describe()
    return json_response(found)


async def _plan(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    return json_response(await overview.whole_plan(gateway.runtime.fleet, gateway.facts.longest_context))


async def _explain(gateway: Gateway, exchange: Exchange, asked: str) -> web.Response:
    settings, name = exchange.settings, admin.name_of(exchange, asked)
    if name in settings.config.routes:
        return json_response(route_overview.explanation(settings, gateway.engines, name))
    return json_response(overview.explanation(gateway.runtime, settings.config.engine_of(name)))


async def _events(gateway: Gateway, exchange: Exchange, _: str) -> None:
    await admin.events(exchange, gateway.runtime)


async def _logs(gateway: Gateway, exchange: Exchange, model: str) -> None:
    await admin.logs(exchange, gateway.logs, model)


async def _openapi(gateway: Gateway, exchange: Exchange, _: str) -> web.Response:
    return json_response(openapi.document(ENDPOINTS))


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
    "/admin/upgrade": (Endpoint("POST", Access.ADMIN, _upgrade),),
    "/admin/schedule": (
        Endpoint("GET", Access.ADMIN, _schedule),
        Endpoint("POST", Access.ADMIN, _override),
    ),
    "/admin/status": (Endpoint("GET", Access.ADMIN, _status),),
    "/admin/plan": (Endpoint("GET", Access.ADMIN, _plan),),
    "/admin/explain/": (Endpoint("GET", Access.ADMIN, _explain),),
    "/admin/events": (Endpoint("GET", Access.ADMIN, _events),),
    "/admin/logs/": (Endpoint("GET", Access.ADMIN, _logs),),
    "/admin/openapi.json": (Endpoint("GET", Access.ADMIN, _openapi),),
    **llamacpp.ENDPOINTS,
    **ollama.ENDPOINTS,
}
"""By exact path. One that ends in "/" takes the rest of the path, decoded, as its argument."""

WORDS = words_of((*ENDPOINTS, *POSTED, "v1/responses/cancel", "v1/realtime", "v1/models"))
"""Of the paths that there are."""

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
