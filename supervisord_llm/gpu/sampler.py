"""Looks at the fleet's GPUs all the time and tells what each engine and each stranger holds of them.

The looking is done by a child process (watch.py, watcher.py); here is when to ask it, what to make of its
readings, and what to do when it does not answer.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from supervisord_llm.core.fleet import Gpu, GpuSample
from supervisord_llm.gpu.holders import Held, Owners, holders
from supervisord_llm.gpu.sensor import GpuReading, GpuSeen
from supervisord_llm.gpu.watcher import COMMAND, Watcher, WatchError

log = logging.getLogger("llm_supervisor.gpu")

DEADLINE_S = 5.0
"""For one look. NVML takes milliseconds, on a cold driver up to two seconds."""

SPACING_S = 0.05
"""Between two looks, however much hurry there is."""

BACKOFF_S = (1.0, 60.0)
"""Until NVML is initialised anew: after the first time in vain, and at most."""


class Sampler:
    """Calls `report` with one sample for each GPU of `gpus`, in their order, every `interval_s`.

    `found` is called with a reading that has cards which `gpus` has not, once for each; and, where it was
    not known which GPUs there are, with the first reading that tells. It may call `set_gpus`.

    While NVML as a whole does not answer, nothing is reported but one round of samples without figures for
    each failure. A GPU that does not answer while others do is lost. To find it again NVML is initialised
    anew now and then, in a second child, which takes over if it sees no less than the first.
    """

    def __init__(
        self,
        gpus: Sequence[Gpu],
        owners: Owners,
        report: Callable[[tuple[GpuSample, ...]], None],
        found: Callable[[GpuReading], None] = lambda _: None,
        *,
        interval_s: float = 2.0,
        deadline_s: float = DEADLINE_S,
        backoff_s: tuple[float, float] = BACKOFF_S,
        command: Sequence[str] = COMMAND,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._gpus = tuple(gpus)
        self._owners = owners
        self._report = report
        self._found = found
        self._seeks = False
        self._offered: frozenset[str] = frozenset()
        """UUIDs of cards that are not of the fleet, and were told of."""
        self._interval_s = interval_s
        self._deadline_s = deadline_s
        self._command = command
        self._environment = environment
        self._hurried = asyncio.Event()
        self._looked_at = float("-inf")
        self._watcher: Watcher | None = None
        self._ending: Watcher | None = None
        """A child that did not end yet: another one would only hang beside it."""
        self._failure = _Backoff(*backoff_s)
        self._loss = _Backoff(*backoff_s)
        self._lost: dict[str, str] = {}
        """Why each lost GPU is lost, by UUID, as it was told first."""
        self._silent: frozenset[str] = frozenset()
        """UUIDs of the GPUs that tell nothing of their processes, as the log knows."""
        self._ended: frozenset[int] = frozenset()
        """Pids in the last reading that nobody had any more."""

    async def run(self) -> None:
        """Look until cancelled; then the child is ended. Without GPUs, none of them sought, there is none."""
        try:
            while True:
                await self._until_due()
                self._hurried.clear()
                if self._gpus or self._seeks:
                    await self._sample()
                elif self._watcher is not None:
                    watcher, self._watcher = self._watcher, None
                    await self._end(watcher)
        finally:
            for each in (self._watcher, self._ending):
                if each is not None:
                    await each.end()

    def hurry(self) -> None:
        """Look now, or once more if a look is under way. Back-off after a failure is kept to."""
        self._hurried.set()

    def set_gpus(self, gpus: Sequence[Gpu], *, seeks: bool = False) -> None:
        """Report on these from now on. `seeks`: even where there are none, since that is not known."""
        self._gpus = tuple(gpus)
        self._seeks = seeks
        self.hurry()

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        is_regular = self._gpus or self._seeks
        regular = max(self._looked_at + self._interval_s, self._failure.until) if is_regular else None
        try:
            async with asyncio.timeout_at(regular):
                await self._hurried.wait()
        except TimeoutError:
            return
        await asyncio.sleep(max(self._looked_at + SPACING_S, self._failure.until) - loop.time())

    async def _sample(self) -> None:
        at = self._looked_at = asyncio.get_running_loop().time()
        try:
            reading = await self._read()
        except WatchError as error:
            self._fail(str(error), at)
            return
        if self._failure.count:
            log.info("NVML answers again")
            self._failure.reset()
        self._offer(reading)
        self._note_lost(reading)
        seen = {gpu.uuid: gpu for gpu in reading.gpus}
        try:
            held = await asyncio.to_thread(holders, reading.gpus, self._owners, self._ended)  # reads /proc
        except OSError as error:
            self._fail(f"the processes on the GPUs cannot be looked up ({error.strerror})", at)
            return
        self._ended = frozenset().union(*(each.ended for each in held.values() if each is not None))
        self._note_silent({uuid for uuid in seen if held[uuid] is None})
        if self._gpus:
            self._report(tuple(self._sample_of(gpu, at, seen.get(gpu.uuid), held) for gpu in self._gpus))

    def _sample_of(
        self, gpu: Gpu, at: float, seen: GpuSeen | None, held: "Mapping[str, Held | None]"
    ) -> GpuSample:
        if seen is None:
            return GpuSample(index=gpu.index, at=at, lost=self._lost.get(gpu.uuid, ""))
        by_process = held[gpu.uuid]
        return GpuSample(
            index=gpu.index,
            at=at,
            used_bytes=seen.used_bytes,
            engines=None if by_process is None else by_process.engines,
            strangers=() if by_process is None else by_process.strangers,
            utilization=seen.utilization,
            temperature_c=seen.temperature_c,
        )

    # --- the child ----------------------------------------------------------

    async def _read(self) -> GpuReading:
        if self._watcher is None:
            self._watcher = await self._start()
        try:
            reading = await self._watcher.look(self._deadline_s)
        except WatchError:
            watcher, self._watcher = self._watcher, None
            await self._end(watcher)
            raise
        return await self._renewed(reading) if self._missing(reading) or reading.lost else reading

    async def _start(self) -> Watcher:
        if self._ending is not None and not self._ending.has_ended:
            raise WatchError("the process that asks NVML hangs inside the driver and cannot be killed")
        return await Watcher.start(self._command, self._environment)

    async def _end(self, watcher: Watcher) -> None:
        self._ending = watcher  # before the wait, which may be cancelled
        if await watcher.end():
            self._ending = None

    def _missing(self, reading: GpuReading) -> list[Gpu]:
        there = {gpu.uuid for gpu in reading.gpus}
        return [gpu for gpu in self._gpus if gpu.uuid not in there]

    async def _renewed(self, reading: GpuReading) -> GpuReading:
        """What a fresh child sees, if it is time for one and it sees no less; else `reading`.

        After the loss of one card, initialising NVML can fail altogether: the first child is kept till then.
        """
        now = asyncio.get_running_loop().time()
        if not self._loss.count:
            self._loss.fail(now)
        if now < self._loss.until:
            return reading
        self._loss.fail(now)
        try:
            fresh = await self._start()
        except WatchError:
            return reading
        useless = fresh
        try:
            found = await fresh.look(self._deadline_s)
            if {gpu.uuid for gpu in found.gpus} >= {gpu.uuid for gpu in reading.gpus}:
                assert self._watcher is not None
                useless, self._watcher, reading = self._watcher, fresh, found
        except WatchError as error:
            log.debug("initialising NVML anew failed: %s", error)
        finally:
            await self._end(useless)
        return reading

    # --- what changed ----------------------------------------------------------

    def _offer(self, reading: GpuReading) -> None:
        there = frozenset(gpu.uuid for gpu in reading.gpus if gpu.total_bytes is not None)
        strange = there - {gpu.uuid for gpu in self._gpus}
        is_news = strange - self._offered or (self._seeks and not reading.unknown)
        self._offered = strange
        if is_news:
            self._found(reading)

    def _fail(self, why: str, at: float) -> None:
        if not self._failure.count:
            log.warning("cannot look at the GPUs: %s; it is tried again until it works", why)
        self._failure.fail(asyncio.get_running_loop().time())
        lost = self._lost
        if self._gpus:
            self._report(
                tuple(GpuSample(index=gpu.index, at=at, lost=lost.get(gpu.uuid, "")) for gpu in self._gpus)
            )

    def _note_lost(self, reading: GpuReading) -> None:
        missing = {gpu.uuid: gpu for gpu in self._missing(reading)}
        told = {lost.uuid: lost.why for lost in reading.lost}
        nameless = told.get("", "the driver does not find it any more; `dmesg` may tell more")
        for gpu in self._gpus:
            if gpu.uuid in missing and gpu.uuid not in self._lost:
                why = told.get(gpu.uuid, nameless)
                self._lost[gpu.uuid] = why
                log.warning("GPU %d (%s, %s) is lost: %s", gpu.index, gpu.name, gpu.uuid, why)
            elif gpu.uuid not in missing and self._lost.pop(gpu.uuid, ""):
                log.info("GPU %d (%s, %s) is back", gpu.index, gpu.name, gpu.uuid)
        if not missing and not reading.lost:
            self._loss.reset()

    def _note_silent(self, silent: set[str]) -> None:
        for gpu in self._gpus:
            if gpu.uuid in silent - self._silent:
                log.info(
                    "GPU %d does not tell what each process holds (as under WSL2 and in containers with pids "
                    "of their own): engines are measured by what the whole card holds",
                    gpu.index,
                )
        self._silent |= silent


class _Backoff:
    """When to try again: `until` is the loop's time, doubled steps between `shortest_s` and `longest_s`."""

    def __init__(self, shortest_s: float, longest_s: float) -> None:
        self._shortest_s = shortest_s
        self._longest_s = longest_s
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self.until = float("-inf")

    def fail(self, now: float) -> None:
        self.until = now + min(self._longest_s, self._shortest_s * 2.0 ** min(self.count, 60))
        self.count += 1
