"""A cluster that hangs is not waited for: real worker processes with a block that never ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import dask
import pytest

from flows.run import segment_on_cluster
from flows.supervision import StalledError
from unet_core.job import make_job
from unet_core.lease import find_holder
from unet_core.segment import read_status
from unet_core.store import open_store

Maker = Callable[..., Path]
pytestmark = pytest.mark.slow

HANGING = """
import time
from unet_core import worker
from unet_core.pulse import PULSE

def predict_or_hang(unit, predict=worker.predict_block):
    for _ in range(SLOW if unit.index == 4 else 0):
        time.sleep(0.5)
        PULSE.beat() if SLOW < 100 else None
    return predict(unit)
if worker.predict_block.__name__ != "predict_or_hang":  # dask may run this twice
    worker.predict_block = predict_or_hang
"""


def test_a_block_that_never_ends_stops_the_run_with_what_hangs_where(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hanging.py").write_text(f"SLOW = 10**9\n{HANGING}")
    image, model = make_image((130, 90)), make_model(levels=2)
    job = make_job(image=str(image), output=str(tmp_path / "out"), model=str(model), block_shape=(32, 32))
    monkeypatch.setenv("UNET_NO_PROGRESS_MINUTES", "0.25")
    began = time.monotonic()
    with (
        dask.config.set({"distributed.worker.preload": [str(tmp_path / "hanging.py")]}),
        pytest.raises(StalledError, match=r"for 15 s, with 4 in flight: segment block 4 on tcp://127.0.0.1:\d+ for \d+ s, "),
    ):
        segment_on_cluster(job, "local", 1)
    print(f"stopped after {time.monotonic() - began:.1f} s")
    assert read_status(job.output).stages["segment"] == (4, 15)  # the others wait for the device
    assert find_holder(open_store(job.output)) is None


def test_a_block_that_takes_longer_but_moves_is_waited_for(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(f"SLOW = 40\n{HANGING}")
    image, model = make_image((70, 90)), make_model(levels=2)
    job = make_job(image=str(image), output=str(tmp_path / "out"), model=str(model), block_shape=(32, 32))
    monkeypatch.setenv("UNET_NO_PROGRESS_MINUTES", "0.17")
    with dask.config.set({"distributed.worker.preload": [str(tmp_path / "slow.py")]}):
        assert segment_on_cluster(job, "local", 1).status == "complete"


FAILING = """
import pathlib
from unet_core import worker
from unet_core.errors import BlockError

def predict_or_fail(unit, predict=worker.predict_block):
    tried = pathlib.Path(PLACE) / f"{unit.index}"
    tried.open("a").write("x")
    if unit.index in (4, 7) and tried.stat().st_size <= {4: 2, 7: 99}[unit.index]:
        raise BlockError("trouble")
    return predict(unit)
if worker.predict_block.__name__ != "predict_or_fail":  # dask may run this twice
    worker.predict_block = predict_or_fail
"""


def test_blocks_that_fail_on_workers_are_tried_again_and_then_quarantined(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    (tmp_path / "tried").mkdir()
    (tmp_path / "failing.py").write_text(f"PLACE = {str(tmp_path / 'tried')!r}\n{FAILING}")
    image, model = make_image((70, 90)), make_model(levels=2)
    job = make_job(image=str(image), output=str(tmp_path / "out"), model=str(model), block_shape=(32, 32))
    with dask.config.set({"distributed.worker.preload": [str(tmp_path / "failing.py")]}):
        summary = segment_on_cluster(job, "local", 2)
    assert {path.name: path.stat().st_size for path in (tmp_path / "tried").iterdir()} == {
        str(index): 3 if index in (4, 7) else 1 for index in range(9)
    }
    assert (summary.status, summary.computed) == ("partial", 8)
    assert summary.failures == ["segment block 7 (yx 64:70, 32:64): trouble (quarantined after 3 attempts)"]
