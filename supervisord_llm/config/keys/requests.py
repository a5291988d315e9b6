"""[models.NAME] request: what is changed in a model's requests, and what they may not ask for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from supervisord_llm.config.engine_paths import PATH_SCHEMA, read_engine_path
from supervisord_llm.config.kinds import Key, ListOf, MapOf, Table, Unreadable, Value
from supervisord_llm.config.values import choice, names, whole

KIB = 1024


class Measure(StrEnum):
    """What of a field is limited."""

    VALUE = "value"
    ITEMS = "items"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that a client may ask for."""

    measure: Measure
    most: float


def _limits(measure: Measure, **most: float) -> dict[str, Limit]:
    return {field: Limit(measure, value) for field, value in most.items()}


LIMITS: Mapping[str, Limit] = {
    **_limits(Measure.VALUE, n=16, best_of=16, logprobs=20, top_logprobs=20, prompt_logprobs=20),
    **_limits(Measure.ITEMS, stop=16, stop_sequences=16, stop_token_ids=128, bad_words=128),
    **_limits(Measure.ITEMS, logit_bias=1024, allowed_token_ids=4096, logprob_token_ids=128),
    **_limits(Measure.ITEMS, messages=10_000, input=10_000, documents=10_000, prompt=128, tools=512),
    **_limits(Measure.BYTES, response_format=64 * KIB, structured_outputs=64 * KIB, text=64 * KIB),
    **_limits(Measure.BYTES, output_config=64 * KIB, guided_json=64 * KIB, guided_regex=16 * KIB),
    **_limits(Measure.BYTES, guided_grammar=64 * KIB, guided_choice=64 * KIB),
}
"""What a request may ask for where `max` says nothing: above it lies harm to others, not use."""

CLOSED: Mapping[str, str] = {
    "media_urls": "the engine would fetch it from inside your network",
    "chat_template": "it is a program that runs in the engine",
    "chat_template_kwargs": "only strings, numbers and booleans are safe",
    "mm_processor_kwargs": "it decides how much memory the engine takes",
    "media_io_kwargs": "it decides how much memory the engine takes",
    "prompt_embeds": "tensors are loaded without checks",
    "kv_transfer_params": "it names addresses that the engine connects to",
    "ec_transfer_params": "it names addresses that the engine connects to",
    "vllm_xargs": "it reaches extensions unchecked",
    "priority": "who goes first is decided by the client's `priority` in the configuration",
}
"""Fields that are refused unless `allow` names them, and why. `media_urls` is every URL that is not data:."""

TOKEN_LIMIT = "max_tokens"  # noqa: S105 - the name of a field
TOKEN_LIMIT_NAMES = (TOKEN_LIMIT, "max_completion_tokens", "max_output_tokens")

TOOLS = "tools"
"""What `force` may add to, for a model elsewhere: tools that its API runs itself, such as a search."""

_THEIRS = ("it is what the client asks", "remove it")
_NAMED = ("each endpoint names it otherwise", f'write "{TOKEN_LIMIT}", which stands for all of them')
_STREAM = ("the client reads the answer as it asked for it", "remove it")
OWN_FIELDS: Mapping[str, tuple[str, str]] = {
    "model": ("the supervisor chooses it", 'remove it and see "aliases"'),
    "stream": _STREAM,
    "stream_options": _STREAM,
    "messages": _THEIRS,
    "prompt": _THEIRS,
    "input": _THEIRS,
    "system": ("each endpoint names it otherwise", 'write "system_prompt" beside "request"'),
    "instructions": ("each endpoint names it otherwise", 'write "system_prompt" beside "request"'),
    "tools": ("they come and go with the parser for them", 'write "tools" beside "request"'),
    "tool_choice": ("it comes and goes with the tools", 'write "tools" beside "request"'),
    **dict.fromkeys(TOKEN_LIMIT_NAMES[1:], _NAMED),
}
"""Fields that `request` cannot set: why, and the way out."""


def _read_field(name: str) -> str:
    if name in OWN_FIELDS:
        raise Unreadable(*OWN_FIELDS[name])
    return name


