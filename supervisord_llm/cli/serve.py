"""serve"""

import argparse

from supervisord_llm.cli.command import Commands


def register(commands: Commands) -> None:
    """Add the command."""
    commands.add(
        "serve",
        _serve,
        "run the daemon in the foreground; logs go to stderr",
        details="SIGTERM drains and stops every engine; SIGHUP reads the configuration again.",
    )


def _serve(args: argparse.Namespace) -> int:
    from supervisord_llm import daemon

    return daemon.serve(args.config)
