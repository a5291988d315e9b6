"""Why an engine ended, in one sentence for people: its exit code and the root cause in its log. Pure."""

import re
import signal
from collections.abc import Sequence

from supervisord_llm.core.events import Cause
from supervisord_llm.engines.oom import LOG_PREFIX, gpu_oom_line

MAX_QUOTE = 300

HOST_OOM = (
    "the kernel's OOM killer ended it: main memory ran out; "
    "lower [host] ram_budget, choose a smaller model, or end what else uses main memory"
)
GPU_OOM_ADVICE = "raise the model's `vram`, or lower max-model-len or max-num-seqs"

CAUSES = (
    # What to look for, and what to do about it. The first row that matches any line wins.
    (r"unrecognized arguments: (?P<found>.+)", "remove or correct it under `flags`"),
    (r"error: (?P<found>argument .+)", "correct it under `flags`"),
    (
        r"(?P<found>.*Free memory on device .* is less than desired)",
        "free that memory or lower the model's `vram`",
    ),
    (r"(?P<found>Available memory on node .* is less than desired)", "set flags.kv-cache-memory-bytes"),
    (r"(?P<found>Error in memory profiling)", "another process freed GPU memory meanwhile: start it again"),
    (r"(?P<found>.*out of memory.*)", GPU_OOM_ADVICE),
    (
        r"(?P<found>No available memory for the cache blocks)",
        "raise the model's `vram` or lower max-model-len",
    ),
    (
        r"(?P<found>To serve at least one request with .*?)(?:\. Try |$)",
        "lower max-model-len or raise the model's `vram`",
    ),
    (r"(?P<found>User-specified max_model_len .*)", "lower flags.max-model-len"),
    (r"(?P<found>Model architectures \[.*?\] are not supported)", "use a newer vLLM in the model's `venv`"),
    (
        r"SafetensorError: (?P<found>.*)",
        "the weights are damaged: fetch them again with `llm-supervisor pull`",
    ),
    (r"(?P<found>Cannot find any model weights with .*)", "check `source`: it holds no weights"),
    (
        r"(?P<found>Cannot find an appropriate cached snapshot)",
        "fetch the weights with `llm-supervisor pull`",
    ),
    (r"HFValidationError: (?P<found>.*)", "check `source`: the directory is missing"),
    (r"(?P<found>invalid tool call parser: .*)", "correct flags.tool-call-parser"),
    (r"(?P<found>.*chat template string .* appears path-like.*)", "correct flags.chat-template"),
    (
        r"(?P<found>operator torchvision::nms does not exist)",
        "torchvision does not fit torch: rebuild the venv",
    ),
    (
        r"ModuleNotFoundError: (?P<found>No module named .*)",
        "a package is missing: add it to the venv's requirements",
    ),
    (r"\[Errno 28\] (?P<found>No space left on device)", "free disk space under the cache directory"),
    (r"(?P<found>Address already in use)", "another process holds the engine's address"),
    (r"Value error, (?P<found>.+?)(?: \[type=|$)", "correct the model's `flags` or `source`"),
)
CAUSE_TABLE = tuple((re.compile(pattern), advice) for pattern, advice in CAUSES)

IN_USE = re.compile(r"address (?:is )?already in use|EADDRINUSE|couldn't bind|cannot bind", re.IGNORECASE)
PYTHON_ERROR = re.compile(r"^\s*([\w.]*(?:Error|Exception|Interrupt))(: |$)")
ROOT_CAUSE = "EngineCore failed to start"  # the traceback after the first of these tells
HINDSIGHT = "Engine core initialization failed"  # vLLM's last error, which only points at the first one


def diagnose(lines: Sequence[str], code: int | None, known: Cause = Cause.OTHER) -> str:
    """How it ended and, where the log tells, why and what to do: "exited with code 1: ...; lower ..."."""
    if known is Cause.HOST_OOM:
        return HOST_OOM
    ending = ending_of(code)
    if (line := gpu_oom_line(lines)) is not None:
        return f"{ending}: ran out of GPU memory ({quote(line)}); {GPU_OOM_ADVICE}"
    if code in (0, -signal.SIGKILL):
        return ending if (cause := known_cause(lines)) is None else f"{ending}: {cause}"
    cause = known_cause(lines) or first_error(lines)
    return f"{ending}: {cause}" if cause else ending


def diagnose_other(lines: Sequence[str], code: int | None, known: Cause = Cause.OTHER) -> str:
    """The same for a server whose log is not vLLM's: a cause that all have, else what it said last."""
    if known is Cause.HOST_OOM:
        return HOST_OOM
    ending = ending_of(code)
    if (line := gpu_oom_line(lines)) is not None:
        advice = "raise the model's `vram`, or have its `command` take less"
        return f"{ending}: ran out of GPU memory ({quote(line)}); {advice}"
    if (taken := next((line for line in lines if IN_USE.search(line)), None)) is not None:
        return f"{ending}: {quote(taken)}; somebody took its port, and the next start takes another one"
    told = first_error(lines) or next((quote(line) for line in reversed(lines) if line.strip()), None)
    return f"{ending}: {told}; see its `command`" if told and code != 0 else ending


def ending_of(code: int | None) -> str:
    """The exit code as words."""
    match code:
        case None:
            return "ended, and its exit code could not be learnt (an earlier run of the daemon started it)"
        case 0:
            return "exited with code 0 although nobody asked"
        case _ if code == -signal.SIGKILL:
            return "was killed by SIGKILL (perhaps the kernel's OOM killer: see dmesg)"
        case _ if code < 0:
            return f"was killed by {signal_name(-code)}"
        case _:
            return f"exited with code {code}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def known_cause(lines: Sequence[str]) -> str | None:
    """The first row of the table that matches: the line's telling part, and what to do."""
    for pattern, advice in CAUSE_TABLE:
        for line in lines:
            if found := pattern.search(line):
                return f"{quote(found['found'])}; {advice}"
    return None


def first_error(lines: Sequence[str]) -> str | None:
    """The first line of a Python exception that is not mere hindsight; vLLM's root cause comes first."""
    start = next((index for index, line in enumerate(lines) if ROOT_CAUSE in line), 0)
    for line in lines[start:]:
        text = LOG_PREFIX.sub("", line)
        if PYTHON_ERROR.match(text) and HINDSIGHT not in text:
            return quote(text)
    return None


def quote(text: str) -> str:
    text = LOG_PREFIX.sub("", text).strip().rstrip(".")
    return text if len(text) <= MAX_QUOTE else text[: MAX_QUOTE - 1] + "…"
