"""`plan` as a person types it: from the daemon where one answers, else worked out here."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from supervisord_llm.cli import render_plan
from supervisord_llm.cli.render import Look
from supervisord_llm.core.estimate import Estimate
from supervisord_llm.core.events import Estimated
from tests.cli.conftest import CONFIG, Cli, House
from tests.gpu.nvml import Card, StubNvml

GIB = 1024**3
QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubNvml:
    """Two cards that commands of this test see, and no hub."""
    stub = StubNvml(tmp_path, (Card("GPU-aaaa", 24 * 1024), Card("GPU-bbbb", 24 * 1024)))
    for name, value in (stub.environ | {"HF_HUB_OFFLINE": "1"}).items():
        monkeypatch.setitem(os.environ, name, value)
    return stub


def written(cli: Cli, models: str, **configs: dict[str, Any]) -> None:
    """A configuration with these models, and local directories with a config.json each."""
    cli.config.write_text(CONFIG.partition("[models.coder]")[0] + models)
    for name, config in configs.items():
        (cli.folder / name).mkdir()
        (cli.folder / name / "config.json").write_text(json.dumps(config))


async def planned(cli: Cli) -> Any:
    """What `plan --json` prints, less what the stub of NVML does."""
    out = (await cli("plan", "--json")).out
    return json.loads(out[out.index("{") :])


# --- with a daemon -----------------------------------------------------------------------------


async def test_the_daemon_tells_how_things_stand(cli: Cli, house: House) -> None:
    await cli("start", "coder")
    done = await cli("plan")
    assert (done.code, done.err) == (0, "")
    gpu, unknown, _, header, coder, chat, _, together = done.out.splitlines()
    assert unknown == "GPU figures: unknown, NVML does not answer"
    assert gpu.startswith("GPU 0  █████░")
    assert "20.0 GiB budget, 5.0 GiB granted, 15.0 GiB free" in gpu
    assert " ".join(header.split()) == "MODEL WEIGHTS KV CACHE OVERHEAD GRANT SOURCE CONTEXT ON FITS"
    assert " ".join(coder.split()) == "coder - - - 5.0 GiB configured - any GPU yes"
    assert chat.split()[0] == "chat"
    assert together == "all of these fit at once: coder (GPU 0), chat (GPU 0)"


async def test_as_json_it_is_what_the_daemon_says(cli: Cli, house: House) -> None:
    estimate = Estimate(
        weights_bytes=5 * GIB,
        kv_bytes=GIB,
        least_kv_bytes=GIB,
        overhead_bytes=GIB,
        host_bytes=5 * GIB,
        max_model_len=8192,
        sequences=1,
        kv_bytes_per_token=GIB // 8192,
    )
    house.runtime.dispatch(Estimated(model="coder", signature="", estimate=estimate))
    found = await planned(cli)
    assert found["models"]["coder"]["weights_bytes"] == 5 * GIB
    assert found["models"]["coder"]["fits"]
    assert found["gpus"][0]["uuid"] == "GPU-a"
    told = (await cli("plan")).out
    assert "its grant is 5.0 GiB, and one sequence of 8192 tokens needs about 7.0 GiB" in told
    assert '  coder fits with vram = "7.0GiB" or more' in told


# --- without one ---------------------------------------------------------------------------------


async def test_without_a_daemon_it_is_worked_out_from_what_is_here(cli: Cli, gpus: StubNvml) -> None:
    written(
        cli,
        '[models.large]\nsource = "./qwen"\nflags = { max-num-seqs = 4 }\n'
        '[models.short]\nsource = "./qwen"\nflags = { max-model-len = 4096, max-num-seqs = 4 }\n'
        '[models.fixed]\nsource = "org/fixed"\nvram = "15GiB"\n'
        '[models.huge]\nsource = "org/huge"\nvram = "50GiB"\n'
        '[models.cpu]\nsource = "org/cpu"\ngpus = []\n',
        qwen=QWEN_7B,
    )
    found = await planned(cli)
    assert [gpu["uuid"] for gpu in found["gpus"]] == ["GPU-aaaa", "GPU-bbbb"]
    models = found["models"]
    assert models["large"]["source"] == "estimated"
    assert models["large"]["weights_bytes"] == pytest.approx(7.62e9 * 2, rel=0.05)
    assert models["short"]["grant_bytes"] < models["large"]["grant_bytes"] <= found["gpus"][0]["budget_bytes"]
    assert (models["fixed"]["source"], models["fixed"]["grant_bytes"]) == ("configured", 15 * GIB)
    assert (models["huge"]["fits"], models["cpu"]["source"]) == (False, "no GPU")
    for each in found["together"]:
        assert 1 <= len(each["models"]) <= 2
    done = await cli("plan")
    assert (done.code, done.err) == (0, "")
    assert "cannot start huge: it needs 50.0 GiB of a budget of 21.6 GiB on GPU 0\n" in done.out


async def test_a_context_that_is_too_long_is_told_with_the_one_that_fits(cli: Cli, gpus: StubNvml) -> None:
    small = QWEN_7B | {"max_position_embeddings": 1_000_000}
    written(cli, '[models.long]\nsource = "./long"\n', long=small)
    found = (await planned(cli))["models"]["long"]
    assert not found["fits"]
    length = int(next(each for each in found["suggestions"] if "max-model-len" in each).split()[-1])
    assert 8192 < length < 1_000_000
    cli.config.write_text(cli.config.read_text() + f"flags = {{ max-model-len = {length} }}\n")
    again = (await planned(cli))["models"]["long"]
    assert again["fits"], "what is suggested fits"


async def test_programs_on_a_gpu_are_told(cli: Cli, gpus: StubNvml) -> None:
    (gpus.state / "procs" / str(os.getpid())).write_text("0 20480\n1 20480\n")
    written(cli, '[models.m]\nsource = "org/m"\nvram = "15GiB"\n')
    done = await cli("plan")
    assert f"(pid {os.getpid()}, 20.0 GiB)" in done.out
    assert "other programs leave 4.0 GiB of GPU 0" in done.out
    assert "  m fits once " in done.out


async def test_no_gpu_is_said(cli: Cli) -> None:
    done = await cli("plan")
    assert done.code == 0
    assert done.out.startswith("no GPU: every model runs on the CPU\n")


async def test_a_wrong_configuration_is_78(cli: Cli) -> None:
    cli.config.write_text("[server]\nlisen = 1\n")
    done = await cli("plan")
    assert (done.code, done.out) == (78, "")
    assert 'did you mean "listen"?' in done.err


# --- pictures ------------------------------------------------------------------------------------------


def model(**fields: Any) -> dict[str, Any]:
    return {
        "source": "estimated",
        "where": "any GPU",
        "grant_bytes": 12 * GIB,
        "weights_bytes": 8 * GIB,
        "kv_bytes": 3 * GIB,
        "overhead_bytes": GIB,
        "max_model_len": 8192,
        "full_sequences": 4.5,
        "on": [{"gpu": 0, "grant_bytes": 12 * GIB, "why_not": ""}],
        "fits": True,
        "why_not": "",
        "doubt": "",
        "suggestions": [],
    } | fields


PLAN: dict[str, Any] = {
    "gpus": [
        {
            "index": 0,
            "name": "Card",
            "total_bytes": 24 * GIB,
            "budget_bytes": 20 * GIB,
            "held_bytes": 0,
            "free_bytes": 20 * GIB,
            "strangers": [],
            "lost": "",
        }
    ],
    "models": {
        "chat": model(),
        "coder": model(source="measured"),
        "big": model(
            fits=False,
            why_not="cannot start big: no room",
            suggestions=["fits with max-model-len 4096"],
        ),
    },
    "together": [
        {"models": ["chat"], "gpus": [[0]], "left_out": [{"name": "coder", "why": "4.0 GiB short on GPU 0"}]},
        {"models": ["coder"], "gpus": [[0]], "left_out": [{"name": "chat", "why": "4.0 GiB short on GPU 0"}]},
    ],
    "is_complete": True,
}


def test_the_picture() -> None:
    assert render_plan.plan(PLAN, Look()) == (
        "GPU 0  ░░░░░░░░░░░░░░░░░░░░  20.0 GiB budget, 0.0 GiB granted, 20.0 GiB free  Card, 24.0 GiB\n"
        "\n"
        "MODEL  WEIGHTS  KV CACHE  OVERHEAD  GRANT     SOURCE     CONTEXT     ON       FITS\n"
        "chat   8.0 GiB  3.0 GiB   1.0 GiB   12.0 GiB  estimated  8192 x 4.5  any GPU  yes\n"
        "coder  8.0 GiB  3.0 GiB   1.0 GiB   12.0 GiB  measured   8192 x 4.5  any GPU  yes\n"
        "big    8.0 GiB  3.0 GiB   1.0 GiB   12.0 GiB  estimated  8192 x 4.5  any GPU  no\n"
        "\n"
        "cannot start big: no room\n"
        "  big fits with max-model-len 4096\n"
        "\n"
        "fit at once:\n"
        "  chat (GPU 0)\n"
        "    without coder (4.0 GiB short on GPU 0)\n"
        "  coder (GPU 0)\n"
        "    without chat (4.0 GiB short on GPU 0)"
    )


def test_a_cut_list_and_lost_gpus_say_so() -> None:
    lost = PLAN["gpus"][0] | {"lost": "it fell off the bus"}
    told = render_plan.plan(PLAN | {"gpus": [lost], "is_complete": False}, Look(color=True))
    assert "\x1b[31mGPU 0 is lost: it fell off the bus\x1b[0m" in told
    assert "20.0 GiB budget, 0.0 GiB granted, lost" in told
    assert "fit at once (some of many sets):" in told
    partly = [{"gpu": 0, "why_not": ""}, {"gpu": 1, "why_not": "GPU 1 is lost"}]
    told = render_plan.plan(PLAN | {"models": {"chat": model(on=partly)}}, Look())
    assert told.splitlines()[3].endswith("GPU 0 only")


def test_doubts_short_sequences_and_long_lists_are_short() -> None:
    unsure = model(full_sequences=0.2, doubt="chat may not start: …", suggestions=["fits with x"])
    left_out = [{"name": f"m{number}", "why": "1.0 GiB short on GPU 0"} for number in range(9)]
    one = {"models": ["chat"], "gpus": [[0]], "left_out": left_out}
    other = {"models": ["m0"], "gpus": [[0]], "left_out": left_out[:3]}
    told = render_plan.plan(PLAN | {"models": {"chat": unsure}, "together": [one, other]}, Look())
    assert "8192, <1 sequence  any GPU  doubtful" in told
    assert "\nchat may not start: …\n  chat fits with x\n" in told
    three = "; ".join(f"m{number} (1.0 GiB short on GPU 0)" for number in range(3))
    assert f"    without {three}; and 6 more\n" in told
    assert told.endswith(f"    without {three}")


# --- what check says, plan says -------------------------------------------------------------------


async def test_a_directory_that_check_refuses_does_not_fit(cli: Cli, gpus: StubNvml) -> None:
    (cli.folder / "empty").mkdir()
    (cli.folder / "venv" / "bin").mkdir(parents=True)
    (cli.folder / "venv" / "bin" / "vllm").touch(0o755)
    written(
        cli,
        '[models.empty]\nsource = "./empty"\nvenv = { path = "./venv" }\n'
        '[models.gone]\nsource = "./gone"\nvenv = { path = "./venv" }\n',
    )
    models = (await planned(cli))["models"]
    checked = json.loads((await cli("check", "--json")).out.partition("NVML")[0])["facts"]
    bad = {fact["where"]: fact["text"] for fact in checked if fact["level"] == "bad"}
    for name, path in (("empty", "empty/config.json"), ("gone", "gone")):
        assert str(cli.folder / path) in bad[f"models.{name}"]
        assert (models[name]["fits"], models[name]["suggestions"]) == (False, [])
        assert models[name]["why_not"] == f"cannot start {name}: {bad[f'models.{name}']}"


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ("hang", "NVML does not answer within 6 s"),
        ("crash", "NVML crashed the process that asks it (SIGABRT)"),
        ("init-fails", "cannot use the NVIDIA driver: Driver Not Loaded; `nvidia-smi` may tell more"),
    ],
)
async def test_an_nvml_that_does_not_answer_is_no_host_without_gpus(
    cli: Cli, gpus: StubNvml, trouble: str, sentence: str
) -> None:
    gpus.say(trouble)
    written(cli, '[models.a]\nsource = "org/a"\n[models.cpu]\nsource = "org/cpu"\ngpus = []\n')
    done = await cli("plan")
    assert done.out.startswith(f"no GPU that can be used\n\n{sentence}\n")
    assert f"cannot start a: it is not known which GPUs can be used: {sentence}; " in done.out
    checked = await cli("check")
    assert checked.code == 1
    assert f"bad   gpus: it is not known which GPUs can be used: {sentence}\n" in checked.out
    assert "bad   models.a: cannot start a: it is not known which GPUs" in checked.out
    assert "bad   models.cpu" not in checked.out
