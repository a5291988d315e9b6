"""How far a start has come, told from a line of vLLM's log. Pure.

The lines differ between versions, so they serve the eye and the stall timer only: readiness is /health.
"""

import re

from supervisord_llm.runtime.ports import Progress

SIGN_OF_LIFE = Progress("")
"""Output that says nothing about the phase."""

PHASES = (
    ("non-default args: {", "reading the flags"),
    ("Resolved architecture: ", "reading the config"),
    ("Initializing a V1 LLM engine", "starting the engine process"),
    ("Starting to load model", "loading weights"),
    ("Loading weights took", "weights loaded"),
    ("Model loading took", "weights loaded"),
    ("for vLLM's torch.compile", "compiling"),
    ("Dynamo bytecode transform time", "compiling"),
    ("Compiling a graph for", "compiling"),
    ("Directly load the compiled graph", "loading compiled graphs"),
    ("Directly load AOT compilation", "loading compiled graphs"),
    ("Initial profiling/warmup run took", "profiling memory"),
    ("Estimated CUDA graph memory", "profiling memory"),
    ("Available KV cache memory", "allocating the KV cache"),
    ("KV cache size: ", "allocating the KV cache"),
    ("Graph capturing finished", "graphs captured"),
    ("init engine (", "engine initialised"),
    ("Starting vLLM server on", "opening the server"),
    ("Application startup complete", "opening the server"),
)

BARS = (
    (re.compile(r"Loading \S+ checkpoint shards:\s+(\d+)%"), "loading weights"),
    (re.compile(r"Capturing CUDA graphs.*?:\s+(\d+)%"), "capturing graphs"),
)


def progress_of(line: str) -> Progress:
    """The phase that `line` marks, with its fraction where it is a progress bar; else a bare sign of life."""
    if "%" in line:
        for bar, phase in BARS:
            if found := bar.search(line):
                return Progress(phase, min(int(found[1]), 100) / 100)
    for text, phase in PHASES:
        if text in line:
            return Progress(phase)
    return SIGN_OF_LIFE
