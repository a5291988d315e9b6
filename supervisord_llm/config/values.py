"""The kinds of single values: sizes, shares, durations, rates, words, paths, addresses, names."""

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from supervisord_llm.config.kinds import JsonSchema, Key, Unreadable, Value
from supervisord_llm.config.model import Address, Rate, Share
from supervisord_llm.config.problem import did_you_mean, listing, quoted

# --- sizes, shares, durations, rates ----------------------------------------------------------

SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_SIZE = rf"({_NUMBER}) ?({'|'.join(SIZE_UNITS)})"
_SHARE = rf"({_NUMBER}) ?%"
_DURATION = rf"({_NUMBER}) ?({'|'.join(DURATION_UNITS)})"
_RATE = r"([1-9][0-9]{0,8}) ?/ ?([smhd])"


def _match(pattern: str, raw: object) -> re.Match[str]:
    found = re.fullmatch(pattern, raw, re.ASCII) if isinstance(raw, str) else None
    if found is None:
        raise Unreadable
    return found


def _text_schema(pattern: str) -> JsonSchema:
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def read_size(raw: object) -> int:
    """Bytes of `"10GiB"`, `"24GB"` or a whole number."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        size = raw
    else:
        number, unit = _match(_SIZE, raw).groups()
        size = round(float(number) * SIZE_UNITS[unit]) if "." in number else int(number) * SIZE_UNITS[unit]
    if size < 0:
        raise Unreadable
    return size


def _read_positive_size(raw: object) -> int:
    size = read_size(raw)
    if size == 0:
        raise Unreadable
    return size


def read_share(raw: object) -> Share:
    """`"90%"` is Share(0.9); more than nothing, at most all of it."""
    percent = float(_match(_SHARE, raw)[1])
    if not 0 < percent <= 100:
        raise Unreadable("it is out of range, which is above 0% and up to 100%")
    return Share(percent / 100)


def read_duration(raw: object) -> float:
    """Seconds of `"30s"`, `"5m"`, `"1h"`, `"7d"`, `"500ms"` or a number."""
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        seconds = float(raw)
    else:
        number, unit = _match(_DURATION, raw).groups()
        seconds = float(number) * DURATION_UNITS[unit]
    if not (math.isfinite(seconds) and seconds >= 0):
        raise Unreadable
    return seconds


def _read_positive_duration(raw: object) -> float:
    seconds = read_duration(raw)
    if seconds == 0:
        raise Unreadable
    return seconds


def read_duration_range(raw: object) -> tuple[float, float]:
    """`"2s..60s"` is (2.0, 60.0): from the first wait to the longest."""
    if not isinstance(raw, str) or raw.count("..") != 1:
        raise Unreadable
    first, last = (_read_positive_duration(end.strip()) for end in raw.split(".."))
    if first > last:
        raise Unreadable("the first is longer than the last")
    return first, last


def read_rate(raw: object) -> Rate:
    """`"100/s"`, `"60/m"`, `"1000/h"` or `"5000/d"`."""
    count, unit = _match(_RATE, raw).groups()
    return Rate(int(count), DURATION_UNITS[unit])


SIZE = Value(
    accepts='a size such as "10GiB" or a number of bytes',
    schema={"anyOf": [_text_schema(_SIZE), {"type": "integer", "minimum": 0}]},
    read=read_size,
    suffix="_bytes",
)
POSITIVE_SIZE = Value(
    accepts='a size such as "10GiB"',
    schema={"anyOf": [_text_schema(_SIZE), {"type": "integer", "minimum": 1}]},
    read=_read_positive_size,
    suffix="_bytes",
)
SHARE = Value(accepts='a share such as "90%"', schema=_text_schema(_SHARE), read=read_share)
DURATION = Value(
    accepts='a duration such as "30s", "5m" or "1h", or a number of seconds',
    schema={"anyOf": [_text_schema(_DURATION), {"type": "number", "minimum": 0}]},
    read=read_duration,
    suffix="_s",
)
POSITIVE_DURATION = Value(
    accepts='a duration above zero such as "30s", "5m" or "1h", or a number of seconds',
    schema={"anyOf": [_text_schema(_DURATION), {"type": "number", "exclusiveMinimum": 0}]},
    read=_read_positive_duration,
    suffix="_s",
)
DURATION_RANGE = Value(
    accepts='two durations such as "2s..60s"',
    schema=_text_schema(rf"{_DURATION} ?\.\. ?{_DURATION}"),
    read=read_duration_range,
    suffix="_s",
)
RATE = Value(accepts='a rate such as "100/s", "60/m" or "1000/h"', schema=_text_schema(_RATE), read=read_rate)

# --- plain values ----------------------------------------------------------


def text(accepts: str, pattern: str = r"\S(?:.*\S)?", *, secret: bool = False) -> Value:
    """A string that matches `pattern` as a whole; by default not empty and not padded."""

    def read(raw: object) -> str:
        return _match(pattern, raw)[0]

    return Value(accepts=accepts, schema=_text_schema(pattern), read=read, secret=secret)


def choice(*words: str) -> Value:
    """One of `words`."""

    def read(raw: object) -> str:
        if isinstance(raw, str) and raw in words:
            return raw
        raise Unreadable("", did_you_mean(raw, words) if isinstance(raw, str) else "")

    return Value(accepts=listing(map(quoted, words)), schema={"enum": list(words)}, read=read)


def whole(at_least: int) -> Value:
    """A whole number, `at_least` or more."""

    def read(raw: object) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool) or raw < at_least:
            raise Unreadable
        return raw

    return Value(
        accepts=f"a whole number, {at_least} or more",
        schema={"type": "integer", "minimum": at_least},
        read=read,
    )


def _read_integer(raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise Unreadable
    return raw


def _read_bool(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise Unreadable
    return raw


def _read_false(raw: object) -> None:
    if raw is not False:
        raise Unreadable


def _read_anything(raw: object) -> object:
    return raw


INTEGER = Value(accepts="a whole number", schema={"type": "integer"}, read=_read_integer)
BOOL = Value(accepts="true or false", schema={"type": "boolean"}, read=_read_bool)
FALSE = Value(accepts="false", schema={"const": False}, read=_read_false)
ANYTHING = Value(accepts="anything", schema={}, read=_read_anything)

# --- places ----------------------------------------------------------


def _read_path(raw: object) -> Path:
    if not isinstance(raw, str) or not raw or "\0" in raw:
        raise Unreadable
    if raw.startswith("~"):
        raise Unreadable("a daemon has no home directory to count on", "write the path from / on")
    return Path(raw)


def read_address(raw: object) -> Address:
    """`host:port`, `[v6]:port`, or `unix:/path`; a port alone would hide which interface it opens."""
    if isinstance(raw, str) and raw.startswith("unix:"):
        path = Path(raw.removeprefix("unix:"))
        if not path.is_absolute():
            raise Unreadable("the socket's path does not begin with /")
        return Address(path=path)
    bracketed, plain, port = _match(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:\[\]/]+)):([0-9]{1,5})", raw).groups()
    if int(port) > 65535:
        raise Unreadable("a port is at most 65535")
    return Address(bracketed or plain, int(port))


PATH = Value(accepts="a path", schema={"type": "string", "minLength": 1}, read=_read_path)
ADDRESS = Value(
    accepts='an address such as "0.0.0.0:8000", "[::1]:8000" or "unix:/run/llm.sock"',
    schema=_text_schema(r"(unix:/.+|\[[^\]\s]+\]:[0-9]{1,5}|[^\s:/\[\]]+:[0-9]{1,5})"),
    read=read_address,
)


def names(
    accepts: str, pattern: str, read: Callable[[str], str] = str, *, refused: Iterable[str] = ()
) -> Value:
    """What the keys of a MapOf may be; `read` gives a name its one true spelling, or refuses it with reasons.

    `refused` tells editors which names `read` turns down.
    """

    def read_name(raw: object) -> str:
        spelled = read(raw) if isinstance(raw, str) else raw
        return _match(pattern, spelled)[0]

    schema = _text_schema(pattern)
    if refused:
        schema["not"] = {"enum": sorted(refused)}
    return Value(accepts=accepts, schema=schema, read=read_name)


def later(name: str, doc: str) -> Key:
    """A setting that is known, documented and refused: its turn has not come yet."""
    return Key(name=name, kind=ANYTHING, doc=doc, supported=False)
