"""Objects counted in regions: what whole arrays say, for outlines and for another result; tables for other programs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from scipy import ndimage
from skimage.measure import points_in_poly

from flows.cli import app
from tests.conftest import describe, random_network, textured
from tests.unet_core.test_instances import instances_of
from tests.unet_core.test_segment import labels_of
from unet_core.errors import InputError, JobError
from unet_core.exports.placing import Placing
from unet_core.job import SegmentationJob, make_job
from unet_core.model_package import save_model
from unet_core.object_files import write_csv
from unet_core.object_summary import summarise
from unet_core.region_table import measure_regions
from unet_core.regions import _in_sections
from unet_core.segment import run
from unet_core.tables import read_objects_table, read_regions_table
from unet_core.training.geojson import Outlines

Array = np.ndarray[Any, Any]

SHAPE = (150, 211)
TUMOUR = [
    [(20.3, 10.2), (120.7, 15.1), (99.4, 77.7), (31.2, 91.0)],
    [(130.2, 100.6), (205.1, 98.3), (190.0, 141.9)],
]  # x, y
CORE = [(60.1, 40.4), (170.6, 44.9), (165.2, 130.3), (66.6, 120.8)]
STROMA = [(150.2, 5.5), (208.4, 7.7), (180.3, 30.1)]


class Run:
    """Two results of a pyramid of two levels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = folder / "image.zarr"
        values = textured(SHAPE)
        zarr.create_array(self.image / "0", data=values, chunks=(64, 64))
        zarr.create_array(self.image / "1", data=values[::2, ::2].copy(), chunks=(64, 64))
        scales = (
            [{"type": "scale", "scale": [0.5, 0.5]}],
            [
                {"type": "scale", "scale": [1.0, 1.0]},
                {"type": "translation", "translation": [0.25, 0.25]},
            ],
        )
        axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
        levels = [{"path": str(level), "coordinateTransformations": scale} for level, scale in enumerate(scales)]
        ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
        (self.image / "zarr.json").write_text(json.dumps(group))
        fields = {"in_channels": 1, "classes": 4, "levels": 2, "base": 4}
        save_model(folder / "model", random_network(0, **fields), describe(**fields))
        run(self.job("fine", level=0))
        run(self.job("coarse", level=1, instances="none"))

    def job(self, name: str, **more: Any) -> SegmentationJob:
        fields = {"image": str(self.image), "output": str(self.folder / name), "model": str(self.folder / "model")}
        return make_job(**(fields | {"block_shape": (32, 64), "instances": "components"} | more))

    def drawn(self, name: str, features: list[tuple[list[Any], dict[str, Any]]]) -> str:
        """A file as QuPath writes it."""
        content = [
            {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}, "properties": properties}
            for ring, properties in features
        ]
        path = self.folder / name
        path.write_text(json.dumps({"type": "FeatureCollection", "features": content}))
        return str(path)

    def annotations(self) -> str:
        tumour = {"objectType": "annotation", "classification": {"name": "Tumour"}}
        core = {"objectType": "annotation", "name": "A-1", "classification": {"name": "Tumour"}}
        features = [(TUMOUR[0], tumour), (CORE, core), (TUMOUR[1], tumour), (STROMA, {"objectType": "annotation"})]
        return self.drawn("drawn.geojson", features)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("regions"))


def polygon(ring: list[tuple[float, float]], scale: float = 1.0, shape: tuple[int, int] = SHAPE) -> Array:
    """Voxels whose centre lies in a polygon, by scikit-image."""
    centres = np.stack(np.meshgrid(np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5, indexing="ij"), axis=-1).reshape(-1, 2)
    corners = [(y * scale, x * scale) for x, y in ring]
    return np.asarray(points_in_poly(centres, corners)).reshape(shape)


