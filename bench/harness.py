"""Interleaved timing: every variant once a round, in an order that turns, so that drift of the machine hits all alike."""

import gc
import math
import time

SHORTEST = 200e-6  # seconds of one sample: shorter calls are repeated, or the clock itself would show
LONG = 0.5  # seconds: a call that takes this long is warm after one
FEWEST = 3  # rounds of every variant, however slow


def order_of(names, number):
    """The order of a round: rotated by one each round, reversed every second, so that nobody keeps the same predecessor.

    For two, to rotate is to reverse, and both together would be the first order again.
    """
    shift = number % len(names)
    turned = names[shift:] + names[:shift]
    return turned[::-1] if number % 2 and len(names) > 2 else turned


def interleave(variants, seconds, *, warm_up=2, least=5, most=2000, clock=time.perf_counter):
    """{name: {round: seconds of one call}} of the variants {name: callable}.

    seconds: the budget of all together, warm-up not counted. A variant runs until it has used its fair share of the budget,
    and in the first `least` rounds in any case (in the first FEWEST, where one call takes much of the budget): a slow
    competitor does not cost the others their samples, and every one has rounds in common with every other.
    """
    names = list(variants)
    repeats = {name: _warm(variants[name], warm_up, clock) for name in names}
    samples, spent = {name: {} for name in names}, dict.fromkeys(names, 0.0)
    fair = seconds / max(1, len(names))
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(most):
            active = [
                name
                for name in order_of(names, number)
                if number < FEWEST or spent[name] < fair or (number < least and spent[name] < seconds)
            ]
            if not active or (number >= least and len(active) < min(2, len(names))):
                break
            for name in active:
                taken = _sample(variants[name], repeats[name], clock)
                samples[name][number] = taken / repeats[name]
                spent[name] += taken
    finally:
        if collecting:
            gc.enable()
    return samples


def _sample(call, repeats, clock):
    begin = clock()
    for _ in range(repeats):
        call()
    return clock() - begin


def _warm(call, times, clock):
    """Run a variant `times` times, once if that takes long, and say how many calls make one sample."""
    taken = _sample(call, 1, clock)
    for _ in range(times - 1):
        if taken < LONG:
            taken = min(taken, _sample(call, 1, clock))
    return max(1, min(10_000, math.ceil(SHORTEST / max(taken, 1e-9))))
