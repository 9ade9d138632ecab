"""The seam score: 1 where there is no seam, above 1 where tiles are off by half a percent or labels shifted by a voxel."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from scipy import ndimage

import unet_core
from flows.demo import SLIDE as SLIDE_NAME
from tests.flows.test_cli import call
from tests.unet_core.test_approximate import probabilities
from unet_core.errors import LedgerError, ResumeError
from unet_core.geometry import BlockGrid, Box
from unet_core.job import make_job
from unet_core.model_package import load_model, model_url
from unet_core.networks import NETWORKS
from unet_core.result import Result
from unet_core.seams import FACETS, NOT_MEASURABLE, Seam, measure_seams, seam_scores
from unet_core.segment import read_status, run
from unet_core.volumes import open_volume

Maker = Callable[..., Path]
SLIDE = Path(unet_core.__file__).parent / "bundled" / SLIDE_NAME
CASES = [((515, 733), (64, 48)), ((60, 131, 150), (16, 32, 24))]


def field(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Smooth probabilities that change by up to several percent a voxel."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 6, mode="wrap")
    return (1 / (1 + np.exp(-2 * smooth / smooth.std()))).astype(np.float32)


def by_tile(shape: tuple[int, ...], tile: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """A number from -1 to 1 for each tile, constant inside it."""
    values = np.random.default_rng(seed).uniform(-1, 1, [-(-size // step) for size, step in zip(shape, tile, strict=True)])
    for axis, (size, step) in enumerate(zip(shape, tile, strict=True)):
        values = np.repeat(values, step, axis=axis).take(range(size), axis=axis)
    return values.astype(np.float32)


def score(values: NDArray[Any], tile: tuple[int, ...], **more: Any) -> dict[str, Seam]:
    axes = "zyx"[-values.ndim :]
    grid = BlockGrid(values.shape, tuple(2 * size for size in tile))
    return seam_scores(
        lambda box: values[(None, *box.slices())], grid, range(grid.block_count), axes, tile, (4,) * values.ndim, **more
    )


@pytest.mark.parametrize(("shape", "tile"), CASES, ids=["2d", "3d"])
def test_half_a_percent_of_bias_is_seen_and_none_is_not(shape: tuple[int, ...], tile: tuple[int, ...]) -> None:
    clean = [score(field(shape, seed), tile) for seed in range(3)]
    assert set(clean[0]) == set("zyx"[-len(shape) :])
    contains = [seam.low <= 1 <= seam.high for found in clean for seam in found.values() if seam.low and seam.high]
    assert np.mean(contains) >= 0.75, clean  # 95 % of them, in the long run
    for seed in range(3):
        biased = score(field(shape, seed) + 0.005 * by_tile(shape, tile, seed), tile)
        assert all(seam.low is not None and seam.low > 1.2 for seam in biased.values()), biased
        assert "seams show" in biased["x"].sentence("x")
    assert score(field(shape, 0), tile) == clean[0]


@pytest.mark.parametrize(("shape", "tile"), CASES, ids=["2d", "3d"])
def test_labels_that_are_shifted_tile_by_tile_are_seen(shape: tuple[int, ...], tile: tuple[int, ...]) -> None:
    smooth = field(shape, 1)
    labels = (smooth > 0.5).astype(np.uint8)
    assert all(seam.low is not None and seam.low < 1.1 for seam in score(labels, tile, of="labels").values())
    odd = by_tile(shape, tile, 2) > 0
    shifted = np.where(odd, np.roll(labels, 3, axis=tuple(range(len(shape)))), labels)
    found = score(shifted, tile, of="labels")
    assert all(seam.low is not None and seam.low > 1 for seam in found.values()), found


def jump_of(values: NDArray[Any], plane: int) -> float:
    """The mean compressed step at a plane of the first axis of (planes, [C,] one axis), by plain loops."""
    rows = values.astype(np.float64).round(5).reshape(len(values), -1, values.shape[-1])
    sizes = []
    for before, last, here, after in zip(*(rows[plane + offset] for offset in (-2, -1, 0, 1)), strict=True):
        steps = [
            math.asinh(1000 * (h - b - ((b - bb) + (a - h)) / 2)) for bb, b, h, a in zip(before, last, here, after, strict=True)
        ]
        windows = [steps[first : first + 8] for first in range(0, len(steps), 8)]
        sizes += [abs(sum(window) / len(window)) for window in windows]
    return sum(sizes) / len(sizes)


def test_face_and_elsewhere_are_what_a_plain_loop_gives() -> None:
    values = np.random.default_rng(0).random((37, 22)) / 50
    found = seam_scores(lambda box: values[(None, *box.slices())], BlockGrid((37, 22), (16, 30)), range(3), "yx", (8, 30), (2, 2))
    assert set(found) == {"y"}  # there is no face across x
    faces = (8, 16, 24, 32)
    beside = [np.mean([jump_of(values, face + offset) for offset in (-4, -2, 2, 4) if face + offset <= 35]) for face in faces]
    np.testing.assert_allclose(found["y"].face, math.sinh(np.mean([jump_of(values, face) for face in faces])) / 1000)
    np.testing.assert_allclose(found["y"].elsewhere, math.sinh(np.mean(beside)) / 1000)
    assert found["y"].facets == 4
    assert found["y"].low is None
    assert "4 facets, too few to tell" in found["y"].sentence("y")


def test_of_windows_in_a_volume_the_mean_keeps_its_sign() -> None:
    """Steps of 1 % in every other voxel of a face leave half of it, and of either sign, within a window, nothing."""
    face = np.zeros((24, 32, 32))
    face[12:] = 0.01
    chess = np.indices(face.shape)[1:].sum(0) % 2
    grid = BlockGrid(face.shape, (12, 32, 32))
    for values, expected in ((face, 0.01), (face * chess, math.sinh(math.asinh(10) / 2) / 1000), (face * (1 - 2 * chess), 0.0)):
        found = seam_scores(
            lambda box, values=values: values[(None, *box.slices())], grid, (0, 1), "zyx", (12, 32, 32), (4, 4, 4)
        )
        assert set(found) == {"z"}
        np.testing.assert_allclose(found["z"].face, expected, atol=1e-12)
        assert found["z"].elsewhere == 0


def test_rounding_of_an_exact_result_is_no_seam() -> None:
    """Probabilities of nothing but background, which differ by block in their last bits."""
    blocks = np.add.outer(np.arange(320) // 32, np.arange(320) // 32) % 2
    found = score((1e-6 + 1e-6 * blocks).astype(np.float32), (32, 32))
    assert [seam.ratio for seam in found.values()] == [1.0, 1.0]
    assert not any(seam.is_seen for seam in found.values())


def test_boxes_are_few_small_and_all_over_a_huge_image() -> None:
    shape, read = (10**6, 10**6), []

    def look(box: Box) -> NDArray[np.floating]:
        read.append(box)
        return np.zeros((1, *box.shape), np.float32)

    grid = BlockGrid(shape, (8192, 8192))
    found = seam_scores(look, grid, range(grid.block_count), "yx", (512, 512), (16, 16))
    assert len(read) <= 2 * FACETS
    assert max(box.voxel_count for box in read) <= 64 * 68
    starts = np.array([box.start for box in read[: len(read) // 2]]) / 10**6
    assert np.histogram2d(*starts.T, bins=4, range=[[0, 1]] * 2)[0].min() > 0
    assert found["y"] == Seam(0.0, 0.0, 1.0, 1.0, 1.0, FACETS)


def test_regions_far_apart_in_a_huge_image_have_all_their_faces() -> None:
    """Compared with a loop over their tiles; nothing that was not computed is read."""
    grid, read = BlockGrid((60_000, 60_000), (64, 96)), []
    corners = [(y, x) for y in range(4) for x in range(3)] + [(y, x) for y in range(935, 938) for x in range(620, 625)]
    done = [grid.index(place) for place in [*corners, (400, 300)]]
    whole = Box.from_shape(grid.shape)
    tiles = {
        (box.start[0] // 32 + y, box.start[1] // 32 + x)
        for box in map(grid.block, done)
        for y, x in np.ndindex(-(-box.shape[0] // 32), -(-box.shape[1] // 32))
    }

    def look(box: Box) -> NDArray[np.floating]:
        read.append(box)
        assert whole.contains(box)
        assert set(grid.touching(box)) <= set(done)
        return np.random.default_rng(box.start).random((1, *box.shape))

    found = seam_scores(look, grid, done, "yx", (32, 32), (4, 4))
    assert found["y"].facets == sum((y - 1, x) in tiles for y, x in tiles) > 100
    assert found["x"].facets == sum((y, x - 1) in tiles for y, x in tiles) > 100
    assert len({(box.start, box.stop) for box in read}) == len(read)


@pytest.mark.parametrize(("shape", "tile"), [((18, 30), (2, 30)), ((18, 30), (3, 30)), ((9, 30), (8, 30))])
def test_faces_that_cannot_be_measured_are_not_taken_for_none(shape: tuple[int, ...], tile: tuple[int, ...]) -> None:
    found = score(np.random.default_rng(0).random(shape), tile)
    assert found == {"y": NOT_MEASURABLE}
    assert "across y, seams cannot be measured" in found["y"].sentence("y")
    assert score(np.zeros(shape), shape) == {}


def test_numbers_stay_finite_where_only_faces_differ() -> None:
    tiles = (np.indices((64, 64)) // 8).sum(0) % 2
    found = score(tiles.astype(np.uint8), (8, 8), of="labels")
    assert (found["y"].ratio, found["y"].low, found["y"].high) == (None, None, None)
    assert "seams show" in found["y"].sentence("y")
    json.dumps(found["y"].__dict__, allow_nan=False)


def test_an_exact_run_has_no_seam_and_an_approximate_one_reports_its_own(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(NETWORKS, "whole_box", "tests.unet_core.test_approximate:WholeBox")
    image, exact, tiled = make_image((300, 270)), tmp_path / "exact", tmp_path / "tiled"
    base = {"image": str(image), "block_shape": (48, 48), "probabilities": "float32"}
    network = make_model(network="whole_box", norm="none")
    assert run(make_job(**base, output=str(exact), model=str(network))).seams == {}
    code, out, _ = call(monkeypatch, capsys, "seams", exact, "--json")
    found = json.loads(out.splitlines()[-1])
    assert code == 0
    assert all(score["low"] <= 1 for score in found.values()), found
    assert out.count("no seam is seen") == 2
    summary = run(
        make_job(
            **base,
            output=str(tiled),
            model=str(make_model(network="whole_box", norm="instance")),
            approximate=True,
            tile_shape=(24, 24),
        )
    )
    assert set(summary.seams) == {"y", "x"}
    assert all(seam.low is not None and seam.low > 1 for seam in summary.seams.values()), summary.seams
    assert summary.seams == measure_seams(str(tiled))
    json.dumps(summary.as_json(), allow_nan=False)
    common = ("segment", image, tiled, "--approximate", "--tile-shape", "24,24", "--block-shape", "48,48", "--cluster", "serial")
    model = json.loads((tiled / ".unet" / "request.json").read_text())["model"]
    code, out, _ = call(monkeypatch, capsys, *common, "--model", model, "--probabilities", "float32")
    assert code == 0
    assert "seams: across y, probabilities jump at faces" in out


DAMAGED: list[tuple[str, Any, str]] = [
    ("footprint.stride", [10**7, 2], "footprint.stride.0: .* less than or equal to 65536 .got 10000000"),
    ("footprint.stride", [0, 0], "footprint.stride.0: .* greater than or equal to 1 .got 0"),
    ("footprint.stride", [2], "footprint.stride .2,. should have one number for each of the axes 'yx'"),
    ("footprint.read_shape", [0, 60], "footprint.read_shape.0: "),
    ("tile_shape", [0, 0], "tile_shape.0: .* greater than or equal to 1"),
    ("tile_shape", [24], "pass_shape .24,. should have one number"),
    ("tile_shape", [5, 5], r"a shape of .24, 24. should be a whole number of tiles of .5, 5."),
    ("block_shape", [-24, -24], "block_shape.0: "),
    ("block_shape", [25, 25], r"a shape of .25, 25. should be a whole number of strides of .2, 2."),
    ("strip", 0, "strip: "),
    ("levels", [], "levels: .* at least 1 item"),
    ("images", [], "images should hold labels"),
    ("images.1.path", "../secret", "images.1.path: Image path should stay inside the output .got '../secret'"),
    ("images.1.path", "/secret", "images.1.path: "),
    ("images.1.path", "labels/../../secret", "images.1.path: "),
    ("images.1.dtype", "object", "images.1.dtype: "),
    ("images.1.path", "", "images should have a path of their own each"),
    ("instances", {"labels": "../secret", "connectivity": 1, "min_voxels": 1}, "there is no ../secret"),
    (
        "instances",
        {"labels": "labels/classes", "connectivity": 3, "min_voxels": 1},
        "connectivity 3 should be at most the number",
    ),
    ("spatial_axes", "y", "should have one number for each of the axes 'y'"),
]


def test_a_plan_that_cannot_be_is_refused_when_it_is_read(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output may come from others: its plan must not lead out of it, nor to boxes without bound."""
    output = tmp_path / "out"
    run(
        make_job(
            image=str(make_image((50, 60))), output=str(output), model=str(make_model(levels=2)), block_shape=(24, 24), strip=0
        )
    )
    path = output / ".unet" / "plan.json"
    whole = path.read_bytes()
    for field, value, words in DAMAGED:
        plan = json.loads(whole)
        *parents, name = field.split(".")
        inner = plan
        for key in parents:
            inner = inner[int(key) if key.isdecimal() else key]
        inner[name] = value
        path.write_text(json.dumps(plan))
        with pytest.raises(ResumeError, match=rf"plan.json in .* is damaged, or of another release .*{words}"):
            measure_seams(str(output))
    code, _, err = call(monkeypatch, capsys, "seams", "")
    assert (code, "Output is ''; give a path" in err) == (2, True)
    code, _, err = call(monkeypatch, capsys, "seams", output)
    assert (code, "is damaged" in err) == (2, True)
    path.write_bytes(whole)
    assert set(measure_seams(str(output))) == {"y", "x"}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), LedgerError("0/c/0/0 is missing")])
