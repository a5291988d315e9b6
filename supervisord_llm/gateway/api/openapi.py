"""GET /admin/openapi.json: OpenAPI 3.1 of the admin API and of what tells how things are.

Paths, methods and keys come from the route table; OPERATIONS adds what that cannot know. A test holds that
no path is left out and that the daemon answers as it says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisord_llm import __version__
from supervisord_llm.core.state import State
from supervisord_llm.gateway.api.admin import FLAGS
from supervisord_llm.gateway.endpoint import Access, Endpoint
from supervisord_llm.gateway.errors import TABLE

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
TIME: Schema = {"type": "string", "format": "date-time"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
YES_NO: Schema = {"type": "boolean"}
FLAG: Schema = {"enum": list(FLAGS)}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 10**9 - 1}
EVENTS = "text/event-stream"
STATE: Schema = {"$ref": "#/components/schemas/State"}


def lists(items: Schema) -> Schema:
    """A list of such."""
    return {"type": "array", "items": items}


def maybe(schema: Schema) -> Schema:
    """Or null, where that is not known."""
    return {"anyOf": [schema, {"type": "null"}]}


def by_model(schema: Schema) -> Schema:
    """An object with one value a model."""
    return {"type": "object", "additionalProperties": schema}


def told(**properties: Schema) -> Schema:
    """An object that has these, and may have more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