def compare(output: Path, masks: dict[str, Array]) -> None:
    """The table of regions with counts over whole arrays."""
    table, objects = read_regions_table(str(output)), read_objects_table(str(output))
    ids = instances_of(output).astype(np.int64)
    labels = objects.column("label").to_numpy().astype(np.int64)
    assert table.table.column_names == ["label", *(f"{kind}_{name}" for name in masks for kind in ("in", "fraction_in"))]
    assert table.voxels == {name: int(mask.sum()) for name, mask in masks.items()}
    centres = np.round([objects.column(f"centroid_{axis}").to_numpy() for axis in "yx"]).astype(int)
    cut, held = False, 0
    for name, mask in masks.items():
        fraction = table.table.column(f"fraction_in_{name}").to_numpy()
        np.testing.assert_array_equal(fraction, ndimage.mean(mask, ids, labels))
        cut = cut or bool(((fraction > 0) & (fraction < 1)).any())
        holds = table.table.column(f"in_{name}").to_numpy()
        exact = np.abs(np.array([objects.column(f"centroid_{axis}").to_numpy() for axis in "yx"]) % 1 - 0.5).min(axis=0) > 1e-9
        np.testing.assert_array_equal(holds[exact], mask[tuple(centres)][exact])
        held += holds.sum()
    assert cut
    assert held > 5


def test_outlines_of_one_name_are_one_region_and_regions_may_overlap(results: Run) -> None:
    measure_regions(str(results.folder / "fine"), results.annotations())
    tumour = polygon(TUMOUR[0]) | polygon(TUMOUR[1])
    compare(results.folder / "fine", {"Tumour": tumour, "A-1": polygon(CORE), "unnamed": polygon(STROMA)})


def test_outlines_are_in_pixels_of_the_finest_level(results: Run) -> None:
    run(results.job("half", level=1))
    measure_regions(str(results.folder / "half"), results.annotations())
    shape = labels_of(results.folder / "half").shape
    assert shape == (75, 106)  # the width is odd, and the coarse level covers half a voxel more
    rings_of = {"Tumour": TUMOUR, "A-1": [CORE], "unnamed": [STROMA]}
    masks = {name: np.logical_or.reduce([polygon(ring, 0.5, shape) for ring in rings]) for name, rings in rings_of.items()}
    compare(results.folder / "half", masks)


def test_outlines_lie_on_a_resampled_image_as_on_the_stored_one(tmp_path: Path) -> None:
    fields = {"in_channels": 1, "classes": 4, "levels": 2, "base": 4}
    model = tmp_path / "model"
    save_model(model, random_network(0, **fields), describe(voxel_size_um=(0.5, 0.4), **fields))
    zarr.create_array(tmp_path / "raw", data=textured(SHAPE), chunks=(64, 64))
    output = tmp_path / "out"
    names = {"image": str(tmp_path / "raw"), "output": str(output), "model": str(model), "voxel_size_um": (0.25, 0.25)}
    run(make_job(**names, resample=True, instances="components", block_shape=(64, 64)))
    assert labels_of(output).shape == (75, 132)
    path = tmp_path / "drawn.geojson"
    drawn = {"type": "Polygon", "coordinates": [[*CORE, CORE[0]]]}
    path.write_text(json.dumps({"type": "Feature", "geometry": drawn, "properties": {"name": "core"}}))
    measure_regions(str(output), str(path))
    y, x = (np.arange(75) + 0.5) * 2, (np.arange(132) + 0.5) * 1.6  # centres in pixels of the stored image
    centres = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    mask = np.asarray(points_in_poly(centres, [(y, x) for x, y in CORE])).reshape(75, 132)
    compare(output, {"core": mask})


