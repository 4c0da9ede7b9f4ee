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
