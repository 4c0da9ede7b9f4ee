"""Nested arguments are walked from left to right, and rebuilt with their own kinds of
containers.
"""

import torch

from sparse_ft.trees import leaves, map_leaves

TREE = {"a": [1, (2, None)], "b": torch.Size([3, 4]), "c": (), "d": 5}


def test_leaves_are_what_is_no_container():
    assert list(leaves(TREE)) == [1, 2, None, 3, 4, 5]
    assert list(leaves(7)) == [7]


def test_a_map_keeps_lists_tuples_and_dicts_and_takes_other_kinds_whole():
    mapped = map_leaves(lambda leaf: leaf if isinstance(leaf, torch.Size) else str(leaf), TREE)
    assert mapped == {"a": ["1", ("2", "None")], "b": torch.Size([3, 4]), "c": (), "d": "5"}
    assert type(mapped["b"]) is torch.Size
