"""pull: build venvs and download weights in this process, without a daemon."""

import argparse
import sys
from typing import TYPE_CHECKING

from supervisord_llm.cli.command import DONE, FAILED, Commands
from supervisord_llm.errors import ConfigError, ProvisionError, SupervisorError

if TYPE_CHECKING:
    from pathlib import Path

    from supervisord_llm.config.model import Config
    from supervisord_llm.runtime.ports import Progress, Report


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "pull",
        _pull,
        "build venvs and download weights ahead of the first request",
        details="What is there already is left alone; what was interrupted goes on where it stopped.",
    )
    parser.add_argument("models", metavar="MODEL", nargs="*", help="names or aliases of models or routes")
    parser.add_argument("--all", action="store_true", help="every model of the configuration")
    parser.add_argument(
        "--requested", action="store_true", help="for units: the model that a socket on standard input names"
    )


def _pull(args: argparse.Namespace) -> int:
    if [bool(args.models), args.all, args.requested].count(True) != 1:
        args.parser.error("name the models to pull, or --all for every one")

    import asyncio

    if args.requested:
        return asyncio.run(_pull_requested(args.config))

    from supervisord_llm.cli.owner import become_owner
    from supervisord_llm.config.load import load

    config = load(args.config, keys=False)
    models = [model.name for model in config.with_engines] if args.all else _names(args, config)
    become_owner(config.paths.state)
    return asyncio.run(_pull_each(config, models))


def _names(args: argparse.Namespace, config: "Config") -> list[str]:
    """The models that the arguments name, each once; of a route its members.

    Raises:
        SupervisorError: there is none of a name. What a peer has is for its daemon to know.
    """
    from supervisord_llm.config.problem import did_you_mean, listing

    known, found = config.names, list[str]()
    for name in args.models:
        if name not in known and not any(name.startswith(f"{peer.name}/") for peer in config.peers):
            there = listing((*config.models, *config.routes), "and")
            hint = did_you_mean(name, known) or f"the configuration has {there}"
            raise SupervisorError(f"cannot find a model or route named {name!r}; {hint}")
        model = known.get(name, name)
        found += config.routes[model].members if model in config.routes else (model,)
    return list(dict.fromkeys(found))


async def _pull_each(config: "Config", models: list[str]) -> int:
    """One after the other: they share the network, the disk and most of what they install."""
    from supervisord_llm.cli.progress import ProgressLine
    from supervisord_llm.gpu.watcher import look_once
    from supervisord_llm.provision.provisioner import Provisioner

    provisioner = Provisioner(config, cuda=(await look_once()).may_have_gpus)
    code = DONE
    for name in models:
        model = config.models.get(name)
        with ProgressLine(name, sys.stdout) as line:
            if model is None or model.engine != "vllm":
                line.end("its engine has nothing to fetch")
                continue
            try:
                await provisioner.pull(name, line.report)
            except ProvisionError as problem:
                line.end("failed")
                print(problem, file=sys.stderr)
                code = FAILED
            else:
                line.end("weights are here" if model.adapter_of else "venv and weights are here")
    return code


async def _pull_requested(path: "Path | None") -> int:
    """What the daemon asks for over the socket that systemd gave us as standard input; see fetch_unit."""
    from supervisord_llm.cli.progress import ProgressLine
    from supervisord_llm.provision.fetch_unit import Requester

    requester = Requester(sys.stdin.fileno())
    name = await requester.asks_for()
    with ProgressLine(name, sys.stderr) as line:

        def report(step: "Progress") -> None:
            requester.report(step)
            line.report(step)

        return DONE if await requester.answer(lambda: _fetch(path, name, report)) else FAILED


async def _fetch(path: "Path | None", name: str, report: "Report") -> None:
    """
    Raises:
        ProvisionError: what is wrong with the name or the configuration, or what cannot be had.
    """
    from supervisord_llm.config.load import load
    from supervisord_llm.gpu.watcher import look_once
    from supervisord_llm.provision.provisioner import Provisioner

    try:
        config = load(path, keys=False)
    except ConfigError as error:
        more = f" and {len(error.problems) - 1} more" if error.problems[1:] else ""
        raise ProvisionError(
            f"cannot fetch {name!r}: the configuration is invalid ({error.problems[0]}{more}); "
            "correct it, and run llm-supervisor check"
        ) from error
    if name not in config.models:
        raise ProvisionError(
            f"cannot fetch {name!r}: the configuration has no such model; run llm-supervisor reload"
        )
    provisioner = Provisioner(config, cuda=(await look_once()).may_have_gpus)
    await provisioner.fetch(name, report)
