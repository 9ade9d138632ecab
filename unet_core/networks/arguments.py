"""What every network asks of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

from unet_core.errors import ModelPackageError


def check(network: str, dims: int, padding: str, **counts: int | Sequence[int]) -> None:
    """Refuse what makes no network: another number of axes, an unknown padding, a count below 1.

    Args:
        network: with its article, as the message begins.
        dims: 2 or 3.
        padding: "valid" or "same".
        **counts: channels, levels and the like, each at least 1; of a sequence, each entry.

    Raises:
        ModelPackageError: with the value of the argument at fault.
    """
    if dims not in (2, 3):
        raise ModelPackageError(f"{network} needs dims 2 or 3; got dims={dims!r}.")
    if padding not in ("valid", "same"):
        raise ModelPackageError(f"{network} needs padding 'valid' or 'same'; got padding={padding!r}.")
    for name, value in counts.items():
        if min(value, default=0) < 1 if isinstance(value, Sequence) else value < 1:
            raise ModelPackageError(f"{network} needs {name} of at least 1; got {name}={value}.")
