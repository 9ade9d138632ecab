"""What a user writes around the same network: a loop of forward passes over tiles, and dask's ``map_overlap``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tests.benchmarks.cases import CHANNELS_LAST, Work
from tests.benchmarks.meter import Meter
from unet_core.fold import fold
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.volumes import open_volume, read_reflected

Labels = NDArray[np.uint8]


def tile_loop(work: Work, meter: Meter, step: int, tuned: bool, precision: str = "float32") -> None:
    """Forward passes over tiles in turn.

    Args:
        step: voxels that a tile writes along each axis, a multiple of the network's stride.
        tuned: channels last, batch normalisation folded, reading and writing in threads.
        precision: of the arithmetic.
    """
    network, layout, dtype = _network(work, tuned, precision)
    meter.count(network)
    volume, tile = open_volume(work.image), _tile(work, step)
    grid, target, footprint = BlockGrid(work.case.shape, tile), work.create_labels(tile), work.package.footprint

    def read(box: Box) -> NDArray[np.float32]:
        return work.normalise(read_reflected(volume, footprint.read_box(box)))

    def write(box: Box, labels: Labels) -> None:
        target[box.slices()] = labels

    def label(image: NDArray[np.float32], box: Box) -> Labels:
        return _labels(network, image, layout, dtype)[Box.from_shape(box.shape).slices()]

    with meter, torch.inference_mode():
        boxes = list(grid.blocks())
        if not tuned:
            for box in boxes:
                write(box, label(read(box), box))
            return
        with ThreadPoolExecutor(2) as pool:
            ahead, written = pool.submit(read, boxes[0]), []
            for box, following in zip(boxes, [*boxes[1:], None], strict=True):
                image = ahead.result()
                if following:
                    ahead = pool.submit(read, following)
                written.append(pool.submit(write, box, label(image, box)))
            for future in written:
                future.result()


def map_overlap(work: Work, meter: Meter, step: int, tuned: bool, precision: str = "float32") -> None:
    """``dask.array.map_overlap`` with the network's margin, on dask's threads.

    Args:
        step: voxels of a chunk along each axis.
        tuned: channels last, batch normalisation folded, one dask thread a core and one torch thread in each.
        precision: of the arithmetic.
    """
    import dask
    import dask.array as da

    network, layout, dtype = _network(work, tuned, precision)
    meter.count(network)
    threads = torch.get_num_threads()
    if tuned:
        torch.set_num_threads(1)
    geometry, tile = work.package.footprint, _tile(work, step)
    depth = tuple(-(-max(a, b) // s) * s for a, b, s in zip(geometry.before, geometry.after, geometry.stride, strict=True))

    def predict(block: NDArray[Any]) -> Labels:
        inner = tuple(size - 2 * reach for size, reach in zip(block.shape, depth, strict=True))
        read = geometry.read_box(Box(depth, tuple(a + b for a, b in zip(depth, inner, strict=True))))
        # What a legal size asks for beyond the margin gives labels that are cut off.
        ends = [(0, max(0, stop - size)) for stop, size in zip(read.stop, block.shape, strict=True)]
        image = work.normalise(np.pad(block, ends, mode="edge")[read.slices()])
        with torch.inference_mode():
            labels = _labels(network, image[None], layout, dtype)
        result = np.zeros(block.shape, np.uint8)
        place = tuple(slice(reach, reach + size) for reach, size in zip(depth, inner, strict=True))
        result[place] = labels[tuple(slice(0, size) for size in inner)]
        return result

    target = work.create_labels(tile)
    with meter, dask.config.set(scheduler="threads", num_workers=threads if tuned else None):
        image = da.from_zarr(work.image).rechunk(tile)
        empty = np.zeros((0,) * len(depth), np.uint8)
        labels = da.map_overlap(predict, image, depth=depth, boundary="reflect", dtype=np.uint8, meta=empty)
        da.store(labels, target, lock=False)


def _network(work: Work, tuned: bool, precision: str) -> tuple[nn.Module, Any, torch.dtype]:
    layout: Any = CHANNELS_LAST[work.case.dims] if tuned else torch.preserve_format
    dtype = getattr(torch, precision)
    network = fold(work.package.network) if tuned else work.package.network
    return network.to(dtype=dtype).to(memory_format=layout), layout, dtype


def _labels(network: nn.Module, image: NDArray[np.float32], layout: Any, dtype: torch.dtype) -> Labels:
    """Labels (*output) of a normalised image (C, *input)."""
    batch = torch.from_numpy(image)[None].to(dtype=dtype).to(memory_format=layout)
    labels: Labels = network(batch)[0].argmax(0).to(torch.uint8).numpy()
    return labels


def _tile(work: Work, step: int) -> Shape:
    """A cube of ``step`` voxels, cut to the image in whole strides."""
    stride = work.package.footprint.stride
    return tuple(min(step, -(-size // s) * s) for size, s in zip(work.case.shape, stride, strict=True))
