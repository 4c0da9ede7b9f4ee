"""accelerate's FSDP2 over two processes: prepare, train, save, load, merge; against one process."""

import pytest
import torch
from helpers import ranks, sharded_net

import sparse_ft as sft

pytest.importorskip("accelerate")
pytest.importorskip("safetensors")
from helpers import accelerate_worker as worker  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accelerate")
    ranks.start_forked(worker.__file__, folder, world=2)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return ranks.results(folder)


def alone(name):
    """The losses and weights of one process."""
    model = sharded_net.converted(worker.CASE)
    optimizer = sharded_net.OPTIMIZERS[worker.CASES[name][0]](model.parameters())
    losses = sharded_net.train(model, optimizer, worker.CASE)
    return torch.stack(losses)[worker.SAVED :], model.state_dict()


@pytest.mark.parametrize("name", worker.CASES)
def test_trains_as_one_process_with_the_joint_batch(name, results):
    losses, weights = alone(name)
    both = torch.stack([rank[name]["losses"] for rank in results]).mean(0)
    assert (both - losses).abs().max() <= 1e-6
    born = sharded_net.converted(worker.CASE).state_dict()
    for rank in results:
        for key, weight in weights.items():
            assert (rank[name]["weights"][key] - weight).abs().max() <= 1e-6, key
        for key in sharded_net.PLAN:
            assert not torch.equal(rank[name]["weights"][key], born[key]), key


@pytest.mark.parametrize("name", worker.CASES)
def test_a_loaded_state_trains_on_as_if_nothing_had_been(name, results):
    for rank in results:
        assert torch.equal(rank[name]["losses again"], rank[name]["losses"])
        for key, weight in rank[name]["weights"].items():
            assert torch.equal(rank[name]["weights again"][key], weight), key


@pytest.mark.parametrize("name", worker.CASES)
def test_merged_weights_are_those_of_the_plain_model(name, results, folder):
    """What is merged fits a model that was never converted, and one that was."""
    from safetensors.torch import load_file

    merged = load_file(folder / name / "merged" / "model.safetensors")
    plain = sharded_net.net()
    missing, unexpected = plain.load_state_dict(merged, strict=False)
    assert not missing
    assert all(key.endswith(".values") for key in unexpected)
    want = results[0][name]["at the checkpoint"]
    for key, weight in plain.state_dict().items():
        assert torch.equal(weight, want[key]), key
    converted = sharded_net.converted(worker.CASE)
    converted.load_state_dict(merged)
    for key, weight in sft.revert(converted).state_dict().items():
        assert torch.equal(weight, want[key]), key