def test_a_complete_run_stays_complete_where_its_seams_cannot_be_read(
    error: Exception, make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "whole_box", "tests.unet_core.test_approximate:WholeBox")

    def fail(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(Result, "volume", fail)
    model = make_model(network="whole_box", norm="instance")
    job = make_job(image=str(make_image((40, 50))), output=str(tmp_path / "out"), model=str(model), approximate=True)
    summary = run(job)
    assert (summary.status, summary.seams, read_status(job.output).state) == ("complete", {}, "complete")
    assert any(text.startswith(f"seam score not measured: {error}") for text in summary.warnings)


@pytest.mark.parametrize("keep", ["none", "uint8", "float32"])
def test_the_score_of_an_output_is_that_of_its_stored_arrays(
    keep: str, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    base = {"image": str(make_image((101, 93))), "model": str(make_model(levels=2)), "block_shape": (24, 24)}
    run(make_job(**base, output=str(tmp_path / "out"), probabilities=keep))
    path = tmp_path / "out" / ("labels/classes/0" if keep == "none" else "0")
    stored = np.asarray(zarr.open_array(path, mode="r")[...]).reshape(-1, 101, 93)
    found = measure_seams(str(tmp_path / "out"))
    assert set(found) == {"y", "x"}
    for number, seam in enumerate(found.values(), start=1):
        planes = np.moveaxis(stored, number, 0)
        faces = range(24, len(planes) - 1, 24)
        if keep == "none":  # as labels: voxels differ or do not, however far apart their values
            face = np.mean([(planes[face] != planes[face - 1]).mean() for face in faces])
        else:  # each facet is as wide as a block, three windows; the last one is narrower, and weighs less
            values = planes / np.float32(255 if keep == "uint8" else 1)
            size = values.shape[2]
            parts = [values[..., first : first + 24] for first in range(0, size, 24)]
            jumps = [np.mean([jump_of(part, face) for face in faces]) for part in parts]
            widths = [part.shape[2] for part in parts]
            face = math.sinh(np.average(jumps, weights=widths)) / 1000
        np.testing.assert_allclose(seam.face, face, rtol=1e-4)
        assert seam.of == ("labels" if keep == "none" else "probabilities")
        assert seam.sentence("y").startswith(
            "across y, labels (no probabilities are kept) change" if keep == "none" else "across y, probabilities jump"
        )


RANDOM: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = [(2, (201, 190), (40, 48)), (3, (41, 46, 50), (16, 20, 24))]


@pytest.mark.parametrize(("dims", "shape", "block"), RANDOM, ids=["2d", "3d"])
def test_results_of_random_networks_have_no_seam(
    dims: int, shape: tuple[int, ...], block: tuple[int, ...], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    found = []
    for seed in range(3):
        model, output = make_model(levels=2, dims=dims, seed=seed), str(tmp_path / f"out-{seed}")
        run(
            make_job(
                image=str(make_image(shape, seed)), output=output, model=str(model), block_shape=block, probabilities="uint8"
            )
        )
        found += measure_seams(output).values()
    assert len(found) == 3 * dims
    inside = [seam.low <= 1 <= seam.high for seam in found if seam.low and seam.high]
    assert sum(inside) >= len(found) - 1, found  # 95 % of them, in the long run
    assert all(seam.low is not None and seam.low < 1.1 for seam in found)


REGION, TILE = Box((600, 900), (1112, 1668)), (128, 128)  # of the bundled slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nuclei of a region of the bundled slide, block by block."""
    folder = tmp_path_factory.mktemp("slide")
    image = zarr.create_array(
        folder / "image.zarr", data=open_volume(str(SLIDE)).read(REGION), chunks=(3, *TILE), dimension_names=("c", "y", "x")
    )
    assert image.shape == (3, *REGION.shape)
    job = make_job(
        image=str(folder / "image.zarr"), output=str(folder / "out"), model="nuclei-he", block_shape=TILE, probabilities="float32"
    )
    run(job)
    return folder


def as_uint8(values: NDArray[Any]) -> NDArray[Any]:
    return np.round(np.clip(values, 0, 1) * 255) / 255


def of_slide(values: NDArray[Any]) -> dict[str, Seam]:
    grid = BlockGrid(REGION.shape, TILE)
    return seam_scores(lambda box: values[(slice(None), *box.slices())], grid, range(grid.block_count), "yx", TILE, (8, 8))


def test_on_a_slide_half_a_percent_in_every_other_block_is_seen(slide: Path) -> None:
    exact = measure_seams(str(slide / "out"))
    assert all(seam.low <= 1 <= seam.high for seam in exact.values() if seam.low and seam.high), exact
    array = zarr.open_array(slide / "out" / "0", mode="r+")
    values = np.asarray(array[...])
    odd = np.add.outer(np.arange(REGION.shape[0]) // 128, np.arange(REGION.shape[1]) // 128) % 2
    bias = 0.005 * odd * np.array([-1, 1]).reshape(2, 1, 1)
    assert all(seam.is_seen is False for seam in of_slide(as_uint8(values)).values())
    biased = of_slide(as_uint8(values + bias))
    assert all(seam.is_seen for seam in biased.values()), biased
    array[...] = np.clip(values + bias, 0, 1).astype(np.float32)
    found = measure_seams(str(slide / "out"))
    array[...] = values
    assert all(seam.is_seen for seam in found.values()), found
    assert found["y"].facets == 3 * 12
    assert found["x"].facets == 5 * 8


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_on_a_slide_tiles_with_made_up_surroundings_are_seen(slide: Path, mode: str) -> None:
    """The usual mistake: every tile for itself, with zeros or its own mirror image around it."""
    package = load_model(model_url("nuclei-he"))
    normalisation = package.description.normalisation
    offset, scale = (np.array(values).reshape(3, 1, 1) for values in (normalisation.offset, normalisation.scale))
    image = (np.asarray(zarr.open_array(slide / "image.zarr", mode="r")[...]) - offset) / scale
    result = np.zeros((2, *REGION.shape))
    for y, x in np.ndindex(4, 6):
        place = (slice(None), slice(128 * y, 128 * y + 128), slice(128 * x, 128 * x + 128))
        tile = np.pad(image[place], ((0, 0), (44, 48), (44, 48)), mode=mode).astype(np.float32)
        with torch.inference_mode():
            logits = package.network.eval()(torch.from_numpy(tile)[None])[0, :, :128, :128]
        result[place] = torch.softmax(logits, 0).numpy()
    inner = (slice(None), slice(44, 84), slice(44, 76))  # of the first tile: nothing of its surroundings reaches there
    np.testing.assert_allclose(result[inner], np.asarray(zarr.open_array(slide / "out" / "0", mode="r")[inner]), atol=1e-4)
    found = of_slide(as_uint8(result))
    assert all(seam.low is not None and seam.low > 1.3 for seam in found.values()), found


def test_faces_of_a_region_are_those_inside_it(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"image": str(make_image((150, 130))), "model": str(make_model(levels=2)), "block_shape": (24, 24)}
    base |= {"probabilities": "float32"}
    run(make_job(**base, output=str(tmp_path / "part"), roi=("30:60,50:110", "80:90,40:50")))
    found = measure_seams(str(tmp_path / "part"))
    stored = probabilities(tmp_path / "part")
    whole = tmp_path / "whole"
    run(make_job(**base, output=str(whole)))
    assert (stored[:, 24:72, 48:120] == probabilities(whole)[:, 24:72, 48:120]).all()
    # At the faces of what was not computed it falls to 0, which would be a jump a hundred times that of any other plane.
    assert all(seam.face < 3 * seam.elsewhere for seam in found.values()), found
    run(make_job(**base, output=str(tmp_path / "one"), roi=("0:1,0:1",)))
    assert measure_seams(str(tmp_path / "one")) == {}
    run(make_job(**base | {"block_shape": (2, 130)}, output=str(tmp_path / "thin")))
    assert measure_seams(str(tmp_path / "thin")) == {"y": NOT_MEASURABLE}
    for name, words in (("one", "one block, no faces"), ("thin", "seams: across y, seams cannot be measured")):
        code, out, _ = call(monkeypatch, capsys, "seams", tmp_path / name, "--json")
        assert code == 0
        assert words in out
