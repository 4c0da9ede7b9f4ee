"""Tables of an index: what they group, that they are made once, and that they go with the index or
its old values.
"""

import gc
import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from sparse_ft.kernels.selected_wgrad import prepare_selected_wgrad_triton  # noqa: E402
from sparse_ft.kernels.selected_wgrad_entries import dense_entries, strips_of_entries  # noqa: E402
from sparse_ft.kernels.selected_wgrad_gemm import dense_blocks, strips_of_blocks  # noqa: E402
from sparse_ft.kernels.selected_wgrad_splits import Tiles, chunk_of_tokens, seconds, splits_of  # noqa: E402
from sparse_ft.kernels.selected_wgrad_tables import block_strips, panels, strip_height, strips  # noqa: E402

from sparse_ft.kernels import selected_wgrad_tables  # noqa: E402


def index_of(rows, columns, density):
    return (torch.rand(rows, columns) < density).nonzero().int()


@pytest.mark.parametrize(
    "block", [(16, 16), (64, 64), (128, 128), (33, 5), (150, 16), (1, 1)], ids=str
)
@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_every_gathered_feature_is_taken_once(block, density):
    index = index_of(12, 40, density)
    if not len(index):
        return
    table = panels(index, *block)
    gathered = block[1 - table.shared]
    taken = []
    for panel, first, count, start in table.tiles.tolist():
        for at in range(start, min(start + table.width, count * gathered)):
            k = first + at // gathered
            block_index = table.order[k].item()
            assert index[block_index].tolist()[table.shared] == panel
            assert index[block_index].tolist()[1 - table.shared] == table.others[k].item()
            taken.append((block_index, at % gathered))
    assert sorted(taken) == [(b, at) for b in range(len(index)) for at in range(gathered)]
    assert sorted(table.order.tolist()) == list(range(len(index)))


def test_tiles_are_as_wide_as_the_mean_panel():
    for blocks, width in ((1, 64), (2, 128), (3, 256), (9, 256)):
        row = torch.cartesian_prod(torch.arange(1), torch.arange(blocks))
        assert panels(row, 64, 64).width == panels(row.flip(1), 64, 64).width == width
    assert panels(row, 128, 128).width == 128 and panels(row, 33, 33).width == 64


def test_made_once_for_an_index_and_anew_after_an_edit():
    index = index_of(8, 8, 0.5)
    index[0] = 0
    table = panels(index, 16, 16)
    assert panels(index, 16, 16) is table and panels(index, 32, 16) is not table
    assert panels(index.clone(), 16, 16) is not table
    index[0, 1] = 1
    assert panels(index, 16, 16) is not table


def test_an_alias_of_an_index_finds_its_tables():
    """As a compiled graph hands it over: another tensor on the same memory."""
    index = index_of(8, 8, 0.5)
    table = panels(index, 16, 16)
    assert panels(index.detach(), 16, 16) is table and panels(index.view_as(index), 16, 16) is table
    assert panels(index[:-1], 16, 16) is not table
    index[0] = torch.tensor([7, 7])
    assert panels(index.detach(), 16, 16) is not table


@pytest.mark.parametrize("kind", ["blocks", "entries"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_was_prepared_is_all_that_a_product_looks_up(kind, dtype, monkeypatch):
    index = index_of(8, 8, 1.0) if kind == "blocks" else torch.arange(0, 128 * 128, 3)
    block = (16, 16) if kind == "blocks" else (1, 1)
    prepare_selected_wgrad_triton(128, 128, dtype, kind, index, *block)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: pytest.fail("it waits"))
    empty = torch.empty(0, 128, dtype=dtype)
    if kind == "entries":
        assert dense_entries(empty, empty, index) and strips_of_entries(empty, empty, index)
    else:
        assert dense_blocks(empty, empty, index, *block)
        assert strips_of_blocks(empty, empty, index, 16)


def test_goes_with_the_index(monkeypatch):
    kept = {}
    monkeypatch.setattr(selected_wgrad_tables, "_kept", kept)
    index, entries = index_of(8, 8, 0.9), torch.arange(9)
    panels(index, 16, 16), strips(entries, 3, 3, 2)
    assert len(kept) == 2
    del index, entries
    gc.collect()
    assert not kept


def test_an_inference_tensor_is_served():
    with torch.inference_mode():
        index = torch.zeros(1, 2, dtype=torch.int32)
        assert panels(index, 16, 16).groups == [(0, 0, 1)]


def test_strips_are_slices():
    # Of 7 rows of 6: rows 0, 0, 1, 1, 5, 6.
    index = torch.tensor([0, 3, 8, 9, 30, 39], dtype=torch.int32)
    assert strips(index, 7, 6, 2) == [(0, 2, 0, 4), (4, 6, 4, 5), (6, 7, 5, 6)]
    assert strips(index, 7, 6, 7) == [(0, 7, 0, 6)]


def test_strips_of_blocks_are_slices():
    index = torch.tensor([[0, 3], [1, 0], [1, 5], [4, 1], [6, 6]], dtype=torch.int32)
    found = [(*ends, blocks.tolist()) for *ends, blocks in block_strips(index, 7, 2)]
    assert found == [
        (0, 2, 0, 3, [[0, 3], [1, 0], [1, 5]]),
        (4, 6, 3, 4, [[0, 1]]),
        (6, 7, 4, 5, [[0, 6]]),
    ]


def test_strips_are_even_and_end_with_a_tile():
    for rows in (1, 7, 63, 64, 200, 1000, 8192, 8200, 50257, 128256):
        for most in (1, 9, 130, 585, 2730, 10**6):
            for unit in (1, 16, 33, 64):
                height = strip_height(rows, most, unit)
                assert height % unit == 0 and (height <= most or height == unit)
                if most >= 8 * unit:
                    assert height % 8 == 0
                if most >= 585 and unit != 33:
                    assert height >= rows or rows % height == 0 or rows % height >= 64
    # 2730, 2730, 2730 and 2 rows, as the workspace has it
    assert strip_height(8192, 2730) == 2048


def work(density, side=4096, block=64):
    """The programs of blocks drawn at random."""
    across = side // block
    flat = torch.randperm(across**2, generator=torch.Generator().manual_seed(0))
    flat = flat[: round(density * across**2)].sort().values
    table = panels(torch.stack([flat // across, flat % across], 1), block, block)
    numel = flat.numel() * block**2
    return Tiles(table.tiles.size(0), block, table.width, table.loads, numel)


def test_no_other_split_takes_less_time():
    for density in (0.001, 0.01, 0.05, 0.1, 0.25):
        tiles = work(density)
        chosen = splits_of(8192, tiles)
        times = {splits: seconds(8192, tiles, splits) for splits in range(1, 17)}
        assert times[chosen] == min(times.values())
        # A part of the tokens that no processor is free for is not made.
        assert chosen == 1 or -(-tiles.programs * (chosen - 1) // 132) * 132 < 132 * 4


def test_few_blocks_are_split_and_many_are_not():
    splits = [splits_of(8192, work(density)) for density in (0.001, 0.01, 0.05, 0.1, 0.25)]
    assert splits[0] == 16 and 2 <= splits[1] <= 8 and splits[2:] == [1, 1, 1]


def test_parts_are_whole_tiles_of_tokens():
    lone = Tiles(programs=1, panel=64, gathered=64, loads=128, numel=4096)
    assert chunk_of_tokens(0, lone) == 0
    assert chunk_of_tokens(100, lone) == 128  # below 512 tokens there is one part
    assert chunk_of_tokens(8192, lone) == 512
    assert chunk_of_tokens(5000, lone) % 64 == 0
