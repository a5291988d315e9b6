"""check, plan, schema: look at the configuration and the host; a daemon is not needed."""

import argparse
import contextlib
import json
import sys
from typing import TYPE_CHECKING

from supervisord_llm.cli.command import CONFIG_INVALID, DONE, FAILED, Commands
from supervisord_llm.errors import ConfigError, SupervisorError

if TYPE_CHECKING:
    from supervisord_llm.cli.host import Fact
    from supervisord_llm.config.model import Config
    from supervisord_llm.gpu.sensor import GpuReading


def register(commands: Commands) -> None:
    """Add the commands."""
    commands.add(
        "check",
        _check,
        "validate the configuration, and whether this host can do what it says",
        json=True,
        details=(
            "ok    as it should be\n"
            "hint  works, and could be better\n"
            "bad   keeps a model or the daemon from working\n\n"
            "exit codes: 0 no `bad`, 1 some, 78 the configuration is invalid (every problem is printed)"
        ),
    )
    commands.add(
        "schema",
        _schema,
        "print the JSON Schema of the configuration, for editors",
        json=True,
        details="example: llm-supervisor schema > llm-supervisor.schema.json",
    )

    commands.add(
        "plan",
        _plan,
        "show what each model takes of the GPUs, what fits together, and why not",
        json=True,
        details=(
            "A running daemon tells how things stand. Without one it is worked out from the configuration,\n"
            "the GPUs, what was measured before, and what the weights or the hub tell of themselves."
        ),
    )


def _plan(args: argparse.Namespace) -> int:
    from supervisord_llm.cli import render_plan
    from supervisord_llm.cli.client import Unreachable
    from supervisord_llm.cli.locate import daemon_of
    from supervisord_llm.cli.terminal import look

    try:
        found = daemon_of(args.config).get("plan")
    except Unreachable:
        from supervisord_llm.cli.planning import local_plan
        from supervisord_llm.config.load import load

        found = local_plan(load(args.config, keys=False))
    print(json.dumps(found, indent=2) if args.json else render_plan.plan(found, look()))
    return DONE


def _schema(args: argparse.Namespace) -> int:
    from supervisord_llm.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return DONE


def _check(args: argparse.Namespace) -> int:
    from supervisord_llm.config.load import load

    try:
        config = load(args.config)
    except ConfigError as error:
        if args.json:
            print(json.dumps({"problems": [str(each) for each in error.problems]}, indent=2))
        else:
            print(*error.problems, sep="\n", file=sys.stderr)
        return CONFIG_INVALID
    found = checked(config, is_serving=_is_serving(config))
    if args.json:
        print(_as_json(config, found))
    else:
        _print(config, found)
    return FAILED if any(fact.level == "bad" for fact in found) else DONE


def checked(config: "Config", reading: "GpuReading | None" = None, *, is_serving: bool) -> "list[Fact]":
    """Everything that `check` says of a valid configuration; `reading` spares it a look at the GPUs."""
    import asyncio  # not for a glance, whose time it would double

    from supervisord_llm.cli import host
    from supervisord_llm.cli.classifiers import classifiers
    from supervisord_llm.cli.peers import peers
    from supervisord_llm.cli.planning import refusal
    from supervisord_llm.cli.rules import rules
    from supervisord_llm.config.checks.checks import warnings
    from supervisord_llm.gpu.watcher import look_once
    from supervisord_llm.provision.provisioner import Provisioner

    reading = asyncio.run(look_once()) if reading is None else reading
    provisioner = Provisioner(config, cuda=reading.may_have_gpus)

    found = [host.Fact("hint", "config", warning) for warning in warnings(config)]
    found += host.facts(
        config,
        reading,
        provisioner.facts,
        lambda model: refusal(config, provisioner, model),
        is_serving=is_serving,
        estimate=provisioner.estimate_local,
    )
    found += host.network(config, is_serving=is_serving)
    found += host.tools(config, provisioner.weights_of, provisioner.venv_of)
    found += classifiers(config, provisioner.max_model_len)
    found += rules(config, provisioner.max_model_len)
    found += peers(config, is_serving=is_serving)
    return found


def _is_serving(config: "Config") -> bool:
    from supervisord_llm.cli.client import Client

    with contextlib.suppress(SupervisorError):
        return bool(Client(config.paths.control_socket).get("status"))
    return False


def _as_json(config: "Config", found: "list[Fact]") -> str:
    facts = [{"level": fact.level, "where": fact.where, "text": fact.text} for fact in found]
    files = [str(file) for file in config.files]
    warnings = [fact["text"] for fact in facts if fact["level"] == "hint"]
    return json.dumps({"files": files, "problems": [], "facts": facts, "warnings": warnings}, indent=2)


def _print(config: "Config", found: "list[Fact]") -> None:
    from supervisord_llm.cli import render
    from supervisord_llm.cli.terminal import look
    from supervisord_llm.core.explain import count

    shown = look()
    for file in config.files:
        print(render.fact("ok", "config", f"{file} is valid", shown))
    for fact in found:
        print(render.fact(fact.level, fact.where, fact.text, shown))
    bad, hints = (sum(fact.level == level for fact in found) for level in ("bad", "hint"))
    print(f"\n{bad or 'nothing'} bad, {count(hints, 'hint')}" + ("; what is not bad works" if bad else ""))
