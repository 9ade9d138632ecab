"""Small data sets on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile
from numpy.typing import NDArray

from unet_core.training.dataset import Dataset, load_dataset

MakeDataset = Callable[..., Dataset]
TWO = [{"name": "background", "values": 0}, {"name": "cell", "values": [1]}]


@pytest.fixture
def make_data(tmp_path: Path) -> MakeDataset:
    """Writes images and labels ``{name: (image, labels)}`` as TIFF and a ``dataset.yaml``; labels may be a list of GeoJSON features."""

    def make(
        arrays: dict[str, tuple[NDArray[Any], Any]], fields: dict[str, Any] | None = None, **per_pair: dict[str, Any]
    ) -> Dataset:
        pairs = []
        for name, (image, labels) in arrays.items():
            write_tiff(tmp_path / f"{name}.tif", image)
            if isinstance(labels, list):
                (tmp_path / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": labels}))
            else:
                write_tiff(tmp_path / f"{name}_labels.tif", labels)
            file = f"{name}.geojson" if isinstance(labels, list) else f"{name}_labels.tif"
            pairs.append({"image": f"{name}.tif", "labels": file, "part": "train"} | per_pair.get(name, {}))
        pairs = [{key: value for key, value in pair.items() if value is not None} for pair in pairs]
        content = {"schema": 1, "labels": "classes", "classes": TWO, "pairs": pairs} | (fields or {})
        content = {key: value for key, value in content.items() if value is not None}
        (tmp_path / "dataset.yaml").write_text(json.dumps(content))  # JSON is YAML
        return load_dataset(tmp_path / "dataset.yaml")

    return make


def write_tiff(path: Path, values: NDArray[Any]) -> None:
    tifffile.imwrite(path, values, photometric="rgb" if values.shape[-1] == 3 else "minisblack", compression="zlib")


def polygon(*rings: list[tuple[float, float]], name: str | None = "cell", z: int | None = None) -> dict[str, Any]:
    """A feature as QuPath writes it; rings of (x, y)."""
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [[list(point) for point in [*ring, ring[0]]] for ring in rings]}
    if z is not None:
        geometry["plane"] = {"c": -1, "z": z, "t": 0}
    classification = {"classification": {"name": name, "color": [1, 2, 3]}} if name else {}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation", **classification}}
