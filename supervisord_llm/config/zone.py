"""The host's own time zone: what "local" means where the configuration names no zone."""

import zoneinfo
from collections.abc import Mapping
from datetime import UTC, tzinfo
from pathlib import Path

LOCALTIME = Path("/etc/localtime")
"""A link into the database of zones, whose end is the zone's name: localtime(5)."""


def local_zone(environ: Mapping[str, str], localtime: Path = LOCALTIME) -> tzinfo:
    """$TZ, else what /etc/localtime leads to, else what it holds, else UTC, as libc has it. Never raises."""
    for name in (environ.get("TZ", "").removeprefix(":"), _linked(localtime)):
        if name:
            try:
                return zoneinfo.ZoneInfo(name)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                continue  # such as TZ=/a/file, or a link to a zone that is not in the database
    try:
        with localtime.open("rb") as file:
            return zoneinfo.ZoneInfo.from_file(file, key="local time")
    except (ValueError, OSError):
        return UTC


def _linked(localtime: Path) -> str:
    try:
        return str(localtime.resolve()).partition("/zoneinfo/")[2]
    except (OSError, RuntimeError):
        return ""
