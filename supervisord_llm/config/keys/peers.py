"""The settings of a peer, [peers.NAME]: another llm-supervisor, its key, and what of it is wanted."""

from urllib.parse import urlsplit

from supervisord_llm.config.keys.remotes import REMOTE_KEYS, URL
from supervisord_llm.config.kinds import Key, ListOf, Table, Unreadable, Value
from supervisord_llm.config.values import text

_OF_A_REMOTE = {key.name: key.kind for key in REMOTE_KEYS}


def _read_url(raw: object) -> str:
    url: str = URL.read(raw)
    base = url.removesuffix("/v1")
    if urlsplit(base).path:
        raise Unreadable("an llm-supervisor has its API at /v1, and nowhere else", "write its address alone")
    return base


PEER = Table(
    doc="Another llm-supervisor, whose models are served here as well (see docs/engines.md).",
    keys=(
        Key(
            name="url",
            kind=Value(
                accepts='a URL such as "http://gpu2.lan:8000"',
                schema={"type": "string", "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s/?#@]+(?:/v1)?/?$"},
                read=_read_url,
                secret=True,  # it may hold a password, which is then refused
            ),
            required=True,
            doc="Its address.",
        ),
        Key(
            name="key_env",
            kind=_OF_A_REMOTE["key_env"],
            doc="The variable that holds the key of a client there, from the environment, `.env` or "
            "`llm-supervisor.env`.",
        ),
        Key(name="key_file", kind=_OF_A_REMOTE["key_file"], doc="The file that holds it."),
        Key(
            name="key_credential",
            kind=_OF_A_REMOTE["key_credential"],
            doc="The systemd credential that holds it.",
        ),
        Key(
            name="models",
            kind=ListOf(text('the name of a model there, or a pattern such as "llama*"')),
            default=["*"],
            doc="Which of the models that it lists are wanted here.",
        ),
    ),
)
