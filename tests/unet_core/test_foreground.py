"""Masks: which blocks they leave, by brute force; that they change nothing inside these; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage.measure import label

from tests.conftest import textured
from tests.unet_core.test_instances import instances_of
from tests.unet_core.test_segment import digest, labels_of
from unet_core.errors import InputError, VolumeError
from unet_core.foreground import blocks, blocks_with_foreground, tissue
from unet_core.foreground.mask_image import MaskImage
from unet_core.foreground.outlines import Outlines, read_outlines
from unet_core.foreground.tissue import Tissue, find_tissue
from unet_core.geometry import BlockGrid
from unet_core.job import SegmentationJob, make_job
from unet_core.ledger import Request
from unet_core.planning import resolve
from unet_core.resume import wanted_units
from unet_core.segment import open_result, read_status, run
from unet_core.store import open_store
from unet_core.volumes import ArrayVolume, open_volume

Maker = Callable[..., Path]
SLIDE = Path(__file__).resolve().parents[2] / "unet_core/bundled/CMU-1-Small-Region.svs"


def indices_of(boxes: list[Any], grid: BlockGrid) -> list[int]:
    return sorted(index for box in boxes for index in grid.touching(box))


@given(
    st.lists(st.tuples(st.integers(20, 90), st.integers(1, 40), st.integers(5, 30)), min_size=2, max_size=3),
    st.integers(0, 10**6),
)
def test_blocks_are_those_that_meet_the_grown_mask(axes: list[tuple[int, int, int]], seed: int) -> None:
    if len(axes) == 3:
        axes = [(size // 4 + 1, own // 4 + 1, max(2, block // 2)) for size, own, block in axes]
    shape, own, block = zip(*((size, min(own, size), block) for size, own, block in axes), strict=True)
    random = np.random.default_rng(seed)
    values = (random.random(own) < random.choice([0.01, 0.1])).astype("u1") * 7
    mask, grid = MaskImage.__new__(MaskImage), BlockGrid(shape, block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_core.foreground.mask_image._has_one_scale", lambda own, shape: True)
        patch.setattr("unet_core.foreground.mask_image.KEPT_VOXELS", int(random.choice([0, 10**6])))
        patch.setattr(ArrayVolume, "fingerprint", lambda self: {})
        mask = MaskImage(ArrayVolume(values, "zyx"[-len(shape) :]), shape, None)
        patch.setattr(blocks, "GROWN_VOXELS", 3)
        expected = brute_force(values, shape, grid)
        if expected:
            boxes, (chosen,) = blocks_with_foreground([mask], grid, [])
            assert indices_of(boxes, grid) == expected
            assert chosen.skipped == grid.block_count - len(expected)
            assert sum(box.voxel_count for box in boxes) == sum(grid.block(index).voxel_count for index in expected)
        else:
            with pytest.raises(VolumeError, match="marks nothing anywhere in the image; give a mask whose voxels are not all 0"):
                blocks_with_foreground([mask], grid, [])


def brute_force(values: np.ndarray[Any, Any], shape: tuple[int, ...], grid: BlockGrid) -> list[int]:
    """Every foreground voxel as a box of the image in whole numbers (of 1 / its own size), grown, against every block."""
    found = set()
    for place in np.argwhere(values):
        for index in range(grid.block_count):
            box, meets = grid.block(index), True
            for axis, (size, own) in enumerate(zip(shape, values.shape, strict=True)):
                grown = max(-(-size // own), 3 if axis >= len(shape) - 2 else 0)
                first, last = place[axis] * size, (place[axis] + 1) * size
                meets &= bool(first < (box.stop[axis] + grown) * own and last > (box.start[axis] - grown) * own)
            if meets:
                found.add(index)
    return sorted(found)


@pytest.fixture
def job(make_model: Maker, make_image: Maker, tmp_path: Path) -> SegmentationJob:
    """10 x 6 blocks, one coarser level; a mask of an eighth of the resolution, with two places."""
    mask = np.zeros((40, 24), "u1")
    mask[3:9, 4:6] = 255
    mask[30, 20] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    image, model = make_image((320, 190), chunks=(32, 32)), make_model(levels=2, classes=5)
    fields = {"image": str(image), "model": str(model), "block_shape": (32, 32)}
    return make_job(**fields, output=str(tmp_path / "out"), mask=str(tmp_path / "mask.png"))


def wanted_of(job: SegmentationJob) -> list[int]:
    planned = resolve(job)
    return list(wanted_units(planned.plan, planned.request, planned.plan.stages[0]))


# The first place is 24:72 by 32:48, the second 240:248 by 160:168, both grown by 16.
WANTED = sorted(
    [*(6 * row + column for row in (0, 1, 2) for column in (0, 1)), *(6 * row + column for row in (7, 8) for column in (4, 5))]
)


def test_inside_its_blocks_a_mask_changes_no_bit(job: SegmentationJob, tmp_path: Path) -> None:
    job = job.model_copy(update={"instances": "components"})
    run(job.model_copy(update={"output": str(tmp_path / "whole"), "mask": None}))
    for chunk in tmp_path.glob("image*/c/*/*"):  # what only skipped blocks read is not there at all
        row, column = int(chunk.parent.name), int(chunk.name)
        if row == 5 or (row < 4 and column == 5):
            chunk.unlink()
    summary = run(job)
    assert (summary.status, summary.blocks, summary.computed) == ("complete", len(WANTED), len(WANTED))
    assert summary.skipped == [f"{60 - len(WANTED)} blocks skipped where mask {tmp_path}/mask.png is 0"]
    found, expected = digest(Path(job.output)), digest(tmp_path / "whole")
    stored = {key for key in found if key.startswith("labels/classes/0/c/")}
    assert stored == {f"labels/classes/0/c/{index // 6}/{index % 6}" for index in WANTED}
    for path in ("0/c", "labels/classes/0/c", "labels/classes/1/c"):
        keys = [key for key in found if key.startswith(path)]
        assert keys
        if "/1/" not in path:
            assert {key: found[key] for key in keys} == {key: expected[key] for key in keys}
    labels = labels_of(Path(job.output))
    np.testing.assert_array_equal(instances_of(Path(job.output)), label(labels, background=0, connectivity=1))
    coarse, whole_coarse = labels_of(Path(job.output), 1), labels_of(tmp_path / "whole", 1)
    for index in range(60):
        box = BlockGrid((160, 95), (16, 16)).block(index).slices()
        np.testing.assert_array_equal(coarse[box], whole_coarse[box] if index in WANTED else 0)


def test_growing_computes_new_blocks_only_and_ends_as_if_there_had_been_no_mask(job: SegmentationJob, tmp_path: Path) -> None:
    run(job)
    first = Request.model_validate_json((tmp_path / "out/.unet/request.json").read_text())
    assert [mask.skipped for mask in first.masks] == [60 - len(WANTED)]
    other = np.zeros((20, 12), "u1")
    other[0, 11] = 1
    Image.fromarray(other).save(tmp_path / "other.png")
    grown = run(job.model_copy(update={"mask": str(tmp_path / "other.png")}))
    assert (grown.status, grown.computed) == ("complete", 2)
    assert grown.blocks == len(WANTED) + 2
    assert any("Earlier runs of this output asked for blocks that a mask of this one skips" in text for text in grown.warnings)
    again = run(job)
    assert (again.computed, again.blocks) == (0, len(WANTED) + 2)
    whole = job.model_copy(update={"mask": None})
    assert run(whole).computed == 60 - len(WANTED) - 2
    run(whole.model_copy(update={"output": str(tmp_path / "whole")}))
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
    assert Request.model_validate_json((tmp_path / "out/.unet/request.json").read_text()).masks == ()
    assert read_status(job.output).state == "complete"


def test_a_region_and_a_mask_leave_what_both_leave(job: SegmentationJob) -> None:
    assert wanted_of(job.model_copy(update={"roi": ("40:100,0:190",)})) == [6, 7, 12, 13]
    with pytest.raises(VolumeError, match=r"mask.png marks nothing inside --roi in the image"):
        resolve(job.model_copy(update={"roi": ("130:140,0:190",)}))
    facts = resolve(job).facts()
    assert facts["foreground"].startswith(f"{len(WANTED)} blocks to compute; {60 - len(WANTED)} blocks skipped where mask")


def test_a_border_of_the_mask_near_that_of_a_block_wants_both(job: SegmentationJob, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted_of(job) == WANTED
    monkeypatch.setattr(blocks, "_grown", lambda scale: (0, 0))
    assert set(wanted_of(job)) < set(WANTED)


def rectangle(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(geometry: dict[str, Any], name: str = "Tumor") -> dict[str, Any]:
    properties = {"objectType": "annotation", "classification": {"name": name, "color": [255, 0, 0]}}
    return {"type": "Feature", "id": "1", "geometry": geometry, "properties": properties}


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def test_every_kind_of_mask_leaves_the_same_blocks(job: SegmentationJob, tmp_path: Path) -> None:
    small = np.asarray(Image.open(tmp_path / "mask.png"))
    large = np.kron(small, np.ones((8, 8), "u1"))[:320, :190]
    tifffile.imwrite(tmp_path / "full.tif", large, tile=(64, 64))
    Image.fromarray(small[::-1][::-1] > 0).save(tmp_path / "bits.png")
    zarr.create_array(tmp_path / "ids.zarr", data=small.astype("u4") * 1000, chunks=(9, 7))
    group = zarr.open_group(tmp_path / "label.zarr", mode="w")
    axes = [{"name": axis, "type": "space"} for axis in "yx"]
    scales = [{"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [2.0**n] * 2}]} for n in (0, 3)]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": scales}], "image-label": {}}
    group.create_array("0", data=large, chunks=(50, 60), config={"write_empty_chunks": False})
    group.create_array("3", data=small, chunks=(20, 24))
    features = [feature(polygon(rectangle(32, 24, 48, 72))), feature(polygon(rectangle(160, 240, 168, 248)))]
    features.append(feature(polygon(rectangle(10, 200, 20, 210)), "Ignore*"))
    (tmp_path / "drawn.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    both = {"type": "MultiPolygon", "coordinates": [entry["geometry"]["coordinates"] for entry in features[:2]]}
    (tmp_path / "list.json").write_text(json.dumps([feature(both)]))
    for name in ("full.tif", "bits.png", "ids.zarr", "label.zarr", "label.zarr/3", "drawn.geojson", "list.json"):
        assert wanted_of(job.model_copy(update={"mask": str(tmp_path / name)})) == WANTED, name


def test_a_hole_in_an_outline_is_no_foreground_and_coordinates_are_those_of_the_finest_level() -> None:
    ring = polygon(rectangle(0, 0, 400, 400), rectangle(40, 40, 360, 360))
    data = json.dumps(feature(ring)).encode()
    outlines, grid = Outlines("ring", data, (200, 200), (400, 400)), BlockGrid((200, 200), (20, 20))
    boxes, _ = blocks_with_foreground([outlines], grid, [])
    found = np.zeros((10, 10), bool)
    found.ravel()[indices_of(boxes, grid)] = True
    inner = np.zeros((10, 10), bool)
    inner[2:8, 2:8] = True  # 20:180 is the hole, of which 16 voxels more are kept at each side
    np.testing.assert_array_equal(found, ~inner)


def test_outlines_are_read_from_an_object_store(bucket: str) -> None:
    data = json.dumps(feature(polygon(rectangle(0, 0, 9, 9)))).encode()
    open_store(bucket).put("masks/drawn.geojson", data)
    assert read_outlines(f"{bucket}/masks/drawn.geojson", (20, 20), (20, 20)).facts == {"polygons": 1}
    with pytest.raises(VolumeError, match="Mask not found: s3://bucket/masks/other.geojson"):
        read_outlines(f"{bucket}/masks/other.geojson", (20, 20), (20, 20))


def test_a_mask_that_is_not_of_this_image_is_refused_before_anything_is_written(job: SegmentationJob, tmp_path: Path) -> None:
    def write(name: str, content: Any) -> None:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))

    Image.fromarray(np.ones((40, 40), "u1")).save(tmp_path / "square.png")
    Image.fromarray(np.zeros((40, 24), "u1")).save(tmp_path / "empty.png")
    Image.fromarray(np.ones((40, 24, 3), "u1")).save(tmp_path / "colour.png")
    tifffile.imwrite(tmp_path / "stack.tif", np.ones((3, 40, 24), "u1"), imagej=True, metadata={"axes": "ZYX"})
    write("points.geojson", feature({"type": "Point", "coordinates": [3, 4]}))
    write("large.geojson", feature(polygon(rectangle(0, 0, 5000, 100))))
    write("bad.geojson", '{"type": "Feature"')
    write("odd.geojson", feature({"type": "Polygon", "coordinates": [[["a", 2], [1, 2], [3]]]}))
    write("none.geojson", {"type": "FeatureCollection", "features": []})
    cases = {
        "square.png": r"has \(40, 40\) voxels, the image \(320, 190\), which is not the same extent at any scale",
        "empty.png": "marks nothing anywhere in the image; give a mask whose voxels are not all 0, or leave out --mask",
        "colour.png": "has 3 channels; give an image of one",
        "stack.tif": r"has \(3, 40, 24\) voxels \(zyx\), the image \(320, 190\); give a mask of the same axes",
        "points.geojson": "feature of type Point; only polygons",
        "large.geojson": "reaches from 0 to 5000 along x, the image has 190 voxels there",
        "bad.geojson": "is no GeoJSON",
        "odd.geojson": "holds a Polygon that cannot be read",
        "none.geojson": "marks nothing anywhere",
        "nowhere.geojson": "Mask not found: .*nowhere.geojson; check the path",
        "nowhere.png": "input not found: .*nowhere.png",
        "": "Mask is ''",
        "out": "Output .* is the mask itself",
    }
    for name, words in cases.items():
        with pytest.raises(InputError, match=words) as told:
            run(job.model_copy(update={"mask": str(tmp_path / name) if name else ""}))
        assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_extents_in_micrometre_decide_where_both_are_stated(job: SegmentationJob, tmp_path: Path) -> None:
    """A corner of the image at full resolution has the image's own proportions, and so has a mask of the whole."""
    small = np.asarray(Image.open(tmp_path / "mask.png"))
    for name, size in (("right", 4.0), ("rounded", 4.06), ("corner", 0.5)):
        resolution = (10_000 / size, 10_000 / size)
        tifffile.imwrite(tmp_path / f"{name}.tif", small, resolution=resolution, resolutionunit="CENTIMETER")
    stated = job.model_copy(update={"voxel_size_um": (0.5, 0.5)})
    for name in ("right", "rounded"):
        assert wanted_of(stated.model_copy(update={"mask": str(tmp_path / f"{name}.tif")})) == WANTED
    with pytest.raises(VolumeError, match=r"corner.tif covers 20 x 12 um, the image 160 x 95 um; give a mask of the same extent"):
        resolve(stated.model_copy(update={"mask": str(tmp_path / "corner.tif")}))


