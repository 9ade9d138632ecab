"""How a run of a million blocks fares: memory of scheduler and flow, blocks a second, how busy workers are, start and resume.

Units compute nothing; scheduler, workers, ledger and planning are the real ones. ``python -m tests.benchmarks.scale`` prints the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIDE = 1000  # blocks along each axis of the image with a million
BLOCK = 64  # voxels along each axis of a block of it
PERIOD = 0.25  # s between two readings of memory
Figures = dict[str, Any]


def resident_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Of a process and all of its threads, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int:
    """Of this process image, so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) << 10


@contextmanager
def cluster(workers: int, threads: int) -> Iterator[tuple[str, list[int]]]:
    """A scheduler and workers, each a process of its own on the loopback interface: the scheduler's address, and the process ids."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started: list[subprocess.Popen[bytes]] = []

    def start(module: str, *options: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--host", "127.0.0.1", "--no-dashboard", *options]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL))

    with tempfile.TemporaryDirectory(prefix="unet-scale-") as folder:
        place = Path(folder) / "scheduler.json"
        start("dask_scheduler", "--port", "0", "--scheduler-file", str(place))
        try:
            while not (place.exists() and place.read_text().endswith("}")):
                time.sleep(0.05)
            for _ in range(workers):
                start(
                    "dask_worker", "--scheduler-file", str(place), "--nthreads", str(threads), "--no-nanny",
                    "--memory-limit", "0", "--local-directory", folder,
                )  # fmt: skip
            yield json.loads(place.read_text())["address"], [process.pid for process in started]
        finally:
            for process in started:  # a worker that is asked to may wait for the others for ever
                process.kill()
                process.wait()


class _Limited:
    """Units of an agenda that are handed out for so many seconds."""

    def __init__(self, agenda: Any, seconds: float) -> None:
        self._agenda, self._until = agenda, time.monotonic() + seconds

    def take(self) -> Any:
        return self._agenda.take() if time.monotonic() < self._until else None

    def committed(self, stage: str, index: int) -> None:
        self._agenda.committed(stage, index)


def dispatch(blocks: int, unit: str = "nothing", limit_seconds: int = 10**9, workers: int = 2, threads: int = 2) -> Figures:
    """Send blocks through a scheduler as a run does; call it in a process of its own.

    Args:
        blocks: of one stage.
        unit: of ``scale_units``.
        limit_seconds: after which no more are sent.
        workers: processes.
        threads: of each.

    Returns:
        Blocks a second, CPU time of a block in each process, and the growth of memory from the middle of the run to its end.
    """
    import numpy as np
    from distributed import Client

    from flows import dispatch as flow
    from tests.benchmarks import scale_units
    from unet_core.agenda import Agenda
    from unet_core.ledger import FOLDER, REQUEST_KEY, Request, to_bytes
    from unet_core.packing import Packer
    from unet_core.stages import stages_of
    from unet_core.store import open_store
    from unet_core.tally import Tally

    flow.run_told = getattr(scale_units, unit)
    stages = stages_of([((blocks,), (1,))], (1,), has_instances=False)
    tally, readings, ended = Tally(), list[tuple[int, int, int]](), threading.Event()
    with tempfile.TemporaryDirectory(prefix="unet-scale-") as folder, cluster(workers, threads) as (address, processes):
        scheduler = processes[0]
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=120)

        def watch() -> None:
            while not ended.wait(PERIOD):
                readings.append((tally.total, resident_bytes(scheduler), resident_bytes(os.getpid())))

        def spent() -> list[float]:
            return [cpu_seconds(pid) for pid in (os.getpid(), *processes)]

        remaining, before = {"segment": np.arange(blocks)}, spent()
        watcher, began = threading.Thread(target=watch), time.perf_counter()
        watcher.start()
        request = Request(plan=scale_units.record_of("segment", 0).plan, image="none", model="none", device="cpu", roi=None)
        open_store(folder).put(REQUEST_KEY, to_bytes(request))
        try:
            with Packer(open_store(folder), request.plan, remaining) as packer:
                agenda = Agenda(stages, remaining, packer.committed if unit == "recorded" else lambda stage, index: None)
                flow.run_units(address, folder, "key", _Limited(agenda, limit_seconds), tally.add, tally.fail)
        finally:
            ended.set()
            watcher.join()
        seconds, cpu = time.perf_counter() - began, [after - first for after, first in zip(spent(), before, strict=True)]
        objects = sum(1 for _ in open_store(folder).list(f"{FOLDER}/ledger")) if unit == "recorded" else None
    assert tally.failed == 0
    assert tally.total == blocks or seconds > limit_seconds
    planned, blocks = blocks, tally.total
    found: Figures = {
        "planned": planned,
        "blocks": blocks,
        "unit": unit,
        "seconds": round(seconds, 2),
        "blocks_per_second": round(blocks / seconds, 1),
    }
    for place, name in ((1, "scheduler"), (2, "flow")):
        found[f"{name}_mib"] = round(readings[-1][place] / 2**20, 1)
        found[f"{name}_growth"] = round(_growth([(reading[0], reading[place]) for reading in readings]), 4)
    for name, used in (("flow", cpu[0]), ("scheduler", cpu[1]), ("workers", sum(cpu[2:]))):
        found[f"{name}_cpu_ms_per_block"] = round(1000 * used / blocks, 3)
    return found | ({"ledger_objects": objects} if objects is not None else {})


def _growth(readings: list[tuple[int, int]]) -> float:
    """Of memory over the second half of the blocks, as a share of what it was in the middle; each end by the largest of a tenth."""
    total = readings[-1][0]
    tenth = max(1, total // 10)
    middle = [size for done, size in readings if total // 2 - tenth <= done <= total // 2] or [readings[len(readings) // 2][1]]
    last = [size for done, size in readings if done >= total - tenth]
    return max(last) / max(middle) - 1


def busy(blocks: int = 2000) -> Figures:
    """Two workers of one thread and blocks of 50 ms: the share of their time that they compute."""
    found = dispatch(blocks, "nap", threads=1)
    return found | {"busy": round(blocks * 0.05 / (2 * found["seconds"]), 4)}


def make_job(folder: Path, output: str) -> Any:
    """A job of a million blocks, and two coarser levels, on an image of which no chunk was written."""
    import zarr

    from tests.conftest import describe, random_network
    from unet_core.job import make_job
    from unet_core.model_package import save_model

    if not (folder / "image.zarr").exists():
        zarr.create_array(folder / "image.zarr", shape=(SIDE * BLOCK,) * 2, chunks=(8000, 8000), dtype="u1", fill_value=7)
        arguments = {"in_channels": 1, "classes": 3, "base": 2, "levels": 2}
        save_model(folder / "model", random_network(**arguments), describe(**arguments))
    return make_job(
        image=str(folder / "image.zarr"), model=str(folder / "model"), output=output, block_shape=(BLOCK, BLOCK), missing="fill"
    )  # fmt: skip


def start(folder: Path) -> Figures:
    """From the job to the first block of a million; call it in a process of its own, of which the peak memory is told."""
    from flows.run import prepared_run
    from unet_core.agenda import Agenda

    job = make_job(folder, str(folder / "fresh"))
    before, began = peak_bytes(), time.perf_counter()
    cpu = time.process_time()
    with prepared_run(job, "serial", 1) as prepared:
        first = Agenda(prepared.planned.plan.stages, prepared.remaining).take()
    assert first == ("segment", 0)
    return {
        "units": prepared.total,
        "start_seconds": round(time.perf_counter() - began, 2),
        "start_cpu_seconds": round(time.process_time() - cpu, 2),
        "imports_mib": round(before / 2**20, 1),
        "peak_mib": round(peak_bytes() / 2**20, 1),
    }


def write_ledger(output: str, plan: Any, request_id: str) -> int:
    """All records of a run of a million blocks, packed as a run packs them; how many."""
    from unet_core.record_packs import UNITS, encode_pack, pack_key
    from unet_core.records import Record, StoredShard, to_bytes
    from unet_core.store import open_store

    store, count = open_store(output), 0
    for stage in plan.stages:
        shards = tuple(
            StoredShard(key=f"{name}/c/ROW", sha256="HASH", size_bytes=900, empty=False) for name in ("0", "labels/classes/0")
        )
        template = to_bytes(
            Record(
                plan=plan.id, request=request_id, stage=stage.name, index=987654321, objects=shards, voxels=4096,
                label_voxels={"0": 3000, "1": 1000, "2": 96}, decoded_bytes=9216, hardware="x86_64 AVX2",
                seconds={"read": 0.0123, "predict": 0.2345, "encode": 0.0034, "write": 0.0045, "wait": 0.1234},
                software={"unet-flows": "1.0", "torch": "2.13.0+cpu", "zarr": "3.1.6"},
            )
        )  # fmt: skip
        units = stage.grid.block_count
        for first in range(0, units, UNITS):
            lines = {}
            for index in range(first, min(first + UNITS, units)):
                line, number = template.replace(b"987654321", b"%d" % index), b"%d" % index
                for shard in shards:
                    sha256 = hashlib.sha256(number + shard.key.encode()).hexdigest().encode()
                    line = line.replace(b"HASH", sha256, 1).replace(b"ROW", b"%d/%d" % (index // SIDE, index % SIDE), 1)
                lines[index] = line, request_id
            store.put(pack_key(stage.name, first // UNITS, "a"), encode_pack(plan.id, stage.name, first // UNITS, lines))
            count += len(lines)
    return count


def generate(folder: Path, output: str) -> Figures:
    """An output of a million blocks that are all recorded, without their voxels."""
    from unet_core.planning import resolve
    from unet_core.segment import prepare

    planned = resolve(make_job(folder, output))
    request, began = prepare(planned, output), time.perf_counter()
    count = write_ledger(output, planned.plan, request.id)
    return {"records": count, "written_seconds": round(time.perf_counter() - began, 1)}


def resume(folder: Path, output: str) -> Figures:
    """Take such an output up, and then read every record as the audit does; in a process of its own."""
    from flows.run import prepared_run
    from unet_core.audit import records_of
    from unet_core.store import open_store
    from unet_core.tally import Tally

    job, began = make_job(folder, output), time.perf_counter()
    cpu = time.process_time()
    with prepared_run(job, "serial", 1) as prepared:
        found = {
            "output": output.partition("://")[0] if "://" in output else "local",
            "remaining": prepared.total,
            "resume_seconds": round(time.perf_counter() - began, 2),
            "resume_cpu_seconds": round(time.process_time() - cpu, 2),
            "resume_peak_mib": round(peak_bytes() / 2**20, 1),
        }
    began, tally = time.perf_counter(), Tally()
    for record in records_of(open_store(output), prepared.planned.plan, prepared.request):
        tally.add(record)
    return found | {
        "records": tally.total,
        "read_seconds": round(time.perf_counter() - began, 2),
        "read_peak_mib": round(peak_bytes() / 2**20, 1),
    }


def packing(count: int, output: str) -> Figures:
    """Records as workers write them, and packing these."""
    from tests.benchmarks import scale_units
    from unet_core.packing import pack_stage
    from unet_core.store import open_store

    began = time.perf_counter()
    for index in range(count):
        scale_units.recorded(output, "", "segment", index)
    written, began = time.perf_counter() - began, time.perf_counter()
    assert pack_stage(open_store(output), scale_units.record_of("segment", 0).plan, "segment") == count
    seconds = time.perf_counter() - began
    return {
        "packed": count,
        "records_written_per_second": round(count / written),
        "records_packed_per_second": round(count / seconds),
    }


@contextmanager
def object_store() -> Iterator[str]:
    """A prefix on an S3-compatible server, a process of its own on this machine."""
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "import sys; from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    os.environ.update(
        {f"AWS_{name}": value for name, value in settings.items()} | {"AWS_ACCESS_KEY_ID": "t", "AWS_SECRET_ACCESS_KEY": "t"}
    )
    try:
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")).close()
                break
            except OSError:
                time.sleep(0.1)
        yield "s3://bucket/run"
    finally:
        server.terminate()
        server.wait()


PARTS: dict[str, Callable[..., Figures]] = {
    "dispatch": dispatch, "busy": busy, "start": start, "generate": generate, "resume": resume, "packing": packing,
}  # fmt: skip


def in_child(part: str, *arguments: str | int) -> Figures:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.scale", part, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(blocks: int, work: Path) -> Figures:
    """All figures; work is a folder for a million records."""
    found: Figures = {"load": os.getloadavg()[0]}
    found["dispatch"] = in_child("dispatch", blocks)
    found["recorded"] = in_child("dispatch", blocks // 2, "recorded")
    found["busy"] = in_child("busy")
    found["start"] = in_child("start", work)
    found["packing"] = in_child("packing", 20_000, work / "packing")
    found["generate"] = in_child("generate", work, work / "done")
    found["resume"] = [in_child("resume", work, work / "done")]
    with object_store() as url:
        in_child("generate", work, url)
        found["resume"].append(in_child("resume", work, url))
    return found


GOALS: tuple[tuple[str, str, Callable[[Figures], float], float, bool], ...] = (
    ("blocks/s through scheduler and flow", "{:.0f}", lambda all: all["dispatch"]["blocks_per_second"], 300, True),
    ("growth of the scheduler over the second half", "{:.1%}", lambda all: all["dispatch"]["scheduler_growth"], 0.05, False),
    ("growth of the flow over the second half", "{:.1%}", lambda all: all["dispatch"]["flow_growth"], 0.05, False),
    ("two workers busy, blocks of 50 ms", "{:.1%}", lambda all: all["busy"]["busy"], 0.9, True),
    ("start of 1,000,000 blocks, s", "{:.1f}", lambda all: all["start"]["start_seconds"], 10, False),
    ("start, peak MiB", "{:.0f}", lambda all: all["start"]["peak_mib"], 400, False),
    ("resume of 1,000,000 blocks, local, s", "{:.1f}", lambda all: all["resume"][0]["resume_seconds"], 60, False),
    ("resume, S3-compatible server of this machine, s", "{:.1f}", lambda all: all["resume"][1]["resume_seconds"], 60, False),
    ("all records read, peak MiB", "{:.0f}", lambda all: all["resume"][0]["read_peak_mib"], 1000, False),
)


def table_of(found: Figures) -> str:
    lines = ["| goal | reached |", "|---|---|"]
    for text, form, value_of, bound, at_least in GOALS:
        value = value_of(found)
        missed = "" if (value >= bound) == at_least or value == bound else ", missed"
        lines.append(f"| {text} {'>=' if at_least else '<='} {form.format(bound)} | {form.format(value)}{missed} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale", description=__doc__)
    parser.add_argument("part", nargs="?", choices=tuple(PARTS), help="one measurement in this process; all unless told")
    parser.add_argument("arguments", nargs="*", help="of it")
    parser.add_argument("--blocks", type=int, default=20_000, help="that are sent through the scheduler")
    parser.add_argument("--work", type=Path, help="folder for a million records; a new one that goes again unless told")
    options = parser.parse_args()
    if options.part:
        folders = options.part in ("start", "generate", "resume")
        arguments = [int(word) if word.isdecimal() else word for word in options.arguments]
        print(json.dumps(PARTS[options.part](*([Path(str(arguments[0])), *arguments[1:]] if folders else arguments))))
        return
    with tempfile.TemporaryDirectory(dir=options.work, prefix="unet-scale-") as folder:
        found = measure(options.blocks, Path(folder))
    print(table_of(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
