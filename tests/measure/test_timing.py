from __future__ import annotations

import pytest

from mmad_fast.errors import InvalidInputError
from mmad_fast.measure import timing
from mmad_fast.measure.timing import Timing, time_interleaved


def test_percentiles_and_rate_by_hand():
    # 1..101: the percentile q of 101 equally spaced values is 1 + q. Mean 51 -> 1000 / 51 fps.
    result = Timing.from_latencies([float(ms) for ms in range(101, 0, -1)])
    assert (result.p50_ms, result.p95_ms, result.p99_ms) == pytest.approx((51, 96, 100))
    assert result.mean_ms == pytest.approx(51)
    assert result.runs == 101
    assert result.fps == pytest.approx(1000 / 51)


@pytest.mark.parametrize(
    ("runs", "has_p95", "has_p99"),
    [
        (1, False, False),
        (19, False, False),
        (20, True, False),
        (99, True, False),
        (100, True, True),
    ],
)
def test_no_percentile_that_would_only_be_the_slowest_call(runs, has_p95, has_p99):
    result = Timing.from_latencies([10.0] * runs)
    assert result.p50_ms == 10
    assert result.p95_ms == (10 if has_p95 else None)
    assert result.p99_ms == (10 if has_p99 else None)


def test_the_rate_counts_slow_calls():
    # Nine calls of 10 ms and one of 910: 10 calls in a second, though the median says 100.
    result = Timing.from_latencies([10.0] * 9 + [910.0])
    assert result.fps == pytest.approx(10)
    assert result.p50_ms == pytest.approx(10)


@pytest.mark.parametrize("latencies", [[], [0.0], [1.0, float("nan")]])
def test_latencies_that_make_no_sense_are_refused(latencies):
    with pytest.raises(InvalidInputError, match="positive finite"):
        Timing.from_latencies(latencies)


def test_functions_are_called_in_turns_and_the_slow_ones_spread_over_the_rounds(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    latencies = time_interleaved(functions, num_runs={"a": 6, "b": 2, "c": 1})
    assert "".join(calls) == "abc" + "a" + "a" + "ab" + "a" + "a"
    assert {name: len(values) for name, values in latencies.items()} == {"a": 6, "b": 2, "c": 1}
    assert set(latencies["a"]) == {1000.0}  # one tick of a second between start and end


@pytest.mark.parametrize("num_runs", [{"a": 0}, {}, {"a": 1, "b": 1}])
def test_every_function_needs_its_number_of_runs(num_runs):
    with pytest.raises(InvalidInputError, match="at least 1 run"):
        time_interleaved({"a": lambda: None}, num_runs=num_runs)