def test_a_mask_of_a_volume_may_keep_its_sections(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image, model = make_image((9, 60, 80)), make_model(levels=2, dims=3)
    values = np.zeros((9, 6, 8), "u1")
    values[1, 5, 7] = 1
    fields = {"image": str(image), "model": str(model), "block_shape": (4, 20, 20), "output": str(tmp_path / "out")}
    zarr.create_array(tmp_path / "mask.zarr", data=values, chunks=(3, 3, 3))
    zarr.create_array(tmp_path / "coarse.zarr", data=values[:3, ::2, ::2] + 1, chunks=(1, 3, 3), dimension_names="zyx")
    # Sections 0 to 2 of the mask, grown by one: 0:4; rows 50:60 and columns 70:80, grown by 16.
    assert wanted_of(make_job(**fields, mask=str(tmp_path / "mask.zarr"))) == [6, 7, 10, 11]
    with pytest.raises(VolumeError, match=r"has \(3, 3, 4\) voxels, the image \(9, 60, 80\), which is not the same extent"):
        resolve(make_job(**fields, mask=str(tmp_path / "coarse.zarr")))
    (tmp_path / "flat.geojson").write_text(json.dumps(feature(polygon(rectangle(0, 0, 9, 9)))))
    with pytest.raises(VolumeError, match="lie in a plane"):
        resolve(make_job(**fields, mask=str(tmp_path / "flat.geojson")))


def slide_like(shape: tuple[int, int], pieces: list[tuple[int, int, int]], seed: int = 0) -> np.ndarray[Any, Any]:
    """Glass of some noise and uneven light, with pink disks (y, x, radius) of uneven tissue; (3, Y, X)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    glass = 235 + 6 * np.sin(y / shape[0] * 3) + random.normal(0, 3, (3, *shape))
    inside = np.zeros(shape, bool)
    for top, left, radius in pieces:
        inside |= (y - top) ** 2 + (x - left) ** 2 < radius**2
    pink = np.array([215, 130, 190])[:, None, None] + ndimage.gaussian_filter(random.normal(0, 150, (3, *shape)), (0, 3, 3))
    return np.where(inside, pink, glass).clip(0, 255).astype("u1")


def test_tissue_is_found_whole_and_glass_and_specks_are_left_out() -> None:
    pieces = [(700, 900, 400), (1500, 300, 120)]
    colours = slide_like((2000, 1600), [*pieces, (1800, 1300, 20)])
    found = Tissue(ArrayVolume(colours, "cyx"), (1.0, 1.0), 16)
    y, x = np.mgrid[:2000, :1600]
    near = np.zeros((2000, 1600), bool)
    cells = np.kron(found.cells, np.ones((16, 16), bool))[:2000, :1600]
    for top, left, radius in pieces:
        assert cells[(y - top) ** 2 + (x - left) ** 2 < (radius - 8) ** 2].all()
        near |= (y - top) ** 2 + (x - left) ** 2 < (radius + 64) ** 2
    assert not cells[~near].any()


def test_a_slide_that_is_all_tissue_or_all_glass_is_not_parted() -> None:
    everywhere = slide_like((640, 640), [(320, 320, 900)])[:, ::16, ::16]
    everywhere[:, 0, 0] = 240  # a single cell of glass
    assert find_tissue(everywhere)[0].mean() > 0.95
    assert not find_tissue(slide_like((640, 640), [])[:, ::16, ::16])[0].any()
    unscanned = slide_like((640, 640), [])[:, ::16, ::16]
    unscanned[:, :20] = 0
    assert not find_tissue(unscanned)[0].any()


def test_tissue_of_the_bundled_slide() -> None:
    """Looked at once, drawn over the slide: the piece of skin with its thin outgrowth, no debris on the glass around it."""
    found = Tissue(open_volume(str(SLIDE)), (1.0, 1.0), 16)
    assert 0.38 < found.cells.mean() < 0.44
    assert found.cells[67, 20]  # the outgrowth at the left
    assert not found.cells[37:40, 130:133].any()  # debris
    assert np.array_equal(find_tissue(tissue.mean_of_cells(open_volume(str(SLIDE)), 16))[0], found.cells)


def test_tissue_is_looked_for_on_the_coarsest_level_that_shows_it(make_model: Maker, tmp_path: Path) -> None:
    colours = slide_like((1024, 768), [(300, 300, 200)])
    group = zarr.open_group(tmp_path / "slide.zarr", mode="w")
    axes = [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx")]
    steps = [1, 8, 32]  # of 1 um: cells are 8
    scales = [{"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [1, n, n]}]} for n in steps]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": scales}]}
    for step in steps:
        group.create_array(str(step), data=colours[:, ::step, ::step], chunks=(3, 128, 128))
    model = str(make_model(levels=2, in_channels=3))
    job = make_job(
        image=str(tmp_path / "slide.zarr"), output=str(tmp_path / "out"), model=model, block_shape=(128, 128), tissue=True
    )
    planned = resolve(job)
    (mask,) = planned.request.masks
    assert (mask.kind, mask.facts["level"], mask.scale) == ("tissue", 1, (8.0, 8.0))
    assert {"threshold", "smoothed", "closed", "smallest", "cell", "share"} <= set(mask.facts)
    wanted = wanted_of(job)
    assert {6 * 2 + 2, 6 * 7 + 5} & set(wanted) == {14}
    assert mask.skipped == 48 - len(wanted) > 20
    summary = run(job)
    assert (summary.computed, summary.skipped) == (len(wanted), [f"{mask.skipped} blocks skipped that hold no tissue"])
    assert open_result(job.output).status.state == "complete"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((3, 400, 400), 20, "u1"), "brightest of the slide has an intensity of 20 of 255"),
        (textured((400, 400)), "for bright-field slides of 3 colours of uint8, .* has 1 of uint8"),
        (slide_like((400, 400), []), "No tissue was found anywhere in .*say where it is with --mask, or leave out --tissue"),
    ],
    ids=["fluorescence", "gray", "glass"],
)
def test_what_shows_no_tissue_is_refused(values: Any, words: str, make_model: Maker, tmp_path: Path) -> None:
    names = ["c", "y", "x"][-values.ndim :]
    zarr.create_array(tmp_path / "i.zarr", data=values, chunks=values.shape, dimension_names=names)
    model = str(make_model(levels=2, in_channels=values.ndim if values.ndim == 3 else 1))
    job = make_job(image=str(tmp_path / "i.zarr"), output=str(tmp_path / "out"), model=model, tissue=True)
    with pytest.raises(InputError, match=words):
        run(job)
    assert not (tmp_path / "out").exists()
