"""Parameters of the networks as their papers and released code have them, beside those of the networks here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from unet_core.footprint import footprint
from unet_core.networks import build


@dataclass(frozen=True)
class Published:
    """One configuration of a network.

    Args:
        network: key of ``NETWORKS``.
        configuration: in words.
        arguments: of the network.
        published: what the paper prints, "" where it prints nothing.
        expected: what the structure of paper or release gives when its tensors are counted.
        without: parts of names of parameters that are not counted.
        remark: why ``published`` and ``expected`` differ, or what is counted.
    """

    network: str
    configuration: str
    arguments: dict[str, Any]
    published: str
    expected: int
    without: tuple[str, ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class Counted:
    """A row of the table."""

    network: str
    configuration: str
    channels: str
    counted: int
    expected: int
    published: str
    margin: tuple[int, int]
    stride: int
    remark: str


_RONNEBERGER = "The paper prints no count; this is its figure 1, counted."
_NORM = ("norm",)

PUBLISHED = (
    Published("unet", "Ronneberger 2015", {"in_channels": 1, "classes": 2}, "", 31_030_658, (), _RONNEBERGER),
    Published("unet", "Ronneberger 2015, RGB", {"in_channels": 3, "classes": 2}, "", 31_031_810),
    Published(
        "unet3d", "Cicek 2016", {"in_channels": 3, "classes": 3}, "19,069,955", 19_069_955, _NORM,
        "Without the scale and shift of batch normalisation, 4,672 more; up-convolutions have no bias.",
    ),
    Published("vnet", "Milletari 2016, figure 2", {"in_channels": 1, "classes": 2}, "", 65_183_258, (), "One PReLU slope a channel."),
    Published(
        "vnet", "Milletari 2016, released", {"in_channels": 1, "classes": 2, "depths": "released"}, "", 61_982_682, (),
        "The released network has fewer convolutions a stage than the receptive fields of the paper's table 1 need.",
    ),
    Published(
        "fc_densenet", "Jegou 2016, 56", {"in_channels": 3, "classes": 11, "variant": "56"}, "1.5M", 1_376_795, (),
        "The paper's 1.5M is not what its structure gives, nor with the statistics of batch normalisation (1,397,963).",
    ),
    Published("fc_densenet", "Jegou 2016, 67", {"in_channels": 3, "classes": 11, "variant": "67"}, "3.5M", 3_463_243),
    Published(
        "fc_densenet", "Jegou 2016, 103", {"in_channels": 3, "classes": 11, "variant": "103"}, "9.4M", 9_322_091, (),
        "9.4M includes the mean and variance of batch normalisation (9,425,163).",
    ),
    Published(
        "attention_unet", "Oktay 2018, no gate", {"in_channels": 1, "classes": 4, "gates": 0}, "5.88M", 5_888_004, (),
        "The plain network with deep supervision of the released code.",
    ),
    Published("attention_unet", "Oktay 2018, one gate", {"in_channels": 1, "classes": 4, "gates": 1}, "6.40M", 6_214_151, (),
        "As the next: neither released configuration with gates gives the paper's 6.40M.",
    ),
    Published(
        "attention_unet", "Oktay 2018, two gates", {"in_channels": 1, "classes": 4, "gates": 2}, "6.40M", 6_473_322, (),
        "Neither released configuration with gates gives the paper's 6.40M.",
    ),
    Published(
        "fcn", "Long 2015, 32s", {"in_channels": 3, "classes": 21, "skips": 0}, "134M", 134_346_581, (),
        "Learned parameters; the fixed bilinear kernels are not counted.",
    ),
    Published("fcn", "Long 2015, 16s", {"in_channels": 3, "classes": 21, "skips": 1}, "", 134_357_354),
    Published("fcn", "Long 2015, 8s", {"in_channels": 3, "classes": 21, "skips": 2}, "", 134_362_751),
    Published(
        "resunet", "units of He 2016", {"in_channels": 3, "classes": 2}, "", 16_761_794, (),
        "A U-Net of pre-activation units has no published count; this is the default here.",
    ),
    Published(
        "zoo_unet", "UNet 2D Nuclei Broad", {"in_channels": 1, "classes": 1}, "", 449_489, (),
        "The tensors of the model package of bioimage.io, counted.",
    ),
)  # fmt: skip


def count_all() -> list[Counted]:
    """Every configuration built, without memory for its weights, its parameters counted and its geometry derived."""
    rows = []
    for entry in PUBLISHED:
        with torch.device("meta"):
            network = build(entry.network, **entry.arguments).eval()
        counted = sum(
            parameter.numel()
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and not any(part in name for part in entry.without)
        )
        geometry = footprint(network)
        rows.append(
            Counted(
                entry.network,
                entry.configuration,
                f"{entry.arguments['in_channels']} -> {entry.arguments['classes']}",
                counted,
                entry.expected,
                entry.published,
                (geometry.before[0], geometry.after[0]),
                geometry.stride[0],
                entry.remark,
            )
        )
    return rows