@pytest.mark.parametrize(
    ("depth", "factor", "offset", "expected"),
    [
        (5, 1.0, 0.0, {0: [0], 3: [3], 7: [7]}),
        (4, 2.0, 0.0, {0: [0], 1: [0], 6: [3], 7: [3]}),
        (4, 2.5, 0.0, {1: [0], 2: [1], 3: [1], 9: [3]}),
        (6, 0.5, 0.0, {0: [0, 1], 1: [2, 3], 2: [4, 5]}),
        (4, 1.0, 2.0, {0: [-2], 2: [0], 5: [3]}),
    ],
)
def test_outlines_of_a_section_show_in_every_section_of_the_output_that_lies_there(
    depth: int, factor: float, offset: float, expected: dict[int, list[int]]
) -> None:
    square = np.array([[0.0, 0, 4, 0], [4, 0, 4, 4], [4, 4, 0, 4], [0, 4, 0, 0]])
    sections = np.array([*expected], dtype=np.int64)
    count = len(sections)
    drawn = Outlines((square,) * count, (None,) * count, (None,) * count, sections, np.tile([0.0, 0, 4, 4], (count, 1)), "drawn")
    shown, numbers = _in_sections(drawn, np.arange(count), Placing((factor, 1.0, 1.0), (offset, 0.0, 0.0)), depth)
    assert len(shown.edges) == len(shown.names) == len(shown.own_names) == len(shown.bounds) == len(numbers)
    found = {section: shown.sections[numbers == number].tolist() for number, section in enumerate(expected)}
    assert found == expected


def test_classes_of_another_result_are_regions_at_any_resolution(results: Run) -> None:
    measure_regions(str(results.folder / "fine"), str(results.folder / "coarse"))
    coarse = labels_of(results.folder / "coarse")
    # Centres: (i + 0.5) * 0.5 um - 0.25 um of the fine voxel, as its file says; those of coarse voxels lie 0.25 um further on.
    nearest = [np.clip(np.floor((np.arange(size) * 0.5 - 0.25) / 1.0 + 0.5).astype(int), 0, None) for size in SHAPE]
    whole = coarse[np.ix_(*nearest)]
    compare(results.folder / "fine", {f"class {value}": whole == value for value in (1, 2, 3)})


def test_of_a_part_of_an_image_the_region_is_what_was_segmented(results: Run) -> None:
    run(results.job("part", level=0, roi=("0:64,0:128",)))
    measure_regions(str(results.folder / "part"), results.annotations())
    there = np.zeros(SHAPE, dtype=bool)
    there[:64, :128] = True
    assert read_regions_table(str(results.folder / "part")).voxels["Tumour"] == (there & polygon(TUMOUR[0])).sum()
    assert summarise(str(results.folder / "part"))[0].region_mm == pytest.approx(64 * 128 * 0.25 * 1e-6)
    run(results.job("part", level=0, roi=("0:150,0:128",)))
    with pytest.raises(
        JobError, match="has other objects since they were counted in the regions of .*drawn.geojson; count again"
    ):
        read_objects_table(str(results.folder / "part"), regions=True)


def test_summary_and_rows_are_those_of_the_tables(results: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fine = str(results.folder / "fine")
    words = ["measure", fine, "--regions", results.annotations(), "--csv", str(tmp_path / "rows.csv")]
    words += ["--summary", str(tmp_path / "summary.csv")]
    assert app(words, exit_on_error=False, result_action="return_value") == 0
    table = read_objects_table(fine, regions=True)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert list(rows[0]) == table.column_names
    for name in ("label", "area_um2", "centroid_x", "intensity_std_0", "orientation", "fraction_in_Tumour"):
        assert [float(row[name]) for row in rows] == table.column(name).to_pylist()
    assert [row["class_probability"] for row in rows] == [""] * len(rows)
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in ("class", "area_um2", "in_Tumour")}
    found = {(row["region"], row["class"]): row for row in csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text()))}
    assert len(found) == 4 * 3
    size = (polygon(TUMOUR[0]) | polygon(TUMOUR[1])).sum() * 0.25e-6
    for name in ("class 1", "class 2", "class 3"):
        chosen = (columns["class"] == name) & columns["in_Tumour"]
        row = found["Tumour", name]
        assert int(row["objects"]) == chosen.sum()
        assert float(row["region_area_mm2"]) == pytest.approx(size)
        assert float(row["objects_per_mm2"]) == pytest.approx(chosen.sum() / size)
        if chosen.any():
            assert float(row["mean_area_um2"]) == pytest.approx(columns["area_um2"][chosen].mean())
        else:
            assert row["mean_area_um2"] == ""
    assert sum(int(row["objects"]) for row in found.values() if row["region"] == "all that was computed") == len(rows)
    shown = capsys.readouterr().out
    assert f"Tumour: {int(found['Tumour', 'class 1']['objects'])} class 1, " in shown


