"""Every setting there is, described once.

The parser, the JSON Schema and the reference page all follow these records, so a key cannot be read without
being documented. Attributes of the values in model.py carry the key's name plus its unit.
"""

from supervisord_llm.config.kinds import Key, ListOf, MapOf, OneOf, Table, Value
from supervisord_llm.config.model_keys import DEFAULTS, GPU_UUID, MODEL, NAME, VENV
from supervisord_llm.config.values import (
    ADDRESS,
    BOOL,
    DURATION,
    INTEGER,
    PATH,
    POSITIVE_SIZE,
    SHARE,
    SIZE,
    choice,
    later,
    names,
    text,
)

MODEL_REF = text("the name or an alias of a model")

SERVER = Table(
    doc="The door that clients come through.",
    keys=(
        Key(
            name="listen",
            kind=ListOf(ADDRESS),
            default=["0.0.0.0:8000"],
            doc="Where to listen: `host:port`, `[v6]:port` or `unix:/path`. A socket from systemd wins.",
        ),
        Key(name="default_model", kind=MODEL_REF, doc="Serves requests that name no model."),
        Key(
            name="unknown_model",
            kind=choice("reject", "default"),
            default="reject",
            doc="A request for an unknown model: `reject` answers 404, `default` uses `default_model`.",
        ),
        Key(
            name="preload",
            kind=ListOf(MODEL_REF),
            default=[],
            doc="Models started at boot, one after the other, in this order.",
        ),
        Key(name="max_body", kind=SIZE, default="32MiB", doc="The largest request body."),
        Key(
            name="heartbeat",
            kind=DURATION,
            default="10s",
            doc='How often a streaming client that waits for a model gets a comment line; "0s" is never.',
        ),
        Key(
            name="drain_timeout",
            kind=DURATION,
            default="30s",
            doc="How long requests in flight may go on when an engine or the daemon stops.",
        ),
        Key(
            name="on_stop",
            kind=choice("stop", "keep"),
            default="stop",
            doc="What happens to engines when the daemon stops: `keep` leaves them for its next start.",
        ),
        later("security_headers", "Security headers on every answer."),
        later("tls", "Certificate and key for HTTPS."),
    ),
)
PATHS = Table(
    doc="Where things live, if not in the directories that systemd gives, else in /var and /run for root "
    "and in XDG's directories for others.",
    keys=(
        Key(name="state", kind=PATH, doc="venvs, weights and engine logs.", default_doc="`$STATE_DIRECTORY`"),
        Key(name="cache", kind=PATH, doc="What can be made again.", default_doc="`$CACHE_DIRECTORY`"),
        Key(
            name="runtime",
            kind=PATH,
            doc="Sockets; keep it short, since a socket's path has at most 107 bytes.",
            default_doc="`$RUNTIME_DIRECTORY`",
        ),
    ),
)
AUTH = Table(
    doc="Who may come in.",
    keys=(
        Key(
            name="required",
            kind=BOOL,
            default=True,
            doc="Whether requests need a client's key. `false` lets everybody on the network in.",
        ),
    ),
)
CLIENT = Table(
    doc="A client is a key; its name appears in logs and metrics. Exactly one `key_…` is needed.",
    keys=(
        Key(
            name="key_env",
            kind=text(
                "the name of an environment variable such as WEBUI_API_KEY",
                r"[A-Za-z_][A-Za-z0-9_]*",
                secret=True,
            ),
            doc="The variable that holds the key, from the environment, `.env` or `llm-supervisor.env`.",
        ),
        Key(name="key_file", kind=PATH, doc="The file that holds the key."),
        Key(
            name="key_credential",
            kind=text("the name of a systemd credential", r"[A-Za-z0-9_][A-Za-z0-9._-]*", secret=True),
            doc="The systemd credential that holds the key.",
        ),
        Key(
            name="key_sha256",
            kind=text("the SHA-256 of the key as 64 hexadecimal digits", r"[0-9A-Fa-f]{64}", secret=True),
            doc="The SHA-256 of the key.",
        ),
        Key(
            name="models",
            kind=ListOf(text('a pattern such as "*" or "qwen-*"')),
            default=["*"],
            doc="Patterns over the names and aliases of models that the client may use.",
        ),
        Key(name="priority", kind=INTEGER, default=0, doc="Higher goes first in every queue."),
        Key(name="admin", kind=BOOL, default=False, doc="Whether the key opens `/admin/`."),
        later("rate", "Requests per time."),
        later("burst", "Requests at once above the rate."),
        later("max_concurrent", "Requests in flight."),
    ),
)
VRAM = Table(
    doc="The law: the sum of grants on a GPU never exceeds its budget.",
    keys=(
        Key(
            name="budget",
            kind=OneOf((SHARE, POSITIVE_SIZE)),
            default="90%",
            doc="The part of each GPU that engines may hold.",
        ),
        Key(name="reserve", kind=SIZE, default=0, doc="Kept free on each GPU for what CUDA itself needs."),
        Key(
            name="enforce",
            kind=choice("observe", "restart", "stop"),
            default="restart",
            doc="What happens to an engine that holds more than its grant: `observe` only says so, "
            "`restart` and `stop` end it before a neighbour suffers.",
        ),
        Key(
            name="tolerance",
            kind=SHARE,
            default="5%",
            doc="How far above its grant an engine may be, as a share of the grant.",
        ),
    ),
)
GPU = Table(
    doc="One GPU, by index in PCI order or by UUID.",
    keys=(
        Key(
            name="budget",
            kind=OneOf((SHARE, POSITIVE_SIZE)),
            doc="The part of this GPU that engines may hold.",
            default_doc="`vram.budget`",
        ),
    ),
)
HOST = Table(
    doc="What engines may take of the host itself.",
    keys=(
        Key(
            name="ram_budget",
            kind=OneOf((SHARE, POSITIVE_SIZE)),
            default="50%",
            doc="The part of main memory that the weights of sleeping engines may hold together.",
        ),
    ),
)
METRICS = Table(
    doc="`GET /metrics`, for Prometheus.",
    keys=(
        Key(name="enabled", kind=BOOL, default=True, doc="Whether it is served."),
        Key(name="public", kind=BOOL, default=False, doc="Whether it is served without a key."),
    ),
)
LOG = Table(
    doc="The daemon's own log, on stderr.",
    keys=(
        Key(
            name="format",
            kind=choice("auto", "json", "text"),
            default="auto",
            doc="`auto` suits where stderr leads: the journal, a terminal or a file.",
        ),
    ),
)
GPU_KEY = names('a GPU\'s index such as 0 or its UUID such as "GPU-…"', rf"0|[1-9][0-9]*|{GPU_UUID}")


def _map(name: str, named: str, item: Table, keys: Value = NAME) -> Key:
    return Key(name=name, kind=MapOf(named=named, name=keys, item=item), doc=item.doc)


def _table(name: str, table: Table) -> Key:
    return Key(name=name, kind=table, doc=table.doc)


ROOT = Table(
    doc="Configuration of llm-supervisor.",
    keys=(
        _table("server", SERVER),
        _table("paths", PATHS),
        _table("auth", AUTH),
        _map("clients", "client", CLIENT),
        _table("vram", VRAM),
        _map("gpus", "GPU", GPU, GPU_KEY),
        _table("host", HOST),
        _map("venvs", "venv", VENV),
        _table("defaults", DEFAULTS),
        _map("models", "model", MODEL),
        _table("metrics", METRICS),
        _table("log", LOG),
        later("rate_limit", "Limits per client address."),
        later("cors", "Web pages that may call the API from a browser."),
        later("sites", "Other web services behind the same door."),
        later("routes", "Virtual models that choose a member per request."),
        later("schedule", "Hours in which only some models may run."),
        later("backup", "Regular backups."),
        later("extends", "Another file to start from."),
    ),
)
