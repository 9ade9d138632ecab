"""A worker reuses the memory of its activations rather than faulting fresh pages in, whatever environment dask gave it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from tests.conftest import random_network
from unet_core.cpu import use_onednn
from unet_core.footprint import footprint

FAULTS = """
import resource, sys, torch
from unet_core.cpu import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
layer = torch.nn.Conv2d(8, 8, 3)
image = torch.zeros(1, 8, 514, 514)
with torch.inference_mode():
    for _ in range(3):
        layer(image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        layer(image)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
def test_freed_activations_are_used_again() -> None:
    faults = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, mode], check=True, capture_output=True, text=True,
                env=os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536", "PYTHONPATH": "."},
            ).stdout
        )
        for mode in ("as it is", "keep")
    }  # fmt: skip
    pages = 20 * 512 * 512 * 8 * 4 // 4096  # of the results
    assert faults["as it is"] > pages / 2
    assert faults["keep"] < pages / 50


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("network", [{"network": "unet"}, {"network": "resunet", "units": (1, 2)}])
def test_onednn_computes_the_same(network: dict[str, object], padding: str) -> None:
    arguments = {"in_channels": 1, "classes": 2, "base": 4, "dims": 3, "padding": padding, "levels": 2} | network
    if network["network"] == "resunet":
        del arguments["levels"]
    plain, fast = random_network(**arguments), random_network(**arguments)
    use_onednn(fast)
    image = torch.randn(1, 1, *footprint(plain).legal_shape((20, 25, 22)))
    with torch.inference_mode():
        expected, found = plain(image), fast(image)
    assert (found - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())
    assert padding == "same" or any("forward" in vars(module) for module in fast.modules())
