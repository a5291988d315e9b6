"""The settings of a model and of its Python environment, described once."""

from collections.abc import Mapping
from typing import Any

from supervisord_llm.config.keys.commands import COMMAND_KEYS
from supervisord_llm.config.keys.derived import DERIVED_KEYS
from supervisord_llm.config.keys.remotes import REMOTE_KEYS
from supervisord_llm.config.keys.requests import REQUEST
from supervisord_llm.config.kinds import Key, ListOf, MapOf, OneOf, Table, Unreadable, Value
from supervisord_llm.config.values import (
    BOOL,
    DURATION,
    DURATION_RANGE,
    FALSE,
    PATH,
    POSITIVE_DURATION,
    POSITIVE_SIZE,
    SHARE,
    choice,
    names,
    text,
    whole,
)

NAME_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}"
NAME_CHARACTERS = (
    "up to 64 letters, digits, dots, hyphens and underscores, the first neither a dot nor a hyphen"
)
NAME = names(f"{NAME_CHARACTERS}, since it names files, a socket and a path", NAME_PATTERN)
ALIASES = ListOf(
    text("a name without spaces, not beginning with a hyphen", r"[^\s\x00-\x1f-][^\s\x00-\x1f]*")
)
PATH_PREFIX = OneOf((text('one path segment such as "/coder"', r"/[A-Za-z0-9_][A-Za-z0-9._-]*"), FALSE))
LEAST_CORES, MOST_CORES = 0.01, 10_000
"""The kernel takes no quota below 1 ms in 100 ms."""
GPU_UUID = r"GPU-[0-9A-Za-z-]+"

OWN_FLAGS: Mapping[str, tuple[str, str]] = {
    "uds": ("engines listen on a socket of the supervisor's choice", "remove it"),
    "host": ("engines listen on unix sockets only", "remove it and see [server] listen"),
    "port": ("engines listen on unix sockets only", "remove it and see [server] listen"),
    "model": ("the supervisor names the model", 'remove it and see "source"'),
    "served-model-name": ("the supervisor gives the model's name and aliases", 'remove it and see "aliases"'),
    "api-key": ("clients show their key to the supervisor", "remove it and see [clients]"),
    "gpu-memory-utilization": ("the supervisor sets it from the grant", 'remove it and see "vram"'),
    "device-memory-utilization": ("the supervisor sets it from the grant", 'remove it and see "vram"'),
    "enable-sleep-mode": ("the supervisor sets it", 'remove it and see "idle"'),
    "tensor-parallel-size": ("the supervisor sets it", 'remove it and see "tensor_parallel"'),
    "revision": ("the supervisor downloads the pinned revision", 'remove it and see "revision"'),
    "config": ("it would hide flags from the supervisor", 'remove it and write its flags into "flags"'),
}
"""vLLM's flags that the supervisor sets or must know: why a user may not, and the way out."""

MEMORY_FLAGS = ("kv-cache-memory-bytes", "num-gpu-blocks-override")
"""Further flags that size the memory of a GPU whatever the grant says; on the CPU there is no grant."""

OWN_ENV: Mapping[str, tuple[str, str]] = {
    "CUDA_VISIBLE_DEVICES": ("the supervisor places engines on GPUs", 'remove it and see "gpus"'),
    "CUDA_DEVICE_ORDER": ("GPU indices are always in PCI order", "remove it"),
    "HF_HUB_OFFLINE": ("engines never download; the supervisor does", "remove it"),
}


def _read_flag_name(name: str) -> str:
    """vLLM takes both spellings; one of them here, so that a model's flag replaces that of [defaults]."""
    if name.startswith("-"):
        bare = name.lstrip("-")
        raise Unreadable("flags are written without their dashes", f'write "{bare}"' if bare else "")
    head, dot, rest = name.partition(".")
    flag = head.replace("_", "-")
    if own := next((own for own in OWN_FLAGS if means(flag, own)), None):
        raise Unreadable(*OWN_FLAGS[own])
    return flag + dot + rest


