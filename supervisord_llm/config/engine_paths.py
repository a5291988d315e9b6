"""A method and path of an engine, "POST /v1/score2": what `request.allow` may open, and what it never may."""

import re

from supervisord_llm.config.kinds import JsonSchema, Unreadable
from supervisord_llm.config.problem import listing

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_SEGMENT = r"(?!\.+(?:/|$))[A-Za-z0-9._~:@+=,-]+"
_ENTRY = rf"(?:{'|'.join(METHODS)}) (?:/{_SEGMENT})+"

_STEERS = (
    *("sleep", "is_sleeping", "wake_up", "pause", "resume", "is_paused", "abort_requests", "fault_tolerance"),
    *("collective_rpc", "[a-z_]*weights?(?:_[a-z_]+)?", "reset_[a-z_]+", "release_[a-z_]+"),
    *("(?:start|stop)_profile", "(?:un)?load_lora_adapter", "(?:is_)?scal(?:e|ing)_elastic_ep"),
)
_TELLS = (
    *("health", "ping", "load", "metrics", "version", "server_info", "get_world_size", "kv_event_sources"),
    *("tokenizer_info", "docs", "redoc", "static", r"openapi\.json"),
)
_NEVER = (
    (_STEERS, "it steers the engine, which is for the supervisor alone", "remove it"),
    (_TELLS, "it is for whoever operates the engine", "remove it and see GET /health and GET /metrics"),
    (("invocations", "inference"), "it takes requests of every kind, past all checks", "name one endpoint"),
)
"""Words of paths that vLLM has for its operator: why they stay closed, and the way out."""
_OURS = r"(?:/v1)*/models(?:/|$)"

PATH_SCHEMA: JsonSchema = {
    "type": "string",
    "pattern": f"^{_ENTRY}$",
    "not": {"pattern": rf"/(?:{'|'.join(word for words, _, _ in _NEVER for word in words)})(?:/|$)| {_OURS}"},
}


def read_engine_path(raw: str) -> str:
    """The entry as it is.

    Raises:
        Unreadable: it is none, or a path that stays closed whatever a configuration says.
    """
    method, _, path = raw.partition(" ")
    if method not in METHODS:
        raise Unreadable("it does not begin with a method", f"write {listing(METHODS)} first")
    if re.fullmatch(_ENTRY, raw, re.ASCII) is None:
        way_out = f'write it as the engine knows it, such as "{method} /v1/score2"'
        raise Unreadable("a path is plain words after slashes, without a query or an escape", way_out)
    if re.match(_OURS, path):
        raise Unreadable("the supervisor answers it itself", "remove it")
    for words, why, way_out in _NEVER:
        if re.search(rf"/(?:{'|'.join(words)})(?:/|$)", path.lower()):
            raise Unreadable(why, way_out)
    return raw
