"""The VRAM plan as text for people. Pure, like render.py."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from supervisord_llm.cli.render import DIM, RED, YELLOW, Look, bar, gpu_troubles, one_line, size, table

Json = Mapping[str, Any]

SHOWN_LEFT_OUT = 3
"""Models that are named where they do not fit beside a set; `--json` has them all."""


def plan(found: Json, look: Look) -> str:
    """What GET /admin/plan answers: GPUs, models, what does not fit and why, what fits together."""
    models: Mapping[str, Json] = found["models"]
    parts = ["\n".join(_gpus(found["gpus"], look)) if found["gpus"] else _without_gpus(models)]
    if found.get("problems"):
        parts.append("\n".join(look.paint(one_line(problem), RED) for problem in found["problems"]))
    parts.append("\n".join(_models(models, look)) if models else "no models are configured")
    parts += [
        "\n".join(_misfit(name, model, look))
        for name, model in models.items()
        if model["why_not"] or model["doubt"]
    ]
    if found["together"]:
        parts.append("\n".join(_together(found, look)))
    return "\n\n".join(parts)


def _without_gpus(models: Mapping[str, Json]) -> str:
    is_known = all(model["fits"] for model in models.values())
    return "no GPU: every model runs on the CPU" if is_known else "no GPU that can be used"


def _gpus(gpus: Sequence[Json], look: Look) -> Iterator[str]:
    rows = []
    for gpu in gpus:
        held, budget = gpu["held_bytes"], gpu["budget_bytes"]
        free = "lost" if gpu.get("lost") else f"{size(gpu['free_bytes'])} free"
        room = f"{size(budget)} budget, {size(held)} granted, {free}"
        rows.append([f"GPU {gpu['index']}", bar(held / budget if budget else 0.0), room, _card(gpu)])
    yield from table(rows, look.width)
    yield from gpu_troubles(gpus, look)


def _card(gpu: Json) -> str:
    return f"{gpu['name']}, {size(gpu['total_bytes'])}"


def _models(models: Mapping[str, Json], look: Look) -> list[str]:
    header = ["MODEL", "WEIGHTS", "KV CACHE", "OVERHEAD", "GRANT", "SOURCE", "CONTEXT", "ON", "FITS"]
    rows = [
        [
            name,
            *(_size(model[part]) for part in ("weights_bytes", "kv_bytes", "overhead_bytes", "grant_bytes")),
            model["source"],
            _context(model),
            model["where"],
            _fits(model),
        ]
        for name, model in models.items()
    ]
    lines = table([header, *rows], look.width)
    painted = [
        line if model["fits"] else look.paint(line, RED)
        for line, model in zip(lines[1:], models.values(), strict=True)
    ]
    return [lines[0], *painted]


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else size(size_bytes)


def _context(model: Json) -> str:
    """ "8192 x 4.5": tokens, and how many sequences of that length fit at once."""
    length, sequences = model["max_model_len"], model["full_sequences"]
    if length is None:
        return "-"
    if sequences is None:
        return str(length)
    return f"{length} x {sequences:g}" if sequences >= 1 else f"{length}, <1 sequence"


def _fits(model: Json) -> str:
    """ "yes", "no", "doubtful", or on which of several GPUs."""
    if not model["fits"]:
        return "no"
    if model["doubt"]:
        return "doubtful"
    fitting = [each["gpu"] for each in model["on"] if not each["why_not"]]
    if len(fitting) == len(model["on"]):
        return "yes"
    return f"GPU {','.join(map(str, fitting))} only"


def _misfit(name: str, model: Json, look: Look) -> Iterator[str]:
    yield look.paint(one_line(model["why_not"] or model["doubt"]), RED if model["why_not"] else YELLOW)
    for suggestion in model["suggestions"]:
        yield f"  {name} {suggestion}"


def _together(found: Json, look: Look) -> Iterator[str]:
    sets: Sequence[Json] = found["together"]
    planned = sum(bool(model["fits"] and model["on"]) for model in found["models"].values())
    if len(sets) == 1 and len(sets[0]["models"]) == planned:
        yield f"all of these fit at once: {_placed(sets[0])}"
        return
    yield "fit at once:" if found["is_complete"] else "fit at once (some of many sets):"
    for each in sets:
        yield f"  {_placed(each)}"
        without = _without(each["left_out"])
        if without:
            yield look.paint(f"    without {without}", DIM)


def _without(left_out: Sequence[Json]) -> str:
    """ "coder (4.0 GiB short on GPU 0); large (…); small (…); and 7 more"."""
    shown = [f"{left['name']} ({left['why']})" for left in left_out[:SHOWN_LEFT_OUT]]
    more = len(left_out) - len(shown)
    return "; ".join([*shown, f"and {more} more"] if more else shown)


def _placed(each: Json) -> str:
    """ "chat (GPU 0), large (GPU 0, 1)"."""
    return ", ".join(
        f"{name} (GPU {', '.join(map(str, gpus))})"
        for name, gpus in zip(each["models"], each["gpus"], strict=True)
    )
