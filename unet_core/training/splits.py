"""Which pairs are for training, validation and test: fixed by hand, or drawn from a seed with groups kept together. Opens nothing."""

from __future__ import annotations

from math import ceil

import numpy as np

from unet_core.errors import InputError
from unet_core.training.dataset_description import Dataset, Pair, Purpose
from unet_core.wording import counted


def purposes(dataset: Dataset, fold: int | None = None) -> tuple[Purpose | None, ...]:
    """What each pair is for; None for pairs whose boxes say it.

    The draw depends on the seed and the names of groups and images below the root, not on their order or place.

    Args:
        dataset: with absolute paths.
        fold: which one is for validation, from 0, where the split has folds.

    Raises:
        InputError: if the fold does not exist, a group is fixed on two sides, or there are fewer groups than folds.
    """
    split = dataset.split
    if split.folds is None and fold is not None:
        raise InputError(
            f"fold is {fold}, but the split of the data set has no folds; leave it away, or write folds: 5 in its split."
        )
    if split.folds is not None and (fold is None or not 0 <= fold < split.folds):
        raise InputError(
            f"fold is {fold}; the split of the data set has {split.folds} folds, choose one of 0 to {split.folds - 1}."
        )
    fixed = {_group(dataset, pair): pair.part for pair in dataset.pairs if pair.part}
    for pair in dataset.pairs:
        other = fixed.get(_group(dataset, pair))
        if pair.part and other != pair.part:
            raise InputError(
                f"{pair.image} is for {pair.part}, another image of its group '{pair.group}' for {other}; keep them together."
            )
    free = [pair for pair in dataset.pairs if pair.boxes is None and _group(dataset, pair) not in fixed]
    drawn = _drawn(dataset, free, fold)
    return tuple(
        None if pair.boxes else fixed.get(group) or drawn[group] for pair in dataset.pairs for group in [_group(dataset, pair)]
    )


def _drawn(dataset: Dataset, pairs: list[Pair], fold: int | None) -> dict[str, Purpose]:
    """The purpose of each group."""
    sizes: dict[str, int] = {}
    for pair in pairs:
        sizes[_group(dataset, pair)] = sizes.get(_group(dataset, pair), 0) + 1
    split = dataset.split
    if not sizes:
        return {}
    names = sorted(sizes)
    order = [names[index] for index in np.random.default_rng(split.seed).permutation(len(names))]
    test = _take(order, sizes, ceil(len(pairs) * split.test))
    rest = [name for name in order if name not in test]
    wanted = ceil(len(pairs) * split.validation_fraction)
    validation = _take(rest, sizes, wanted) if split.folds is None else _fold(rest, sizes, split.folds, fold or 0)
    return {name: "test" if name in test else "validation" if name in validation else "train" for name in names}


def _take(order: list[str], sizes: dict[str, int], count: int) -> set[str]:
    """The first groups of the order that fit into ``count`` pairs; the smallest one if none does."""
    taken: set[str] = set()
    left = count
    for name in order:
        if sizes[name] <= left:
            taken.add(name)
            left -= sizes[name]
    return taken or ({min(order, key=lambda name: sizes[name])} if count and len(order) > 1 else set())


def _fold(order: list[str], sizes: dict[str, int], folds: int, fold: int) -> set[str]:
    """Groups of one fold: the largest first, each to the fold that has the fewest pairs."""
    if len(order) < folds:
        raise InputError(
            f"The data set has {counted(len(order), 'group')} of images for {folds} folds; a fold would be empty. Use fewer "
            "folds, or boxes of each image."
        )
    members: list[set[str]] = [set() for _ in range(folds)]
    for name in sorted(order, key=lambda name: -sizes[name]):
        smallest = min(members, key=lambda names: (sum(sizes[each] for each in names), len(names)))
        smallest.add(name)
    return members[fold]


def _group(dataset: Dataset, pair: Pair) -> str:
    return f"group {pair.group}" if pair.group else f"image {relative(dataset, pair.image)}"


def relative(dataset: Dataset, url: str) -> str:
    """The name of a file below the data set's root; the URL itself if it lies elsewhere."""
    return url.removeprefix(f"{dataset.root.rstrip('/')}/")
