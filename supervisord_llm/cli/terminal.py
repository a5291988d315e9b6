"""What stdout is: a terminal of some width, or a pipe."""

import os
import sys

from supervisord_llm.cli.render import Look


def look() -> Look:
    """Nothing is cut or coloured for a pipe; $NO_COLOR and TERM=dumb turn colours off."""
    if not sys.stdout.isatty():
        return Look()
    try:
        width = os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        width = None
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return Look(width, color=not plain)
