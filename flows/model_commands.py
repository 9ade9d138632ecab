"""The commands about models and networks: ``unet models``, ``unet networks``, ``unet model``. Heavy imports wait until one is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cyclopts import App

from flows.options import Flag
from flows.printing import print_json, readable
from unet_core.wording import counted

if TYPE_CHECKING:
    from unet_core.model_description import ModelDescription
    from unet_core.model_package import ModelPackage

model_app = App(name="model", help="Look at one model, take it from other programs, or hand it to them.")


def models(*, json: Flag = False, debug: Flag = False) -> int:
    """List the models that are installed with this program."""
    from unet_core.model_package import bundled_models, read_description

    rows = []
    for name, folder in bundled_models().items():
        description, weights = read_description(str(folder))
        classes = ", ".join(entry.name for entry in description.classes)
        score = description.provenance.get("scores", {})
        rows.append(
            {
                "name": name,
                "channels": description.input_channels,
                "classes": classes,
                "bytes": weights.size_bytes,
                "scores": score,
            }
        )
        held_out = f"; held-out IoU {score['iou_pooled']} on {score['images']} images" if score else ""
        print(f"{name}: {counted(len(description.input_channels), 'channel')} -> {classes}{held_out}")
    if json:
        print_json(rows)
    return 0


def networks(*, json: Flag = False, debug: Flag = False) -> int:
    """Count the parameters of every network as published, beside what is published; and its margin and stride."""
    from dataclasses import asdict

    from unet_core.networks.published import count_all

    rows = count_all()
    print(f"{'network':15} {'configuration':34} {'channels':>9} {'counted':>13} {'published':>13}  margin, stride (unpadded)")
    for row in rows:
        geometry = f"{row.margin[0]}+{row.margin[1]}, {row.stride}"
        print(f"{row.network:15} {row.configuration:34} {row.channels:>9} {row.counted:>13,} {row.published:>13}  {geometry}")
        if row.remark:
            print(f"{'':15} {row.remark}")
    if json:
        print_json([asdict(row) for row in rows])
    return 0


def _exactness(package: ModelPackage) -> str:
    from unet_core.foreign.opaque_network import OpaqueNetwork

    if isinstance(package.network, OpaqueNetwork):
        return f"unproven: {package.network.why_unproven}"
    if package.whole_box:
        return f"no: layers {', '.join(package.whole_box)} look at the whole box; runs with --approximate"
    return "yes, padded: blocks read until padding shows no more" if package.footprint.is_padded else "yes, unpadded"


@model_app.command
def info(model: str, *, trust_model: Flag = False, json: Flag = False, debug: Flag = False) -> int:
    """Show a model's network, margin, legal sizes, cost, classes and where it comes from.

    Args:
        model: Folder of a model package, or the name of a bundled model.
        trust_model: Load TorchScript, which can carry code: only if you know where it comes from.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from math import prod

    from unet_core.blocks import can_stream, usual_shapes
    from unet_core.cost import operations
    from unet_core.geometry import Box
    from unet_core.model_package import load_model
    from unet_core.planning import MAX_AMPLIFICATION

    package = load_model(model, trust_model)
    description, geometry = package.description, package.footprint
    smallest = geometry.legal_shape((1,) * package.dims)
    streamed = can_stream(package)
    block = usual_shapes(package.dims, geometry.stride, streamed)[0]
    read = geometry.read_box(Box.from_shape(block)).shape
    amplification = prod(read) / prod(block)
    gflop = operations(package.traced, (len(description.input_channels), *read)) / 1e9 / prod(block)
    facts = {
        "name": description.name,
        "folder": package.url,
        "network": f"{description.network.name}: {readable([description.network.arguments])[0]}",
        "parameters": sum(parameter.numel() for parameter in package.network.parameters()),
        "dims": package.dims,
        "margin": f"{geometry.before} before, {geometry.after} after",
        "stride": geometry.stride,
        "phase": geometry.phase,
        "receptive field": tuple(a + b + 1 for a, b in zip(*geometry.support, strict=True)),
        "legal sizes": ", ".join(f"{size} + n x {step}" for size, step in zip(smallest, geometry.stride, strict=True)),
        "cost": f"{gflop:.3g} GFLOP per output voxel in blocks of {block}, which read {amplification:.2f} x what they write",
        "runs": "strip by strip" if streamed else "in whole blocks",
        "input channels": description.input_channels,
        "voxel size": description.voxel_size_um,
        "normalisation": description.normalisation.model_dump(mode="json"),
        "heads": [head.model_dump() for head in description.heads],
        "classes": [entry.model_dump() for entry in description.classes],
        "exact": _exactness(package),
        "sha256": package.sha256,
        "provenance": description.provenance,
    }
    if amplification > MAX_AMPLIFICATION:
        facts["warning"] = (
            f"even the largest usual block reads {amplification:.1f} times what it writes; use a network of smaller margin"
        )
    for name, value in (facts | _in_words(description)).items():
        for number, line in enumerate(readable(value)):
            print(f"{'' if number else name:>16}  {line}")
    if json:
        print_json(facts)
    return 0


def _in_words(description: ModelDescription) -> dict[str, object]:
    """What of a description reads better as sentences."""
    size = description.voxel_size_um
    stated = description.normalisation
    found: dict[str, object] = {
        "voxel size": "unknown" if isinstance(size, str) else " x ".join(f"{step:g}" for step in size) + " um",
        "classes": [f"{entry.value} {entry.name} ({entry.color})" for entry in description.classes],
        "heads": [f"{head.name} ({head.kind})" for head in description.heads],
    }
    if stated.kind == "fixed":
        numbers = zip(description.input_channels, stated.offset, stated.scale, strict=True)
        told = ", ".join(f"{name}: (value - {offset:.6g}) / {scale:.6g}" for name, offset, scale in numbers)
        return found | {"normalisation": f"fixed, {told}" + (f"; of {stated.dtype} intensities" if stated.dtype else "")}
    joint = " of all channels together" if stated.kind != "none" and stated.joint else ""
    told = {
        "image": lambda: f"percentiles {stated.low:g} and {stated.high:g}{joint} of the whole image become 0 and 1",
        "moments": lambda: f"mean and standard deviation{joint} of the whole image become 0 and 1",
        "none": lambda: "none, intensities as they are",
    }[stated.kind]()
    return found | {"normalisation": told}
