"""Blocks on real dask worker processes: the same bytes for any number of workers, killed ones replaced, memory bounded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Scheduler, SpecCluster

from flows import clusters
from flows.clusters import open_cluster
from flows.run import segment_on_cluster
from tests.conftest import textured
from tests.unet_core.test_segment import digest
from unet_core.errors import JobError
from unet_core.job import make_job
from unet_core.segment import run

Maker = Callable[..., Path]
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("dims", "instances"), [(2, "watershed"), (3, "components")])
def test_any_number_of_workers_gives_the_bytes_of_the_serial_run(
    workers: int, dims: int, instances: str, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    shape, block = ((290, 70), (32, 32)) if dims == 2 else ((11, 25, 30), (4, 8, 16))
    image, model = make_image(shape), make_model(dims=dims, levels=2)
    fields = {"image": str(image), "model": str(model), "block_shape": block, "instances": instances}
    run(make_job(**fields, output=str(tmp_path / "serial")))
    summary = segment_on_cluster(make_job(**fields, output=str(tmp_path / "local")), "local", workers)
    assert summary.status == "complete"
    assert digest(tmp_path / "local") == digest(tmp_path / "serial")


def test_an_existing_scheduler_is_used_and_left_running(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    with open_cluster("local", 1) as address:
        assert address is not None
        for name in "ab":
            job = make_job(image=str(make_image((40, 50))), output=str(tmp_path / f"out-{name}"), model=str(make_model()))
            assert segment_on_cluster(job, address).status == "complete"


def test_a_scheduler_without_workers_is_refused_with_what_to_start(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "WORKER_SECONDS", 1)
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"},
    }
    with SpecCluster(workers={}, scheduler=scheduler, silence_logs="CRITICAL") as started:
        address = started.scheduler_address
        job = make_job(image=str(make_image((40, 50))), output=str(tmp_path / "out"), model=str(make_model()))
        with pytest.raises(JobError, match=f"{address} had no workers for 1 s; start some with 'dask worker {address}'"):
            segment_on_cluster(job, address)
    assert not (tmp_path / "out").exists()


def test_killed_workers_are_replaced_and_the_bytes_stay(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image, model = make_image((300, 280)), make_model(base=16)
    run(make_job(image=str(image), output=str(tmp_path / "serial"), model=str(model), block_shape=(32, 32)))
    records = tmp_path / "local" / ".unet" / "ledger" / "segment"
    killed: list[int] = []

    def kill() -> None:
        """SIGKILL a worker process after a few blocks, twice."""
        for count in (5, 25):
            while not records.exists() or len(list(records.iterdir())) < count:
                time.sleep(0.05)
            children = [child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
            victim = children[len(killed) % len(children)]
            victim.send_signal(signal.SIGKILL)
            killed.append(victim.pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    job = make_job(image=str(image), output=str(tmp_path / "local"), model=str(model), block_shape=(32, 32))
    summary = segment_on_cluster(job, "local", 2)
    killer.join(timeout=5)
    assert len(killed) == 2
    assert summary.status == "complete"
    assert digest(tmp_path / "local") == digest(tmp_path / "serial")


DEADLY = """
import os, signal
from unet_core import worker

def predict_or_die(unit, predict=worker.predict_block):
    if unit.index == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(unit)
if worker.predict_block.__name__ != "predict_or_die":  # dask may run this twice
    worker.predict_block = predict_or_die
"""


def test_a_block_that_kills_its_worker_takes_no_other_with_it(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    job = make_job(
        image=str(make_image((130, 90))), output=str(tmp_path / "out"), model=str(make_model(levels=2)), block_shape=(32, 32)
    )
    with dask.config.set({"distributed.worker.preload": [str(tmp_path / "deadly.py")]}):
        summary = segment_on_cluster(job, "local", 2)
    assert summary.status == "partial"
    assert summary.computed == summary.blocks - 1
    (failure,) = summary.failures
    assert failure.startswith("segment block 4: the worker process died each time it tried this block, alone too")
    assert segment_on_cluster(job, "local", 2).status == "complete"


MEASURE = """
import resource, sys
import numpy as np, zarr
from unet_core.errors import JobError
from unet_core.job import make_job
from unet_core.segment import run
run(make_job(image=sys.argv[1], output=sys.argv[2], model=sys.argv[3], block_shape=(128, 128)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_image(make_model: Maker, tmp_path: Path) -> None:
    import numpy as np
    import zarr

    model = make_model(base=8)
    peaks = []
    for side in (512, 2048):
        tile = textured((512, 512))
        zarr.create_array(tmp_path / f"{side}.zarr", data=np.tile(tile, (side // 512,) * 2), chunks=(256, 256))
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / f"{side}.zarr"), str(tmp_path / f"out{side}"), str(model)],
            check=True, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] <= 1.1 * peaks[0], f"peak at 1x {peaks[0]:.0f} MiB, at 16x {peaks[1]:.0f} MiB"
