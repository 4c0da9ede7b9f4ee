"""DistributedDataParallel over gloo, two processes: the joint batch's training, and only `values` travel."""

import math
import os
import subprocess
import sys

import pytest
import torch
from helpers import ddp_worker

import sparse_ft as sft

WORLD = 2

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank left behind: [{optimiser: result}]."""
    folder = tmp_path_factory.mktemp("ddp")
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    workers = [
        subprocess.Popen(
            [sys.executable, ddp_worker.__file__, str(rank), str(WORLD), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [worker.communicate(timeout=180)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), "\n".join(said)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.fixture(params=ddp_worker.OPTIMIZERS)
def runs(request, results):
    """(the two ranks' results, the model trained on the joint batch in this process)."""
    model = ddp_worker.net()
    ddp_worker.train(model, ddp_worker.OPTIMIZERS[request.param](model.parameters()))
    return [result[request.param] for result in results], sft.revert(model)


def test_trains_as_one_process_with_the_joint_batch(runs):
    ranks, joint = runs
    born = sft.revert(ddp_worker.net()).state_dict()
    for name, want in joint.state_dict().items():
        first, second = (rank["weights"][name] for rank in ranks)
        assert torch.equal(first, second), name
        torch.testing.assert_close(first, want, rtol=0, atol=1e-12)
        what = ddp_worker.PLAN.get(name)
        assert (what is not None) == (not torch.equal(first, born[name])), name
        if isinstance(what, sft.Selection):
            shape = sft.matrix_shape(joint, name)
            assert torch.equal(first.view(shape)[~what.mask(shape)], born[name].view(shape)[~what.mask(shape)]), name


def test_only_values_travel(runs):
    """A step is one all-reduce as long as all values together, and DDP's own broadcast of the model's buffer of 5."""
    for rank in runs[0]:
        calls = sorted(name for name, _ in rank["collectives"] if name.startswith("c10d::"))
        assert calls == ["c10d::allreduce_", "c10d::broadcast_"]
        sent = {
            name: sum(math.prod(shape) for shape in shapes) for name, shapes in rank["collectives"] if name.startswith("gloo:")
        }
        assert sent == {"gloo:all_reduce": rank["values"], "gloo:broadcast": 5}
