"""Pictures as text."""

from typing import Any

from supervisord_llm.cli import render
from supervisord_llm.cli.render import Look

GIB = 1024**3


def model(state: str, **fields: Any) -> dict[str, Any]:
    return {
        "state": state,
        "phase": "",
        "fraction": None,
        "gpus": [],
        "requests_in_flight": 0,
        "waiting": 0,
        "uptime_s": None,
        "idle_s": None,
        "last_error": "",
        "retry_in_s": None,
    } | fields


STATUS: dict[str, Any] = {
    "version": "1.2",
    "pid": 7,
    "uptime_s": 11100.0,
    "stopping": False,
    "models": {
        "coder": model("ready", gpus=[0, 1], requests_in_flight=2, uptime_s=7500.0),
        "chat": model("preparing", phase="weights: downloading", fraction=0.429, waiting=3),
        "old": model(
            "backoff", retry_in_s=12.0, last_error="cannot start old: out of \x1b[31mmemory\nlast lines:\n  x"
        ),
    },
    "gpus": [
        {
            "index": 0,
            "name": "Card",
            "total_bytes": 24 * GIB,
            "budget_bytes": 20 * GIB,
            "held_bytes": 5 * GIB,
            "models": ["coder"],
        }
    ],
}


def test_status() -> None:
    assert render.status(STATUS, Look()) == (
        "llm-supervisor 1.2, up 3 h 5 min, pid 7; 1 of 3 models ready\n"
        "\n"
        "MODEL  STATE                               GPU  IN FLIGHT  WAITING  UP         IDLE  LAST ERROR\n"
        "coder  ready                               0,1  2          0        2 h 5 min  -\n"
        "chat   preparing 42% weights: downloading  -    0          3        -          -\n"
        "old    backoff, again in 12 s              -    0          0        -          -     "
        "cannot start old: out of [31mmemory\n"
        "\n"
        "GPU 0  █████░░░░░░░░░░░░░░░  5.0 GiB of 20.0 GiB granted  Card, 24.0 GiB  coder"
    )


def test_a_terminal_cuts_the_last_column_and_colours_states() -> None:
    shown = render.status(STATUS, Look(110, color=True)).splitlines()
    assert max(len(line) for line in shown if "\x1b" not in line) <= 110
    assert shown[3].startswith("\x1b[32mcoder")
    assert shown[5].startswith("\x1b[31mold")
    assert shown[5].endswith("…\x1b[0m")


def test_memory_in_use_programs_on_a_gpu_and_lost_ones_are_told() -> None:
    gpu = STATUS["gpus"][0] | {
        "used_bytes": 9 * GIB,
        "strangers": [{"pid": 7, "name": "blender\n", "used_bytes": 4 * GIB}],
        "lost": "it fell off the bus",
    }
    bar, lost, shared = render.status(STATUS | {"gpus": [gpu]}, Look()).splitlines()[-3:]
    assert "5.0 GiB of 20.0 GiB granted, 9.0 GiB used  Card" in bar
    assert lost == "GPU 0 is lost: it fell off the bus"
    assert shared == "GPU 0 is shared with blender (pid 7, 4.0 GiB)"


def test_flags_that_were_changed_are_told() -> None:
    models = {"big": model("ready", adjusted={"max-num-seqs": 64})}
    shown = render.status(STATUS | {"models": models, "gpus": []}, Look())
    assert shown.endswith("\n\nbig ran out of GPU memory and is started with max-num-seqs 64")


def test_adapters_are_told_with_the_model_that_serves_them() -> None:
    models = {"coder": model("ready", adapters=["sql", "law"]), "chat": model("ready", adapters=[])}
    shown = render.status(STATUS | {"models": models, "gpus": []}, Look())
    assert shown.endswith("\n\ncoder serves its adapters, too: sql, law")


def test_routes_are_told_with_what_they_chose() -> None:
    told = {"state": "ready", "policy": "warm", "members": ["a", "b"], "choices": {"b": 3, "grok": 1}}
    shown = render.status(STATUS | {"routes": {"llama": told}, "gpus": []}, Look())
    assert shown.endswith("\n\nROUTE  STATE  POLICY  CHOICES\nllama  ready  warm    a 0, b 3, grok 1")


def test_memory_that_is_not_told_draws_no_bar() -> None:
    gpu = {key: value for key, value in STATUS["gpus"][0].items() if key != "held_bytes"} | {"models": []}
    last = render.status(STATUS | {"gpus": [gpu]}, Look()).splitlines()[-1]
    assert last == "GPU 0  20.0 GiB budget  Card, 24.0 GiB  free"


