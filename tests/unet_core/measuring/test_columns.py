"""What is measured in blocks is what scikit-image measures on the whole array, to the last bit the same for any blocks."""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import regionprops_table

from unet_core.geometry import BlockGrid, Box
from unet_core.measuring.columns import Column, Measured, columns_of
from unet_core.measuring.perimeter import border_turns
from unet_core.measuring.rows import rows_of
from unet_core.measuring.shape import shape_columns
from unet_core.measuring.sums import BoxOfVoxels, sums_of_box
from unet_core.stages import measure_ring

Array = np.ndarray[Any, Any]

CLASSES = ((1, "nucleus"), (2, "lumen"))


def objects(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Ids of blobs of all sizes, in pieces, some over the edges of the image; not in the order of a scan, some numbers absent."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=shape), 2)
    found, count = ndimage.label(smooth > 0.4 * smooth.std())
    single = random.random(shape) < 0.01
    found[single & (found == 0)] = count + 1 + np.arange(np.count_nonzero(single & (found == 0)))
    numbers = random.permutation(2 * (found.max() + 1)).astype(np.uint64)
    numbers[0] = 0
    return numbers[found]


def measured(
    ids: Array, image: Array, block: tuple[int, ...], voxel_size: tuple[float, ...] | None, probabilities: Array | None = None
) -> dict[str, Column]:
    """Columns from blocks."""
    grid, shape = BlockGrid(ids.shape, block), ids.shape
    classes = [np.arange(ids.size).reshape(shape) % 3 == 1, np.arange(ids.size).reshape(shape) % 3 == 2]
    ring = measure_ring(ids.ndim)
    padded = np.pad(ids, [(size, size) for size in ring])
    parts = []
    for box in grid.blocks():
        own = box.slices()
        around = box.grow(ring, ring).shift(ring).slices()
        voxels = BoxOfVoxels(
            ids=ids[own],
            classes=[chosen[own] for chosen in classes],
            image=image[(slice(None), *own)],
            probabilities=[] if probabilities is None else [values[own] for values in probabilities],
            turns=border_turns(padded[around]) if ids.ndim == 2 else None,
        )
        parts.append((box.start, sums_of_box(voxels)))
    full = None if probabilities is None else 255 if probabilities.dtype == np.uint8 else 1
    described = Measured("zyx"[-ids.ndim :], voxel_size, CLASSES, None, tuple(range(len(image))), full)
    rows = rows_of(parts)
    return columns_of(described, rows) | shape_columns(described, rows)


CUTS: list[tuple[tuple[int, ...], tuple[float, ...], list[tuple[int, ...]]]] = [
    ((75, 93), (0.5, 0.5), [(16, 32), (7, 5), (75, 93)]),
    ((41, 130), (0.5, 0.23), [(64, 8), (3, 130), (41, 130)]),
    ((13, 31, 37), (0.04, 0.008, 0.009), [(4, 8, 16), (5, 3, 37), (13, 31, 37)]),
]
IMAGES = ["uint8", "uint16", "float32", "float64"]


def image_of(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    """Two channels; of floats over many orders of magnitude, with negative ones."""
    random = np.random.default_rng(seed)
    if dtype.startswith("uint"):
        return random.integers(0, np.iinfo(dtype).max, (2, *shape), dtype=dtype, endpoint=True)
    values = random.normal(1e4, 1e-2, (2, *shape))  # large, and almost the same: what float sums of squares cannot tell apart
    values[1] = random.choice([-1, 1], shape) * 10.0 ** random.uniform(-12, 12, shape)
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", IMAGES)
@pytest.mark.parametrize(("shape", "voxel_size", "blocks"), CUTS, ids=str)
def test_any_blocks_give_what_scikit_image_measures_on_the_whole(
    shape: tuple[int, ...], voxel_size: tuple[float, ...], blocks: list[tuple[int, ...]], dtype: str
) -> None:
    ids, image = objects(shape), image_of(shape, dtype)
    cuts = [measured(ids, image, block, voxel_size) for block in blocks]
    for cut in cuts[1:]:
        for name, column in cut.items():
            assert column.values.tobytes() == cuts[0][name].values.tobytes(), name
    compare({name: column.values for name, column in cuts[0].items()}, ids, image, voxel_size)


def compare(found: dict[str, Array], ids: Array, image: Array, voxel_size: tuple[float, ...]) -> None:
    """Every column with ``regionprops_table`` of the whole array."""
    dims, flat = ids.ndim, ids.ndim == 2
    names = ["label", "num_pixels", "area", "bbox", "centroid", "extent", "equivalent_diameter_area", "axis_major_length"]
    names += ["axis_minor_length", "intensity_mean", "intensity_min", "intensity_max", "intensity_std"]
    names += ["eccentricity", "orientation", "inertia_tensor"] if flat else []
    square = flat and len(set(voxel_size)) == 1
    names += ["perimeter"] if square else []
    labels = ids.astype(np.int64)
    channels = np.moveaxis(image, 0, -1).astype(np.float64)  # of float32, scikit-image would sum in float32
    true = regionprops_table(labels, channels, properties=names, spacing=voxel_size)
    assert len(true["label"]) > 20
    near: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_array_equal(found["label"], true["label"])
    np.testing.assert_array_equal(found["voxels"], true["num_pixels"])
    np.testing.assert_allclose(found["area_um2" if flat else "volume_um3"], true["area"], **near)
    for number, axis in enumerate("zyx"[-dims:]):
        np.testing.assert_array_equal(found[f"bbox_min_{axis}"], true[f"bbox-{number}"])
        np.testing.assert_array_equal(found[f"bbox_max_{axis}"], true[f"bbox-{number + dims}"])
        np.testing.assert_allclose(found[f"centroid_{axis}"] * voxel_size[number], true[f"centroid-{number}"], **near)
    for channel in range(len(image)):
        scale = np.abs(true[f"intensity_max-{channel}"]) + np.abs(true[f"intensity_min-{channel}"])
        for name, loose in {"mean": 1e-12, "min": 0, "max": 0, "std": 1e-12}.items():
            wrong = np.abs(found[f"intensity_{name}_{channel}"] - true[f"intensity_{name}-{channel}"])
            assert (wrong <= loose * scale).all(), name
    np.testing.assert_allclose(found["extent"], true["extent"], **near)
    np.testing.assert_allclose(found["equivalent_diameter_area_um"], true["equivalent_diameter_area"], **near)
    np.testing.assert_allclose(found["axis_major_length_um"], true["axis_major_length"], rtol=1e-9, atol=1e-9)
    # Of a line of voxels, whose minor axis is 0, scikit-image gives the root of a rounding error.
    np.testing.assert_allclose(found["axis_minor_length_um"], true["axis_minor_length"], rtol=1e-6, atol=1e-6)
    if flat:
        np.testing.assert_allclose(found["eccentricity"], true["eccentricity"], rtol=1e-6, atol=1e-6)
        difference = true["inertia_tensor-0-0"] - true["inertia_tensor-1-1"]
        turned = (
            np.abs(difference) + np.abs(true["inertia_tensor-0-1"]) > 1e-9
        )  # of a round object it is that of a rounding error
        assert turned.sum() > 20
        angle = np.abs(found["orientation"] - true["orientation"])[turned]
        np.testing.assert_allclose(np.minimum(angle, pi - angle), 0, atol=1e-6)
    if square:
        np.testing.assert_allclose(found["perimeter_um"], true["perimeter"], **near)
        expected = 4 * pi * true["area"][true["perimeter"] > 0] / true["perimeter"][true["perimeter"] > 0] ** 2
        np.testing.assert_allclose(found["circularity"][true["perimeter"] > 0], expected, rtol=1e-12)
        assert np.isnan(found["circularity"][true["perimeter"] == 0]).all()
    elif flat:
        assert np.isnan(found["perimeter_um"]).all()
        assert np.isnan(found["circularity"]).all()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_classes_and_probabilities_are_those_of_the_whole(dtype: str) -> None:
    shape = (75, 93)
    ids, random = objects(shape), np.random.default_rng(1)
    full = 255 if dtype == "uint8" else 1
    probabilities = (full * random.random((2, *shape))).astype(dtype)
    cuts = [measured(ids, image_of(shape, "uint8"), block, None, probabilities) for block in [(16, 32), (7, 5), shape]]
    for cut in cuts[1:]:
        assert all(column.values.tobytes() == cuts[0][name].values.tobytes() for name, column in cut.items())
    found = cuts[0]
    kinds = np.arange(ids.size).reshape(shape) % 3
    seen = set()
    for row, label in enumerate(found["label"].values):
        inside = ids == label
        counts = [np.count_nonzero(kinds[inside] == value) for value, _ in CLASSES]
        own = int(counts[1] > counts[0])
        seen.add(own)
        assert found["class_value"].values[row] == own + 1
        assert CLASSES[own][1] == found["class"].names[found["class"].values[row]]  # type: ignore[index]
        for (_, name), count in zip(CLASSES, counts, strict=True):
            assert found[f"fraction_{name}"].values[row] == count / inside.sum()
        mean = probabilities[own][inside].astype(np.float64).mean() / full
        assert found["class_probability"].values[row] == pytest.approx(mean, rel=1e-13)
    assert seen == {0, 1}
    assert np.isnan(found["area_um2"].values).all()
    assert "axis_major_length_voxels" in found


def test_large_objects_far_from_the_origin_lose_no_bit() -> None:
    """Sums of squares of positions pass the largest int64, and the last bit of a float64 long before."""
    count, far = 10**9, (10**6, 2 * 10**6)
    side = int(count**0.5)
    line = sums_of_box(BoxOfVoxels(np.ones((1, side), np.uint64), [], np.zeros((1, 1, side), np.uint8)))
    rows = rows_of([((far[0] + y, far[1]), line) for y in range(side)])
    variance = (side**2 - 1) / 12
    assert rows.covariances[0, 1][0] == 0
    for pair in ((0, 0), (1, 1)):
        assert rows.covariances[pair][0] * 12 == side**4 * (side**2 - 1)
    assert rows.covariances[0, 0][0] / side**4 == variance
    assert max(abs(int(value)) for value in rows.positions[0]) == side**2 * far[1] + side**2 * (side - 1) // 2


def test_a_box_of_many_bands_is_summed_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_core.measuring import sums

    ids, image = objects((60, 70)), image_of((60, 70), "float32")
    whole = measured(ids, image, (60, 70), (1.0, 1.0))
    monkeypatch.setattr(sums, "_BAND_VOXELS", 400)
    banded = measured(ids, image, (60, 70), (1.0, 1.0))
    assert all(column.values.tobytes() == whole[name].values.tobytes() for name, column in banded.items())


def test_border_turns_need_two_voxels_around_a_block() -> None:
    """The comparison above can fail: with one voxel less around blocks, perimeters differ."""
    ids = objects((75, 93)).astype(np.int64)
    padded = np.pad(ids, 2)
    whole = border_turns(padded)
    torn = np.zeros_like(whole)
    for box in BlockGrid(ids.shape, (16, 32)).blocks():
        around = np.pad(np.pad(ids, 1)[box.grow((1, 1), (1, 1)).shift((1, 1)).slices()], 1)
        torn[box.slices()] = border_turns(around)
    assert (torn != whole).any()
    np.testing.assert_array_equal(border_turns(padded[Box((16, 32), (36, 68)).slices()]), whole[16:32, 32:64])
