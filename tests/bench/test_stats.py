"""The harness's arithmetic on numbers that can be checked by hand."""

import pytest

from bench import stats


@pytest.mark.parametrize(("share", "want"), [(0, 1), (0.2, 1.8), (0.5, 3), (0.8, 4.2), (1, 5)])
def test_quantiles(share, want):
    assert stats.quantile([5, 1, 4, 2, 3], share) == pytest.approx(want)


def test_quantile_of_one_and_of_none():
    assert stats.quantile([7.0], 0.2) == 7
    with pytest.raises(ValueError, match="numbers"):
        stats.quantile([], 0.5)


def test_ratios_are_paired_by_round():
    drifting = {0: 1.0, 1: 10.0, 2: 100.0}
    assert stats.paired_ratio({r: 2 * t for r, t in drifting.items()}, drifting) == 2
    # Only the rounds that both took part in.
    assert stats.paired_ratio({1: 30.0, 7: 1.0}, drifting) == 3
    assert stats.paired_ratio({5: 1.0}, drifting) is None


def test_crossovers_lie_where_the_ratio_passes_one():
    assert stats.crossovers([0.01, 0.1, 1.0], [10.0, 1.5, 0.5]) == [
        pytest.approx(0.1 * 10 ** (0.405465 / 1.098612), rel=1e-4)
    ]
    assert stats.crossovers([1.0, 0.01], [0.1, 10.0]) == [pytest.approx(0.1)]  # in any order
    assert stats.crossovers([0.1, 0.2], [3.0, 2.0]) == []
    assert stats.crossovers([0.1, 0.2, 0.3], [3.0, None, 0.5]) == [
        pytest.approx(0.1 * 3 ** (1.098612 / 1.791759), rel=1e-4)
    ]
