"""The options of `unet segment` and `unet plan`, and the job that they describe. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from flows.addresses import check_address

if TYPE_CHECKING:
    from unet_core.job import SegmentationJob
    from unet_core.prices import Budget, Price


def _whole(type_: Any, tokens: Sequence[Any]) -> int:
    """cyclopts would round 1.5 to 2."""
    text = tokens[0].value
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(f"'{text[:60]}' is no whole number")
    return int(text)


def _time_point(type_: Any, tokens: Sequence[Any]) -> int:
    try:
        return _whole(type_, tokens)
    except ValueError as error:
        raise ValueError(f"{error}; one time point is taken at a time, 0 the first: run the command for each") from None


def _bounds(type_: Any, tokens: Sequence[Any]) -> str:
    """Checked with the cluster; a number alone has to be whole here too."""
    text = str(tokens[0].value)
    return text if ".." in text else str(_whole(type_, tokens))


def _cluster(type_: Any, cluster: str | None) -> None:
    check_address(cluster)


Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Whole = Annotated[int, Parameter(converter=_whole)]
WholeOrNone = Annotated[int | None, Parameter(converter=_whole)]
TimePoint = Annotated[int | None, Parameter(converter=_time_point)]
Bounds = Annotated[str, Parameter(converter=_bounds)]
Cluster = Annotated[str, Parameter(validator=_cluster)]  # refused before anything is imported that takes seconds
ClusterOrNone = Annotated[str | None, Parameter(validator=_cluster)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to segment with, which part, where, and how."""

    model: Annotated[tuple[str, ...], Parameter(negative="")]
    """Folder of a model package, or the name of a bundled model (see `unet models`); repeated: the mean of several models."""
    symmetries: Literal["none", "flips", "all"] = "none"
    """Average over the image turned in y and x: the 4 flips, or all 8 symmetries of the square."""
    trust_model: Flag = False
    """Load TorchScript, which can carry code: only if you know where the model comes from."""
    level: WholeOrNone = None
    """Resolution of a pyramid; chosen by voxel size unless told."""
    series: WholeOrNone = None
    """Which image of a file with several."""
    time: TimePoint = None
    """Which time point of an image with several, 0 the first; each gets an output of its own."""
    channels: str | None = None
    """Which channels the model sees, in its order, e.g. 0,1,2; all unless told."""
    voxel_size: str | None = None
    """Micrometres along (z,) y, x of the finest level, e.g. 0.5,0.5; z may be left out for a 2D model on a stack."""
    roi: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    """Only blocks that touch this box, e.g. 0:1024,512:2048; may be repeated, and name a file (.txt) with a box a line. Whole blocks are
    computed, so more than the box."""
    mask: str | None = None
    """Image of the same extent at any resolution (not 0 is foreground), or outlines (.geojson, as QuPath exports them): whole blocks without
    foreground are not computed and are background; inside the others nothing changes, also outside the mask."""
    tissue: Flag = False
    """Compute only blocks that hold tissue, found on a bright-field slide at a low resolution."""
    attach: str | None = None
    """Copy the labels of the complete run into the image's own labels too, under this name (ids: NAME-instances); OME-Zarr images only."""
    cluster: Cluster = "local"
    """serial, local, slurm, kubernetes, a file that says more of these (NAME.toml), or the address of a dask scheduler: tcp://127.0.0.1:PORT
    on this machine, tls://HOST:PORT elsewhere (with what `unet certificates` makes)."""
    workers: Bounds = "2"
    """Processes (of slurm: jobs, of kubernetes: pods) to start; 2..16 to start 2, and more while there is work for them."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the network's arithmetic; tf32 on GPUs only."""
    threads: Whole = 1
    """CPU threads of one forward pass."""
    probabilities: Literal["none", "uint8", "float32"] = "none"
    """Keep the probabilities too."""
    instances: Literal["none", "components", "watershed", "boundary-watershed", "learnt-distance", "affinities"] = "none"
    """Give every object an id of its own: connected voxels of one class, or these divided where they are narrow (watershed), where the
    class is improbable, or where a head of distances or affinities says so; the last three need --probabilities."""
    depth: float | None = None
    """Of watersheds: how much an object rises above the way to the next one: in micrometre where the voxel size is known (watershed; one
    voxel), in probability (boundary-watershed; 0.1), in -1..1 (learnt-distance; 0.2)."""
    reach: float | None = None
    """Of watershed: up to which distance to the background it looks; 64 voxels in 2D, 32 in 3D."""
    instances_of: str | None = None
    """The region whose objects get ids, of a model with several overlapping ones."""
    connectivity: Whole = 1
    """Of instances: how many axes a step to a neighbour may change."""
    min_voxels: Whole = 1
    """Smaller instances are left out."""
    no_measure: Flag = False
    """Write no table with a row for each instance."""
    block_shape: str | None = None
    """Voxels along (z,) y, x of a unit of work, e.g. 512,512."""
    approximate: Flag = False
    """Run networks whose layers look at the whole box (InstanceNorm, GroupNorm, global pooling), in tiles of fixed position."""
    resample: Flag = False
    """Read the image at the model's voxel size, resampled; the result then has that voxel size, and --roi counts its voxels."""
    strip: WholeOrNone = None
    """Rows (sections in 3D) that the network is fed at a time, a multiple of its stride; 0 for whole blocks at once."""
    tile_shape: str | None = None
    """Voxels along the model's axes (z,) y, x of the tiles of --approximate, e.g. 512,512."""
    ngff: Literal["0.5", "0.4"] = "0.5"
    """Version of OME-Zarr to write."""
    missing: Literal["error", "fill"] = "error"
    """What absent chunks mean."""
    cast: Flag = False
    """Allow intensities that float32 does not hold exactly."""
    memory_gib: float = 4.0
    """Memory that one worker may use for a block."""
    owner: str | None = None
    """Whose run it is, for `unet costs`; decides nothing."""
    project: str | None = None
    """That the run is for, likewise."""
    budget: str | None = None
    """What the output may take, earlier runs included, in worker hours ('2h', '90min') or money ('5 EUR'): no block is begun that would
    pass it, and the run ends with code 3; it goes on with a larger one."""
    price: str | None = None
    """What a worker costs for an hour, such as '2.50 EUR'; that of UNET_PRICE unless told."""
    metrics: str | None = None
    """File for the numbers of the run, .prom (as the text file collector of Prometheus reads it) or .json; replaced every few seconds."""
    flow: Flag = False
    """Run as a Prefect flow even when no Prefect API is configured."""
    json: Flag = False
    """Print a machine-readable last line."""
    debug: Flag = False
    """Show tracebacks."""

    def job(self, image: str, output: str) -> SegmentationJob:
        """The job that these options describe.

        Raises:
            JobError: naming the option that has no meaning.
        """
        from unet_core.job import make_job

        return make_job(image=image, output=output, **self.fields())

    def prices(self) -> tuple[Budget | None, Price | None]:
        """The budget, and the price of a worker, where they are given.

        Raises:
            JobError: if they cannot be read.
        """
        return prices_of(self.budget, self.price)

    def check_metrics(self) -> None:
        """Refuse what is no file for metrics.

        Raises:
            JobError: naming it.
        """
        if self.metrics is not None:
            from flows.metrics_file import check_metrics

            check_metrics(self.metrics)

    def fields(self) -> dict[str, Any]:
        """Fields of a job, but for image and output.

        Raises:
            JobError: likewise.
        """
        plain = (
            "symmetries",
            "trust_model",
            "resample",
            "strip",
            "level",
            "series",
            "time",
            "mask",
            "tissue",
            "attach",
            "device",
            "precision",
            "threads",
            "probabilities",
            "instances",
            "depth",
            "reach",
            "instances_of",
            "connectivity",
            "min_voxels",
            "ngff",
            "missing",
            "owner",
            "project",
        )
        return {
            "model": self.model[0],
            "further_models": self.model[1:],
            "channels": numbers_of("channels", self.channels, int),
            "voxel_size_um": numbers_of("voxel-size", self.voxel_size, float),
            "block_shape": numbers_of("block-shape", self.block_shape, int),
            "approximate": self.approximate,
            "tile_shape": numbers_of("tile-shape", self.tile_shape, int),
            "cast": self.cast,
            "measure": not self.no_measure,
            "memory_gib": self.memory_gib,
            "roi": boxes_of(self.roi),
            **{name: getattr(self, name) for name in plain},
        }


