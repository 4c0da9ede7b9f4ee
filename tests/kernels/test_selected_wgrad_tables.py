"""Tables of an index: what they group, that they are made once, and that they go with the index or
its old values.
"""

import gc
import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from sparse_ft.kernels.selected_wgrad_tables import block_strips, panels, strips  # noqa: E402

from sparse_ft.kernels import selected_wgrad_blocks, selected_wgrad_tables  # noqa: E402


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


def test_goes_with_the_index():
    kept = selected_wgrad_tables._kept
    gc.collect()
    before = len(kept)
    index, entries = index_of(8, 8, 0.9), torch.arange(9)
    panels(index, 16, 16), strips(entries, 3, 3, 2)
    assert len(kept) == before + 2
    del index, entries
    gc.collect()
    assert len(kept) == before


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


def test_splits_follow_shape_and_density():
    chunk = selected_wgrad_blocks.chunk_of_tokens
    assert chunk(0, 9, 64, 64) == 0
    # One split: below 512 tokens a partial sum costs more than it spreads.
    assert chunk(100, 9, 64, 64) == 128
    assert chunk(8192, 1, 64, 64) == 512  # one block: as many splits as the tokens allow
    assert chunk(8192, 41, 64, 64) == 512
    assert chunk(8192, 410, 64, 64) == 2752  # three: 103 programs would fill less than half of 264
    assert chunk(8192, 4096, 64, 64) == 8192
