"""FSDP2 over gloo, 2 and 4 processes: the training of one process with the joint batch."""

import pytest
import torch
from helpers import fsdp_checkpoints, fsdp_worker, ranks, sharded_net
from helpers.sharded_net import Case

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run of 2 ranks left behind: what each rank found, and checkpoints."""
    folder = tmp_path_factory.mktemp("fsdp_2")
    ranks.start_forked(fsdp_worker.__file__, folder, world=2)
    return folder


@pytest.fixture(scope="module")
def two(folder):
    return ranks.results(folder, 2)


@pytest.fixture(scope="module")
def four(folder, tmp_path_factory):
    own = tmp_path_factory.mktemp("fsdp_4")
    ranks.start_forked(fsdp_worker.__file__, own, str(folder), world=4)
    return ranks.results(own, 4)


@pytest.fixture(params=["two", "four"])
def results(request):
    """What each of 2 or 4 ranks found."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def alone():
    """Losses and weights of a case in one process. Each is run once."""
    done = {}

    def run(name):
        case = fsdp_worker.CASES.get(name, Case())
        if name not in done:
            model = sharded_net.converted(case)
            optimizer = sharded_net.OPTIMIZERS[case.optimizer](model.parameters())
            losses = sharded_net.train(model, optimizer, case)
            done[name] = {"losses": torch.stack(losses), "weights": model.state_dict()}
        return done[name]

    return run


def assert_same_run(found, want, exact):
    close = dict(rtol=0, atol=exact)
    torch.testing.assert_close(found["losses"], want["losses"], **close)
    assert found["weights"].keys() == want["weights"].keys()
    for key, weight in want["weights"].items():
        torch.testing.assert_close(found["weights"][key], weight, **close)


# On how many ranks each is run.
WORLDS = {name: case.worlds for name, case in fsdp_worker.CASES.items()}
WORLDS |= {"replicas": (4,), "from the first rank": (2, 4)}


@pytest.mark.parametrize("name", WORLDS)
def test_trains_as_one_process_with_the_joint_batch(name, results, alone):
    if len(results) not in WORLDS[name]:
        return
    case, want = fsdp_worker.CASES.get(name, Case()), alone(name)
    for result in results:
        assert_same_run(result[name], want, case.exact)
        for key, weight in result[name]["weights"].items():
            assert torch.equal(weight, results[0][name]["weights"][key]), key


@pytest.mark.parametrize("name", [name for name in fsdp_worker.CASES if 2 in WORLDS[name]])
def test_what_is_planned_trains_and_nothing_else(name, two):
    case = fsdp_worker.CASES[name]
    model = sharded_net.net(case.dtype)
    for key, born in model.state_dict().items():
        weight, what = two[0][name]["weights"][key], case.plan.get(key)
        assert torch.equal(weight, born) == (what is None), key
        if what not in (None, "all"):
            shape = sharded_net.sft.matrix_shape(model, key)
            left = ~what.mask(shape)
            assert torch.equal(weight.view(shape)[left], born.view(shape)[left]), key


@pytest.mark.parametrize("name", fsdp_worker.POLICIES)
def test_a_policy_of_two_dtypes_is_the_same_on_one_rank_and_on_several(name, results):
    for result in results:
        together, on_one = result[f"policy {name}"]
        assert_same_run(together, on_one, fsdp_worker.POLICIES[name][2])


def test_columns_add_no_collective_and_other_structures_one(two):
    for result in two:
        dense, columns, rows = result["collectives"].values()
        assert columns == dense["two layers"]
        assert sum(rows.values()) == sum(dense["both layers"].values()) + 1


def test_ranks_that_selected_other_entries_are_told_at_their_first_step(two):
    for result in two:
        message = "layers.0.down.weight: the ranks have selected other entries of it each"
        assert result["other entries"].startswith(message)


def test_a_step_is_skipped_on_all_ranks_or_on_none(two):
    for result in two:
        assert result["skipped"] == {"steps": 1, "kept": True, "went on": True}


def test_an_embedding_that_is_tied_to_the_head(two):
    want = fsdp_worker.tied(0, 1, is_sharded=False)
    for result in two:
        torch.testing.assert_close(result["tied"]["losses"], torch.stack(want["losses"]))
        for key, weight in want["weights"].items():
            torch.testing.assert_close(result["tied"]["weights"][key], weight, rtol=0, atol=1e-6)


def test_wrappers_leave_no_trace_in_names(two):
    for result in two:
        assert result["names"] == list(sharded_net.converted(Case()).state_dict())


def assert_equal_states(found, want, path=""):
    if isinstance(want, dict):
        assert found.keys() == want.keys(), path
        for key in want:
            assert_equal_states(found[key], want[key], f"{path}/{key}")
    elif isinstance(want, torch.Tensor):
        assert torch.equal(found, want), path
    else:
        assert found == want, path


@pytest.mark.filterwarnings("ignore:.*changed behind the module's back")  # by DCP, in place
@pytest.mark.parametrize("name", ["checkpoint", "checkpoint later"])
def test_a_checkpoint_of_two_ranks_goes_on_in_one_process(name, folder, two):
    """Bit for bit what was saved, at once or while training went on; then the same losses."""
    saved = two[0]["saved"]
    resumed = fsdp_checkpoints.resume(str(folder), name, 0, 1)
    assert_equal_states(resumed["state"], saved["state"])
    want = saved["losses"][fsdp_checkpoints.SAVED_AT :]
    torch.testing.assert_close(resumed["losses"], want, rtol=0, atol=1e-6)


def test_a_checkpoint_of_two_ranks_goes_on_in_four(two, four):
    saved = two[0]["saved"]
    want = saved["losses"][fsdp_checkpoints.SAVED_AT :]
    for result in four:
        assert_equal_states(result["resumed"]["state"], saved["state"])
        torch.testing.assert_close(result["resumed"]["losses"], want, rtol=0, atol=1e-6)


def test_a_checkpoint_of_another_selection_is_refused_on_every_rank(two):
    for result in two:
        assert "51 of 51 values of 'layers.0.down.weight'" in result["other selection"]


def test_who_is_left_ends_with_an_error_when_a_rank_is_killed(folder):
    """What goes on from the checkpoint: the tests above."""
    assert not (folder / "killed" / "1.pt").exists()
    left = torch.load(folder / "killed" / "0.pt")
    assert left["error"] and left["seconds"] < 60
