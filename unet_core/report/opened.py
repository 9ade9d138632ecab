"""An output opened to be reported: plan, request, records of what is done, and the scene to draw. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from unet_core import inputs, ledger
from unet_core.errors import InputError, ResumeError, VolumeError
from unet_core.geometry import Box, Shape
from unet_core.inputs import Source
from unet_core.ledger import Request
from unet_core.pictures import Scene, ShownClass
from unet_core.pictures.scene import MOST_READ
from unet_core.plan import INSTANCES_PATH, Plan
from unet_core.report.recorded import Recorded
from unet_core.result import Result, open_result
from unet_core.resume import wanted_records, wanted_units
from unet_core.stages import INSTANCES_STAGE, JOIN_STAGE, TABLE_STAGE
from unet_core.store import Store, open_store
from unet_core.volumes import open_volume
from unet_core.volumes.chunk_cache import CACHE_BYTES, CachedVolume, ChunkCache


@dataclass(frozen=True)
class Opened:
    """An output with everything that its run recorded.

    Args:
        result: the output.
        store: of it.
        request: what was wanted.
        recorded: what the records of each stage say.
        image: URL of the image; where it lies now.
    """

    result: Result
    store: Store
    request: Request
    recorded: Mapping[str, Recorded]
    image: str

    @property
    def plan(self) -> Plan:
        return self.result.plan

    @property
    def segmented(self) -> Recorded:
        """What is done of the finest level."""
        return self.recorded[self.plan.stages[0].name]

    def is_done(self, stage: str) -> bool:
        """Whether all that is wanted of a stage is there."""
        done, wanted = self.result.status.stages.get(stage, (0, 1))
        return done == wanted

    def undone_blocks(self) -> Iterator[Box]:
        """Blocks of the finest level that are wanted and have no record."""
        stage = self.plan.stages[0]
        wanted = wanted_units(self.plan, self.request, stage)
        return (stage.grid.block(index) for index in wanted if not self.segmented.done[index])

    @property
    def has_ids(self) -> bool:
        """Whether ids of objects are there to be drawn."""
        return self.plan.instances is not None and self.is_done(INSTANCES_STAGE)

    @property
    def is_joined(self) -> bool:
        """Whether objects are known, and how large they are."""
        return self.plan.instances is not None and self.is_done(JOIN_STAGE)

    @property
    def has_table(self) -> bool:
        """Whether the table of objects is there."""
        return self.plan.measure is not None and self.is_done(TABLE_STAGE)

    @cached_property
    def source(self) -> Source:
        """The image, checked to be the one that was segmented.

        Raises:
            InputError: if it is not there, or is another one.
        """
        try:
            return inputs.reopen(self.image, self.plan)
        except ResumeError:
            raise InputError(
                f"Image {self.image} is not the one that {self.result.url} was made of; name that one, as the second argument."
            ) from None
        except VolumeError as error:
            raise InputError(
                f"The image of {self.result.url} cannot be opened: {error} If it lies elsewhere now, name it as the second argument."
            ) from error

    def scene(self, most_read: int = MOST_READ) -> Scene:
        """Image and labels, to be drawn; ``most_read`` as of ``Scene``."""
        plan, stage = self.plan, self.plan.stages[0]
        instances = plan.instances
        return Scene(
            axes=plan.spatial_axes,
            shape=plan.levels[0].shape,
            spacing=plan.scale,
            classes=shown_classes(plan),
            factors=self._factors(),
            open_labels=lambda path, level: self.result.volume(path, level),
            ids_path=INSTANCES_PATH if self.has_ids else None,
            ids_of=instances.labels if instances else None,
            sources=self._sources(),
            dtype=self.source.volume.dtype,
            done=self.segmented.done.reshape(stage.grid.counts),
            grid=stage.grid,
            most_read=most_read,
        )

    def _factors(self) -> tuple[Shape, ...]:
        """Of the levels that are whole."""
        factors = [self.plan.levels[0].factor]
        for number, level in enumerate(self.plan.levels[1:], 1):
            if not self.is_done(f"level-{number}"):
                break
            factors.append(tuple(before * step for before, step in zip(factors[-1], level.factor, strict=True)))
        return tuple(factors)

    def _sources(self) -> tuple[Source, ...]:
        """The image at the level that was segmented, and the coarser ones; what it lacks is drawn as its fill value."""
        planned, found = self.plan.input, []
        for entry in self.source.volume.levels[planned.level :] or (None,):
            volume = open_volume(
                self.image,
                planned.level if entry is None else entry.index,
                series=planned.series,
                time=planned.time,
                channels=planned.channels,
                missing="fill",
            )
            found.append(Source(CachedVolume(ChunkCache(volume, CACHE_BYTES)), self.plan.spatial_axes))
        return tuple(found)


def open_output(url: str, image: str | None = None) -> Opened:
    """Open an output, finished or not.

    Args:
        url: of the output.
        image: where its image lies now; where it lay when it was segmented unless told.

    Raises:
        InputError: if it is not an output of this program.
    """
    result, store = open_result(url), open_store(url)
    request = ledger.read_request(store)
    plan = result.plan
    recorded = {stage.name: Recorded.of(stage, wanted_records(store, plan, request, stage)) for stage in plan.stages}
    return Opened(result, store, request, recorded, image or request.image)


def shown_classes(plan: Plan) -> tuple[ShownClass, ...]:
    """The classes that are outlined: all but the background, each with the label image that it is in."""
    images = [image for image in plan.images if image.kind == "labels"]
    found = []
    for entry in plan.model.classes:
        image = next((image for image in images if image.label_value in (None, entry.value)), None)
        if image is not None and entry.value:
            found.append(ShownClass(entry.name, entry.value, entry.color, image.path))
    return tuple(found)
