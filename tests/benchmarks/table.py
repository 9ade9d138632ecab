"""The contenders: what each runs, on how many cores, with which settings. Imports none of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.cases import CASES, Case

# What a careful user sets: glibc then keeps the memory of activations instead of returning it after each layer.
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "67108864"}
REFERENCE = "pipeline, serial"
PEAK, PLANNING, LABEL_WRITES = "convolution peak", "planning", "label writes"  # not contenders, but measured like them


@dataclass(frozen=True)
class Contender:
    """One row of the comparison.

    Args:
        run: ``module:attribute`` under ``tests.benchmarks``, called with the case's folder and a meter.
        cores: that its process may use, and threads of its libraries.
        settings: its further arguments; a dict from 2 and 3 is a setting that differs with the image's axes.
        precision: of the arithmetic.
        environment: variables set for it.
        peer: runs in the environment of the peers.
        padded: runs the padded form of the network, whose labels are not to equal those of the valid form.
        kinds: of the cases that it takes part in.
        usual: measured by ``make bench`` too, not by ``make bench-full`` alone.
    """

    run: str
    cores: int
    settings: dict[str, Any] = field(default_factory=dict)
    precision: str = "float32"
    environment: dict[str, str] = field(default_factory=dict)
    peer: bool = False
    padded: bool = False
    kinds: tuple[str, ...] = ("comparison",)
    usual: bool = True

    @property
    def is_probe(self) -> bool:
        return self.run.startswith("probes:")

    def arguments(self, case: Case) -> dict[str, Any]:
        """Of ``run``, for a case."""
        chosen = {key: value[case.dims] if isinstance(value, dict) else value for key, value in self.settings.items()}
        return chosen | ({"precision": self.precision} if self.precision != "float32" else {})


def _contenders() -> Iterator[tuple[str, Contender]]:
    own = ("comparison", "widths", "scaling")
    yield REFERENCE, Contender("pipeline:serial", 1, kinds=own)
    yield "pipeline, 2 workers", Contender("pipeline:on_workers", 2, {"workers": 2}, kinds=("comparison", "scaling"))
    yield "pipeline, whole blocks", Contender("pipeline:serial", 1, {"strip": 0})
    yield "pipeline, bfloat16", Contender("pipeline:serial", 1, precision="bfloat16")
    paper, best = {"step": {2: 384, 3: 40}, "tuned": False}, {"step": {2: 1024, 3: 64}, "tuned": True}
    for cores in (1, 2):
        more = f", {cores} threads" if cores > 1 else ""
        yield f"tile loop, paper-sized{more}", Contender("loops:tile_loop", cores, paper, usual=cores == 1)
        yield f"tile loop, tuned{more}", Contender("loops:tile_loop", cores, best, environment=KEPT_MEMORY)
        user = {"step": {2: 1024, 3: 64}, "tuned": False}
        yield f"map_overlap, as written{more}", Contender("loops:map_overlap", cores, user, usual=cores == 2)
        yield f"map_overlap, tuned{more}", Contender("loops:map_overlap", cores, best, environment=KEPT_MEMORY, usual=cores == 2)
    yield "tile loop, tuned, bfloat16", Contender("loops:tile_loop", 1, best, "bfloat16", KEPT_MEMORY)
    for cores in (1, 2):
        yield from _peers(cores)
    for precision, cores in (("float32", 1), ("float32", 2), ("bfloat16", 1)):
        yield (
            f"{PEAK}, {precision}, threads: {cores}",
            Contender("probes:convolution_peak", cores, precision=precision, environment=KEPT_MEMORY),
        )
    yield PLANNING, Contender("probes:planning", 1)
    yield LABEL_WRITES, Contender("probes:label_writes", 1)


def _peers(cores: int) -> Iterator[tuple[str, Contender]]:
    """Other tools, at the best settings that were found, and as their documentation shows them."""
    more = f", {cores} threads" if cores > 1 else ""
    kept, peer = {"environment": KEPT_MEMORY}, {"cores": cores, "peer": True, "padded": True}
    # Windows of half the image's side are fastest, except at overlap 0.25, where they come to lie as at 0.5.
    for overlap, side in ((0.25, 512), (0.5, 1024)):
        settings = {"overlap": overlap, "side": {2: side, 3: 64}, "batch": 1, "mode": "constant"}
        first = settings | {"side": {2: 512, 3: 64}, "channels_last": False}
        yield f"MONAI, overlap {overlap}{more}", _usual_if(overlap == 0.5 or cores == 2, "monai", settings, **kept, **peer)
        yield f"MONAI, overlap {overlap}, as written{more}", _usual_if(False, "monai", first, **peer)
    for mirroring in (False, True):
        name, settings = f"nnU-Net, {'with' if mirroring else 'without'} mirroring", {"mirroring": mirroring}
        best, first = settings | {"side": {2: 1024, 3: 64}}, settings | {"side": {2: 512, 3: 64}, "channels_last": False}
        yield f"{name}{more}", _usual_if(not mirroring or cores == 2, "nnunet", best, **kept, **peer)
        yield f"{name}, as written{more}", _usual_if(False, "nnunet", first, **peer)


def _usual_if(usual: bool, attribute: str, settings: dict[str, Any], **further: Any) -> Contender:
    return Contender(f"peers:{attribute}", settings=settings, usual=usual, **further)


CONTENDERS: dict[str, Contender] = dict(_contenders())


def contenders_of(case: Case, full: bool) -> list[str]:
    """Names of those that take part in a case."""
    return [name for name, entry in CONTENDERS.items() if case.kind in entry.kinds and (full or entry.usual)]


def key_of(case: str, contender: str) -> dict[str, Any]:
    """What a measurement must agree with to count: the case, the contender and its settings, as JSON gives them back."""
    entry, facts = CONTENDERS[contender], CASES[case].facts()
    settings = json.loads(json.dumps(entry.arguments(CASES[case]) | {"environment": entry.environment}))
    return {"case": case, "facts": facts, "contender": contender, "settings": settings, "cores": entry.cores}
