"""Patches: an engine that takes them holds the trainer's bits after every step, whoever applies
them: vLLM's own loader, slime's overwrite, TRL's file, or the receiver here.
"""

import json
import pickle
import zlib

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from helpers import llama, small_deltas, vllm_source
from helpers.small_deltas import net, trained

import sparse_ft as sft
from sparse_ft.deltas import Receiver, save_trl_patch, vllm_patches, write_slime_version, zstd

STEPS = 20
STRUCTURES = ("rows", "columns", "blocks", "entries", "mixed")
DTYPES = (torch.bfloat16, torch.float32)
needs_vllm = pytest.mark.skipif(
    vllm_source.file() is None,
    reason="vLLM's checkpoint_weight_patch.py is not here; tests/helpers/vllm_source.py fetches it",
)


def steps(model, count=STEPS):
    """Train `model`, one step after the other."""
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    for tokens in llama.batches(count):
        llama.loss_of(model, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def run(structure, dtype, take):
    """Train for `STEPS`, handing the patches of each step to `take(patches, model)`. Returns the
    trainer and the patches.
    """
    plan = llama.plan_of(structure)
    if structure == "mixed":
        plan |= {"lm_head.weight": "all"}
    model = llama.tiny_llama(dtype)
    sft.convert(model, plan)
    since, made = None, []
    for _ in steps(model):
        since = sft.patches(model, since)
        made.append(since)
        take(since, model)
    return model, made


def same_weights(engine, trainer):
    theirs = dict(trainer.named_parameters())
    return all(torch.equal(mine, theirs[name]) for name, mine in engine.named_parameters())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_receiver_holds_the_trainers_bits(structure, dtype):
    engine, receiver = llama.tiny_llama(dtype), Receiver()

    def take(made, model):
        receiver.apply(engine, pickle.loads(pickle.dumps(made)))  # as in another process
        assert same_weights(engine, model)

    model, made = run(structure, dtype, take)
    entries = sum(p.numel() for p in model.parameters() if p.requires_grad)
    padding = sum(
        module.values.numel() - module.selection.nnz(module.matrix_shape)
        for module in model.modules()
        if isinstance(module, sft.nn.Selected)
    )
    selected, size = entries - padding, dtype.itemsize
    assert made[0].nbytes == selected * (4 + size)
    assert all(each.nbytes <= selected * size for each in made[1:])  # 2 bytes each in bf16
    assert any(each.nbytes for each in made[1:])


class Engine(torch.nn.Module):
    """What vLLM holds: the base checkpoint, loaded through `load_weights`."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def load_weights(self, weights):
        loaded = set()
        for name, weight in weights:
            self.model.get_parameter(name).data.copy_(weight)
            loaded.add(name)
        return loaded


@needs_vllm
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_vllms_own_loader_holds_the_trainers_bits(structure, dtype):
    loader, engine = vllm_source.load(), Engine(llama.tiny_llama(dtype))

    def take(made, model):
        given = vllm_patches(made, loader.CheckpointWeightPatch)
        loader.load_checkpoint_weight_patches(engine, given)
        assert same_weights(engine.model, model)

    run(structure, dtype, take)


def test_vllms_patches_for_its_transfer_engine():
    """The fields of `SparseWeightPatch`, and what its `_validate_patch` asks of them."""
    import dataclasses

    fields = ["name", "indices", "values", "full_shape"]
    patch_class = dataclasses.make_dataclass("SparseWeightPatch", fields)

    def take(made, model):
        for patch in vllm_patches(made, patch_class):
            assert patch.indices.dtype == torch.int32 and patch.indices.dim() == 1
            assert patch.values.dim() == 1 and patch.values.numel() == patch.indices.numel()
            assert patch.full_shape == tuple(model.get_parameter(patch.name).shape)

    run("mixed", torch.bfloat16, take)


def test_what_is_not_a_number_is_no_patch_of_vllm():
    model = trained({"layers.3.weight": sft.Entries([3, 4])})
    with torch.no_grad():
        model.layers[3].values[0] = float("nan")
    with pytest.raises(ValueError, match="patches: 'layers.3.weight' holds values that are not"):
        vllm_patches(sft.patches(model), dict)


def overwrite(old, blob):
    """slime's "overwrite" applied to the bytes of a tensor, after its own `overwrite_encode`."""
    zstandard = pytest.importorskip("zstandard")
    content = np.frombuffer(zstandard.ZstdDecompressor().decompress(blob.tobytes()), np.uint8)
    count = int(content[:4].view("<u4")[0])
    offsets = content[4 : 4 + 4 * count].view("<u4")
    new = old.copy()
    new[offsets] = content[4 + 4 * count :]
    return new


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_slimes_folder_holds_the_trainers_bits(tmp_path, structure, dtype):
    engine = llama.tiny_llama(dtype)
    state = {
        name: tensor.detach().view(torch.uint8).numpy().reshape(-1).copy()
        for name, tensor in engine.state_dict().items()
    }

    def take(made, model):
        folder = write_slime_version(model, made, tmp_path)
        index = json.loads(open(f"{folder}/model.safetensors.index.json").read())
        assert index["metadata"]["version"] == f"{made.version:06d}"
        assert index["metadata"]["base_version"] == f"{made.version - 1:06d}"
        for file in set(index["weight_map"].values()):
            blobs = safetensors.numpy.load_file(f"{folder}/{file}")
            with safetensors.safe_open(f"{folder}/{file}", "np") as opened:
                checksums = opened.metadata()
            assert set(blobs) == set(index["weight_map"]) == set(checksums)
            for name, blob in blobs.items():
                state[name] = overwrite(state[name], blob)
                assert f"{zlib.adler32(state[name]):08x}" == checksums[name]
        for name, tensor in sft.state_dict(model).items():
            theirs = tensor.detach().contiguous().view(torch.uint8).numpy().reshape(-1)
            assert np.array_equal(state[name], theirs)

    run(structure, dtype, take)


def trl_patches(path):
    """TRL's `iter_sparse_patches` with its `gap_delta_decode`."""
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["encoding"] == "gap_delta" and file.metadata()["sparse"] == "True"
        for name in sorted(key[:-4] for key in file.keys() if key.endswith(".val")):
            gaps = file.get_tensor(f"{name}.idx")
            yield name, gaps.long().add(1).cumsum(0) - 1, file.get_tensor(f"{name}.val")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_trls_file_holds_the_trainers_bits(tmp_path, structure):
    engine = llama.tiny_llama(torch.bfloat16)

    def take(made, model):
        save_trl_patch(made, tmp_path / "patch")
        for name, indices, values in trl_patches(tmp_path / "patch"):
            engine.get_parameter(name).data.view(-1)[indices] = values
        assert same_weights(engine, model)

    run(structure, torch.bfloat16, take)


@pytest.mark.parametrize("size", [0, 1, 1000, 131072, 131073, 400_000])
def test_stored_zstd_frames(size):
    zstandard = pytest.importorskip("zstandard")
    content = np.random.default_rng(0).bytes(size)
    assert zstandard.ZstdDecompressor().decompress(zstd.frame(content)) == content


def test_what_changed_alone_is_sent_where_it_is_shorter():
    model = trained()
    first = sft.patches(model)
    with torch.no_grad():
        model.layers[0].values[0, 5] += 1
        model.embed.values += 1
    second = sft.patches(model, first)
    by_name = {patch.name: patch for patch in second}
    assert set(by_name) == {"layers.0.weight", "embed.weight"}
    assert by_name["layers.0.weight"].indices.tolist() == [2 * 12 + 5]
    assert by_name["embed.weight"].indices is None
    assert not len(sft.patches(model, second))


def test_another_selection_is_sent_anew_with_what_has_left_it():
    """As after a selection was changed: the entries that left it hold their origin again."""
    model = trained({"layers.0.weight": sft.Rows([1, 2])})
    first = sft.patches(model)
    engine, receiver = net(), Receiver()
    receiver.apply(engine, first)
    before = net().layers[0].weight.data
    sft.revert(model)
    model.layers[0].weight.data[1] = before[1]
    sft.convert(model, {"layers.0.weight": sft.Rows([2, 5])})
    with torch.no_grad():
        model.layers[0].values += 1
    second = sft.patches(model, first)
    receiver.apply(engine, pickle.loads(pickle.dumps(second)))
    assert torch.equal(engine.layers[0].weight, model.layers[0].weight)
    with torch.no_grad():
        model.layers[0].values += 1
    third = sft.patches(model, second)
    assert third[0].indices is None and len(third[0].values) == 24
    receiver.apply(engine, third)
    assert torch.equal(engine.layers[0].weight, model.layers[0].weight)


def test_a_missing_version_is_refused():
    model, engine, receiver = trained(), net(), Receiver()
    first = sft.patches(model)
    with torch.no_grad():
        model.embed.values += 1
    second = sft.patches(model, first)
    before = small_deltas.bits(engine)
    with pytest.raises(ValueError, match="patches: version 2 follows 1, and this engine has 0"):
        receiver.apply(engine, second)
    assert small_deltas.same_bits(engine, before)
    receiver.apply(engine, first)
    with pytest.raises(ValueError, match="patches: version 1 follows 0, and this engine has 1"):
        receiver.apply(engine, first)
    receiver.apply(engine, second)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="model: it is not converted"):
        sft.patches(net())
    model = trained()
    with pytest.raises(TypeError, match="since: expected what sft.patches gave, or None, got list"):
        sft.patches(model, [])
    first = sft.patches(model)
    pickled = pickle.loads(pickle.dumps(first))
    with pytest.raises(ValueError, match="since: it was pickled"):
        sft.patches(model, pickled)
    with torch.no_grad():
        model.embed.values += 1
    second = pickle.loads(pickle.dumps(sft.patches(model, first)))
    with pytest.raises(ValueError, match="patches: the indices of 'embed.weight' stayed"):
        second.with_indices()


