"""The VRAM plan as text for people. Pure, like render.py."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from supervisord_llm.cli.render import DIM, RED, Look, bar, gpu_trouble, one_line, size, table

Json = Mapping[str, Any]


def plan(found: Json, look: Look) -> str:
    """What GET /admin/plan answers: GPUs, models, what does not fit and why, what fits together."""
    parts = [
        "\n".join(_gpus(found["gpus"], look)) if found["gpus"] else "no GPU: every model runs on the CPU"
    ]
    models: Mapping[str, Json] = found["models"]
    parts.append("\n".join(_models(models, look)) if models else "no models are configured")
    parts += ["\n".join(_misfit(name, model, look)) for name, model in models.items() if not model["fits"]]
    if found["together"]:
        parts.append("\n".join(_together(found, look)))
    return "\n\n".join(parts)


def _gpus(gpus: Sequence[Json], look: Look) -> Iterator[str]:
    rows = []
    for gpu in gpus:
        held, budget = gpu["held_bytes"], gpu["budget_bytes"]
        room = f"{size(budget)} budget, {size(held)} granted, {size(gpu['free_bytes'])} free"
        rows.append([f"GPU {gpu['index']}", bar(held / budget if budget else 0.0), room, _card(gpu)])
    yield from table(rows, look.width)
    for gpu in gpus:
        yield from gpu_trouble(gpu, look)


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
    if model["max_model_len"] is None:
        return "-"
    sequences = "" if model["full_sequences"] is None else f" x {model['full_sequences']:g}"
    return f"{model['max_model_len']}{sequences}"


def _fits(model: Json) -> str:
    """ "yes", "no", or on which of several GPUs."""
    if not model["fits"]:
        return "no"
    fitting = [each["gpu"] for each in model["on"] if not each["why_not"]]
    if len(fitting) == len(model["on"]):
        return "yes"
    return f"GPU {','.join(map(str, fitting))} only"


def _misfit(name: str, model: Json, look: Look) -> Iterator[str]:
    yield look.paint(one_line(model["why_not"]), RED)
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
        without = "; ".join(f"{left['name']} ({left['why']})" for left in each["left_out"])
        if without:
            yield look.paint(f"    without {without}", DIM)


def _placed(each: Json) -> str:
    """ "chat (GPU 0), large (GPU 0, 1)"."""
    return ", ".join(
        f"{name} (GPU {', '.join(map(str, gpus))})"
        for name, gpus in zip(each["models"], each["gpus"], strict=True)
    )
