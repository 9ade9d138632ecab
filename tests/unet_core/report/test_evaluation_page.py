"""The page of an evaluation: its numbers are those of the scores, its names are text, its worst cases lie where they are said to be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from flows.evaluation import EvaluationJob, evaluate_plainly
from tests.unet_core.metrics.partitions import alike, partition
from tests.unet_core.report.pages import Page, check_inert
from tests.unet_core.report.test_markdown import Read
from tests.unet_core.report.test_report import HOSTILE
from tests.unet_core.test_segment import labels_of
from unet_core import metrics
from unet_core.errors import InputError, JobError
from unet_core.evaluation import OpeningOptions, ScoreTable
from unet_core.job import make_job
from unet_core.report.evaluation import evaluation_markdown
from unet_core.segment import run

Maker = Callable[..., Path]
KNOWN = OpeningOptions(prediction_is="ids", reference_is="ids")
NAMES = ("plain", "<img src=x onerror=alert(1)>", "a & b \"'`|_[x](y)")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for folder in ("found <b>", "truth"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(NAMES):
        ids = partition((41, 57), number)
        tifffile.imwrite(tmp_path / "found <b>" / f"{name}.tif", alike(ids, number).astype(np.uint16))
        tifffile.imwrite(tmp_path / "truth" / f"{name}.tif", ids.astype(np.uint16))
    return str(tmp_path / "found <b>"), str(tmp_path / "truth")


def test_the_page_has_every_score_and_names_are_text(folders: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    job = EvaluationJob(*folders, ("pq", "iou"), KNOWN, report=str(path))
    evaluated = evaluate_plainly(job)
    page = Page(path)
    check_inert(page)
    facts = page.facts
    assert facts["written"] in page.text
    facts.pop("written")
    assert facts == json.loads(json.dumps(evaluated.as_json()))
    order = sorted(NAMES)
    arrays = [(tifffile.imread(f"{folders[0]}/{name}.tif"), tifffile.imread(f"{folders[1]}/{name}.tif")) for name in order]
    expected = [metrics.panoptic_quality(*pair).pq for pair in arrays]
    assert [image["name"] for image in facts["images"]] == order
    assert [image["pq"] for image in facts["images"]] == pytest.approx(expected)
    assert facts["scores"]["pq"]["mean"] == pytest.approx(np.mean(expected))
    assert facts["scores"]["pq"]["interval"] == pytest.approx(metrics.bootstrap_interval(expected))
    assert f"{np.mean(expected):.4f}" in page.text
    for case in facts["worst"]:
        found, truth = arrays[order.index(case["name"])]
        box = tuple(slice(*map(int, part.split(":"))) for part in case["box"].split(","))
        assert case["false_positive"] == np.count_nonzero((found > 0) & (truth == 0) & _inside(box, truth.shape))
        assert case["false_negative"] == np.count_nonzero((found == 0) & (truth > 0) & _inside(box, truth.shape))
        assert case["score"] == pytest.approx(expected[order.index(case["name"])])
    assert facts["worst"][0]["score"] == pytest.approx(min(expected))
    for text in (*NAMES, folders[0]):
        assert text in page.text
    read = Read(evaluation_markdown(evaluated))
    assert read.tags.count("img") == 1
    assert "script" not in read.tags
    assert all(text in read.text for text in (*(" ".join(name.split()) for name in NAMES), f"{np.mean(expected):.4f}"))
    table = ScoreTable.from_json(json.loads(json.dumps(evaluated.table.as_json())))
    assert table == evaluated.table


def _inside(box: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[box] = True
    return mask


@pytest.mark.parametrize("shape", [(75, 93), (5, 41, 57)], ids=str)
def test_a_result_is_shown_over_its_image(shape: tuple[int, ...], make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image, output = make_image(shape), tmp_path / "out"
    model = make_model(levels=2, dims=len(shape))
    run(make_job(image=str(image), output=str(output), model=str(model), voxel_size_um=(0.5,) * len(shape)))
    truth = np.roll(labels_of(output), 2, axis=-1)
    truth[..., :2] = 0
    tifffile.imwrite(tmp_path / "truth.tif", truth, photometric="minisblack")
    options = OpeningOptions(reference_is="classes")
    for moved in (False, True):
        if moved:
            image.rename(tmp_path / "elsewhere")
        path = tmp_path / "page.html"
        job = EvaluationJob(str(output), str(tmp_path / "truth.tif"), ("mean_iu",), options, report=str(path))
        evaluated = evaluate_plainly(job)
        check_inert(Page(path))
        titles = [title for title, _ in evaluated.cases[0].panels]
        assert titles == ([] if moved else ["image"]) + ["reference", "prediction", "differences"]
        assert evaluated.cases[0].spacing_um == (0.5, 0.5)


def test_undefined_scores_and_names_of_classes(tmp_path: Path) -> None:
    truth = np.zeros((2, 30, 40), dtype=np.uint8)
    truth[1, 3:9, 3:9] = 1
    for name, values in (("found", truth), ("truth", truth)):
        tifffile.imwrite(tmp_path / f"{name}{HOSTILE.replace('/', '')}.tif", values, photometric="minisblack")
    places = [str(path) for path in sorted(tmp_path.glob("*.tif"))]
    options = OpeningOptions(prediction_is="ids", reference_is="ids", by_section=True)
    job = EvaluationJob(*places, ("adapted_rand",), options, report=str(tmp_path / "page.html"))
    evaluate_plainly(job)
    page = Page(tmp_path / "page.html")
    check_inert(page)
    assert [image["adapted_rand_error"] for image in page.facts["images"]] == [None, 0]
    assert "resemble each other" in page.text


def test_a_page_that_cannot_be_written_is_refused_first(folders: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is no page of this program"):
        evaluate_plainly(EvaluationJob(*folders, ("pq",), KNOWN, report=f"{folders[1]}/plain.tif"))
    with pytest.raises(InputError, match="There is no metric"):
        evaluate_plainly(EvaluationJob(*folders, ("qp",), KNOWN, report=str(tmp_path / "page.html")))
