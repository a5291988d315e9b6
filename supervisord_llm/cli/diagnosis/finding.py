"""One thing that `doctor` looked at: how it is, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A `problem` keeps something from working, a `warning` does not, or could not be looked at."""

    level: Level
    what: str
    text: str
    mend: str = ""
    """What to do, as a clause; commands to paste are in backticks."""
