"""A result in the browser: neuroglancer, in a real headless Chromium, draws the label image where it lies."""

from __future__ import annotations

import functools
import http.server
import io
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image

from unet_core.job import make_job
from unet_core.segment import run

Maker = Callable[..., Path]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]


class _Files(http.server.SimpleHTTPRequestHandler):
    """Files with byte ranges, which readers of shards ask for, and for pages of any origin."""

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def do_GET(self) -> None:
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if wanted is None or not path.is_file():
            return super().do_GET()
        data = path.read_bytes()
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else len(data) - int(last)
        part = data[start : int(last) + 1 if first and last else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(_Files, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def screenshots(url: str, ready: Callable[[NDArray[np.uint8]], bool], size: tuple[int, int] = (500, 460)) -> NDArray[np.uint8]:
    """The page at ``url``, (Y, X, RGB), as soon as ``ready`` accepts it."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-background-networking"])
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.goto(url)
        deadline = time.monotonic() + 60
        while True:
            page.wait_for_timeout(500)
            picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
            if ready(picture) or time.monotonic() > deadline:
                browser.close()
                return picture


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_neuroglancer_draws_the_labels_where_they_lie(
    ngff: Any, served: str, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    import neuroglancer

    image, model = make_image((300, 340)), make_model()
    run(
        make_job(
            image=str(image), output=str(tmp_path / "out"), model=str(model), ngff=ngff, voxel_size_um=(0.5, 0.5),
            block_shape=(128, 128),
        )
    )  # fmt: skip
    labels = np.asarray(zarr.open_array(tmp_path / "out/labels/classes/0", mode="r")[...])
    segment = min((1, 2), key=lambda value: abs((labels == value).mean() - 0.5))
    expected = labels == segment
    assert 0.05 < expected.mean() < 0.95
    neuroglancer.set_server_bind_address("127.0.0.1")
    viewer = neuroglancer.Viewer()
    with viewer.txn() as state:
        state.layers["labels"] = neuroglancer.SegmentationLayer(
            source=f"zarr://{served}/out/labels/classes/",
            segments=[segment],
            segment_colors={segment: "#ff0000"},
            selected_alpha=1.0,
        )
        state.layout = "xy"
        state.show_axis_lines = state.show_scale_bar = state.show_default_annotations = False
        state.cross_section_scale = 0.5e-6  # metres a pixel: one voxel
        state.position = [150.0, 170.0]

    def agreement(picture: NDArray[np.uint8]) -> float:
        """Share of voxels drawn as they are, at the best place on the page; neuroglancer shows y to the right."""
        page = picture[50:, 30:]  # without its bars
        found, own = (page[..., 0] > 200) & (page[..., 1] < 80), expected.T
        rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
        if not rows.size:
            return 0.0
        places = [
            found[top : top + own.shape[0], left : left + own.shape[1]]
            for top in range(max(0, rows[0] - 2), rows[0] + 3)
            for left in range(max(0, columns[0] - 2), columns[0] + 3)
        ]
        return max((float((place == own).mean()) for place in places if place.shape == own.shape), default=0.0)

    picture = screenshots(str(viewer), lambda shown: agreement(shown) > 0.99)
    Image.fromarray(picture).save(tmp_path / "page.png")
    assert agreement(picture) > 0.99, f"see {tmp_path / 'page.png'}"
