"""`sft.units` finds what brute force finds, and leaves the model as it was."""

import pytest
from helpers.unit_models import ARCHITECTURES, build
from helpers.unit_oracle import Found, Oracle, columns_of, entries_of

import sparse_ft as sft

COUPLED = ("heads", "channels", "convolution_channels")
# Of what several modules read, and of what one does.
EXPECTED = {
    "Llama": {"heads": 2, "channels": 10},
    "Qwen3": {"heads": 2, "channels": 10},
    "Gemma3": {"heads": 2, "channels": 10},
    "Phi-3": {"heads": 2, "channels": 10},
    "GPT-2": {"heads": 4, "channels": 10},
    "GPT-NeoX": {"heads": 4, "channels": 10},
    "BERT": {"heads": 4, "channels": 18},
    "T5": {"heads": 12, "channels": 20},
    "ViT": {"heads": 4, "channels": 10},
    "Whisper": {"heads": 12, "channels": 20, "convolution_channels": 8},
    "Qwen3-MoE": {"heads": 2, "channels": 15, "experts": 3},
    "ResNet": {"convolution_channels": 42},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_units_are_those_of_brute_force(name):
    model, batch = build(name)
    units = sft.units(model, batch)
    counts = {kind: len(units[kind]) for kind in (*COUPLED, "experts") if units[kind]}
    assert counts == EXPECTED[name]
    oracle = Oracle(model, batch)
    alive = set(map(oracle.name_of, oracle.alive.nonzero().flatten().tolist()))
    single, shared = set(), []
    for kind in COUPLED:
        for group in units.of(kind):
            found = {
                Found(columns_of(unit, oracle.named), entries_of(unit.makes, oracle.named) & alive)
                for unit in group
            }
            readers = {(s.parameter, s.expert) for s in group.shares if s.takes}
            copies = {s.expert for s in group.shares}
            if len(readers) == len(copies):
                single |= found
            else:
                shared.append(found)
    assert single == oracle.of_single_consumers()
    for found in shared:
        assert found == set(oracle.made([unit.columns for unit in found]))


def is_query(architecture, part, index):
    """Whether a feature is a query's, as whoever wrote the model knows it: four heads."""
    module = part.parameter.split(".")[-2]
    if architecture == "GPT-2":
        return index < 8  # queries of all heads, then keys, then values
    if architecture == "Phi-3":
        return index < 16
    if architecture == "GPT-NeoX":
        return index % 6 < 2  # of each head queries, keys, values
    return module in ("q_proj", "query", "q")


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "ResNet"])
def test_query_heads_are_those_of_brute_force(name):
    """What makes a query head is what its columns alone reach and those of no other head, but for
    keys and values where each head has its own.
    """
    model, batch = build(name)
    units = sft.units(model, batch)
    oracle = Oracle(model, batch)
    groups = units.of("query_heads")
    assert sum(group.count for group in groups) == 4 * len(groups)
    assert len(groups) == len(units.of("heads"))
    for group in groups:
        columns = [columns_of(unit, oracle.named) for unit in group]
        reached = oracle.reached(columns)
        alone = reached & (reached.sum(0) == 1)
        for unit, row in zip(group, alone):
            entries = frozenset(map(oracle.name_of, row.nonzero().flatten().tolist()))
            made = entries_of(unit.makes, oracle.named)
            alive = {entry for entry in made if oracle.alive[oracle.first[entry[0]] + entry[1]]}
            assert alive <= entries and made
            features = {(p.parameter, index) for p in unit.makes for index in p.index}
            assert all(is_query(name, p, index) for p in unit.makes for index in p.index)
            assert len({index for _, index in features}) == len(unit.takes[0].index)
            if len(units["heads"]) < len(units["query_heads"]):  # shared keys and values
                assert alive == entries


def test_query_heads_are_chosen_and_train_without_keys_and_values():
    model, batch = build("Llama")
    plan = sft.select(
        model, structure="query_heads", density=0.25, score="magnitude",
        units=sft.units(model, batch),
    )  # fmt: skip
    attention = "model.layers.0.self_attn."
    assert set(plan) == {f"{attention}q_proj.weight", f"{attention}o_proj.weight"}
    rows, columns = plan[f"{attention}q_proj.weight"], plan[f"{attention}o_proj.weight"]
    assert rows.kind == "rows" and columns.kind == "columns"
    assert rows.index.tolist() == columns.index.tolist() and len(rows.index) == 4
    assert sft.convert(model, plan).trainable == 2 * 4 * 8
