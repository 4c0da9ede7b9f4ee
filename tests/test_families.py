"""Families: parameters that differ in the numbers of their layers only are told as one."""

from sparse_ft.families import families


def labels(*names, kind=0):
    return [family.label for family in families((name, kind) for name in names)]


def test_numbers_that_vary_become_stars():
    assert labels("m.0.q", "m.0.k", "m.1.q", "m.1.k") == ["m.*.q ×2", "m.*.k ×2"]
    assert labels("a.0.x.3", "a.1.x.3") == ["a.*.x.3 ×2"] and labels("a.0.x.3", "a.1.x.4") == [
        "a.*.x.* ×2"
    ]


def test_numbers_at_the_end_of_a_word():
    assert labels(
        "layers.layer_0.q", "layers.layer_1.q", "layers.layer_1.fc1", "layers.layer_1.fc2"
    ) == ["layers.layer_*.q ×2", "layers.layer_1.fc1", "layers.layer_1.fc2"]


def test_a_single_name_stays_as_it_is():
    assert labels("m.0.q", "n.0.q", "v2.weight") == ["m.0.q", "n.0.q", "v2.weight"]


def test_kinds_are_kept_apart():
    grouped = families([("m.0.q", "rows"), ("m.1.q", "columns"), ("m.2.q", "rows")])
    assert [(family.label, family.names) for family in grouped] == [
        ("m.*.q ×2", ["m.0.q", "m.2.q"]),
        ("m.1.q", ["m.1.q"]),
    ]
