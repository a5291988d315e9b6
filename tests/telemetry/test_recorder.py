"""Figures of models that come and go: those of peers, of which there may be many."""

from types import MappingProxyType

from supervisord_llm.core.events import Tick
from supervisord_llm.core.fleet import Engine, Fleet, ModelSpec
from supervisord_llm.telemetry.record import Outcome, RequestRecord
from supervisord_llm.telemetry.recorder import Recorder


def fleet(*names: str) -> Fleet:
    return Fleet(engines=MappingProxyType({name: Engine(spec=ModelSpec(name=name)) for name in names}))


def record(model: str) -> RequestRecord:
    return RequestRecord(
        request_id="r",
        method="POST",
        path="/v1/chat/completions",
        model=model,
        source="a",
        status=200,
        outcome=Outcome.OK,
        refusal="",
        latency_s=1.0,
        wait_s=0.0,
        first_byte_s=0.5,
        usage=None,
    )


def lines(recorder: Recorder) -> list[str]:
    return recorder.metrics.render("")[0].decode().splitlines()


def test_lists_of_peers_leave_nothing_behind() -> None:
    recorder = Recorder(Fleet)
    recorder.configure(("own",))
    before = lines(recorder)
    assert any('requests_total{code="200",model="own"} 0.0' in line for line in before)
    for number in range(10):
        names = [f"p/{number}-{index}" for index in range(500)]
        recorder.configure(("own",), peers=names)
        recorder.observe(Tick(), fleet(*names))
        recorder.request(record(names[0]))
        recorder.route_chosen("r", names[0])
        assert f'model="{names[0]}"' in "".join(lines(recorder))
        assert recorder.stats.of(names[0])["requests"]["ok"] == 1
    recorder.configure(("own",))
    recorder.observe(Tick(), fleet("own"))
    assert lines(recorder) == before
    assert recorder.stats.of(names[0])["requests"]["ok"] == 0


def test_what_was_counted_of_others_stays() -> None:
    recorder = Recorder(Fleet)
    recorder.configure(("own",), peers=("p/a", "p/b"))
    for name in ("own", "p/a", "p/b", ""):
        recorder.request(record(name))
    recorder.configure(("own",), peers=("p/b",))
    text = "\n".join(lines(recorder))
    for name in ("own", "p/b", ""):
        assert f'requests_total{{code="200",model="{name}"}} 1.0' in text
    assert "p/a" not in text
