"""The moves of one engine: which is due, and what failing and ending mean for who waits."""

import math
from typing import assert_never

from supervisord_llm.core import backoff, explain, explain_memory, idle, ladder, queue
from supervisord_llm.core.effects import CountTokens
from supervisord_llm.core.events import Cause, EngineExited
from supervisord_llm.core.fleet import Engine, Learnt
from supervisord_llm.core.frozen import replace
from supervisord_llm.core.placement import code_of, impossible
from supervisord_llm.core.room import SETTLE_S
from supervisord_llm.core.sleep import Sleep, ram_bytes
from supervisord_llm.core.state import HAS_PROCESS, RUNS_OR_WILL, State
from supervisord_llm.core.turn import LATER_S, LONG_S, SOON_S


class Moves(Sleep):
    """Decides for one engine at a time."""

    def advance(self, engine: Engine) -> None:
        """Take the move that is due, and the one after it.

        (0) closed by the schedule                         -> who waits is refused; it is taken down
        (1) some have waited too long                      -> they are refused
        (2) stopped: removed from the config               -> forgotten; wanted -> prepared
        (3) preparing, starting, waking or falling asleep, and late or stalled -> given up
        (4) queued, or asleep and wanted                   -> placed, with all others, in place_waiting
        (5) ready: slots are free and some wait            -> admitted; idle for long -> asleep, stopped
        (6) draining: nobody left, or time is over         -> asleep or stopping
        (7) backoff is over                                -> prepared again if wanted, else stopped
        (8) failed, its time is over and someone waits     -> prepared again
        """
        if engine.spec.closed:  # (0)
            engine = self.closed(engine)
            if engine.state in RUNS_OR_WILL:
                self.take_down(engine, engine.spec.closed)
                return
        engine = self.put(self.reject_expired(engine) if engine.waiting else engine)  # (1)
        match engine.state:
            case State.QUEUED | State.STOPPING | State.STUCK:
                pass  # (4); the others are moved by the end of their processes
            case State.STOPPED:  # (2)
                if engine.name in self.state.removed:
                    if not engine.leases:  # relays of a crashed engine may still be about to end
                        self.forget(engine)
                elif (engine.is_wanted or engine.returns) and not self.state.stopping:
                    self.begin(engine)
            case State.PREPARING | State.STARTING | State.WAKING:  # (3)
                self.check_start(engine)
            case State.READY:  # (5)
                engine = self.admit_waiting(engine)
                if engine.leases:
                    self.check_progress(engine)
                else:
                    self.check_idle(engine)
            case State.SLEEPING:  # (4)
                if engine.asleep_at is None:
                    self.check_start(engine)
                elif not engine.gave_back and self.now >= engine.asleep_at + 2 * SETTLE_S:
                    self.take_as_given_back(engine)  # no look tells otherwise
                else:
                    self.check_idle(engine)
            case State.DRAINING:  # (6)
                if engine.leases and self.now >= drains_until(engine):
                    self.notify(engine.name, explain.drain_over(engine, self.now), is_bad=True)
                    self.stop(engine, kill=engine.hangs, dump=engine.hangs)
                elif not engine.leases and not (
                    engine.to_sleep and self.fall_asleep(engine, explain_memory.ASKED)
                ):
                    self.stop(self.engines[engine.name], kill=engine.hangs, dump=engine.hangs)
            case State.BACKOFF:  # (7)
                if self.now >= engine.retry_at:
                    self.advance(engine.to(State.STOPPED, self.now))
            case State.FAILED:  # (8)
                if self.now >= engine.retry_at and engine.is_wanted and not self.state.stopping:
                    self.begin(engine)
            case _:
                assert_never(engine.state)

    def closed(self, engine: Engine) -> Engine:
        """Nobody waits for it, and nothing brings it back, until the schedule lets it run."""
        if engine.waiting:
            retry_after_s = opens_in_s(engine, self.now)
            engine = self.reject_all(engine, "out_of_schedule", explain.closed(engine), retry_after_s)
        if engine.wanted or engine.returns or engine.to_sleep:
            engine = self.put(replace(engine, wanted=False, returns=False, to_sleep=False))
        return engine

    def begin(self, engine: Engine) -> None:
        """Prepare it, unless it can never run on this host."""
        if not self.give_up_if_impossible(engine):
            self.prepare(engine)

    def take_down(self, engine: Engine, why: str) -> None:
        """Towards STOPPED from wherever it is; who still waits is served by the next launch."""
        match engine.state:
            case State.PREPARING:
                self.cancel_prepare(engine)
                engine = engine.to(State.STOPPED, self.now)
            case State.QUEUED:
                engine = engine.to(State.STOPPED, self.now)
            case State.STARTING | State.WAKING | State.SLEEPING:
                self.notify(engine.name, explain.drains(engine, why))
                self.stop(engine, kill=engine.state is not State.SLEEPING)
                return
            case State.READY:
                self.notify(engine.name, explain.drains(engine, why))
                engine = engine.to(State.DRAINING, self.now)
            case State.DRAINING:
                engine = replace(engine, to_sleep=False)
            case State.BACKOFF | State.FAILED:
                engine = engine.to(State.STOPPED, self.now, failures=(), last_error="")
            case State.STOPPED | State.STOPPING | State.STUCK:
                pass
            case _:
                assert_never(engine.state)
        self.advance(engine)

    # --- starts

    def check_start(self, engine: Engine) -> None:
        """Give up a start, wake or sleep that takes too long, and a start that shows no sign of life."""
        spec = engine.spec
        tells = engine.state in (State.PREPARING, State.STARTING)
        if engine.state is not State.PREPARING and self.now >= engine.since + spec.start_timeout_s:
            text = explain.start_timeout(engine)
        elif tells and self.now >= engine.last_sign + spec.stall_timeout_s:
            text = explain.stalled(engine)
        else:
            return
        if engine.state is State.SLEEPING:  # who waits is served by the next launch
            self.stop(self.give_up_sleep(engine, text), kill=True)
            return
        if engine.state is State.WAKING:
            engine = self.give_up_sleep(engine, text)
        engine = self.reject_all(engine, "start_timeout", text)
        if engine.state is State.PREPARING:
            self.cancel_prepare(engine)
            self.failed(engine, text)
        else:
            self.stop(replace(engine, kill_reason=text), kill=True)

    def give_up_if_impossible(self, engine: Engine) -> bool:
        """Looked at before it is prepared and again before it is placed: the GPUs may have changed."""
        reason = impossible(engine, self.state)
        if reason:
            self.give_up_until_asked(self.reject_all(engine, code_of(engine.spec), reason, LATER_S), reason)
        return bool(reason)

    def give_up_until_asked(self, engine: Engine, text: str) -> None:
        """A fact of the host is against it: the next request looks again, since looking is cheap."""
        if text != engine.last_error:
            self.notify(engine.name, text, is_bad=True)
        engine = replace(engine, last_error=text, wanted=False, returns=False, retry_at=self.now)
        self.put(engine if engine.state is State.FAILED else engine.to(State.FAILED, self.now))

    # --- failures

    def failed(self, engine: Engine, text: str) -> None:
        """Something went wrong: wait a while before the next launch, or give up after too many."""
        failures = (*backoff.recent(engine.failures, engine.spec, self.now), self.now)
        engine = replace(engine, failures=failures, last_error=text)
        if engine.spec.elsewhere:
            wait_s = backoff.delay_s(len(failures), engine.spec)
            engine = self.reject_all(engine, "start_failed", text, wait_s)
            self.notify(engine.name, explain.retries(engine, wait_s), is_bad=True)
            self.put(engine.to(State.BACKOFF, self.now, retry_at=self.now + wait_s, wanted=False))
        elif backoff.is_hopeless(failures, engine.spec):
            engine = self.reject_all(engine, "start_failed", text)
            retry_at = self.now + engine.spec.restart_window_s
            self.notify(engine.name, explain.gave_up(engine), is_bad=True)
            # The window starts afresh: whoever asks after it gets all tries again.
            self.put(engine.to(State.FAILED, self.now, retry_at=retry_at, wanted=False, failures=()))
        else:
            wait_s = backoff.delay_s(len(failures), engine.spec)
            self.notify(engine.name, explain.retries(engine, wait_s), is_bad=True)
            self.put(engine.to(State.BACKOFF, self.now, retry_at=self.now + wait_s))

    def exited(self, engine: Engine, event: EngineExited) -> None:
        """Every process of it is reaped: what that means depends on what it was doing."""
        if engine.state not in HAS_PROCESS:
            return
        gpus = engine.gpus
        self.freed(engine)
        by_itself = engine.state in HAS_PROCESS - {State.DRAINING, State.STOPPING, State.STUCK}
        is_news = by_itself or bool(engine.kill_reason)
        if event.cause is Cause.GPU_OOM and is_news and engine.launched_as == engine.spec.signature:
            self.out_of_gpu_memory(replace(engine, kill_reason=""), event.reason)
        elif event.cause is Cause.HOST_OOM and engine.state is State.SLEEPING:
            self.ended(self.give_up_sleep(engine, explain_memory.NO_RAM_LEFT), event)
        elif event.cause is Cause.HOST_OOM and by_itself:
            self.out_of_main_memory(engine, event.reason)
        else:
            if event.cause is Cause.GPU_OOM:
                self.change_after_oom(engine)
            self.ended(self.engines[engine.name], event)
        self.nudge_neighbours(gpus)

    def ended(self, engine: Engine, event: EngineExited) -> None:
        if engine.spec.elsewhere and engine.state in (State.STARTING, State.READY):
            self.failed(engine, explain.out_of_reach(engine.name, event.reason))
            return
        match engine.state:
            case State.STARTING:
                if engine.kv_bytes is not None and engine.kv_bytes == engine.learnt.kv_bytes:
                    # Perhaps it is that which does not suffice: vLLM is left to measure it the next time.
                    engine = self.learn(engine, replace(engine.learnt, kv_bytes=None))
                text = explain.start_failed(engine.name, event.reason)
                self.failed(self.reject_all(engine, "start_failed", text), text)
            case State.READY | State.SLEEPING | State.WAKING:
                # Who holds a lease learns it from the broken connection; who waits goes on waiting.
                wanted = engine.wanted or engine.spec.keep
                self.failed(replace(engine, wanted=wanted), explain.crashed(engine.name, event.reason))
            case State.DRAINING | State.STOPPING | State.STUCK:
                if engine.kill_reason:
                    self.failed(replace(engine, kill_reason=""), engine.kill_reason)
                else:
                    self.advance(engine.to(State.STOPPED, self.now))
            case _:
                raise AssertionError(f"{engine.state} has no process")

    def out_of_gpu_memory(self, engine: Engine, reason: str) -> None:
        """Never tried again unchanged: one flag changes, and who waits goes on waiting; or it is over."""
        if ladder.next_change(engine) is None:
            text = explain_memory.out_of_rungs(engine, reason)
            engine = self.learn(engine, replace(engine.learnt, is_exhausted=True))
            engine = self.reject_all(engine, "start_failed", text, LONG_S)
            self.notify(engine.name, text, is_bad=True)
            gone = engine.to(State.FAILED, self.now, retry_at=math.inf, wanted=False, last_error=text)
            self.put(replace(gone, failures=()))
            return
        self.notify(engine.name, explain.ended(engine, reason), is_bad=True)
        engine, text = self.change_after_oom(engine)
        retry_at = self.now + engine.spec.backoff_s[0]
        wanted = engine.wanted or engine.spec.keep
        self.put(engine.to(State.BACKOFF, self.now, retry_at=retry_at, wanted=wanted, last_error=text))

    def change_after_oom(self, engine: Engine) -> tuple[Engine, str]:
        """Take one step down the ladder, if there is one, for whenever it starts next; returns what it is."""
        change = ladder.next_change(engine)
        if change is None or engine.launched_as != engine.spec.signature:
            return self.put(engine), engine.last_error
        text = explain_memory.adjusts(engine, *change)
        self.notify(engine.name, text, is_bad=True)
        flag, _, value = change
        # What was measured was measured with other flags.
        learnt = Learnt(start_s=engine.learnt.start_s, adjusted=ladder.adjusted(engine, flag, value))
        return self.learn(engine, learnt), text

    def out_of_main_memory(self, engine: Engine, reason: str) -> None:
        """Killed by the kernel. Sleepers give their main memory back and it is tried again; or it is over.

        It is over for restart_window_s: main memory that others took may be free by then.
        """
        sleepers = [
            other
            for other in self.holders()
            if other.name != engine.name
            and other.is_idle
            and other.state is State.SLEEPING
            and ram_bytes(other)
        ]
        sleepers = [other for other in sleepers if not self.disturbs(other, but=engine.name)]
        text = explain_memory.out_of_main_memory(engine, reason)
        if sleepers:
            for other in sleepers:
                self.notify(other.name, explain_memory.gives_ram_back(other, engine.name))
                self.stop(other)
            wanted = engine.wanted or engine.spec.keep
            engine = replace(engine, last_error=text, wanted=wanted)
            wait_s = engine.spec.backoff_s[0]
            self.notify(engine.name, explain.retries(engine, wait_s), is_bad=True)
            self.put(engine.to(State.BACKOFF, self.now, retry_at=self.now + wait_s))
        else:
            wait_s = engine.spec.restart_window_s
            engine = replace(self.reject_all(engine, "start_failed", text, wait_s), last_error=text)
            self.notify(engine.name, explain.left_alone(engine, wait_s), is_bad=True)
            self.put(engine.to(State.FAILED, self.now, retry_at=self.now + wait_s, wanted=False, failures=()))

    def reject_expired(self, engine: Engine) -> Engine:
        late = queue.expired(engine, self.now)
        if not late:
            return engine
        waits_for_room = (State.QUEUED, State.SLEEPING)
        code = "no_vram" if engine.state in waits_for_room else "start_timeout"
        if engine.state is State.READY:
            code = "model_busy"
        return self.reject(engine, late, code, explain.waited_too_long(engine), SOON_S)

    # --- a serving engine

    def check_progress(self, engine: Engine) -> None:
        """Ask it how far it has come, and end it where it has told the same for too long."""
        if math.isinf(engine.counted_at):  # it does not tell
            return
        asked = self.now >= engine.counted_at + count_interval_s(engine)
        late_at = engine.tokens_at + engine.spec.stall_timeout_s
        # It has been asked since it is late, and had time to answer: the daemon itself may have been held up.
        if engine.tokens is not None and asked and engine.counted_at >= late_at:
            text = explain.hung(engine)
            self.notify(engine.name, text, is_bad=True)
            wanted = engine.wanted or engine.spec.keep
            down = engine.to(State.DRAINING, self.now, hangs=True, kill_reason=text, wanted=wanted)
            self.put(down)
        elif asked:
            self.put(replace(engine, counted_at=self.now))
            self.effects.append(CountTokens(model=engine.name, launch=engine.launch))

    def check_idle(self, engine: Engine) -> None:
        """Stop it, or put it to sleep, when it is time; not while a start on its GPUs measures memory."""
        if engine.is_wanted:
            return
        stops = idle.is_due(idle.stop_deadline(engine), self.now)
        if not (stops or idle.is_due(idle.sleep_deadline(engine), self.now)) or self.disturbs(engine):
            return
        if stops:
            self.notify(engine.name, explain.idle_stop(engine))
            self.end_idle(engine)
        else:
            self.fall_asleep(engine, explain_memory.idle_for(engine.spec.sleep_after_s or 0))

    def end_idle(self, engine: Engine) -> None:
        """Stop an engine that nobody uses."""
        if engine.state is State.SLEEPING:
            self.stop(engine)
        else:
            self.advance(engine.to(State.DRAINING, self.now))

    def nudge_neighbours(self, gpus: tuple[int, ...]) -> None:
        """A start on `gpus` is over: what it held up is due now."""
        for name in [engine.name for engine in self.holders()]:
            engine = self.engines[name]
            if engine.is_idle and not set(gpus).isdisjoint(engine.gpus):
                self.check_idle(engine)


