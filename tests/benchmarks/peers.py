"""Other tools of the field around the same weights: MONAI's sliding window and nnU-Net's predictor. In an environment of their own.

Both return as many voxels as they are given, and blend windows: they get the padded form of the network. They read the whole
image, keep its logits in memory, and write the labels at the end.
"""

from __future__ import annotations

from typing import Any

import torch
import zarr
from torch import Tensor, nn

from tests.benchmarks.cases import CHANNELS_LAST, Work
from tests.benchmarks.meter import Meter

CHUNKS = {2: 512, 3: 64}


def monai(work: Work, meter: Meter, overlap: float, side: int, batch: int, mode: str, channels_last: bool = True) -> None:
    """``monai.inferers.sliding_window_inference``.

    Args:
        overlap: of neighbouring windows, as a fraction.
        side: of a window, in voxels; at most half of the image's shortest side, else there is nothing to blend.
        batch: windows of one pass.
        mode: of blending, ``constant`` or ``gaussian``.
        channels_last: of the network and its windows.
    """
    from monai.inferers import sliding_window_inference

    twin = work.padded_twin()
    meter.count(twin)
    network = _ChannelsLast(twin, CHANNELS_LAST[work.case.dims]) if channels_last else twin
    with meter, torch.inference_mode():
        logits = sliding_window_inference(_whole(work)[None], _window(work, side), batch, network, overlap=overlap, mode=mode)
        assert isinstance(logits, Tensor)
        _write(work, logits[0])


class _ChannelsLast(nn.Module):
    """A network that is handed channels first."""

    def __init__(self, network: nn.Module, layout: Any) -> None:
        super().__init__()
        self.network, self.layout = network.to(memory_format=layout), layout

    def forward(self, windows: Tensor) -> Tensor:
        logits: Tensor = self.network(windows.to(memory_format=self.layout))
        return logits


def nnunet(work: Work, meter: Meter, side: int, mirroring: bool, channels_last: bool = True) -> None:
    """``nnUNetPredictor.predict_sliding_window_return_logits`` with its default half-window steps and Gaussian blending.

    Args:
        side: of a window, in voxels; at most half of the image's shortest side.
        mirroring: average over all mirrored windows, as it does unless told otherwise.
        channels_last: of the network and its windows.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dims = work.case.dims
    twin = work.padded_twin()
    meter.count(twin)
    plans = PlansManager({"configurations": {"own": {"architecture": {}, "patch_size": list(_window(work, side))}}})
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_mirroring=mirroring,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        _ChannelsLast(twin, CHANNELS_LAST[dims]) if channels_last else twin,
        plans,
        plans.get_configuration("own"),
        None,
        {"labels": {"background": 0, "object": 1}},
        "none",
        tuple(range(dims)),
    )
    with meter:
        image = _whole(work)
        logits = predictor.predict_sliding_window_return_logits(image if dims == 3 else image[:, None])  # (C, Z, Y, X)
        assert isinstance(logits, Tensor)
        _write(work, logits if dims == 3 else logits[:, 0])


def _whole(work: Work) -> Tensor:
    """The normalised image (1, *spatial)."""
    return torch.from_numpy(work.normalise(zarr.open_array(work.image, mode="r")[...]))[None]


def _write(work: Work, logits: Tensor) -> None:
    chunks = (CHUNKS[work.case.dims],) * work.case.dims
    work.create_labels(chunks)[...] = logits.argmax(0).to(torch.uint8).numpy()


def _window(work: Work, side: int) -> tuple[int, ...]:
    stride = max(work.package.footprint.stride)
    return (min(side, min(work.case.shape) // 2 // stride * stride),) * work.case.dims