def test_rows_of_several_results_say_whose_they_are(results: Run, tmp_path: Path) -> None:
    run(results.job("same", level=0, probabilities="uint8"))
    outputs = [str(results.folder / name) for name in ("fine", "same")]
    assert write_csv(outputs, str(tmp_path / "all.csv")) == sum(len(read_objects_table(output)) for output in outputs)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text())))
    assert list(rows[0])[:3] == ["image", "output", "label"]
    assert {row["output"] for row in rows} == set(outputs)
    assert {row["image"] for row in rows} == {str(results.image)}
    assert {bool(row["class_probability"]) for row in rows if row["output"] == outputs[1]} == {True}


def test_what_are_no_regions_of_the_image_is_refused(results: Run, tmp_path: Path) -> None:
    fine = str(results.folder / "fine")
    with pytest.raises(InputError, match="not found: .*none.geojson"):
        measure_regions(fine, str(tmp_path / "none.geojson"))
    (tmp_path / "text.geojson").write_text("text")
    with pytest.raises(InputError, match="is not readable GeoJSON"):
        measure_regions(fine, str(tmp_path / "text.geojson"))
    with pytest.raises(InputError, match="has no outlines; export annotations"):
        measure_regions(fine, results.drawn("empty.geojson", []))
    zarr.create_array(tmp_path / "other", data=textured((64, 64)), chunks=(64, 64))
    other = make_job(
        image=str(tmp_path / "other"), output=str(tmp_path / "out"), model=str(results.folder / "model"), voxel_size_um=(0.5, 0.5)
    )
    run(other)
    with pytest.raises(
        InputError, match=r"Along y .* 150.0 voxels of the regions of .*out, which have 64; give a result of the same"
    ):
        measure_regions(fine, other.output)
    (tmp_path / "out/.unet/complete.json").unlink()
    with pytest.raises(InputError, match="out is not complete"):
        measure_regions(fine, other.output)
    with pytest.raises(JobError, match="has no instances, so it has no table of objects"):
        measure_regions(str(results.folder / "coarse"), results.annotations())
    words = ["measure", fine, str(results.folder / "same"), "--regions", "drawn.geojson"]
    with pytest.raises(JobError, match="belong to one image, 2 results are named"):
        app(words, exit_on_error=False, result_action="return_value")
    with pytest.raises(JobError, match="--csv is .*, which is a folder"):
        app(["measure", fine, "--csv", str(tmp_path)], exit_on_error=False, result_action="return_value")
    picture = tmp_path / "slide.svs"
    picture.write_bytes(b"voxels")
    for option in ("--csv", "--summary"):
        with pytest.raises(JobError, match=rf"{option} is .*slide.svs, which exists and has no name in .csv; give another"):
            app(["measure", fine, option, str(picture)], exit_on_error=False, result_action="return_value")
    assert picture.read_bytes() == b"voxels"
    both = str(tmp_path / "both.csv")
    with pytest.raises(JobError, match="--csv and --summary are both .*both.csv; give two files"):
        app(["measure", fine, "--csv", both, "--summary", both], exit_on_error=False, result_action="return_value")
    with pytest.raises(JobError, match="No result is named"):
        app(["measure"], exit_on_error=False, result_action="return_value")
