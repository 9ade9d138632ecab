"""Small real things that many tests use: random networks as model packages, images, and where the sample data lie."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray

from unet_core import networks
from unet_core.model_package import FixedNormalisation, Head, LabelClass, ModelDescription, NetworkSpec, save_model

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
COLORS = ("#000000", "#ff0000", "#00ff00", "#0000ff")

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the sample images (../shared/data) are not here")


def random_network(seed: int = 0, network: str = "unet", **arguments: Any) -> torch.nn.Module:
    """A network with random weights and biases, and batch statistics that are not those of a fresh network."""
    torch.manual_seed(seed)
    built = networks.build(network, **arguments)
    for name, value in built.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.1)
        elif not value.any():
            torch.nn.init.normal_(value)
    for name, value in built.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(value, std=0.1)  # larger ones leave few units alive, and nothing to compare
        elif name.endswith("running_var"):
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return built.eval()


def describe(kind: str = "classes", voxel_size_um: Any = "unknown", network: str = "unet", **arguments: Any) -> ModelDescription:
    channels, classes = arguments["in_channels"], arguments["classes"]
    first = 0 if kind == "classes" else 1
    return ModelDescription(
        name="random",
        network=NetworkSpec(name=network, arguments=arguments),
        heads=(Head(kind=kind, name=kind, channels=tuple(range(classes))),),
        classes=tuple(
            LabelClass(value=first + number, name=f"class {number}", color=COLORS[number % len(COLORS)])
            for number in range(classes)
        ),
        input_channels=tuple(f"channel {number}" for number in range(channels)),
        voxel_size_um=voxel_size_um,
        normalisation=FixedNormalisation(offset=(100.0,) * channels, scale=(50.0,) * channels),
    )


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a model package with a random U-Net and gives its folder."""

    def make(
        kind: str = "classes", voxel_size_um: Any = "unknown", seed: int = 0, network: str = "unet", **arguments: Any
    ) -> Path:
        usual = {"base": 4, "levels": 3} if network == "unet" else {}
        settings = {"in_channels": 1, "classes": 3} | usual | arguments
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        save_model(folder, random_network(seed, network, **settings), describe(kind, voxel_size_um, network, **settings))
        return folder

    return make


@pytest.fixture
def make_image(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a random image with structure as a Zarr array and gives its folder."""

    def make(shape: tuple[int, ...], seed: int = 0, chunks: tuple[int, ...] | None = None) -> Path:
        folder = tmp_path / f"image-{len(list(tmp_path.iterdir()))}.zarr"
        zarr.create_array(folder, data=textured(shape, seed), chunks=chunks or tuple(max(1, size // 2) for size in shape))
        return folder

    return make


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real S3-compatible server on this machine, with one empty bucket, ``s3://bucket``; its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {"ENDPOINT_URL": f"http://{host}:{port}", "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    for name, value in (environment | {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for method, path in (("POST", "moto-api/reset"), ("PUT", "bucket")):  # servers of one process share their objects
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/{path}", method=method)).close()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str) -> str:
    return "s3://bucket"


@pytest.fixture
def serial_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, of a server that does one request after the other.

    moto looks whether an object exists, then writes it, with no lock around both: of 50 pairs of puts at once that ask for a new
    object, one or two are both told that they got it, which no real server does.
    """
    from moto.s3.responses import S3Response

    lock, put = threading.Lock(), S3Response.put_object

    def put_alone(*arguments: Any, **options: Any) -> Any:
        with lock:
            return put(*arguments, **options)

    monkeypatch.setattr(S3Response, "put_object", put_alone)
    return bucket


def textured(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """Noise with smooth blobs, so that labels have regions."""
    from scipy import ndimage

    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=shape), 3)
    values = 120 + 60 * smooth / smooth.std() + random.normal(0, 20, shape)
    return np.clip(values, 0, 255).astype(np.uint8)
