"""The flags that have vLLM load LoRA adapters, and mistakes in them before a launch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisord_llm.engines.adapters import check_adapters, flags_for
from supervisord_llm.engines.command import Place, vllm_command
from supervisord_llm.errors import ProvisionError
from tests.engines.conftest import make_model
from tests.fakes import make_adapter


def adapted(folder: Path, *ranks: int, **fields: Any) -> tuple[Any, dict[str, str]]:
    """A model with adapters of these ranks, and where those are."""
    made = {f"lora-{index}": make_adapter(folder / str(index), rank=rank) for index, rank in enumerate(ranks)}
    adapters = tuple(make_model(name, source=str(path), adapter_of="alpha") for name, path in made.items())
    return make_model(adapters=adapters, **fields), {name: str(path) for name, path in made.items()}


def test_a_model_without_adapters_has_no_flag_for_them() -> None:
    assert flags_for(make_model(), {}) == {}


def test_each_adapter_is_named_and_there_is_room_for_the_highest_rank(tmp_path: Path) -> None:
    model, places = adapted(tmp_path, 8, 24)
    assert flags_for(model, places) == {
        "enable-lora": True,
        "max-loras": 2,
        "max-lora-rank": 32,
        "max-cpu-loras": 2,
        "lora-modules": [
            {"name": name, "path": path, "base_model_name": "alpha"} for name, path in places.items()
        ],
    }


def test_in_one_batch_are_four_unless_a_flag_says_otherwise(tmp_path: Path) -> None:
    model, places = adapted(tmp_path, *[8] * 6)
    found = flags_for(model, places)
    assert (found["max-loras"], found["max-cpu-loras"]) == (4, 6)
    model, places = adapted(tmp_path, 8, flags={"max-loras": 3, "max-lora-rank": 64})
    found = flags_for(model, places)
    assert "max-loras" not in found
    assert "max-lora-rank" not in found
    assert found["max-cpu-loras"] == 3


def test_a_path_may_have_any_character(tmp_path: Path) -> None:
    """`name=path` could not: vLLM takes a comma for the sign of JSON."""
    model, places = adapted(tmp_path / "a,b=c d", 8)
    here = tmp_path / "here"
    place = Place(
        executable=here, socket=here, hub=here, cache=here, scratch=here, extra_flags=flags_for(model, places)
    )
    argv = vllm_command(model, place, {}).argv
    (word,) = argv[argv.index("--lora-modules") + 1 :]
    assert json.loads(word)["path"] == places["lora-0"]


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (
        lambda a: (a / "adapter_config.json").unlink(),
        "cannot find .*adapter_config.json: `source` of models.lora-0 must be a LoRA adapter",
    ),
    "no JSON": (lambda a: (a / "adapter_config.json").write_text("{"), "not JSON"),
    "JSON without end": (lambda a: (a / "adapter_config.json").write_text("[" * 100_000), "not JSON"),
    "no weights": (
        lambda a: (a / "adapter_model.safetensors").unlink(),
        "cannot find the weights of the adapter lora-0: no adapter_model.safetensors in",
    ),
    "half of the weights": (
        lambda a: (a / "adapter_model.safetensors").write_bytes(b"x"),
        "adapter_model.safetensors: 1 bytes are too few",
    ),
    "another kind": (
        lambda a: make_adapter(a, peft_type="IA3"),
        "cannot load the adapter lora-0: its peft_type is IA3, not LORA; correct `source` of models.lora-0",
    ),
    "no rank": (lambda a: make_adapter(a, r=None), "its configuration tells no rank"),
    "a rank beyond all": (
        lambda a: make_adapter(a, rank=1024),
        "its rank is 1024, above the 512 that may be; use another adapter",
    ),
    "a rank of one layer beyond all": (
        lambda a: make_adapter(a, rank_pattern={"q_proj": 600}),
        "its rank is 600",
    ),
}


@pytest.mark.parametrize(("spoil", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_before_the_launch(
    spoil: Callable[[Path], object], told: str, tmp_path: Path
) -> None:
    model, _ = adapted(tmp_path, 8)
    check_adapters(model, {})
    spoil(tmp_path / "0")
    with pytest.raises(ProvisionError, match=told):
        check_adapters(model, {})


def test_a_rank_above_the_users_own_flag_is_told(tmp_path: Path) -> None:
    model, _ = adapted(tmp_path, 24)
    with pytest.raises(
        ProvisionError, match="its rank is 24, above the 16 that may be; raise the flag max-l"
    ):
        check_adapters(model, {"max-lora-rank": 16})
