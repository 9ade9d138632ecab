"""How large blocks are, and whether the network runs through them strip by strip: as large as memory allows. Reads no voxel."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import ceil, prod

from unet_core.block_shapes import check_block_shape, fit_block_shape
from unet_core.cost import operations
from unet_core.ensemble import Ensemble
from unet_core.errors import FootprintError, GridError, MemoryBudgetError
from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.inputs import Source
from unet_core.instances_plan import InstancesPlan
from unet_core.job import SegmentationJob
from unet_core.memory import GIB, fragments_bytes, hills_bytes, instance_bytes, measure_bytes
from unet_core.model_package import ModelPackage
from unet_core.pass_memory import PassMemory
from unet_core.passes import read_box_of
from unet_core.plan import ITEM_BYTES, ImagePlan
from unet_core.postprocess.neighbours import steps_forward
from unet_core.schedule import check_streams
from unet_core.sections import choose_depth, thinner
from unet_core.streaming import AXIS
from unet_core.volumes.chunk_cache import CACHE_BYTES, cache_bytes, reading_bytes

# Tried in this order until one fits the memory and leaves enough blocks. In strips, length costs no memory.
BLOCK_SIZES = {2: (1024, 512, 256, 128), 3: (128, 96, 64, 32)}
STREAMED_SIZES = {
    2: ((4096, 2048), (2048, 2048), (2048, 1024), (1024, 1024), (1024, 512), (512, 512), (512, 256), (256, 256), (128, 128)),
    3: (
        (512, 256, 256),
        (256, 256, 256),
        (256, 256, 128),
        (256, 128, 128),
        (128, 128, 128),
        (128, 128, 64),
        (128, 64, 64),
        (64, 64, 64),
        (64, 32, 32),
        (32, 32, 32),
    ),
}
# Rows or sections, tried in this order. A GPU wants work for all of its cores at once, a CPU what stays in its cache.
STRIPS = {"cpu": {2: (128, 64, 32), 3: (8,)}, "cuda": {2: (1024, 512, 256, 128, 64), 3: (64, 32, 16, 8)}}
FEWEST_BLOCKS = 8  # that an image is cut into, where it is large enough, so that several workers have something to do
# Operations over those of one pass that this may cost, and that two blocks may cost where there would be one.
MAX_REDUNDANCY, MAX_FOR_TWO = {2: 1.05, 3: 1.25}, {2: 1.1, 3: 1.5}
NEARLY = 1.05  # over the cheapest blocks, where none stay below that
MOST_DECODED = 8  # times that a chunk of a stack is decoded, above which the user is warned
# Of a finished block: its values, the shards that hold them, what encoding needs, and meanwhile the next one's values; one copy
# more, since what a late commit gives back is not at once used again.
COPIES = 5


def choose_blocks(
    job: SegmentationJob,
    ensemble: Ensemble,
    source: Source,
    images: tuple[ImagePlan, ...],
    device: str,
    instances: InstancesPlan | None = None,
) -> tuple[Shape, int | None, int]:
    """Shape of the blocks, rows of a strip (None for whole blocks at once), and the bytes that a worker needs for one.

    Raises:
        GridError: if a size that the user chose is not a multiple of the network's stride.
        FootprintError: if the user asks for strips, and a network has a layer that cannot run in them.
        MemoryBudgetError: if nothing fits, with both numbers.
    """
    image_shape, dims = source.spatial_shape, ensemble.dims
    stride = (1,) * (len(image_shape) - dims) + ensemble.stride
    strips = _strips(job, ensemble, device.partition(":")[0])
    if job.block_shape is not None:
        check_block_shape(job.block_shape, stride)
        shapes = [fit_block_shape(job.block_shape, image_shape, stride)]
    else:
        shapes = stacked_shapes(usual_shapes(dims, ensemble.stride, streamed=bool(strips)), image_shape, ensemble)
        shapes = shapes[_first_choice(ensemble, shapes, image_shape) :]
        if len(image_shape) > dims:
            shapes = [thin for shape in shapes for thin in thinner(shape)]
    allowed = int(job.memory_gib * GIB)
    needed, memory = 0, PassMemory(ensemble, image_shape[-dims:], job.precision)
    for shape in shapes:
        read = read_box_of(ensemble.passes, Box.from_shape(shape), image_shape).shape
        for strip in strips or (None,):
            needed = _needed(memory, source, images, shape, read, strip)
            if instances is not None:
                needed = max(needed, objects_bytes(memory, source, images, shape, read, instances, job.measure))
            if needed <= allowed:
                return shape, strip, needed
    raise MemoryBudgetError(
        f"A block of {shape} voxels (reading {read}) needs {needed / GIB:.1f} GiB, the worker may use {job.memory_gib:.1f} GiB; "
        "use a smaller --block-shape, or allow more with --memory-gib."
    )


def usual_shapes(dims: int, stride: Shape, streamed: bool) -> list[Shape]:
    """Block shapes to try for networks of a stride, the largest first, in whole strides."""
    usual = STREAMED_SIZES[dims] if streamed else tuple((size,) * dims for size in BLOCK_SIZES[dims])
    return [tuple(-(-size // step) * step for size, step in zip(shape, stride, strict=True)) for shape in usual]


def stacked_shapes(usual: list[Shape], image_shape: Shape, ensemble: Ensemble) -> list[Shape]:
    """Usual block shapes cut down to the image, each once; in a stack, with as many sections as make a block of usual size."""
    dims = ensemble.dims
    fitted = dict.fromkeys(fit_block_shape(shape, image_shape[-dims:], ensemble.stride) for shape in usual)
    if len(image_shape) == dims:
        return list(fitted)
    columns = (BlockGrid(image_shape[-dims:], shape).block_count for shape in fitted)
    return [
        (choose_depth(shape, image_shape[0], count, FEWEST_BLOCKS), *shape) for shape, count in zip(fitted, columns, strict=True)
    ]


def voxel_bytes(images: tuple[ImagePlan, ...]) -> int:
    """Bytes that a finished block of these images needs for each voxel."""
    return ceil(COPIES * sum(ITEM_BYTES[image.dtype] * (image.channels or 1) for image in images))


def _strips(job: SegmentationJob, ensemble: Ensemble, device: str) -> tuple[int, ...]:
    """Rows of a strip to try, in this order; none if a network runs in whole blocks only, since a plan has one way for all."""
    stride = ensemble.stride[AXIS]
    if job.strip == 0 or (job.strip is None and not all(can_stream(package) for package in ensemble.packages)):
        return ()
    if job.strip is None:
        return tuple(dict.fromkeys(-(-rows // stride) * stride for rows in STRIPS[device][ensemble.dims]))
    for package in ensemble.packages:
        if isinstance(package.traced, OpaqueNetwork):
            raise FootprintError(
                f"Model '{package.description.name}' is TorchScript, whose layers are not known; --strip 0 runs whole blocks."
            )
        check_streams(package.traced)
    if job.strip % stride:
        nearest = -(-job.strip // stride) * stride
        raise GridError(f"A strip of {job.strip} rows is not a multiple of the network's stride {stride}; use {nearest}.")
    return (job.strip,)


def can_stream(package: ModelPackage) -> bool:
    """Whether the network can run strip by strip."""
    if isinstance(package.traced, OpaqueNetwork):
        return False
    try:
        check_streams(package.traced)
    except FootprintError:
        return False
    return True


def _first_choice(ensemble: Ensemble, shapes: list[Shape], image_shape: Shape) -> int:
    """Which of some block shapes, the largest first, to take if memory allows: the first that leaves enough blocks, of those that
    compute hardly more than one pass over the image would."""
    dims, counts = ensemble.dims, [BlockGrid(image_shape, shape).block_count for shape in shapes]
    seen = image_shape[-dims:]  # all sections of a stack cost the same
    costs = [_operations(ensemble, shape[-dims:], seen) for shape in shapes]
    one = _operations(ensemble, fit_block_shape(seen, seen, ensemble.stride), seen)
    most = MAX_REDUNDANCY[dims] * one
    cheap = [index for index, cost in enumerate(costs) if cost <= (most if min(costs) <= most else NEARLY * min(costs))]
    chosen = next((index for index in cheap if counts[index] >= FEWEST_BLOCKS), cheap[-1])
    if counts[chosen] > 1:
        return chosen
    two = next((index for index, count in enumerate(counts) if count > 1), chosen)
    return two if costs[two] <= MAX_FOR_TWO[dims] * one else chosen


def _operations(ensemble: Ensemble, block_shape: Shape, image_shape: Shape) -> int:
    """Of all passes over all blocks of an image; blocks at its end are smaller, and compute more for each voxel."""
    sides = [
        [(side, count) for side, count in ((block, size // block), (size % block, 1)) if side and count]
        for block, size in zip(block_shape, image_shape, strict=True)
    ]
    reads: Counter[tuple[int, Shape]] = Counter()
    for blocks in product(*sides):
        box = Box.from_shape(tuple(side for side, _ in blocks))
        for step in ensemble.passes:
            reads[step.model, step.turned_read_box(box, image_shape).shape] += prod(count for _, count in blocks)
    return sum(
        count * operations(ensemble.packages[model].traced, (ensemble.input_channels, *read))
        for (model, read), count in reads.items()
    )


def _needed(
    memory: PassMemory, source: Source, images: tuple[ImagePlan, ...], shape: Shape, read: Shape, strip: int | None
) -> int:
    # Freed activations stay with the process, so that what comes before and after the network adds to it.
    beside = prod(shape) * voxel_bytes(images) + memory.ensemble.input_channels * prod(read) * source.volume.dtype.itemsize
    beside += input_bytes(source, read)
    seen = shape[-memory.ensemble.dims :]
    return memory.network_bytes(seen, strip) + memory.readout_bytes(images, seen, strip) + beside


def objects_bytes(
    memory: PassMemory,
    source: Source,
    images: tuple[ImagePlan, ...],
    shape: Shape,
    read: Shape,
    instances: InstancesPlan,
    measured: bool,
) -> int:
    """Of the stages that number and measure the objects of a block, in a process that keeps its networks, and chunks of the image."""
    needed = instance_bytes(shape)
    if instances.ahead is not None and instances.halo is not None:
        read_around = tuple(size + 2 * more + 1 for size, more in zip(shape, instances.halo, strict=True))
        land = tuple(size + 2 * instances.ahead + 1 for size in shape)
        steps = len(steps_forward(len(shape), instances.connectivity))
        of_heights = sum(ITEM_BYTES[image.dtype] * (image.channels or 1) for image in images if image.path == instances.heights)
        needed = max(needed, hills_bytes(land, read_around, steps, of_heights))
    if instances.tile is not None and instances.halo is not None:
        image = next(image for image in images if image.path == instances.heights)
        # A block of whole tiles reads those that the longest offset reaches; another one may hold a piece of one tile more.
        land = tuple(
            size + (far + 1 if size % step else -(-(far + 1 - step) // step) * step)
            for size, far, step in zip(shape, instances.halo, instances.tile, strict=True)
        )
        channels = image.channels or 1
        needed = max(needed, fragments_bytes(shape, land, instances.tile, channels, ITEM_BYTES[image.dtype] * channels))
    if measured:
        seen = [image for image in images if image.kind in ("labels", "probabilities")]
        stored = sum(ITEM_BYTES[image.dtype] * (image.channels or 1) for image in seen)
        image_bytes, classes = source.channel_count * source.volume.dtype.itemsize, len(memory.ensemble.description.classes)
        needed = max(needed, measure_bytes(shape, image_bytes, stored, source.channel_count, classes))
    return needed + memory.waiting_bytes + cache_bytes(source.volume, read)


def input_bytes(source: Source, read: Shape) -> int:
    """What reading a block ahead needs while another one computes, and the chunks that are kept for the blocks that follow."""
    return reading_bytes(source.volume, read) + cache_bytes(source.volume, read)


def deep_chunks(source: Source, block_shape: Shape) -> list[str]:
    """A warning if the blocks of a stack are so much thinner than the image's chunks that these are decoded again and again."""
    volume, depth = source.volume, block_shape[0]
    sections = min(volume.chunk_shape[0], source.spatial_shape[0])
    layer = sections * prod(source.spatial_shape[1:]) * source.channel_count * volume.dtype.itemsize
    if volume.layout.is_mapped or layer <= CACHE_BYTES or sections < MOST_DECODED * depth:
        return []
    return [
        f"Chunks of the image hold {sections} sections, blocks {depth}, so that each chunk is decoded {sections // depth} times; blocks "
        f"of more sections (--block-shape {sections},512,512) decode less, and compute more twice."
    ]
