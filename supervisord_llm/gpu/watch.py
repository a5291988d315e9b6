"""`python -m supervisord_llm.gpu.watch`: looks at the GPUs whenever it is asked.

A process of its own, because NVML can hang and has crashed: then this child is killed, and no stream of a
client stands still. It keeps NVML initialised. A line on its standard input asks for a look; the reading is a
line of JSON on its standard output. It ends with its input, and with the process that started it.
"""

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

from supervisord_llm.gpu.sensor import GpuLost, GpuProcess, GpuReading, GpuSeen, Sensor

PR_SET_PDEATHSIG = 1


def encode(reading: GpuReading) -> str:
    """One line, without its end."""
    return json.dumps(asdict(reading), separators=(",", ":"))


def decode(line: str | bytes) -> GpuReading:
    """
    Raises:
        ValueError: not what `encode` writes.
    """
    try:
        said = json.loads(line)
        return GpuReading(
            gpus=tuple(_gpu(**gpu) for gpu in said["gpus"]),
            problems=tuple(said["problems"]),
            lost=tuple(GpuLost(**lost) for lost in said["lost"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a reading of GPUs: {error}") from error


def _gpu(processes: list[dict[str, int]] | None, **figures: Any) -> GpuSeen:
    held = None if processes is None else tuple(GpuProcess(**process) for process in processes)
    return GpuSeen(processes=held, **figures)


def main() -> None:
    # Also while the driver hangs, when nothing here could notice that the daemon was killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the driver's library may print is no answer
    sensor = Sensor()
    while sys.stdin.buffer.readline():
        answers.write(encode(sensor.read()) + "\n")
        answers.flush()
    sensor.close()


if __name__ == "__main__":
    main()
