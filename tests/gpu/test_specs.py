"""What the core learns of a model from the configuration and the host."""

from pathlib import Path

import pytest

from supervisord_llm.config.load import load
from supervisord_llm.core.fleet import Gpu, ModelSpec
from supervisord_llm.gpu.specs import memory_fraction, model_specs

GIB = 1024**3


def gpu(index: int, total_bytes: int = 24 * GIB) -> Gpu:
    return Gpu(index=index, uuid=f"GPU-{index}", name="Card", total_bytes=total_bytes, budget_bytes=20 * GIB)


def spec(folder: Path, *lines: str, gpus: tuple[Gpu, ...] = ()) -> ModelSpec:
    """Of [models.m] with these lines."""
    file = folder / "config.toml"
    model = "\n".join(lines)
    file.write_text(
        f'[server]\ndrain_timeout = "7s"\n[auth]\nrequired = false\n[models.m]\nsource = "org/m"\n{model}\n'
    )
    config = load(file, {"RUNTIME_DIRECTORY": str(folder)})
    (made,) = model_specs(config, gpus)
    return made


def test_auto_leaves_the_place_to_the_scheduler_and_takes_the_cpu_without_gpus(tmp_path: Path) -> None:
    assert spec(tmp_path, gpus=(gpu(0),)).pinned is None
    assert spec(tmp_path).pinned == ()


def test_a_gpu_that_is_not_there_disables_the_model_alone(tmp_path: Path) -> None:
    made = spec(tmp_path, "gpus = [1]", gpus=(gpu(0),))
    assert made.disabled.startswith("cannot start m: gpus = [1], but this host has no GPU 1")
    assert spec(tmp_path, 'gpus = ["GPU-0"]', gpus=(gpu(0),)).disabled == ""


@pytest.mark.parametrize(
    ("line", "grant", "fraction"),
    [("", None, 20 / 24), ('vram = "50%"', 0.5, 0.5), ('vram = "6GiB"', 6 * GIB, 0.25)],
)
def test_vram_becomes_the_grant_and_the_engines_own_limit(
    tmp_path: Path, line: str, grant: float | None, fraction: float
) -> None:
    made = spec(tmp_path, line, gpus=(gpu(0),))
    assert made.grant == grant
    assert memory_fraction(made, [gpu(0)]) == pytest.approx(fraction)


def test_the_limit_fits_the_largest_of_unequal_cards(tmp_path: Path) -> None:
    made = spec(tmp_path, 'vram = "6GiB"', gpus=(gpu(0), gpu(1)))
    assert memory_fraction(made, [gpu(0), gpu(1, 48 * GIB)]) == pytest.approx(6 / 48)
    assert memory_fraction(made, []) is None


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
