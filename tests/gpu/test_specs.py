"""What the core learns of a model from the configuration and the host."""

from collections.abc import Callable
from pathlib import Path

import pytest

from supervisord_llm.config.load import load
from supervisord_llm.core.fleet import Gpu, Learnt, ModelSpec
from supervisord_llm.gpu.budget import Budgets
from supervisord_llm.gpu.specs import model_specs, nothing_learnt

GIB = 1024**3


def gpu(index: int) -> Gpu:
    return Gpu(index=index, uuid=f"GPU-{index}", name="Card", total_bytes=24 * GIB, budget_bytes=20 * GIB)


def spec(
    folder: Path,
    *lines: str,
    gpus: tuple[Gpu, ...] = (),
    default: str = "m2",
    learnt: Callable[[str, str], Learnt] = nothing_learnt,
) -> ModelSpec:
    """Of [models.m] with these lines, beside a model m2."""
    file = folder / "config.toml"
    model = "\n".join(lines)
    file.write_text(
        f'[server]\ndrain_timeout = "7s"\ndefault_model = "{default}"\n[auth]\nrequired = false\n'
        f'[models.m2]\nsource = "org/m2"\n[models.m]\nsource = "org/m"\n{model}\n'
    )
    config = load(file, {"RUNTIME_DIRECTORY": str(folder)})
    return model_specs(config, Budgets(gpus), learnt)[1]


def test_auto_leaves_the_place_to_the_scheduler_and_takes_the_cpu_without_gpus(tmp_path: Path) -> None:
    assert spec(tmp_path, gpus=(gpu(0),)).pinned is None
    assert spec(tmp_path).pinned == ()


@pytest.mark.parametrize(
    ("keys", "with_gpus", "without"),
    [
        ("replicas = 2", [(0,), (1,)], [(), ()]),
        ('replicas = 2\ngpus = "auto"', [(0,), (1,)], [(), ()]),
        ("replicas = 1\ngpus = [1]", [(1,)], None),
    ],
)
def test_replicas_that_are_numbered_take_the_cpu_without_gpus(
    tmp_path: Path, keys: str, with_gpus: list[tuple[int, ...]], without: list[tuple[int, ...]] | None
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[auth]\nrequired = false\n[models.m]\nsource = "org/m"\n{keys}\n')
    config = load(file, {"RUNTIME_DIRECTORY": "/run/x"})
    there = model_specs(config, Budgets((gpu(0), gpu(1))))
    assert [each.pinned for each in there] == with_gpus
    bare = model_specs(config, Budgets())
    if without is None:
        assert all("this host has no GPU 1" in each.disabled for each in bare)
    else:
        assert [(each.pinned, each.disabled) for each in bare] == [(one, "") for one in without]


def test_a_gpu_that_is_not_there_disables_the_model_alone(tmp_path: Path) -> None:
    made = spec(tmp_path, "gpus = [1]", gpus=(gpu(0),))
    assert made.disabled.startswith("cannot start m: gpus = [1], but this host has no GPU 1")
    assert spec(tmp_path, 'gpus = ["GPU-0"]', gpus=(gpu(0),)).disabled == ""


def test_a_flag_that_sizes_memory_disables_the_model_where_it_would_run_on_a_gpu(tmp_path: Path) -> None:
    flag = 'flags.kv-cache-memory-bytes = "1G"'
    made = spec(tmp_path, flag, gpus=(gpu(0),))
    assert made.disabled == (
        "cannot start m: its flag kv-cache-memory-bytes would size GPU memory beside the grant; "
        "remove it and see `vram`, or set gpus = []"
    )
    assert spec(tmp_path, flag).disabled == ""
    assert spec(tmp_path, flag, "gpus = []", gpus=(gpu(0),)).disabled == ""


@pytest.mark.parametrize(("line", "grant"), [("", None), ('vram = "50%"', 0.5), ('vram = "6GiB"', 6 * GIB)])
def test_vram_becomes_the_grant(tmp_path: Path, line: str, grant: float | None) -> None:
    assert spec(tmp_path, line, gpus=(gpu(0),)).grant == grant


def test_sleep_and_what_sizes_a_batch_come_through(tmp_path: Path) -> None:
    bare = spec(tmp_path)
    assert (bare.sleep_after_s, bare.sleep_level, bare.max_num_seqs, bare.max_model_len) == (
        *(None, 0),
        *(256, None),
    )
    made = spec(
        tmp_path,
        'idle = { sleep_after = "5m", sleep_level = 2 }',
        "flags = { max_num_seqs = 8, max-model-len = 4096 }",
    )
    assert (made.sleep_after_s, made.sleep_level, made.max_num_seqs, made.max_model_len) == (300, 2, 8, 4096)
    assert spec(tmp_path, 'flags.max-model-len = "auto"').max_model_len is None


def test_the_default_model_comes_back_by_its_alias_too(tmp_path: Path) -> None:
    assert not spec(tmp_path).comes_back
    assert spec(tmp_path, 'aliases = ["nick"]', default="nick").comes_back


def test_what_was_learnt_with_the_same_signature_comes_through(tmp_path: Path) -> None:
    signature = spec(tmp_path).signature
    footprint = Learnt(footprint_bytes=GIB)

    def learnt(model: str, signed: str) -> Learnt:
        return footprint if (model, signed) == ("m", signature) else Learnt()

    assert spec(tmp_path, learnt=learnt).learnt == footprint
    assert spec(tmp_path, "idle.sleep_level = 1", learnt=learnt).learnt == Learnt()


def test_limits_and_times_come_through(tmp_path: Path) -> None:
    made = spec(tmp_path, "max_concurrent = 3", 'queue = { size = 5, timeout = "9s" }')
    assert (made.max_concurrent, made.queue_when_busy, made.queue_size, made.queue_timeout_s) == (
        3,
        True,
        5,
        9,
    )
    assert made.drain_timeout_s == 7
    assert not spec(tmp_path, "max_concurrent = 3").queue_when_busy
    assert spec(tmp_path, 'idle = { stop_after = "0s" }').stop_after_s is None


def test_what_shapes_the_process_changes_the_signature(tmp_path: Path) -> None:
    before = spec(tmp_path).signature
    assert spec(tmp_path, "flags = { max-model-len = 64 }").signature != before
    assert spec(tmp_path, "max_concurrent = 3").signature == before