def _read_forced(name: str) -> str:
    return name if name == TOOLS else _read_field(name)


def _read_limited(name: str) -> str:
    return name if name in LIMITS else _read_field(name)


def _read_json(raw: object) -> object:
    match raw:
        case str() | bool() | int():
            return raw
        case float() if math.isfinite(raw):
            return raw
        case list():
            return [_read_json(item) for item in raw]
        case dict():
            return {str(key): _read_json(item) for key, item in raw.items()}
        case _:
            raise Unreadable


def _read_allowed(raw: object) -> str:
    is_path = isinstance(raw, str) and ("/" in raw or " " in raw)
    return read_engine_path(str(raw)) if is_path else _CLOSED_FIELD.read(raw)


def _read_bound(raw: object) -> float:
    if not isinstance(raw, int | float) or isinstance(raw, bool) or not math.isfinite(raw):
        raise Unreadable
    return raw


_FIELD_PATTERN = r"[A-Za-z_][A-Za-z0-9_-]{0,63}"
FIELD = names("a field of a request such as temperature", _FIELD_PATTERN, _read_field, refused=OWN_FIELDS)
FORCED = names(
    "a field of a request such as temperature",
    _FIELD_PATTERN,
    _read_forced,
    refused=OWN_FIELDS.keys() - {TOOLS},
)
LIMITED = names(
    "a field of a request such as max_tokens",
    _FIELD_PATTERN,
    _read_limited,
    refused=OWN_FIELDS.keys() - LIMITS.keys(),
)
STRIPPED = Value(accepts='a field of a request such as "logit_bias"', schema=FIELD.schema, read=FIELD.read)
JSON = Value(
    accepts="a string, number, boolean, list or table",
    schema={"type": ["string", "number", "boolean", "array", "object"]},
    read=_read_json,
)
BOUND = Value(accepts="a number", schema={"type": "number"}, read=_read_bound)
_CLOSED_FIELD = choice(*CLOSED)
ALLOWED = Value(
    accepts=f'{_CLOSED_FIELD.accepts}, or a method and path of the engine such as "POST /v1/score2"',
    schema={"anyOf": [_CLOSED_FIELD.schema, PATH_SCHEMA]},
    read=_read_allowed,
)
VALUES = MapOf(named="field", name=FIELD, item=JSON, accepts="a table such as { temperature = 0.7 }")
FORCED_VALUES = MapOf(named="field", name=FORCED, item=JSON, accepts=VALUES.accepts)
BOUNDS = MapOf(named="field", name=LIMITED, item=BOUND, accepts="a table such as { max_tokens = 4096 }")

REQUEST = Table(
    doc="What is changed in a model's requests, in this order: `strip`, `default`, `force`, `min`, `max`; "
    "and what they may not ask for (docs/http.md). `max_tokens` stands for each endpoint's own name of it.",
    keys=(
        Key(name="default", kind=VALUES, default={}, doc="Fields that are set where the client sets none."),
        Key(
            name="force",
            kind=FORCED_VALUES,
            default={},
            doc="Fields that are set whatever the client says. Of a model elsewhere also `tools`, a list "
            "that is put behind the client's own.",
        ),
        Key(name="strip", kind=ListOf(STRIPPED), default=[], doc="Fields of the client that are dropped."),
        Key(name="min", kind=BOUNDS, default={}, doc="Numbers below it are raised to it."),
        Key(
            name="max",
            kind=BOUNDS,
            default={},
            doc="Numbers above it are lowered to it; `max_tokens` is set to it, too, where chats and "
            "responses name none: that means as long as fits. Of fields with a limit in items or bytes it is "
            "the limit above which requests are refused.",
        ),
        Key(
            name="allow",
            kind=ListOf(ALLOWED),
            default=[],
            doc="Fields that are refused otherwise, because they endanger the engine or its other clients, "
            "and further paths of the engine, which are not found otherwise.",
        ),
        Key(
            name="max_batch",
            kind=whole(1),
            doc="Inputs of one `embeddings` request that the engine gets at once; more are sent in parts and "
            "answered as one.",
            default_doc="no limit",
        ),
    ),
)
