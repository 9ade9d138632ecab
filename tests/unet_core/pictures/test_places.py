"""Places for close-ups: those that a search over the whole arrays finds, inside what was computed, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy
from skimage.measure import label

from tests.unet_core.pictures.scenes import scene_of
from tests.unet_core.pictures.test_scene import colour, random_labels
from unet_core.geometry import Box
from unet_core.pictures import choose_places, places
from unet_core.volumes.array import ArrayVolume


def windows(shape: tuple[int, int], side: int) -> list[Box]:
    starts = [[min(first, size - side) for first in range(0, size, side)] for size in shape]
    return [Box.from_shape((side, side), (y, x)) for y in starts[0] for x in starts[1]]


@pytest.mark.parametrize("with_ids", [True, False])
def test_the_densest_and_the_most_uncertain_of_all_places_are_found(with_ids: bool) -> None:
    shape, side = (75, 93), 20
    labels = random_labels(shape, 2)
    labels[:30, :40] = 0
    ids = label(labels, connectivity=2).astype(np.uint64)
    probabilities = np.random.default_rng(0).dirichlet((0.4, 0.4, 0.4), shape).astype(np.float32) ** 2
    probabilities = np.moveaxis(probabilities / probabilities.sum(-1, keepdims=True), -1, 0)
    scene = scene_of(colour(0, shape), labels, (16, 32), ids=ids if with_ids else None)
    sample = choose_places(scene, side, 3, ArrayVolume(probabilities, "cyx"))
    every = windows(shape, side)
    assert sample.candidates == len(every) == 20
    inside = [box.slices() for box in every]
    counts = [len(set(np.unique(ids[part])) - {0}) if with_ids else label(labels[part], connectivity=1).max() for part in inside]
    doubts = [entropy(probabilities[(slice(None), *part)], base=3, axis=0).mean() for part in inside]
    by_box = {box: (count, doubt) for box, count, doubt in zip(every, counts, doubts, strict=True)}
    for place in sample.places:
        assert (place.objects, pytest.approx(place.uncertainty, rel=1e-4)) == by_box[place.box]
        assert place.share == pytest.approx((labels[place.box.slices()] > 0).mean())
    found = {why: [place for place in sample.places if place.why == why] for why in ("densest", "most uncertain", "at random")}
    assert [len(group) for group in found.values()] == [3, 3, 3]
    assert len({place.box for place in sample.places}) == 9
    assert sorted((place.objects for place in found["densest"]), reverse=True) == sorted(counts)[:-4:-1]
    left = sorted((doubt for box, (_, doubt) in by_box.items() if box not in [p.box for p in found["densest"]]), reverse=True)
    assert [place.uncertainty for place in found["most uncertain"]] == pytest.approx(left[:3], rel=1e-4)
    assert all(place.objects for place in found["at random"])
    again = choose_places(scene, side, 3, ArrayVolume(probabilities, "cyx"))
    assert again == sample


def test_places_lie_in_what_was_computed_also_in_a_huge_image(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = random_labels((300, 300))
    undone = tuple(number for number in range(100) if number not in (12, 13, 77))
    scene = scene_of(colour(0, (300, 300)), labels, (30, 30), undone=undone)
    for listed in (50_000, 10):  # all places listed, or drawn from the blocks
        monkeypatch.setattr(places, "_LISTED", listed)
        sample = choose_places(scene, 14, 3)
        assert 0 < sample.candidates <= 256
        for place in sample.places:
            assert scene.done[place.box.scale_down((30, 30)).slices()].all()
    none = scene_of(colour(0, (300, 300)), labels, (30, 30), undone=tuple(range(100)))
    assert choose_places(none, 14, 3).places == ()


def test_no_more_than_256_places_are_looked_at() -> None:
    scene = scene_of(colour(0, (300, 300)), random_labels((300, 300)), (30, 30))
    assert choose_places(scene, 10, 2).candidates == 256


def test_no_two_places_show_the_same() -> None:
    labels = np.zeros((41, 73), dtype=np.uint8)
    labels[::3, 35:73:3] = 1  # places of 20 begin at 0, 20, 40 and 53 along x
    scene = scene_of(colour(0, labels.shape), labels, (41, 73))
    boxes = [place.box for place in choose_places(scene, 20, 3).places]
    assert len(boxes) == 6
    for number, box in enumerate(boxes):
        assert all(2 * box.intersect(other).voxel_count <= 400 for other in boxes[:number])
    stack = choose_places(scene_of(colour(0, (64, 20, 20)), random_labels((64, 20, 20)), (64, 20, 20)), 20, 2).places
    sections = sorted(place.box.start[0] for place in stack)
    assert len(sections) == 4
    assert np.diff(sections).min() > 8  # two slabs of 4


def test_places_of_a_volume_are_planes_of_several_sections() -> None:
    labels = random_labels((33, 40, 50))
    sample = choose_places(scene_of(colour(0, (33, 40, 50)), labels, (16, 16, 16)), 25, 3)
    assert {place.box.shape for place in sample.places} == {(1, 25, 25)}
    assert len({place.box.start[0] for place in sample.places}) > 1
    assert sample.candidates == 11 * 2 * 2  # 33 sections in slabs of 3


def test_the_densest_place_of_a_huge_image_is_found_by_its_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "CANDIDATES", 4)
    labels = np.zeros((300, 300), dtype=np.uint8)
    labels[::29, ::31] = 1
    labels[104:120:2, 150:166:2] = 1
    ids = label(labels).astype(np.uint64)
    centres = np.argwhere(ids) + 0.0
    scene = scene_of(colour(0, (300, 300)), labels, (30, 30), ids=ids)
    (first, *_) = choose_places(scene, 20, 1, centres=centres).places
    assert (first.why, first.box.start) == ("densest", (100, 140))
    assert choose_places(scene, 20, 1).places[0].objects < 39 <= first.objects