@pytest.mark.parametrize("begin", [0, 1, 2])
def test_entries_that_joined_and_left_between_two_times_are_sent(begin):
    """begin: how many selections have trained before the first time."""
    model = trained({"layers.0.weight": sft.Rows([0]), "layers.3.weight": sft.Entries([1, 7])})
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    engine, receiver, sent = net(), sft.deltas.Receiver(), None
    for turn in range(4):
        if turn == begin or turn == 3:
            sent = sft.patches(model, since=sent)
            receiver.apply(engine, sent)
            assert torch.equal(engine.layers[0].weight, sft.state_dict(model)["layers.0.weight"])
            assert torch.equal(engine.layers[3].weight, sft.state_dict(model)["layers.3.weight"])
        plan = {
            "layers.0.weight": sft.Rows([turn + 1]),
            "layers.3.weight": sft.Entries([1, turn + 20]),
        }
        sft.reselect(model, optimizer, plan)
        model(torch.arange(6)[None]).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_entries_that_left_are_sent_again_when_they_change():
    plans = [{"layers.0.weight": sft.Rows([row])} for row in (0, 1)]
    model = trained(plans[0], origin=True)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    engine, receiver = net(), sft.deltas.Receiver()
    sent = sft.patches(model)
    receiver.apply(engine, sent)

    def engine_follows():
        nonlocal sent
        sent = sft.patches(model, since=sent)
        receiver.apply(engine, sent)
        return torch.equal(engine.layers[0].weight, sft.state_dict(model)["layers.0.weight"])

    for plan in (plans[1], plans[0]):  # away and back between two times
        sft.reselect(model, optimizer, plan)
        model(torch.arange(6)[None]).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert engine_follows()
    for alpha in (0.5, 0.0, 1.0):
        sft.restore(model, alpha)
        assert engine_follows()
    assert engine_follows() and len(sent) == 0
