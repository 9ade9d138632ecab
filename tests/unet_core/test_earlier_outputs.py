"""Outputs that an earlier release began, stored beside this file: opened, and taken up under the same plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from unet_core.errors import ResumeError
from unet_core.job import make_job
from unet_core.ledger import Request
from unet_core.plan import Plan
from unet_core.segment import open_result, plan_run, read_status, run

EARLIER = Path(__file__).parent / "earlier"


@pytest.fixture
def one_model(tmp_path: Path) -> Path:
    """A copy of what the release before averages and several models wrote: block 0 of 4."""
    return Path(shutil.copytree(EARLIER / "one-model", tmp_path / "one-model"))


def test_plan_and_request_of_one_model_are_read_and_written_as_before(one_model: Path) -> None:
    plan = Plan.model_validate_json((one_model / "output/.unet/plan.json").read_text())
    assert plan.id == "c7f6815344c63f27d8e7eed1eaac996b22d6f864b2c8f9176eaffbe4fc221a53"
    assert plan.canonical() == (one_model / "output/.unet/plan.json").read_bytes()
    text = (one_model / "output/.unet/request.json").read_text()
    assert Request.model_validate_json(text).model_dump(mode="json", by_alias=True) == json.loads(text)
    assert (plan.pass_count, plan.symmetries, plan.further_models) == (1, "none", ())


def test_a_run_of_one_model_goes_on_where_the_earlier_release_stopped(one_model: Path, tmp_path: Path) -> None:
    options = {"image": str(one_model / "image.png"), "model": str(one_model / "model"), "block_shape": (32, 32)}
    output = str(one_model / "output")
    before = (one_model / "output/labels/classes/0/c/0/0").read_bytes()
    assert read_status(output).state == "complete"
    assert plan_run(make_job(**options, output=output)).id == open_result(output).plan.id
    with pytest.raises(ResumeError, match="was begun with another --symmetries: none then, all now"):
        run(make_job(**options, output=output, symmetries="all"))
    summary = run(make_job(**options, output=output))
    assert (summary.status, summary.blocks, summary.computed) == ("complete", 4, 3)
    assert (one_model / "output/labels/classes/0/c/0/0").read_bytes() == before
    run(make_job(**options, output=str(tmp_path / "new")))
    labels = [zarr.open_array(f"{place}/labels/classes/0", mode="r")[...] for place in (output, tmp_path / "new")]
    assert np.mean(labels[0] == labels[1]) > 0.99  # the stored block may come from another class of hardware
