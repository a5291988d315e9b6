"""Values as text for people. Pure: width and colour come in as a Look."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

BAR_CELLS = 20
PHASE_CELLS = 32
ERROR_CELLS = 24
"""The narrowest last column: below that, lines wrap rather than say nothing."""

GREEN, YELLOW, RED, DIM = "32", "33", "31", "2"
STATE_COLORS = {
    "ready": GREEN,
    "stopped": DIM,
    "sleeping": DIM,
    "failed": RED,
    "stuck": RED,
    "backoff": RED,
}
"""Every other state is on its way: yellow."""


@dataclass(frozen=True, slots=True)
class Look:
    """The terminal: its width in cells (None: no terminal, nothing is cut) and whether it shows colours."""

    width: int | None = None
    color: bool = False

    def paint(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self.color and text else text


# --- status ----------------------------------------------------------


def status(found: Mapping[str, Any], look: Look) -> str:
    """What GET /admin/status answers, as a headline, a table of models and a line for each GPU."""
    models: Mapping[str, Mapping[str, Any]] = found["models"]
    ready = sum(model["state"] == "ready" for model in models.values())
    head = f"llm-supervisor {found['version']}, up {span(found['uptime_s'])}, pid {found['pid']}; "
    head += f"{ready} of {len(models)} models ready" + ("; shutting down" if found["stopping"] else "")
    planned = found.get("schedule") or {}
    if planned.get("timezone"):
        head += f"\n{one_line(planned['summary'])}"
    parts = [head, _models(models, look) if models else "no models are configured"]
    if found.get("routes"):
        parts.append("\n".join(_routes(found["routes"], look)))
    remarks = [
        *_adapters(models),
        *_adjusted(models),
        *_network_notes(models),
        *_away(found.get("peers") or {}),
    ]
    if remarks:
        parts.append("\n".join(remarks))
    if found["gpus"]:
        parts.append("\n".join(_gpus(found["gpus"], look)))
    return "\n\n".join(parts)


def _models(models: Mapping[str, Mapping[str, Any]], look: Look) -> str:
    header = ["MODEL", "STATE", "GPU", "IN FLIGHT", "WAITING", "UP", "IDLE"]
    rows = [
        [
            name,
            _state(model),
            ",".join(map(str, model["gpus"])) or "-",
            str(model["requests_in_flight"]),
            str(model["waiting"]),
            span(model["uptime_s"]),
            span(model["idle_s"]),
        ]
        for name, model in models.items()
    ]
    if any(model.get("memory_bytes") is not None for model in models.values()):
        header.append("RAM")
        rows = [[*row, _ram(model)] for row, model in zip(rows, models.values(), strict=True)]
    troubles = [
        first_line(model["last_error"] or model.get("disabled", "") or model.get("closed", ""))
        for model in models.values()
    ]
    if any(troubles):
        header.append("LAST ERROR")
        rows = [[*row, trouble] for row, trouble in zip(rows, troubles, strict=True)]
    lines = table([header, *rows], look.width)
    colors = [STATE_COLORS.get(model["state"], YELLOW) for model in models.values()]
    painted = [look.paint(line, color) for line, color in zip(lines[1:], colors, strict=True)]
    return "\n".join([lines[0], *painted])


def _routes(routes: Mapping[str, Mapping[str, Any]], look: Look) -> list[str]:
    rows = [["ROUTE", "STATE", "POLICY", "CHOICES"]]
    for name, route in routes.items():
        choices: Mapping[str, int] = dict.fromkeys(route["members"], 0) | route["choices"]
        chosen = ", ".join(f"{model} {times}" for model, times in choices.items())
        rows.append([name, route["state"], route["policy"], chosen])
    lines = table(rows, look.width)
    colors = [STATE_COLORS.get(route["state"], YELLOW) for route in routes.values()]
    return [lines[0], *(look.paint(line, color) for line, color in zip(lines[1:], colors, strict=True))]


def _ram(model: Mapping[str, Any]) -> str:
    return "-" if model.get("memory_bytes") is None else size(model["memory_bytes"])


def _adapters(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Models that have no line in the table, since they have no engine of their own."""
    for name, model in models.items():
        if adapters := model.get("adapters"):
            yield f"{name} serves its adapters, too: {', '.join(adapters)}"


