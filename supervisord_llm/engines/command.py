"""What to run for a model: `vllm serve` with its arguments and its environment. Pure."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor
from pathlib import Path

from supervisord_llm.config.model import FlagValue, Model

MARKER = "LLM_SUPERVISOR_LAUNCH"
"""Every process of a launch inherits this variable; by its value a process that left the session is found."""

CPU_KV_CACHE_BYTES = 1024**3
"""The KV cache of a CPU engine whose `vram` is not a size. Left alone, vLLM claims 92% of the node's memory
and mostly fails to start."""

INHERITED = (
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LANGUAGE"),
    *("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH"),  # WSL2 and unusual driver or toolkit places
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
)
"""All that an engine sees of the supervisor's environment, besides LC_*."""

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
SCRATCH_VARIABLE = "VLLM_RPC_BASE_PATH"

MAX_SCRATCH = 107 - len("/01234567-89ab-cdef-0123-456789abcdef")
"""The path of a unix socket has at most 107 bytes; vLLM names its own by UUIDs."""

SECRET_WORDS = (
    *("KEY", "APIKEY", "TOKEN", "SECRET", "CREDENTIAL", "CREDENTIALS"),
    *("PASS", "PASSWD", "PASSWORD", "PASSPHRASE"),
)
_LOGIN = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
"""Of a URL."""


@dataclass(frozen=True, slots=True)
class Command:
    """A process to be: `env` is all of its environment, `settings` the names in it set on purpose."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    settings: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an engine runs and what the host is like: all that the config does not say."""

    executable: Path
    """`<venv>/bin/vllm`, or the program of the model's own command."""
    socket: Path
    port: int | None = None
    """On 127.0.0.1; None: it listens on `socket`."""
    weights: str = ""
    """For vLLM."""
    hub: Path
    """The Hugging Face cache that weights were downloaded to."""
    cache: Path
    """A directory of this model's own: compiled kernels and graphs."""
    scratch: Path
    """A directory of this launch's own: the sockets that vLLM's processes talk over. A short path."""
    gpus: tuple[int, ...] = ()
    gpu_memory_utilization: float | None = None
    """The grant as a fraction of each GPU's memory; None leaves vLLM's own default."""
    kv_bytes: int | None = None
    """The size of the KV cache on each GPU; None lets vLLM measure what is left of the grant for it."""
    adjusted: Mapping[str, int] = field(default_factory=dict)
    """Flags that win over the model's own: those ran out of memory."""
    extra_flags: Mapping[str, FlagValue] = field(default_factory=dict)
    """Flags that follow from the weights, where the model's own do not say otherwise."""
    marker: str = ""
    wsl: bool = False
    isolated: bool = False
    """No network but 127.0.0.1 is of use to it."""


def vllm_command(model: Model, place: Place, base_env: Mapping[str, str]) -> Command:
    """The command that serves `model` at `place`, seeing only what it needs of `base_env`."""
    flags = {kebab(name): value for name, value in model.flags.items()}
    flags |= {kebab(name): value for name, value in place.adjusted.items()}
    argv = [str(place.executable), "serve", place.weights, "--uds", str(place.socket)]
    argv += ["--served-model-name", model.name, *model.aliases]
    for name, value in (grant_flags(model, place, flags) | dict(place.extra_flags) | flags).items():
        argv += flag_words(name, value)
    settings = own_environment(model, place) | dict(model.env)
    path = f"{place.executable.parent}:{base_env.get('PATH', DEFAULT_PATH)}"
    env = inherited(base_env) | {"PATH": path} | settings
    return Command(tuple(argv), env, tuple(settings))


def inherited(base_env: Mapping[str, str]) -> dict[str, str]:
    """What an engine sees of the supervisor's environment."""
    return {name: value for name, value in base_env.items() if name in INHERITED or name.startswith("LC_")}


