"""How much memory one forward pass needs, from the network alone. Runs nothing."""

from __future__ import annotations

from math import prod

from unet_core.cost import Sizes
from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.geometry import Shape
from unet_core.operations import Trace
from unet_core.strip_memory import StripMemory

GIB = 1 << 30

# What the allocator and the convolution library keep beside the tensors, and what reading, readout and encoding need.
_OVERHEAD = 1.6
_STRIP_OVERHEAD = 1.6
_FIXED_BYTES = 88 << 20
_LEFTOVER = 2  # bytes for each weight: parts of the memory of loading that nothing else fits into
_INSTANCE_BYTES = 48  # a voxel: one of labels, twelve of parts and their scan, and four copies and a half of an id
_HILL_BYTES = (
    75  # a voxel: label, height, its way up and its hill, and of passes in one direction both sides, their owners and rank
)
_TILE_BYTES = 100  # an edge of a tile: its rank, twice, and the edge as the library sorts it
_BOND_BYTES = 28  # an edge between two fragments: which two, how many, and their strengths, before and after they are sorted
_FRAGMENT_BYTES = 9  # a voxel: label, number of its fragment, and what was read of one while another is
_DISTANCE_BYTES = 24  # a voxel: label, and squared distance along the axes, forwards and backwards
_MEASURE_BYTES = 28  # a voxel: ids twice, and what tells the borders of objects
_MEASURE_VOXELS = (
    16  # of an object, on the average, at least; where smaller ones fill a block, more memory is needed than planned
)
_MEASURE_FIXED_BYTES = 368 << 20  # a group of rows of the table, or the voxels of a band
_LOADING_COPIES = 2  # of the weights: the file and the network on its device


def peak_bytes(traced: Trace | OpaqueNetwork, input_shape: Shape, element_bytes: int = 4) -> int:
    """Bytes that are alive at once at the worst step of a forward pass on one input of ``input_shape`` (C, *spatial).

    A value lives from the step that makes it to the last that reads it, so skip connections wait for the decoder.
    """
    if isinstance(traced, OpaqueNetwork):
        live = int(traced.observe(input_shape).live_bytes / 4)
        return _bytes(live, _OVERHEAD, sum(value.numel() for value in traced.parameters()), element_bytes)
    sizes = Sizes(traced, input_shape[0])
    last_use = {name: position for position, step in enumerate(traced.steps) for name in step.inputs}
    alive = peak = sizes.elements(traced.source, input_shape[1:])
    for position, step in enumerate(traced.steps):
        alive += sizes.elements(step.name, input_shape[1:])
        peak = max(peak, alive)
        alive -= sum(sizes.elements(name, input_shape[1:]) for name in set(step.inputs) if last_use[name] == position)
    return _bytes(peak, _OVERHEAD, sum(value.numel() for value in traced.graph.parameters()), element_bytes)


def strip_bytes(memory: StripMemory, input_shape: Shape, strip: int, element_bytes: int = 4) -> int:
    """Bytes that are alive at once while a network is fed strips of ``strip`` rows of an input of ``input_shape`` (spatial)."""
    return _bytes(memory.peak(input_shape, strip), _STRIP_OVERHEAD, memory.parameters, element_bytes)


def weight_bytes(parameters: int, element_bytes: int = 4) -> int:
    """Bytes of the weights of a network that waits while another one runs, with what loading it leaves behind."""
    return parameters * (element_bytes + _LEFTOVER)


def instance_bytes(block_shape: Shape) -> int:
    """Bytes that a block of instances needs: labels, numbered parts, ids, and what encoding holds of these."""
    return prod(block_shape) * _INSTANCE_BYTES + _FIXED_BYTES


def hills_bytes(land_shape: Shape, read_shape: Shape, steps: int, stored_bytes: int) -> int:
    """Bytes that the hills of a block need, even of noise, where nearly every pair of neighbours is a pass.

    Args:
        land_shape: of what is climbed.
        read_shape: of what labels are read of, for distances.
        steps: to half of a voxel's neighbours.
        stored_bytes: a voxel, of the image that the heights are read from.
    """
    climbing = prod(land_shape) * (_HILL_BYTES + 4 * steps + stored_bytes)
    return max(climbing, prod(read_shape) * _DISTANCE_BYTES) + _FIXED_BYTES


def fragments_bytes(block_shape: Shape, land_shape: Shape, tile: Shape, offsets: int, stored_bytes: int) -> int:
    """Bytes that the fragments of a block need, even of noise, where nearly every edge lies between two.

    Args:
        block_shape: in voxels.
        land_shape: of the whole tiles that are read for it.
        tile: that is parted at a time.
        offsets: of the affinities.
        stored_bytes: a voxel, of all affinities.
    """
    parting = prod(tile) * _TILE_BYTES * (offsets + 1)
    bonding = prod(block_shape) * _BOND_BYTES * (offsets + 2)
    return max(parting, bonding) + prod(land_shape) * (_FRAGMENT_BYTES + 2 * stored_bytes) + _FIXED_BYTES


def measure_bytes(block_shape: Shape, image_bytes: int, stored_bytes: int, channels: int, classes: int) -> int:
    """Bytes that measuring a block, or writing the table of all, needs: what is read, and three times the sums of many small objects.

    Args:
        block_shape: in voxels.
        image_bytes: of a voxel of the image, all channels.
        stored_bytes: of a voxel of the labels and probabilities.
        channels: of the image.
        classes: of the model.
    """
    pieces = 4 if image_bytes <= 2 * channels else 12  # of smallest, largest, sum and sum of squares: floats are added in pieces
    sums = 8 * (20 + pieces * channels + 5 * classes)
    each = _MEASURE_BYTES + 2 * image_bytes + stored_bytes + classes + 3 * sums // _MEASURE_VOXELS
    return prod(block_shape) * each + _MEASURE_FIXED_BYTES


def _bytes(live: int, overhead: float, parameters: int, element_bytes: int) -> int:
    """Of a process with the network: of so many live elements, or of loading its float32 weights, which leaves its memory behind."""
    running = int(live * element_bytes * overhead) + weight_bytes(parameters, element_bytes)
    return max(running, _LOADING_COPIES * 4 * parameters) + _FIXED_BYTES
