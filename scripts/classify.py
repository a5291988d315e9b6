"""Measure a route's classifier against a running daemon: how often it is right, and what it adds to requests.

FILE has a conversation a line, as {"messages": [...], "label": "hard"} or {"prompt": "...", "label": "hard"}.
Each is asked for its label first; then for the time, by way of the route and of the model that the route
chose, one after the other and each way first in turn. A system message that is never the same keeps prefix
caches and remembered labels out of that. Answers are one token long.

The key in $OPENAI_API_KEY, where the daemon wants one, must be good for the route, and for the models that it
leads to where times are to be compared.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import secrets
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

NONE = "-"
LABEL = re.compile(r'said "([^"]*)"')
TOOK_MS = re.compile(r"in (\d+) ms")
TIMEOUT_S = 600.0

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation and the label that people gave it."""

    messages: Messages
    label: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon said of its choice, and how long the answer took."""

    model: str
    reason: str
    took_ms: float

    @property
    def label(self) -> str:
        found = LABEL.search(self.reason)
        return found[1] if found else NONE


class CannotMeasure(Exception):
    """And why."""


def read(path: Path) -> list[Example]:
    """
    Raises:
        CannotMeasure: a line is none of a conversation with its label.
    """
    examples = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            messages = found.get("messages") or [{"role": "user", "content": found["prompt"]}]
            examples.append(Example(messages, found["label"]))
        except (ValueError, KeyError, TypeError, AttributeError) as why:
            raise CannotMeasure(f"cannot read {path}, line {number}: {why!r}") from None
    if not examples:
        raise CannotMeasure(f"cannot measure with {path}: it is empty")
    return examples


def never_the_same(messages: Messages) -> Messages:
    """With a system message that nobody has sent before."""
    mark = f"Conversation {secrets.token_hex(8)}."
    if messages[0].get("role") == "system" and isinstance(messages[0].get("content"), str):
        return [messages[0] | {"content": f"{mark} {messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": mark}, *messages]


async def ask(http: aiohttp.ClientSession, model: str, messages: Messages) -> Answer:
    """
    Raises:
        CannotMeasure: the daemon refused.
    """
    body = {"model": model, "messages": messages, "max_tokens": 1}
    headers = {"X-Session-Id": secrets.token_hex(8)}  # no session stays with what it had before
    began = time.perf_counter()
    async with http.post("/v1/chat/completions", json=body, headers=headers) as answer:
        text = await answer.text()
        took_ms = (time.perf_counter() - began) * 1000
        if answer.status != 200:
            raise CannotMeasure(f"cannot ask {model}: status {answer.status}: {text[:300]}")
        reason = answer.headers.get("X-LLM-Route-Reason", "")
        return Answer(answer.headers.get("X-LLM-Model", model), reason, took_ms)


@dataclass(frozen=True, slots=True)
class Timed:
    """One conversation by way of the route, compared with the model that the route chose."""

    added_ms: float
    told_ms: float
    """Until the label was there, as the daemon tells."""


async def timed(
    http: aiohttp.ClientSession, route: str, messages: Messages, member: str, *, route_first: bool
) -> Timed | None:
    """None where the route chose another model this time, or without a label.

    Raises:
        CannotMeasure: the daemon refused.
    """
    found: dict[str, Answer] = {}
    for name in (route, member) if route_first else (member, route):
        found[name] = await ask(http, name, never_the_same(messages))
    told = TOOK_MS.search(found[route].reason)
    if told is None or found[route].model != member:
        return None
    return Timed(found[route].took_ms - found[member].took_ms, float(told[1]))


def table(rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they must be, the first one to the left."""
    widths = [max(len(str(row[at])) for row in rows) for at in range(len(rows[0]))]
    lines = (
        [
            f"{row[0]!s:<{widths[0]}}",
            *(f"{cell!s:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def accuracy(pairs: Sequence[tuple[str, str]]) -> float:
    """Print what became of (given, said) pairs; the share that agree."""
    labels = sorted({label for pair in pairs for label in pair if label != NONE})
    counts = Counter(pairs)
    rows: list[list[object]] = [["label", "given", "said", "precision", "recall"]]
    for label in labels:
        right = counts[label, label]
        given = sum(count for (real, _), count in counts.items() if real == label)
        said = sum(count for (_, word), count in counts.items() if word == label)
        rows.append([label, given, said, share(right, said), share(right, given)])
    print(table(rows), end="\n\n")
    confusion = [[label, *(counts[label, word] for word in (*labels, NONE))] for label in labels]
    print(table([["given \\ said", *labels, "none"], *confusion]), end="\n\n")
    right = sum(count for (given, said), count in counts.items() if given == said)
    print(f"agreement: {right} of {len(pairs)} ({right / len(pairs):.1%})")
    return right / len(pairs)


def share(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else NONE


def show(name: str, values: Sequence[float]) -> None:
    """Median and 95th percentile."""
    if values:
        p95 = sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]
        print(f"{name:<46} median {statistics.median(values):.0f} ms, p95 {p95:.0f} ms (n={len(values)})")


async def measure(args: argparse.Namespace, examples: Sequence[Example]) -> float:
    """Print everything; the share of labels that agree."""
    key = os.environ.get("OPENAI_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(args.url, headers=headers, timeout=timeout) as http:
        answers = [await ask(http, args.route, example.messages) for example in examples]
        said = [answer.label for answer in answers]
        right = accuracy([(example.label, word) for example, word in zip(examples, said, strict=True)])
        for reason, count in Counter(each.reason for each in answers if each.label == NONE).most_common(5):
            print(f"without a label, {count}: {reason}")
        times = []
        try:
            for index, (example, answer) in enumerate(zip(examples, answers, strict=True)):
                times.append(
                    await timed(http, args.route, example.messages, answer.model, route_first=index % 2 == 0)
                )
        except CannotMeasure as why:
            print(f"what it adds is not known: {why}")
        show("until a label was there, as the daemon tells", [each.told_ms for each in times if each])
        show("added to a request", [each.added_ms for each in times if each])
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="labelled conversations, JSON lines")
    parser.add_argument("--route", required=True, help="the route whose classifier it is")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the daemon serves")
    parser.add_argument("--least", type=float, default=0.0, metavar="SHARE",
                        help="exit with 1 if fewer labels agree, such as 0.9")  # fmt: skip
    args = parser.parse_args()
    print(f"command: {' '.join(sys.argv)}")
    print(f"machine: {os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}, "
          f"load {os.getloadavg()[0]:.1f}", end="\n\n")  # fmt: skip
    try:
        right = asyncio.run(measure(args, read(args.file)))
    except (CannotMeasure, OSError, aiohttp.ClientError) as why:
        sys.exit(str(why))
    if right < args.least:
        sys.exit(f"{right:.1%} agree, and at least {args.least:.1%} should")


if __name__ == "__main__":
    main()
