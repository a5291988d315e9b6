"""`llm-supervisor COMMAND`: arguments in, exit code out.

Exit codes: 0 done, 1 failed, 2 wrong usage, 78 the configuration is invalid; 130 after Ctrl-C and 141 when
the reader of a pipe is gone, as the shell reports for both signals.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import supervisord_llm
from supervisord_llm.cli import (
    client_config,
    control,
    doctor,
    fetch,
    inspect,
    keys,
    observe,
    schedule,
    serve,
    upgrade,
)
from supervisord_llm.cli.command import CONFIG_INVALID, FAILED, Commands
from supervisord_llm.errors import ConfigError, SupervisorError

INTERRUPTED = 130
PIPE_CLOSED = 141

EPILOG = """\
examples:
  llm-supervisor check                 is the configuration right, and does it fit this host?
  llm-supervisor doctor                what is wrong with this host, and what mends it?
  llm-supervisor plan                  which models fit the GPUs, which fit together, and why not?
  llm-supervisor pull --all            build venvs and download weights ahead of the first request
  llm-supervisor status --watch        what runs now, redrawn each second
  llm-supervisor logs coder -f         follow what the engine of `coder` writes

exit codes: 0 done, 1 failed, 2 wrong usage, 78 the configuration is invalid
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the character shows a "?"
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()  # here, where a closed pipe is expected
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return CONFIG_INVALID
    except SupervisorError as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code


def parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    root = argparse.ArgumentParser(
        prog="llm-supervisor",
        description="Launches vLLM engines on demand behind one OpenAI-compatible API.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"llm-supervisor {supervisord_llm.__version__}")
    root.add_argument("--config", metavar="PATH", type=Path, default=None, help="the configuration to use")
    commands = Commands(root.add_subparsers(metavar="COMMAND", required=True))
    for group in (serve, inspect, doctor, observe, control, schedule, upgrade, fetch, keys, client_config):
        group.register(commands)
    return root
