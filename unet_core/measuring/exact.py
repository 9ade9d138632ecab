"""Sums of numbers that do not depend on their order: every number as integers times powers of 2^32. Knows arrays only.

    value = .. + piece[-1] * 2^-32 + piece[0] + piece[1] * 2^32 + ..

A float64 has 53 bits, so that it touches at most three consecutive powers; integers of up to 16 bits are their own piece 0. Pieces are
added in int64, which holds the sum of 2^30 of them, and the sums of pieces as Python's integers, which have no largest one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Exact = NDArray[np.object_]  # of Python's integers

_BITS = 32
_LOW = (1 << _BITS) - 1
_MANTISSA = 53
_SPLIT = float((1 << 27) + 1)  # divides a float64 into two of 26 bits


def is_small(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type, and their squares, are pieces themselves."""
    return dtype.kind == "b" or (dtype.kind in "iu" and dtype.itemsize <= 2)


def as_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Integers of up to 16 bits as they are, all others as float64."""
    return values if is_small(values.dtype) else values.astype(np.float64)


def squared(numbers: NDArray[Any]) -> list[NDArray[Any]]:
    """Arrays whose sum is the square of each of ``as_numbers``, exactly (of float64 between 1e-140 and 1e140).

    What a square of float64 loses by rounding is a float64 too (Dekker 1971, "A floating-point technique for extending the available
    precision"); of numbers that were float32 it is nothing.
    """
    if numbers.dtype.kind != "f":
        return [np.square(numbers, dtype=np.int64)]
    scaled = numbers * _SPLIT
    high = scaled - (scaled - numbers)
    low = numbers - high
    square = numbers * numbers
    lost = ((high * high - square) + 2 * high * low) + low * low
    return [square, lost] if lost.any() else [square]


def pieces(numbers: NDArray[Any], counted: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[Any]]]:
    """The pieces of numbers: each power of 2^32 that occurs, perhaps more than once, and integers of the shape of ``numbers``.

    Args:
        numbers: finite, from ``as_numbers`` or ``squared``.
        counted: of a shape that broadcasts; what is not counted need not be right.
    """
    if numbers.dtype.kind != "f":
        yield 0, numbers
        return
    fraction, exponent = np.frexp(numbers)
    whole = np.ldexp(fraction, _MANTISSA).astype(np.int64)
    power, shift = np.divmod(exponent.astype(np.int64) - _MANTISSA, _BITS)
    low, high = (whole & _LOW) << shift, (whole >> _BITS) << shift
    parts = low & _LOW, (low >> _BITS) + (high & _LOW), high >> _BITS
    for first in np.unique(power[counted & (whole != 0)]).tolist():
        here = power == first
        for number, part in enumerate(parts):
            yield first + number, np.where(here, part, 0)


def whole_sums(by_power: dict[int, NDArray[Any]], shape: tuple[int, ...]) -> tuple[Exact, int]:
    """Sums of pieces as integers, and the power of two that they are to be multiplied by, at most 0.

    Args:
        by_power: sum of the pieces of each power of 2^32.
        shape: of the result, for no power at all.
    """
    least = min([0, *by_power])
    total = np.zeros(shape, dtype=object)
    for power, sums in by_power.items():
        total = total + sums.astype(object) * (1 << _BITS * (power - least))
    return total, _BITS * least


def quotient(numerator: Exact, denominator: NDArray[Any], exponent: int = 0) -> NDArray[np.float64]:
    """Of integers, times two to an exponent of at most 0, rounded once."""
    return np.asarray(numerator / (denominator.astype(object) * (1 << -exponent)), dtype=np.float64)
