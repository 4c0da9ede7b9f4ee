"""Which batches are taken: all of a list, eight of a DataLoader, or what `max_batches` says."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import sparse_ft as sft


def seen(batches, **settings):
    """The batches that the loss got, by their first number."""
    model = nn.Sequential(nn.Linear(4, 4))
    found = []

    def loss(model, batch):
        found.append(int(batch[0, 0]))
        return model(batch).square().mean()

    settings = {"density": 0.5, "score": "gradient", **settings}
    sft.select(model, batches=batches, loss=loss, **settings)
    return found


def numbered(count):
    return [torch.full((1, 4), float(number)) for number in range(count)]


def loader(count, **settings):
    return DataLoader(torch.cat(numbered(count)), batch_size=1, **settings)


def test_all_of_a_list_or_generator_and_eight_of_a_loader():
    assert seen(numbered(11)) == seen(iter(numbered(11))) == list(range(11))
    assert seen(loader(11)) == list(range(8)) and seen(loader(3)) == [0, 1, 2]


def test_max_batches():
    assert seen(numbered(11), max_batches=2) == seen(loader(11), max_batches=2) == [0, 1]
    assert seen(iter(numbered(11)), max_batches=12) == list(range(11))


def test_no_batch_is_drawn_that_is_not_run():
    drawn = iter(numbered(11))
    seen(drawn, max_batches=3)
    assert int(next(drawn)[0, 0]) == 3


@pytest.mark.parametrize("batches", [numbered, lambda n: iter(numbered(n)), loader])
@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": "passes", "passes": 2, "targets": ["0.weight", "0.bias"]},
        {"score": "grasp", "structure": "entries"},
        {"score": "taylor", "structure": "rows"},
        {"score": "gradient", "scope": "global", "structure": "entries", "targets": "0.*"},
    ],
)
def test_the_same_batches_every_time(batches, settings):
    """Whatever goes through them more than once."""
    found = seen(batches(3), **settings)
    assert found == [0, 1, 2] * (len(found) // 3)


def test_a_shuffled_loader_leaves_the_random_state():
    model = nn.Sequential(nn.Linear(4, 4))
    settings = {"density": 0.5, "loss": lambda m, x: m(x).square().mean()}
    state = torch.get_rng_state()
    for score in ("gradient", "fisher", "grasp"):
        sft.select(model, batches=loader(20, shuffle=True), score=score, **settings)
        assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(0)
    first = seen(loader(20, shuffle=True))
    torch.manual_seed(0)
    assert first == seen(loader(20, shuffle=True)) and first != sorted(first)


def test_the_bar_knows_how_many_there_will_be(capsys):
    pytest.importorskip("tqdm")
    seen(loader(20), progress=True)
    assert "0/8" in capsys.readouterr().err
