"""The commands that take models from other programs or hand them over: ``unet model import..`` and ``export``."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from flows.options import Flag, Whole, WholeOrNone
from flows.printing import print_json, visible


def import_(
    source: str,
    out: str,
    *,
    trusted: Annotated[Flag, Parameter(name="--trust-model")] = False,
    output_kind: Literal["classes", "regions"] | None = None,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Take a model package of bioimage.io over, if its network is known and gives the package's own test output.

    Args:
        source: Folder with bioimageio.yaml, that file, or a .zip of the folder; nothing is downloaded.
        out: Where the model package goes.
        trusted: Run TorchScript of an unknown network as it is; it can do whatever a program can.
        output_kind: What the output is, if the package ends in no activation: one class a voxel, or regions that may overlap.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from unet_core.foreign.bioimageio import import_model

    done = import_model(source, out, trusted=trusted, output_kind=output_kind)
    description, geometry = done.description, done.footprint
    facts = {
        "model": out,
        "name": description.name,
        "license": description.provenance.get("license"),
        "weights": done.weights,
        "network": f"{description.network.name} {description.network.arguments}",
        "normalisation": description.normalisation.model_dump(mode="json"),
        "output": f"{description.heads[0].kind}: {', '.join(entry.name for entry in description.classes)}",
        "voxel size": description.voxel_size_um,
        "test output": f"reproduced to {done.difference.absolute:.2g}, {done.difference.relative:.2g} of its range",
        "margin": f"{geometry.before} before, {geometry.after} after",
        "stride": geometry.stride,
        "notes": done.notes,
    }
    for name, value in facts.items():
        if name != "notes" and value is not None:
            print(f"{name:>16}  {visible(value)}")
    for note in done.notes:
        print(f"{'note':>16}  {visible(note)}")
    if json:
        difference = {"absolute": done.difference.absolute, "of_range": done.difference.relative}
        print_json(facts | {"description": description.model_dump(mode="json"), "difference": difference})
    return 0


def import_torchscript(
    file: str,
    out: str,
    *,
    dims: Whole,
    channels: Whole,
    classes: str,
    output_kind: Literal["classes", "regions"],
    probabilities: Flag = False,
    normalisation: Literal["none", "image"] = "none",
    margin: WholeOrNone = None,
    stride: WholeOrNone = None,
    trusted: Annotated[Flag, Parameter(name="--trust-model")] = False,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Make a model package of a TorchScript file; its margin is measured by running it, or stated.

    Args:
        file: As torch.jit.save writes it: (1, channels, (z,) y, x) in, (1, classes, (z,) y, x) out.
        out: Where the model package goes.
        dims: 2 or 3.
        channels: Of the image.
        classes: Names of the output's channels, with commas; for the kind `classes` the background first.
        output_kind: classes (one a voxel, soft-max) or regions (may overlap, sigmoid).
        probabilities: The output has been through soft-max or sigmoid already.
        normalisation: none, or image: its percentiles 1 and 99.8 become 0 and 1. Others are written into model.json by hand.
        margin: Voxels that the network looks at on both sides; measured unless told.
        stride: Product of the network's poolings; goes with --margin.
        trusted: TorchScript can carry code; say so only if you know where the file comes from.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from unet_core.foreign.import_torchscript import import_torchscript as take_over

    geometry = take_over(
        file,
        out,
        dims=dims,
        channels=channels,
        classes=[name.strip() for name in classes.split(",")],
        output_kind=output_kind,
        probabilities=probabilities,
        normalisation=normalisation,
        margin=margin,
        stride=stride,
        trusted=trusted,
    )
    print(f"model written to {out}; margin {geometry.before} before, {geometry.after} after, stride {geometry.stride}")
    if json:
        print_json({"model": out, "before": geometry.before, "after": geometry.after, "stride": geometry.stride})
    return 0


def export(
    model: str,
    out: str,
    *,
    format: Literal["bioimageio", "onnx"],
    onnx: Flag = False,
    author: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    license: str | None = None,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Write a model in the format of bioimage.io or ONNX, and check it by running what was written.

    Args:
        model: Folder of a model package, or the name of a bundled model.
        out: New file or folder; a name that ends in .zip gives one file in the format of bioimage.io.
        format: bioimageio or onnx.
        onnx: Put the weights as ONNX into the bioimage.io package too.
        author: Name for the bioimage.io package; may be repeated. Those of the model's provenance unless told.
        license: SPDX identifier for the bioimage.io package, e.g. CC-BY-4.0. That of the model's provenance unless told.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from unet_core.errors import JobError
    from unet_core.foreign.export_bioimageio import export_bioimageio
    from unet_core.foreign.export_onnx import export_onnx
    from unet_core.foreign.exporting import refuse_unexportable
    from unet_core.model_package import load_model, model_url, read_description

    if format == "onnx" and (onnx or author or license):
        raise JobError("--onnx, --author and --license belong to --format bioimageio; an ONNX file has no place for them.")
    refuse_unexportable(read_description(model_url(model))[0], model)  # before trust is asked for
    package = load_model(model)
    written = (
        export_onnx(package, out)
        if format == "onnx"
        else export_bioimageio(package, out, onnx=onnx, authors=author, licence=license)
    )
    print(f"{format}: {written.path}, {sum(written.sizes.values()):,} bytes")
    for name, size in written.sizes.items():
        print(f"  {name}: {size:,} bytes")
    for check in written.checks:
        print(f"  checked: {check}")
    if json:
        print_json(
            {
                "format": format,
                "path": written.path,
                "bytes": written.sizes,
                "checks": [
                    {"what": check.what, "shape": check.shape, "difference": check.difference, "range": check.range}
                    for check in written.checks
                ],
            }
        )
    return 0
