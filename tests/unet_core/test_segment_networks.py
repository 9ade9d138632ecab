"""Every network of the table through the whole path, Zarr to Zarr, against one pass over the whole image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import textured
from tests.unet_core.networks.test_conformance import SMALL
from tests.unet_core.test_segment import expected_logits, labels_of
from unet_core.job import make_job
from unet_core.model_package import load_model
from unet_core.segment import run

Maker = Callable[..., Path]

PUBLISHED_DEPTH: list[tuple[str, dict[str, Any]]] = [
    ("unet", {"base": 2, "levels": 5}),
    ("fcn", {"base": 2, "hidden": 4}),
    ("fc_densenet", {"growth": 2, "base": 4}),
    ("attention_unet", {"base": 2, "dims": 2}),
    ("resunet", {"base": 4}),
]


def check(model: Path, image: Path, shape: tuple[int, ...], block_shape: tuple[int, ...], output: Path) -> None:
    summary = run(make_job(image=str(image), output=str(output), model=str(model), block_shape=block_shape))
    assert summary.status == "complete"
    assert summary.blocks > 1
    logits = expected_logits(model, textured(shape))
    two_best = np.sort(logits, axis=0)[-2:]
    clear = two_best[1] - two_best[0] > 1e-5 * (logits.max() - logits.min())
    assert clear.mean() > 0.95
    assert logits.std() > 1e-3
    np.testing.assert_array_equal(labels_of(output)[clear], logits.argmax(0)[clear])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments"), PUBLISHED_DEPTH, ids=[name for name, _ in PUBLISHED_DEPTH])
def test_networks_of_published_depth_in_2d(
    name: str, arguments: dict[str, Any], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    model = make_model(network=name, **arguments)
    step = load_model(model).footprint.stride[0]
    check(model, make_image((75, 93)), (75, 93), (2 * step, 3 * step), tmp_path / "out")


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("name", SMALL)
def test_networks_of_reduced_depth_in_3d(name: str, padding: str, make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    arguments = {"dims": 3, "base": 4, "padding": padding} | SMALL[name][0]
    model = make_model(network=name, **arguments)
    step = load_model(model).footprint.stride[0]
    check(model, make_image((9, 21, 18)), (9, 21, 18), (step, 3 * step, 2 * step), tmp_path / "out")
