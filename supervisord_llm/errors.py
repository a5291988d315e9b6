"""Every exception that crosses a room's border.

SupervisorError
 ├─ ConfigError          the configuration is invalid; carries every problem (exit 78)
 ├─ Refused              a request will not be served; carries the code of the error table
 ├─ ProvisionError       a venv or weights cannot be had
 ├─ LaunchError          an engine cannot be started
 ├─ EngineError          a running engine does not do what it was told
 └─ AlreadyRunning       another daemon owns the runtime directory

Messages begin with "cannot" and end with a way out: people read them in a chat window or at 3 a.m.
"""

from collections.abc import Sequence
from typing import Protocol


class Problem(Protocol):
    """One mistake in the configuration, printable as one line."""

    def __str__(self) -> str: ...


class SupervisorError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(SupervisorError):
    """The configuration is invalid. `problems` holds all of them, not just the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class Refused(SupervisorError):
    """A request is turned away. `code` is `error.code` of the HTTP error table, `param` the blamed field."""

    def __init__(
        self, code: str, message: str, *, retry_after_s: float | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.param = param


class ProvisionError(SupervisorError):
    """A venv or weights cannot be had.

    `temporary`: trying again later may help (network, disk), as opposed to a fact that only a person
    can change (a missing path, broken weights, an unknown flag).
    """

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary


class LaunchError(SupervisorError):
    """An engine process cannot be started at all (no executable, fork refused, stale socket)."""


class EngineError(SupervisorError):
    """A running engine does not do what it was told: it will not sleep, wake or answer."""


class AlreadyRunning(SupervisorError):
    """Another daemon holds the lock of the runtime directory."""
