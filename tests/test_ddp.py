"""DistributedDataParallel over gloo, two processes.

The joint batch's training, and only `values` travel.
"""

import math

import pytest
import torch
from helpers import ddp_worker
from helpers import ranks as processes

import sparse_ft as sft

WORLD = 2

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank left behind: [{optimiser: result}]."""
    folder = tmp_path_factory.mktemp("ddp")
    processes.start(ddp_worker.__file__, folder, world=WORLD)
    return processes.results(folder, WORLD)


@pytest.fixture(params=ddp_worker.OPTIMIZERS)
def ranks(request, results):
    """What the two ranks left behind of one optimiser."""
    return [result[request.param] for result in results]


@pytest.mark.parametrize("name", ddp_worker.EXACT)
def test_trains_as_one_process_with_the_joint_batch(name, results):
    joint = ddp_worker.net(name)
    ddp_worker.train(joint, ddp_worker.OPTIMIZERS[name](joint.parameters()))
    for key, want in sft.revert(joint).state_dict().items():
        torch.testing.assert_close(results[0][name]["weights"][key], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ddp_worker.OPTIMIZERS)
def test_every_rank_trains_the_same_selection(name, results):
    """Rounding by chance included: its seed is the optimiser's, not the process's."""
    model = sft.revert(ddp_worker.net(name))
    for key, born in model.state_dict().items():
        first, second = (rank[name]["weights"][key] for rank in results)
        assert torch.equal(first, second), key
        what = ddp_worker.PLAN.get(key)
        assert (what is not None) == (not torch.equal(first, born)), key
        if isinstance(what, sft.Selection):
            shape = sft.matrix_shape(model, key)
            assert torch.equal(
                first.view(shape)[~what.mask(shape)], born.view(shape)[~what.mask(shape)]
            ), key


def test_only_values_travel(ranks):
    """A step is one all-reduce as long as all values together, and DDP's own broadcast of the
    model's buffer of 5.
    """
    for rank in ranks:
        calls = sorted(name for name, _ in rank["collectives"] if name.startswith("c10d::"))
        assert calls == ["c10d::allreduce_", "c10d::broadcast_"]
        sent = {
            name: sum(math.prod(shape) for shape in shapes)
            for name, shapes in rank["collectives"]
            if name.startswith("gloo:")
        }
        assert sent == {"gloo:all_reduce": rank["values"], "gloo:broadcast": 5}
