"""The settings of clients, [clients.NAME]: their keys and limits. And of addresses: [rate_limit]."""

from collections.abc import Mapping

from supervisord_llm.config.keys.models import NAME_CHARACTERS, NAME_PATTERN
from supervisord_llm.config.kinds import Key, ListOf, OneOf, Table, Unreadable, Value
from supervisord_llm.config.values import BOOL, INTEGER, PATH, RATE, choice, names, text, whole

OWN_SOURCES: Mapping[str, str] = {
    "anonymous": "requests without a key go by that name",
    "control": "the command line goes by that name",
}
"""Who asks where no client does. A client of that name would share its limits with them."""


def _read_name(name: str) -> str:
    if name in OWN_SOURCES:
        raise Unreadable(OWN_SOURCES[name], "write another name")
    return name


CLIENT_NAME = names(NAME_CHARACTERS, NAME_PATTERN, _read_name, refused=OWN_SOURCES)

ENDPOINT_PATTERN = text(
    'a pattern such as "chat/completions", "audio/*" or "*", without /v1/', r"(?!/|v1/)\S+"
)


def _key(name: str, kind: Value, doc: str) -> Key:
    """One way to give a client its key, or several that are valid at once."""
    return Key(name=name, kind=OneOf((kind, ListOf(kind))), doc=doc)


CLIENT = Table(
    doc="A client is a key; its name appears in logs and metrics. At least one `key_…` is needed. Each may "
    "be a list, and all keys that are given are valid at once: that is how a key is replaced without a gap.",
    keys=(
        _key(
            "key_env",
            text(
                "the name of an environment variable such as WEBUI_API_KEY",
                r"[A-Za-z_][A-Za-z0-9_]*",
                secret=True,
            ),
            "The variable that holds the key, from the environment, `.env` or `llm-supervisor.env`.",
        ),
        _key("key_file", PATH, "The file that holds the key."),
        _key(
            "key_credential",
            text("the name of a systemd credential", r"[A-Za-z0-9_][A-Za-z0-9._-]*", secret=True),
            "The systemd credential that holds the key.",
        ),
        _key(
            "key_sha256",
            text("the SHA-256 of the key as 64 hexadecimal digits", r"[0-9A-Fa-f]{64}", secret=True),
            "The SHA-256 of the key; `llm-supervisor keys new` makes both.",
        ),
        Key(
            name="models",
            kind=ListOf(text('a pattern such as "*" or "qwen-*"')),
            default=["*"],
            doc="Patterns over the names and aliases of models and routes that the client may use. "
            "With a route it reaches the members, too, but by that route alone.",
        ),
        Key(
            name="endpoints",
            kind=ListOf(ENDPOINT_PATTERN),
            default=["*"],
            doc="Patterns over the endpoints of engines that the client may use.",
        ),
        Key(
            name="priority",
            kind=INTEGER,
            default=0,
            doc="Higher goes first in every queue, also in that of a vLLM with the flag "
            '`scheduling-policy = "priority"`.',
        ),
        Key(name="admin", kind=BOOL, default=False, doc="Whether the key opens `/admin/`."),
        Key(
            name="while_waiting",
            kind=ListOf(choice("progress", "white-space")),
            default=[],
            doc="What the client gets while a model starts: `progress` tells streams how far it is; "
            "`white-space` keeps other answers alive, whose errors then come with status 200.",
        ),
        Key(name="rate", kind=RATE, doc="Requests per time; 429 above it.", default_doc="no limit"),
        Key(
            name="burst",
            kind=whole(1),
            doc="How many requests may come at once, after a rest.",
            default_doc="the number in `rate`",
        ),
        Key(
            name="max_concurrent",
            kind=whole(1),
            doc="Requests to engines in flight, those that wait included; 429 above it.",
            default_doc="no limit",
        ),
        Key(
            name="tokens_per_hour",
            kind=whole(1),
            doc="Tokens, of prompts and answers, in an hour of the clock; 429 to its end once they are used.",
            default_doc="no limit",
        ),
        Key(
            name="tokens_per_day",
            kind=whole(1),
            doc="The same for a calendar day of the host's time zone.",
            default_doc="no limit",
        ),
    ),
)
RATE_LIMIT = Table(
    doc="Limits of each address that requests come from, whatever their key. Without this table there are "
    "none.",
    keys=(
        Key(
            name="per_ip",
            kind=RATE,
            doc="Requests per time from one IPv4 address or one IPv6 /64; 429 above it, before any key is "
            "looked at.",
            default_doc="no limit",
        ),
        Key(
            name="burst",
            kind=whole(1),
            doc="How many requests may come at once, after a rest.",
            default_doc="the number in `per_ip`",
        ),
    ),
)
