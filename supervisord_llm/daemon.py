"""The composition root: builds the parts, brings them up in order, listens to signals, takes them down.

The only place that joins rooms. Order matters in both directions: engines of an earlier run are taken over
before anything is launched, doors are open before READY is told; on the way down they answer 503 until the
last engine is gone.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from supervisord_llm import __version__
from supervisord_llm.config.changes import changes, need_restart
from supervisord_llm.config.checks.checks import warnings
from supervisord_llm.config.load import load
from supervisord_llm.config.model import Address, Config
from supervisord_llm.config.remotes import keyless
from supervisord_llm.core.card import Card
from supervisord_llm.core.events import (
    ConfigChanged,
    EngineExited,
    EngineReady,
    Estimated,
    Event,
    GpusSampled,
    StartAsked,
)
from supervisord_llm.core.fleet import Fleet, Gpu, GpuSample, ModelSpec, Policy
from supervisord_llm.core.state import State
from supervisord_llm.engines import installed, records
from supervisord_llm.engines.adoption import Verdict, adopted
from supervisord_llm.engines.launcher import LocalLauncher
from supervisord_llm.engines.launchers import Launchers
from supervisord_llm.engines.network import Network
from supervisord_llm.engines.preflight import preflight
from supervisord_llm.engines.records import Record
from supervisord_llm.engines.remote import RemoteLauncher
from supervisord_llm.engines.tree import reap_orphans
from supervisord_llm.errors import ConfigError, LaunchError, Refused
from supervisord_llm.gateway.app import Gateway
from supervisord_llm.gateway.doors.doors import Doors
from supervisord_llm.gateway.doors.listeners import Listeners
from supervisord_llm.gateway.inference.relay import Upstreams
from supervisord_llm.gateway.ports import Facts
from supervisord_llm.gpu.budget import Budgets, budgets, policy
from supervisord_llm.gpu.learnt import LearntStore
from supervisord_llm.gpu.sampler import Sampler
from supervisord_llm.gpu.sensor import GpuReading
from supervisord_llm.gpu.specs import model_specs
from supervisord_llm.gpu.watcher import look_once
from supervisord_llm.host import mark, memory_bytes
from supervisord_llm.peers import Peers
from supervisord_llm.program import Program
from supervisord_llm.provision.provisioner import Provisioner
from supervisord_llm.provision.weights import hub_cache
from supervisord_llm.runtime.loop import Runtime
from supervisord_llm.runtime.tasks import Tasks
from supervisord_llm.systemd.notify import Notifier
from supervisord_llm.systemd.starts import Starts
from supervisord_llm.telemetry.recorder import Recorder
from supervisord_llm.telemetry.usage import UsageStore
from supervisord_llm.timetable import Timetable

log = logging.getLogger("llm_supervisor.daemon")

STOP_TIMEOUT_S = 30.0
"""Beyond the drain: SIGTERM, its patience, SIGKILL and reaping."""

REAP_INTERVAL_S = 10.0
SUCCESSOR_S = 60.0
"""What the next program may take, beyond the drain, until it serves."""

FIRST_LOOK_S = 6.0
"""A driver that hangs longer is looked at in the background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What is older than a daemon in its process, and outlives it if another one takes its place."""

    config_path: Path | None
    cgroup_root: Path | None
    notifier: Notifier
    listeners: Listeners
    starts: Starts
    program: Program


class Daemon:
    """The running whole. `config` and `specs` are replaced by a reload, as values."""

    def __init__(
        self,
        config: Config,
        reading: GpuReading,
        network: Network,
        process: Process,
        *,
        upgrade_failure: str = "",
    ) -> None:
        """`upgrade_failure`: why this is not the new program that was to take over."""
        self.config = config
        """With the models of peers."""
        self._as_read = config
        """Without those that were found."""
        self._first_config = config
        """Some of it stays in force whatever is read later."""
        self._process = process
        self._notifier = process.notifier
        self._reading = reading
        self._network = network
        self._gpus: tuple[Gpu, ...] = ()
        self._policy = Policy()
        self._specs: dict[str, ModelSpec] = {}
        self._tasks = Tasks()
        self._ending = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._looked = asyncio.Event()
        self._unestimated = asyncio.Event()
        """The configuration changed since the models were estimated."""
        self._is_succeeded = False
        """A restart was announced: the next run wants the engines."""
        self.is_replaced = False
        """Once `run` has returned: the program as it is installed now is to take over in this process."""
        self._is_upgrading = False

        self._provisioner = Provisioner(config, cuda=reading.may_have_gpus, preflight=preflight)
        self._launcher = LocalLauncher(
            config.paths,
            model_of=lambda model: self.config.models[model],
            weights_of=lambda model: self._provisioner.weights_of(model),
            venv_of=lambda model: self._provisioner.venv_of(model),
            hub=hub_cache(config.paths, os.environ),
            cgroup_root=process.cgroup_root,
            network=network,
        )
        upstreams = Upstreams()
        self._learnt = LearntStore(config.paths.learnt)
        self._elsewhere = RemoteLauncher()
        upstreams.observers.append(self._elsewhere.began)

        def lost(model: str, why: str) -> None:
            self._elsewhere.lost(model, why)
            upstreams.lose(model)

        self._peers = Peers(self._merge, lost)
        launcher = Launchers(self._launcher, self._elsewhere, lambda model: self.config.models.get(model))
        self._runtime = Runtime(launcher, self._provisioner, upstreams, self._learnt)
        self._timetable = Timetable(
            config.paths.schedule,
            changed=self._follow_schedule,
            tell=lambda text: self._runtime.events.add("", text),
            steady=asyncio.get_running_loop().time,
        )
        self._sampler = Sampler((), self._launcher.owners, self._sampled, self._found)
        self._runtime.sample_gpus = self._sampler.hurry
        self._usage = UsageStore(config.paths.usage)
        self._recorder = Recorder(lambda: self._runtime.fleet)
        self._runtime.observers += [self._recorder.observe, self._show]
        self._gateway = Gateway(
            self._runtime,
            upstreams=upstreams,
            recorder=self._recorder,
            logs=self._launcher.tail,
            reload=self.reload,
            upgrade=self.upgrade,
            upgrade_failure=upgrade_failure,
            facts=Facts(
                context_length=self._provisioner.context_length,
                card=self._card,
                longest_context=self._provisioner.suggest_max_model_len,
                usage=self._launcher.usage,
                tool_parser=self._launcher.tool_parser,
                fallback=self._timetable.fallback,
                peers=self._peers.describe,
                reach=network.reach,
            ),
            usage=self._usage,
            timetable=self._timetable,
        )
        self._doors = Doors(self._gateway, config.paths.control_socket, process.listeners)

    async def run(self, found: Sequence[tuple[Record, Verdict]] = ()) -> int:
        """From opening the doors to the last engine gone, or left to a successor. Returns the exit code.

        `found` are the engines of an earlier run to take over.
        """
        await asyncio.to_thread(self._usage.load)
        self._apply(self.config)  # before the doors open, so that no request finds an empty house
        async with AsyncExitStack() as stack:
            await self._take_over(found)
            _ = self._tasks.start("GPU sampler", self._sampler.run())
            await self._first_look()
            await self._peers.first_look()
            doors = self._doors
            stack.push_async_callback(doors.close)
            await doors.open(self.config.server.listen, self.config.server.tls)
            self._follow_schedule()
            with self._signals():
                _ = self._tasks.start("reaper", self._reap())
                _ = self._tasks.start("schedule", self._keep_time())
                _ = self._tasks.start("estimates", self._estimate())
                _ = self._tasks.start("certificate", doors.watch())
                _ = self._tasks.start("token counts", self._usage.run())
                self._notifier.ready(self._summary())
                self._process.starts.served()
                listen = ", ".join(map(str, self._listen(self.config)))
                log.info("llm-supervisor %s serves on %s", __version__, listen)
                await self._ending.wait()
                installed.abandon()
                was_replaced = self.is_replaced
                is_clean = await self._end_engines()
                await self._gateway.close()
        await self._peers.close()
        await self._tasks.cancel_all()
        await self._usage.write()
        if was_replaced and not self.is_replaced and not self._leaves:  # told to stop in the last moment
            engines = self.config.paths.engines
            await asyncio.to_thread(records.sweep, engines, root=self._process.cgroup_root)
        if not is_clean:
            log.error("cannot end every engine; look for processes in state D with `ps`, and in `dmesg`")
        return 0 if is_clean else 1

    def _listen(self, config: Config) -> Sequence[Address]:
        """Where clients come in."""
        return self._process.listeners.in_force(config.server.listen)

    @property
    def _leaves(self) -> bool:
        """Whether engines outlive this run."""
        return self._is_succeeded or self.config.server.on_stop == "keep"

    async def _end_engines(self) -> bool:
        """End or leave the engines, whichever is wanted; False where one could not be ended."""
        drain_s = self.config.server.drain_timeout_s
        if self.is_replaced:
            await self._runtime.leave()
            await self._launcher.leave()  # should we be our own successor, they have one owner still
            return True
        self._notifier.stopping("draining")
        if self._leaves:
            log.info("ends and leaves its engines running: requests may finish first")
            await self._drain(drain_s, refuse=True)
            await self._runtime.leave()
            return True
        log.info("stops: draining for up to %.0f s", drain_s)
        return await self._runtime.shutdown(drain_s + STOP_TIMEOUT_S)

    async def _drain(self, timeout_s: float, *, refuse: bool) -> None:
        """Let what has begun finish. Who knocks meanwhile waits for our successor; see Doors.shut."""
        self._provisioner.leave()
        self._gateway.is_leaving = True
        await self._doors.shut(refuse=refuse)
        await self._runtime.drained(timeout_s)
        await self._gateway.lull()

    async def upgrade(self) -> dict[str, object]:
        """Have the program as it is installed now take over in this process. Answers once it was seen to run.

        Raises:
            Refused: it does not, or finds the configuration invalid; nothing was given up.
        """
        if self._ending.is_set() or self._is_upgrading:
            raise Refused(
                "not_possible", "cannot upgrade: the daemon is about to end, or to be upgraded already"
            )
        self._is_upgrading = True
        try:
            version = await self._process.program.tried()
        except BaseException:
            self._is_upgrading = False
            raise
        drain_s = self.config.server.drain_timeout_s
        log.info("upgrades from %s to %s: requests may finish first", __version__, version)
        self._notifier.reloading(f"upgrading to {version}")
        _ = self._tasks.start("upgrade", self._make_way(drain_s))
        return {"from": __version__, "to": version, "within_s": drain_s + SUCCESSOR_S}

    async def _make_way(self, drain_s: float) -> None:
        try:
            await self._drain(drain_s, refuse=False)
        finally:  # whatever happened: nobody serves at the doors any more
            if not self._ending.is_set():  # else it was told to stop meanwhile
                self.is_replaced = True
                self._ending.set()

    async def _take_over(self, found: Sequence[tuple[Record, Verdict]]) -> None:
        """Go on with the engines of an earlier run."""
        for record, verdict in found:
            report = self._runtime.reporter(record.model, record.launch)
            try:
                engine = await self._launcher.adopt(record, report)
            except LaunchError as error:
                log.warning("%s", error)
                continue
            self._runtime.adopt(adopted(record, verdict), engine)

    async def reload(self) -> dict[str, object]:
        """Read the configuration again and apply the difference. What changed, by model name.

        Raises:
            ConfigError: it is invalid; nothing changed.
        """
        async with self._reloading:  # the last one asked for wins
            self._notifier.reloading()
            try:
                new = await asyncio.to_thread(load, self._process.config_path)
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
        fixed = need_restart(self._first_config, new)
        for key in fixed:
            log.warning("%s changed: takes effect with the next restart of the daemon", key)
        specs, gpus, out_of_reach = self._specs, self._gpus, self._out_of_reach()
        self._apply(replace(new, paths=self.config.paths))
        self._follow_schedule()
        self._doors.renew(self.config.server.tls)
        report = changes(specs, self._specs, gpus, self._gpus) | {"needs_restart": fixed}
        report |= {"probed": self._probe(out_of_reach)}
        log.info("reloaded: %s", report)
        return report

    def _apply(self, config: Config, *, is_news: bool = True) -> None:
        """Make `config`, as it was read, the one in force, everywhere at once.

        `is_news`: what is to be said of it has not been said yet.
        """
        found = budgets(config.vram, config.gpu_budgets, self._reading)
        if is_news:
            self._warn(config, found)
            self._peers.configure(config)
        self._as_read, config = config, self._peers.merged(config)
        self._gpus, self._policy = found.gpus, policy(config, memory_bytes())
        self._sampler.set_gpus(self._gpus, seeks=bool(found.unknown))
        specs = model_specs(config, found, self._learnt.load)
        self.config = config
        self._specs = {spec.name: spec for spec in specs}
        self._elsewhere.configure(config.models.values())
        self._provisioner.configure(config, cuda=self._reading.may_have_gpus)
        self._gateway.configure(config)
        mark(config.paths.runtime / "keep", there=config.server.on_stop == "keep")
        self._timetable.configure(config)
        self._change()
        self._unestimated.set()

    def _warn(self, config: Config, found: Budgets) -> None:
        for sentence in (*warnings(config, self._listen(config)), *keyless(config)):
            log.warning("%s", sentence)
        for sentence, models in self._network.notes(config.with_engines).items():
            key = "url" if config.models[models[0]].engine == "remote" else "network"
            log.warning("models.%s.%s: %s", ", models.".join(models), key, sentence)
        for peer in config.peers:
            if note := self._network.peer_note(peer):
                log.warning("peers.%s.url: %s", peer.name, note)
        for sentence in found.facts:  # that a CPU-only host has no driver is no warning
            is_fault = found.gpus or found.unknown or config.gpu_budgets
            log.log(logging.WARNING if is_fault else logging.INFO, "%s", sentence)

    def _merge(self) -> None:
        """Peers have other models than before, or answer again."""
        if not self._ending.is_set():
            out_of_reach = self._out_of_reach()
            self._apply(self._as_read, is_news=False)
            theirs = {model.name for model in self.config.models.values() if model.peer}
            self._probe(name for name in out_of_reach if name in theirs)

    def _out_of_reach(self) -> tuple[str, ...]:
        """Models elsewhere whose circuit is open."""
        fleet = self._runtime.fleet
        return tuple(one.name for one in fleet if one.spec.elsewhere and one.state is State.BACKOFF)

    def _probe(self, models: Iterable[str]) -> list[str]:
        """Ask at once whether they answer now, since what was in the way may be mended. Which were asked."""
        asked = [name for name in models if name in self._specs and not self._specs[name].disabled]
        for name in asked:
            self._runtime.dispatch(StartAsked(model=name))
        return asked

    def _card(self, name: str) -> Card | None:
        model = self.config.models.get(name)
        if model is not None and model.peer:
            return self._peers.card(model)
        return self._provisioner.card(name)

    def _change(self, preload: tuple[str, ...] | None = None, *, hurried: bool = False) -> None:
        """Tell the core what each model is like now. `hurried`: nothing in flight may go on."""
        specs = self._timetable.closed(tuple(self._specs.values()))
        if hurried:
            specs = tuple(replace(spec, drain_timeout_s=0.0, closes_at=0.0) for spec in specs)
        self._runtime.dispatch(
            ConfigChanged(specs=specs, gpus=self._gpus, policy=self._policy, preload=preload)
        )

    def _follow_schedule(self) -> None:
        """Apply a switch of the schedule, if there was one. The first look, at boot, starts things too."""
        starts = self._timetable.look()
        if starts is not None and not self._ending.is_set():
            self._change(tuple(dict.fromkeys((*starts, *self._runtime.fleet.preload))))

    async def _keep_time(self) -> None:
        while True:
            await self._timetable.next_look()
            self._follow_schedule()

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
        self._apply(self._as_read)
        kept = (engine.name for engine in self._runtime.fleet if engine.spec.keep and engine.last_error)
        wanted = dict.fromkeys((*self.config.server.preload, *kept))
        again = tuple(name for name in wanted if name in refused and not self._specs[name].disabled)
        if again:
            self._change(again)

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
            if not self.is_replaced:  # it ends already, and has things to write down still
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)

    def _expect_successor(self) -> None:
        self._is_succeeded = True

    def _end(self) -> None:
        self.is_replaced = False
        if not self._ending.is_set():
            self._ending.set()
            return
        log.warning("told to stop twice: open requests are cut now")
        self._runtime.hurry()
        self._change(hurried=True)

    def _reload_by_signal(self) -> None:
        async def reload() -> None:
            with suppress(ConfigError):  # told in the log
                await self.reload()

        _ = self._tasks.start("reload", reload())

    async def _reap(self) -> None:
        """Orphans of engines and of uv are handed to us; those that no engine's end takes along end here.

        And what a full disk kept from being written down is tried again.
        """
        while True:
            await asyncio.sleep(REAP_INTERVAL_S)
            with suppress(OSError):  # out of open files: next time
                await asyncio.to_thread(reap_orphans)
            self._launcher.write_records()

    def _show(self, event: Event, _: Fleet) -> None:
        """Keep what `systemctl status` shows up to date."""
        if isinstance(event, EngineReady | EngineExited) and not self._ending.is_set():
            self._notifier.status(self._summary())

    def _summary(self) -> str:
        fleet = self._runtime.fleet
        up = [engine.name for engine in fleet if engine.state == "ready"]
        return f"{len(up)}/{len(fleet.engines)} models ready" + (f": {', '.join(up)}" if up else "")
