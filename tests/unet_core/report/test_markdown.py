"""The short form of a report: what a Markdown reader makes of it, names that would be marks or HTML included."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.unet_core.report.pages import Page, check_inert
from tests.unet_core.report.test_report import HOSTILE
from unet_core import ledger
from unet_core.job import make_job
from unet_core.pipeline import run_units
from unet_core.planning import resolve
from unet_core.report.facts import Told
from unet_core.report.making import report_run
from unet_core.report.markdown import plain
from unet_core.segment import prepare, run

Maker = Callable[..., Path]


class Read(HTMLParser):
    """Elements and text of what Markdown became."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "name",
    [
        HOSTILE,
        "a|b",
        "`code`",
        "[x](javascript:alert(1))",
        "![x](y)",
        "**b** _c_ ~~d~~",
        "# 1",
        "a\n\n- b",
        "&lt;b&gt;",
        "\\*",
        "x_1",
    ],
)
def test_any_name_is_read_as_it_is(name: str) -> None:
    read = Read(f"| a | b |\n|---|---|\n| {plain(name)} | 1 |")
    assert set(read.tags) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert read.text.split()[2:-1] == name.split()


def test_a_run_leaves_its_page_and_a_later_one_withdraws_it(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    common = {"image": str(make_image((75, 93))), "output": str(tmp_path / "out"), "model": str(make_model(levels=2))}
    job = make_job(**common, block_shape=(32, 32), roi=("0:20,0:20",))
    summary = run(job)
    markdown, problem = report_run(job.output, Told(warnings=summary.warnings), ["1 of 1 blocks"])
    assert problem is None
    page = Page(tmp_path / "out" / ledger.REPORT_KEY)
    check_inert(page)
    assert page.facts["state"] == "complete"
    read = Read(markdown)
    assert read.tags.count("img") == 1
    assert "data:image/jpeg;base64," in markdown
    for text in (
        "complete",
        "class 1",
        f"{page.facts['classes'][1]['voxels']:,}",
        "1 of 1 blocks",
        "8 blocks were not wanted",
        "seams: one block, no faces",
    ):
        assert text in read.text
    prepare(resolve(make_job(**common, block_shape=(32, 32))), job.output)  # more is wanted now
    assert not (tmp_path / "out" / ledger.REPORT_KEY).exists()


def test_a_run_whose_blocks_failed_says_so_first(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    job = make_job(
        image=str(make_image((75, 93))), output=str(tmp_path / "out"), model=str(make_model(levels=2)), block_shape=(32, 32)
    )
    request = prepare(resolve(job), job.output)
    list(run_units(job.output, request.key, "segment", [0, 1, 2]))
    markdown, _ = report_run(job.output, Told(failures=["segment block 3 failed"]))
    read = Read(markdown)
    assert read.text.split("\n")[0].startswith("NOT COMPLETE: 3 of")
    assert "segment block 3 failed" in read.text
    assert "seams: across x, labels (no probabilities are kept) change at faces" in read.text


def test_without_its_image_a_run_is_told_without_pictures(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image = make_image((75, 93))
    job = make_job(image=str(image), output=str(tmp_path / "out"), model=str(make_model(levels=2)))
    run(job)
    image.rename(tmp_path / "elsewhere.zarr")
    markdown, problem = report_run(job.output, Told())
    assert problem is not None
    assert "'unet report" in problem
    assert "img" not in Read(markdown).tags
    assert "class 1" in markdown
