"""How objects get ids: the part of a plan that says it. Knows no image."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

InstanceMethod = Literal["components", "watershed", "boundary-watershed", "learnt-distance", "affinities"]
Sizes = tuple[Annotated[int, Field(ge=1)], ...]


class InstancesPlan(BaseModel):
    """How objects get ids. What only some methods have is left out of the JSON of others.

    Args:
        method: ``components``: connected voxels of one class. Others divide them by the hills of ``watershed``: the distance to what is
            no such voxel; ``boundary-watershed``: the probability of the class; ``learnt-distance``: what a distance head gave; or by
            the ``affinities`` of an affinities head.
        labels: path of the label image that they are made of.
        heights: path of the image that gives the hills, unless they are distances to what is another class; or the affinities.
        depth: that a hill rises at least, in the unit of the heights.
        reach: up to which distances are told apart, in the unit of ``scale``.
        ahead: voxels that a block looks further than it sees, for slopes; changes nothing but how many pieces are joined.
        halo: voxels along each axis that labels are read further than a block sees: for slopes, and for distances there; or for the
            tiles that it does not hold whole, and for the longest offset.
        tile: of affinities, shape of the boxes that are parted by themselves, a grid from the image's origin; decides the result.
        connectivity: how many axes a step to a neighbour may change.
        min_voxels: smaller ones are left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: InstanceMethod = "components"
    labels: str
    heights: str | None = None
    depth: float | None = Field(default=None, gt=0)
    reach: float | None = Field(default=None, gt=0)
    ahead: int | None = Field(default=None, ge=1, le=1 << 16)
    halo: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    tile: Sizes | None = None
    connectivity: int = Field(ge=1, le=3)
    min_voxels: int = Field(ge=1)

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        own = ("heights", "depth", "reach", "ahead", "halo", "tile")
        return {name: value for name, value in dump(self).items() if name not in own or value is not None}

    @model_validator(mode="after")
    def _fits_method(self) -> InstancesPlan:
        own = {
            "components": set(),
            "watershed": {"depth", "ahead", "halo", "reach"},
            "affinities": {"heights", "halo", "tile"},
        }.get(self.method, {"depth", "ahead", "halo", "heights"})
        for name in ("depth", "ahead", "halo", "reach", "heights", "tile"):
            if (getattr(self, name) is not None) != (name in own):
                text = f"instances by {self.method} should {'' if name in own else 'not '}have {name}"
                raise PydanticCustomError("plan", "{text}", {"text": text})
        if self.ahead is not None and self.halo is not None and min(self.halo) < self.ahead:
            raise PydanticCustomError(
                "plan", "{text}", {"text": f"a halo of {self.halo} voxels should hold the {self.ahead} of the slopes"}
            )
        return self