def test_a_model_that_cannot_run_here_says_why() -> None:
    models = {"big": model("stopped", disabled="cannot start big: no such GPU")}
    shown = render.status(STATUS | {"models": models, "gpus": []}, Look()).splitlines()
    assert shown[-1].endswith("cannot start big: no such GPU")


def test_a_model_that_only_a_request_starts_again_is_failed_and_no_more() -> None:
    models = {"old": model("failed", retry_in_s=0.0)}
    shown = render.status(STATUS | {"models": models, "gpus": []}, Look()).splitlines()
    assert shown[-1].split() == ["old", "failed", "-", "0", "0", "-", "-"]


def test_main_memory_is_told_where_it_is_known() -> None:
    models = {"big": model("ready", memory_bytes=3 * GIB), "old": model("stopped", memory_bytes=None)}
    head, big, old = render.status(STATUS | {"models": models, "gpus": []}, Look()).splitlines()[-3:]
    assert head.endswith("IDLE  RAM")
    assert big.endswith("  3.0 GiB")
    assert old.split()[-1] == "-"
    models["big"]["memory_bytes"] = None
    assert "RAM" not in render.status(STATUS | {"models": models, "gpus": []}, Look())


def test_no_models_is_said() -> None:
    assert "no models are configured" in render.status(STATUS | {"models": {}, "gpus": []}, Look())


def test_a_bar_is_full_or_empty_only_when_that_is_so() -> None:
    assert [render.bar(fraction, 4) for fraction in (0, 0.001, 0.5, 0.999, 1, 1.7)] == [
        "░░░░",
        "█░░░",
        "██░░",
        "███░",
        "████",
        "████",
    ]
    assert [render.percent(fraction) for fraction in (0, 0.999, 1)] == ["0%", "99%", "100%"]


def test_spans_of_time() -> None:
    spans = {
        None: "-",
        0.9: "0 s",
        59: "59 s",
        60: "1 min",
        3600: "1 h",
        7500: "2 h 5 min",
        273600: "3 d 4 h",
    }
    assert {seconds: render.span(seconds) for seconds in spans} == spans


def test_events_name_their_model_once() -> None:
    entry = {"at": "T", "model": "chat", "text": "starts chat on GPU 0", "is_bad": False}
    assert render.event(entry, Look(color=True)) == "T  starts chat on GPU 0"
    assert render.event(entry | {"text": "went away", "is_bad": True}, Look()) == "T  chat: went away"
    assert render.event(entry | {"model": "", "text": "all is well"}, Look()) == "T  all is well"


def test_a_reload_is_told_by_what_changed() -> None:
    assert render.reload({"added": ["a", "b"], "removed": [], "needs_restart": []}) == "added: a, b"
    assert render.reload({"added": [], "removed": []}) == "reloaded; the settings of engines are as before"


def test_an_nvml_that_does_not_answer_is_told_unless_every_gpu_is_lost() -> None:
    gpu = STATUS["gpus"][0] | {"used_bytes": None, "strangers": [], "lost": ""}
    told = "GPU figures: unknown, NVML does not answer"
    for gpus, is_told in (
        ([gpu, gpu], True),
        ([gpu, gpu | {"lost": "it fell off the bus"}], True),
        ([gpu, gpu | {"used_bytes": 0}], False),
        ([gpu | {"lost": "it fell off the bus"}], False),
    ):
        shown = render.status(STATUS | {"gpus": gpus}, Look())
        assert (shown.splitlines()[-1] == told) is is_told


SCHEDULE = {
    "timezone": "Europe/Berlin",
    "switches": [
        {"at": "2026-10-25T02:30:00+02:00", "window": "night"},
        {"at": "2026-10-25T06:00:00+01:00", "window": None},
    ],
    "summary": "every model may run",
}


def test_a_schedule_is_a_sentence_and_a_line_for_each_switch() -> None:
    assert render.schedule(SCHEDULE) == (
        'every model may run\n  Sun 2026-10-25 02:30  window "night"\n  Sun 2026-10-25 06:00  no window'
    )
    assert render.schedule({**SCHEDULE, "switches": []}) == "every model may run"


def test_status_has_the_schedule_in_a_line_where_there_is_one() -> None:
    head, line, *_ = render.status({**STATUS, "schedule": SCHEDULE}, Look()).splitlines()
    assert (head, line) == (render.status(STATUS, Look()).splitlines()[0], "every model may run")
    assert render.status({**STATUS, "schedule": {"timezone": None}}, Look()) == render.status(STATUS, Look())


def test_a_model_that_the_schedule_closes_says_so() -> None:
    shut = {**STATUS, "models": {"old": model("stopped", closed="does not run until 06:00")}}
    assert "does not run until 06:00" in render.status(shut, Look())
