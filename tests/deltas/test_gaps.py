"""Positions as gaps: every set of positions comes back, in the bytes that were promised, and damage
is a ValueError.
"""

import numpy as np
import pytest

from sparse_ft.deltas import gaps


def some_positions(draw, count, bound):
    return np.sort(draw.choice(bound, count, replace=False)).astype(np.int64)


def test_every_set_of_positions_comes_back():
    draw = np.random.default_rng(0)
    for _ in range(300):
        bound = int(draw.choice([1, 2, 256, 300, 70_000, 300_000]))
        index = some_positions(draw, int(draw.integers(1, min(bound, 2000) + 1)), bound)
        packed = gaps.encode(index)
        assert packed.dtype in (np.uint8, np.uint16)
        back = gaps.decode(packed, len(index), bound)
        assert back.dtype == np.int32 and np.array_equal(back, index)


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 65534, 65535, 65536, 131070])
def test_gaps_around_the_escapes(gap):
    index = np.array([gap, 2 * gap + 1, 2 * gap + 2], np.int64)
    packed = gaps.encode(index)
    assert np.array_equal(gaps.decode(packed, 3, int(index[-1]) + 1), index)


def test_more_positions_than_are_looked_at_at_once(monkeypatch):
    monkeypatch.setattr(gaps, "_AT_ONCE", 7)
    index = some_positions(np.random.default_rng(1), 5000, 90_000)
    packed = gaps.encode(index)
    assert np.array_equal(gaps.decode(packed, len(index), 90_000), index)
    monkeypatch.undo()
    assert np.array_equal(packed, gaps.encode(index))


def test_positions_beyond_32_bits():
    index = np.array([5, 2**31 + 7, 2**40], np.int64)
    back = gaps.decode(gaps.encode(index), 3, 2**41)
    assert back.dtype == np.int64 and np.array_equal(back, index)


def test_the_shorter_of_both_widths_is_taken():
    """Random positions of 1 % and 5 % fit bytes, 0.1 % pairs of bytes."""
    draw, bound = np.random.default_rng(2), 1_000_000
    for density, most, dtype in (
        (0.001, 2.0, np.uint16),
        (0.01, 1.1, np.uint8),
        (0.05, 1.01, np.uint8),
    ):
        index = some_positions(draw, int(bound * density), bound)
        packed = gaps.encode(index)
        assert packed.dtype == dtype and packed.nbytes <= most * len(index)


@pytest.mark.parametrize(
    "packed, count, bound, message",
    [
        (np.array([1, 255], np.uint8), 1, 300, "the last one is an escape"),
        (np.array([1, 1, 1], np.uint8), 2, 300, "more than the 2 positions"),
        (np.array([1], np.uint8), 2, 300, "there are 1 positions, expected 2"),
        (np.array([], np.uint8), 1, 300, "there are 0 positions, expected 1"),
        (
            np.array([255, 255, 0], np.uint8),
            1,
            510,
            "position 510 is out of range, expected below 510",
        ),
        (np.array([1], np.int32), 1, 300, "expected .n. uint8 or uint16"),
        (np.zeros((1, 1), np.uint8), 1, 300, "expected .n. uint8 or uint16"),
    ],
)
def test_damage_is_named(packed, count, bound, message):
    with pytest.raises(ValueError, match=f"gaps: .*{message}"):
        gaps.decode(packed, count, bound)