def opens_in_s(engine: Engine, now: float) -> float:
    """For how long the schedule goes on not to let it run."""
    return LONG_S if engine.spec.opens_at is None else max(1.0, engine.spec.opens_at - now)


def drains_until(engine: Engine) -> float:
    """When what is still in flight of a draining engine is cut."""
    at = engine.since + engine.spec.drain_timeout_s
    return max(at, engine.spec.closes_at) if engine.spec.closed and not engine.hangs else at


def count_interval_s(engine: Engine) -> float:
    """How often a busy engine is asked for its tokens: often enough to notice a hang in time."""
    return min(5.0, max(0.25, engine.spec.stall_timeout_s / 4))


def deadline(engine: Engine, now: float) -> float:
    """When, if nothing else happens, `advance` has something to do; infinity: never."""
    spec = engine.spec
    at = queue.waits_since(engine) + spec.queue_timeout_s if engine.waiting else math.inf
    match engine.state:
        case State.QUEUED | State.STOPPED | State.STOPPING | State.FAILED | State.STUCK:
            return at
        case State.PREPARING:
            return min(at, engine.last_sign + spec.stall_timeout_s)
        case State.STARTING:
            return min(at, engine.since + spec.start_timeout_s, engine.last_sign + spec.stall_timeout_s)
        case State.READY:
            if engine.leases and not math.isinf(engine.counted_at):
                at = min(at, max(now, engine.counted_at) + count_interval_s(engine))
            return min(at, _end_of_idleness(engine, now))
        case State.WAKING:
            return min(at, engine.since + spec.start_timeout_s)
        case State.SLEEPING if engine.asleep_at is None:
            return min(at, engine.since + spec.start_timeout_s)
        case State.SLEEPING:
            if engine.asleep_at is not None and not engine.gave_back:
                at = min(at, engine.asleep_at + 2 * SETTLE_S)
            return min(at, _end_of_idleness(engine, now))
        case State.DRAINING:
            return min(at, drains_until(engine))
        case State.BACKOFF:
            return min(at, engine.retry_at)
        case _:
            assert_never(engine.state)


def _end_of_idleness(engine: Engine, now: float) -> float:
    """When it is stopped or put to sleep; one that is due and held up is nudged when it may."""
    if not engine.is_idle:
        return math.inf
    due = (idle.stop_deadline(engine), idle.sleep_deadline(engine))
    return min((at for at in due if at is not None and at > now), default=math.inf)
