"""serve"""

import argparse

from supervisord_llm.cli.command import Commands


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "serve",
        _serve,
        "run the daemon in the foreground; logs go to stderr",
        details="SIGTERM drains and stops every engine; SIGHUP reads the configuration again.",
    )
    parser.add_argument(
        "--check", action="store_true", help="only tell whether it would start with this configuration"
    )


def _serve(args: argparse.Namespace) -> int:
    import gc

    gc.disable()  # what is imported stays: to look through it again and again takes a tenth of a start
    from supervisord_llm import process

    gc.freeze()
    gc.enable()
    return process.check(args.config) if args.check else process.serve(args.config)
