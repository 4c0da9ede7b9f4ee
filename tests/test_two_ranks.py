"""In two processes with batches of their own, training is what it is in one with all of them."""

import sys

import pytest
import torch
from helpers import zeroth_order_worker as worker
from helpers.ranks import results, start_forked


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_steps_by_forward_passes_and_reparametrised_deltas(tmp_path):
    start_forked(worker.__file__, tmp_path, world=2)
    whole = worker.batches()
    want = worker.by_forward_passes(whole), worker.with_deltas(whole, lambda net: net)
    ranks = results(tmp_path)
    for number, alone in enumerate(want):
        for first, second, single in zip(ranks[0][number], ranks[1][number], alone, strict=True):
            assert torch.equal(first, second)
            torch.testing.assert_close(first, single, atol=1e-9, rtol=0)
