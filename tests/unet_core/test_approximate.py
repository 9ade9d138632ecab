"""Networks that look at the whole box: refused by name, or run in tiles whose result depends on their position alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from torch import nn

from flows.clusters import open_cluster
from flows.run import segment_on_cluster
from tests.conftest import random_network, textured
from tests.flows.test_cli import call
from tests.unet_core.foreign.test_opaque import SAME, package
from tests.unet_core.test_segment import digest
from unet_core import ledger, worker
from unet_core.errors import FootprintError, GridError, JobError, ResumeError, VolumeError
from unet_core.footprint import footprint
from unet_core.geometry import Box
from unet_core.job import make_job
from unet_core.model_package import load_model
from unet_core.networks import NETWORKS
from unet_core.networks.layers import BATCH_NORM, CONVOLUTION, TRANSPOSED, crop_like
from unet_core.plan import Plan
from unet_core.planning import resolve
from unet_core.rules import trace
from unet_core.segment import plan_run, run
from unet_core.store import open_store
from unet_core.tiles import tiles_of

Maker = Callable[..., Path]
INSTANCE_NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
GLOBAL_POOL: dict[int, Any] = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
KINDS = ("instance", "group", "batch", "squeeze", "mean")


class WholeBox(nn.Module):
    """Two resolutions, and between them one layer of each kind that looks at the whole box; ``norm="none"`` looks at none."""

    def __init__(self, in_channels: int, classes: int, norm: str, dims: int = 2, padding: str = "valid", base: int = 4) -> None:
        super().__init__()
        convolution = CONVOLUTION[dims]
        self.first = convolution(in_channels, base, 3, padding=padding)
        norms = {
            "instance": lambda: INSTANCE_NORM[dims](base, affine=True),
            "group": lambda: nn.GroupNorm(2, base),
            "batch": lambda: BATCH_NORM[dims](base, track_running_stats=False),
            "tracked": lambda: INSTANCE_NORM[dims](base, track_running_stats=True),
        }
        self.norm = norms.get(norm, nn.Identity)()
        self.pool = GLOBAL_POOL[dims](1) if norm == "squeeze" else None
        self.gate = convolution(base, base, 1)
        self.means, self.dims = norm == "mean", dims
        self.down = convolution(base, base, 2, stride=2)
        self.deep = convolution(base, base, 3, padding=padding)
        self.up = TRANSPOSED[dims](base, base, 2, stride=2)
        self.head = convolution(base, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = torch.relu(self.norm(self.first(image)))
        if self.pool is not None:
            fine = fine * torch.sigmoid(self.gate(torch.relu(self.pool(fine))))
        if self.means:
            fine = fine + self.gate(fine.mean(dim=tuple(range(2, 2 + self.dims)), keepdim=True))
        coarse = self.up(torch.relu(self.deep(self.down(fine))))
        logits: torch.Tensor = self.head(coarse + crop_like(fine, coarse))
        return logits


def add_network() -> None:
    NETWORKS["whole_box"] = f"{__name__}:WholeBox"


@pytest.fixture(autouse=True)
def _whole_box_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "whole_box", f"{__name__}:WholeBox")


def probabilities(output: Path) -> NDArray[np.float32]:
    return np.asarray(zarr.open_array(output / "0", mode="r")[...])


def tile_by_tile(network: nn.Module, image: NDArray[np.uint8], tile: tuple[int, ...]) -> NDArray[np.float32]:
    """Probabilities from a loop over tiles of the image mirrored by numpy, with the network as it is."""
    geometry = footprint(network, approximate=True)
    read = geometry.legal_shape(tuple(a + size + b for a, size, b in zip(geometry.before, tile, geometry.after, strict=True)))
    counts = [-(-size // step) for size, step in zip(image.shape, tile, strict=True)]
    ends = [count * step + size for count, step, size in zip(counts, tile, read, strict=True)]
    pads = list(zip(geometry.before, ends, strict=True))
    padded = np.pad((image.astype(np.float32) - 100) / 50, pads, mode="reflect")
    rows = []
    for position in np.ndindex(*counts):
        start = tuple(number * step for number, step in zip(position, tile, strict=True))
        part = padded[tuple(slice(first, first + size) for first, size in zip(start, read, strict=True))]
        with torch.inference_mode():
            logits = network(torch.from_numpy(part)[None, None])[0]
        kept = logits[(slice(None), *(slice(skip, skip + size) for skip, size in zip(geometry.skip, tile, strict=True)))]
        rows.append((start, kept.softmax(0).numpy()))
    result = np.zeros((rows[0][1].shape[0], *(count * step for count, step in zip(counts, tile, strict=True))), np.float32)
    for start, values in rows:
        result[(slice(None), *(slice(first, first + size) for first, size in zip(start, tile, strict=True)))] = values
    return result[(slice(None), *(slice(0, size) for size in image.shape))]


CASES: list[tuple[str, str, tuple[int, ...], tuple[int, ...], list[tuple[int, ...]]]] = [
    *((kind, "valid", (75, 93), (24, 32), [(24, 32), (48, 64)]) for kind in KINDS),
    ("instance", "same", (75, 93), (24, 32), [(24, 96), (72, 32)]),
    ("group", "valid", (9, 21, 37), (4, 8, 6), [(4, 8, 6), (8, 16, 18)]),
    ("squeeze", "same", (9, 21, 37), (4, 8, 6), [(12, 8, 24)]),
]


@pytest.mark.parametrize(
    ("kind", "padding", "shape", "tile", "blocks"), CASES, ids=[f"{case[0]}-{case[1]}-{len(case[2])}d" for case in CASES]
)
def test_tiles_give_what_a_plain_loop_over_them_gives_for_any_blocks(
    kind: str,
    padding: str,
    shape: tuple[int, ...],
    tile: tuple[int, ...],
    blocks: list[tuple[int, ...]],
    make_model: Maker,
    make_image: Maker,
    tmp_path: Path,
) -> None:
    model = make_model(network="whole_box", norm=kind, dims=len(shape), padding=padding)
    image, network = make_image(shape, chunks=shape), load_model(model).network
    expected = tile_by_tile(network, textured(shape), tile)
    other = tile_by_tile(network, textured(shape), tuple(2 * size for size in tile))
    assert np.abs(expected - other).max() > 1e-3, "tiles that do not matter prove nothing"
    stored = []
    for number, block in enumerate(blocks):
        job = {"image": str(image), "output": str(tmp_path / f"out-{number}"), "model": str(model), "block_shape": block}
        summary = run(make_job(**job, approximate=True, tile_shape=tile, probabilities="float32"))
        assert summary.status == "complete"
        stored.append(probabilities(tmp_path / f"out-{number}"))
        np.testing.assert_allclose(stored[-1], expected, atol=1e-5)
        labels = np.asarray(zarr.open_array(tmp_path / f"out-{number}" / "labels" / "classes" / "0", mode="r")[...])
        np.testing.assert_array_equal(labels, stored[-1].argmax(0))
    assert all(values.tobytes() == stored[0].tobytes() for values in stored)


@pytest.mark.parametrize("mutant", ["cut off", "from the block"])
def test_tiles_that_follow_the_image_or_the_blocks_are_seen(
    mutant: str, make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: a tile cut off at the image's end, or one as large as its block, gives other values."""
    wrong = {
        "cut off": lambda block, tile: [part.intersect(Box.from_shape((75, 93))) for part in tiles_of(block, tile)],
        "from the block": lambda block, tile: [Box.from_shape((48, 64), block.start)],
    }
    monkeypatch.setattr(worker, "tiles_of", wrong[mutant])
    model, image = make_model(network="whole_box", norm="instance"), make_image((75, 93))
    job = make_job(
        image=str(image),
        output=str(tmp_path / "out"),
        model=str(model),
        block_shape=(48, 64),
        tile_shape=(24, 32),
        approximate=True,
        probabilities="float32",
    )
    run(job)
    expected = tile_by_tile(load_model(model).network, textured((75, 93)), (24, 32))
    assert np.abs(probabilities(tmp_path / "out") - expected).max() > 1e-3


