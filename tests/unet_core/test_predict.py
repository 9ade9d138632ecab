"""Weights on a device: the path of a GPU, executed on the CPU, and bfloat16 on a trained model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import random_network
from unet_core.errors import BlockError, JobError
from unet_core.geometry import Box
from unet_core.job import make_job
from unet_core.model_package import load_model
from unet_core.normalisation import Normalisation
from unet_core.planning import resolve
from unet_core.predict import Predictor, load_predictor
from unet_core.rules import trace
from unet_core.volumes import open_volume, read_reflected

Maker = Callable[..., Path]
NUMBERS = Normalisation(offset=(13.7,), scale=(9.1,))


def predictor(**changes: Any) -> Predictor:
    traced = trace(random_network(0, in_channels=1, classes=2, base=4, levels=3))
    plain = Predictor(traced.graph, "cpu", torch.float32, 2, 1, traced)
    return replace(plain, **changes)


def strips(image: Any, height: int = 16) -> list[Any]:
    return [image[:, first : first + height] for first in range(0, image.shape[1], height)]


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "<i2", "<i4", "<u4", "<f4", "<f8"])
def test_intensities_are_normalised_on_the_device_as_numpy_does(dtype: str) -> None:
    values = np.random.default_rng(0).integers(-100, 100, (1, 60, 60)).astype(dtype)
    if dtype[-1] != "1":
        values[0, 0, :3] = 30_000, 20_001, 12_345
    raw, normalised = predictor(normalisation=NUMBERS), predictor()
    assert torch.equal(raw.logits(values), normalised.logits(NUMBERS.apply(values)))


def test_strips_given_ahead_change_nothing() -> None:
    image = np.random.default_rng(1).normal(size=(1, 124, 60)).astype(np.float32)
    found = [torch.cat([*predictor(ahead=ahead).streamed(strips(image), 124)], dim=1) for ahead in (0, 1, 3, 100)]
    assert torch.equal(found[0], predictor().logits(image)) or torch.allclose(found[0], predictor().logits(image), atol=1e-5)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("ahead", [0, 1, 100])
@pytest.mark.parametrize(("value", "words"), [(np.nan, r"at \(0, 70, 5\) of the read box"), (1e38, "logits not finite at")])
def test_what_is_not_finite_is_told_with_its_place(value: float, words: str, ahead: int) -> None:
    image = np.zeros((1, 124, 60), dtype=np.float32)
    image[0, 70, 5] = value
    numbers = Normalisation(offset=(0.0,), scale=(1.0,))
    network = predictor(ahead=ahead, normalisation=numbers)
    with torch.no_grad():
        for parameter in network.network.parameters():
            parameter.mul_(10)
    with pytest.raises(BlockError, match=words):
        list(network.streamed(strips(image), 124))


def test_arithmetic_of_gpus_is_refused_on_a_cpu(make_image: Maker, make_model: Maker, tmp_path: Path) -> None:
    job = make_job(
        image=str(make_image((64, 64))), output=str(tmp_path / "out"), model=str(make_model()), precision="tf32", device="cpu"
    )
    with pytest.raises(JobError, match="'tf32' is of GPUs, the device is 'cpu'; use --precision float32 or bfloat16"):
        resolve(job)


def test_bfloat16_gives_the_labels_of_float32_on_a_trained_model() -> None:
    slide = open_volume(str(resources.files("unet_core") / "bundled" / "CMU-1-Small-Region.svs"))
    package = load_model("nuclei-he")
    image = read_reflected(slide, package.footprint.read_box(Box((512, 512), (1536, 1536))))
    numbers = package.description.normalisation
    labels = [
        load_predictor(package, "cpu", precision, 1, Normalisation(offset=numbers.offset, scale=numbers.scale))
        .logits(image)
        .argmax(0)
        for precision in ("float32", "bfloat16")
    ]
    assert 0.02 < labels[0].float().mean() < 0.5
    assert (labels[0] == labels[1]).float().mean() >= 0.999


def test_large_finite_intensities_whose_sum_is_not_finite_are_not_refused() -> None:
    network = predictor()
    with torch.no_grad():
        for parameter in network.network.parameters():
            parameter.mul_(0.01)
    image = np.full((1, 60, 60), 3e37, dtype=np.float32)
    assert not np.isfinite(torch.from_numpy(image).sum())
    assert torch.isfinite(network.logits(image)).all()
