"""The size of the KV cache, as vLLM tells it while it starts. Pure.

Given back at the next start as --kv-cache-memory-bytes, it spares the measuring, which neighbours disturb.
"""

import re

GIB = 1024**3
ROUNDING_BYTES = GIB // 200
"""Half of the last digit shown."""

EXACT = re.compile(r"--kv-cache-memory(?:-bytes)?=(\d+)`? \([\d.]+ GiB\) to fit into requested memory")
"""vLLM's own advice, once graphs are captured: what fits into its share. The other figure of that line, "to
fully utilize gpu memory", takes the neighbours' memory as well."""

ROUNDED = re.compile(r"Available KV cache memory: (\d+(?:\.\d+)?) GiB")


class KvCacheSize:
    """Reads it from the lines of one launch. Workers tell one size each; the least holds for all."""

    def __init__(self) -> None:
        self._exact: int | None = None
        self._rounded: int | None = None

    def read(self, line: str) -> None:
        if "KV cache memory: " not in line and "--kv-cache-memory" not in line:
            return
        if found := EXACT.search(line):
            self._exact = least(self._exact, int(found[1]))
        elif found := ROUNDED.search(line):
            self._rounded = least(self._rounded, int(float(found[1]) * GIB) - ROUNDING_BYTES)

    @property
    def bytes(self) -> int | None:
        """On each GPU; the advice if there was one, else a little less than the rounded figure."""
        size = self._rounded if self._exact is None else self._exact
        return size if size is not None and size > 0 else None


def least(known: int | None, new: int) -> int:
    return new if known is None else min(known, new)
