"""A page from facts and pictures: one HTML file that needs nothing else and does nothing but show. Knows templates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from unet_core.errors import JobError
from unet_core.places import check_location, check_writable
from unet_core.report import charts, numbers
from unet_core.report.facts import Facts, StageFacts
from unet_core.store import is_remote, local_path, open_store

if TYPE_CHECKING:
    from jinja2 import Environment

    from unet_core.report.gallery import Gallery

MARK = b'<meta name="generator" content="unet-flows">'
_STAGES = {  # how stages are told, several in one row
    "segment": "segmentation",
    "level": "coarser levels",
    "parts": "objects",
    "join": "objects",
    "instances": "objects",
    "instances-level": "objects",
    "measure": "measurements",
    "table": "measurements",
}
_WRITING = ("segment", "level", "instances", "instances-level")  # stages that write voxels
_FEWEST_DRAWN = 10  # objects of which a histogram is worth its place
_PHASES = ("read", "predict", "encode", "write")  # of a unit; what has another name is its stage's own work


@dataclass(frozen=True)
class Row:
    """Stages that are told together: their units, voxels that they wrote, the time of all workers, and its share of each phase."""

    name: str
    done: int
    wanted: int
    voxels: int
    seconds: float
    shares: tuple[tuple[str, float], ...]


def render_report(facts: Facts, gallery: Gallery, written: str) -> str:
    """The page of an output.

    Args:
        facts: of it.
        gallery: of it.
        written: when, as text.
    """
    ndim = len(facts.shape)
    voxel_um = None if facts.voxel_size_um is None else math.prod(facts.voxel_size_um)
    sizes = [entry.size_um for entry in facts.classes if entry.size_um is not None]
    histograms = {
        entry.name: charts.size_chart(entry.histogram, entry.voxels.median, voxel_um, ndim, entry.color)
        for entry in facts.objects or ()
        if entry.histogram and entry.voxels and entry.count >= _FEWEST_DRAWN
    }
    return _environment().get_template("report.html").render(
        title=_last_part(facts.image["url"]),
        facts=facts,
        data=report_json(facts, gallery) | {"written": written},
        written=written,
        gallery=gallery,
        ndim=ndim,
        unit=numbers.size_unit(sizes, ndim) if sizes else None,
        rows=stage_rows(facts.stages),
        histograms=histograms,
        object_unit=_object_unit(facts),
    )  # fmt: skip


def report_json(facts: Facts, gallery: Gallery | None) -> dict[str, Any]:
    """What is on the page, for programs; no number is NaN or without bound."""
    places = {} if gallery is None else {"close_ups": gallery.as_json()}
    found: dict[str, Any] = finite(asdict(facts) | places)
    return found


def finite(value: Any) -> Any:
    """The same as JSON has it: lists for tuples, None for NaN and infinities."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def stage_rows(stages: tuple[StageFacts, ...]) -> list[Row]:
    """Stages of one purpose together."""
    rows = []
    for name in dict.fromkeys(_STAGES[stage.kind] for stage in stages):
        group = [stage for stage in stages if _STAGES[stage.kind] == name]
        seconds: dict[str, float] = {}
        for stage in group:
            for phase, value in stage.seconds.items():
                if phase != "wait":
                    known = phase if phase in _PHASES else "compute"
                    seconds[known] = seconds.get(known, 0.0) + value
        work = sum(stage.work_seconds for stage in group)
        shares = tuple((phase, seconds[phase] / work) for phase in (*_PHASES, "compute") if seconds.get(phase) and work)
        done, wanted = (sum(getattr(stage, field) for stage in group) for field in ("done", "wanted"))
        voxels = sum(stage.voxels for stage in group if stage.kind in _WRITING)
        rows.append(Row(name, done, wanted, voxels, work, shares))
    return rows


def check_place(to: str) -> None:
    """Refuse a place that takes no page, or holds what is none.

    Raises:
        InputError: naming it.
    """
    check_location("to", to)
    folder, name = _folder_and_name(to)
    if not name or (not is_remote(to) and local_path(to).is_dir()):
        raise JobError(f"--to is {to}, which is a folder; name a file in it, such as {to.rstrip('/')}/report.html.")
    check_writable(folder)
    try:
        existing = open_store(folder).get(name)
    except FileNotFoundError:
        return
    if MARK not in existing[:1000]:
        raise JobError(f"{to} exists and is no page of this program; give another --to.")


def now() -> str:
    """When a page is written, in words."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def write_page(page: str, to: str) -> None:
    """Store a page as a whole; what lies there has been checked.

    Args:
        page: HTML.
        to: path or URL of the file.
    """
    folder, name = _folder_and_name(to)
    open_store(folder).put(name, page.encode())


def _folder_and_name(to: str) -> tuple[str, str]:
    place = to if is_remote(to) or to.endswith("/") else str(local_path(to).absolute())
    folder, _, name = place.rpartition("/")
    return folder or "/", name


def _object_unit(facts: Facts) -> numbers.Unit:
    largest = [entry.size_um.median for entry in facts.objects or () if entry.size_um]
    return numbers.size_unit(largest, len(facts.shape)) if largest else numbers.VOXELS


def _last_part(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2] or url


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """Templates with everything that a file may have named escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("unet_core.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "indent": 1}
    found.filters |= {
        "count": numbers.count,
        "digits": numbers.digits,
        "brief": numbers.brief,
        "percent": numbers.percent,
        "duration": numbers.duration,
        "bytes": numbers.size_bytes,
        "score": numbers.score,
    }
    found.globals |= {"numbers": numbers, "charts": charts}
    return found


def render(template: str, **values: Any) -> str:
    """Any page of this package."""
    return _environment().get_template(template).render(**values)
