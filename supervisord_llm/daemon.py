"""The composition root: builds the parts, brings them up in order, listens to signals, takes them down.

The only place that joins rooms. Order matters in both directions: the lock before anything is touched,
orphans swept before anything is launched, listeners bound before READY is told; on the way down listeners
answer 503 until the last engine is gone.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil

from supervisord_llm import __version__
from supervisord_llm.config.checks import warnings
from supervisord_llm.config.load import load
from supervisord_llm.config.model import Config
from supervisord_llm.core.events import (
    ConfigChanged,
    EngineAdopted,
    EngineExited,
    EngineReady,
    Estimated,
    Event,
    GpusSampled,
)
from supervisord_llm.core.explain import gib
from supervisord_llm.core.fleet import Fleet, Gpu, GpuSample, ModelSpec, Policy
from supervisord_llm.core.state import State
from supervisord_llm.engines import cgroup, installed
from supervisord_llm.engines.adoption import Verdict, find
from supervisord_llm.engines.launcher import VllmLauncher
from supervisord_llm.engines.preflight import preflight
from supervisord_llm.engines.records import Record
from supervisord_llm.engines.tree import become_subreaper, reap_orphans
from supervisord_llm.errors import ConfigError, LaunchError, SupervisorError
from supervisord_llm.gateway.app import Gateway
from supervisord_llm.gateway.doors import Doors
from supervisord_llm.gateway.relay import Upstreams
from supervisord_llm.gpu.budget import budgets, policy
from supervisord_llm.gpu.learnt import LearntStore
from supervisord_llm.gpu.sampler import Sampler
from supervisord_llm.gpu.sensor import GpuReading
from supervisord_llm.gpu.specs import model_specs
from supervisord_llm.gpu.watcher import look_once
from supervisord_llm.host import lock, make, mark, raise_open_files
from supervisord_llm.provision.provisioner import Provisioner
from supervisord_llm.provision.weights import hub_cache
from supervisord_llm.runtime.loop import Runtime
from supervisord_llm.runtime.tasks import Tasks
from supervisord_llm.systemd.activation import inherited_sockets
from supervisord_llm.systemd.notify import Notifier, watchdog_interval_s
from supervisord_llm.telemetry.logging import configure as configure_logging
from supervisord_llm.telemetry.recorder import Recorder

log = logging.getLogger("llm_supervisor.daemon")

STOP_TIMEOUT_S = 30.0
"""Beyond the drain: SIGTERM, its patience, SIGKILL and reaping."""

REAP_INTERVAL_S = 10.0
FIRST_LOOK_S = 6.0
"""A driver that hangs longer is looked at in the background."""


def serve(config_path: Path | None) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns the exit code.

    Raises:
        ConfigError: nothing was started.
    """
    config = load(config_path)
    configure_logging(config.log_format)
    try:
        return asyncio.run(_run(config, config_path))
    except SupervisorError as error:
        log.error("%s", error)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        log.error("cannot run:%s: %s; check [paths], their owner and their disk", where, error.strerror)
    return 1


async def _run(config: Config, config_path: Path | None) -> int:
    for directory in (config.paths.state, config.paths.cache, config.paths.runtime):
        make(directory)
    with lock(config.paths.runtime):
        become_subreaper()
        raise_open_files()
        cgroup_root = cgroup.delegated_root()
        if cgroup_root is not None:
            cgroup.settle_in(cgroup_root)
        found, reading = await asyncio.gather(find(config, cgroup_root), look_once())
        return await Daemon(config, config_path, reading, cgroup_root).run(found)


