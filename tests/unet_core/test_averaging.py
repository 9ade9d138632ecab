"""Means over symmetries and models: those of separate passes over whole turned images, from one read of each block."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray

from tests.conftest import textured
from tests.flows.test_cli import call
from tests.unet_core.test_footprint import one_pass
from tests.unet_core.test_segment import digest, labels_of
from unet_core import worker
from unet_core.errors import JobError, ModelPackageError, ResumeError
from unet_core.geometry import Box
from unet_core.job import make_job
from unet_core.model_package import load_model
from unet_core.networks import NETWORKS
from unet_core.passes import Pass
from unet_core.planning import resolve
from unet_core.segment import plan_run, read_status, run
from unet_core.symmetries import SYMMETRIES

Maker = Callable[..., Path]
Array = NDArray[Any]


def squares(flips_only: bool = False) -> Iterator[tuple[Callable[[Array], Array], Callable[[Array], Array]]]:
    """The symmetries of the square as numpy has them, quarter turns and a mirror image, each with what undoes it."""
    for turns in (0, 2) if flips_only else (0, 1, 2, 3):
        for mirrored in (False, True):

            def turn(values: Array, turns: int = turns, mirrored: bool = mirrored) -> Array:
                values = np.rot90(values, turns, axes=(-2, -1))
                return np.ascontiguousarray(values[..., ::-1] if mirrored else values)

            def undo(values: Array, turns: int = turns, mirrored: bool = mirrored) -> Array:
                values = values[..., ::-1] if mirrored else values
                return np.rot90(values, -turns, axes=(-2, -1))

            yield turn, undo


def probabilities(model: Path, image: Array) -> Array:
    """Of one pass over a whole mirrored image."""
    logits = one_pass(load_model(model).network, ((image.astype(np.float32) - 100) / 50)[None])
    return torch.from_numpy(np.ascontiguousarray(logits)).softmax(0).numpy()


def average(model: Path, image: Array, flips_only: bool = False) -> Array:
    """The mean of separate passes over whole turned images."""
    return np.mean([undo(probabilities(model, turn(image))) for turn, undo in squares(flips_only)], axis=0, dtype=np.float64)


def stored(output: Path, name: str = "0") -> Array:
    return np.asarray(zarr.open_array(output / name, mode="r")[...])


def check(output: Path, expected: Array, tolerance: float) -> None:
    """Probabilities to a tolerance, and labels where the two best classes differ by more."""
    np.testing.assert_allclose(stored(output), expected, rtol=0, atol=tolerance)
    two_best = np.sort(expected, axis=0)[-2:]
    clear = two_best[1] - two_best[0] > 2 * tolerance
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(labels_of(output)[clear], expected.argmax(0)[clear])


CASES: list[tuple[dict[str, Any], tuple[int, ...], list[dict[str, Any]]]] = [
    ({"levels": 3}, (37, 54), [{"block_shape": (16, 32)}, {"block_shape": (40, 8), "strip": 4}, {"block_shape": (20, 24), "strip": 0}]),
    ({"levels": 5, "base": 2}, (51, 34), [{"block_shape": (32, 16), "strip": 16}, {"block_shape": (64, 48), "strip": 0}]),
    ({"levels": 3, "padding": "same"}, (37, 54), [{"block_shape": (16, 24)}, {}]),
    ({"levels": 3, "poolings": ((3, 2), (2, 3))}, (37, 29), [{"block_shape": (12, 18), "strip": 6}, {"block_shape": (24, 12), "strip": 0}]),
    ({"levels": 2, "dims": 3}, (5, 13, 18), [{"block_shape": (4, 6, 8), "strip": 2}, {"block_shape": (6, 8, 10), "strip": 0}]),
    ({"levels": 2, "dims": 3, "padding": "same", "poolings": ((1, 2, 2),)}, (4, 11, 14), [{"block_shape": (2, 6, 8)}]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "shape", "cuts"), CASES, ids=str)
def test_the_average_is_that_of_passes_over_whole_turned_images(
    arguments: dict[str, Any], shape: tuple[int, ...], cuts: list[dict[str, Any]],
    make_model: Maker, make_image: Maker, tmp_path: Path,
) -> None:  # fmt: skip
    model, image = make_model(**arguments), make_image(shape)
    expected = average(model, textured(shape))
    assert np.abs(expected - probabilities(model, textured(shape))).max() > 1e-3  # it changes something
    for number, cut in enumerate(cuts):
        output = tmp_path / f"out-{number}"
        summary = run(
            make_job(image=str(image), output=str(output), model=str(model), symmetries="all", probabilities="float32", **cut)
        )
        assert (summary.status, summary.passes) == ("complete", 8)
        check(output, expected, 1e-5)


@pytest.mark.parametrize("mutant", ["phase", "turned back"])
def test_a_wrong_phase_or_a_wrong_turn_changes_the_average(
    mutant: str, make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail."""
    shape = (37, 54)
    model, image = make_model(levels=3), make_image(shape)
    if mutant == "phase":
        monkeypatch.setattr(Pass, "write_box", lambda step, box, shape: step.symmetry.turned_box(box, shape))
    else:
        first, second = SYMMETRIES["flips"][1], SYMMETRIES["flips"][2]
        monkeypatch.setattr(
            type(first),
            "turn",
            lambda symmetry, values: values[..., ::-1] if symmetry == second else np.flip(values, symmetry._flipped_axes),
        )
    run(
        make_job(
            image=str(image),
            output=str(tmp_path / "out"),
            model=str(model),
            symmetries="flips",
            probabilities="float32",
            block_shape=(16, 32),
        )
    )
    assert np.abs(stored(tmp_path / "out") - average(model, textured(shape), flips_only=True)).max() > 1e-3


