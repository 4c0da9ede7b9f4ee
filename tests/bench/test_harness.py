"""Interleaving under a fake clock: order, budget, pairs."""

import pytest

from bench import harness


class Clock:
    """A clock that moves only when a variant says so; and how often the core was lost."""

    def __init__(self):
        self.now, self.calls, self.lost = 0.0, [], 0

    def __call__(self):
        return self.now

    def variant(self, name, seconds):
        def call():
            self.calls.append(name)
            self.now += seconds

        return call


@pytest.fixture
def clock():
    return Clock()


def test_the_order_turns_and_is_reversed_every_second_round():
    names = ["a", "b", "c"]
    assert [harness.order_of(names, n) for n in range(3)] == [
        ["a", "b", "c"],
        ["a", "c", "b"],
        ["c", "a", "b"],
    ]
    before = {
        (o[i - 1], o[i]) for o in (harness.order_of(names, n) for n in range(6)) for i in (1, 2)
    }
    assert len(before) == 6  # everyone follows everyone at some time


def test_two_take_turns_at_being_the_first():
    assert [harness.order_of(["a", "b"], n) for n in range(4)] == [["a", "b"], ["b", "a"]] * 2


def test_each_variant_is_timed_once_a_round(clock):
    samples = harness.interleave(
        {"a": clock.variant("a", 0.01), "b": clock.variant("b", 0.02)}, 0.2, clock=clock
    )
    assert all(t == pytest.approx(0.01) for t in samples["a"].values())
    assert all(t == pytest.approx(0.02) for t in samples["b"].values())
    assert set(samples["b"]) <= set(samples["a"]) and list(samples["a"]) == sorted(samples["a"])


def test_the_budget_holds_and_a_slow_variant_costs_the_others_nothing(clock):
    fast = {name: clock.variant(name, 0.001) for name in "abc"}
    samples = harness.interleave(
        {**fast, "slow": clock.variant("slow", 1.0)}, 2.0, least=5, clock=clock
    )
    assert len(samples["slow"]) == harness.FEWEST
    assert clock.calls.count("slow") == harness.FEWEST + 1  # warm after one call
    assert all(len(samples[name]) >= 400 for name in fast)
    assert set(samples["slow"]) <= set(samples["a"])


def test_short_calls_are_repeated_within_a_sample(clock):
    samples = harness.interleave({"a": clock.variant("a", 1e-6)}, 0.001, warm_up=1, clock=clock)
    assert clock.calls.count("a") > 200 * len(samples["a"])
    assert samples["a"][0] == pytest.approx(1e-6)


def test_the_number_of_rounds_is_bounded(clock):
    samples = harness.interleave(
        {"a": clock.variant("a", 0.001), "b": clock.variant("b", 0.001)}, 1e9, most=7, clock=clock
    )
    assert len(samples["a"]) == len(samples["b"]) == 7


def losing(clock, seconds, times):
    """A variant that loses its core, and takes 4 ms more, in its first `times` calls after the
    warm-up.
    """
    quiet, calls = clock.variant("a", seconds), iter(range(1 << 20))

    def call():
        quiet()
        if 2 <= next(calls) < 2 + times:
            clock.now += 0.004
            clock.lost += 1

    return call


@pytest.mark.parametrize(
    ("seconds", "times", "first", "disturbed"),
    [
        (0.001, 0, 0.001, 0),
        (0.001, 1, 0.001, 0),
        (0.001, 3, 0.001, 0),
        (0.001, 4, 0.005, 1),
        (0.09, 1, 0.094, 0),
    ],
)
def test_a_short_sample_that_lost_its_core_is_taken_again(clock, seconds, times, first, disturbed):
    found = {}
    variants = {"a": losing(clock, seconds, times), "b": clock.variant("b", seconds)}
    samples = harness.interleave(
        variants, 1.0, clock=clock, switches=lambda: clock.lost, disturbed=found
    )
    assert samples["a"][0] == pytest.approx(first) and found == {"a": disturbed, "b": 0}
    assert all(taken == pytest.approx(seconds) for taken in list(samples["a"].values())[1:])


def test_a_core_that_is_always_lost_doubles_the_budget_at_most(clock):
    found = {}
    variants = {name: losing(clock, 0.001, 1 << 20) for name in "ab"}
    samples = harness.interleave(
        variants, 0.5, clock=clock, switches=lambda: clock.lost, disturbed=found
    )
    assert clock.now == pytest.approx(1.0, rel=0.05)
    assert found == {name: len(samples[name]) for name in "ab"}


def test_the_system_tells_of_lost_cores():
    assert isinstance(harness.preempted(), int) and harness.preempted() >= 0