class Daemon:
    """The running whole. `config` and `specs` are replaced by a reload, as values."""

    def __init__(
        self,
        config: Config,
        config_path: Path | None,
        reading: GpuReading,
        cgroup_root: Path | None,
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._reading = reading
        self._gpus: tuple[Gpu, ...] = ()
        self._policy = Policy()
        self._specs: dict[str, ModelSpec] = {}
        self._notifier = Notifier()
        self._tasks = Tasks()
        self._ending = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._looked = asyncio.Event()
        self._unestimated = asyncio.Event()
        """The configuration changed since the models were estimated."""
        self._is_succeeded = False
        """A restart was announced: the next run wants the engines."""
        self._inherited = inherited_sockets()

        self._provisioner = Provisioner(config, cuda=reading.may_have_gpus, preflight=preflight)
        self._launcher = VllmLauncher(
            config.paths,
            model_of=lambda model: self._config.models[model],
            weights_of=lambda model: self._provisioner.weights_of(model),
            venv_of=lambda model: self._provisioner.venv_of(model),
            hub=hub_cache(config.paths, os.environ),
            cgroup_root=cgroup_root,
        )
        upstreams = Upstreams()
        self._learnt = LearntStore(config.paths.learnt)
        self._runtime = Runtime(self._launcher, self._provisioner, upstreams, self._learnt)
        self._sampler = Sampler((), self._launcher.owners, self._sampled, self._found)
        self._runtime.sample_gpus = self._sampler.hurry
        self._recorder = Recorder(lambda: self._runtime.fleet)
        self._runtime.observers += [self._recorder.observe, self._show]
        self._gateway = Gateway(
            self._runtime,
            upstreams=upstreams,
            recorder=self._recorder,
            logs=self._launcher.tail,
            reload=self.reload,
            context_length=self._provisioner.context_length,
            longest_context=self._provisioner.suggest_max_model_len,
            usage_of=self._launcher.usage,
        )

    async def run(self, found: Sequence[tuple[Record, Verdict]] = ()) -> int:
        """From binding the listeners to the last engine gone, or left to a successor. Returns the exit code.

        `found` are the engines of an earlier run to take over.
        """
        self._apply(self._config)  # before the doors open, so that no request finds an empty house
        async with AsyncExitStack() as stack:
            await self._take_over(found)
            _ = self._tasks.start("GPU sampler", self._sampler.run())
            await self._first_look()
            doors = Doors(self._gateway, self._config.paths.control_socket, self._inherited)
            stack.push_async_callback(doors.close)
            await doors.open(self._config.server.listen)
            self._preload()
            with self._signals():
                _ = self._tasks.start("watchdog", self._watchdog())
                _ = self._tasks.start("reaper", self._reap())
                _ = self._tasks.start("estimates", self._estimate())
                self._notifier.ready(self._summary())
                listen = ", ".join(map(str, self._config.server.listen))
                if self._inherited:
                    listen = f"{len(self._inherited)} socket(s) of systemd"
                log.info("llm-supervisor %s serves on %s", __version__, listen)
                await self._ending.wait()
                installed.abandon()
                self._notifier.stopping("draining")
                is_clean = await (self._leave(doors) if self._leaves else self._shut_down())
            await self._gateway.close()
        await self._tasks.cancel_all()
        self._notifier.close()
        if not is_clean:
            log.error("cannot end every engine; look for processes in state D with `ps`, and in `dmesg`")
        return 0 if is_clean else 1

    @property
    def _leaves(self) -> bool:
        """Whether engines outlive this run."""
        return self._is_succeeded or self._config.server.on_stop == "keep"

    async def _shut_down(self) -> bool:
        """Drain and end every engine. Whether all of them are gone."""
        drain_s = self._config.server.drain_timeout_s
        log.info("stops: draining for up to %.0f s", drain_s)
        return await self._runtime.shutdown(drain_s + STOP_TIMEOUT_S)

    async def _leave(self, doors: Doors) -> bool:
        """Finish what has begun and leave the engines as they are."""
        log.info("ends and leaves its engines running: requests may finish first")
        self._gateway.is_leaving = True
        await doors.shut()
        await self._runtime.leave(self._config.server.drain_timeout_s)
        return True

    async def _take_over(self, found: Sequence[tuple[Record, Verdict]]) -> None:
        """Go on with the engines of an earlier run."""
        for record, verdict in found:
            report = self._runtime.reporter(record.model, record.launch)
            try:
                engine = await self._launcher.adopt(record, report)
            except LaunchError as error:
                log.warning("%s", error)
                continue
            adopted = EngineAdopted(
                model=record.model,
                launch=record.launch,
                gpus=record.gpus,
                granted_bytes=record.granted_bytes,
                kv_bytes=record.kv_bytes,
                signature=record.signature,
                is_asleep=verdict.state is State.SLEEPING,
            )
            self._runtime.adopt(adopted, engine)

    async def reload(self) -> dict[str, object]:
        """Read the configuration again and apply the difference. What changed, by model name.

        Raises:
            ConfigError: it is invalid; nothing changed.
        """
        async with self._reloading:  # the last one asked for wins
            self._notifier.reloading()
            try:
                new = await asyncio.to_thread(load, self._config_path)
                reading = await look_once()  # a driver may have been loaded since
                self._reading = self._reading.joined(reading)
                return self._adopt(new)
            except ConfigError as error:
                log.error("cannot reload, the old configuration stays:\n%s", error)
                raise
            finally:
                if not self._ending.is_set():  # what was said last counts: READY would undo STOPPING
                    self._notifier.ready(self._summary())

    def _adopt(self, new: Config) -> dict[str, object]:
        """Apply what may change while running; what changed, by model name."""
        fixed = [
            key
            for key, before, after in (
                ("paths", self._config.paths, new.paths),
                ("server.listen", self._config.server.listen, new.server.listen),
                ("log.format", self._config.log_format, new.log_format),
            )
            if before != after
        ]
        for key in fixed:
            log.warning("%s changed: takes effect with the next restart of the daemon", key)
        before, budgeted = self._specs, {gpu.index: gpu.budget_bytes for gpu in self._gpus}
        self._apply(replace(new, paths=self._config.paths))
        report: dict[str, object] = {
            "added": [name for name in self._specs if name not in before],
            "removed": [name for name in before if name not in self._specs],
            "changed": [
                name
                for name, spec in self._specs.items()
                if name in before and spec.signature != before[name].signature
            ],
            "budgets": [
                f"GPU {gpu.index}: {gib(gpu.budget_bytes)}"
                for gpu in self._gpus
                if budgeted.get(gpu.index) != gpu.budget_bytes
            ],
            "needs_restart": fixed,
        }
        log.info("reloaded: %s", report)
        return report

    def _apply(self, config: Config) -> None:
        """Make `config` the one in force, everywhere at once."""
        found = budgets(config.vram, config.gpu_budgets, self._reading)
        for sentence in warnings(config):
            log.warning("%s", sentence)
        for sentence in found.facts:  # that a CPU-only host has no driver is no warning
            is_fault = found.gpus or found.unknown or config.gpu_budgets
            log.log(logging.WARNING if is_fault else logging.INFO, "%s", sentence)
        self._gpus, self._policy = found.gpus, policy(config, psutil.virtual_memory().total)
        self._sampler.set_gpus(self._gpus, seeks=bool(found.unknown))
        specs = model_specs(config, found, self._learnt.load)
        self._config = config
        self._specs = {spec.name: spec for spec in specs}
        self._provisioner.configure(config, cuda=self._reading.may_have_gpus)
        self._gateway.configure(config)
        mark(config.paths.runtime / "keep", there=config.server.on_stop == "keep")
        self._change(specs)
        self._unestimated.set()

    def _preload(self) -> None:
        self._change(tuple(self._specs.values()), self._config.server.preload)

    def _change(self, specs: tuple[ModelSpec, ...], preload: tuple[str, ...] | None = None) -> None:
        self._runtime.dispatch(
            ConfigChanged(specs=specs, gpus=self._gpus, policy=self._policy, preload=preload)
        )

    def _sampled(self, samples: tuple[GpuSample, ...]) -> None:
        self._runtime.dispatch(GpusSampled(samples=samples))
        self._looked.set()

    def _found(self, reading: GpuReading) -> None:
        """GPUs answer that did not before: as after a reload, and what they were missing for starts."""
        if self._ending.is_set():
            return
        self._reading = self._reading.joined(reading)
        there = ", ".join(f"{gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in self._reading.gpus)
        log.info("the GPUs are now: %s", there or self._reading.absence)
        refused = {name for name, spec in self._specs.items() if spec.disabled}
        self._apply(self._config)
        kept = (engine.name for engine in self._runtime.fleet if engine.spec.keep and engine.last_error)
        wanted = dict.fromkeys((*self._config.server.preload, *kept))
        again = tuple(name for name in wanted if name in refused and not self._specs[name].disabled)
        if again:
            self._change(tuple(self._specs.values()), again)

    async def _first_look(self) -> None:
        """Nothing is placed before it is known what strangers hold."""
        if self._gpus:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._looked.wait(), FIRST_LOOK_S)

    async def _estimate(self) -> None:
        """Tell the core what each model will take, so that plan and first refusal need no download."""
        while True:
            self._unestimated.clear()
            for spec in tuple(self._specs.values()):
                estimate = await self._provisioner.estimate(spec.name) if self._gpus else None
                if estimate is not None:
                    self._runtime.dispatch(
                        Estimated(model=spec.name, signature=spec.signature, estimate=estimate)
                    )
            await self._unestimated.wait()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the daemon, a second one without patience; SIGHUP reloads.

        SIGUSR1 says that it is for a restart: the engines are left to the next run.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._expect_successor)
        loop.add_signal_handler(signal.SIGTERM, self._end)
        loop.add_signal_handler(signal.SIGINT, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                loop.remove_signal_handler(number)

    def _expect_successor(self) -> None:
        self._is_succeeded = True

    def _end(self) -> None:
        if not self._ending.is_set():
            self._ending.set()
            return
        log.warning("told to stop twice: open requests are cut now")
        hurried = tuple(replace(spec, drain_timeout_s=0.0) for spec in self._specs.values())
        self._runtime.hurry()
        self._change(hurried)

    def _reload_by_signal(self) -> None:
        async def reload() -> None:
            with suppress(ConfigError):  # told in the log
                await self.reload()

        _ = self._tasks.start("reload", reload())

    async def _watchdog(self) -> None:
        """Pings come from the loop that serves: when it stalls, they stop."""
        interval_s = watchdog_interval_s()
        while interval_s is not None:
            self._notifier.watchdog()
            await asyncio.sleep(interval_s)

    async def _reap(self) -> None:
        """Orphans of engines and of uv are handed to us; those that no engine's end takes along end here."""
        while True:
            await asyncio.sleep(REAP_INTERVAL_S)
            await asyncio.to_thread(reap_orphans)

    def _show(self, event: Event, _: Fleet) -> None:
        """Keep what `systemctl status` shows up to date."""
        if isinstance(event, EngineReady | EngineExited) and not self._ending.is_set():
            self._notifier.status(self._summary())

    def _summary(self) -> str:
        fleet = self._runtime.fleet
        up = [engine.name for engine in fleet if engine.state == "ready"]
        return f"{len(up)}/{len(fleet.engines)} models ready" + (f": {', '.join(up)}" if up else "")
