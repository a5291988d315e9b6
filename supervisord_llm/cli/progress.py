"""The progress of one model's provisioning: a line that is redrawn on a terminal, plain lines elsewhere.

Venv and weights are made at the same time. A phase begins with which of them it is about ("weights:
downloading"), and the line shows the latest of each.
"""

import os
from types import TracebackType
from typing import TextIO

from supervisord_llm.cli.render import bar, cut, percent
from supervisord_llm.runtime.ports import Progress

STEP = 0.1
"""Without a terminal, a line for each new phase and each tenth of it."""

ERASE = "\r\x1b[K"


class ProgressLine:
    """`coder  venv: installing ███░░░  54%  weights: …`. Leaving its context leaves no half a line behind."""

    def __init__(self, name: str, out: TextIO) -> None:
        self._name = name
        self._out = out
        self._redraws = out.isatty() and os.environ.get("TERM") != "dumb"
        self._latest: dict[str, Progress] = {}
        self._said: dict[str, tuple[str, int]] = {}
        self._is_open = False

    def report(self, progress: Progress) -> None:
        """Show a step of the work; one without a phase only says that it goes on."""
        if not progress.phase:
            return
        about = progress.phase.partition(": ")[0]
        if self._redraws:
            self._latest[about] = progress
            self._redraw()
            return
        tenth = int((progress.fraction or 0.0) / STEP + 1e-9)
        if self._said.get(about) != (progress.phase, tenth):
            self._said[about] = (progress.phase, tenth)
            self._line(progress.phase if progress.fraction is None else f"{progress.phase} {tenth * 10}%")

    def end(self, text: str) -> None:
        """Say how it ended, on a line that stays."""
        self._erase()
        self._line(text)

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._erase()

    def _redraw(self) -> None:
        parts = [self._name]
        for step in self._latest.values():
            gauge = "" if step.fraction is None else f" {bar(step.fraction, 10)} {percent(step.fraction):>4}"
            parts.append(step.phase + gauge)
        self._out.write(ERASE + cut("  ".join(parts), self._width() - 1))
        self._out.flush()
        self._is_open = True

    def _erase(self) -> None:
        if self._is_open:
            self._out.write(ERASE)
            self._is_open = False

    def _line(self, text: str) -> None:
        self._out.write(f"{self._name}  {text}\n")
        self._out.flush()

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._out.fileno()).columns or 80
        except OSError:
            return 80
