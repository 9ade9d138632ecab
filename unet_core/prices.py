"""What an hour of a worker costs, and how many of them, or how much money, a run may take. Knows no ledger and no cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unet_core.errors import JobError

HOUR = 3600.0  # seconds
_UNITS = {"h": HOUR, "min": 60.0, "s": 1.0}
_MOST = 1e12  # of money or hours; more is a typing error
_AMOUNT = re.compile(r"(?P<amount>[0-9]{1,15}(?:\.[0-9]{1,9})?) ?(?P<unit>[^\W\d_]{1,10}|[^\w\s]{1,3})")


@dataclass(frozen=True)
class Price:
    """What one worker costs for an hour; ``currency`` is any short word or sign."""

    amount: float
    currency: str

    def of(self, work_seconds: float) -> float:
        """Money for seconds of work."""
        return self.amount * work_seconds / HOUR

    def words(self, work_seconds: float) -> str:
        """Money for seconds of work, as text.

        Example:
            >>> Price(2.5, "EUR").words(7200), Price(2.5, "EUR").words(1)
            ('5.00 EUR', '0.000694 EUR')
        """
        return money(self.of(work_seconds), self.currency)

    def __str__(self) -> str:
        return f"{self.amount:.6g} {self.currency}"


@dataclass(frozen=True)
class Budget:
    """How many seconds of work an output may take altogether.

    Args:
        work_seconds: of all workers together, earlier runs included.
        price: of an hour of them, if it is known.
        asked: as it was written.
    """

    work_seconds: float
    price: Price | None
    asked: str

    def words(self, work_seconds: float) -> str:
        """So many seconds of work in worker hours, with the money if there is a price."""
        return hours(work_seconds) + (f" ({self.price.words(work_seconds)})" if self.price else "")


def money(amount: float, currency: str) -> str:
    """An amount with its currency; small ones keep three digits."""
    return f"{amount:,.2f} {currency}" if amount == 0 or amount >= 0.1 else f"{amount:.3g} {currency}"


def hours(work_seconds: float) -> str:
    """Seconds of work as worker hours.

    Example:
        >>> hours(5400), hours(3)
        ('1.50 worker hours', '0.000833 worker hours')
    """
    value = work_seconds / HOUR
    return f"{value:,.2f} worker hours" if value == 0 or value >= 0.1 else f"{value:.3g} worker hours"


def parse_price(text: str) -> Price:
    """The price of a worker for an hour.

    Raises:
        JobError: if it is none.

    Example:
        >>> parse_price("2.50 EUR"), parse_price("3$")
        (Price(amount=2.5, currency='EUR'), Price(amount=3.0, currency='$'))
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or float(found["amount"]) > _MOST:
        raise JobError(f"price is {text[:60]!r}; write what a worker costs for an hour and the currency, such as '2.50 EUR'.")
    if found["unit"] in _UNITS:
        raise JobError(f"price is {text[:60]!r}, which names a time; write a currency, such as '2.50 EUR' (for an hour).")
    return Price(float(found["amount"]), found["unit"])


def parse_budget(text: str, price: Price | None) -> Budget:
    """A budget in worker hours (``2h``, ``90min``, ``30s``) or in the currency of a price (``5 EUR``).

    Raises:
        JobError: if it is none, or there is no price to tell what money buys.

    Example:
        >>> parse_budget("2h", None).work_seconds, parse_budget("5 EUR", Price(2.5, "EUR")).work_seconds
        (7200.0, 7200.0)
    """
    found = _AMOUNT.fullmatch(text.strip())
    amount = float(found["amount"]) if found else 0.0
    if found is None or not 0 < amount <= _MOST:
        raise JobError(f"budget is {text[:60]!r}; write worker hours, such as '2h' or '90min', or money, such as '5 EUR'.")
    if found["unit"] in _UNITS:
        return Budget(amount * _UNITS[found["unit"]], price, text.strip())
    if price is None:
        raise JobError(
            f"budget is {text[:60]!r}, but the price of a worker is not known; give --price, such as '2.50 {found['unit']}' for an hour, "
            "or a budget in worker hours, such as '2h'."
        )
    if price.currency != found["unit"]:
        raise JobError(f"budget is in {found['unit']}, the price in {price.currency}; give both in one currency.")
    if price.amount == 0:
        raise JobError(f"budget is {text[:60]!r}, but a worker costs nothing; give a price, or a budget in worker hours ('2h').")
    return Budget(amount * HOUR / price.amount, price, text.strip())