ORDER: Schema = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "description": "name or alias of a model or route"},
        "route": {"type": "string", "description": "the same, by another word"},
    },
    "oneOf": [{"required": ["model"]}, {"required": ["route"]}],
}
OVERRIDE: Schema = {
    "type": "object",
    "properties": {
        "window": {
            "type": ["string", "null"],
            "description": 'its name; null is no window, and "auto" is what the hours say',
        },
        "for": {
            "type": ["string", "number", "null"],
            "description": 'a duration such as "1h", or seconds; without it, until the next switch',
        },
    },
    "required": ["window"],
    "additionalProperties": False,
}
ENGINE = told(
    state=STATE,
    since=maybe(TIME),
    phase=TEXT,
    fraction=maybe(NUMBER),
    gpus=lists(WHOLE),
    grant_bytes=lists(WHOLE),
    used_bytes=maybe(lists(WHOLE)),
    requests_in_flight=WHOLE,
    waiting=WHOLE,
    uptime_s=maybe(NUMBER),
    idle_s=maybe(NUMBER),
    last_error=TEXT,
    disabled=TEXT,
    closed=TEXT,
    retry_in_s=maybe(NUMBER),
    place=maybe(WHOLE),
)
STANDING = told(state=STATE, requests=WHOLE, context=maybe(WHOLE), evicts=YES_NO, unable=TEXT)
DECISION = told(at=TIME, model=TEXT, text=TEXT, is_bad=YES_NO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What one endpoint takes and answers. `refusals` are the codes beside those that every one has."""

    summary: str
    answer: Schema
    media: tuple[str, ...] = ("application/json",)
    body: Schema | None = None
    query: Mapping[str, Schema] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()


def _order(summary: str, *refusals: str) -> Operation:
    starts = ("no_vram", "out_of_schedule", "shutting_down", "start_failed", "start_timeout")
    return Operation(
        summary=summary,
        answer={"anyOf": [told(model=TEXT, state=STATE), told(route=TEXT, members=by_model(STATE))]},
        body=ORDER,
        refusals=("invalid_json", "model_not_found", *refusals, *starts),
    )


OPERATIONS: Mapping[str, Operation] = {
    "/": Operation(summary="Where the API is", answer=TEXT, media=("text/plain",)),
    "/healthz": Operation(
        summary="The daemon serves",
        answer=told(status={"const": "ok"}, version=TEXT, routes=by_model(told(state=STATE))),
    ),
    "/health": Operation(
        summary="Every model with what it holds and who waits for it",
        answer=told(
            status={"const": "healthy"},
            models=by_model(
                told(status=STATE, vram_used=maybe(WHOLE), requests_in_flight=WHOLE, waiting=WHOLE)
            ),
        ),
    ),
    "/routes": Operation(
        summary="Every way to a model",
        answer=told(
            default=maybe(TEXT),
            routes=by_model(told(path=maybe(TEXT), aliases=lists(TEXT), source=TEXT, state=STATE)),
        ),
    ),
    "/stats": Operation(
        summary="What happened since the daemon started",
        answer=told(
            version=TEXT,
            uptime_s=NUMBER,
            models=by_model(told(state=STATE, requests=told(ok=WHOLE), last_hit=maybe(TIME))),
            routes=by_model(told(state=STATE, choices=by_model(WHOLE), retries=by_model(WHOLE))),
        ),
    ),
    "/metrics": Operation(
        summary="Figures for Prometheus",
        answer=TEXT,
        media=("text/plain", "application/openmetrics-text"),
        refusals=("not_found",),
    ),
    "/admin/start": _order("Start a model's engine and wait until it is ready"),
    "/admin/stop": _order("End a model's engine and wait until it is gone"),
    "/admin/restart": _order("Stop a model's engine and start it again"),
    "/admin/sleep": _order("Put a model's engine to sleep", "not_possible"),
    "/admin/wake": _order("Wake a model's engine, or start it"),
    "/admin/switch": _order("Stop the other engines and start this one"),
    "/admin/reload": Operation(
        summary="Read the configuration again",
        answer={"type": "object", "additionalProperties": lists(TEXT)},
        refusals=("invalid_config",),
    ),
    "/admin/upgrade": Operation(
        summary="Have the program as it is installed now take over",
        answer={"type": "object"},
        refusals=("not_possible",),
    ),
    "/admin/schedule": Operation(
        summary="What the schedule has in force; POST puts a window in force by hand, for a time",
        answer=told(
            timezone=maybe(TEXT),
            window=maybe(TEXT),
            until=maybe(TIME),
            override=YES_NO,
            override_until=maybe(TIME),
            switches=lists(told(at=TIME, window=maybe(TEXT))),
            closed=by_model(maybe(TIME)),
            windows=lists(TEXT),
            summary=TEXT,
        ),
        body=OVERRIDE,
        refusals=("invalid_json", "not_found", "not_possible"),
    ),
    "/admin/status": Operation(
        summary="Every model and GPU in detail",
        answer=told(
            version=TEXT,
            pid=WHOLE,
            uptime_s=NUMBER,
            stopping=YES_NO,
            models=by_model(ENGINE),
            routes=by_model(told(state=STATE, policy=TEXT, members=lists(TEXT))),
            gpus=lists(told(index=WHOLE, uuid=TEXT, name=TEXT, total_bytes=WHOLE, budget_bytes=WHOLE)),
        ),
    ),
    "/admin/plan": Operation(
        summary="What each model takes of the GPUs, and which fit together",
        answer=told(
            gpus=lists(told(index=WHOLE, total_bytes=WHOLE, budget_bytes=WHOLE)),
            models=by_model(told(source=TEXT, fits=YES_NO, why_not=TEXT)),
            together=lists(told(models=lists(TEXT))),
            is_complete=YES_NO,
        ),
    ),
    "/admin/explain/": Operation(
        summary="Why a model is as it is, and what a request for it, or for a route, would bring about",
        answer={
            "anyOf": [
                told(model=TEXT, state=STATE, summary=TEXT, outlook=TEXT, decisions=lists(DECISION)),
                told(route=TEXT, state=STATE, summary=TEXT, outlook=TEXT, members=by_model(STANDING)),
            ]
        },
        refusals=("model_not_found",),
    ),
    "/admin/events": Operation(
        summary="Decisions: `n` recent ones, then, unless `follow` is 0, those to come",
        answer=TEXT,
        media=(EVENTS,),
        query={"n": COUNT, "follow": FLAG},
    ),
    "/admin/logs/": Operation(
        summary="The last `n` lines that an engine wrote; with `follow` 1 as events, and those to come",
        answer=TEXT,
        media=("text/plain", EVENTS),
        query={"n": COUNT, "follow": FLAG},
        refusals=("model_not_found",),
    ),
    "/admin/openapi.json": Operation(summary="This document", answer=told(openapi=TEXT, paths={})),
}
"""By the path of the route table; one that ends in "/" is followed by the name of a model."""

ERROR = told(error=told(message=TEXT, type=TEXT, param=maybe(TEXT), code=TEXT))
ALWAYS = ("invalid_request", "rate_limit_exceeded", "internal_error")
WITH_KEY = ("invalid_api_key", "too_many_concurrent_requests")
WITH_BODY = ("request_timeout", "body_too_large", "unsupported_media_type", "expectation_failed")


def document(endpoints: Mapping[str, tuple[Endpoint, ...]]) -> dict[str, Any]:
    """The whole document, for the paths of the route table that OPERATIONS tells of."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "llm-supervisor", "version": __version__},
        "servers": [{"url": "/"}],
        "paths": {
            _template(path): _path(path, endpoints[path], operation)
            for path, operation in OPERATIONS.items()
            if path in endpoints
        },
        "components": {
            "schemas": {"Error": ERROR, "State": {"enum": [state.value for state in State]}},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _template(path: str) -> str:
    return f"{path}{{model}}" if path.endswith("/") and path != "/" else path


def _path(path: str, own: tuple[Endpoint, ...], operation: Operation) -> dict[str, Any]:
    methods = {endpoint.method.lower(): _operation(path, endpoint, operation) for endpoint in own}
    if not _template(path).endswith("}"):
        return methods
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {"parameters": [model], **methods}


def _operation(path: str, endpoint: Endpoint, operation: Operation) -> dict[str, Any]:
    body = operation.body if endpoint.method == "POST" else None
    found: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}{path.replace('/', '_').rstrip('_')}",
        "summary": operation.summary,
        "security": [] if endpoint.access is Access.OPEN else [{"bearer": []}, {"key": []}],
        "responses": {
            "200": {
                "description": "as asked",
                "content": {
                    media: {} if media == EVENTS else {"schema": operation.answer}
                    for media in operation.media
                },
            },
            **_refusals(endpoint, operation, has_body=body is not None),
        },
    }
    if operation.query:
        found["parameters"] = [
            {"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()
        ]
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


def _refusals(endpoint: Endpoint, operation: Operation, *, has_body: bool) -> dict[str, Any]:
    """The errors by status, with their codes."""
    codes = [*operation.refusals, *ALWAYS]
    codes += WITH_KEY if endpoint.access > Access.OPEN else ()
    codes += ("admin_required",) if endpoint.access is Access.ADMIN else ()
    codes += WITH_BODY if has_body else ()
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(TABLE[code].status, []).append(code)
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        str(status): {"description": ", ".join(sorted(found)), "content": content}
        for status, found in sorted(by_status.items())
    }