def grant_flags(model: Model, place: Place, flags: Mapping[str, FlagValue]) -> dict[str, FlagValue]:
    """The flags that follow from the grant and from sleeping, where `flags` does not say otherwise."""
    parallel = max(model.tensor_parallel, 1)
    chosen: dict[str, FlagValue] = {"tensor-parallel-size": parallel} if parallel > 1 else {}
    if place.gpus:
        if place.gpu_memory_utilization is not None:
            # Down, never up: vLLM refuses to start when less than this fraction is free.
            fraction = floor(place.gpu_memory_utilization * 10_000) / 10_000
            chosen["gpu-memory-utilization"] = f"{fraction:.4f}"
        if model.sleep_level > 0:  # vLLM on the CPU refuses it, and serves the endpoints all the same
            chosen["enable-sleep-mode"] = True
    elif "VLLM_CPU_KVCACHE_SPACE" not in model.env and "gpu-memory-utilization" not in flags:
        # vLLM on the CPU would ask for 92% of the host's memory and refuse to start without it.
        chosen["kv-cache-memory-bytes"] = model.vram if isinstance(model.vram, int) else CPU_KV_CACHE_BYTES
    if place.kv_bytes is not None:
        chosen["kv-cache-memory-bytes"] = place.kv_bytes
    return {name: value for name, value in chosen.items() if name not in flags}


def own_environment(model: Model, place: Place) -> dict[str, str]:
    """What the supervisor sets on purpose; `[models.X.env]` wins over it."""
    env = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in place.gpus),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(place.hub),
        "HF_HOME": str(place.cache / "huggingface"),
        "VLLM_CACHE_ROOT": str(place.cache / "vllm"),
        "TRITON_CACHE_DIR": str(place.cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(place.cache / "inductor"),
        "FLASHINFER_WORKSPACE_BASE": str(place.cache / "flashinfer"),
        "XDG_CACHE_HOME": str(place.cache),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # SIGABRT writes the stacks of all threads to the log
        MARKER: place.marker,
    }
    if len(str(place.scratch)) <= MAX_SCRATCH:  # else in /tmp, where a killed vLLM leaves them behind
        env[SCRATCH_VARIABLE] = str(place.scratch)
    if model.sleep_level > 0:
        env["VLLM_SERVER_DEV_MODE"] = "1"  # the endpoints of sleep mode; the gateway passes none of them on
    if place.isolated:
        env["VLLM_HOST_IP"] = "127.0.0.1"  # else that of the LAN, for its own processes to meet at
    if place.wsl:
        env["VLLM_WSL2_ENABLE_PIN_MEMORY"] = "1"  # off by default there; CPU offload and sleep want it
    return env


def kebab(name: str) -> str:
    return name.replace("_", "-")


def flag_words(name: str, value: FlagValue) -> list[str]:
    """One flag as argv words: --flag for true, --no-flag for false, JSON for a dict, several for a list."""
    match value:
        case True:
            return [f"--{name}"]
        case False:
            return [f"--no-{name}"]
        case list():
            return [f"--{name}", *(flag_text(item) for item in value)]
        case _:
            text = flag_text(value)
            return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def flag_text(value: FlagValue) -> str:
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)


def shell_line(command: Command) -> str:
    """The command as a line to paste in a shell. Values that look like secrets are left out."""
    words = [
        f"{name}={'***' if is_secret(name) else shlex.quote(command.env[name])}"
        for name in command.settings
        if name not in (MARKER, SCRATCH_VARIABLE)  # they end with the launch
    ]
    hidden = False
    for word in command.argv:
        flag, equals, _ = word.partition("=")
        if word.startswith("--") or (len(word) == 2 and word[0] == "-"):
            hidden = is_secret(flag)
            words.append(f"{flag}=***" if hidden and equals else shlex.quote(word))
        elif equals and flag.isidentifier() and is_secret(flag):  # as `env` has them
            words.append(f"{flag}=***")
        else:
            words.append("***" if hidden else shlex.quote(word))
    return _LOGIN.sub("***", " ".join(words))


def is_secret(name: str) -> bool:
    """By its name: API_KEY, --hf-token. (max-num-batched-tokens is not one.)"""
    words = name.upper().replace("-", "_").split("_")
    return any(word in SECRET_WORDS for word in words)