def means(flag: str, full: str) -> bool:
    """Whether vLLM may read `flag` as `full`: it completes abbreviations."""
    return flag == full or ("-" in flag and full.startswith(flag))


def _read_env_name(name: str) -> str:
    if name in OWN_ENV:
        raise Unreadable(*OWN_ENV[name])
    return name


def _read_flag(raw: object) -> Any:
    match raw:
        case str() | bool() | int() | float():
            return raw
        case list():
            return [_read_flag(item) for item in raw]
        case dict():
            return {key: _read_flag(value) for key, value in raw.items()}
        case _:
            raise Unreadable


def _read_sleep_level(raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or raw not in (1, 2):
        raise Unreadable
    return raw


def _read_cores(raw: object) -> float:
    if not isinstance(raw, int | float) or isinstance(raw, bool) or not LEAST_CORES <= raw <= MOST_CORES:
        raise Unreadable
    return float(raw)


def _read_gpu(raw: object) -> int | str:
    match raw:
        case bool():
            raise Unreadable
        case int() if raw >= 0:
            return raw
        case str() if UUID.read(raw):
            return raw
        case _:
            raise Unreadable


UUID = text('a GPU\'s UUID such as "GPU-…"', GPU_UUID)
GPU_REF = Value(
    accepts='a GPU index such as 0 or a UUID such as "GPU-…"',
    schema={"anyOf": [{"type": "integer", "minimum": 0}, UUID.schema]},
    read=_read_gpu,
)
SLEEP_LEVEL = Value(accepts="1 or 2", schema={"enum": [1, 2]}, read=_read_sleep_level)
CORES = Value(
    accepts="a number of cores such as 4 or 0.5, 0.01 or more",
    schema={"type": "number", "minimum": LEAST_CORES, "maximum": MOST_CORES},
    read=_read_cores,
)
FLAG = Value(
    accepts="a string, number, boolean, list or table",
    schema={"type": ["string", "number", "boolean", "array", "object"]},
    read=_read_flag,
    secret=True,
)
FLAGS = MapOf(
    named="flag",
    name=names(
        'a flag of "vllm serve" such as max-model-len',
        r"[A-Za-z0-9][A-Za-z0-9._-]*",
        _read_flag_name,
        refused={spelling for flag in OWN_FLAGS for spelling in (flag, flag.replace("-", "_"))},
    ),
    item=FLAG,
    accepts="a table such as { max-model-len = 8192 }",
)
ENV = MapOf(
    named="variable",
    name=names(
        "a variable's name such as VLLM_LOGGING_LEVEL",
        r"[A-Za-z_][A-Za-z0-9_]*",
        _read_env_name,
        refused=OWN_ENV,
    ),
    item=text('a string such as "1"', r"[^\0]*", secret=True),
    accepts='a table such as { VLLM_LOGGING_LEVEL = "INFO" }',
)


VENV = Table(
    doc="A Python environment to share a definition of; each model still gets its own. "
    "Either `path` or `requirements` is needed.",
    keys=(
        Key(name="path", kind=PATH, doc="An environment that exists already; it is used and never changed."),
        Key(
            name="requirements",
            kind=ListOf(text('a requirement such as "vllm==0.32.0"')),
            doc="What to install, as pip would read it.",
        ),
        Key(
            name="python",
            kind=text('a Python version such as "3.12" or the path of an interpreter'),
            doc="The Python to build with.",
            default_doc="the one that fits",
        ),
        Key(
            name="index_url",
            kind=text("the URL of a package index", r"\S+", secret=True),
            doc="The package index to use in place of the default one.",
        ),
        Key(
            name="extra_index_urls",
            kind=ListOf(text("the URL of a package index", r"\S+", secret=True)),
            default=[],
            doc="Further package indexes.",
        ),
        Key(
            name="find_links",
            kind=ListOf(text("a directory of wheels or the URL of a page that lists them", secret=True)),
            default=[],
            doc="Directories or pages where wheels lie.",
        ),
    ),
)
QUEUE = Table(
    doc="A queue above `max_concurrent`.",
    keys=(
        Key(name="size", kind=whole(0), default=1000, doc="How many requests may wait."),
        Key(
            name="timeout",
            kind=POSITIVE_DURATION,
            default="10m",
            doc="How long one may wait, for a start too.",
        ),
    ),
)
IDLE = Table(
    doc="What happens to an engine that nobody uses.",
    keys=(
        Key(
            name="stop_after",
            kind=DURATION,
            default="30m",
            doc='Idle time after which the engine is stopped; "0s" is never.',
        ),
        Key(
            name="sleep_after",
            kind=DURATION,
            doc="Idle time after which the engine is put to sleep, which frees most of its GPU memory and is "
            'sooner undone than a stop; "0s" is never.',
            default_doc="never",
        ),
        Key(
            name="sleep_level",
            kind=SLEEP_LEVEL,
            doc="`1` keeps the weights in main memory, `2` drops them and loads them again. Set without "
            "`sleep_after`, the engine sleeps only to make room for another.",
            default_doc="`1` with `sleep_after`",
        ),
    ),
)
RESTART = Table(
    doc="How often a model that failed is tried again.",
    keys=(
        Key(name="tries", kind=whole(0), default=3, doc="Failures within `window` before it stays failed."),
        Key(
            name="window",
            kind=POSITIVE_DURATION,
            default="10m",
            doc="The time over which failures are counted.",
        ),
        Key(
            name="backoff",
            kind=DURATION_RANGE,
            default="2s..60s",
            doc="The wait after the first failure, doubled after each further one, and its limit.",
        ),
    ),
)
LIMITS = Table(
    doc="The most that an engine may take of the host, where the daemon was given cgroups with the "
    "controllers (see docs/systemd.md); where not, a warning in the log names each limit that does not hold.",
    keys=(
        Key(
            name="memory",
            kind=POSITIVE_SIZE,
            doc="Main memory, the engine's page cache and shared memory included. One that needs more is "
            "killed as a whole.",
            default_doc="no limit",
        ),
        Key(
            name="cpu",
            kind=CORES,
            doc="CPU time, in cores: `0.5` is half the time of one.",
            default_doc="no limit",
        ),
        Key(name="pids", kind=whole(1), doc="Processes and threads.", default_doc="no limit"),
    ),
)
MODEL = Table(
    doc="A model, served by an engine that starts with the first request.",
    keys=(
        Key(
            name="source",
            kind=text(
                'a hub id such as "Qwen/Qwen2.5-0.5B-Instruct" or a directory such as "/srv/models/chat"'
            ),
            doc="Where the weights are: a Hugging Face hub id, or a directory that begins with `/` or `./`. "
            "Of a model that another server or an API elsewhere serves: what it is called there.",
            default_doc="needed for vLLM; else its own name",
        ),
        Key(
            name="revision",
            kind=text("a commit hash, tag or branch of the hub repository"),
            doc="The revision of a hub id; a 40-digit commit hash is needed with `trust-remote-code`.",
        ),
        Key(
            name="engine",
            kind=choice("vllm", "command", "remote"),
            default="vllm",
            doc="What serves it: vLLM, any other server (`command`), or an API elsewhere (`remote`); see "
            "docs/engines.md.",
        ),
        Key(
            name="path",
            kind=PATH_PREFIX,
            default_doc='`"/<name>"`',
            doc="The prefix under which this model alone answers, as in `/coder/v1/…`; `false` for none.",
        ),
        Key(
            name="aliases",
            kind=ALIASES,
            default=[],
            doc="Further names that requests may use.",
        ),
        Key(
            name="gpus",
            kind=OneOf((choice("auto"), ListOf(GPU_REF))),
            default="auto",
            doc='`"auto"` leaves the choice to the scheduler; `[0]` or `["GPU-…"]` pins; `[]` is CPU only.',
        ),
        Key(name="tensor_parallel", kind=whole(1), default=1, doc="Over how many GPUs each layer is split."),
        Key(
            name="vram",
            kind=OneOf((POSITIVE_SIZE, SHARE, choice("auto"))),
            default="auto",
            doc='Memory to speak for on each GPU: a size, a share of the GPU, or `"auto"`. '
            "With `gpus = []` a size is that of the KV cache in main memory.",
        ),
        Key(
            name="venv",
            kind=OneOf((text("the name of a [venvs] table", NAME_PATTERN), VENV)),
            doc="The Python environment: a name of `[venvs]`, or the same keys in place.",
            default_doc="vLLM for this host",
        ),
        Key(
            name="flags",
            kind=FLAGS,
            default={},
            doc="Flags of `vllm serve`, unchanged: `true` becomes `--flag`, `false` becomes `--no-flag`. "
            "Those that the supervisor sets are refused, and so are `kv-cache-memory-bytes` and "
            "`num-gpu-blocks-override` on a GPU, where the grant sizes memory (see `vram`).",
        ),
        Key(name="env", kind=ENV, default={}, doc="Environment variables of the engine."),
        Key(
            name="start_timeout",
            kind=POSITIVE_DURATION,
            default="5m",
            doc="How long the whole start may take.",
        ),
        Key(
            name="stall_timeout",
            kind=POSITIVE_DURATION,
            default="2m",
            doc="How long a start, or requests in flight, may go on without a sign of progress.",
        ),
        Key(
            name="max_concurrent",
            kind=whole(1),
            doc="Requests in flight; above it 503, or the queue if `queue` is set.",
            default_doc="no limit",
        ),
        Key(
            name="queue", kind=QUEUE, doc="Lets requests above `max_concurrent` wait.", default_doc="no queue"
        ),
        Key(name="idle", kind=IDLE, doc="What happens to an engine that nobody uses."),
        Key(
            name="keep",
            kind=BOOL,
            default=False,
            doc="`true`: never stopped for being idle or for another model.",
        ),
        Key(
            name="min_residency",
            kind=DURATION,
            default="30s",
            doc="How long an engine that became ready is safe from making room for another.",
        ),
        Key(name="restart", kind=RESTART, doc="How often a model that failed is tried again."),
        Key(
            name="limits",
            kind=LIMITS,
            doc="The most that the engine may take of the host. A running engine keeps those it was "
            "started with.",
            default_doc="no limits",
        ),
        Key(
            name="system_prompt",
            kind=text("a text", r"[\s\S]*\S[\s\S]*"),
            doc="Put in front of every conversation, see `system_prompt_mode`.",
        ),
        Key(
            name="system_prompt_mode",
            kind=choice("default", "always"),
            default="default",
            doc="`default`: where the client sends no system message; `always`: also before the client's "
            "own, in one message with it.",
        ),
        Key(name="request", kind=REQUEST, doc="What is changed in requests, and what they may not ask for."),
        Key(
            name="tools",
            kind=choice("auto", "strip", "pass"),
            default="auto",
            doc="Tools that clients offer: `auto` launches vLLM with the parser of the model's family, and "
            "drops tools where none is known; `strip` drops them; `pass` leaves flags and requests alone.",
        ),
        Key(
            name="network",
            kind=choice("isolated", "host"),
            default="isolated",
            doc="`isolated`: the engine has no way to the LAN or the internet, as far as this host can "
            "keep it from them (see docs/systemd.md); `host`: it has that of the daemon.",
        ),
        *COMMAND_KEYS,
        *REMOTE_KEYS,
        *DERIVED_KEYS,
    ),
)
DEFAULTS = MODEL.without(
    "source",
    "path",
    "aliases",
    "command",
    *(key.name for key in (*REMOTE_KEYS, *DERIVED_KEYS)),
    doc="Any key of a model that is not its own: the value where a model has none.",
)