def _adjusted(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Flags that are not as configured, since the model ran out of memory with those."""
    for name, model in models.items():
        changed: Mapping[str, int] = model.get("adjusted") or {}
        if changed:
            flags = ", ".join(f"{flag} {value}" for flag, value in changed.items())
            yield f"{name} ran out of GPU memory and is started with {flags}"


def _network_notes(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Engines that are not as isolated, or not as open, as configured."""
    for name, model in models.items():
        if model.get("network_note"):
            yield f"{name}: {one_line(model['network_note'])}"


def _away(peers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Peers whose models cannot be had."""
    for name, peer in peers.items():
        if peer["away"]:
            yield f"peer {name} at {peer['url']} is away: {one_line(peer['away'])}"


def _state(model: Mapping[str, Any]) -> str:
    """ "preparing 40% weights", "backoff, again in 12 s"."""
    words = [str(model["state"])]
    if model["retry_in_s"]:  # 0: with the next request, not by itself
        words[0] += f", again in {span(model['retry_in_s'])}"
    if model["fraction"] is not None:
        words.append(percent(model["fraction"]))
    if model["phase"]:
        words.append(cut(one_line(model["phase"]), PHASE_CELLS))
    return " ".join(words)


def _gpus(gpus: Sequence[Mapping[str, Any]], look: Look) -> list[str]:
    rows = []
    for gpu in gpus:
        held, budget = gpu.get("held_bytes"), gpu["budget_bytes"]
        share = f"{size(budget)} budget" if held is None else f"{size(held)} of {size(budget)} granted"
        if gpu.get("used_bytes") is not None:
            share += f", {size(gpu['used_bytes'])} used"
        holders = ", ".join(gpu["models"]) or "free"
        gauge = [] if held is None else [bar(held / budget if budget else 0.0)]
        card = f"{gpu['name']}, {size(gpu['total_bytes'])}"
        rows.append([f"GPU {gpu['index']}", *gauge, share, card, holders])
    return [*table(rows, look.width), *gpu_troubles(gpus, look)]


def gpu_troubles(gpus: Sequence[Mapping[str, Any]], look: Look) -> Iterator[str]:
    """Lines for lost GPUs, for other programs, and for want of any figure."""
    for gpu in gpus:
        yield from _gpu_trouble(gpu, look)
    answering = [gpu for gpu in gpus if not gpu.get("lost")]
    if answering and all(gpu.get("used_bytes", 0) is None for gpu in answering):
        yield look.paint("GPU figures: unknown, NVML does not answer", RED)


def _gpu_trouble(gpu: Mapping[str, Any], look: Look) -> Iterator[str]:
    """A line for a lost GPU, and one for other programs on it."""
    if gpu.get("lost"):
        yield look.paint(f"GPU {gpu['index']} is lost: {one_line(gpu['lost'])}", RED)
    strangers: Sequence[Mapping[str, Any]] = gpu.get("strangers") or ()
    if strangers:
        listed = ", ".join(
            f"{one_line(each['name'])} (pid {each['pid']}, {size(each['used_bytes'])})" for each in strangers
        )
        yield cut(f"GPU {gpu['index']} is shared with {listed}", look.width)


# --- events, logs, reload, check ----------------------------------------------------------


def event(entry: Mapping[str, Any], look: Look) -> str:
    """One decision: when, whom it is about (sentences mostly say so), what and why."""
    about = "" if entry["model"] in entry["text"] else f"{entry['model']}: "
    text = f"{entry['at']}  {about}{first_line(entry['text'])}"
    return look.paint(text, RED) if entry["is_bad"] else text


def reload(changes: Mapping[str, object]) -> str:
    """What a reload changed, one line for each kind of change."""
    lines = [
        f"{kind}: {', '.join(map(str, what)) if isinstance(what, list) else what}"
        for kind, what in changes.items()
        if what not in ([], None, "")
    ]
    return "\n".join(lines) or "reloaded; the settings of engines are as before"


def schedule(found: Mapping[str, Any]) -> str:
    """What GET /admin/schedule answers: what is in force, and a line for each switch to come."""
    rows = [
        [f"  {datetime.fromisoformat(switch['at']):%a %Y-%m-%d %H:%M}", _window(switch["window"])]
        for switch in found["switches"]
    ]
    return "\n".join([found["summary"], *(table(rows) if rows else ())])


def _window(name: str | None) -> str:
    return "no window" if name is None else f'window "{name}"'


def fact(level: str, where: str, text: str, look: Look) -> str:
    """ "bad   models.coder: cannot …"."""
    color = {"ok": GREEN, "hint": YELLOW}.get(level, RED)
    return f"{look.paint(level.ljust(4), color)}  {where}: {one_line(text)}"


def finding(level: str, what: str, text: str, mend: str, look: Look) -> str:
    """ "  warning  firewall: ufw does not …; `sudo ufw allow 8000/tcp`"."""
    color = {"ok": GREEN, "warning": YELLOW}.get(level, RED)
    sentence = one_line(f"{text}; {mend}" if mend else text)
    return f"  {look.paint(level.ljust(7), color)}  {what}: {sentence}"


# --- pieces ----------------------------------------------------------


def table(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Aligned columns, two cells apart; the last column is cut to what `width` leaves of a line."""
    *before, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    taken = sum(cells + 2 for cells in before)
    room = None if width is None else max(ERROR_CELLS, width - taken)
    lines = []
    for *cells, last in rows:
        padded = "".join(cell.ljust(length + 2) for cell, length in zip(cells, before, strict=True))
        lines.append((padded + cut(last, room)).rstrip())
    return lines


def bar(fraction: float, cells: int = BAR_CELLS) -> str:
    """ "██████░░░░": full only when it is, empty only when it is."""
    full = round(min(1.0, max(0.0, fraction)) * cells)
    if 0 < fraction < 1:
        full = min(cells - 1, max(1, full))
    return "█" * full + "░" * (cells - full)


def percent(fraction: float) -> str:
    """ "40%"; 100% only when it is."""
    return f"{int(min(1.0, max(0.0, fraction)) * 100)}%"


def span(seconds: float | None) -> str:
    """ "42 s", "3 min", "2 h 5 min", "3 d 4 h"; "-" where there is none."""
    if seconds is None:
        return "-"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return _two(days, "d", hours % 24, "h")
    if hours:
        return _two(hours, "h", minutes % 60, "min")
    return f"{minutes} min" if minutes else f"{int(seconds)} s"


def _two(first: int, unit: str, second: int, smaller: str) -> str:
    return f"{first} {unit} {second} {smaller}" if second else f"{first} {unit}"


def size(size_bytes: int) -> str:
    """ "9.1 GiB"."""
    return f"{size_bytes / 1024**3:.1f} GiB"


def cut(text: str, cells: int | None) -> str:
    """At most `cells` cells, with an ellipsis where something is missing."""
    return text if cells is None or len(text) <= cells else text[: max(0, cells - 1)] + "…"


def first_line(text: str) -> str:
    """What happened, without the engine's last lines and the command that follow it; `--json` has them."""
    return one_line(text.partition("\n")[0])


def one_line(text: str) -> str:
    """Without line breaks and terminal codes: error texts quote what engines print."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
