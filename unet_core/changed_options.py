"""Which option of the command line makes two plans differ, as it was typed. Knows the plan as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unet_core.differences import first_difference
from unet_core.validation import shorten

Values = Mapping[str, Any]  # a plan as JSON


def changed_option(old: Values, new: Values) -> tuple[str, str, str] | None:
    """Name and both values of the first option that differs, what explains the others before them; None if no field differs.

    Args:
        old: plan that an output was begun with.
        new: plan that is asked for now.

    Returns:
        E.g. ``("--probabilities", "none", "uint8")``; of a field that no option decides alone, its place in the plan.
    """
    field = first_difference(dict(old), dict(new))
    if field is None:
        return None
    for name, read in _OPTIONS.items():
        before, now = (str(read(values)) for values in (old, new))
        if before != now:
            return name, shorten(before), shorten(now)
    name, before, now = field
    return name, shorten(str(before)), shorten(str(now))


def _listed(values: Any) -> str:
    """Numbers as they are typed."""
    return ",".join(f"{value:g}" for value in values)


def _channels(values: Values) -> str:
    chosen = values["input"]["channels"]
    return "all" if chosen is None else _listed(chosen)


def _image(values: Values) -> str:
    planned = values["input"]
    return f"{planned['axes']} {_listed(planned['shape'])} {planned['dtype']}"


def _content(values: Values) -> str:
    return ", ".join(f"{name} {str(value)[:12]}" for name, value in sorted(values["input"]["fingerprint"].items()))


def _models(values: Values) -> str:
    models = (values["model"], *(values.get("further_models") or ()))
    return ", ".join(f"{model['name']} ({model['sha256'][:12]})" for model in models)


def _voxel_size(values: Values) -> str:
    return f"{_listed(values['scale'])} {values['unit']}" if values["unit"] else "unknown"


def _probabilities(values: Values) -> str:
    root = values["images"][0]
    return str(root["dtype"]) if root["kind"] == "probabilities" else "none"


def _of_instances(key: str) -> Callable[[Values], str]:
    def read(values: Values) -> str:
        asked = values.get("instances") or {}
        return str(asked.get(key, "none"))

    return read


def _resampled(values: Values) -> str:
    ratios = values.get("resample")
    return "no" if ratios is None else f"by {_listed(above / below for above, below in ratios)}"


def _shape(key: str) -> Callable[[Values], str]:
    return lambda values: _listed(values.get(key) or ())


_OPTIONS: dict[str, Callable[[Values], Any]] = {
    "--level": lambda values: values["input"]["level"],
    "--resample": _resampled,
    "--series": lambda values: values["input"]["series"],
    "--time": lambda values: values["input"]["time"],
    "--channels": _channels,
    "image": _image,
    "content of the image (its fingerprint)": _content,
    "--missing": lambda values: values["input"]["missing"],
    "--model": _models,
    "--symmetries": lambda values: values.get("symmetries", "none"),
    "--tile-shape": _shape("tile_shape"),
    "--voxel-size": _voxel_size,
    "--probabilities": _probabilities,
    "--instances": _of_instances("method"),
    "--instances-of": lambda values: _of_instances("labels")(values).rpartition("/")[2],
    "--connectivity": _of_instances("connectivity"),
    "--min-voxels": _of_instances("min_voxels"),
    "--no-measure (the table of instances)": lambda values: (
        "no" if values.get("measure") is None else f"yes (version {values['measure']} of its columns)"
    ),
    "--block-shape": _shape("block_shape"),
    "--strip": lambda values: values.get("strip") or 0,
    "--precision": lambda values: values["precision"],
    "--threads": lambda values: values["threads"],
    "--ngff": lambda values: values["ngff"],
}
