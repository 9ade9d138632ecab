"""``unet view`` as its users meet it: a page in a real headless Chromium, of finished and of unfinished results."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.flows.test_viewers import CHROMIUM, screenshots
from tests.unet_core.exports.conftest import DrawOutput, draw_output
from tests.unet_core.exports.test_geojson import pyramid
from unet_core import worker
from unet_core.job import make_job
from unet_core.segment import run
from unet_core.viewing.layers import View, view_of
from unet_core.viewing.napari_window import _BINDINGS
from unet_core.viewing.page import _transform

assert draw_output  # a fixture
ROOT = Path(__file__).resolve().parents[2]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")


@contextmanager
def viewing(output: Path, *more: str) -> Iterator[dict[str, Any]]:
    """The command under way, and its machine-readable line; ended as by Ctrl-C."""
    command = [sys.executable, "-m", "flows.cli", "view", str(output), "--no-browser", "--json", *more]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if line.startswith("{"))
        yield json.loads(line) | {"pid": process.pid}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def places(shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Classes in areas of some voxels, not the same when turned or mirrored."""
    labels = np.random.default_rng(5).integers(0, 3, (-(-shape[0] // 20), -(-shape[1] // 20)), dtype=np.uint8)
    return labels.repeat(20, 0).repeat(20, 1)[: shape[0], : shape[1]]


def agreement(picture: NDArray[np.uint8], labels: NDArray[np.uint8]) -> float:
    """Share of the image's pixels whose colour is that of the voxel there; 0 while the image does not lie whole on the page."""
    page = picture[52:-4, 4:-4].astype(int)  # without the page's bars and frame
    on_image = np.abs(page - 128).max(axis=2) > 8  # the page's ground is grey
    on_image[:90, :40] = on_image[:25] = on_image[-60:, :200] = False  # what lies on it: names of axes, buttons, scale bar
    rows, columns = np.flatnonzero(on_image.sum(axis=1) > 50), np.flatnonzero(on_image.sum(axis=0) > 50)
    if not rows.size or rows[0] < 26 or rows[-1] > page.shape[0] - 3 or columns[0] < 3 or columns[-1] > page.shape[1] - 3:
        return 0.0
    shown = page[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    y, x = (np.arange(size) * whole // size for size, whole in zip(shown.shape[:2], labels.shape, strict=True))
    expected = labels[np.ix_(y, x)]
    found = np.where(shown[..., 1] > 80, 2, np.where(shown[..., 0] > 80, 1, 0))  # green and red over a dark image
    return float((found == expected).mean())


@needs_chromium
@pytest.mark.slow
def test_a_result_is_drawn_over_its_image_and_fits_the_page(draw_output: DrawOutput, tmp_path: Path) -> None:
    labels = places((300, 340))
    output = draw_output(labels, block_shape=(128, 128))
    with viewing(output) as told:
        assert told["layers"] == ["image", "classes"]
        listening = psutil.Process(told["pid"]).net_connections("inet")
        assert {entry.laddr.ip for entry in listening if entry.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        picture = screenshots(told["url"], lambda page: agreement(page, labels) > 0.97, (900, 820))
    Image.fromarray(picture).save(tmp_path / "page.png")
    assert agreement(picture, labels) > 0.97, f"see {tmp_path / 'page.png'}"


@needs_chromium
@pytest.mark.slow
def test_an_unfinished_result_shows_what_is_there(
    draw_output: DrawOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = places((300, 340))
    commit, count = worker.Unit.commit, 0

    def stop_after_four(unit: worker.Unit) -> Any:
        nonlocal count
        count += 1
        if count > 4:
            raise KeyboardInterrupt
        return commit(unit)

    monkeypatch.setattr(worker.Unit, "commit", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        draw_output(labels, block_shape=(128, 128), instances="components")
    output = next(path for path in tmp_path.iterdir() if path.name.startswith("drawn"))
    expected = labels.copy()
    expected[128:256, 128:] = expected[256:] = 0
    with viewing(output) as told:
        assert told["layers"] == ["image", "classes"]
        assert "4 of 9 blocks are there" in told["notes"][0]
        picture = screenshots(told["url"], lambda page: agreement(page, expected) > 0.97, (900, 820))
    Image.fromarray(picture).save(tmp_path / "page.png")
    assert agreement(picture, expected) > 0.97, f"see {tmp_path / 'page.png'}"


def view_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "view", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_what_cannot_be_shown_is_told_in_one_line(
    draw_output: DrawOutput, make_image: Callable[..., Path], tmp_path: Path
) -> None:
    output = draw_output(places((40, 50)))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, words in (
            ((str(output), "--port", port, "--no-browser"), "give another --port"),
            ((str(output), str(make_image((30, 50)))), "has (30, 50) voxels, (40, 50) were segmented"),
            ((str(output), str(tmp_path / "nowhere.tif")), "input not found"),
            ((str(tmp_path),), "is not an output of this program"),
            ((str(output), "--napari"), "pip install 'napari[all]'"),
        ):
            if "--napari" in arguments and any(map(find_spec, _BINDINGS)):
                continue  # it would open
            done = view_command(*arguments)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            assert words in done.stderr


def test_layers_of_a_result_have_its_colours_and_places(draw_output: DrawOutput) -> None:
    output = draw_output(places((70, 90)), instances="components", probabilities="uint8")
    layers = {layer.name: layer for layer in view_of(str(output)).layers}
    assert list(layers) == ["image", "probabilities", "classes", "instances"]
    assert layers["classes"].colors == {1: "#ff0000", 2: "#00ff00"}
    assert [name for name, layer in layers.items() if layer.visible] == ["image", "instances"]
    colors = layers["instances"].colors
    assert len(colors) > 3
    assert len(set(colors.values())) == len(colors)
    properties = json.loads(layers["instances"].properties or b"")["inline"]
    for label, word in zip(properties["ids"], properties["properties"][0]["values"], strict=True):
        red, green, _ = bytes.fromhex(colors[int(label)][1:])
        assert (red > green) == (word == "class 1")


def test_napari_shows_the_same_layers_in_place(draw_output: DrawOutput) -> None:
    napari = pytest.importorskip("napari.components")
    from unet_core.viewing.napari_window import add_layers

    output = draw_output(places((70, 90)), instances="components", probabilities="uint8")
    model = napari.ViewerModel()
    add_layers(model, view_of(str(output)))
    names = [layer.name for layer in model.layers]
    assert names == ["image", "probabilities 1", "probabilities 2", "classes", "instances"]
    for layer in model.layers:
        np.testing.assert_allclose(layer.scale, (0.5, 0.5))
        np.testing.assert_allclose(layer.translate, (0, 0))
    np.testing.assert_array_equal(np.asarray(model.layers["classes"].data), places((70, 90)))


def test_an_image_of_which_a_coarser_level_was_segmented_lies_under_its_labels(draw_output: DrawOutput, tmp_path: Path) -> None:
    napari = pytest.importorskip("napari.components")
    from unet_core.viewing.napari_window import add_layers

    image = pyramid(tmp_path, "tiff", (60, 64))
    view = view_of(str(draw_output(places((30, 32)), image=image, level=1, voxel_size_um=(0.25, 0.25))))
    shown, labels = view.layers
    np.testing.assert_allclose(_transform(shown, _space(view)).matrix[1:, 1:], [[0.5, 0, 0], [0, 0.5, 0]])
    np.testing.assert_allclose(_transform(labels, _space(view)).matrix, [[1, 0, 0], [0, 1, 0]])
    model = napari.ViewerModel()
    add_layers(model, view)
    np.testing.assert_allclose(model.layers["image"].scale, (0.25, 0.25))
    np.testing.assert_allclose(model.layers["classes"].scale, (0.5, 0.5))
    # The centre of the first voxel of level 0 lies a quarter of a coarse one before that of the first coarse one.
    np.testing.assert_allclose(model.layers["image"].translate, (-0.125, -0.125))


def test_an_image_that_was_resampled_lies_under_its_labels(
    make_model: Callable[..., Path], make_image: Callable[..., Path], tmp_path: Path
) -> None:
    image, model = str(make_image((61, 70))), str(make_model(levels=2, voxel_size_um=(0.5, 0.4)))
    names = {"image": image, "output": str(tmp_path / "out"), "model": model}
    run(make_job(**names, voxel_size_um=(0.25, 0.25), resample=True))
    view = view_of(names["output"])
    assert (view.notes, view.shape) == ((), (31, 44))
    shown = view.layers[0]
    assert (shown.name, shown.pyramid.finest.spatial_shape) == ("image", (61, 70))
    # Corners lie on each other; along x, then y, a voxel of the image is 1 / 1.6 and 1 / 2 of one of the output.
    np.testing.assert_allclose(_transform(shown, _space(view)).matrix[1:, 1:], [[0.625, 0, 0], [0, 0.5, 0]])


def _space(view: View) -> Any:
    import neuroglancer

    return neuroglancer.CoordinateSpace(names=list(view.axes[::-1]), units="m", scales=list(view.scale[::-1]))
