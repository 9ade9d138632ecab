"""From a data set to its parts: opens every image and its labels, and refuses what could not be learnt from. Reads metadata only."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator

from unet_core.errors import InputError, VolumeError
from unet_core.geometry import Box
from unet_core.inputs import LEVEL_TOLERANCE
from unet_core.training.annotations import ClassMap
from unet_core.training.dataset_description import PURPOSES, Dataset, Pair, Purpose
from unet_core.training.parts import AnnotatedImage, Part
from unet_core.training.splits import purposes, relative
from unet_core.volumes import Volume, check_intensity_dtype
from unet_core.wording import counted


def open_parts(dataset: Dataset, dims: int, purpose: Purpose, fold: int | None = None) -> tuple[Part, ...]:
    """The parts of a data set for one purpose, in its order; one a section of a stack if the network is 2D.

    Args:
        dataset: as ``load_dataset`` gives it.
        dims: spatial axes of the network, 2 or 3.
        purpose: train, validation or test.
        fold: which one is for validation, where the split has folds.

    Raises:
        InputError: naming the file and both values, if an image cannot be read, labels do not fit it, images differ in channels,
            type or voxel size, or nothing is for this purpose.
    """
    if dims not in (2, 3):
        raise InputError(f"dims is {dims}; networks have 2 or 3 spatial axes.")
    _check_names(dataset)
    meaning, token = ClassMap.of(dataset), uuid.uuid4().hex
    assigned = purposes(dataset, fold)
    chosen = [
        (AnnotatedImage(pair, meaning, token), regions)
        for pair, own in zip(dataset.pairs, assigned, strict=True)
        if (regions := (getattr(pair.boxes, purpose) if pair.boxes else (":",) if own == purpose else ()))
    ]
    if not chosen:
        raise _nothing(dataset, purpose, fold, assigned)
    # Compared with the data set's first image, so that all purposes have images of one kind.
    first = AnnotatedImage(dataset.pairs[0], meaning, token)
    kind = _kind(dataset, first, dims)
    parts: list[Part] = []
    for source, regions in chosen:
        _check_labels(source)
        _check_kind(kind, _kind(dataset, source, dims), first.pair.image, source.pair.image)
        boxes = _boxes(source, dims)
        for text in regions:
            parts += _parts(dataset, source, boxes[purpose, text], dims, purpose)
    return tuple(parts)


def _check_names(dataset: Dataset) -> None:
    seen: set[tuple[object, ...]] = set()
    for pair in dataset.pairs:
        key = (pair.image, pair.level, pair.series, pair.time)
        if key in seen:
            raise InputError(
                f"{pair.image} is there twice among the pairs; its voxels would count twice, or be on both sides of the split."
            )
        seen.add(key)


def _nothing(dataset: Dataset, purpose: Purpose, fold: int | None, assigned: tuple[Purpose | None, ...]) -> InputError:
    counts = {
        name: assigned.count(name) + sum(bool(pair.boxes and getattr(pair.boxes, name)) for pair in dataset.pairs)
        for name in PURPOSES
    }
    have = ", ".join(f"{count} for {name}" for name, count in counts.items())
    where = f" in fold {fold}" if fold is not None else ""
    other = "validation" if purpose == "train" else purpose
    advice = f"give pairs part: {purpose}, or boxes (of a stack, e.g. {{train: '0:18', {other}: '20:24'}}), or another split."
    advice += (
        " What chose the checkpoint is scored with --part validation."
        if purpose == "test" and assigned.count("validation")
        else ""
    )
    return InputError(f"Nothing is for {purpose}{where}: of {counted(len(dataset.pairs), 'pair')} {have}; {advice}")


_Kind = tuple[int, str, tuple[float, ...] | None]  # channels, type, voxel size


def _kind(dataset: Dataset, source: AnnotatedImage, dims: int) -> _Kind:
    try:
        volume = source.image()
    except VolumeError as error:
        if not str(error).startswith("input not found"):
            raise
        raise VolumeError(
            f"{error} Relative paths of the data set start from {dataset.root}; say where the data lie with --root FOLDER."
        ) from None
    check_intensity_dtype(volume, cast=False)
    return volume.channel_count, str(volume.dtype), _voxel_size(dataset, source.pair, volume, dims)


def _check_kind(expected: _Kind, found: _Kind, first: str, image: str) -> None:
    if found[0] != expected[0]:
        raise InputError(
            f"{image} has {found[0]} channels and {first} has {expected[0]}; choose those to learn from with channels: [0, ..]."
        )
    if found[1] != expected[1]:
        raise InputError(
            f"{image} is {found[1]} and {first} is {expected[1]}; intensities of one network have one type, convert one of them."
        )
    own, other = found[2], expected[2]
    if (own is None) != (other is None):
        without, with_one = (image, first) if own is None else (first, image)
        raise InputError(
            f"{without} does not say its voxel size, {with_one} does ({_um(own or other)}); state voxel_size_um at the pairs that lack it."
        )
    if own and other and not _alike(own, other):
        raise InputError(
            f"{image} has voxels of {_um(own)}, {first} of {_um(other)}; one network learns one resolution: choose level: at the pairs, "
            "or correct their voxel_size_um."
        )


def _voxel_size(dataset: Dataset, pair: Pair, volume: Volume, dims: int) -> tuple[float, ...] | None:
    """Along the network's axes: the pair's word, else the image's, else the data set's."""
    stated = pair.voxel_size_um or dataset.voxel_size_um
    if stated is not None and len(stated) < dims:
        raise InputError(
            f"voxel_size_um has {counted(len(stated), 'number')} for a network of {counted(dims, 'axis', 'axes')}; give one an axis, (z,) y, x."
        )
    own = volume.voxel_size
    if own and dataset.voxel_size_um and not pair.voxel_size_um:
        shared = min(len(own), len(dataset.voxel_size_um))
        if not _alike(own[-shared:], dataset.voxel_size_um[-shared:]):
            raise InputError(
                f"{pair.image} says that its voxels have {_um(own)}, voxel_size_um of the data set {_um(dataset.voxel_size_um)}; correct "
                "one of them, or state voxel_size_um at this pair, which counts more than the image."
            )
    chosen = pair.voxel_size_um or own or dataset.voxel_size_um
    return tuple(chosen[-dims:]) if chosen else None


def _alike(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return all(abs(a / b - 1) <= LEVEL_TOLERANCE for a, b in zip(first, second, strict=True))


def _um(size: tuple[float, ...] | None) -> str:
    return " x ".join(f"{step:.4g}" for step in size or ()) + " um"


def _check_labels(source: AnnotatedImage) -> None:
    image, labels = source.image().spatial_shape, source.annotation().spatial_shape
    if image != labels:
        raise InputError(
            f"{source.pair.image} has {image} voxels and its labels {source.pair.labels} have {labels}; each voxel needs one label: choose "
            "level and labels_level, or correct the files."
        )


def _boxes(source: AnnotatedImage, dims: int) -> dict[tuple[Purpose, str], Box]:
    """The region that each text of ``boxes`` names; they do not meet, so that nothing is on two sides of the split."""
    volume, boxes = source.image(), source.pair.boxes
    if dims > len(volume.spatial_axes):
        raise InputError(
            f"{source.pair.image} has the axes {volume.spatial_axes}, the network {dims} spatial axes; train a 2D network."
        )
    if boxes is None:
        return {(purpose, ":"): Box.from_shape(volume.spatial_shape) for purpose in PURPOSES}
    stated = [(purpose, text) for purpose in PURPOSES for text in getattr(boxes, purpose)]
    found = [(*entry, parse_region(entry[1], volume.spatial_shape, source.pair.image)) for entry in stated]
    for (purpose, text, box), (other_purpose, other_text, other) in itertools.combinations(found, 2):
        if not box.intersect(other).is_empty:
            raise InputError(
                f"Boxes of {source.pair.image} overlap: {purpose} {text} and {other_purpose} {other_text} share {box.intersect(other)}; "
                "each voxel is for one purpose, once."
            )
    return {(purpose, text): box for purpose, text, box in found}


def parse_region(text: str, shape: tuple[int, ...], image: str) -> Box:
    """The box that ``"0:18"`` or ``"0:18,0:256,:"`` names; bounds left away are the image's, as are axes left away at the end.

    Raises:
        InputError: if it is no box, or not inside the image.
    """
    texts = text.split(",")
    try:
        if len(texts) > len(shape):
            raise ValueError
        bounds = [part.split(":") for part in texts] + [["", ""]] * (len(shape) - len(texts))
        start = tuple(int(low or 0) for low, _ in bounds)
        stop = tuple(int(high or size) for (_, high), size in zip(bounds, shape, strict=True))
    except ValueError:
        example = ",".join(f"0:{size}" for size in shape)
        raise InputError(
            f"Box '{text}' of {image} is none of {counted(len(shape), 'axis', 'axes')}; write first:last for each, e.g. '{example}'."
        ) from None
    if any(not 0 <= low < high <= size for low, high, size in zip(start, stop, shape, strict=True)):
        raise InputError(f"Box '{text}' of {image} does not lie inside the image, which has {shape} voxels, or is empty.")
    return Box(start, stop)


def _parts(dataset: Dataset, source: AnnotatedImage, box: Box, dims: int, purpose: Purpose) -> Iterator[Part]:
    volume, pair = source.image(), source.pair
    sections = [None] if dims == len(volume.spatial_axes) else list(range(box.start[0], box.stop[0]))
    shape = volume.spatial_shape[-dims:]
    inner = Box(box.start[-dims:], box.stop[-dims:])
    chosen = {"level": pair.level or None, "series": pair.series, "time": pair.time}
    name = relative(dataset, pair.image) + "".join(f" {key} {value}" for key, value in chosen.items() if value is not None)
    for section in sections:
        place = "" if section is None else f" z={section}"
        yield Part(
            name=f"{name}{place}" + ("" if inner == Box.from_shape(shape) else f" [{inner}]"),
            purpose=purpose,
            box=inner,
            image_shape=shape,
            channels=volume.channel_count,
            dtype=volume.dtype,
            voxel_size=_voxel_size(dataset, pair, volume, dims),
            class_names=dataset.class_names,
            has_instances=dataset.labels == "instances",
            source=source,
            section=section,
        )
