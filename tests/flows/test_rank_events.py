"""What the supervisor of a group makes of events and outcomes that come in an unusual order; no cluster."""

from __future__ import annotations

from typing import Any

from flows.launch_rank import RankOrder
from flows.train_ranks import Supervision, _Attempt


class RankFuture:
    """Of a rank that is over."""

    status = "finished"

    def __init__(self, outcome: dict[str, Any]) -> None:
        self._outcome = outcome

    def done(self) -> bool:
        return True

    def result(self) -> dict[str, Any]:
        return self._outcome


class FakeClient:
    """Of a cluster with two workers, whose rank 0 dies at once."""

    def __init__(self) -> None:
        self.ranks: list[int] = []

    def submit(self, task: Any, order: RankOrder, **options: Any) -> RankFuture:
        self.ranks.append(order.rank)
        return RankFuture({"kind": "done"} if order.rank else {"kind": "died", "message": "its process ended with code 1"})

    def cancel(self, futures: list[RankFuture], force: bool) -> None:
        pass

    def unsubscribe_topic(self, topic: str) -> None:
        pass

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": dict.fromkeys(("first", "second"))}


def test_a_rank_may_end_before_its_address_is_heard() -> None:
    client = FakeClient()
    attempt = _Attempt(client, "folder", Supervision(ranks=2), ["first", "second"], print)  # type: ignore[arg-type]
    attempt._submit(attempt._first)
    attempt._events.put({"kind": "address", "rank": 0, "address": "tcp://127.0.0.1:1"})
    attempt._take_outcomes()
    assert client.ranks == [0, 1]
    assert attempt.outcomes[0]["kind"] == "died"


def test_a_group_that_is_ended_starts_no_further_ranks() -> None:
    client = FakeClient()
    attempt = _Attempt(client, "folder", Supervision(ranks=2), ["first", "second"], print)  # type: ignore[arg-type]
    attempt._submit(attempt._first)
    for event in ({"kind": "started"}, {"kind": "address", "address": "tcp://127.0.0.1:1"}, {"kind": "ended"}):
        attempt._events.put({"rank": 0} | event)
    attempt._take(attempt._events.get())
    attempt.end()
    assert client.ranks == [0]
