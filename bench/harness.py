"""Interleaved timing: every variant once a round, in an order that turns, so that drift of the
machine hits all alike.
"""

import functools
import gc
import math
import time

try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:  # not on Windows
    getrusage = None

SHORTEST = (
    200e-6  # seconds of one sample: shorter calls are repeated, or the clock itself would show
)
LONG = 0.1  # seconds: a call that takes this long is warm after one
FEWEST = 3  # rounds of every variant, however slow
# Seconds: where a thread loses its core to another process the scheduler gives it back after 4 ms
# or a few times that. In a sample that is shorter than this it would be most of the time, in a
# longer one it is next to nothing.
SLICES = 0.02
AGAIN = 3  # times that a sample which lost its core is taken once more, before one is kept as it is


def order_of(names, number):
    """The order of a round: rotated by one each round, reversed every second, so that nobody keeps
    the same predecessor.

    For two, to rotate is to reverse, and both together would be the first order again.
    """
    shift = number % len(names)
    turned = names[shift:] + names[:shift]
    return turned[::-1] if number % 2 and len(names) > 2 else turned


def preempted():
    """How often a thread of this process has lost its core to another so far.

    0 where the system does not tell.
    """
    return getrusage(RUSAGE_SELF).ru_nivcsw if getrusage else 0


def timed(call, repeats, clock):
    """Seconds of `repeats` calls by the clock of the host."""
    begin = clock()
    for _ in range(repeats):
        call()
    return clock() - begin


def interleave(
    variants,
    seconds,
    *,
    warm_up=2,
    least=5,
    most=2000,
    timer=timed,
    shortest=SHORTEST,
    clock=time.perf_counter,
    switches=preempted,
    disturbed=None,
):
    """{name: {round: seconds of one call}} of the variants {name: callable}.

    seconds: the budget of all together, warm-up not counted. A variant runs until it has used its
    fair share of the budget, and in the first `least` rounds in any case (in the first FEWEST,
    where one call takes much of the budget): a slow competitor does not cost the others their
    samples, and every one has rounds in common with every other.
    timer: what takes a sample, as `timed`; shortest: seconds of a sample, for which calls are
    repeated.
    disturbed: a dict that gets {name: samples that lost their core and stand in the result all the
    same}; see `_sample`, whose dropped samples take as long as the budget once more at most.
    """
    names = list(variants)
    if not names:
        return {}
    repeats = {name: _warm(variants[name], warm_up, shortest, clock) for name in names}
    samples, spent, kept = (
        {name: {} for name in names},
        dict.fromkeys(names, 0.0),
        dict.fromkeys(names, 0),
    )
    fair, spare = seconds / len(names), seconds
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(most):
            active = [
                name
                for name in order_of(names, number)
                if number < FEWEST
                or spent[name] < fair
                or (number < least and spent[name] < seconds)
            ]
            if not active or (number >= least and len(active) < min(2, len(names))):
                break
            for name in active:
                sample = functools.partial(timer, variants[name], repeats[name], clock)
                begin = clock()
                taken, again, lost = _sample(sample, switches, spare)
                samples[name][number] = taken / repeats[name]
                spent[name] += clock() - begin - again
                spare -= again
                kept[name] += lost
    finally:
        if collecting:
            gc.enable()
    if disturbed is not None:
        disturbed.update(kept)
    return samples


def _sample(sample, switches, spare):
    """(seconds, seconds of those that were dropped, whether it lost its core).

    A short sample in which a thread lost its core is the scheduler's figure, not the code's: it is
    dropped and taken again, whichever variant it is of, AGAIN times at most and while the dropped
    ones stay under `spare` seconds.
    """
    dropped = 0.0
    for left in range(AGAIN, -1, -1):
        before = switches()
        taken = sample()
        lost = taken < SLICES and switches() > before
        if not lost or not left or dropped + taken > spare:
            return taken, dropped, lost
        dropped += taken


def _warm(call, times, shortest, clock):
    """Run a variant `times` times, once if that takes long, and say how many calls make
    one sample.
    """
    taken = timed(call, 1, clock)
    for _ in range(times - 1):
        if taken < LONG:
            taken = min(taken, timed(call, 1, clock))
    return max(1, min(10_000, math.ceil(shortest / max(taken, 1e-9))))
