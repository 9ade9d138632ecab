"""Crops on disk: images and labels as TIFF, as OME-Zarr with its labels inside, or as TIFF with outlines. Knows no results.

FOLDER/images/crop-001.tif           FOLDER/labels/crop-001.tif
FOLDER/images/crop-001.ome.zarr/..   its labels/classes inside
FOLDER/images/crop-001.tif           FOLDER/labels/crop-001.geojson
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from unet_core.corrections.legend import Legend
from unet_core.corrections.outlines import outlines_of
from unet_core.errors import InputError
from unet_core.geometry import Box

Format = Literal["tiff", "zarr", "geojson"]
IMAGES, LABELS = "images", "labels"

_IMAGEJ = ("uint8", "uint16", "float32")  # what ImageJ's own TIFF can hold
_UM = "\N{MICRO SIGN}m"
_CHUNK = {2: 512, 3: 64}


@dataclass(frozen=True)
class CropVoxels:
    """A crop in memory.

    Args:
        image: (C, *spatial), of the exported box.
        labels: of shape ``inner.shape``, of the labelled box.
        inner: the labelled box, in voxels of the exported one.
        voxel_size: along the spatial axes in micrometre, or None.
    """

    image: NDArray[Any]
    labels: NDArray[np.integer]
    inner: Box
    voxel_size: tuple[float, ...] | None

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.image.shape[1:]

    @property
    def axes(self) -> str:
        return "zyx"[-len(self.spatial) :]

    def whole_labels(self, ignore: int) -> NDArray[np.integer]:
        """Labels of the exported box: ``ignore`` around the labelled one."""
        whole = np.full(self.spatial, ignore, dtype=self.labels.dtype)
        whole[self.inner.slices()] = self.labels
        return whole


def places_of(name: str, form: Format, kind: str) -> tuple[str, str]:
    """Paths of a crop's image and labels in its folder.

    Args:
        name: of the crop.
        form: of the files.
        kind: of the labels.
    """
    if form == "zarr":
        image = f"{IMAGES}/{name}.ome.zarr"
        return image, f"{image}/labels/{kind}"
    return f"{IMAGES}/{name}.tif", f"{LABELS}/{name}.{'tif' if form == 'tiff' else 'geojson'}"


def check_writable_as(form: Format, dtype: np.dtype[Any]) -> None:
    """Refuse intensities that the format does not hold.

    Raises:
        InputError: naming both.
    """
    if form != "zarr" and dtype == np.bool_:
        raise InputError(f"The image is of type {dtype}, which TIFF does not keep; use --format zarr.")


def write_crop(folder: Path, name: str, form: Format, legend: Legend, crop: CropVoxels) -> tuple[str, str]:
    """Write image and labels; their paths in the folder."""
    image, labels = places_of(name, form, legend.kind)
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    if form == "zarr":
        _write_zarr(folder / image, legend, crop)
        return image, labels
    (folder / LABELS).mkdir(exist_ok=True)
    _write_tiff(folder / image, crop.image, crop, None)
    if form == "tiff":
        _write_tiff(folder / labels, crop.whole_labels(legend.ignore)[None], crop, legend)
    else:
        (folder / labels).write_text(json.dumps({"type": "FeatureCollection", "features": _features(legend, crop)}))
    return image, labels


def hash_of(path: Path) -> str:
    """The sha256 of a file, or of all files of a folder with their names; empty if there is nothing."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(each for each in path.rglob("*") if each.is_file())
    found = hashlib.sha256()
    for each in files:
        found.update(f"{each.relative_to(path).as_posix()}\n{hashlib.sha256(each.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest() if files else ""


def _write_tiff(path: Path, values: NDArray[Any], crop: CropVoxels, legend: Legend | None) -> None:
    """As ImageJ writes it where it can, else as OME-TIFF; values of shape (C, *spatial)."""
    axes = crop.axes.upper()
    is_colour = len(values) == 3 and values.dtype == np.uint8 and axes == "YX"
    if is_colour:
        values, axes = np.moveaxis(values, 0, -1), "YXS"
    elif len(values) == 1:
        values = values[0]
    else:
        values = np.moveaxis(values, 0, -3)  # ImageJ's order: Z before C
        axes = axes[:-2] + "CYX"
    common: dict[str, Any] = {"photometric": "rgb" if is_colour else "minisblack"}
    size = crop.voxel_size
    if values.dtype.name in _IMAGEJ:
        metadata: dict[str, Any] = {"axes": axes} | (_colours(legend) if legend and values.dtype == np.uint8 else {})
        if size:
            metadata |= {"unit": "um"} | ({"spacing": size[0]} if len(size) == 3 else {})
            common["resolution"] = (1 / size[-1], 1 / size[-2])
        tifffile.imwrite(path, values, imagej=True, metadata=metadata, **common)
        return
    metadata = {"axes": axes}
    for axis, step in zip(crop.axes.upper(), size or (), strict=False):
        metadata |= {f"PhysicalSize{axis}": step, f"PhysicalSize{axis}Unit": _UM}
    tifffile.imwrite(path, values, ome=True, metadata=metadata, **common)


def _colours(legend: Legend) -> dict[str, Any]:
    """A table of colours for label values, as ImageJ keeps it; what is ignored is gray."""
    table = np.zeros((3, 256), dtype=np.uint8)
    for entry in legend.classes:
        table[:, entry.value] = [*bytes.fromhex((entry.color or "#ffffff")[1:])]
    table[:, legend.ignore] = 128
    return {"LUTs": [table], "min": 0.0, "max": 255.0}


def _features(legend: Legend, crop: CropVoxels) -> list[Any]:
    """Outlines of what is not background, section by section."""
    names = {entry.value: (entry.name, entry.color) for entry in legend.classes[1:]}
    background = legend.classes[0].value if legend.kind == "classes" else 0
    labels = crop.whole_labels(background)
    if legend.kind == "classes":
        names.pop(background, None)
    if labels.ndim == 2:
        return outlines_of(labels, names, legend.kind == "instances", None)
    return [feature for z, section in enumerate(labels) for feature in outlines_of(section, names, legend.kind == "instances", z)]


def _write_zarr(path: Path, legend: Legend, crop: CropVoxels) -> None:
    """OME-Zarr 0.4, which napari's readers of today know, with the labels inside."""
    root = zarr.open_group(path, mode="w-", zarr_format=2)
    side = _CHUNK[len(crop.axes)]
    channels = ["c"] if len(crop.image) > 1 else []
    image = crop.image if channels else crop.image[0]
    _write_array(root, image, (*(1 for _ in channels), *(min(side, size) for size in crop.spatial)))
    root.attrs["multiscales"] = [_multiscale(path.name, [*channels, *crop.axes], crop)]
    labels = root.create_group("labels")
    labels.attrs["labels"] = [legend.kind]
    own = labels.create_group(legend.kind)
    _write_array(own, crop.whole_labels(legend.ignore), tuple(min(side, size) for size in crop.spatial))
    own.attrs["multiscales"] = [_multiscale(legend.kind, crop.axes, crop)]
    shown = [(entry.value, entry.name, entry.color) for entry in legend.classes] if legend.kind == "classes" else []
    shown.append((legend.ignore, "not labelled", "#808080"))
    own.attrs["image-label"] = {
        "version": "0.4",
        "colors": [
            {"label-value": value, "rgba": [*bytes.fromhex((color or "#ffffff")[1:]), 0 if value == 0 else 255]}
            for value, _, color in shown
        ],
        "properties": [{"label-value": value, "name": name} for value, name, _ in shown],
        "source": {"image": "../../"},
    }


def _write_array(group: zarr.Group, values: NDArray[Any], chunks: tuple[int, ...]) -> None:
    separator: Any = {"name": "v2", "separator": "/"}
    array = group.create_array("0", shape=values.shape, dtype=values.dtype, chunks=chunks, chunk_key_encoding=separator)
    array[...] = values


def _multiscale(name: str, axes: Sequence[str], crop: CropVoxels) -> dict[str, Any]:
    unit = {"unit": "micrometer"} if crop.voxel_size else {}
    scale = crop.voxel_size or (1.0,) * len(crop.axes)
    return {
        "version": "0.4",
        "name": name,
        "axes": [{"name": axis, "type": "channel"} if axis == "c" else {"name": axis, "type": "space"} | unit for axis in axes],
        "datasets": [
            {
                "path": "0",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*(1.0 for _ in range(len(axes) - len(scale))), *scale]}
                ],
            }
        ],
    }
