"""The daemon's process: what it holds while daemons and programs in it take turns.

The lock before anything is touched, engines of an earlier run found or ended before anything is launched. An
upgrade executes the new program in this same process: children, listening sockets and lock stay as they are.
"""

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path

import supervisord_llm
from supervisord_llm.config.load import load
from supervisord_llm.config.model import Config
from supervisord_llm.daemon import Daemon, Process
from supervisord_llm.engines import cgroup, installed, network
from supervisord_llm.engines.adoption import find
from supervisord_llm.engines.tree import become_subreaper, reap_children
from supervisord_llm.errors import SupervisorError
from supervisord_llm.gateway.doors.listeners import Listeners
from supervisord_llm.gpu.watcher import look_once
from supervisord_llm.host import lock, low_limits, make, raise_open_files, start_threads
from supervisord_llm.program import Program, own_command
from supervisord_llm.steady import SteadyLoop
from supervisord_llm.systemd import activation
from supervisord_llm.systemd.activation import Passed, inherited
from supervisord_llm.systemd.notify import Notifier
from supervisord_llm.systemd.starts import Starts, hold_back
from supervisord_llm.telemetry.logging import configure as configure_logging

log = logging.getLogger("llm_supervisor.daemon")

PAUSE_S = 60.0
"""How long the next program may take until it gives its first sign of life."""


def check(config_path: Path | None) -> int:
    """Go as far as a start can without touching anything, and print the version. Returns the exit code.

    Raises:
        ConfigError: a start would raise it, too.
    """
    load(config_path)
    print(f"llm-supervisor {supervisord_llm.__version__}")  # noqa: T201 - for who asked
    return 0


def serve(config_path: Path | None) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns the exit code.

    Raises:
        ConfigError: nothing was started.
    """
    config = load(config_path)
    configure_logging(config.log_format)
    try:
        with asyncio.Runner(loop_factory=SteadyLoop) as runner:
            return runner.run(_run(config, config_path))
    except SupervisorError as error:
        log.error("%s", error)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        log.error("cannot run:%s: %s; check [paths], their owner and their disk", where, error.strerror)
    return 1


async def _run(config: Config, config_path: Path | None) -> int:
    notifier, passed, paths = Notifier(), inherited(), config.paths
    starts = Starts(paths.runtime / "starts")
    watch = asyncio.create_task(notifier.watch(), name="watchdog")
    try:
        if notifier.is_heard and not await hold_back(starts, notifier):
            return 0
        for directory in (paths.state, paths.cache, paths.runtime):
            make(directory)
        with starts.count(), lock(paths.runtime, passed.lock) as locked:
            become_subreaper()
            reap_children()
            raise_open_files()
            start_threads(asyncio.get_running_loop())
            cgroup_root = cgroup.delegated_root()
            if cgroup_root is not None:
                cgroup.settle_in(cgroup_root)
            process = Process(
                config_path=config_path,
                cgroup_root=cgroup_root,
                notifier=notifier,
                listeners=Listeners(passed.systemd, passed.listening),
                starts=starts,
                program=Program(own_command()),
            )
            try:
                return await _take_turns(config, process, passed.names, locked)
            finally:
                process.listeners.close_all_but(())
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        notifier.close()


async def _take_turns(config: Config, process: Process, names: str, locked: int) -> int:
    """One daemon; after it, if it is asked to, another program in its place. Returns the exit code."""
    failure = ""
    while True:
        found, reading, reach = await asyncio.gather(
            find(config, process.cgroup_root), look_once(), asyncio.to_thread(network.look, os.environ)
        )
        for sentence in low_limits(has_gpus=reading.may_have_gpus):
            log.warning("%s", sentence)
        daemon = Daemon(config, reading, reach, process, upgrade_failure=failure)
        code = await daemon.run(found)
        if not daemon.is_replaced:
            return code
        failure = _execute(process, names, locked)
        log.error("%s", failure)
        config = daemon.config
        installed.abandoned.clear()


def _execute(process: Process, names: str, locked: int) -> str:
    """Become the new program; why not, if not."""
    listeners = process.listeners
    passed = Passed(systemd=listeners.systemd, names=names, listening=listeners.ours, lock=locked)
    log.info("executes %s", " ".join(process.program.command))
    process.notifier.pausing(PAUSE_S)
    try:
        process.program.execute(os.environ | activation.pass_on(passed))
    except OSError as error:
        activation.keep(passed)
        process.notifier.resuming()
        return (
            f"cannot upgrade: {process.program.command[0]} cannot be executed: {error.strerror}; "
            "the old version goes on; install it again"
        )
