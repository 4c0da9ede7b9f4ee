"""Blocks of several problems in shared launches.

The bits of each alone, for any mix of shapes, tokens and layouts.
"""

import pytest
import torch
from oracle import DEVICE, bits, gather, random, split_tokens, within_twice
from sparse_ft.kernels.selected_wgrad import (
    selected_wgrad_grouped_triton,
    selected_wgrad_grouped_triton_,
    selected_wgrad_triton,
    selected_wgrad_triton_,
)

from sparse_ft.kernels import problems, selected_wgrad_blocks, selected_wgrad_gemm

GRID = [[0, 0], [0, 2], [1, 1], [2, 0], [2, 2]]
# tokens, rows, columns, block_h, block_w, blocks: three of one tile, one more of it by block
# columns, others
SHAPES = [
    (21, 48, 48, 16, 16, GRID),
    (70, 64, 80, 16, 16, GRID + [[3, 4]]),
    (0, 48, 48, 16, 16, GRID),
    (5, 90, 16, 16, 16, [[i, 0] for i in range(6)]),
    (1, 48, 48, 16, 16, GRID[:1]),
    (150, 100, 70, 32, 32, [[0, 1], [1, 1], [2, 0], [3, 2]]),
    (33, 11, 13, 4, 4, [[0, 0], [1, 3], [2, 1], [2, 3]]),
    (8, 48, 48, 16, 16, []),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Splits over few tokens, a launch for each two problems, and panels on matrices so small that
    strips would be chosen.
    """
    monkeypatch.setattr(selected_wgrad_gemm, "DENSE_LOADS", float("inf"))
    split_tokens(monkeypatch, 40)
    monkeypatch.setattr(problems, "GROUP", 2)


def mixture(dtype=torch.float16):
    """Problems of SHAPES, and of a layout of every other kind."""
    entries = [
        (9, 7, 13, "rows", [0, 6]),
        (9, 7, 13, "columns", [1, 12]),
        (9, 7, 13, "entries", [3, 90]),
    ]
    blocks = [(t, r, c, "blocks", i, h, w) for t, r, c, h, w, i in SHAPES]
    found = []
    for tokens, rows, columns, kind, index, *block in blocks[:4] + entries + blocks[4:]:
        index = torch.tensor(index, device=DEVICE, dtype=torch.int32)
        operands = random(tokens, rows, dtype=dtype), random(tokens, columns, dtype=dtype)
        index = index.reshape(-1, 2) if kind == "blocks" else index
        found.append((*operands, kind, index, *(block or (1, 1))))
    return found


def count_launches(monkeypatch):
    """The grids of the launches that follow, by kernel."""
    grids = {}
    for name in ("_panel_kernel", "_sum_splits_kernel"):
        kernel, found = getattr(selected_wgrad_blocks, name), grids.setdefault(name, [])

        class Counted:
            def __getitem__(self, grid, kernel=kernel, found=found):
                found.append(grid)
                return kernel[grid]

        monkeypatch.setattr(selected_wgrad_blocks, name, Counted())
    return grids


def same(found, want):
    return all(torch.equal(bits(a), bits(b)) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("group, dtype", [(3, torch.float16), (16, torch.bfloat16)])
def test_the_bits_of_each_alone(group, dtype, monkeypatch):
    mix = mixture(dtype)
    want = [selected_wgrad_triton(*problem) for problem in mix]
    monkeypatch.setattr(problems, "GROUP", group)
    assert same(selected_wgrad_grouped_triton(mix), want)
    start = [random(*t.shape) for t in want]
    found, alone = [t.clone() for t in start], [t.clone() for t in start]
    selected_wgrad_grouped_triton_(found, mix)
    for values_grad, problem in zip(alone, mix):
        selected_wgrad_triton_(values_grad, *problem)
    assert same(found, alone)
    # Nor are those bits wrong together.
    for values, (grad_output, input, *layout) in zip(want, mix):
        case = grad_output.size(1), input.size(1), *layout
        plain, exact = (
            gather(grad_output.to(wide).T @ input.to(wide), case)
            for wide in (torch.float32, torch.float64)
        )
        within_twice(values, plain, exact)


def test_launches_are_shared(monkeypatch):
    """Five layers of one tile: one launch, and one more where splits or old values are added."""
    monkeypatch.setattr(problems, "GROUP", 16)
    layers = [SHAPES[0]] * 5
    same_tile = []
    for tokens, rows, columns, *block, index in layers:
        operands = [random(tokens, size, dtype=torch.float16) for size in (rows, columns)]
        same_tile.append((*operands, "blocks", torch.tensor(index, device=DEVICE), *block))
    grids = count_launches(monkeypatch)
    selected_wgrad_grouped_triton(same_tile)
    # Three panels of a layer, five layers.
    assert grids == {"_panel_kernel": [(15,)], "_sum_splits_kernel": []}
    into = [torch.zeros(5, 16, 16, device=DEVICE) for _ in layers]
    selected_wgrad_grouped_triton_(into, same_tile)
    assert [len(grid) for grid in grids.values()] == [2, 1]


def test_persistent_programs_give_the_same_bits(monkeypatch):
    """Fewer programs than tiles, each of which takes several, of one problem and of the next."""
    mix = mixture()
    want = selected_wgrad_grouped_triton(mix)
    monkeypatch.setattr(problems, "GROUP", 16)
    monkeypatch.setattr(selected_wgrad_blocks, "PERSISTENT_FROM", 0)
    for residents in (1, 7):
        with monkeypatch.context() as some:
            some.setattr(selected_wgrad_blocks, "_residents", lambda *_: residents)  # noqa: B023
            grids = count_launches(some)
            assert same(selected_wgrad_grouped_triton(mix), want)
            assert set(grids["_panel_kernel"]) == {(residents,)}


@pytest.mark.parametrize("what", ["ends", "splits"])
def test_a_wrong_table_is_seen(what, monkeypatch):
    """The comparison with each alone can fail.

    Where a problem ends a program early, and where tokens are left out.
    """
    mix = mixture()
    want = selected_wgrad_grouped_triton(mix)
    honest = selected_wgrad_blocks.launches, selected_wgrad_blocks.code
    if what == "ends":
        early = [
            lambda items: honest[0]((key, fields, max(1, n - 1)) for key, fields, n in items),
            honest[1],
        ]
    else:
        early = [
            honest[0],
            lambda *sizes: honest[1](
                *(max(0, n - 1) if i == 2 else n for i, n in enumerate(sizes))
            ),
        ]
    for name, dishonest in zip(("launches", "code"), early):
        monkeypatch.setattr(selected_wgrad_blocks, name, dishonest)
    assert not same(selected_wgrad_grouped_triton(mix), want)
