"""How far a serving engine has come, by its own metrics: a hung vLLM answers /health with 200 for hours."""

import contextlib
import math
from collections.abc import Iterator

from supervisord_llm.engines.ask import ask
from supervisord_llm.errors import EngineError
from supervisord_llm.runtime.ports import Backend, Progressing

RUNNING = ("vllm:num_requests_running", "vllm:num_requests_waiting")
TOKENS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count")
"""Counters; the last one, steps of the engine, moves where a step makes no token for anybody."""

NO_SUCH_PAGE = (404, 405, 501)


async def progressing(backend: Backend) -> Progressing | None:
    """What GET /metrics tells; None where there is no such page, or not vLLM's: that is for good.

    Raises:
        EngineError: it did not answer with the page this time.
        aiohttp.ClientError, OSError: no answer.
    """
    answer = await ask(backend, "GET", "/metrics")
    if answer.status in NO_SUCH_PAGE:
        return None
    if answer.status != 200:
        raise EngineError(f"cannot read the metrics of an engine: it answered {answer}; see its log")
    return read(answer.body)


def read(page: bytes) -> Progressing | None:
    """Only the lines that count are looked at: a page has 100 KB, of which the relay's loop feels nothing."""
    running = [value for name in RUNNING for value in samples(page, name)]
    if not running:
        return None
    return Progressing(int(sum(running)), sum(value for name in TOKENS for value in samples(page, name)))


def samples(page: bytes, name: str) -> Iterator[float]:
    """Every value of a metric, one for each set of labels."""
    head = f"\n{name}".encode()
    page = b"\n" + page  # the first line has no other before it
    start = page.find(head)
    while start >= 0:
        end = page.find(b"\n", start + 1)
        line = page[start : end if end >= 0 else len(page)]
        if line[len(head) : len(head) + 1] in (b"{", b" "):  # not a longer name
            with contextlib.suppress(ValueError):
                value = float(line.rsplit(b" ", 1)[-1])
                if math.isfinite(value):
                    yield value
        start = page.find(head, start + 1)
