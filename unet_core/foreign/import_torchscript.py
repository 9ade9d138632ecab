"""A TorchScript file of which nothing else is known, with what the user says of it, as a model package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from unet_core.errors import ModelPackageError
from unet_core.footprint import Footprint
from unet_core.foreign.describe import OutputKind, label_classes, one_head
from unet_core.foreign.new_package import check_new_package
from unet_core.foreign.opaque import package_torchscript
from unet_core.foreign.opaque_network import check_trusted
from unet_core.model_description import MAX_CHANNELS, TORCHSCRIPT, make_description
from unet_core.store import is_remote, local_path
from unet_core.wording import counted


def import_torchscript(
    file: str | Path,
    out: str | Path,
    *,
    dims: int,
    channels: int,
    classes: Sequence[str],
    output_kind: OutputKind,
    probabilities: bool = False,
    normalisation: Literal["none", "image"] = "none",
    margin: int | None = None,
    stride: int | None = None,
    trusted: bool,
) -> Footprint:
    """Make a model package of a file that ``torch.jit.save`` wrote; its geometry, which is measured or stated.

    Args:
        file: on this machine; takes (1, channels, (z,) y, x), gives (1, classes, (z,) y, x).
        out: folder or URL of the package; must not hold one.
        dims: 2 or 3.
        channels: of the image.
        classes: names of the output's channels; for the kind "classes" the background first.
        output_kind: one class a voxel, or regions that may overlap.
        probabilities: whether the output has been through soft-max or sigmoid already.
        normalisation: none, or percentiles of the image.
        margin: voxels on both sides that the network looks at; measured unless told; needs ``stride``.
        stride: product of its poolings.
        trusted: the user's word that the file, which can carry code, may be loaded.

    Raises:
        ModelPackageError: if the file is not trusted, or not what is said of it.
        FootprintError: if no geometry can be found for it.
    """
    if is_remote(str(file)):
        raise ModelPackageError(f"TorchScript {file} is remote; copy it to this machine, nothing is downloaded.")
    path = local_path(str(file))
    check_trusted(str(file), trusted)
    check_new_package(str(out))
    if dims not in (2, 3):
        raise ModelPackageError(f"TorchScript {path.name} is said to have {dims} spatial axes; networks here have 2 or 3.")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ModelPackageError(
            f"TorchScript {path.name} is said to take {counted(channels, 'channel')}; allowed are 1 to {MAX_CHANNELS}."
        )
    description = make_description(
        name=path.stem,
        network={"name": TORCHSCRIPT},
        heads=[one_head(output_kind, len(classes))],
        classes=label_classes(classes, output_kind),
        input_channels=[f"channel {number}" for number in range(channels)],
        normalisation={"kind": normalisation},
        provenance={"imported from": path.name},
    )
    return package_torchscript(
        path, out, description, dims=dims, probabilities=probabilities, margin=margin, stride=stride, trusted=trusted
    )