def prices_of(budget: str | None, price: str | None) -> tuple[Budget | None, Price | None]:
    """What they mean, with the price of the environment unless told.

    Raises:
        JobError: if they cannot be read.
    """
    from flows import settings
    from unet_core.prices import parse_budget, parse_price

    text = price or settings.price()
    found = parse_price(text) if text else None
    return (parse_budget(budget, found) if budget is not None else None), found


def boxes_of(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Boxes, those of files in their place; a line of a file that begins with # is none.

    Raises:
        JobError: if a file cannot be read, or holds none.
    """
    from unet_core.errors import JobError

    boxes: list[str] = []
    for text in texts:
        if not text.lower().endswith(".txt"):
            boxes.append(text)
            continue
        try:
            lines = Path(text).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError, RuntimeError) as error:
            raise JobError(
                f"--roi file {text} cannot be read ({getattr(error, 'strerror', None) or 'no text in UTF-8'})."
            ) from None
        found = ["".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise JobError(f"--roi file {text} holds no box; write one a line, such as 0:1024,512:2048.")
        boxes += found
    return tuple(boxes)


def numbers_of(option: str, text: str | None, kind: type) -> tuple[Any, ...] | None:
    from unet_core.errors import JobError

    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise JobError(f"--{option} is '{text[:60]}'; write numbers with commas, one an axis.") from None
