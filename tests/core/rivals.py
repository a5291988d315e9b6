"""What others do, on the same terms: the same budgets, one start at a time on a GPU, nobody busy evicted.

`Lru` is what users of Ollama and llama-swap know, at its best: requests for a loaded model are served at
once; whoever must be loaded goes where there is room, else where the engines that nobody has used for longest
make way; whoever finds neither waits, and holds nobody up. `Fifo` loads models strictly in the order in which
they were asked for: the first who finds no room holds up all others, and what was loaded first makes way.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

from supervisord_llm.core.effects import Admit, Effect, StartEngine, StopEngine
from supervisord_llm.core.events import EngineExited, EngineReady, Event, RelayFinished, RequestArrived
from tests.core.day import Day


@dataclass(slots=True)
class Loaded:
    """An engine from its launch to its end."""

    gpus: tuple[int, ...]
    grant_bytes: int
    launch: int
    since: float
    last_used: float
    state: str = "starting"
    """Or "ready", "ending"."""
    leases: set[int] = field(default_factory=set)

    @property
    def is_idle(self) -> bool:
        return self.state == "ready" and not self.leases


class Lru:
    """Least recently used."""

    HOLDS_UP_OTHERS = False

    def __init__(self, day: Day) -> None:
        self.specs = {spec.name: spec for spec in day.specs}
        self.gpus = {gpu.index: gpu for gpu in day.gpus}
        self.loaded: dict[str, Loaded] = {}
        self.waiting: dict[str, list[int]] = {}
        """Requests by model; the models in the order of their oldest."""
        self.places: dict[str, tuple[int, ...]] = {}
        """Where room is being made for whom."""
        self.launches = 0

    def age(self, engine: Loaded) -> float:
        """Whose is least makes way first."""
        return engine.last_used

    def take(self, event: Event, now: float) -> list[Effect]:
        return list(self.effects(event, now))

    def effects(self, event: Event, now: float) -> Iterator[Effect]:
        match event:
            case RequestArrived(request=request, model=model):
                engine = self.loaded.get(model)
                if engine is not None and engine.state == "ready":
                    yield self.admit(engine, request, model, now)
                else:
                    self.waiting.setdefault(model, []).append(request)
            case RelayFinished(request=request, model=model):
                self.loaded[model].leases.remove(request)
                self.loaded[model].last_used = now
            case EngineReady(model=model):
                engine = self.loaded[model]
                engine.state = "ready"
                for request in self.waiting.pop(model, ()):
                    yield self.admit(engine, request, model, now)
            case EngineExited(model=model):
                del self.loaded[model]
            case _:
                return
        yield from self.place(now)

    def admit(self, engine: Loaded, request: int, model: str, now: float) -> Admit:
        engine.leases.add(request)
        engine.last_used = now
        return Admit(request=request, model=model)

    def place(self, now: float) -> Iterator[Effect]:
        for model in tuple(self.waiting):
            if model in self.loaded:
                continue
            if model not in self.places:
                found = self.find(model)
                if found is None:
                    if self.HOLDS_UP_OTHERS:
                        return
                    continue
                self.places[model], leaving = found
                for name in leaving:
                    engine = self.loaded[name]
                    engine.state = "ending"
                    yield StopEngine(model=name, launch=engine.launch)
            gpus = self.places[model]
            if not any(self.is_moving(index) for index in gpus):
                del self.places[model]
                self.launches += 1
                self.loaded[model] = Loaded(gpus, self.grant_bytes(model), self.launches, now, now)
                yield StartEngine(model=model, launch=self.launches, gpus=gpus)

    def find(self, model: str) -> tuple[tuple[int, ...], tuple[str, ...]] | None:
        """The best GPUs for it, and who leaves them: nobody, or else those of the least age."""
        count, taken = self.specs[model].gpu_count, {index for each in self.places.values() for index in each}
        options: list[tuple[float, int, tuple[int, ...], tuple[str, ...]]] = []
        for gpus in combinations(self.gpus, count):
            equal = len({self.gpus[index].total_bytes for index in gpus}) == 1
            if not equal or any(index in taken or self.is_moving(index) for index in gpus):
                continue
            leaving: list[str] = []
            for index in gpus:
                found = self.leave(model, index, leaving)
                if found is None:
                    break
                leaving += found
            else:
                age = max((self.age(self.loaded[name]) for name in leaving), default=-1.0)
                room = -sum(self.free_bytes(index) for index in gpus)
                options.append((age, room, gpus, tuple(leaving)))
        return min(options)[2:] if options else None

    def leave(self, model: str, index: int, leaving: list[str]) -> list[str] | None:
        """Who else has to leave GPU `index`; None if that is not enough."""
        missing = self.grant_bytes(model) - self.free_bytes(index)
        here = [name for name, engine in self.loaded.items() if index in engine.gpus]
        missing -= sum(self.loaded[name].grant_bytes for name in here if name in leaving)
        idle = [name for name in here if self.loaded[name].is_idle and name not in leaving]
        chosen: list[str] = []
        for name in sorted(idle, key=lambda name: self.age(self.loaded[name])):
            if missing <= 0:
                break
            chosen.append(name)
            missing -= self.loaded[name].grant_bytes
        for name in chosen[::-1]:
            if missing + self.loaded[name].grant_bytes <= 0:
                missing += self.loaded[name].grant_bytes
                chosen.remove(name)
        return chosen if missing <= 0 else None

    def is_moving(self, index: int) -> bool:
        return any(index in engine.gpus and engine.state != "ready" for engine in self.loaded.values())

    def free_bytes(self, index: int) -> int:
        held = sum(engine.grant_bytes for engine in self.loaded.values() if index in engine.gpus)
        return self.gpus[index].budget_bytes - held

    def grant_bytes(self, model: str) -> int:
        grant = self.specs[model].grant
        assert isinstance(grant, int)
        return grant


class Fifo(Lru):
    """First come, first loaded; first loaded, first to leave."""

    HOLDS_UP_OTHERS = True

    def age(self, engine: Loaded) -> float:
        return engine.since
