"""The page on scaling: its tables are made by the command that it names."""

import pytest

pytest.importorskip("transformers")

from bench import scaling  # noqa: E402


def test_tables_of_a_small_model_have_a_row_a_plan_and_selections_send_less():
    told = {}
    plans = "everything", "columns, 1 %"
    for what in plans:
        config = scaling.llama(128, 256, 1, 8)
        told["tiny", what] = scaling.traffic_of(config, scaling.PLANS[what], 16)
    tables = scaling.sections(told)
    assert set(tables) == set(scaling.DEVICES)
    for strategy in ("ddp", "fsdp2"):
        assert told["tiny", "columns, 1 %"].on(8, strategy).sent < (
            told["tiny", "everything"].on(8, strategy).sent
        )
        for what in plans:
            assert f"tiny, {what}" in tables[strategy]


def test_the_page_has_a_table_a_strategy_and_a_row_a_model_and_plan():
    page = scaling.PAGE.read_text()
    for strategy in scaling.DEVICES:
        table = page.partition(f"<!-- {strategy} -->")[2].partition(f"<!-- end {strategy} -->")[0]
        for model in scaling.MODELS:
            for what in scaling.PLANS:
                assert f"| {model}, {what} " in table
