"""The sensor against a real shared library, loaded by the real nvidia-ml-py in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from supervisord_llm.gpu import sensor
from supervisord_llm.gpu.sensor import GpuLost, GpuProcess, GpuReading, GpuSeen
from supervisord_llm.gpu.watch import decode, encode
from tests.gpu.nvml import Card, StubNvml, compile_stub

GIB = 1024**3
IMPORT = "from supervisord_llm.gpu import sensor; from supervisord_llm.gpu.watch import encode\n"
READ_AND_PRINT = IMPORT + "print(encode(sensor.read_gpus()))"


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled libnvidia-ml.so.1."""
    return compile_stub(tmp_path_factory.mktemp("nvml"))


def read(library: Path, mode: str = "", program: str = READ_AND_PRINT) -> tuple[GpuReading, bool]:
    """What a child that finds `library` reads, and whether it shut NVML down."""
    *before, last = run({"LD_LIBRARY_PATH": str(library.parent), "STUB_NVML": mode}, program)
    return decode(last), before == ["shutdown"]


def run(environ: dict[str, str], program: str = READ_AND_PRINT, *words: str) -> list[str]:
    """The lines that the program prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *words],
        env=os.environ | environ,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()


def look(stub: StubNvml) -> GpuReading:
    return decode(run(stub.environ)[-1])


@pytest.fixture
def host(tmp_path: Path) -> StubNvml:
    """Two idle GPUs."""
    return StubNvml(tmp_path)


def test_two_gpus_are_read_and_nvml_is_shut_down(stub: Path) -> None:
    reading, shut_down = read(stub)
    assert reading == GpuReading(
        (
            GpuSeen(
                index=0,
                uuid="GPU-aaaa",
                name="Stub 0",
                total_bytes=24 * GIB,
                free_bytes=20 * GIB,
                processes=(),
            ),
            GpuSeen(
                index=1,
                uuid="GPU-bbbb",
                name="Stub 1",
                total_bytes=8 * GIB,
                free_bytes=8 * GIB,
                processes=(),
            ),
        )
    )
    assert reading.absence == ""
    assert shut_down


def test_a_driver_that_is_not_loaded_is_a_sentence(stub: Path) -> None:
    reading, _ = read(stub, "init-fails")
    assert reading.gpus == ()
    assert reading.absence.startswith("cannot use the NVIDIA driver: Driver Not Loaded")


def test_a_count_that_fails_is_a_sentence_and_nvml_is_shut_down(stub: Path) -> None:
    reading, shut_down = read(stub, "count-fails")
    assert reading.absence == "cannot count the GPUs: Unknown Error"
    assert shut_down


def test_a_lost_gpu_does_not_hide_the_other(stub: Path) -> None:
    reading, shut_down = read(stub, "gpu1-lost")
    assert [gpu.index for gpu in reading.gpus] == [0]
    why = "it fell off the bus; look for Xid in `dmesg`, and reboot"
    assert reading.problems == (f"cannot read GPU 1: {why}",)
    assert reading.lost == (GpuLost(index=1, uuid="", why=why),)
    assert reading.failure == "", "the other one answers"
    assert shut_down


def test_memory_that_is_not_told_is_unknown_and_not_zero(stub: Path) -> None:
    reading, _ = read(stub, "no-memory")
    assert [(gpu.total_bytes, gpu.free_bytes) for gpu in reading.gpus] == [(None, None)] * 2


def test_the_library_of_wsl_is_found_without_a_loader_path(stub: Path, tmp_path: Path) -> None:
    moved = tmp_path / "wsl" / "libnvidia-ml.so.1"
    moved.parent.mkdir()
    shutil.copy(stub, moved)
    program = (
        f"{IMPORT}from pathlib import Path\n"
        f"sensor.WSL_LIBRARY = Path({str(moved)!r})\n"
        "import pynvml\n"
        "def bare_name_only(name, mode=0, load=pynvml.CDLL, seen=[]):\n"
        "    seen.append(name)\n"
        "    if len(seen) == 1: raise OSError(name)\n"
        "    return load(name)\n"
        "pynvml.CDLL = bare_name_only  # a host with a driver of its own fails the first time as well\n"
        "print(encode(sensor.read_gpus()))"
    )
    reading, _ = read(tmp_path / "nothing.so", program=program)
    assert [gpu.uuid for gpu in reading.gpus] == ["GPU-aaaa", "GPU-bbbb"]


def test_a_broken_library_counts_as_no_driver(tmp_path: Path) -> None:
    broken = tmp_path / "libnvidia-ml.so.1"
    broken.write_text("not a library")
    program = f"{IMPORT}sensor.WSL_LIBRARY = sensor.Path({str(broken)!r})\n"
    # Hide a real driver of the host: the loader's bare-name search is what fails on a host without one.
    program += "import pynvml, ctypes\ndef none(*a, **k): raise OSError('none')\npynvml.CDLL = none\n"
    reading, _ = read(broken, program=program + "print(encode(sensor.read_gpus()))")
    assert reading == GpuReading(problems=(sensor.NO_DRIVER,))
    assert reading.absence == sensor.NO_DRIVER
    assert reading.failure == sensor.NO_DRIVER


def test_what_each_process_holds_is_told_once_for_both_lists(host: StubNvml) -> None:
    ours, parent = os.getpid(), os.getppid()
    host.hold(ours, 0, 1024)
    host.say(f"proc 0 {parent} 512", f"proc 1 {parent} 64")
    first, second = look(host).gpus
    held = [GpuProcess(pid=ours, used_bytes=GIB), GpuProcess(pid=parent, used_bytes=GIB // 2)]
    assert first.processes == tuple(sorted(held, key=lambda process: process.pid))
    assert first.used_bytes == GIB + GIB // 2
    assert second.processes == (GpuProcess(pid=parent, used_bytes=GIB // 16),)
    host.release(ours)
    assert look(host).gpus[0].used_bytes == GIB // 2


def test_utilization_and_temperature_are_told_where_the_card_knows_them(host: StubNvml) -> None:
    host.set_cards(Card("GPU-aaaa", 1024, util=37, temp=61), Card("GPU-bbbb", 1024, util=None, temp=None))
    assert [(gpu.utilization, gpu.temperature_c) for gpu in look(host).gpus] == [(0.37, 61), (None, None)]


def test_without_figures_per_process_there_are_no_processes_rather_than_none_that_holds(
    host: StubNvml, tmp_path: Path
) -> None:
    host.say("wsl", f"proc 0 {os.getpid()} na")
    assert [gpu.processes for gpu in look(host).gpus] == [None, ()]
    device = tmp_path / "dxg"
    device.touch()
    on_wsl = f"{IMPORT}sensor.WSL_DEVICE = sensor.Path({str(device)!r})\nprint(encode(sensor.read_gpus()))"
    reading = decode(run(host.environ, on_wsl)[-1])
    assert [gpu.processes for gpu in reading.gpus] == [None, None], "there an empty list says nothing"
    assert reading.gpus[0].used_bytes == 0


def test_each_card_may_keep_its_memory_to_itself(host: StubNvml) -> None:
    host.say("nomem 1")
    first, second = look(host).gpus
    assert (first.used_bytes, second.used_bytes) == (0, None)


def test_a_card_that_answers_nonsense_is_lost(host: StubNvml) -> None:
    host.say("broken 0")
    reading = look(host)
    assert [gpu.uuid for gpu in reading.gpus] == ["GPU-bbbb"]
    assert [lost.why for lost in reading.lost] == ["the driver says Unknown Error; `dmesg` may tell more"]


def test_an_older_driver_lacks_functions_and_loses_nothing_else(host: StubNvml) -> None:
    compile_stub(host.library.parent, is_old=True)
    host.hold(os.getpid(), 0, 1024)
    gpu = look(host).gpus[0]
    assert gpu.processes == (GpuProcess(pid=os.getpid(), used_bytes=GIB),)
    assert gpu.temperature_c == 40


def test_mig_is_told(host: StubNvml) -> None:
    host.say("mig 1")
    reading = look(host)
    assert len(reading.gpus) == 2
    (sentence,) = reading.problems
    assert sentence.startswith("GPU 1 is divided by MIG, which is not supported")
    assert sentence.endswith("`nvidia-smi -i 1 -mig 0`")


def test_a_card_lost_between_two_looks_is_told_by_uuid_until_nvml_starts_anew(host: StubNvml) -> None:
    program = IMPORT + (
        "import sys\n"
        "from pathlib import Path\n"
        "gpus = Path(sys.argv[1])\n"
        "before = gpus.read_text()\n"
        "eyes = sensor.Sensor()\n"
        "for text in (before, before + 'lost 0\\n', before):\n"
        "    gpus.write_text(text)\n"
        "    print(encode(eyes.read()))\n"
        "eyes.close()\n"
        "print(encode(eyes.read()))\n"
    )
    lines = run(host.environ, program, str(host.state / "gpus"))
    readings = [decode(line) for line in lines if line != "shutdown"]
    assert [[lost.uuid for lost in reading.lost] for reading in readings] == [
        [],
        ["GPU-aaaa"],
        ["GPU-aaaa"],
        [],
    ]
    assert [len(reading.gpus) for reading in readings] == [2, 1, 1, 2]


def test_memory_may_come_back_late(host: StubNvml) -> None:
    host.say("lingering_s 30")
    with subprocess.Popen(["sleep", "60"]) as holder:
        host.hold(holder.pid, 0, 1024)
        assert look(host).gpus[0].used_bytes == GIB
        holder.kill()
    gone = look(host).gpus[0]
    assert (gone.used_bytes, gone.processes) == (GIB, ())
    host.unsay("lingering_s 30")
    assert look(host).gpus[0].used_bytes == 0


def test_a_reading_survives_the_way_through_a_pipe(host: StubNvml) -> None:
    host.hold(os.getpid(), 0, 1)
    host.say("lost 1")
    reading = look(host)
    assert reading.gpus
    assert reading.lost
    assert decode(encode(reading)) == reading
    for torn in ("", "{}", "[]", "null", encode(reading)[:-1], '{"gpus": [{}], "problems": [], "lost": []}'):
        with pytest.raises(ValueError, match=r"reading of GPUs|Expecting|delimiter"):
            decode(torn)
