"""What makes forward passes fast on CPUs: memory that is kept, and oneDNN for every convolution. Results stay within last bits."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # what glibc accepts on 64-bit machines
_KEPT_BYTES = 1 << 30
_PAD_BYTES = 64 << 20


@cache
def keep_freed_memory() -> bool:
    """Let this process reuse the memory of tensors up to 32 MiB instead of returning it to the system after each layer.

    Returned pages are mapped anew, zeroed one fault at a time, by the next layer: up to half of the time of a forward pass. The
    environment that dask gives its workers (``MALLOC_TRIM_THRESHOLD_=65536``) makes it worse; this overrules it.

    Returns:
        Whether the C library took the settings; one that is not glibc has none.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), (_M_TRIM_THRESHOLD, _KEPT_BYTES), (_M_TOP_PAD, _PAD_BYTES))
    return all([bool(mallopt(name, value)) for name, value in settings])


def use_onednn(network: nn.Module) -> None:
    """Let every 3D convolution of a float32 network on the CPU run in oneDNN; changed in place.

    On one thread torch takes a slower kernel of its own where batch x channels x depth x height is at most 20,480, as in thin strips
    (``use_mkldnn`` in torch's Convolution.cpp).
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return
    for module in network.modules():
        if type(module) is nn.Conv3d and module.padding_mode == "zeros" and module.padding != "same":
            module.forward = _onednn_forward(module)  # type: ignore[assignment, method-assign]


def _onednn_forward(module: nn.Conv3d) -> Callable[[Tensor], Tensor]:
    padding = (0, 0, 0) if isinstance(module.padding, str) else module.padding

    def forward(value: Tensor) -> Tensor:
        result: Tensor = torch.mkldnn_convolution(
            value, module.weight, module.bias, padding, module.stride, module.dilation, module.groups
        )
        return result

    return forward
