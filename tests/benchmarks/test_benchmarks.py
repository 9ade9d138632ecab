"""The comparison compares like with like, goes on where it was, and its figures are right."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from skimage.measure import label
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import joining
from tests.benchmarks.cases import CASES, Work
from tests.benchmarks.goals import Goal
from tests.benchmarks.log import Log
from tests.benchmarks.loops import tile_loop
from tests.benchmarks.meter import Meter
from tests.benchmarks.prepare import prepare
from tests.benchmarks.ratios import ratio_of_medians
from tests.benchmarks.table import CONTENDERS
from tests.benchmarks.training import lines_of
from tests.benchmarks.training_data import cells, make_data_set, plan
from tests.benchmarks.training_step import measure
from tests.benchmarks.training_weights import by_transforms
from unet_core.geometry import Box
from unet_core.postprocess import watershed_on_distance
from unet_core.training.border_weights import border_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    prepare(tmp_path / "tiny", CASES["tiny"])
    return Work(tmp_path / "tiny")


def one_pass(work: Work) -> Any:
    """Labels of the valid network on the whole image, mirrored by numpy."""
    image, footprint = zarr.open_array(work.image, mode="r")[...], work.package.footprint
    read = footprint.read_box(Box.from_shape(image.shape))
    ends = [(-start, stop - size) for start, stop, size in zip(read.start, read.stop, image.shape, strict=True)]
    batch = torch.from_numpy(work.normalise(np.pad(image, ends, mode="reflect")))[None, None]
    with torch.inference_mode():
        labels = work.package.network(batch)[0].argmax(0)
    return labels[: image.shape[0], : image.shape[1]].numpy()


@pytest.mark.parametrize("tuned", [False, True])
def test_tile_loops_give_the_labels_of_one_pass(work: Work, tuned: bool) -> None:
    tile_loop(work, Meter(), step=64, tuned=tuned)
    expected = one_pass(work)
    assert (zarr.open_array(work.output)[...] == expected).mean() > 0.9999
    tile_loop(work, Meter(), step=62, tuned=tuned)  # no multiple of the stride 4: its pooling windows lie elsewhere
    assert (zarr.open_array(work.output)[...] == expected).mean() < 0.99


def test_operations_are_those_that_torch_counts(work: Work) -> None:
    for network in (work.package.network, work.padded_twin()):
        shape, meter = (2, 1, 92, 60), Meter()
        meter.count(network)
        with meter, torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(shape))
        assert meter.result()["operations"] == counter.get_total_flops()


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_was(tmp_path: Path) -> None:
    names = ["pipeline, serial", "tile loop, tuned", "map_overlap, tuned", "MONAI, overlap 0.5"]
    chosen = [word for name in names for word in ("--contender", name)]
    command = [sys.executable, "-m", "tests.benchmarks", "--case", "tiny", "--rounds", "1", "--work", str(tmp_path), "--full"]

    def compare() -> str:
        done = subprocess.run(
            [*command, *chosen, "--peers", "no-such-python"], check=True, capture_output=True, text=True, cwd=ROOT
        )
        return done.stdout

    said, log = compare(), tmp_path / "full.jsonl"
    rows = {row["contender"]: row for row in json.loads((tmp_path / "full.json").read_text())["cases"][0]["rows"]}
    assert list(rows) == names
    assert rows["pipeline, serial"]["labels_equal"] == 1
    assert rows["tile loop, tuned"]["labels_equal"] > 0.9999
    assert rows["map_overlap, tuned"]["labels_equal"] > 0.98  # dask mirrors the border another way
    assert all(rows[name]["peak_bytes"] > 100 << 20 and rows[name]["read_bytes"] > 60000 for name in names[:3])
    assert "MONAI, overlap 0.5 | 1 | not measured: no environment of the peers (no-such-python)" in said
    assert (tmp_path / "full.png").stat().st_size > 5000

    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:2]) + "\n" + lines[2][:50])  # killed while it wrote the third
    compare()
    again = log.read_text().splitlines()
    assert again[:2] == lines[:2]
    assert [json.loads(line)["contender"] for line in again[3:]] == names[2:]  # what failed is tried again


def test_what_was_measured_with_other_settings_does_not_count(tmp_path: Path) -> None:
    log = Log(tmp_path / "found.jsonl")
    log.add({"case": "2d", "round": 0, "settings": {"step": 512}, "seconds": 1.5})
    again = Log(tmp_path / "found.jsonl")
    assert again.find({"case": "2d", "round": 0, "settings": {"step": 512}}) == log.entries
    assert again.find({"case": "2d", "round": 0, "settings": {"step": 1024}}) == []
    assert Log(tmp_path / "found.jsonl", fresh=True).entries == []


def test_interval_of_three_rounds_is_that_of_all_resamples() -> None:
    over, under = [3.1, 2.9, 3.4], [1.0, 1.1, 1.25]
    every = [
        np.median(above) / np.median(below)
        for above in itertools.product(over, repeat=3)
        for below in itertools.product(under, repeat=3)
    ]
    found = ratio_of_medians(over, under)
    assert found.value == 3.1 / 1.1
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(every, (2.5, 97.5))), rel=1e-9)


def test_interval_of_many_rounds_is_that_of_the_normal_law() -> None:
    times = np.random.default_rng(3).normal(2, 0.1, 900)
    found = ratio_of_medians(times.tolist(), [1.0])
    expected = 1.96 * np.sqrt(np.pi / 2) * 0.1 / np.sqrt(900)  # standard error of a median of normal values
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.15)
    assert found.low < found.value < found.high


def test_goals_say_what_is_missed() -> None:
    goal = Goal("speed", 2, lambda report: iter(report.items()))
    assert goal.line({"2d": 2.5, "3d": 1.5}) == "| speed >= 2.00 | 2.50 (2d); 1.50 (3d, missed) |"
    below = Goal("waste", 0.05, lambda report: iter(report.items()), at_least=False, percent=True)
    assert below.line({"2d": 0.04}) == "| waste <= 5 % | 4 % (2d) |"
    assert below.line({}) == "| waste <= 5 % | not measured in this run |"


def test_peers_have_rows_on_one_core_and_on_two() -> None:
    for name in ("MONAI, overlap 0.5", "nnU-Net, without mirroring"):
        assert (CONTENDERS[name].cores, CONTENDERS[f"{name}, 2 threads"].cores) == (1, 2)
        assert CONTENDERS[name].peer


def test_weight_maps_that_are_compared_are_equal() -> None:
    instances = cells(67, 9, seed=3)
    expected = by_transforms(instances, 10, 5)
    assert expected.max() > 1
    np.testing.assert_allclose(border_weights(instances, 10, 5), expected, atol=2e-5)  # below a millionth of w0 ours are 0


def test_bare_steps_and_the_loop_take_the_same_crops(tmp_path: Path) -> None:
    data_set = make_data_set(tmp_path / "data", images=1, side=150, count=20)
    settings = ("network.arguments.base=2", "network.arguments.levels=2", "crops.target=20", "crops.per_step=3")
    plan(data_set, tmp_path / "model", "default", settings)
    found = measure(str(tmp_path / "model"), rounds=2, steps=1)
    assert found["crops"] == 3
    assert all(len(found[way]) == 2 and min(found[way]) > 0 for way in ("loop", "bare", "loop_cpu", "bare_cpu"))
    assert found["load"] > 0
    assert found["batch"] > 0


def test_figures_of_training_are_ratios_of_medians() -> None:
    loop = {"case": "tiny", "loop": [1.0, 1.2, 9], "bare": [1.0, 1, 1], "loop_cpu": [2.2], "bare_cpu": [2.0]}
    report = {
        **{"date": "", "machine": "", "load_before": 0.0, "load_after": 0.0},
        "loops": [loop | {"load": 0.01, "batch": 0.02, "crops": 3}],
        "ranks": {"2": {"one": [2.0], "two": [2.5], "apart": [2.2]}},
        "weights": {"own": [0.1], "transforms": [3.0], "difference": 0.0},
    }
    said = "\n".join(lines_of(report))
    assert "| tiny | 2.50 | 3.00 | 20 % [0 %, 800 %] | 10 % | 10.0 | 20.0 |" in said
    assert "20 % (tiny, missed)" in said
    assert "crops/s >= 1.70 | 1.60 (default, float32, 2 crops a rank, missed)" in said  # two ranks do twice the crops
    assert "crops/s >= 0.85 | 0.88 (default, float32, 2 crops a rank)" in said
    assert "speed >= 20.00 | 30.00 (1024 x 1024)" in said


@pytest.mark.slow
def test_the_benchmark_of_exports_counts_what_was_drawn(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.exporting", str(tmp_path), "90"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1])["features"] == 90


@pytest.mark.slow
@pytest.mark.parametrize("method", ["components", "watershed"])
def test_the_benchmark_of_joining_counts_the_objects_of_the_whole(method: str, tmp_path: Path) -> None:
    labels = np.tile(joining.periodic_block(), (3, 3, 3))
    expected = label(labels, connectivity=1) if method == "components" else watershed_on_distance(labels > 0)
    found = joining.scale(27, method, tmp_path)
    assert found["join_objects"] == expected.max() > 100


def test_the_benchmark_of_numbering_compares_equal_results() -> None:
    found = joining.speed(64, 24, 1)
    assert found["objects"] > 0
    assert "numbering 0 Mvoxel" in joining.table_of([found])
