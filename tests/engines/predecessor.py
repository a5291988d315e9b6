"""A daemon's first half: launches engines as told, tells their stats on stdout, and waits to be killed.

argv[1] is JSON: {"root": PATH, "cgroup_root": PATH | null, "orders": [{...}]}. An order has what Fleet.launch
takes, and may have "waits" (true: until it is ready) and "asleep" (a level to put it to sleep at).
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.engines.conftest import Fleet, stats_of


async def main(told: dict[str, Any]) -> None:
    cgroup_root = told["cgroup_root"] and Path(told["cgroup_root"])
    fleet = Fleet(Path(told["root"]), cgroup_root=cgroup_root)
    stats = {}
    for order in told["orders"]:
        waits, asleep = order.pop("waits", True), order.pop("asleep", 0)
        engine = await (fleet.ready if waits else fleet.launch)(**order)
        if asleep:
            await engine.sleep(asleep)
        stats[order.get("model", "alpha")] = await stats_of(engine) if waits else {"pid": engine.process.pid}
    print(json.dumps(stats), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
