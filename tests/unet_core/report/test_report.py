"""The numbers of a report are those of the whole arrays on disk, computed here in another way."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label

from tests.unet_core.report.pages import Page, check_inert
from tests.unet_core.test_segment import labels_of
from unet_core.errors import InputError, JobError
from unet_core.geometry import Box
from unet_core.job import SegmentationJob, make_job
from unet_core.pipeline import run_units
from unet_core.planning import resolve
from unet_core.report.facts import Told
from unet_core.report.making import make_report
from unet_core.report.opened import open_output
from unet_core.seams import measure_seams
from unet_core.segment import prepare, run

Maker = Callable[..., Path]


def report_of(output: object, tmp_path: Path, **options: Any) -> Page:
    page = tmp_path / "report.html"
    _, found = make_report(str(output), to=str(page), **options)
    opened = Page(page)
    assert opened.facts == json.loads(json.dumps(found))
    check_inert(opened)
    return opened


def computed_mask(shape: tuple[int, ...], block_shape: tuple[int, ...], roi: str | None) -> NDArray[np.bool_]:
    """Whole blocks that touch the region."""
    mask = np.zeros(shape, dtype=bool)
    bounds = [tuple(map(int, part.split(":"))) for part in roi.split(",")] if roi else [(0, size) for size in shape]
    mask[
        tuple(
            slice(first // step * step, -(-last // step) * step) for (first, last), step in zip(bounds, block_shape, strict=True)
        )
    ] = True
    return mask


def objects_of(
    value: int, components: NDArray[Any], labels: NDArray[Any], min_voxels: int
) -> list[tuple[NDArray[np.int64], ...]]:
    """Where the voxels of each object of a class lie."""
    found = [np.nonzero(components == number) for number in range(1, int(components.max()) + 1)]
    return [where for where in found if len(where[0]) >= min_voxels and labels[tuple(axis[0] for axis in where)] == value]


def touches_edge(where: tuple[NDArray[np.int64], ...], shape: tuple[int, ...]) -> bool:
    return any(axis.min() == 0 or axis.max() == size - 1 for axis, size in zip(where, shape, strict=True))


CASES = [
    ((75, 93), (32, 16), None, (0.5, 0.25), 1),
    ((75, 93), (16, 32), "20:45,40:70", (0.5, 0.25), 7),
    ((13, 22, 37), (8, 16, 8), None, (0.04, 0.01, 0.01), 5),
    ((13, 22, 37), (8, 8, 16), "0:3,9:20,17:30", None, 1),
]


@pytest.mark.parametrize(("shape", "block_shape", "roi", "voxel_size", "min_voxels"), CASES, ids=str)
def test_areas_and_objects_are_those_of_the_whole_arrays(
    shape: tuple[int, ...],
    block_shape: tuple[int, ...],
    roi: str | None,
    voxel_size: tuple[float, ...] | None,
    min_voxels: int,
    make_model: Maker,
    make_image: Maker,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    run(
        make_job(
            image=str(make_image(shape)), output=str(output), model=str(make_model(levels=2, dims=len(shape), classes=6)),
            block_shape=block_shape, roi=(roi,) if roi else (), voxel_size_um=voxel_size, instances="components", min_voxels=min_voxels,
        )
    )  # fmt: skip
    facts = report_of(output, tmp_path).facts
    inside, labels = computed_mask(shape, block_shape, roi), labels_of(output)
    voxel = float(np.prod(voxel_size)) if voxel_size else None
    assert (facts["state"], facts["computed_voxels"]) == ("complete", inside.sum())
    assert facts["computed_um"] == (pytest.approx(inside.sum() * voxel) if voxel else None)
    counts = np.bincount(labels[inside], minlength=6)
    for entry in facts["classes"]:
        assert entry["voxels"] == counts[entry["value"]]
        assert entry["share"] == pytest.approx(counts[entry["value"]] / inside.sum())
        assert entry["size_um"] == (pytest.approx(counts[entry["value"]] * voxel) if voxel else None)
    components = label(np.where(inside, labels, 0), background=0, connectivity=1)
    sizes = np.bincount(components.ravel())[1:]
    values = labels.ravel()[np.unique(components, return_index=True)[1][1:]]
    assert [entry["name"] for entry in facts["objects"]] == [f"class {number}" for number in range(1, 6)]
    assert sum(entry["count"] for entry in facts["objects"]) > 5
    for number, entry in enumerate(facts["objects"], 1):
        own = sizes[(values == number) & (sizes >= min_voxels)]
        assert entry["count"] == own.size
        assert entry["per_um"] == (pytest.approx(own.size / (inside.sum() * voxel)) if voxel else None)
        if not own.size:
            assert entry["voxels"] is entry["histogram"] is None
            continue
        expected = {"smallest": own.min(), "largest": own.max(), "mean": own.mean(), "median": np.median(own)}
        expected |= {"lower_quartile": np.percentile(own, 25), "upper_quartile": np.percentile(own, 75)}
        assert entry["voxels"] == pytest.approx(expected)
        scaled = voxel and {name: value * voxel for name, value in expected.items()}
        assert entry["size_um"] == (pytest.approx(scaled) if scaled else None)
        edges, bars = entry["histogram"]["edges"], entry["histogram"]["counts"]
        assert edges == sorted(set(edges))
        assert entry["at_edge"] == sum(
            1 for part in objects_of(number, components, labels, min_voxels) if touches_edge(part, shape)
        )
        pairs = zip(edges, edges[1:], bars, strict=False)
        assert all(bar == sum(low <= size < high for size in own) for low, high, bar in pairs)
        assert sum(bars) == own.size
    skipped = facts["skipped"]
    assert skipped["unwanted_voxels"] == (~inside).sum()
    assert skipped["roi"] == ([roi] if roi else [])
    assert skipped["undone_blocks"] == skipped["missing_chunks"] == 0


def test_regions_that_overlap_are_counted_each_for_itself(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    output = tmp_path / "out"
    model = make_model("regions", levels=2, classes=3)
    run(
        make_job(
            image=str(make_image((61, 47), chunks=(31, 47))), output=str(output), model=str(model), block_shape=(16, 32),
            instances="components", instances_of="class 2", probabilities="float32",
        )
    )  # fmt: skip
    facts = report_of(output, tmp_path).facts
    regions = [np.asarray(zarr.open_array(output / f"labels/class_{number}/0", mode="r")[...]) > 0 for number in range(3)]
    assert [entry["voxels"] for entry in facts["classes"]] == [region.sum() for region in regions]
    assert sum(entry["share"] for entry in facts["classes"]) == pytest.approx(np.mean(regions) * 3)
    (objects,) = facts["objects"]
    assert (objects["name"], objects["count"]) == ("class 2", label(regions[2], connectivity=1).max())
    assert objects["count"] > 5
    ids = label(regions[2], connectivity=1)
    probability = np.asarray(zarr.open_array(output / "0", mode="r")[2])
    means = ndimage.mean(probability, ids, range(1, ids.max() + 1))
    assert objects["probability"]["median"] == pytest.approx(np.median(means), abs=1e-5)
    assert objects["probability"]["smallest"] == pytest.approx(min(means), abs=1e-5)
    assert facts["voxel_size_um"] is None
    assert any("voxel size is unknown" in text for text in facts["warnings"])
    places = facts["close_ups"]["places"]
    assert places
    for place in places:
        box = tuple(slice(*map(int, part.split(":"))) for part in place["box"].split(","))
        assert place["share"] == pytest.approx(np.any([region[box] for region in regions], axis=0).mean())


@pytest.fixture
def job(make_model: Maker, make_image: Maker, tmp_path: Path) -> SegmentationJob:
    return make_job(
        image=str(make_image((75, 310), chunks=(25, 62))), output=str(tmp_path / "out"), model=str(make_model(levels=2)),
        block_shape=(32, 64), voxel_size_um=(0.5, 0.5), instances="components",
    )  # fmt: skip


def test_hashes_and_times_are_those_of_the_files(job: SegmentationJob, tmp_path: Path) -> None:
    summary = run(job)
    page = report_of(job.output, tmp_path, told=Told(seconds=summary.seconds))
    audit, output = page.facts["audit"], Path(job.output)
    own = {"zarr.json", "plan.json", "request.json", "complete.json"}
    files = [
        path
        for path in output.rglob("*")
        if path.is_file() and path.name not in own and not {"ledger", "lease"} & set(path.parts)
    ]
    lines = sorted(f"{path.relative_to(output)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    assert audit["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (audit["stored_objects"], audit["stored_bytes"]) == (len(files), sum(path.stat().st_size for path in files))
    assert audit["is_complete"] is True
    ledger = [json.loads(path.read_text()) for path in (output / ".unet" / "ledger").rglob("*.json")]
    assert audit["units_done"] == audit["units_wanted"] == len(ledger)
    for stage in page.facts["stages"]:
        own_records = [record for record in ledger if record["stage"] == stage["name"]]
        assert stage["done"] == stage["wanted"] == len(own_records)
        seconds = [(phase, value) for record in own_records for phase, value in record["seconds"].items()]
        assert stage["work_seconds"] == pytest.approx(sum(value for phase, value in seconds if phase != "wait"))
        assert sum(stage["seconds"].values()) == pytest.approx(sum(value for _, value in seconds))
    assert page.facts["seconds"] == summary.seconds
    assert page.facts["plan"]["id"] == summary.plan
    assert not page.has_class("banner")


def test_the_audit_says_what_is_known_of_seams(job: SegmentationJob, make_model: Maker, tmp_path: Path) -> None:
    whole = {"block_shape": (96, 320), "voxel_size_um": None}
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("probabilities", {"probabilities": "float32"}, "across y, probabilities jump at faces"),
        ("labels", {}, "across y, labels (no probabilities are kept) change at faces"),
        ("one", whole, "one block, no faces"),
    )
    for name, options, words in cases:
        own = job.model_copy(update={"output": str(tmp_path / name)} | options)
        run(own)
        page = report_of(own.output, tmp_path)
        audit = page.text[page.text.index("sha256 of all records") : page.text.index("Where it comes from")]
        assert words in audit
        seams = page.facts["seams"]
        assert seams == {axis: asdict(seam) for axis, seam in measure_seams(own.output).items()}
        assert {seam["of"] for seam in seams.values()} == ({name} if seams else set())
        assert ("Of labels it tells less than of probabilities" in audit) == (name == "labels")
        assert all(seam.sentence(axis) in audit for axis, seam in measure_seams(own.output).items())


def test_an_unfinished_result_says_so_in_red_at_the_top(job: SegmentationJob, tmp_path: Path) -> None:
    planned = resolve(job)
    request = prepare(planned, job.output)
    list(run_units(job.output, request.key, "segment", [0, 1, 2, 5]))
    page = report_of(job.output, tmp_path, told=Told(failures=["segment block 3 (yx 0:32, 192:256): it failed"]))
    assert page.has_class("banner")
    assert "This result is not complete." in page.text[: page.text.index("Overview")]
    facts = page.facts
    assert facts["state"] == "unfinished"
    assert facts["objects"] is None
    grid = planned.plan.stages[0].grid
    labels, done = labels_of(Path(job.output)), np.zeros(grid.shape, dtype=bool)
    for number in (0, 1, 2, 5):
        done[grid.block(number).slices()] = True
    assert facts["computed_voxels"] == done.sum()
    assert [entry["voxels"] for entry in facts["classes"]] == np.bincount(labels[done], minlength=3).tolist()
    assert facts["skipped"]["undone_blocks"] == grid.block_count - 4
    boxes = [
        Box(*zip(*(map(int, part.split(":")) for part in text.split(",")), strict=True))
        for text in facts["skipped"]["undone_boxes"]
    ]
    assert boxes == [grid.block(number) for number in range(grid.block_count) if number not in (0, 1, 2, 5)]
    assert "it failed" in page.text
    for place in facts["close_ups"]["places"]:
        assert done[tuple(slice(*map(int, part.split(":"))) for part in place["box"].split(","))].all()


def test_of_an_unfinished_result_the_levels_that_are_whole_are_drawn(job: SegmentationJob) -> None:
    request = prepare(resolve(job), job.output)
    list(run_units(job.output, request.key, "segment", [0, 1, 2, 5]))
    view = open_output(job.output).scene().overview(pixels=160)
    assert view.plane.step == (2, 2)
    drawn = view.drawing.drawn > 0
    assert drawn[:16, :96].mean() > 0.02  # blocks 0, 1 and 2
    assert not drawn[16:32, 32:].any()  # of blocks 6 and more
    run(job)
    assert open_output(job.output).scene().factors == ((1, 1), (2, 2))


def test_nothing_computed_yet_is_a_page_too(job: SegmentationJob, tmp_path: Path) -> None:
    prepare(resolve(job), job.output)
    facts = report_of(job.output, tmp_path).facts
    assert (facts["computed_voxels"], facts["close_ups"]["places"]) == (0, [])


def test_absent_chunks_that_were_filled_are_listed(job: SegmentationJob, tmp_path: Path) -> None:
    (Path(job.image) / "c" / "1" / "2").unlink()
    run(job.model_copy(update={"missing": "fill"}))
    page = report_of(job.output, tmp_path)
    assert (page.facts["skipped"]["missing_chunks"], page.facts["skipped"]["missing_keys"]) == (1, ["c/1/2"])
    assert "--missing fill" in page.text


def test_what_a_mask_left_out_is_told_and_counts_nowhere(job: SegmentationJob, tmp_path: Path) -> None:
    mask = np.zeros((75, 310), dtype=np.uint8)
    mask[40:44, 70:75] = 1
    zarr.create_array(tmp_path / "mask.zarr", data=mask)
    run(job.model_copy(update={"mask": str(tmp_path / "mask.zarr")}))
    page = report_of(job.output, tmp_path)
    skipped = page.facts["skipped"]
    assert page.facts["computed_voxels"] == 75 * 310 - skipped["unwanted_voxels"] < 75 * 310
    assert skipped["roi"] == []
    (sentence,) = skipped["masks"]
    assert sentence.startswith(f"{skipped['unwanted_blocks']} blocks skipped where mask")
    assert sentence in page.text


@pytest.mark.parametrize("what", ["moved", "changed"])
def test_the_image_is_the_one_that_was_segmented(what: str, job: SegmentationJob, tmp_path: Path) -> None:
    run(job)
    elsewhere = tmp_path / "elsewhere.zarr"
    shutil.move(job.image, elsewhere)
    if what == "changed":
        zarr.open_array(elsewhere, mode="r+")[:3, :3] = 7
    with pytest.raises(InputError, match="second argument"):
        make_report(job.output)
    if what == "changed":
        with pytest.raises(InputError, match="is not the one"):
            make_report(job.output, str(elsewhere))
    else:
        assert report_of(job.output, tmp_path, image=str(elsewhere)).facts["image"]["url"] == str(elsewhere)


def test_a_page_replaces_a_page_and_nothing_else(job: SegmentationJob, tmp_path: Path) -> None:
    run(job)
    for _ in range(2):
        report_of(job.output, tmp_path)
    precious = tmp_path / "slide.svs"
    precious.write_bytes(b"voxels")
    for to, words in (
        (precious, "no page of this program"),
        (tmp_path, "is a folder"),
        ("", "give a path"),
        (f"{tmp_path}/", "is a folder"),
    ):
        with pytest.raises(JobError, match=words):
            make_report(job.output, to=str(to))
    assert precious.read_bytes() == b"voxels"


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*7}}"


def test_names_from_files_are_text_and_nothing_else(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    model = make_model(levels=2, classes=3)
    described = json.loads((model / "model.json").read_text())
    described["name"] = f"model {HOSTILE}"
    for entry in described["classes"]:
        entry["name"] += HOSTILE
    (model / "model.json").write_text(json.dumps(described))
    folder = tmp_path / "<b>&lt;<img src=x onerror=alert(3)>"
    folder.mkdir()
    image = folder / "<script>alert(4)<"
    shutil.move(make_image((75, 93)), image)
    output = tmp_path / "out"
    run(
        make_job(
            image=str(image), output=str(output), model=str(model), block_shape=(32, 32), instances="components",
            probabilities="uint8", voxel_size_um=(0.5, 0.5),
        )
    )  # fmt: skip
    page = report_of(output, tmp_path)
    assert page.facts["image"]["url"] == str(image)
    assert page.facts["models"][0]["name"] == f"model {HOSTILE}"
    for text in (str(image), f"model {HOSTILE}", f"class 1{HOSTILE}"):
        assert text in page.text
