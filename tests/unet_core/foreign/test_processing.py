"""Pre-processing steps of bioimage.io, taken over, give what bioimageio.core computes; others are refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unet_core.errors import ModelPackageError
from unet_core.foreign.axes import Axes, axes_of, distinct
from unet_core.foreign.processing import activation_of, check_reference, normalisation_of
from unet_core.inputs import Source
from unet_core.model_description import FixedNormalisation, ImageNormalisation, MomentsNormalisation, NoNormalisation
from unet_core.sampling import resolve_normalisation
from unet_core.volumes import ArrayVolume

pytest.importorskip("bioimageio.core", reason="bioimageio.core is the reference")

SHAPE = (3, 17, 29)  # channels, y, x


def axes(count: int = 3) -> Axes:
    return Axes("batch", "channel", tuple(f"c{number}" for number in range(count)), ("y", "x"), None, None)


def image() -> NDArray[np.float32]:
    random = np.random.default_rng(0)
    factors = np.array([1, 4, 20]).reshape(3, 1, 1)
    return np.asarray(random.gamma(2, 100, SHAPE) * factors + 300, dtype=np.float32)


def parse(steps: list[dict[str, Any]]) -> list[Any]:
    from bioimageio.spec.model import v0_5
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(v0_5.PreprocessingDescr)
    return [adapter.validate_python(step) for step in steps]


def reference(steps: list[Any], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """What bioimageio.core makes of the image, each statistic taken of what the steps before it give."""
    from bioimageio.core.common import MemberId
    from bioimageio.core.proc_ops import get_proc
    from bioimageio.core.sample import Sample
    from bioimageio.core.stat_calculators import compute_measures
    from bioimageio.core.tensor import Tensor
    from bioimageio.spec.model.v0_5 import InputTensorDescr, TensorId

    member = MemberId("raw")
    sample = Sample(members={member: Tensor(values[None], dims=("batch", "channel", "y", "x"))}, stat={}, id=None)
    described = InputTensorDescr.model_construct(id=TensorId("raw"))
    for step in steps:
        operation = get_proc(step, described)
        if hasattr(step.kwargs, "eps"):
            operation.eps = step.kwargs.eps  # type: ignore[union-attr] # bioimageio.core 0.11 takes its default instead
        sample.stat = dict(compute_measures(operation.required_measures, [sample]))
        operation(sample)
    return np.asarray(sample.members[member].data[0], dtype=np.float64)


MEAN_STD = "zero_mean_unit_variance"
CASES: dict[str, tuple[list[dict[str, Any]], type]] = {
    "nothing": ([{"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}], NoNormalisation),
    "linear": ([{"id": "scale_linear", "kwargs": {"gain": 0.02, "offset": -3.0}}], FixedNormalisation),
    "linear per channel": (
        [{"id": "scale_linear", "kwargs": {"axis": "channel", "gain": [0.01, 0.02, 0.003], "offset": [1.0, 0.0, -2.0]}}],
        FixedNormalisation,
    ),
    "fixed": ([{"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 400.0, "std": 0.3}}], FixedNormalisation),
    "fixed per channel": (
        [{"id": "fixed_zero_mean_unit_variance", "kwargs": {"axis": "channel", "mean": [1.0, 2, 3], "std": [5.0, 60, 7]}}],
        FixedNormalisation,
    ),
    "fixed after linear": (
        [
            {"id": "scale_linear", "kwargs": {"gain": 0.02, "offset": -3.0}},
            {"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 4.0, "std": 0.5}},
            {"id": "scale_linear", "kwargs": {"gain": 2.0, "offset": 1.0}},
        ],
        FixedNormalisation,
    ),
    "moments": ([{"id": MEAN_STD, "kwargs": {"axes": ["y", "x"]}}], MomentsNormalisation),
    "moments joint": ([{"id": MEAN_STD, "kwargs": {"axes": ["channel", "y", "x"], "eps": 0.1}}], MomentsNormalisation),
    "moments after linear": (
        [
            {"id": "scale_linear", "kwargs": {"gain": 0.001, "offset": 3.0}},
            {"id": MEAN_STD, "kwargs": {"axes": ["x", "y"], "eps": 0.05}},
        ],
        MomentsNormalisation,
    ),
    "percentiles": (
        [{"id": "scale_range", "kwargs": {"axes": ["y", "x"], "min_percentile": 5.0, "max_percentile": 99.8}}],
        ImageNormalisation,
    ),
    "percentiles joint": ([{"id": "scale_range", "kwargs": {"axes": ["channel", "y", "x"], "eps": 0.1}}], ImageNormalisation),
    "percentiles after linear": (
        [
            {"id": "scale_linear", "kwargs": {"gain": 0.001, "offset": 3.0}},
            {"id": "scale_range", "kwargs": {"axes": ["y", "x"], "min_percentile": 1.0, "max_percentile": 99.0, "eps": 0.05}},
        ],
        ImageNormalisation,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_taken_over_gives_what_the_reference_implementation_gives(case: str) -> None:
    raw, kind = CASES[case]
    steps, values = parse(raw), image()
    stated = normalisation_of(steps, axes(), "package")
    assert type(stated) is kind
    found = resolve_normalisation(stated, Source(ArrayVolume(values, "cyx"), "yx")).apply(values)
    expected = reference(steps, values)
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.ptp(expected))
    if kind is not NoNormalisation:  # the comparison can fail
        other = resolve_normalisation(stated, Source(ArrayVolume(values[::-1], "cyx"), "yx")).apply(values)
        joint = getattr(stated, "joint", False)
        assert kind is FixedNormalisation or joint or np.abs(other - expected).max() > 1e-2


def test_no_axes_mean_all_axes_of_the_one_image() -> None:
    for axes_given in (None, ["batch", "channel", "y", "x"]):
        steps = parse([{"id": MEAN_STD, "kwargs": {} if axes_given is None else {"axes": axes_given}}])
        assert normalisation_of(steps, axes(), "package") == MomentsNormalisation(joint=True, eps=1e-6)
        assert normalisation_of(steps, axes(1), "package") == MomentsNormalisation(joint=False, eps=1e-6)


REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "clip": ([{"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}}], "'clip' cannot be taken over: it has no counterpart"),
    "binarize": ([{"id": "binarize", "kwargs": {"threshold": 0.5}}], "'binarize'"),
    "float64": ([{"id": "ensure_dtype", "kwargs": {"dtype": "float64"}}], "it makes float64"),
    "negative gain": ([{"id": "scale_linear", "kwargs": {"gain": -1.0}}], "a gain above zero"),
    "two statistics": ([{"id": MEAN_STD}, {"id": "scale_range"}], "'scale_range' cannot be taken over: it follows statistics"),
    "linear after statistics": ([{"id": MEAN_STD}, {"id": "scale_linear", "kwargs": {"gain": 2.0}}], "'scale_linear'.*follows"),
    "rows": ([{"id": MEAN_STD, "kwargs": {"axes": ["x"]}}], "its axes are x"),
    "unknown axis": ([{"id": MEAN_STD, "kwargs": {"axes": ["z", "y", "x"]}}], "its axes are x, y, z"),
    "along y": (
        [{"id": "scale_linear", "kwargs": {"axis": "y", "gain": [1.0, 2.0, 3.0]}}],
        "3 numbers along y, the image 3 channels along channel",
    ),
    "two numbers": ([{"id": "scale_linear", "kwargs": {"axis": "channel", "gain": [1.0, 2.0]}}], "2 numbers along channel"),
    "channels scaled differently": (
        [{"id": "scale_linear", "kwargs": {"axis": "channel", "gain": [1.0, 2.0, 3.0]}}, {"id": MEAN_STD}],
        "channels are scaled differently",
    ),
    "percentiles of the raw image": (
        [{"id": "scale_linear", "kwargs": {"gain": 2.0}}, {"id": "scale_range", "kwargs": {"reference_tensor": "raw"}}],
        "percentiles are those of raw before it is scaled",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(case: str) -> None:
    raw, words = REFUSED[case]
    with pytest.raises(ModelPackageError, match=words):
        normalisation_of(parse(raw), axes(), "package")


def test_percentiles_of_another_tensor_are_refused() -> None:
    steps = parse([{"id": "scale_range", "kwargs": {"reference_tensor": "mask"}}])
    check_reference(steps, "mask", "package")
    with pytest.raises(ModelPackageError, match="it looks at the tensor mask"):
        check_reference(steps, "raw", "package")


def post(*steps: dict[str, Any]) -> list[Any]:
    from bioimageio.spec.model import v0_5
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(v0_5.PostprocessingDescr)
    return [adapter.validate_python(step) for step in steps]


def test_activations_are_told_and_others_refused_by_name() -> None:
    to_float = {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}
    assert activation_of(post(to_float), axes(), "package") == "none"
    assert activation_of(post({"id": "sigmoid"}, to_float), axes(), "package") == "sigmoid"
    assert activation_of(post({"id": "softmax"}), axes(), "package") == "softmax"
    for wrong, words in [
        (post({"id": "softmax", "kwargs": {"axis": "y"}}), "runs along axis y"),
        (post({"id": "sigmoid"}, {"id": "softmax"}), "'softmax'"),
        (post({"id": "sigmoid"}, {"id": "ensure_dtype", "kwargs": {"dtype": "uint8"}}), "'ensure_dtype'"),
        (post({"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}}), "'clip'"),
    ]:
        with pytest.raises(ModelPackageError, match=words):
            activation_of(wrong, axes(), "package")


def test_names_of_channels_are_told_apart() -> None:
    assert distinct(["a", "a", "a 1"]) == ("a 0", "a 2", "a 1")
    assert distinct(["", "b", "", "channel 2"]) == ("channel 0", "b", "channel 3", "channel 2")
    many = distinct(["same"] * 5000 + [f"same {number}" for number in range(5000)])
    assert len(set(many)) == 10_000
    assert many[5000:] == tuple(f"same {number}" for number in range(5000))


def axis(kind: str, name: str, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(type=kind, id=name, **more)


def test_axes_are_read_in_their_order_and_others_refused() -> None:
    channel = axis("channel", "channel", channel_names=["a", "b"])
    space = {name: axis("space", name, unit="nanometer", scale=scale) for name, scale in (("x", 5.0), ("y", 6.0), ("z", 40.0))}
    found = axes_of(SimpleNamespace(axes=[axis("batch", "batch"), channel, space["y"], space["z"], space["x"]]), "input")
    assert found.voxel_size_um == pytest.approx((0.04, 0.006, 0.005))
    tensor = np.random.default_rng(0).random((1, 2, 5, 3, 7))  # y z x
    assert found.in_zyx(tensor).shape == (1, 2, 3, 5, 7)
    np.testing.assert_array_equal(found.in_zyx(tensor)[0, 1, 2, 4], tensor[0, 1, 4, 2])
    unknown = axis("space", "x", unit=None, scale=1.0)
    assert axes_of(SimpleNamespace(axes=[axis("batch", "batch"), channel, space["y"], unknown]), "input").voxel_size_um is None
    for wrong in (
        [channel, space["y"], space["x"]],
        [axis("batch", "batch"), space["y"], space["x"], channel],
        [axis("batch", "batch"), channel, space["z"], space["x"]],
        [axis("batch", "batch"), channel, axis("time", "time"), space["y"], space["x"]],
        [axis("batch", "batch"), channel, space["x"]],
    ):
        with pytest.raises(ModelPackageError, match="networks here take batch, channel"):
            axes_of(SimpleNamespace(axes=wrong), "input")
