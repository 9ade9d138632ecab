"""Blocks and strips: what the planner chooses, and that streaming changes no label."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import textured
from tests.flows.test_cli import call
from tests.unet_core.test_segment import digest, expected_logits, labels_of
from unet_core.errors import FootprintError, GridError, MemoryBudgetError, ResumeError
from unet_core.footprint import footprint
from unet_core.geometry import BlockGrid, Box
from unet_core.job import make_job
from unet_core.model_package import load_model
from unet_core.plan import Plan
from unet_core.planning import resolve
from unet_core.segment import plan_run, run

Maker = Callable[..., Path]


@pytest.mark.parametrize(
    ("arguments", "shape", "block", "strips"),
    [
        ({"levels": 3}, (150, 93), (72, 64), (0, 4, 16, 128)),
        ({"levels": 2, "dims": 3}, (33, 22, 37), (16, 14, 22), (0, 2, 8, 32)),
    ],
)
def test_strips_give_the_labels_of_one_pass_and_the_same_bytes_each_time(
    arguments: dict[str, Any], shape: tuple[int, ...], block: tuple[int, ...], strips: tuple[int, ...],
    make_model: Maker, make_image: Maker, tmp_path: Path,
) -> None:  # fmt: skip
    image, model = make_image(shape), make_model(**arguments)
    logits = expected_logits(model, textured(shape))
    softmax = np.exp(logits - logits.max(0))
    softmax /= softmax.sum(0)
    ids = set()
    for strip in strips:
        found = []
        for number in range(2):
            job = make_job(
                image=str(image), output=str(tmp_path / f"{strip}-{number}"), model=str(model), block_shape=block, strip=strip,
                probabilities="float32",
            )  # fmt: skip
            summary = run(job)
            assert summary.status == "complete"
            assert summary.blocks > 2
            found.append(tmp_path / f"{strip}-{number}")
        assert digest(found[0]) == digest(found[1])
        stored = zarr.open_array(found[0] / "0", mode="r")[...]
        np.testing.assert_allclose(stored, softmax, atol=1e-5)
        clear = np.abs(logits[0] - logits[1]) > 1e-5 * np.ptp(logits)
        np.testing.assert_array_equal(labels_of(found[0])[clear], logits.argmax(0)[clear])
        plan = plan_run(job)
        assert plan.strip == (strip or None)
        ids.add(plan.id)
    assert len(ids) == len(strips)  # strips change last bits, so they are part of the plan


def planned(image_shape: tuple[int, ...], model: Path, folder: Path, **options: Any) -> Plan:
    path = folder / "x".join(map(str, image_shape))
    if not path.exists():
        zarr.create_array(
            path, shape=image_shape, dtype="uint8", chunks=tuple(min(512, size) for size in image_shape), fill_value=7
        )
    return plan_run(make_job(image=str(path), output=str(folder / "out"), model=str(model), missing="fill", **options))


def computed(model: Path, plan: Plan) -> float:
    """Operations of all blocks, over those of one pass over the whole image, as torch counts them."""
    network = load_model(str(model)).network.to("meta")
    geometry, shape = footprint(network), plan.levels[0].shape

    def count(box: Box) -> int:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(torch.empty((1, 1, *geometry.read_box(box).shape), device="meta"))
        return counter.get_total_flops()

    return sum(count(box) for box in plan.stages[0].grid.blocks()) / count(Box.from_shape(shape))


@pytest.mark.parametrize(
    ("arguments", "shapes", "most"),
    [
        ({"levels": 5}, [(2048, 2048), (4096, 4096), (3000, 5000)], 1.05),
        ({"network": "unet3d", "dims": 3, "levels": 4}, [(128, 128, 128), (256, 256, 256), (150, 300, 200)], 1.25),
    ],
)
def test_blocks_compute_hardly_more_than_one_pass_and_keep_workers_busy(
    arguments: dict[str, Any], shapes: list[tuple[int, ...]], most: float, make_model: Maker, tmp_path: Path
) -> None:
    model = make_model(base=2, **arguments)
    for shape in shapes:
        plan = planned(shape, model, tmp_path)
        assert plan.strip
        assert BlockGrid(shape, plan.block_shape).block_count >= 2
        assert computed(model, plan) <= most


def test_large_images_get_large_blocks_and_small_ones_two_where_that_is_cheap(make_model: Maker, tmp_path: Path) -> None:
    model = make_model(levels=5, base=16)
    blocks = {side: planned((side, side), model, tmp_path) for side in (256, 1024, 4096, 16384)}
    counts = {side: BlockGrid((side, side), plan.block_shape).block_count for side, plan in blocks.items()}
    assert blocks[16384].block_shape == (4096, 2048)
    assert counts[256] == 1  # two would compute a fifth of it twice
    assert counts[1024] == 2
    assert counts[4096] == 4


def test_less_memory_makes_lower_strips_and_smaller_blocks(make_model: Maker, tmp_path: Path) -> None:
    model = make_model(levels=5, base=64)
    sizes = []
    for memory in (8.0, 0.6, 0.4):
        plan = planned((16384, 16384), model, tmp_path, memory_gib=memory)
        sizes.append((np.prod(plan.block_shape), plan.strip))
    assert sizes == sorted(sizes, reverse=True)
    assert len({*sizes}) == 3
    with pytest.raises(MemoryBudgetError, match=r"needs .* GiB, the worker may use 0.2 GiB; use a smaller --block-shape"):
        planned((16384, 16384), model, tmp_path, memory_gib=0.2)


def test_taller_strips_need_more_memory_up_to_the_whole_block(make_model: Maker, tmp_path: Path) -> None:
    image, model = tmp_path / "image", make_model(levels=4, base=16)
    zarr.create_array(image, data=textured((300, 290)), chunks=(300, 290))
    job = {"image": str(image), "output": str(tmp_path / "out"), "model": str(model), "block_shape": (304, 304)}
    read = plan_run(make_job(**job)).footprint.read_shape[0]
    whole = -(-read // 8) * 8
    needed = [resolve(make_job(**job, strip=strip)).memory_bytes for strip in (16, 64, whole, 4096)]
    assert needed[0] < needed[1] < needed[2] == needed[3]


@pytest.mark.parametrize(
    ("shape", "words"), [((40, 50), "16 rows along y at a time"), ((9, 20, 21), "16 sections along z at a time")]
)
def test_the_plan_says_how_it_streams(
    shape: tuple[int, ...], words: str, make_model: Maker, make_image: Maker, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    image, model = make_image(shape), make_model(dims=len(shape), levels=2)
    code, out, _ = call(monkeypatch, capsys, "plan", image, tmp_path / "out", "--model", model, "--strip", "16", "--json")
    assert (code, json.loads(out.splitlines()[-1])["strips"]) == (0, words)
    _, out, _ = call(monkeypatch, capsys, "plan", image, tmp_path / "out", "--model", model, "--strip", "0", "--json")
    assert json.loads(out.splitlines()[-1])["strips"] == "none; whole blocks at once"


def test_a_killed_run_goes_on_with_its_strip_and_no_other(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    base = {"image": str(make_image((75, 93))), "model": str(make_model()), "block_shape": (32, 32)}
    output, undisturbed = tmp_path / "out", tmp_path / "undisturbed"

    def stop(record: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_job(**base, output=str(output), strip=16), stop)
    for other in (32, 0, None):
        with pytest.raises(ResumeError, match="was begun with another --strip: 16 then, (32|128|0) now; give a new output"):
            run(make_job(**base, output=str(output), strip=other))
    summary = run(make_job(**base, output=str(output), strip=16))
    assert summary.computed == summary.blocks - 1
    run(make_job(**base, output=str(undisturbed), strip=16))
    assert digest(output) == digest(undisturbed)


def test_what_cannot_run_in_strips_runs_in_whole_blocks_or_is_refused_by_name(make_model: Maker, tmp_path: Path) -> None:
    padded = make_model(levels=3, padding="same")
    assert planned((300, 300), padded, tmp_path).strip is None
    with pytest.raises(FootprintError, match="pads along the axis that is streamed"):
        planned((300, 300), padded, tmp_path, strip=16)
    with pytest.raises(GridError, match="strip of 15 rows is not a multiple of the network's stride 4; use 16"):
        planned((300, 300), make_model(levels=3), tmp_path, strip=15)


def test_the_plan_of_a_padded_network_says_that_blocks_run_whole(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    job = make_job(image=str(make_image((60, 50))), output=str(tmp_path / "out"), model=str(make_model(padding="same")))
    assert resolve(job).facts()["strips"] == "none; whole blocks at once"
