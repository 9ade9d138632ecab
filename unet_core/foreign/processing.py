"""Pre- and post-processing steps of a bioimage.io package as a normalisation and an activation of ours, or refused by name.

Nothing here reads a file. A step is anything with an ``id`` and ``kwargs`` as bioimageio.spec has them; formulas are those of its
reference implementation, bioimageio.core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from unet_core.errors import ModelPackageError
from unet_core.foreign.axes import Axes
from unet_core.model_description import FixedNormalisation, ImageNormalisation, MomentsNormalisation, NoNormalisation
from unet_core.validation import first_problem, shorten
from unet_core.wording import counted

FIXED_EPS = 1e-6  # that fixed_zero_mean_unit_variance adds to the standard deviation

Activation = Literal["none", "sigmoid", "softmax"]
Normalised = FixedNormalisation | ImageNormalisation | MomentsNormalisation | NoNormalisation
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class _Linear:
    """``(value - offset) / scale``, one pair a channel."""

    offset: Numbers
    scale: Numbers

    def then(self, offset: Numbers, scale: Numbers) -> _Linear:
        with np.errstate(all="ignore"):  # what is not finite in the end is refused
            return _Linear(self.offset + offset * self.scale, self.scale * scale)


def normalisation_of(steps: Sequence[Any], axes: Axes, where: str) -> Normalised:
    """The normalisation that a list of pre-processing steps comes to.

    Fixed steps are joined into one. Statistics of the image may be preceded by a fixed scaling, which they undo but for the
    share of eps; where a package asks for statistics of a data set ("batch" among the axes, or no axes), the data set is the one image.

    Args:
        steps: in order.
        axes: of the input.
        where: for messages.

    Raises:
        ModelPackageError: naming the first step that has no counterpart, and why.
    """
    count = len(axes.channel_names)
    linear = _Linear(np.zeros(count), np.ones(count))
    statistic: Normalised | None = None
    for step in steps:
        if step.id == "ensure_dtype":
            _check_float(step, where)
            continue
        if statistic is not None:
            raise _refused(step, where, "it follows statistics of the image, whose result is fed to the network as it is")
        if step.id == "scale_linear":
            gain = _numbers(step, step.kwargs.gain, axes, where)
            if not (gain > 0).all():
                raise _refused(step, where, f"its gain is {step.kwargs.gain}; a gain above zero has a counterpart")
            with np.errstate(all="ignore"):
                linear = linear.then(-_numbers(step, step.kwargs.offset, axes, where) / gain, 1 / gain)
        elif step.id == "fixed_zero_mean_unit_variance":
            mean, deviation = (_numbers(step, value, axes, where) for value in (step.kwargs.mean, step.kwargs.std))
            linear = linear.then(mean, deviation + FIXED_EPS)
        elif step.id in ("zero_mean_unit_variance", "scale_range"):
            statistic = _statistic(step, axes, linear, where)
        else:
            raise _refused(step, where, "it has no counterpart; fixed scaling, zero mean and unit variance, and percentiles have")
    if statistic is not None:
        return statistic
    if not linear.offset.any() and (linear.scale == 1).all():
        return NoNormalisation()
    try:
        return FixedNormalisation(offset=tuple(map(float, linear.offset)), scale=tuple(map(float, linear.scale)))
    except ValidationError as error:
        raise ModelPackageError(
            f"{where}: its processing steps come to an offset or scale that float32 has no room for: {first_problem(error)}."
        ) from None


def activation_of(steps: Sequence[Any], axes: Axes, where: str) -> Activation:
    """What post-processing does with the network's output: a sigmoid, a soft-max over the channels, or nothing.

    Raises:
        ModelPackageError: naming the first step that is something else.
    """
    found: Activation = "none"
    for step in steps:
        if step.id == "ensure_dtype" and str(step.kwargs.dtype).startswith("float"):
            continue
        if found != "none" or step.id not in ("sigmoid", "softmax"):
            raise _refused(step, where, "it has no counterpart; a sigmoid, or a soft-max over the channels, has")
        if step.id == "softmax" and str(step.kwargs.axis) != axes.channel:
            raise _refused(
                step, where, f"it runs along axis {step.kwargs.axis}; along the channels ({axes.channel}) it has a counterpart"
            )
        found = "sigmoid" if step.id == "sigmoid" else "softmax"
    return found


def _statistic(step: Any, axes: Axes, linear: _Linear, where: str) -> Normalised:
    given = step.kwargs.axes
    over = {axes.batch, axes.channel, *axes.spatial} if given is None else {str(name) for name in given}
    unknown = sorted(over - {axes.batch, axes.channel, *axes.spatial})
    if unknown or not over >= set(axes.spatial):
        raise _refused(
            step, where, f"its axes are {', '.join(sorted(over))}; statistics are over all of {', '.join(axes.spatial)}"
        )
    joint = axes.channel in over and len(axes.channel_names) > 1
    if len(set(linear.scale)) > 1 or (joint and len(set(linear.offset)) > 1):
        raise _refused(step, where, "the channels are scaled differently before")
    # With z = (value - offset) / scale, (z - mean z) / (deviation z + eps) = (value - mean) / (deviation + eps scale).
    eps = float(step.kwargs.eps * linear.scale[0])
    try:
        if step.id == "zero_mean_unit_variance":
            return MomentsNormalisation(joint=joint, eps=eps)
        if step.kwargs.reference_tensor is not None and (linear.offset.any() or (linear.scale != 1).any()):
            raise _refused(step, where, f"its percentiles are those of {step.kwargs.reference_tensor} before it is scaled")
        return ImageNormalisation(low=step.kwargs.min_percentile, high=step.kwargs.max_percentile, joint=joint, eps=eps)
    except ValidationError as error:
        raise _refused(step, where, first_problem(error)) from None


def check_reference(steps: Sequence[Any], name: str, where: str) -> None:
    """Refuse percentiles of another tensor than the input ``name`` itself."""
    for step in steps:
        reference = getattr(step.kwargs, "reference_tensor", None)
        if reference is not None and str(reference) != name:
            raise _refused(step, where, f"it looks at the tensor {reference}; only those of {name} itself are known")


def _check_float(step: Any, where: str) -> None:
    if str(step.kwargs.dtype) != "float32":
        raise _refused(step, where, f"it makes {step.kwargs.dtype} of the image; networks here take float32")


def _numbers(step: Any, value: Any, axes: Axes, where: str) -> Numbers:
    """One number a channel."""
    along = getattr(step.kwargs, "axis", None)
    count = len(axes.channel_names)
    given: list[float] = list(value) if isinstance(value, list | tuple) else [float(value)] * count
    if (along is not None and str(along) != axes.channel) or len(given) != count:
        raise _refused(
            step, where, f"it has {len(given)} numbers along {along}, the image {counted(count, 'channel')} along {axes.channel}"
        )
    return np.asarray(given, dtype=np.float64)


def _refused(step: Any, where: str, why: str) -> ModelPackageError:
    return ModelPackageError(f"{where}: processing step '{shorten(str(step.id))}' cannot be taken over: {why}.")
