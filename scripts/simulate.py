"""Replay a day of requests over many models and few GPUs: our policy against plain LRU and FIFO.

ours        the core as it runs, nothing asleep: to compare like with like
lru         least recently used makes way; whoever finds no room waits and holds nobody up
fifo        loaded in the order of arrival, the first to wait holds up others; first loaded makes way first
with sleep  the core, with every model able to sleep (level 1) and 256 GiB of main memory for sleepers

The others are written in tests/core/rivals.py. Every policy gets the same requests and engine times. Prints
its command, the machine, and the spread over the seeds. Not a test: nothing fails here.
"""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.core.day import Day, day
from tests.core.rivals import Fifo, Lru
from tests.core.simulator import Core, Figures, Scheduler, Simulator

POLICIES: dict[str, Callable[[Day], Scheduler]] = {"ours": Core, "lru": Lru, "fifo": Fifo, "with sleep": Core}

COLUMNS: dict[str, Callable[[Figures], float]] = {
    "requests": lambda figures: figures.served + figures.refused.total(),
    "refused": lambda figures: figures.refused.total(),
    "swaps": lambda figures: figures.starts,
    "wakes": lambda figures: figures.wakes,
    "evictions": lambda figures: figures.evictions,
    "p50 s": lambda figures: figures.wait_s(0.5),
    "p95 s": lambda figures: figures.wait_s(0.95),
    "p99 s": lambda figures: figures.wait_s(0.99),
    "max s": lambda figures: figures.wait_s(1.0),
    "mean s": lambda figures: statistics.mean(figures.waits_s.values()),
    "loading s": lambda figures: figures.start_s,
    "run s": lambda figures: figures.wall_s,
    "step µs": lambda figures: statistics.mean(figures.steps_s) * 1e6,
    "worst ms": lambda figures: max(figures.steps_s) * 1e3,
}


def row(name: str, values: list[float]) -> str:
    return f"{name:<18}" + "".join(
        f"{value:>10.0f}" if value >= 1000 or value == int(value) else f"{value:>10.1f}" for value in values
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104, 105])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=40)
    args = parser.parse_args()
    print(f"command: {' '.join(sys.argv)}")
    print(f"machine: {os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"a day of {args.requests} requests over {args.models} models, 8 GPUs (4 x 24, 2 x 48, 2 x 80 GiB)")
    print(f"{'':<18}" + "".join(f"{name:>10}" for name in COLUMNS))
    found: dict[str, list[list[float]]] = {name: [] for name in POLICIES}
    for seed in args.seeds:
        for name, policy in POLICIES.items():
            today = day(seed, requests=args.requests, models=args.models)
            today = today.able_to_sleep() if name == "with sleep" else today
            figures = Simulator(today, policy(today)).run()
            found[name].append([read(figures) for read in COLUMNS.values()])
            print(row(f"{seed} {name}", found[name][-1]), flush=True)
    for name, rows in found.items():
        columns = list(zip(*rows, strict=True))
        print()
        print(row(f"{name}: mean", [statistics.mean(column) for column in columns]))
        print(row(f"{name}: least", [min(column) for column in columns]))
        print(row(f"{name}: most", [max(column) for column in columns]))


if __name__ == "__main__":
    main()
