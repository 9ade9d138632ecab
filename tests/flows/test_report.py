"""The command that reports: a page, a machine-readable line, one line and exit code 2; and the page in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.test_cli import call
from tests.unet_core.report.pages import Page, check_inert
from tests.unet_core.report.test_report import HOSTILE
from unet_core.job import make_job
from unet_core.segment import run

Maker = Callable[..., Path]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def output(make_model: Maker, make_image: Maker, tmp_path: Path) -> Path:
    """A result whose model and classes have names that would run in a careless page."""
    model = make_model(levels=2)
    described = json.loads((model / "model.json").read_text())
    described["name"] = HOSTILE
    for entry in described["classes"]:
        entry["name"] += HOSTILE
    (model / "model.json").write_text(json.dumps(described))
    run(
        make_job(
            image=str(make_image((75, 93))), output=str(tmp_path / "out"), model=str(model), block_shape=(32, 32),
            voxel_size_um=(0.5, 0.5), instances="components",
        )
    )  # fmt: skip
    return tmp_path / "out"


def test_the_last_line_says_what_the_page_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Path, tmp_path: Path
) -> None:
    code, out, err = call(monkeypatch, capsys, "report", output, "--to", tmp_path / "new" / "page.html", "--json")
    assert (code, err) == (0, "")
    page = Page(tmp_path / "new" / "page.html")
    check_inert(page)
    last = json.loads(out.splitlines()[-1])
    assert last.pop("page") == str(tmp_path / "new" / "page.html")
    assert last == page.facts
    assert last["state"] == "complete"
    assert set(last["seams"]) == {"y", "x"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.zarr",), "Result not found"),
        (("{output}", "nowhere.png"), "name it as the second argument"),
        (("{output}", "--to", "{output}"), "which is a folder"),
        (("{output}", "--to", "{output}/zarr.json"), "is no page of this program"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(monkeypatch, capsys, "report", *(argument.format(output=output) for argument in arguments))
    assert (code, len(err.splitlines())) == (2, 1)
    assert words in err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
def test_in_a_browser_the_page_shows_its_pictures_loads_nothing_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: Path, tmp_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    assert call(monkeypatch, capsys, "report", output, "--to", tmp_path / "page.html")[0] == 0
    asked: list[str] = []
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: asked.append(f"dialog {dialog.message}"))
        page.on("console", lambda message: asked.append(f"console {message.text}"))
        page.goto((tmp_path / "page.html").as_uri())
        shown = page.evaluate("[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.className])")
        assert len(shown) >= 6  # of the overview and two places, without and with outlines
        assert all(complete for complete, _ in shown)
        visible = "[...document.querySelectorAll('img.outline')].filter(i => i.checkVisibility()).length"
        outlines = page.evaluate(visible)
        assert outlines == sum(name == "outline" for _, name in shown) > 0
        page.click("#outlines")
        assert page.evaluate(visible) == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.inner_text("header").count(HOSTILE) >= 1
        browser.close()
    assert [url for url in asked if not url.startswith("data:image/")] == [(tmp_path / "page.html").as_uri()]