def test_an_average_is_the_mean_of_separate_runs_on_turned_images(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    """As a user can check it: turn the image, segment it, turn the result back."""
    shape = (37, 54)
    model, image = make_model(levels=3), make_image(shape)
    options = {"model": str(model), "probabilities": "float32"}
    separate = []
    for number, (turn, undo) in enumerate(squares(flips_only=True)):
        zarr.create_array(tmp_path / f"turned-{number}", data=turn(textured(shape)), chunks=(20, 20))
        run(
            make_job(
                image=str(tmp_path / f"turned-{number}"), output=str(tmp_path / f"{number}"), block_shape=(16, 24), **options
            )
        )
        separate.append(undo(stored(tmp_path / f"{number}")))
    run(make_job(image=str(image), output=str(tmp_path / "out"), block_shape=(20, 16), symmetries="flips", **options))
    check(tmp_path / "out", np.mean(separate, axis=0, dtype=np.float64), 2e-6)


def test_any_strip_and_worker_gives_the_same_average(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    """The same cut gives the same bytes, kept whole or computed in another order."""
    job = make_job(
        image=str(make_image((37, 54))), output=str(tmp_path / "a"), model=str(make_model(levels=3)), symmetries="all",
        block_shape=(16, 32), probabilities="uint8",
    )  # fmt: skip
    run(job)
    other = job.model_copy(update={"output": str(tmp_path / "b"), "roi": ("20:30,40:50",)})
    assert run(other).computed == 1
    assert run(other.model_copy(update={"roi": ()})).computed == 5
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


@pytest.mark.parametrize("symmetries", ["none", "flips"])
def test_an_ensemble_is_the_mean_of_its_models_whatever_their_margins(
    symmetries: str, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image = make_image((37, 54))
    models = [make_model(levels=2, seed=1), make_model(levels=4, seed=2), make_model(levels=3, padding="same", seed=3)]
    options = {"image": str(image), "probabilities": "float32", "block_shape": (16, 24), "symmetries": symmetries}
    for number, model in enumerate(models):
        run(make_job(**options, output=str(tmp_path / f"{number}"), model=str(model)))
    further = tuple(map(str, models[1:]))
    job = make_job(**options, output=str(tmp_path / "out"), model=str(models[0]), further_models=further)
    plan = plan_run(job)
    assert plan.footprint.stride == (8, 8)
    assert plan.pass_count == (3 if symmetries == "none" else 12)
    run(job)
    check(tmp_path / "out", np.mean([stored(tmp_path / f"{number}") for number in range(3)], axis=0, dtype=np.float64), 1e-6)


def test_each_block_is_read_once_for_all_models_and_symmetries(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, boxes = [make_model(levels=2, seed=1), make_model(levels=3, seed=2)], list[Box]()
    true_read = worker.read_reflected

    def counted(source: Any, box: Box) -> Any:
        boxes.append(box)
        return true_read(source, box)

    monkeypatch.setattr(worker, "read_reflected", counted)
    job = make_job(
        image=str(make_image((37, 54))), output=str(tmp_path / "out"), model=str(models[0]), further_models=(str(models[1]),),
        symmetries="all", block_shape=(16, 32),
    )  # fmt: skip
    summary = run(job)
    assert len(boxes) == summary.blocks == 6
    first = load_model(models[1]).footprint.read_box(Box((0, 0), (16, 32)))
    assert boxes[0].contains(first)


def test_labels_of_regions_are_those_of_the_mean(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    model, image = make_model(kind="regions"), make_image((20, 27))
    run(make_job(image=str(image), output=str(tmp_path / "out"), model=str(model), symmetries="flips", probabilities="float32"))
    logits = [
        undo(one_pass(load_model(model).network, ((turn(textured((20, 27))).astype(np.float32) - 100) / 50)[None]))
        for turn, undo in squares(flips_only=True)
    ]
    expected = np.mean(1 / (1 + np.exp(-np.stack(logits).astype(np.float64))), axis=0)
    np.testing.assert_allclose(stored(tmp_path / "out"), expected, atol=1e-5)
    for channel in range(3):
        clear = np.abs(expected[channel] - 0.5) > 1e-5
        inside = stored(tmp_path / "out", f"labels/class_{channel}/0") > 0
        np.testing.assert_array_equal(inside[clear], (expected[channel] > 0.5)[clear])


def test_tiles_are_turned_where_they_lie_so_that_blocks_change_nothing(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "whole_box", "tests.unet_core.test_approximate:WholeBox")
    model, image = make_model(network="whole_box", norm="instance"), make_image((50, 44))
    options = {"image": str(image), "model": str(model), "approximate": True, "tile_shape": (16, 12), "symmetries": "all"}
    for name, block in (("a", (16, 12)), ("b", (48, 36))):
        run(make_job(**options, output=str(tmp_path / name), block_shape=block, probabilities="float32"))
    np.testing.assert_array_equal(stored(tmp_path / "a"), stored(tmp_path / "b"))
    run(
        make_job(
            **options | {"symmetries": "none"}, output=str(tmp_path / "plain"), block_shape=(16, 12), probabilities="float32"
        )
    )
    assert np.abs(stored(tmp_path / "plain") - stored(tmp_path / "a")).max() > 1e-3


def test_what_is_averaged_is_in_the_plan_and_shown(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    models = [make_model(seed=1), make_model(seed=2)]
    options = {"image": str(make_image((20, 27))), "output": str(tmp_path / "out"), "model": str(models[0])}
    one = resolve(make_job(**options))
    assert "averaging" not in one.facts()
    assert b"symmetries" not in one.plan.canonical()
    all_ = resolve(make_job(**options, symmetries="all", further_models=(str(models[1]),)))
    assert "mean probability of 16 passes: 2 models (random " in all_.facts()["averaging"]
    assert "8 symmetries of the square (all)" in all_.facts()["averaging"]
    assert all_.memory_bytes > one.memory_bytes
    run(make_job(**options, symmetries="flips"))
    with pytest.raises(ResumeError, match="was begun with another --symmetries: flips then, none now"):
        run(make_job(**options))
    with pytest.raises(ResumeError, match="was begun with another --model: "):
        run(make_job(**options, symmetries="flips", further_models=(str(models[1]),)))
    assert read_status(str(tmp_path / "out")).model == "random"


def test_the_command_line_takes_several_models_and_symmetries(
    make_model: Maker, make_image: Maker, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    models, output = [make_model(seed=1), make_model(seed=2)], tmp_path / "out"
    asked = (make_image((20, 27)), output, "--model", models[0], "--model", models[1], "--symmetries", "flips", "--json")
    code, out, _ = call(monkeypatch, capsys, "plan", *asked)
    assert (code, json.loads(out.splitlines()[-1])["averaging"][:35]) == (0, "mean probability of 8 passes: 2 mod")
    code, out, _ = call(monkeypatch, capsys, "segment", *asked, "--cluster", "serial")
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["models"], summary["passes"]) == (0, ["random", "random"], 8)
    assert "mean of 8 passes of random, random" in out
    code, out, _ = call(monkeypatch, capsys, "status", output, "--json")
    assert json.loads(out.splitlines()[-1])["model"] == "random, random"


def test_models_that_are_not_alike_are_refused_by_name(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    model, options = make_model(), {"image": str(make_image((20, 27))), "output": str(tmp_path / "out")}
    others = [
        (make_model(classes=2, seed=1), "heads"),
        (make_model(kind="regions", seed=2), "heads"),
        (make_model(in_channels=2, seed=3), "input channels"),
        (make_model(voxel_size_um=(0.5, 0.5), seed=4), "voxel size"),
        (make_model(dims=3, levels=2, seed=5), "axes"),
    ]
    for other, field in others:
        with pytest.raises(ModelPackageError, match=f"{model} and {other} have different {field}"):
            resolve(make_job(**options, model=str(model), further_models=(str(other),)))
    twin = make_model()
    with pytest.raises(ModelPackageError, match=f"{model} and {twin} are the same"):
        resolve(make_job(**options, model=str(model), further_models=(str(twin),)))


def test_swapping_axes_of_unequal_voxels_is_refused(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    options = {"image": str(make_image((20, 27))), "output": str(tmp_path / "out"), "model": str(make_model())}
    with pytest.raises(JobError, match="swaps y and x, whose voxels are 0.5 and 1 um.*use --symmetries flips"):
        resolve(make_job(**options, symmetries="all", voxel_size_um=(0.5, 1.0)))
    resolve(make_job(**options, symmetries="flips", voxel_size_um=(0.5, 1.0)))
