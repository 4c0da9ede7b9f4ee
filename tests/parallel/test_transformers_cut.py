"""Models that transformers' own tensor parallel has cut (`DistributedConfig(tp_size=…)`)."""

import pytest
import torch
from helpers import ranks

import sparse_ft as sft

pytest.importorskip("transformers.distributed.configuration_utils")
pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
from helpers import transformers_cut_worker as worker  # noqa: E402


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    ranks.start_forked(worker.__file__, folder, world=2)
    return ranks.results(folder)


def test_trains_and_evaluates_as_one_process(results):
    model = worker.made("Llama")
    sft.convert(model, worker.LLAMA)
    want = worker.train(model)
    for rank in results:
        found = rank["Llama"]
        assert found["losses"] == pytest.approx(want["losses"], abs=1e-6)
        torch.testing.assert_close(found["logits"], want["logits"], rtol=0, atol=1e-6)
        for name, weight in want["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, rtol=0, atol=1e-5)


REFUSED = {
    worker.HEADS_NORM: "q_norm.weight': under transformers' tensor parallel each process has the",
    worker.PACKED: "gate_up_proj': under transformers' tensor parallel its experts compute",
    worker.EXPERTS: "down_proj': under transformers' tensor parallel its experts compute",
    "tied": "embed_tokens.weight' is one parameter with lm_head.weight .tied., and tensor parallel",
    "estimate": "model_or_config: 'model.embed_tokens.weight' is a DTensor",
    "ledger": "model: 'model.embed_tokens.weight' is a DTensor",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_train_something_else_is_refused_on_every_rank(what, results):
    for rank in results:
        with pytest.raises(ValueError, match=REFUSED[what]):
            raise ValueError(rank[what])
