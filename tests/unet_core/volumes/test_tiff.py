"""TIFF files whose pages hold what the file calls by other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from unet_core.geometry import Box
from unet_core.volumes import open_volume


@pytest.mark.parametrize("storage", [{}, {"compression": "zlib"}, {"compression": "zlib", "tile": (32, 48)}])
@pytest.mark.parametrize(
    ("axes", "shape", "photometric"),
    [
        ("CYX", (3, 70, 90), "rgb"),
        ("CYX", (3, 70, 90), "minisblack"),
        ("ZCYX", (4, 3, 40, 50), "rgb"),
        ("YXC", (70, 90, 3), "rgb"),
    ],
)
def test_samples_of_a_page_that_the_file_calls_channels(
    axes: str, shape: tuple[int, ...], photometric: str, storage: dict[str, Any], tmp_path: Path
) -> None:
    """As tifffile writes three channels: one page of three samples, whose axis is named C instead of S."""
    stored = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    planar = {} if axes.endswith("C") or photometric != "rgb" else {"planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, metadata={"axes": axes}, **planar, **storage)
    expected = np.moveaxis(stored, axes.index("C"), 0)
    volume = open_volume(str(tmp_path / "a.tif"))
    assert volume.axes == "c" + axes.replace("C", "").lower()
    np.testing.assert_array_equal(volume.read(Box.from_shape(volume.spatial_shape)), expected)
    inner = Box(tuple(size // 4 for size in volume.spatial_shape), tuple(size // 2 for size in volume.spatial_shape))
    np.testing.assert_array_equal(volume.read(inner), expected[(slice(None), *inner.slices())])
    second = open_volume(str(tmp_path / "a.tif"), channels=(2,))
    np.testing.assert_array_equal(second.read(Box.from_shape(second.spatial_shape)), expected[2:])
