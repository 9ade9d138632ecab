"""Warps of crops against scipy, an own Keys kernel and formulas."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.training.augmentation import check_augmentation
from unet_core.training.options import Augmentation
from unet_core.training.resample import warp_images, warp_labels
from unet_core.training.warp import Warp, draw_warp, positions
from unet_core.volumes import ArrayVolume
from unet_core.volumes.reflect import read_reflected

STILL = Augmentation(deformation=0, rotation=0, flip=False, shift=0, scale=(1, 1))
LIVELY = Augmentation(deformation=4, rotation=180, shift=5, scale=(0.7, 1.4), order=3)
CPU = torch.device("cpu")
CASES = {
    "2D": ((33, 46), (101.0, 87.0), None),
    "3D": ((9, 17, 22), (40.0, 41.0, 43.0), None),
    "3D, thick sections": ((9, 17, 22), (40.0, 41.0, 43.0), (0.05, 0.01, 0.01)),
}
CASE = pytest.mark.parametrize(("shape", "centre", "voxel_size"), CASES.values(), ids=CASES)


def drawn(centre, voxel_size=None, options=LIVELY, seed=0) -> Warp:
    options = options if len(centre) == 2 else replace_order(options, 1)
    return draw_warp(options, np.random.default_rng(seed), centre, voxel_size)


def replace_order(options: Augmentation, order: int) -> Augmentation:
    return options.model_copy(update={"order": order})


def positions_by_scipy(warp: Warp, shape, part: Box) -> np.ndarray:
    """centre + linear (v - size // 2) + displacements interpolated by scipy's B-spline, (D, *part), float64."""
    voxels = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(part.start, part.stop, strict=True)), indexing="ij"))
    spatial = (-1,) + (1,) * len(shape)
    middle = np.array([size // 2 for size in shape]).reshape(spatial)
    coarse = voxels * np.array([(n - 1) / (s - 1) for n, s in zip(warp.displacements.shape[1:], shape, strict=True)]).reshape(
        spatial
    )
    elastic = [ndimage.map_coordinates(grid, coarse, order=3, mode="mirror") for grid in warp.displacements]
    return np.tensordot(warp.linear, voxels - middle, axes=1) + np.reshape(warp.centre, spatial) + elastic


@CASE
def test_the_elastic_deformation_is_the_papers_by_scipy(shape, centre, voxel_size) -> None:
    warp = drawn(centre, voxel_size, Augmentation())  # 10 voxels on a 3x3 grid
    for part in (Box.from_shape(shape), Box((-2,) * len(shape), tuple(size + 3 for size in shape))):
        found = torch.stack(positions(warp, shape, part, CPU)).numpy()
        np.testing.assert_allclose(found, positions_by_scipy(warp, shape, part), atol=1e-10)
    plain = replace(warp, displacements=np.zeros_like(warp.displacements))
    moved = found - torch.stack(positions(plain, shape, part, CPU)).numpy()
    assert np.abs(moved).max() > 5


def test_positions_are_kept_for_other_parts_of_the_crop_and_do_not_travel() -> None:
    shape, part = (41, 61), Box((3, 5), (20, 50))
    warp = drawn((50.0, 60.0))
    whole = positions(warp, shape, Box.from_shape(shape), CPU)
    size = len(pickle.dumps(drawn((50.0, 60.0))))
    assert len(pickle.dumps(warp)) == size
    turned = replace(warp, linear=warp.linear @ np.array([[0.0, 1], [-1, 0]]))
    for other in (warp, pickle.loads(pickle.dumps(warp)), turned):
        found = torch.stack(positions(other, shape, part, CPU)).numpy()
        np.testing.assert_allclose(found, positions_by_scipy(other, shape, part), atol=1e-10)
    again = positions(pickle.loads(pickle.dumps(warp)), shape, part, CPU)  # another process, which asks for the part first
    assert all(torch.equal(one[part.slices()], other) for one, other in zip(whole, again, strict=True))


def test_displacements_of_an_odd_crop_pass_through_the_grid_points() -> None:
    warp = drawn((50.0, 60.0), options=STILL.model_copy(update={"deformation": 10.0}))
    found = torch.stack(positions(warp, (41, 61), Box.from_shape((41, 61)), CPU)).numpy()
    plain = np.stack(np.meshgrid(np.arange(30, 71), np.arange(30, 91), indexing="ij"))
    np.testing.assert_allclose((found - plain)[:, ::20, ::30], warp.displacements, atol=1e-10)


def test_displacements_have_the_stated_deviation_in_micrometres() -> None:
    options = STILL.model_copy(update={"deformation": 10.0, "grid": 24})
    grids = drawn((0.0, 0.0, 0.0), (0.04, 0.01, 0.02), options).displacements
    np.testing.assert_allclose([grid.std() for grid in grids], [5.0, 20.0, 10.0], rtol=0.05)
    assert (drawn((0.0, 0.0), options=STILL).displacements == 0).all()


def image_of(shape, channels=2, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random((channels, *shape), dtype=np.float32)


@CASE
def test_linear_sampling_is_scipys(shape, centre, voxel_size) -> None:
    warp = drawn(centre, voxel_size)
    box = warp.source_box(shape)
    image = image_of(box.shape)
    found = warp_images([torch.from_numpy(image)], [box.start], [warp], shape, order=1)
    places = positions_by_scipy(warp, shape, Box.from_shape(shape)) - np.reshape(box.start, (-1,) + (1,) * len(shape))
    expected = np.stack([ndimage.map_coordinates(channel, places, order=1) for channel in image])
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


def keys(image: np.ndarray, places: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Cubic convolution of Keys 1981, equation 4 with a free, tap by tap."""
    result = np.zeros(places.shape[1:])
    base = np.floor(places).astype(int)
    for dy in range(-1, 3):
        for dx in range(-1, 3):
            weight = np.ones(places.shape[1:])
            for place, tap in zip(places, (base[0] + dy, base[1] + dx), strict=True):
                s = np.abs(place - tap)
                near, far = (a + 2) * s**3 - (a + 3) * s**2 + 1, a * (s**3 - 5 * s**2 + 8 * s - 4)
                weight *= np.where(s < 1, near, np.where(s < 2, far, 0))
            result += weight * image[np.clip(base[0] + dy, 0, image.shape[0] - 1), np.clip(base[1] + dx, 0, image.shape[1] - 1)]
    return result


def test_bicubic_sampling_is_keys_kernel_and_near_scipys_spline() -> None:
    shape = (33, 46)
    warp = drawn((101.0, 87.0))
    box = warp.source_box(shape)
    smooth = ndimage.gaussian_filter(image_of(box.shape), (0, 2, 2))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    places = positions_by_scipy(warp, shape, Box.from_shape(shape)) - np.reshape(box.start, (2, 1, 1))
    for image in (smooth, image_of(box.shape)):
        found = warp_images([torch.from_numpy(image)], [box.start], [warp], shape, order=3)[0].numpy()
        np.testing.assert_allclose(found, np.stack([keys(channel, places) for channel in image]), atol=3e-5)
    found = warp_images([torch.from_numpy(smooth)], [box.start], [warp], shape, order=3)[0].numpy()
    spline = np.stack([ndimage.map_coordinates(channel, places, order=3, mode="mirror") for channel in smooth])
    assert np.abs(found - spline).max() < 0.02


@CASE
def test_labels_are_scipys_nearest_and_keep_64_bits(shape, centre, voxel_size) -> None:
    warp = drawn(centre, voxel_size)
    inner = Box(tuple(size // 4 for size in shape), tuple(size - 2 for size in shape))
    box = warp.source_box(shape)
    identifiers = np.random.default_rng(1).integers(1 << 60, size=box.shape)
    identifiers[::3] = -1
    found = warp_labels([torch.from_numpy(identifiers)], [box.start], [warp], shape, inner)
    places = positions_by_scipy(warp, shape, inner) - np.reshape(box.start, (-1,) + (1,) * len(shape))
    index = tuple(np.floor(places + 0.5).astype(int))
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found[0].numpy(), identifiers[index])
    classes = (identifiers % 251).astype(np.uint8)
    found = warp_labels([torch.from_numpy(classes)], [box.start], [warp], shape, inner)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found[0].numpy(), ndimage.map_coordinates(classes, places, order=0))


def test_labels_lie_where_the_image_lies() -> None:
    """A label read as an intensity, sampled without interpolation, is the label: no shift between the two, at any part."""
    shape, warp = (41, 52), drawn((60.0, 70.0))
    box, inner = warp.source_box(shape), Box((5, 9), (38, 40))
    blocks = np.kron(np.random.default_rng(0).integers(0, 2, (40, 40)), np.ones((5, 5)))[: box.shape[0], : box.shape[1]].astype(
        np.uint8
    )
    labels = warp_labels([torch.from_numpy(blocks)], [box.start], [warp], shape, inner)[0]
    image = warp_images([torch.from_numpy(blocks)[None]], [box.start], [warp], shape, 1)[0, 0][inner.slices()]
    part = warp_images([torch.from_numpy(blocks)[None]], [box.start], [warp], shape, 1, inner)[0, 0]
    torch.testing.assert_close(part, image)
    sure = (image < 0.2) | (image > 0.8)
    assert ((image > 0.5).to(torch.uint8) == labels)[sure].all()
    assert sure.float().mean() > 0.3


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
def test_a_warp_that_moves_nothing_returns_the_voxels(order: int, dtype) -> None:
    warp = drawn((70_020.0, 90_023.0), options=replace_order(STILL, order))
    box = warp.source_box((40, 47))
    assert box == Box((70_000 - (order == 3), 90_000 - (order == 3)), (70_040 + (order == 3), 90_047 + (order == 3)))
    voxels = (np.random.default_rng(0).random((2, *box.shape)) * 250).astype(dtype)
    inside = voxels[:, 1:-1, 1:-1] if order == 3 else voxels
    found = warp_images([torch.from_numpy(voxels)], [box.start], [warp], (40, 47), order)
    np.testing.assert_array_equal(found[0].numpy(), inside.astype(np.float32))
    np.testing.assert_array_equal(warp_labels([torch.from_numpy(voxels[0])], [box.start], [warp], (40, 47))[0], inside[0])


@CASE
def test_the_source_box_is_all_that_is_touched_and_no_more(shape, centre, voxel_size) -> None:
    """Reading it gives what reading the whole mirrored image gives, bit for bit; a voxel less is refused; each face is needed."""
    size = (61,) * len(shape)
    volume = ArrayVolume(image_of(size), "c" + "zyx"[-len(shape) :])
    warp = drawn((3.0,) * len(shape), voxel_size)  # near the corner: the crop hangs over the image
    box = warp.source_box(shape)
    whole = Box((-90,) * len(shape), (110,) * len(shape))
    assert whole.contains(box)
    assert min(box.start) < 0
    everything = torch.from_numpy(read_reflected(volume, whole))
    own = torch.from_numpy(read_reflected(volume, box))
    found = warp_images([own], [box.start], [warp], shape, warp.order)
    assert torch.equal(found, warp_images([everything], [whole.start], [warp], shape, warp.order))
    for axis in range(len(shape)):
        for face in (0, -1):
            bright = own.clone()
            bright.select(axis + 1, face).add_(1000)
            assert not torch.equal(found, warp_images([bright], [box.start], [warp], shape, warp.order))
    with pytest.raises(InputError, match=r"samples voxels .* was given"):
        warp_images([own[:, 1:]], [(box.start[0] + 1, *box.start[1:])], [warp], shape, warp.order)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    warps = [drawn((50.0, 50.0), seed=seed) for seed in range(3)]
    boxes = [warp.source_box((30, 30)) for warp in warps]
    images = [torch.from_numpy(image_of(box.shape, seed=seed)) for seed, box in enumerate(boxes)]
    origins = [box.start for box in boxes]
    together = warp_images(images, origins, warps, (30, 30), 3)
    for number in range(3):
        alone = warp_images(images[number : number + 1], origins[number : number + 1], warps[number : number + 1], (30, 30), 3)
        assert torch.equal(together[number], alone[0])
    again = pickle.loads(pickle.dumps(warps[1]))
    assert again.source_box((30, 30)) == boxes[1]
    assert torch.equal(together[1], warp_images(images[1:2], origins[1:2], [again], (30, 30), 3)[0])
    assert not torch.equal(together[0], together[1])


def test_a_magnification_and_a_rotation_are_what_they_say() -> None:
    turned = drawn((0.0, 0.0), options=STILL.model_copy(update={"rotation": 90.0, "scale": (1.25, 1.25)})).linear
    np.testing.assert_allclose(turned @ turned.T, np.eye(2) / 1.25**2, atol=1e-12)
    assert np.linalg.det(turned) > 0
    signs = {float(np.sign(np.linalg.det(drawn((0.0, 0.0), seed=seed).linear))) for seed in range(9)}
    assert signs == {-1.0, 1.0}  # mirrored, or not


def test_volumes_turn_in_their_sections_unless_told() -> None:
    voxel_size = (0.05, 0.01, 0.02)
    microns = np.diag(voxel_size)
    inverse = np.linalg.inv(microns)
    options = STILL.model_copy(update={"rotation": 180.0})
    flat = drawn((0.0,) * 3, voxel_size, options).linear
    np.testing.assert_array_equal(flat[0], [1, 0, 0])
    np.testing.assert_array_equal(flat[:, 0], [1, 0, 0])
    free = drawn((0.0,) * 3, voxel_size, options.model_copy(update={"rotation_3d": True})).linear
    assert np.abs(free[0, 1:]).min() > 0.01
    for linear in (flat, free):  # a rotation of the object, in micrometres
        turn = microns @ linear @ inverse
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1)


def test_what_has_no_meaning_is_refused_with_the_option() -> None:
    for options, dims, channels, words in (
        (LIVELY, 3, 1, "order 3 .* 3 axes; use order 1"),
        (STILL.model_copy(update={"rotation_3d": True}), 2, 1, "rotation_3d needs 3 axes"),
        (STILL.model_copy(update={"stain": 0.1}), 2, 4, "stain is for RGB and the image has 4"),
        (STILL.model_copy(update={"scale": (2.0, 1.0)}), 2, 1, "scale .* begins above its end"),
    ):
        with pytest.raises(InputError, match=words):
            check_augmentation(options, dims, channels)
    check_augmentation(Augmentation(), 2, 1)
    still = drawn((20.0, 20.0, 20.0), options=STILL)
    image = torch.zeros(1, 40, 40, 40)
    with pytest.raises(InputError, match="use order 1 for volumes"):
        warp_images([image], [(0, 0, 0)], [still], (5, 5, 5), 3)
    with pytest.raises(InputError, match="wider rim"):
        warp_images([image[0]], [(0, 0)], [drawn((20.0, 20.0), options=STILL)], (5, 5), 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_samples_as_a_cpu() -> None:
    warp = drawn((101.0, 87.0))
    box = warp.source_box((33, 46))
    image, labels = torch.from_numpy(image_of(box.shape)), torch.randint(0, 1 << 60, box.shape)
    for order in (1, 3):
        found = warp_images([image.cuda()], [box.start], [warp], (33, 46), order).cpu()
        torch.testing.assert_close(found, warp_images([image], [box.start], [warp], (33, 46), order), atol=1e-5, rtol=0)
    found = warp_labels([labels.cuda()], [box.start], [warp], (33, 46)).cpu()
    assert torch.equal(found, warp_labels([labels], [box.start], [warp], (33, 46)))
