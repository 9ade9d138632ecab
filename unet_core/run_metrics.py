"""Numbers of a run for monitoring, as JSON and as Prometheus reads them from a text file. Knows no cluster and writes no file.

unet_units_wanted{stage="segment", output=.., project=.., owner=.., model=..} 400
unet_units_done_total{stage="segment", ..} 12
unet_phase_seconds_total{stage="segment", phase="predict", ..} 34.5
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from unet_core.ledger import Record
from unet_core.stages import SEGMENT_STAGE

SCHEMA = 1
State = Literal["running", "complete", "partial", "failed"]


@dataclass(frozen=True)
class Labels:
    """What tells one run from others."""

    output: str
    project: str
    owner: str
    model: str


@dataclass
class _Stage:
    wanted: int = 0
    done: int = 0
    voxels: int = 0
    stored_bytes: int = 0
    decoded_bytes: int = 0


class RunMetrics:
    """Counts of one run, of any threads; each number is of this run alone, except what is wanted.

    Args:
        labels: of all of them.
    """

    def __init__(self, labels: Labels) -> None:
        self._labels = vars(labels)
        self._lock = Lock()
        self._began = self._updated = time.time()
        self._stages: dict[str, _Stage] = {}
        self._seconds: dict[tuple[str, str], float] = {}
        self._failed, self._state = 0, "running"

    def expect(self, units: Mapping[str, int]) -> None:
        """Say how many more units of each stage there are to do."""
        with self._lock:
            for stage, count in units.items():
                self._stages.setdefault(stage, _Stage()).wanted += count

    def add(self, record: Record) -> None:
        """Count a unit that was committed."""
        with self._lock:
            stage = self._stages.setdefault(record.stage, _Stage())
            stage.done += 1
            stage.voxels += record.voxels
            stage.stored_bytes += sum(shard.size_bytes for shard in record.objects)
            stage.decoded_bytes += record.decoded_bytes
            for phase, seconds in record.seconds.items():
                self._seconds[record.stage, phase] = self._seconds.get((record.stage, phase), 0.0) + seconds
            self._updated = time.time()

    def end(self, state: State, failed: int) -> None:
        """Say how the run ended, and how many units failed."""
        with self._lock:
            self._state, self._failed, self._updated = state, failed, time.time()

    def as_json(self) -> bytes:
        with self._lock:
            stages: dict[str, Any] = {
                name: vars(stage)
                | {"seconds": {phase: round(value, 6) for (of, phase), value in self._seconds.items() if of == name}}
                for name, stage in self._stages.items()
            }
            found = {
                "schema": SCHEMA,
                **self._labels,
                "state": self._state,
                "began": round(self._began, 3),
                "updated": round(self._updated, 3),
                "failed": self._failed,
                "voxels_per_second": round(self._rate, 3),
                "stages": stages,
            }
        return json.dumps(found, indent=1, allow_nan=False).encode()

    def as_prometheus(self) -> bytes:
        """Text in the format of Prometheus, version 0.0.4."""
        registry = CollectorRegistry(auto_describe=False)
        with self._lock:
            registry.register(_Ready([*self._families()]))
        return generate_latest(registry)

    @property
    def _rate(self) -> float:
        """Voxels of the finest level a second, since the run began."""
        seconds = self._updated - self._began
        return self._stages.get(SEGMENT_STAGE, _Stage()).voxels / seconds if seconds > 0 else 0.0

    def _families(self) -> Iterator[Metric]:
        names, values = list(self._labels), list(self._labels.values())
        for field, text in (
            ("wanted", "units that were left to do when the run began"),
            ("done", "units committed by this run"),
            ("voxels", "voxels written"),
            ("stored_bytes", "bytes of stored objects"),
            ("decoded_bytes", "bytes of the image's voxels that were decoded"),
        ):
            name = f"unet_units_{field}" if field in ("wanted", "done") else f"unet_{field}"
            kind = GaugeMetricFamily if field == "wanted" else CounterMetricFamily
            family: Metric = kind(name, text.capitalize() + ".", labels=["stage", *names])
            for stage, counts in self._stages.items():
                family.add_metric([stage, *values], getattr(counts, field))  # type: ignore[attr-defined]
            yield family
        seconds = CounterMetricFamily(
            "unet_phase_seconds", "Seconds of all workers, by phase.", labels=["stage", "phase", *names]
        )
        for (stage, phase), value in self._seconds.items():
            seconds.add_metric([stage, phase, *values], value)
        yield seconds
        yield _one(CounterMetricFamily("unet_units_failed", "Units that failed.", labels=names), values, self._failed)
        rate = GaugeMetricFamily("unet_voxels_per_second", "Voxels of the finest level a second.", labels=names)
        yield _one(rate, values, self._rate)
        for name, text, moment in (("began", "began", self._began), ("updated", "last committed a unit", self._updated)):
            family = GaugeMetricFamily(f"unet_run_{name}_timestamp_seconds", f"When the run {text}.", labels=names)
            yield _one(family, values, moment)
        states = GaugeMetricFamily("unet_run_state", "1 for the state that the run is in.", labels=["state", *names])
        for state in ("running", "complete", "partial", "failed"):
            states.add_metric([state, *values], float(state == self._state))
        yield states


def _one(family: Any, values: list[str], value: float) -> Metric:
    family.add_metric(values, value)
    found: Metric = family
    return found


class _Ready:
    """A collector of what was collected."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
