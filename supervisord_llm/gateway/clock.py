"""Loop time (monotonic seconds) as people read it."""

import asyncio
import time
from datetime import UTC, datetime


def iso(unix_s: float) -> str:
    """ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_of_loop_time(at: float) -> str:
    """The wall clock's reading at a loop time, as far as the clock was not set since."""
    return iso(time.time() - (asyncio.get_running_loop().time() - at))
