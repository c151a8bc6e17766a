"""Workers in threads: the order and the errors of a plain loop, bounded memory, and nothing that hangs."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from detector.core import pipeline as module
from detector.core.pipeline import Pipeline, Worker

WAIT = 10.0


def jittered(value: int) -> int:
    time.sleep(random.Random(value).random() / 500)
    return value


def collect(pipeline: Pipeline) -> tuple[list[Any], BaseException | None]:
    """Return all items, and the error at the end."""
    items: list[Any] = []
    try:
        for item in pipeline:
            items.append(item)
    except Exception as error:
        return items, error
    return items, None


def all_ended(pipeline: Pipeline) -> bool:
    return not any(thread.is_alive() for thread in pipeline._threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 37])
def test_items_come_in_the_order_and_with_the_values_of_a_loop(threads: int, count: int) -> None:
    workers = [
        Worker("add", lambda value: jittered(value) + 1, threads),
        Worker("double", lambda value: 2 * value),
        Worker("text", str, threads),
    ]
    with Pipeline(range(count), workers) as pipeline:
        assert list(pipeline) == [str(2 * (value + 1)) for value in range(count)]
        assert [timing.items for timing in pipeline.timings] == [count] * 4
        assert [timing.name for timing in pipeline.timings] == ["read", "add", "double", "text"]
    assert all_ended(pipeline)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("faulty", ["read", "first", "second", "third"])
@pytest.mark.parametrize("place", [0, 7])
def test_a_fault_anywhere_ends_everything_after_the_items_before_it(
    threads: int, faulty: str, place: int
) -> None:
    def work(name: str) -> Any:
        def of(value: int) -> int:
            if name == faulty and value == place:
                raise RuntimeError(f"{name} cannot do {value}")
            return jittered(value)

        return of

    def source() -> Iterator[int]:
        yield from map(work("read"), range(10_000))

    workers = [Worker(name, work(name), threads) for name in ("first", "second", "third")]
    with Pipeline(source(), workers) as pipeline:
        items, error = collect(pipeline)
        assert items == list(range(place))
        assert str(error) == f"{faulty} cannot do {place}"
        assert all_ended(pipeline)
        assert pipeline.timings[0].items < 100  # the source was not read to its end


def test_of_several_faults_that_of_the_first_item_is_raised() -> None:
    def fail(value: int) -> int:
        if value == 3:
            time.sleep(0.05)  # the others have failed by then
        if value >= 3:
            raise ValueError(f"item {value}")
        return value

    with Pipeline(range(50), [Worker("fail", fail, 4), Worker("pass", jittered)]) as pipeline:
        items, error = collect(pipeline)
    assert (items, str(error)) == ([0, 1, 2], "item 3")


@pytest.mark.parametrize("threads", [1, 4])
def test_a_slow_last_worker_bounds_what_is_kept(threads: int) -> None:
    made, written, most = 0, 0, 0
    go = threading.Semaphore(0)

    def source() -> Iterator[int]:
        nonlocal made, most
        for value in range(60):
            made += 1
            most = max(most, made - written)
            yield value

    def write(value: int) -> int:
        nonlocal written
        assert go.acquire(timeout=WAIT)
        written += 1
        return value

    workers = [Worker("pass", lambda value: value, threads), Worker("write", write)]
    with Pipeline(source(), workers, room=2) as pipeline:
        for value in range(60):
            time.sleep(0.002)  # the others would run far ahead
            go.release()
            assert next(pipeline) == value
    # in hand: the source's next, one per thread; waiting: two, as many as threads (at least two)
    assert most <= 1 + 2 + threads + max(2, threads) + 1 + 1


def test_a_source_that_does_not_wait_drops_all_but_the_newest() -> None:
    given, taken = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 0
        assert taken.wait(WAIT)  # the worker is busy with item 0
        yield from range(1, 6)
        given.set()

    def work(value: int) -> int:
        taken.set()
        assert given.wait(WAIT)
        return value

    with Pipeline(source(), [Worker("slow", work)], newest=True, room=1) as pipeline:
        assert list(pipeline) == [0, 5]
        assert pipeline.dropped == 4


@pytest.mark.parametrize("newest", [False, True])
def test_a_stop_lets_out_what_the_source_has_given(newest: bool) -> None:
    seen: list[int] = []

    def source() -> Iterator[int]:
        value = 0
        while True:
            seen.append(value)
            yield value
            value += 1
            time.sleep(0.001)

    with Pipeline(source(), [Worker("pass", jittered)], newest=newest) as pipeline:
        first = [next(pipeline) for _ in range(3)]
        pipeline.stop()
        rest, error = collect(pipeline)
    assert error is None
    assert len(rest) < 20
    if not newest:
        assert first + rest == list(range(3 + len(rest)))
    assert all_ended(pipeline)


def test_leaving_the_block_ends_the_threads_and_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    with Pipeline(source(), [Worker("pass", jittered, 3)]) as pipeline:
        assert next(pipeline) == 0
    assert all_ended(pipeline)
    assert closed.is_set()


def test_a_source_that_does_not_answer_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    answer = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        answer.wait(WAIT)

    with Pipeline(source(), [Worker("pass", jittered)]) as pipeline:
        assert next(pipeline) == 0
    assert pipeline._threads[0].is_alive()
    assert not any(thread.is_alive() for thread in pipeline._threads[1:])
    answer.set()
    pipeline._threads[0].join(WAIT)
    assert all_ended(pipeline)


def test_the_times_add_up_to_the_time_of_the_threads() -> None:
    workers = [Worker("fast", lambda value: value), Worker("slow", lambda _: time.sleep(0.005), 2)]
    with Pipeline(range(20), workers) as pipeline:
        list(pipeline)
        for timing in pipeline.timings[1:]:
            total = timing.busy + timing.starved + timing.blocked
            assert 0 < timing.busy <= total <= timing.threads * pipeline.seconds
        slow = pipeline.timings[-1]
        assert slow.busy >= 20 * 0.005
        assert max(pipeline.timings, key=lambda timing: timing.load(pipeline.seconds)) is slow
