"""What Neuroglancer shows and searches of segments: their class, and numbers of the table of objects.

Format: github.com/google/neuroglancer, src/datasource/precomputed/segment_properties.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from unet_core.exports.naming import classes_of, objects_of
from unet_core.plan import ImagePlan
from unet_core.result import Result


def segment_properties(result: Result, image: ImagePlan, measurements: bool) -> tuple[bytes, int, list[str]]:
    """The info file of the segments' properties, how many segments there are, and the names of number properties.

    Args:
        result: whose instances are all there.
        image: the instances, or another label image.
        measurements: whether those of the table are wanted.
    """
    classes = classes_of(result, image)
    if image.kind != "instances":
        names = {"id": "label", "type": "label", "values": [entry.name for entry in classes.values()]}
        return _info(list(classes), [names]), len(classes), []
    objects = objects_of(result, measurements)
    order = {value: number for number, value in enumerate(classes)}
    place = np.array([order[value] for value in objects.class_value.tolist()], dtype=np.int64)
    words = [entry.name for entry in classes.values()]
    properties: list[dict[str, Any]] = [
        {"id": "label", "type": "label", "values": [words[number] for number in place.tolist()]},
        {"id": "class", "type": "tags", "tags": [_tag(word) for word in words], "values": place[:, None]},
    ]
    numbers = [_number(name, values) for name, values in objects.measurements.items() if np.isfinite(values).all()]
    return _info(objects.label.tolist(), properties + numbers), len(objects.label), [entry["id"] for entry in numbers]


def _tag(word: str) -> str:
    """A class as a tag, which has no spaces and does not begin with #."""
    return "_".join(word.split()).lstrip("#") or "class"


def _number(name: str, values: NDArray[Any]) -> dict[str, Any]:
    whole = values.dtype.kind in "iu" and int(values.min(initial=0)) >= 0 and int(values.max(initial=0)) < 2**32
    dtype = "uint32" if whole else "float32"
    return {"id": name, "type": "number", "data_type": dtype, "values": np.ascontiguousarray(values, dtype=dtype)}


def _info(labels: list[int], properties: list[dict[str, Any]]) -> bytes:
    inline = {"ids": [str(label) for label in labels], "properties": properties}
    document = {"@type": "neuroglancer_segment_properties", "inline": inline}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
