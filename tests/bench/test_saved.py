"""The table of what is kept for backward.

Its dry run against real ones, and the anchors that it must reproduce.
"""

import pytest

pytest.importorskip("transformers")
from bench import saved  # noqa: E402

SMALL = dict(
    hidden_size=64,
    intermediate_size=176,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=32,
)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("method", saved.METHODS)
def test_the_dry_run_tells_what_the_real_one_holds(method, padded):
    if "PEFT" in method:
        pytest.importorskip("peft")
    if method in saved.BY_VALUES:
        pytest.skip("chooses its entries by their values, so it runs for real only")
    dry, real = (
        saved.per_layer(method, 2, 16, padded, real, shape=SMALL) for real in (False, True)
    )
    assert dry == real


@pytest.mark.parametrize(
    "method, expected",
    [
        ("full fine-tuning", 22.0),
        ("all frozen", 15.29),
        ("5% columns", 15.57),
        ("all frozen, lean", 10.535),
    ],
)
def test_the_anchors(method, expected):
    assert saved.per_layer(method, 2, 32, padded=False) == pytest.approx(expected, abs=0.05)


def test_few_tokens_tell_of_many():
    pytest.importorskip("peft")
    many = saved.per_layer("SHiRA r8 (PEFT)", 1, 48, padded=False, real=True, shape=SMALL)
    assert saved.from_few_tokens("SHiRA r8 (PEFT)", 48, shape=SMALL) == pytest.approx(
        many, rel=0.01
    )


def test_the_table_has_a_row_of_each_method():
    pytest.importorskip("peft")
    for method in ("all frozen", *saved.BY_VALUES):
        numbers = saved.measured(method, 1, 16, shape=SMALL)
        assert len(numbers) == (1 if method in saved.BY_VALUES else 2) and min(numbers) > 0
