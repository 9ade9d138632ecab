"""The networks as published: parameters, and shapes of the padded form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unet_core.footprint import footprint
from unet_core.networks import build
from unet_core.networks.published import count_all


def test_parameters_are_those_counted_from_papers_and_released_code() -> None:
    rows = count_all()
    assert len(rows) > 12
    for row in rows:
        assert row.counted == row.expected, (row.network, row.configuration)
    margins = {row.configuration: row.margin for row in rows}
    assert margins["Ronneberger 2015"] == (92, 92)
    assert margins["Cicek 2016"] == (44, 44)
    assert margins["Jegou 2016, 103"][1] == 1109
    assert margins["Long 2015, 32s"] == (202, 202)  # half of its receptive field of 404


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("unet", {"base": 2}, 32),
        ("unet3d", {"base": 2}, 16),
        ("vnet", {"base": 2}, 32),
        ("fc_densenet", {"growth": 2, "base": 4}, 64),
        ("attention_unet", {"base": 2}, 32),
        ("fcn", {"base": 2, "hidden": 4}, 64),
        ("resunet", {"base": 2}, 33),
        ("zoo_unet", {"base": 2}, 24),
    ],
)
def test_the_padded_form_of_published_depth_keeps_the_size(name: str, arguments: dict[str, Any], size: int) -> None:
    network = build(name, in_channels=1, classes=2, padding="same", **arguments).eval()
    geometry = footprint(network)
    shape = (size,) * geometry.dims
    assert geometry.is_legal(shape)
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, *shape)).shape == (1, 2, *shape)
