"""An output that is taken up with another option says which, as it was typed, with both values; no insides of plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.conftest import textured
from unet_core.changed_options import changed_option
from unet_core.job import make_job
from unet_core.segment import plan_run

Maker = Callable[..., Path]


@pytest.fixture
def plan(make_model: Maker, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The plan of an image of three channels, with options changed."""
    image = np.stack([textured((90, 70), seed) for seed in range(3)])
    group = zarr.open_group(tmp_path / "image.zarr", mode="w", zarr_format=2)
    for level in range(2):
        group.create_array(str(level), data=image[:, :: 2**level, :: 2**level], chunks=(1, 45, 35))
    axes = [{"name": "c", "type": "channel"}] + [{"name": axis, "type": "space"} for axis in "yx"]
    scales = [{"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [1, 2**n, 2**n]}]} for n in range(2)]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": scales}]
    model = make_model()

    def of(**options: Any) -> dict[str, Any]:
        base = {"image": str(tmp_path / "image.zarr"), "output": str(tmp_path / "out"), "model": str(model), "channels": (0,)}
        return plan_run(make_job(**(base | {"device": "cpu"} | options))).model_dump(mode="json", by_alias=True)

    return of


INSTANCES = {"instances": "components", "min_voxels": 5}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {"channels": (2,)}, ("--channels", "0", "2")),
        ({}, {"level": 1}, ("--level", "0", "1")),
        ({}, {"missing": "fill"}, ("--missing", "error", "fill")),
        ({}, {"symmetries": "all"}, ("--symmetries", "none", "all")),
        ({}, {"voxel_size_um": (0.5, 0.25)}, ("--voxel-size", "unknown", "0.5,0.25 micrometer")),
        ({"voxel_size_um": (0.5, 0.5)}, {"voxel_size_um": (1, 1)}, ("--voxel-size", "0.5,0.5 micrometer", "1,1 micrometer")),
        ({}, {"probabilities": "uint8"}, ("--probabilities", "none", "uint8")),
        ({"probabilities": "float32"}, {"probabilities": "uint8"}, ("--probabilities", "float32", "uint8")),
        ({}, INSTANCES, ("--instances", "none", "components")),
        (INSTANCES, INSTANCES | {"min_voxels": 9}, ("--min-voxels", "5", "9")),
        (INSTANCES, INSTANCES | {"connectivity": 2}, ("--connectivity", "1", "2")),
        (
            INSTANCES,
            INSTANCES | {"measure": False},
            ("--no-measure (the table of instances)", "yes (version 1 of its columns)", "no"),
        ),
        ({"block_shape": (32, 32)}, {"block_shape": (64, 32)}, ("--block-shape", "32,32", "64,32")),
        ({"strip": 16}, {"strip": 0}, ("--strip", "16", "0")),
        ({}, {"precision": "bfloat16"}, ("--precision", "float32", "bfloat16")),
        ({}, {"threads": 2}, ("--threads", "1", "2")),
        ({}, {"ngff": "0.4"}, ("--ngff", "0.5", "0.4")),
        ({}, {}, None),
    ],
)
def test_the_option_is_named_as_it_was_typed(
    plan: Callable[..., dict[str, Any]], before: dict[str, Any], now: dict[str, Any], expected: tuple[str, str, str] | None
) -> None:
    assert changed_option(plan(**before), plan(**now)) == expected


def test_models_and_images_are_told_apart(plan: Callable[..., dict[str, Any]], make_model: Maker, make_image: Maker) -> None:
    other = str(make_model(seed=1))
    name, before, now = changed_option(plan(), plan(model=other))
    assert (name, before == now) == ("--model", False)
    name, _, now = changed_option(plan(), plan(further_models=(other,)))
    assert (name, now.count("random")) == ("--model", 2)
    small = {"image": str(make_image((40, 30))), "channels": None}
    assert changed_option(plan(), plan(**small)) == ("--channels", "0", "all")
    same = changed_option(plan(**small), plan(image=str(make_image((40, 30), seed=3)), channels=None))
    assert same[0] == "content of the image (its fingerprint)"
    assert changed_option(plan(**small), plan(image=str(make_image((41, 30))), channels=None))[:2] == ("image", "yx 40,30 uint8")


def test_a_field_that_no_option_decides_is_named_by_its_place(plan: Callable[..., dict[str, Any]]) -> None:
    old = plan()
    assert changed_option(old, old | {"numerics": 2}) == ("numerics", "1", "2")
