"""Workers that join and leave while a run goes on: real processes, each block's worker known, the bytes those of the serial run."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import psutil
import pytest

from flows.run import segment_on_cluster
from tests.flows.test_tls import free_port, started, until
from tests.unet_core.test_segment import digest
from unet_core.errors import JobError
from unet_core.job import make_job
from unet_core.segment import read_status, run

Maker = Callable[..., Path]
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
BLOCKS = 7 * 6
MOST_SECONDS = 60  # until a scheduler is known to be gone

# Of each worker: blocks take a while, and say which process computed them; what is asked of a GPU is done on the CPU.
PRELOAD = """
import os, time
from unet_core import worker

def predict_and_tell(unit, predict=worker.predict_block):
    time.sleep({seconds})
    while os.path.exists("{hold}") and open("{told}").read().count(str(os.getpid())) > 2:
        time.sleep(0.1)
    with open("{told}", "a") as file:
        print(os.getpid(), unit.index, file=file)
    return predict(unit)

def load_on_cpu(package, device, *arguments, load=worker.load_predictor, **options):
    return load(package, "cpu", *arguments, **options)

if worker.predict_block.__name__ != "predict_and_tell":  # dask may run this twice
    worker.predict_block, worker.load_predictor = predict_and_tell, load_on_cpu
"""


class Bench:
    """One image, its serial result, and workers of a scheduler on this machine that tell what they compute."""

    def __init__(self, folder: Path, image: Path, model: Path, seconds: float) -> None:
        self.folder, self.told, self.preload = folder, folder / "told", folder / "preload.py"
        self.hold = folder / "hold"  # while it is there, a worker computes three blocks and waits
        self.told.touch()
        self.preload.write_text(PRELOAD.format(seconds=seconds, told=self.told, hold=self.hold))
        self.fields = {"image": str(image), "model": str(model), "block_shape": (32, 32)}
        run(make_job(**self.fields, output=str(folder / "serial")))
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self._count = 0

    def workers(self) -> dict[int, int]:
        """Blocks computed, by process."""
        found: dict[int, int] = {}
        for line in self.told.read_text().splitlines():
            number = int(line.split()[0])
            found[number] = found.get(number, 0) + 1
        return found

    def scheduler(self):
        port = self.address.rpartition(":")[2]
        return self._dask(
            f"dask scheduler --host 127.0.0.1 --port {port} --no-dashboard --dashboard-address 127.0.0.1:0", "Scheduler at"
        )

    def worker(self, *options: str):
        web = "--no-dashboard --dashboard-address 127.0.0.1:0"
        more = " ".join(options)
        return self._dask(f"dask worker {self.address} --nthreads 2 --preload {self.preload} {web} {more}", "Registered to")

    @contextmanager
    def _dask(self, command: str, ready: str) -> Iterator[psutil.Process]:
        self._count += 1
        log = self.folder / f"process-{self._count}.log"
        with started(command, log) as process:
            until(lambda: ready in log.read_text(), 120, log.read_text)
            yield process

    def check(self, output: str) -> None:
        assert digest(self.folder / output) == digest(self.folder / "serial")


@pytest.fixture
def make_bench(make_model: Maker, make_image: Maker, tmp_path: Path) -> Callable[[float], Bench]:
    return lambda seconds: Bench(tmp_path, make_image((200, 170)), make_model(levels=2), seconds)


def test_a_worker_that_joins_is_used_and_one_that_is_told_to_go_is_not_missed(make_bench: Callable[[float], Bench]) -> None:
    bench = make_bench(0.2)
    bench.hold.touch()
    job = make_job(**bench.fields, output=str(bench.folder / "out"))
    ended = []
    with bench.scheduler(), bench.worker() as first:
        thread = threading.Thread(target=lambda: ended.append(segment_on_cluster(job, bench.address)))
        thread.start()
        until(lambda: sum(bench.workers().values()) > 2, 120, bench.told.read_text)
        (own,) = bench.workers()
        with bench.worker():
            until(lambda: len(bench.workers()) > 1, 120, bench.told.read_text)
            bench.hold.unlink()
            first.send_signal(signal.SIGTERM)
            first.wait(60)
            before = bench.workers()
            thread.join(300)
    assert ended
    assert ended[0].status == "complete"
    after = bench.workers()
    assert after[own] == before[own]
    assert sum(after.values()) > sum(before.values())
    bench.check("out")


def test_local_workers_grow_while_there_is_work(make_bench: Callable[[float], Bench]) -> None:
    bench = make_bench(0.5)
    began = time.monotonic()
    with dask.config.set({"distributed.worker.preload": [str(bench.preload)]}):
        summary = segment_on_cluster(make_job(**bench.fields, output=str(bench.folder / "out")), "local", "1..3")
    assert summary.status == "complete"
    assert 1 < len(bench.workers()) <= 3, (bench.workers(), time.monotonic() - began)
    bench.check("out")


def test_blocks_for_a_gpu_go_to_workers_that_offer_one(make_bench: Callable[[float], Bench]) -> None:
    bench = make_bench(0.0)
    job = make_job(**bench.fields, output=str(bench.folder / "out"), device="cuda")
    with bench.scheduler(), bench.worker("--no-nanny"):
        with pytest.raises(
            JobError, match=f"none of 1 workers at {bench.address} offers one; start a worker for each GPU with .*GPU=1"
        ):
            segment_on_cluster(job, bench.address)
        assert not (bench.folder / "out").exists()
        with bench.worker("--no-nanny", "--resources", "GPU=1") as able:
            assert segment_on_cluster(job, bench.address).status == "complete"
            assert set(bench.workers()) == {able.pid}
    bench.check("out")


def test_a_gpu_that_workers_elsewhere_would_not_have_is_refused(tmp_path: Path) -> None:
    from flows.clusters import device_elsewhere

    file = tmp_path / "lab.toml"
    file.write_text('backend = "slurm"\ngpus = 1\n')
    assert [device_elsewhere(str(file), device) for device in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    file.write_text('backend = "slurm"\n')
    assert device_elsewhere(str(file), "auto") == "cpu"
    with pytest.raises(JobError, match="--device is cuda, but workers of cluster .*lab.toml' have no GPU; write gpus = 1"):
        device_elsewhere(str(file), "cuda")
    assert device_elsewhere("local", "cuda") is None


def test_a_scheduler_that_is_killed_is_an_error_and_the_run_resumes_to_the_same_bytes(
    make_bench: Callable[[float], Bench],
) -> None:
    bench = make_bench(0.2)
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "segment",
        bench.fields["image"],
        str(bench.folder / "out"),
        "--block-shape",
        "32,32",
    ]
    command += ["--model", bench.fields["model"], "--cluster", bench.address]
    with bench.scheduler() as scheduler, bench.worker():
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: sum(bench.workers().values()) > 4, 120, bench.told.read_text)
        for child in (*scheduler.children(recursive=True), scheduler):
            child.kill()
        out, err = process.communicate(timeout=MOST_SECONDS)
    assert process.returncode == 1
    assert re.search(r"scheduler \S+ went away .* run the same command again to resume", err), err
    assert "complete" not in out
    assert "Traceback" not in err
    assert read_status(str(bench.folder / "out")).state != "complete"
    assert 1 <= run(make_job(**bench.fields, output=str(bench.folder / "out"))).computed <= BLOCKS - 4
    bench.check("out")
