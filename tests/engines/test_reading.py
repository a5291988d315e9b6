# ruff: noqa: E501 - vLLM's lines are quoted as they are
"""What lines of vLLM's log mean: how far a start has come, and why it failed."""

import pytest

from supervisord_llm.engines.diagnose import diagnose
from supervisord_llm.engines.progress import SIGN_OF_LIFE, progress_of
from supervisord_llm.runtime.ports import Progress

CORE = "(EngineCore pid=9) INFO 11-21 03:12:44 [core.py:93] "


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        (CORE + "non-default args: {'model': 'x'}", Progress("reading the flags")),
        (CORE + "Resolved architecture: LlamaForCausalLM", Progress("reading the config")),
        (CORE + "Initializing a V1 LLM engine (v0.32.0) with config: x", Progress("starting the engine process")),
        (CORE + "Starting to load model /m...", Progress("loading weights")),
        ("Loading safetensors checkpoint shards:  40% Completed | 2/5 [00:00<?]", Progress("loading weights", 0.4)),
        ("Loading safetensors checkpoint shards: 100% Completed | 5/5", Progress("loading weights", 1.0)),
        (CORE + "Loading weights took 0.01 seconds", Progress("weights loaded")),
        (CORE + "Dynamo bytecode transform time: 4.61 s", Progress("compiling")),
        (CORE + "Directly load AOT compilation from path /x", Progress("loading compiled graphs")),
        (CORE + "Available KV cache memory: 0.06 GiB", Progress("allocating the KV cache")),
        (CORE + "CPU KV cache size: 262,144 tokens", Progress("allocating the KV cache")),
        ("Capturing CUDA graphs (decode, FULL):  50%|#####", Progress("capturing graphs", 0.5)),
        (CORE + "Graph capturing finished in 3 secs, took 0.4 GiB", Progress("graphs captured")),
        (CORE + "init engine (profile, create kv cache, warmup model) took 9 s", Progress("engine initialised")),
        ("(APIServer pid=1) INFO:     Application startup complete.", Progress("opening the server")),
        ("anything else, 50% of it", SIGN_OF_LIFE),
    ],
)  # fmt: skip
def test_progress(line: str, progress: Progress) -> None:
    assert progress_of(line) == progress


HINDSIGHT = "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above."
FAILED = "(EngineCore pid=9) ERROR 11-21 03:12:44 [core.py:901] "


@pytest.mark.parametrize(
    ("lines", "code", "parts"),
    [
        (["vllm: error: unrecognized arguments: --no-such-flag"], 2, ["code 2: --no-such-flag; remove"]),
        (["vllm serve: error: argument --dtype: invalid choice: 'int3' (choose from x)"], 2,
         ["argument --dtype: invalid choice: 'int3'", "`flags`"]),
        (["huggingface_hub.errors.HFValidationError: Repo id must be in the form 'a/b'"], 1, ["Repo id", "`source`"]),
        (["LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder"], 1, ["llm-supervisor pull"]),
        (["  Value error, Model architectures ['X'] are not supported for now. Supported: dict_keys(['A'..."], 1,
         ["Model architectures ['X'] are not supported; use a newer vLLM"]),
        (["  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len (4096)"], 1,
         ["max_model_len (100000)", "lower flags.max-model-len"]),
        (["1 validation error for VllmConfig", "  Value error, Sleep mode is not supported. [type=value_error, x]"], 1,
         ["code 1: Sleep mode is not supported; correct"]),
        ([FAILED + "ValueError: To serve at least one request with the model's max seq len (4096), (0.0 GiB KV"], 1,
         ["To serve at least one request", "lower max-model-len"]),
        ([FAILED + "ValueError: No available memory for the cache blocks. Try increasing x", HINDSIGHT], 1,
         ["No available memory for the cache blocks; raise the model's `vram`"]),
        ([FAILED + "ValueError: Available memory on node 0 (11.92/13.84 GiB) on startup is less than desired CPU"], 1,
         ["Available memory on node 0", "kv-cache-memory-bytes"]),
        (["ValueError: Free memory on device cuda:0 (1/24 GiB) on startup is less than desired GPU memory"], 1,
         ["Free memory on device cuda:0 (1/24 GiB)", "`vram`"]),
        (["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"], 1, ["CUDA out of memory", "raise"]),
        (["AssertionError: Error in memory profiling. Initial free memory 1 GiB"], 1, ["start it again"]),
        (["SafetensorError: Error while deserializing header: header too large"], 1, ["header too large", "damaged"]),
        (["RuntimeError: Cannot find any model weights with `/m`"], 1, ["Cannot find any model weights", "`source`"]),
        (["KeyError: 'invalid tool call parser: nope (chose from { hermes })'"], 1, ["tool-call-parser"]),
        (["OSError: [Errno 98] Address already in use"], 1, ["another process holds"]),
        (["ValueError: earlier and harmless", FAILED + "EngineCore failed to start.", FAILED + "Traceback (most",
          FAILED + "KeyError: 'the cause'", HINDSIGHT], 1, ["exited with code 1: KeyError: 'the cause'"]),
        (["nothing to see"], 3, ["exited with code 3"]),
        (["ValueError: printed long ago"], 0, ["exited with code 0 although nobody asked"]),
        (["ValueError: printed long ago"], -9, ["was killed by SIGKILL (perhaps the kernel's OOM killer: see dmesg)"]),
        ([], -11, ["was killed by SIGSEGV"]),
        ([], -70, ["was killed by signal 70"]),
        ([], None, ["could not be learnt"]),
    ],
)  # fmt: skip
def test_diagnosis(lines: list[str], code: int | None, parts: list[str]) -> None:
    reason = diagnose(lines, code)
    assert all(part in reason for part in parts), reason
    assert len(reason) < 500


def test_a_sentence_is_all_there_is_when_the_log_tells_nothing() -> None:
    assert diagnose(["ValueError: printed long ago"], 0) == "exited with code 0 although nobody asked"
    assert diagnose([HINDSIGHT], 1) == "exited with code 1"
