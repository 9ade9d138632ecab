"""Targets of every kind of head against loops over voxels, in 2D and 3D, with halos larger than a head needs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from unet_core.errors import InputError
from unet_core.training.options import IGNORE, AffinitiesHead, ClassesHead, DistanceHead, RegionsHead
from unet_core.training.targets import REACH, HeadTarget, halo, targets

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])]
SHAPES = {2: (13, 17), 3: (7, 9, 12)}


def sample(dims: int, margins, seed: int = 0, device: str = "cpu"):
    """Two samples: cells of several voxels that touch, gaps, ignored voxels in the classes or in the instances."""
    random = np.random.default_rng(seed)
    grown = tuple(size + before + after for size, (before, after) in zip(SHAPES[dims], margins, strict=True))
    coarse = random.integers(0, 5, (2, *(-(-size // 4) for size in grown)))
    instances = coarse
    for axis in range(1, dims + 1):
        instances = np.repeat(instances, 4, axis=axis)
    instances = instances[(slice(None), *(slice(0, size) for size in grown))] * 2**40
    classes = np.where(instances > 0, random.integers(1, 4, instances.shape), 0)
    spot = random.random(instances.shape)
    instances[spot < 0.01] = -1
    classes[spot > 0.99] = IGNORE
    weights = random.uniform(0.5, 2, (2, *SHAPES[dims])).astype(np.float32)
    return tuple(torch.from_numpy(array).to(device) for array in (classes.astype(np.int64), instances.astype(np.int64), weights))


def ids_of(classes, instances):
    return np.where(classes.cpu().numpy() == IGNORE, -1, instances.cpu().numpy())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dims", [2, 3])
def test_classes_and_regions_leave_out_what_is_ignored(dims: int, device: str) -> None:
    margins = ((1, 2), (0, 3), (2, 0))[:dims]
    classes, _, weights = sample(dims, margins, device=device)
    inner = classes[(slice(None), *(slice(a, a + size) for (a, _), size in zip(margins, SHAPES[dims], strict=True)))]
    found = targets(ClassesHead(), classes, None, weights, margins)
    ignored = inner == IGNORE
    assert ignored.any()
    assert (found.values.dtype, found.weights.dtype) == (torch.int64, torch.float32)
    assert torch.equal(found.values[~ignored], inner[~ignored])
    assert found.values.max() < 4
    assert torch.equal(found.weights, torch.where(ignored, 0, weights))

    spec = RegionsHead(regions={"whole": ("rim", "core"), "core": ("core",), "none": ("background",)})
    found = targets(spec, classes, None, weights, margins, {"background": 0, "rim": 1, "core": 2, "other": 3})
    expected = torch.stack([(inner == 1) | (inner == 2), inner == 2, inner == 0], dim=1).float()
    assert torch.equal(found.values, expected)
    assert torch.equal(found.weights, torch.where(ignored, 0, weights)[:, None])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offsets", [((0, -1), (-1, 0), (3, -2), (0, 5)), ((-1, 0, 0), (0, -1, 0), (2, 1, -3))])
def test_affinities_are_those_of_a_loop(offsets, device: str) -> None:
    dims = len(offsets[0])
    spec = AffinitiesHead(offsets=offsets)
    margins = tuple((before + 1, after) for before, after in halo(spec, dims))
    classes, instances, weights = sample(dims, margins, device=device)
    found = targets(spec, classes, instances, weights, margins)
    ids, w = ids_of(classes, instances), weights.cpu().numpy()
    assert found.values.shape == found.weights.shape == (2, len(offsets), *SHAPES[dims])
    for n, (k, offset) in itertools.product(range(2), enumerate(offsets)):
        for voxel in np.ndindex(*SHAPES[dims]):
            here = tuple(part + before for part, (before, _) in zip(voxel, margins, strict=True))
            a, b = ids[n][here], ids[n][tuple(part + step for part, step in zip(here, offset, strict=True))]
            assert found.values[(n, k, *voxel)] == float(a == b and a > 0)
            assert found.weights[(n, k, *voxel)] == (w[n][voxel] if a >= 0 and b >= 0 else 0)
    assert 0 < found.values.mean() < 1
    assert 0 < (found.weights == 0).float().mean() < 0.2


def distances_by_hand(ids, spacing, reach):
    """Every voxel against every other one."""
    positions = np.argwhere(np.ones(ids.shape, bool)) * np.array(spacing)
    flat = ids.ravel()
    values, known = np.empty(flat.size), np.empty(flat.size, bool)
    for number, (position, own) in enumerate(zip(positions, flat, strict=True)):
        apart = np.sqrt(((positions - position) ** 2).sum(axis=1))
        wanted = (flat != own) & (flat >= 0) if own > 0 else flat > 0
        distance = min(apart[wanted].min(initial=np.inf), reach)
        values[number] = distance if own > 0 else -distance
        known[number] = own >= 0 and distance <= apart[flat < 0].min(initial=np.inf) * (1 + 1e-6)
    return values.reshape(ids.shape), known.reshape(ids.shape)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dims", "voxel_size", "scale"), [(2, None, 1.5), (2, (0.5, 1.0), 1.1), (3, (3.0, 1.0, 1.0), 0.9)])
def test_distances_are_those_to_every_other_voxel(dims: int, voxel_size, scale: float, device: str) -> None:
    spec = DistanceHead(scale=scale)
    margins = halo(spec, dims, voxel_size)
    classes, instances, weights = sample(dims, margins, device=device)
    instances[1, ..., :4][instances[1, ..., :4] < 0] = 0
    found = targets(spec, classes, instances, weights, margins, voxel_size=voxel_size)
    assert isinstance(found, HeadTarget)
    assert found.values.shape == found.weights.shape == (2, 1, *SHAPES[dims])
    spacing = [1.0] * dims if voxel_size is None else [size / voxel_size[-1] for size in voxel_size]
    inner = tuple(slice(before, before + size) for (before, _), size in zip(margins, SHAPES[dims], strict=True))
    for n in range(2):
        values, known = distances_by_hand(ids_of(classes, instances)[n], spacing, REACH * scale)
        shown = known[inner]
        assert 0.2 < shown.mean() < 1
        np.testing.assert_allclose(found.values[n, 0].cpu().numpy()[shown], np.tanh(values / scale)[inner][shown], atol=1e-6)
        np.testing.assert_array_equal(found.weights[n, 0].cpu().numpy(), np.where(shown, weights[n].cpu().numpy(), 0))


def test_more_halo_than_the_reach_changes_no_distance() -> None:
    """What lies beyond the reach cannot matter; one voxel less of halo is refused."""
    spec, wide = DistanceHead(scale=1.3), ((9, 8), (10, 7))
    classes, instances, weights = sample(2, wide)
    needed = halo(spec, 2)
    assert needed == ((4, 4), (4, 4))
    found = targets(spec, classes, instances, weights, wide)
    near = (slice(None), slice(5, -4), slice(6, -3))
    narrow = targets(spec, classes[near], instances[near], weights, needed)
    assert torch.equal(found.values[found.weights > 0], narrow.values[found.weights > 0])
    assert torch.equal(found.weights, narrow.weights)
    with pytest.raises(InputError, match="are given; read more"):
        targets(spec, classes[:, 6:-4, 6:-3], instances[:, 6:-4, 6:-3], weights, ((3, 4), (4, 4)))


def test_what_cannot_be_learnt_is_refused() -> None:
    none = ((0, 0), (0, 0))
    classes, _, weights = sample(2, none)
    with pytest.raises(InputError, match="labels have none"):
        targets(AffinitiesHead(offsets=((0, 1),)), classes, None, weights[..., :-1], ((0, 0), (0, 1)))
    with pytest.raises(InputError, match="class 'rim'; classes are core"):
        targets(RegionsHead(regions={"whole": ("rim",)}), classes, None, weights, none, {"core": 1})
    for offset in ((1,), (0, 0), (0, 1, 0)):
        with pytest.raises(InputError, match="voxels along yx"):
            halo(AffinitiesHead(offsets=(offset,)), 2)
    assert halo(AffinitiesHead(offsets=((-3, 2), (-1, -4))), 2) == ((3, 0), (4, 2))
    assert halo(ClassesHead(), 3) == ((0, 0),) * 3
    assert halo(DistanceHead(scale=5), 3, (5, 1, 1)) == ((3, 3), (15, 15), (15, 15))
