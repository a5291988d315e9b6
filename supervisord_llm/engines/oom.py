"""Whether an engine died for want of memory, and of which: the GPU's, as its log tells, or the host's."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisord_llm.core.events import Cause

VMSTAT = Path("/proc/vmstat")

LOG_PREFIX = re.compile(r"^(\(\w+ pid=\d+\) )?((DEBUG|INFO|WARNING|ERROR|CRITICAL) \S+ \S+ \[[^\]]*\] ?)?")

# Anchored at the start of what was logged: a prompt that quotes such an error may be logged, too.
GPU_OOM = re.compile(
    r"""(?:[\w.]+(?:Error|Exception):\s)?  (?:Worker\ failed\ with\ error\ ')?
    (?: (?:torch(?:\.cuda)?\.)?OutOfMemoryError:
      | (?:CUDA|HIP|XPU)\ out\ of\ memory
      | (?:CUDA|HIP)(?:\ driver)?\ [Ee]rror:\ (?:out\ of\ memory|(?:CUBLAS|HIPBLAS)_STATUS_ALLOC_FAILED)
      | CUBLAS_STATUS_ALLOC_FAILED
      | Failed\ to\ load\ model\ -\ not\ enough\ GPU\ memory
      | \S+\ (?:\[\d+\]\ )?NCCL\ WARN\ Cuda\ failure\ (?:\d+\ )?'out\ of\ memory'
    )""",
    re.VERBOSE,
)
WORKER_DIED = re.compile(
    r"(?:Engine core|Worker) proc \S+ died unexpectedly|Failed core proc\(s\): \{.*: -9\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCount:
    """Processes that the kernel killed for want of memory since the launch; None where it does not tell."""

    of_engine: int | None
    on_host: int | None


def kills_on_host() -> int | None:
    """How many processes the kernel has killed for want of memory since boot; None before Linux 4.13."""
    try:
        lines = VMSTAT.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, StopIteration):
        return None


def gpu_oom_line(lines: Sequence[str]) -> str | None:
    """The first line, without its prefix, by which an engine says that GPU memory ran out."""
    texts = (LOG_PREFIX.sub("", line).strip() for line in lines)
    return next((text for text in texts if GPU_OOM.match(text)), None)


def cause_of(lines: Sequence[str], code: int | None, count: KernelCount, *, term: bool, kill: bool) -> Cause:
    """Why it ended, as far as memory goes.

    Args:
        lines: what it wrote in this launch.
        code: the leader's exit code.
        term: it was asked to end, so that its end has no cause.
        kill: we killed it, so that a SIGKILL tells nothing; what came before it still does.
    """
    if term and not kill:
        return Cause.OTHER
    if count.of_engine:
        return Cause.HOST_OOM
    killed = code == -signal.SIGKILL or any(WORKER_DIED.search(line) for line in lines)
    if count.of_engine is None and count.on_host and killed and not kill:
        return Cause.HOST_OOM  # all that can be said without a cgroup: somebody was killed while it ran
    return Cause.GPU_OOM if gpu_oom_line(lines) is not None else Cause.OTHER
