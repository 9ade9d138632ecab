"""Budgets: what is spent, in flight and next together stay below them; a run that stopped goes on to the bytes of an undisturbed one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unet_core.agenda import Agenda
from unet_core.budget import Capped, Purse
from unet_core.errors import JobError
from unet_core.job import make_job
from unet_core.ledger import Record, find_plan
from unet_core.prices import Budget, Price, parse_budget, parse_price
from unet_core.segment import run
from unet_core.spending import every_record
from unet_core.stages import stages_of
from unet_core.store import open_store

Maker = Callable[..., Path]


def record(index: int, seconds: float, stage: str = "segment") -> Record:
    return Record(
        plan="p", request="r", stage=stage, index=index, objects=(), voxels=1, seconds={"predict": seconds, "wait": 100.0},
        hardware="h", software={},
    )  # fmt: skip


def agenda(count: int) -> Agenda:
    return Agenda(stages_of([((count, 1), (1, 1))], (1, 1), has_instances=False), {"segment": range(count)})


@pytest.mark.parametrize("in_flight", [1, 3, 8])
def test_units_are_handed_out_while_spent_in_flight_and_next_fit(in_flight: int) -> None:
    purse = Purse(Budget(20.0, None, "20s"))
    units, flying, done = Capped(agenda(100), purse, "out"), [], 0
    while True:
        while len(flying) < in_flight and (unit := units.take()) is not None:
            flying.append(unit)
        if not flying:
            break
        stage, index = flying.pop(0)
        units.committed(stage, index)
        purse.add("out", record(index, 1.0))
        done += 1
    assert (done, purse.spent_seconds) == (20, 20.0)  # waiting costs nothing
    assert purse.is_stopped
    assert "20s: 0.00556 worker hours of 0.00556 worker hours are spent" in purse.sentence()


def test_what_varies_is_expected_to_take_a_standard_deviation_more_and_what_failed_as_much_as_others() -> None:
    purse = Purse(Budget(10.0, None, "10s"))
    purse.know([record(0, 1.0), record(1, 3.0)])  # mean 2, standard deviation 1.41
    assert purse.reserve("out", "segment", 0)  # fails, and is never told of
    assert not purse.reserve("out", "join", 0)  # 4 + 3.41 + 3.41 > 10: nothing is known of join
    assert not purse.reserve("out", "segment", 1)  # once is for ever


def test_a_purse_is_shared_by_outputs_and_spent_by_what_earlier_runs_took() -> None:
    purse = Purse(Budget(4.0, None, "4s"))
    purse.know([record(7, 1.0), record(8, 1.0)])
    first, second = (Capped(agenda(5), purse, name) for name in "ab")
    assert first.take() is not None
    assert second.take() is not None
    assert first.take() is None
    assert second.take() is None
    spent = Purse(Budget(4.0, None, "4s"))
    spent.know([record(0, 4.0)])
    assert spent.is_stopped
    assert Capped(agenda(5), None, "c").take() == ("segment", 0)


def test_prices_and_budgets_are_read_and_refused_by_their_words() -> None:
    assert parse_price(" 2.50 EUR ") == Price(2.5, "EUR")
    assert str(parse_price("0.035USD")) == "0.035 USD"
    assert parse_budget("90min", None).work_seconds == 5400
    assert parse_budget("5 €", Price(2.0, "€")).work_seconds == 9000
    for text, price, words in [
        ("five", None, "write worker hours, such as '2h'"),
        ("0h", None, "write worker hours"),
        ("-1h", None, "write worker hours"),
        ("1e3h", None, "write worker hours"),
        ("5 EUR", None, "price of a worker is not known; give --price"),
        ("5 USD", Price(1.0, "EUR"), "budget is in USD, the price in EUR"),
        ("5 EUR", Price(0.0, "EUR"), "costs nothing"),
    ]:
        with pytest.raises(JobError, match=words):
            parse_budget(text, price)
    for text in ("EUR", "2h", "", "2.5", "nan EUR", "2 EUR/h"):
        with pytest.raises(JobError, match="price is"):
            parse_price(text)


def test_what_was_spent_before_is_the_work_of_all_records(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    job = make_job(image=str(make_image((300, 40))), output=str(tmp_path / "out"), model=str(make_model()), block_shape=(32, 32))
    records: list[Record] = []
    run(job, records.append)
    store = open_store(job.output)
    plan = find_plan(store)
    assert plan is not None
    purse = Purse(Budget(1e9, None, "much"))
    purse.know(every_record(store, plan))
    phases = ("read", "predict", "encode", "write", "level")
    assert len(records) == 20 + 5
    assert purse.spent_seconds == pytest.approx(sum(found.seconds.get(phase, 0.0) for found in records for phase in phases))
    assert all(found.ended for found in every_record(store, plan))
