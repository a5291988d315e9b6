"""The whole configuration, and its tables that are short."""

from supervisord_llm.config.keys.clients import CLIENT, CLIENT_NAME, RATE_LIMIT
from supervisord_llm.config.keys.doors import CORS, NETWORK, SITE, TLS
from supervisord_llm.config.keys.models import (
    DEFAULTS,
    GPU_UUID,
    MODEL,
    NAME,
    NAME_CHARACTERS,
    NAME_PATTERN,
    VENV,
)
from supervisord_llm.config.keys.peers import PEER
from supervisord_llm.config.keys.routes import ROUTE
from supervisord_llm.config.keys.schedule import SCHEDULE
from supervisord_llm.config.kinds import Key, ListOf, MapOf, OneOf, Table, Value
from supervisord_llm.config.values import (
    ADDRESS,
    BOOL,
    DURATION,
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
        Key(
            name="default_model",
            kind=text("the name or an alias of a model or route"),
            doc="Serves requests that name no model.",
        ),
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
            doc="Models started at boot, one after the other, in this order; a route stands for its members.",
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
        Key(
            name="security_headers",
            kind=BOOL,
            default=True,
            doc="Whether answers carry `X-Frame-Options: DENY` and the like; those of sites pass unchanged.",
        ),
        Key(name="tls", kind=TLS, doc=TLS.doc),
        Key(
            name="trusted_proxies",
            kind=ListOf(NETWORK),
            default=[],
            doc="Proxies in front that are believed what they say of the client in `X-Forwarded-For`, "
            '`X-Forwarded-Proto` and `X-Forwarded-Host`; `"unix"` is whoever comes by a `unix:` address.',
        ),
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


PLAIN_NAME = names(NAME_CHARACTERS, NAME_PATTERN)


def _map(name: str, named: str, item: Table, keys: Value = PLAIN_NAME) -> Key:
    return Key(name=name, kind=MapOf(named=named, name=keys, item=item), doc=item.doc)


def _table(name: str, table: Table) -> Key:
    return Key(name=name, kind=table, doc=table.doc)


ROOT = Table(
    doc="Configuration of llm-supervisor.",
    keys=(
        _table("server", SERVER),
        _table("paths", PATHS),
        _table("auth", AUTH),
        _map("clients", "client", CLIENT, CLIENT_NAME),
        _table("rate_limit", RATE_LIMIT),
        _table("vram", VRAM),
        _map("gpus", "GPU", GPU, GPU_KEY),
        _table("host", HOST),
        _map("venvs", "venv", VENV),
        _table("defaults", DEFAULTS),
        _map("models", "model", MODEL, NAME),
        _table("metrics", METRICS),
        _table("log", LOG),
        _table("cors", CORS),
        _map("sites", "site", SITE),
        _table("schedule", SCHEDULE),
        _map("routes", "route", ROUTE),
        _map("peers", "peer", PEER),
        later("backup", "Regular backups."),
    ),
)
