"""The settings of a model elsewhere, engine = "remote": its address, its key, what may be sent there."""

import re

from supervisord_llm.config.kinds import Key, Unreadable, Value
from supervisord_llm.config.values import PATH, RATE, text

_HOST = r"(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])"
_URL = re.compile(rf"(?i:(https?)://({_HOST}(?::[0-9]{{1,5}})?))((?:/[A-Za-z0-9._~+=-]+)*)/?")


def _read_url(raw: object) -> str:
    if isinstance(raw, str) and "@" in raw:
        raise Unreadable("a URL is no place for a key", 'remove it and write key_env = "…"')
    found = _URL.fullmatch(raw) if isinstance(raw, str) else None
    if found is None or {".", ".."} & set(found[3].split("/")):
        raise Unreadable
    return f"{found[1].lower()}://{found[2].lower()}{found[3]}"


URL = Value(
    accepts='a URL such as "https://api.x.ai/v1"',
    schema={"type": "string", "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s?#@]+$"},
    read=_read_url,
    secret=True,  # it may hold a password, which is then refused
)

KEY_WAYS = ("key_env", "key_file", "key_credential")

REMOTE_KEYS = (
    Key(
        name="url",
        kind=URL,
        doc='The address of an API elsewhere (`engine = "remote"`): what stands there for `/v1`.',
    ),
    Key(
        name="key_env",
        kind=text(
            "the name of an environment variable such as XAI_API_KEY",
            r"[A-Za-z_][A-Za-z0-9_]*",
            secret=True,
        ),
        doc="The variable that holds the key of that API, from the environment, `.env` or "
        "`llm-supervisor.env`.",
    ),
    Key(name="key_file", kind=PATH, doc="The file that holds it."),
    Key(
        name="key_credential",
        kind=text("the name of a systemd credential", r"[A-Za-z0-9_][A-Za-z0-9._-]*", secret=True),
        doc="The systemd credential that holds it.",
    ),
    Key(
        name="rate",
        kind=RATE,
        doc="Requests per time that may be sent to that API; 429 above it.",
        default_doc="no limit",
    ),
)
"""Keys of [models.NAME] that only a model elsewhere has."""
