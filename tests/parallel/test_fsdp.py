"""FSDP2 over gloo, 2 and 4 processes: the training of one process with the joint batch."""

import pytest
import torch
from helpers import fsdp_worker, ranks, sharded_net

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module", params=[2, 4])
def results(request, tmp_path_factory):
    """What each of 2 or 4 ranks found: [{case: losses and weights}]."""
    folder = tmp_path_factory.mktemp("fsdp")
    ranks.start_forked(fsdp_worker.__file__, folder, world=request.param, seconds=300)
    return ranks.results(folder, request.param)


@pytest.fixture(scope="module")
def alone():
    """{case: losses and weights} of one process; equal trainings are run once."""
    done = {}

    def run(name):
        case = fsdp_worker.CASES[name]
        if name not in done:
            model = sharded_net.converted(case)
            optimizer = sharded_net.OPTIMIZERS[case.optimizer](model.parameters())
            losses = sharded_net.train(model, optimizer, case)
            done[name] = {"losses": torch.stack(losses), "weights": model.state_dict()}
        return done[name]

    return run


@pytest.mark.parametrize("name", fsdp_worker.CASES)
def test_trains_as_one_process_with_the_joint_batch(name, results, alone):
    case, want = fsdp_worker.CASES[name], alone(name)
    born = sharded_net.net(case.dtype).state_dict()
    for result in results:
        found = result[name]
        close = dict(rtol=0, atol=case.exact)
        torch.testing.assert_close(found["losses"], want["losses"], **close)
        assert found["weights"].keys() == want["weights"].keys()
        for key, weight in want["weights"].items():
            torch.testing.assert_close(found["weights"][key], weight, **close)
            assert torch.equal(found["weights"][key], results[0][name]["weights"][key])
            if key in born and key not in case.plan:
                assert torch.equal(found["weights"][key], born[key]), key
    for key in case.plan:
        assert not torch.equal(found["weights"][key], born[key]), key
