"""The mark of completion knows its job and its image, so that neither need be planned to know that nothing is left to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from tests.conftest import textured
from unet_core import completion, ledger
from unet_core.completion import asked_of, completed_before
from unet_core.job import SegmentationJob, make_job
from unet_core.model_package import load_model
from unet_core.outcome import take_over
from unet_core.planning import resolve
from unet_core.segment import run
from unet_core.store import open_store

Maker = Callable[..., Path]


def known(job: SegmentationJob) -> completion.Completion | None:
    return completed_before(job, asked_of(job, [load_model(model).sha256 for model in job.models]))


@pytest.fixture
def finished(make_model: Maker, tmp_path: Path) -> dict[str, Any]:
    """The fields of a job that is done."""
    tifffile.imwrite(tmp_path / "image.tif", textured((41, 53)))
    fields = {
        "image": str(tmp_path / "image.tif"),
        "output": str(tmp_path / "out"),
        "model": str(make_model(levels=2)),
        "instances": "components",
    }
    run(make_job(**fields))
    return fields


def test_a_job_that_is_done_is_known_without_opening_its_image(finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "open_volume", lambda *arguments, **options: pytest.fail("the image was opened"))
    monkeypatch.setattr(completion, "fingerprint", lambda path: pytest.fail("the image was read"))
    found = known(make_job(**finished))
    assert found is not None
    labels = np.asarray(zarr.open_array(f"{finished['output']}/labels/classes/0", mode="r")[...])
    ids = np.asarray(zarr.open_array(f"{finished['output']}/labels/instances/0", mode="r")[...])
    assert found.label_voxels == {f"class {value}": int((labels == value).sum()) for value in range(3)}
    assert found.instances == {f"class {value}": len(np.unique(ids[(labels == value) & (ids > 0)])) for value in (1, 2)}


def test_another_job_image_or_model_is_not_taken_for_it(finished: dict[str, Any], make_model: Maker) -> None:
    assert known(make_job(**finished, probabilities="uint8")) is None
    assert known(make_job(**finished | {"model": str(make_model(levels=2, seed=1))})) is None
    assert known(make_job(**finished, mask=finished["image"])) is None  # that may have changed
    image = Path(finished["image"])
    stated = image.stat().st_mtime_ns
    os.utime(image, ns=(stated + 10**9, stated + 10**9))  # copied, or touched
    assert known(make_job(**finished)) is not None
    tifffile.imwrite(image, textured((41, 53), seed=1))
    assert known(make_job(**finished)) is None


def test_a_result_that_grew_or_lost_its_mark_is_not_complete(finished: dict[str, Any], tmp_path: Path) -> None:
    part = finished | {"output": str(tmp_path / "part"), "block_shape": (16, 16)}
    run(make_job(**part, roi=("0:16,0:16",)))
    assert known(make_job(**part, roi=("0:16,0:16",))) is not None
    assert known(make_job(**part)) is None
    open_store(finished["output"]).delete(ledger.COMPLETE_KEY)
    assert known(make_job(**finished)) is None


def test_the_mark_of_an_earlier_release_is_taken_over_once_it_is_planned(finished: dict[str, Any]) -> None:
    store, job = open_store(finished["output"]), make_job(**finished)
    new = json.loads(store.get(ledger.COMPLETE_KEY))
    store.put(ledger.COMPLETE_KEY, json.dumps({key: new[key] for key in ("schema", "plan", "request", "units")}).encode())
    assert known(job) is None
    assert take_over(resolve(job), job.output) is not None
    assert json.loads(store.get(ledger.COMPLETE_KEY)) == new
    assert known(job) is not None
