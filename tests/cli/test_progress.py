"""The progress line: into a pipe, and on a real pseudo-terminal."""

import io
import os
import pty

from supervisord_llm.cli.progress import ProgressLine
from supervisord_llm.runtime.ports import Progress

STEPS = [Progress("venv: resolving"), *(Progress("weights: downloading", each / 100) for each in range(101))]


def test_a_pipe_gets_a_line_for_each_phase_and_each_tenth() -> None:
    out = io.StringIO()
    with ProgressLine("coder", out) as line:
        for step in STEPS:
            line.report(step)
        line.report(Progress("venv: resolving"))  # said already
        line.report(Progress(""))  # a sign of life, no news
        line.end("done")
    tenths = "".join(f"coder  weights: downloading {tenth * 10}%\n" for tenth in range(11))
    assert out.getvalue() == f"coder  venv: resolving\n{tenths}coder  done\n"


def test_a_terminal_shows_the_latest_of_both_on_one_line_that_goes() -> None:
    ours, theirs = pty.openpty()
    with open(theirs, "w") as out:  # noqa: PTH123 - a descriptor
        with ProgressLine("coder", out) as line:
            line.report(Progress("venv: resolving"))
            line.report(Progress("weights: downloading", 0.5))
            line.end("done")
        shown = os.read(ours, 65536).decode()
    os.close(ours)
    erase = "\r\x1b[K"
    assert shown == (
        f"{erase}coder  venv: resolving"
        f"{erase}coder  venv: resolving  weights: downloading █████░░░░░  50%"
        f"{erase}coder  done\r\n"
    )


def test_a_line_that_was_not_ended_is_wiped() -> None:
    ours, theirs = pty.openpty()
    with open(theirs, "w") as out:  # noqa: PTH123 - a descriptor
        with ProgressLine("coder", out) as line:
            line.report(Progress("venv: resolving"))
        out.flush()
        shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert shown.endswith("\r\x1b[K")
