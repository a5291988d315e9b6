"""pull: build venvs and download weights in this process, without a daemon."""

import argparse
import sys
from typing import TYPE_CHECKING

from supervisord_llm.cli.command import DONE, FAILED, Commands
from supervisord_llm.errors import ProvisionError

if TYPE_CHECKING:
    from supervisord_llm.config.model import Config


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "pull",
        _pull,
        "build venvs and download weights ahead of the first request",
        details="What is there already is left alone; what was interrupted goes on where it stopped.",
    )
    parser.add_argument("models", metavar="MODEL", nargs="*", help="names or aliases of models")
    parser.add_argument("--all", action="store_true", help="every model of the configuration")


def _pull(args: argparse.Namespace) -> int:
    if bool(args.models) == args.all:
        args.parser.error("name the models to pull, or --all for every one")

    import asyncio

    from supervisord_llm.config.load import load

    config = load(args.config, keys=False)
    models = list(config.models) if args.all else _names(args, config)
    return asyncio.run(_pull_each(config, models))


def _names(args: argparse.Namespace, config: "Config") -> list[str]:
    """The models that the arguments name, each once."""
    from supervisord_llm.config.problem import did_you_mean, listing

    known = {alias: model.name for model in config.models.values() for alias in model.aliases}
    known |= {name: name for name in config.models}
    for name in args.models:
        if name not in known:
            hint = did_you_mean(name, known) or f"the configuration has {listing(config.models, 'and')}"
            args.parser.error(f"cannot find a model named {name!r}; {hint}")
    return list(dict.fromkeys(known[name] for name in args.models))


async def _pull_each(config: "Config", models: list[str]) -> int:
    """One after the other: they share the network, the disk and most of what they install."""
    from supervisord_llm.cli.progress import ProgressLine
    from supervisord_llm.gpu.watcher import look_once
    from supervisord_llm.provision.provisioner import Provisioner

    provisioner = Provisioner(config, cuda=(await look_once()).may_have_gpus)
    code = DONE
    for name in models:
        with ProgressLine(name, sys.stdout) as line:
            try:
                await provisioner.pull(name, line.report)
            except ProvisionError as problem:
                line.end("failed")
                print(problem, file=sys.stderr)
                code = FAILED
            else:
                line.end("venv and weights are here")
    return code