def test_a_region_gives_the_bytes_of_the_whole(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    base = {"image": str(make_image((75, 93))), "model": str(make_model(network="whole_box", norm="instance"))}
    base |= {"approximate": True, "tile_shape": (16, 24), "block_shape": (16, 48), "probabilities": "float32"}  # type: ignore[dict-item]
    run(make_job(**base, output=str(tmp_path / "whole")))
    run(make_job(**base, output=str(tmp_path / "part"), roi=("40:75,50:60",)))
    whole, part = probabilities(tmp_path / "whole"), probabilities(tmp_path / "part")
    assert part[:, 32:75, 48:93].tobytes() == whole[:, 32:75, 48:93].tobytes()
    assert not part[:, :32].any()


def test_absent_chunks_that_tiles_read_are_foreseen_and_recorded(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    """The last tile hangs over the image's end, so that the mirrored rows it reads lie far before the block that is asked for."""
    image, output = make_image((75, 93), chunks=(10, 93)), tmp_path / "out"
    base = {"image": str(image), "output": str(output), "model": str(make_model(network="whole_box", norm="instance"))}
    base |= {"approximate": True, "tile_shape": (24, 32), "block_shape": (24, 32), "roi": ("73:75,0:5",)}  # type: ignore[dict-item]
    (image / "c" / "3" / "0").unlink()  # not read: rows 30 to 39
    resolve(make_job(**base))
    (image / "c" / "5" / "0").unlink()  # rows 50 to 59; tile 72:96 is mirrored from row 53 on, its block from row 70 on
    with pytest.raises(VolumeError, match=r"chunk .*c/5/0 is missing \(1 in all\)"):
        resolve(make_job(**base))
    summary = run(make_job(**base, missing="fill"))
    records = ledger.read_records(open_store(str(output)), "segment", summary.plan)
    assert [key[-5:] for record in records.values() for key in record.missing_chunks] == ["c/5/0"]
    assert any(text.startswith("1 absent chunks are read as background") for text in summary.warnings)


@pytest.mark.slow
def test_workers_give_the_bytes_of_the_serial_run(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    from distributed import Client

    base = {"image": str(make_image((75, 93))), "model": str(make_model(network="whole_box", norm="instance"))}
    base |= {"approximate": True, "tile_shape": (16, 24), "block_shape": (16, 48)}  # type: ignore[dict-item]
    run(make_job(**base, output=str(tmp_path / "serial")))
    with open_cluster("local", 2) as address:
        with Client(address, set_as_default=False) as client:
            client.run(add_network)  # the table of a worker process is its own
        summary = segment_on_cluster(make_job(**base, output=str(tmp_path / "local")), str(address))
    assert summary.status == "complete"
    assert digest(tmp_path / "local") == digest(tmp_path / "serial")


def test_without_the_option_the_layer_is_named_and_nothing_written(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, image, output = make_model(network="whole_box", norm="instance"), make_image((40, 50)), tmp_path / "out"
    words = r"Model 'random': Layer 'norm' \(InstanceNorm2d\) looks at the whole box.*running statistics, or --approximate"
    with pytest.raises(FootprintError, match=words):
        run(make_job(image=str(image), output=str(output), model=str(model)))
    code, _, err = call(monkeypatch, capsys, "segment", image, output, "--model", model, "--cluster", "serial")
    assert (code, "'norm' (InstanceNorm2d)" in err, "--approximate" in err) == (2, True, True)
    assert not output.exists()
    code, out, _ = call(monkeypatch, capsys, "model", "info", model, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["exact"].startswith("no: layers 'norm' (InstanceNorm2d) look at the whole box")


def test_plan_and_summary_say_that_the_tiles_matter(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, image = make_model(network="whole_box", norm="squeeze"), make_image((75, 93))
    common = (image, tmp_path / "out", "--model", model, "--approximate", "--tile-shape", "16,24", "--json")
    _, out, _ = call(monkeypatch, capsys, "plan", *common)
    facts = json.loads(out.splitlines()[-1])
    assert facts["exact"] is False
    assert facts["tiles"] == "(16, 24) voxels, seen whole by 'pool' (AdaptiveAvgPool2d)"
    assert facts["blocks"] == "1 of (80, 96) voxels"
    code, out, _ = call(monkeypatch, capsys, "segment", *common, "--cluster", "serial")
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["status"]) == (0, "complete")
    assert any("'pool' (AdaptiveAvgPool2d) look at a whole tile of (16, 24) voxels" in text for text in summary["warnings"])


def test_tiles_blocks_and_options_that_do_not_fit_are_refused(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    base = {"image": str(make_image((75, 93))), "output": str(tmp_path / "out")}
    base |= {"model": str(make_model(network="whole_box", norm="group"))}
    with pytest.raises(GridError, match="Tile axis y: 15 voxels is not a multiple of the network's stride 2; use 14 or 16"):
        resolve(make_job(**base, approximate=True, tile_shape=(15, 16)))
    with pytest.raises(GridError, match="Tile shape .* has 1 axis"):
        resolve(make_job(**base, approximate=True, tile_shape=(16,)))
    with pytest.raises(JobError, match="Block axis x: 40 voxels is not a multiple of the tile of 16; use 32 or 48.*--tile-shape"):
        resolve(make_job(**base, approximate=True, tile_shape=(16, 16), block_shape=(32, 40)))
    with pytest.raises(JobError, match="--strip is 16, but layers of the model look at whole tiles; leave it out"):
        resolve(make_job(**base, approximate=True, strip=16))
    assert resolve(make_job(**base, approximate=True, strip=0)).plan.strip is None
    exact = {**base, "model": str(make_model())}
    with pytest.raises(JobError, match="--tile-shape is .16, 16., but only --approximate"):
        resolve(make_job(**exact, tile_shape=(16, 16)))
    assert not (tmp_path / "out").exists()


def test_resuming_with_other_tiles_is_refused_by_name(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    base = {"image": str(make_image((75, 93))), "output": str(tmp_path / "out"), "approximate": True}
    base |= {"model": str(make_model(network="whole_box", norm="instance"))}
    run(make_job(**base, tile_shape=(16, 24)))
    with pytest.raises(ResumeError, match=r"another --tile-shape: 16,24 then, 32,24 now"):
        run(make_job(**base, tile_shape=(32, 24)))
    assert run(make_job(**base, tile_shape=(16, 24))).computed == 0


def test_an_exact_network_stays_exact_and_keeps_its_plan(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    base = {"image": str(make_image((75, 93))), "output": str(tmp_path / "out")}
    for model in (make_model(), make_model(network="whole_box", norm="tracked")):
        plan = plan_run(make_job(**base, model=str(model)))
        planned = resolve(make_job(**base, model=str(model), approximate=True))
        assert (planned.plan.id, planned.plan.exact, planned.plan.tile_shape) == (plan.id, True, None)
        assert any("exact without --approximate" in text for text in planned.warnings)
        assert b"tile_shape" not in plan.canonical()  # so that plans made before there were tiles keep their id
        assert Plan.model_validate_json(plan.canonical()).id == plan.id


def test_memory_makes_tiles_and_blocks_smaller(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    base = {"image": str(make_image((1100, 1030), chunks=(550, 515))), "output": str(tmp_path / "out"), "approximate": True}
    base |= {"model": str(make_model(network="whole_box", norm="instance", base=48))}
    shapes = []
    for memory in (4.0, 0.2):
        planned = resolve(make_job(**base, memory_gib=memory))
        assert planned.memory_bytes <= memory * 2**30
        shapes.append((planned.plan.tile_shape, planned.plan.block_shape))
    assert shapes[0] == ((512, 512), (1024, 1024))
    assert shapes[1][0] is not None
    assert all(size < 512 for size in shapes[1][0])
    assert all(block % tile == 0 for block, tile in zip(shapes[1][1], shapes[1][0], strict=True))


def test_tiles_and_so_labels_do_not_depend_on_keeping_probabilities(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    base = {"image": str(make_image((1100, 1030), chunks=(550, 515))), "output": str(tmp_path / "out"), "approximate": True}
    base |= {"model": str(make_model(network="whole_box", norm="instance", base=48))}
    found = {keep: set() for keep in ("none", "uint8", "float32")}  # type: dict[str, set[Any]]
    needed = resolve(make_job(**base, tile_shape=(384, 384), block_shape=(384, 384))).memory_bytes
    for more in range(-6, 18, 3):  # MiB: with none of them, and with all, 384 fits
        for keep, tiles in found.items():
            planned = resolve(make_job(**base, memory_gib=(needed + more * 2**20) / 2**30, probabilities=keep))
            assert planned.memory_bytes <= needed + more * 2**20
            tiles.add((more, planned.plan.tile_shape))
    assert found["none"] == found["uint8"] == found["float32"]
    assert {tile for _, tile in found["none"]} == {(256, 256), (384, 384)}


def test_a_block_as_large_as_an_exact_model_takes_is_cut_down_to_the_tiles(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    base = {"image": str(make_image((75, 93))), "output": str(tmp_path / "out"), "approximate": True}
    base |= {"model": str(make_model(network="whole_box", norm="group"))}

    def shapes(tile: Any, block: Any) -> tuple[Any, ...]:
        plan = plan_run(make_job(**base, tile_shape=tile, block_shape=block))
        return plan.tile_shape, plan.block_shape

    assert shapes((128, 128), (128, 128)) == ((76, 94), (76, 94))
    assert shapes((64, 64), (128, 128)) == ((64, 64), (128, 128))
    assert shapes(None, (128, 128)) == ((76, 94), (76, 94))
    assert shapes((128, 16), (128, 32)) == ((76, 16), (76, 32))
    with pytest.raises(JobError, match="Block axis y: 64 voxels is not a multiple of the tile of 76; use 76"):
        shapes((128, 128), (64, 128))
    with pytest.raises(GridError, match="Block axis x: 129 voxels is not a multiple of the network's stride 2; use 128 or 130"):
        shapes((128, 128), (128, 129))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_footprint_is_that_of_the_other_layers(kind: str, dims: int) -> None:
    arguments = {"network": "whole_box", "in_channels": 1, "classes": 2, "dims": dims}
    plain, looks = footprint(random_network(**arguments, norm="none")), random_network(**arguments, norm=kind)
    found = footprint(looks, approximate=True)
    assert (found.margin, found.stride, found.phase, found.support) == (plain.margin, plain.stride, plain.phase, plain.support)
    assert len(trace(looks, approximate=True).whole_box) == 1
    smallest = found.legal_shape((1,) * dims)
    with torch.inference_mode():
        assert looks(torch.zeros(1, 1, *smallest)).shape[2:] == found.output_shape(smallest)


@pytest.mark.parametrize(("dims", "smallest"), [(2, (2, 4)), (3, (2, 2, 4))])
def test_statistics_have_more_than_one_sample(dims: int, smallest: tuple[int, ...]) -> None:
    """torch refuses to normalise a single one; the smallest legal input leaves two along the last axis."""
    half, norm, back = CONVOLUTION[dims](1, 2, 2, stride=2), INSTANCE_NORM[dims](2), TRANSPOSED[dims](2, 1, 2, stride=2)
    network = nn.Sequential(half, norm, back).eval()
    assert footprint(network, approximate=True).legal_shape((1,) * dims) == smallest
    with torch.inference_mode():
        assert network(torch.rand(1, 1, *smallest)).shape[2:] == smallest
        with pytest.raises(ValueError, match="more than 1 spatial element"):
            network(torch.rand(1, 1, *(2,) * dims))


class Misuse(nn.Module):
    """Takes the one sample of a global pooling where many are needed."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.wide, self.pool, self.how = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1), how

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = self.conv(image)
        coarse = self.pool(fine)
        if self.how == "joined":
            return torch.cat([fine, coarse], dim=1)
        if self.how == "cropped":
            return crop_like(fine, coarse)
        return self.wide(coarse) if self.how == "convolved" else coarse


@pytest.mark.parametrize(
    ("how", "words"),
    [("joined", "'cat' takes one"), ("cropped", "'crop_like' takes one"), ("convolved", "'wide' takes one"), ("", "one value")],
)
def test_a_sample_of_the_whole_box_is_no_row(how: str, words: str) -> None:
    with pytest.raises(FootprintError, match=words):
        footprint(Misuse(how).eval(), approximate=True)


def test_a_network_of_the_table_with_instance_normalisation(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    """As many models of the bioimage.io zoo have it; imported ones run like this."""
    model = make_model(network="zoo_unet", norm="instance", padding="same", levels=2, base=4)
    image, network = make_image((75, 93)), load_model(model).network
    with pytest.raises(FootprintError, match=r"InstanceNorm2d.*--approximate"):
        run(make_job(image=str(image), output=str(tmp_path / "out"), model=str(model)))
    assert not (tmp_path / "out").exists()
    options = {"model": str(model), "approximate": True, "tile_shape": (24, 32), "block_shape": (48, 32)}
    summary = run(make_job(image=str(image), output=str(tmp_path / "out"), probabilities="float32", **options))
    assert summary.status == "complete"
    assert {axis for axis, seam in summary.seams.items() if seam.facets} == {"y", "x"}
    np.testing.assert_allclose(
        probabilities(tmp_path / "out"), tile_by_tile(network, textured((75, 93)), (24, 32)), atol=1e-5, rtol=0
    )


def test_torchscript_is_refused_since_its_layers_are_not_read(tmp_path: Path, make_image: Maker) -> None:
    """It would otherwise pass for exact: nothing names the layers in it that look at the whole box."""
    model, image = package(tmp_path, random_network(0, **SAME)), make_image((40, 50))
    base = {"image": str(image), "output": str(tmp_path / "out"), "model": str(model), "trust_model": True}
    for options in ({}, {"tile_shape": (16, 16)}):
        with pytest.raises(
            JobError, match="TorchScript, whose layers are not read.*cannot run in tiles; leave out --approximate"
        ):
            resolve(make_job(**base, approximate=True, **options))
    assert resolve(make_job(**base)).plan.exact == "unproven"
