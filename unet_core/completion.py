"""The mark of completion: which job ended in it, and what came out, so that to know both nothing else is read; or that a run ended
without some blocks, and why. Looks at no voxel.

.unet/complete.json
.unet/failures.json
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from unet_core import ledger
from unet_core.errors import InputError
from unet_core.job import SegmentationJob
from unet_core.ledger import Request
from unet_core.plan import NUMERICS, InputPlan, Plan, canonical_json
from unet_core.store import Store, absolute, is_remote, local_path, open_store
from unet_core.volumes import open_volume
from unet_core.volumes.single_file import fingerprint

_PLACES = {"image", "output", "model", "further_models", "trust_model"}
_ONE_FILE = ({"content"}, {"size", "modified", "ends"})  # what the fingerprint of an image that is one file of this machine says
_ONE_OBJECT = {"size", "tag"}


@dataclass(frozen=True)
class Asked:
    """What a run was asked, told without planning it.

    Args:
        job: hash of all options but the places, with the content of the models.
        image_tag: of an image that is one file of this machine, its size and time of change when it was planned; None for others.
    """

    job: str
    image_tag: str | None


class Completion(BaseModel):
    """What the audit left when it passed.

    Args:
        plan: id of the plan.
        request: id of what was wanted.
        units: of all stages, that were audited.
        asked: see ``Asked.job``; None in marks of earlier releases.
        image_tag: see ``Asked``.
        label_voxels: voxels by class name; None likewise.
        instances: by class name, of a result that has ids.
        owner: as the request says.
        project: likewise.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_number: int = Field(default=1, alias="schema")
    plan: str
    request: str
    units: int
    asked: str | None = None
    image_tag: str | None = None
    label_voxels: dict[str, int] | None = None
    instances: dict[str, int] | None = None
    owner: str | None = None
    project: str | None = None


def asked_of(job: SegmentationJob, model_sha256: Sequence[str]) -> Asked:
    """What a job asks of these models."""
    options = job.model_dump(mode="json", exclude=_PLACES, exclude_defaults=True)
    hashed = hashlib.sha256(canonical_json([options, list(model_sha256), NUMERICS])).hexdigest()
    return Asked(hashed, _image_tag(job.image))


def _image_tag(url: str) -> str | None:
    if is_remote(url) or not os.path.isfile(local_path(url)):
        return None
    status = local_path(url).stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def write_completion(store: Store, completion: Completion) -> None:
    store.put(ledger.COMPLETE_KEY, canonical_json(completion.model_dump(mode="json", by_alias=True, exclude_none=True)))


def find_completion(store: Store, request: Request) -> Completion | None:
    """The mark of an output; None if there is none that counts for the request that the output holds now."""
    try:
        found = Completion.model_validate_json(store.get(ledger.COMPLETE_KEY))
    except (pydantic.ValidationError, OSError):
        return None
    return found if (found.plan, found.request) == (request.plan, request.id) else None


class Failures(BaseModel):
    """What a run that ended without some blocks leaves, until the next one begins.

    Args:
        request: key of the request, see ``Request.key``.
        failed: units without a record.
        failures: one sentence for each of the first of these.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_number: int = Field(default=1, alias="schema")
    request: str
    failed: int
    failures: tuple[str, ...]


def write_failures(store: Store, request: Request, failed: int, failures: Sequence[str]) -> None:
    """Say that a run has ended, and why it is not complete."""
    mark = Failures(request=request.key, failed=failed, failures=tuple(failures))
    store.put(ledger.FAILURES_KEY, canonical_json(mark.model_dump(mode="json", by_alias=True)))


def find_failures(store: Store, request: Request) -> Failures | None:
    """Why the last run of a request ended without some blocks; None if it did not, or one goes on."""
    try:
        found = Failures.model_validate_json(store.get(ledger.FAILURES_KEY))
    except (pydantic.ValidationError, OSError):
        return None
    return found if found.request == request.key else None


def completed_before(job: SegmentationJob, asked: Asked) -> Completion | None:
    """The mark that this very job left in its output, of the image as it is now; None if it has to be planned to know.

    Never said of a job with a mask or an attachment, which lie outside the output and may have changed.
    """
    if job.mask is not None or job.attach is not None:
        return None
    store = open_store(job.output)
    try:
        request = ledger.find_request(store)
        found = None if request is None else find_completion(store, request)
        if found is None or found.asked != asked.job:
            return None
        plan = ledger.find_plan(store)
        # Files that were unpacked together are often of one size and time, so that these tell a change of the same file alone.
        has_tag = request is not None and absolute(job.image) == request.image and asked.image_tag == found.image_tag
        return found if plan is not None and plan.id == found.plan and _is_same_image(job, plan, has_tag) else None
    except (InputError, OSError):  # what is wrong is told when it is planned
        return None


def _is_same_image(job: SegmentationJob, plan: Plan, has_tag: bool) -> bool:
    planned, remote = plan.input.fingerprint, is_remote(job.image)
    if not remote and set(planned) in _ONE_FILE:
        return (has_tag and os.path.isfile(local_path(job.image))) or fingerprint(local_path(job.image)) == planned
    if remote and set(planned) == _ONE_OBJECT:
        from unet_core.object_store import S3Store

        folder, _, name = job.image.rpartition("/")
        entry = S3Store(folder).head(name)
        return entry is not None and {"size": str(entry.size_bytes), "tag": entry.tag} == planned
    return _fingerprint(job, plan.input) == planned


def _fingerprint(job: SegmentationJob, planned: InputPlan) -> dict[str, str]:
    return open_volume(
        job.image,
        planned.level,
        series=planned.series,
        time=planned.time,
        channels=planned.channels,
        missing=planned.missing,
    ).fingerprint()
