"""doctor: looks at the host and the way in, and names each problem with what mends it."""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from supervisord_llm.cli.command import CONFIG_INVALID, DONE, FAILED, Commands

if TYPE_CHECKING:
    from supervisord_llm.cli.diagnosis.finding import Finding
    from supervisord_llm.cli.examination.configuration import Configured

    Groups = Iterable[tuple[str, Iterable[Finding]]]


def register(commands: Commands) -> None:
    """Add the command."""
    commands.add(
        "doctor",
        _doctor,
        "look for what is wrong with the host and the installation, and tell what mends it",
        json=True,
        details=(
            "ok       as it should be\n"
            "warning  works and could be better, or cannot be seen by this user\n"
            "problem  keeps something from working\n\n"
            "It changes nothing. What `check` finds is part of it.\n"
            "exit codes: 0 no `problem`, 1 some, 78 the configuration is invalid"
        ),
    )


def _doctor(args: argparse.Namespace) -> int:
    from supervisord_llm.cli.examination.configuration import read_configuration
    from supervisord_llm.cli.examination.units import is_installed

    configured = read_configuration(args.config, is_installed=is_installed())
    groups = _groups(args.config, configured)
    found = _as_json(groups) if args.json else _print(groups)
    if configured.is_invalid:
        return CONFIG_INVALID
    return FAILED if any(finding.level == "problem" for finding in found) else DONE


def _groups(path: Path | None, configured: "Configured") -> "Iterator[tuple[str, Iterable[Finding]]]":
    """Each group as soon as it is known: a driver or a bus that hangs takes seconds."""
    import asyncio

    from supervisord_llm.cli.diagnosis import daemon, gpu, host, network, systemd, wsl
    from supervisord_llm.cli.examination.configuration import missing_weights, see_configuration
    from supervisord_llm.cli.examination.daemon import see_daemon
    from supervisord_llm.cli.examination.gpu import see_driver
    from supervisord_llm.cli.examination.host import see_host
    from supervisord_llm.cli.examination.network import open_ports, see_network
    from supervisord_llm.cli.examination.units import ports_of, see_units, user_of
    from supervisord_llm.cli.examination.wsl import see_wsl
    from supervisord_llm.cli.locate import control_socket
    from supervisord_llm.gpu.watcher import look_once

    config = configured.config
    windows = see_wsl()
    is_wsl = windows is not None
    units = see_units(is_wsl=is_wsl)
    user = user_of(units, path)
    ports = ports_of(units.socket) if units.has_socket else open_ports(config.server.listen if config else ())
    if windows is not None:
        yield "WSL", wsl.findings(windows, ports)
    yield "systemd", systemd.findings(units)
    answering, pid = see_daemon(control_socket(path), units)
    yield "daemon", daemon.findings(answering)
    reading = asyncio.run(look_once())
    yield "GPU", gpu.findings(see_driver(reading, user, is_wsl=is_wsl))
    seen = see_host(config, configured.paths, user, pid, gpus=len(reading.gpus), is_wsl=is_wsl)
    yield "host", host.findings(seen)
    around = see_network(ports, missing_weights(config), is_service=answering.is_service)
    yield "network", network.findings(around)
    is_serving = bool(answering.running) or answering.is_forbidden
    yield "configuration", see_configuration(configured, reading, units, user, is_serving=is_serving)


def _print(groups: "Groups") -> "list[Finding]":
    from supervisord_llm.cli import render
    from supervisord_llm.cli.terminal import look
    from supervisord_llm.core.explain import count

    found: list[Finding] = []
    shown = look()
    for name, findings in groups:
        listed = list(findings)
        if listed:
            print(name)
        for each in listed:
            print(render.finding(each.level, each.what, each.text, each.mend, shown), flush=True)
        found += listed
    problems, warnings = (sum(each.level == level for each in found) for level in ("problem", "warning"))
    print(f"\n{count(problems, 'problem') if problems else 'no problem'}, {count(warnings, 'warning')}")
    return found


def _as_json(groups: "Groups") -> "list[Finding]":
    found = [(name, each) for name, findings in groups for each in findings]
    told = [{"group": name, **asdict(each)} for name, each in found]
    print(json.dumps({"findings": told}, indent=2))
    return [each for _, each in found]
