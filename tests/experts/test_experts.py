"""Experts that train get the dense gradients, gathered; both expert layouts, all structures."""

import copy

import pytest
import torch
import transformers.integrations.moe
from helpers.mixtures import EXPERTS, FAMILIES, INNER, WIDTH, InModules, build
from oracle import same_bits

import sparse_ft as sft

CHOSEN = (1, 2, 6)


def numbers_of(name, shape):
    """Selections of every structure on a weight [experts, rows, columns]."""
    experts, rows, columns = shape
    whole = [expert * rows + row for expert in CHOSEN for row in range(rows)]
    generator = torch.Generator().manual_seed(3)
    size = rows * columns
    some = torch.cat(
        [e * size + torch.randperm(size, generator=generator)[:9] for e in (0, 3, 4, 7)]
    )
    blocks = [(e * rows // 4 + row, column) for e in CHOSEN for row, column in ((0, 1), (1, 0))]
    across = [(0, 1), (1, 0), (experts * rows // 8 - 1, 1)]
    return {
        "experts": sft.Rows(whole),
        "rows": sft.Rows([0, 3, rows + 2, 5 * rows + 1, 5 * rows + 2]),
        "columns": sft.Columns([1, 4, 9]),
        "blocks": sft.Blocks(blocks, 4),
        "panels": sft.Blocks([(1, 2), (1, 3), (6, 0)], (rows, 1)),
        "blocks of two experts": sft.Blocks(across, 8),
        "entries": sft.Entries(some.sort().values),
    }[name]


STRUCTURES = ("experts", "rows", "columns", "blocks", "panels", "blocks of two experts", "entries")


def gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_dense_ones_gathered(family, implementation, monkeypatch):
    """In fp64, of which torch has no grouped product: transformers takes its own."""
    monkeypatch.setattr(transformers.integrations.moe, "_can_use_grouped_mm", lambda *_: False)
    dense, batch, path = build(family, implementation)
    names = [f"{path}.gate_up_proj", f"{path}.down_proj"]
    want = gradients(dense, batch)
    for structure in STRUCTURES if implementation != "batched_mm" else STRUCTURES[:2]:
        model = copy.deepcopy(dense)
        selections = {n: numbers_of(structure, dense.get_parameter(n).shape) for n in names}
        sft.convert(model, selections)
        assert type(model.get_submodule(path)) is type(dense.get_submodule(path))
        assert same_bits(gradients(model, batch), want)
        for name, selection in selections.items():
            gradient = dense.get_parameter(name).grad
            gathered = selection.gather(gradient.reshape(sft.matrix_shape(dense, name)))
            values = model.get_submodule(f"{name}_selected").values
            torch.testing.assert_close(values.grad, gathered, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_grouped_product(dtype):
    """Forwards bit for bit, gradients within twice the dense ones' own error."""
    exact, batch, path = build("Qwen3Moe", "eager")
    dense, _, _ = build("Qwen3Moe", "grouped_mm", dtype)
    name = f"{path}.gate_up_proj"
    want = gradients(dense, batch)
    with torch.no_grad():
        for a, b in zip(exact.parameters(), dense.parameters()):
            a.copy_(b)
    gradients(exact, batch)
    for structure in STRUCTURES:
        model = copy.deepcopy(dense)
        selection = numbers_of(structure, dense.get_parameter(name).shape)
        sft.convert(model, {name: selection})
        assert same_bits(gradients(model, batch), want)
        got = model.get_submodule(f"{name}_selected").values.grad
        assert got.dtype == torch.float32
        shape = sft.matrix_shape(dense, name)
        truth, theirs = (
            selection.gather(m.get_parameter(name).grad.reshape(shape)).double()
            for m in (exact, dense)
        )
        error = (got.double() - truth).abs().max()
        assert error <= 2 * (theirs - truth).abs().max() + 1e-7


def test_tokens_that_reach_no_chosen_expert_send_a_zero(monkeypatch):
    """As a dense gradient would be; and nothing warns of a missing one."""
    monkeypatch.setattr(transformers.integrations.moe, "_can_use_grouped_mm", lambda *_: False)
    for implementation in ("eager", "grouped_mm"):
        model, batch, path = build("Mixtral", implementation)
        router = model.get_submodule(path.rpartition(".")[0]).gate
        with torch.no_grad():  # all tokens to the experts 3 and 4
            router.weight.zero_()
            router.weight[3:5] = 1.0
        dense, name = copy.deepcopy(model), f"{path}.gate_up_proj"
        gradients(dense, batch)
        rows = model.get_parameter(name).size(1)
        empty, hit = range(rows, 2 * rows), range(3 * rows, 4 * rows)
        for index in (empty, [*empty, *hit]):  # no chosen expert has tokens, one of two has
            some = copy.deepcopy(model)
            sft.convert(some, {name: sft.Rows(index)})
            gradients(some, batch)
            got = some.get_submodule(f"{name}_selected").values.grad
            want = dense.get_parameter(name).grad.view(-1, WIDTH)[list(index)]
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
            assert not got[:rows].any()


def test_gradients_add_up_over_backwards_and_retained_graphs():
    model, batch, path = build("Qwen3Moe")
    name = f"{path}.down_proj"
    rows = model.get_parameter(name).size(1)
    sft.convert(model, {name: sft.Rows([*range(rows), *range(3 * rows, 4 * rows)])})
    gradients(model, batch)
    values = model.get_submodule(f"{name}_selected").values
    once = values.grad.clone()
    model(**batch).loss.backward()
    assert torch.allclose(values.grad, 2 * once)
    loss = model(**batch).loss
    loss.backward(retain_graph=True)
    loss.backward()
    assert torch.allclose(values.grad, 4 * once)
    (gradient,) = torch.autograd.grad(model(**batch).loss, values)
    assert torch.allclose(gradient, once)
    with pytest.raises(RuntimeError, match="experts: double backward"):
        torch.autograd.grad(model(**batch).loss, values, create_graph=True)


def test_checkpointing_and_lean():
    dense, batch, path = build("Qwen3Moe")
    names = [f"{path}.gate_up_proj", f"{path}.down_proj"]
    gradients(dense, batch)
    for settings in ({"lean": True}, {"lean": False}):
        model = copy.deepcopy(dense)
        plan = {n: numbers_of("experts", dense.get_parameter(n).shape) for n in names}
        sft.convert(model, plan, **settings)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        gradients(model, batch)
        for name in names:
            shape = sft.matrix_shape(dense, name)
            want = plan[name].gather(dense.get_parameter(name).grad.reshape(shape))
            got = model.get_submodule(f"{name}_selected").values.grad
            slack = 1e-6 if settings["lean"] else 1e-12  # of losses, which transformers has in fp32
            torch.testing.assert_close(got, want, rtol=1e-12, atol=slack)


def test_training_is_dense_training_of_the_chosen_experts():
    model, batch, path = build("Olmoe")
    names = [f"{path}.gate_up_proj", f"{path}.down_proj"]
    dense = copy.deepcopy(model)
    plan = {n: numbers_of("experts", model.get_parameter(n).shape) for n in names}
    sft.convert(model, plan)
    ours = sft.SelectiveAdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for parameter in dense.parameters():
        parameter.requires_grad_(False)
    chosen = [dense.get_parameter(name).requires_grad_() for name in names]
    theirs = torch.optim.AdamW(chosen, lr=1e-2, weight_decay=0.1)
    before = [weight.detach().clone() for weight in chosen]
    for _ in range(6):
        gradients(model, batch)
        ours.step()
        gradients(dense, batch)
        frozen = [e for e in range(EXPERTS) if e not in CHOSEN]
        for weight in chosen:
            weight.grad[frozen] = 0
        theirs.step()
        with torch.no_grad():
            for weight, was in zip(chosen, before):
                weight[frozen] = was[frozen]
    for name in names:
        got, want = model.get_parameter(name), dense.get_parameter(name)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_experts_in_a_list_of_modules():
    torch.manual_seed(0)
    dense = InModules().double()
    x = torch.randn(40, WIDTH, dtype=torch.float64)
    dense(x).square().sum().backward()
    model = copy.deepcopy(dense)
    plan = {f"experts.{number}.up.weight": sft.Rows(range(INNER)) for number in CHOSEN}
    plan |= {f"experts.{EXPERTS - 1}.up.weight": sft.Columns([0])}  # which no token reaches
    sft.convert(model, plan)
    model(x).square().sum().backward()
    for number in CHOSEN:
        got = model.experts[number].up.values.grad
        want = dense.experts[number].up.weight.grad
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert model.experts[EXPERTS - 1].up.values.grad is None
    assert all(p.grad is None for p in model.experts[0].parameters())


def test_a_reader_of_its_own_kind_gets_a_dense_gradient():
    """What is no product with an expert is served as any other parameter is."""

    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 6, 5))

        def forward(self, x):
            first = torch.einsum("ti,oi->to", x, self.weight[1])
            both = self.weight[torch.tensor([2, 1])].sum(0)
            first = first + torch.einsum("ti,io->to", x, self.weight.mT[2])
            both = both + self.weight.mT[torch.tensor([2, 0, 2])].sum(0).T
            first = first + torch.bmm(x.expand(4, 7, 5), self.weight.mT).sum(0)
            first = first + (x.expand(4, 7, 5) @ self.weight.transpose(1, 2)).mean(0)
            return first + x @ both.T + (x @ self.weight[3].T) * self.weight.mean()

    dense = Odd().double()
    x = torch.randn(7, 5).double()
    dense(x).square().sum().backward()
    model = copy.deepcopy(dense)
    selection = sft.Rows([0, 7, 8, 13, 20])
    sft.convert(model, {"weight": selection})
    assert same_bits(model(x), dense(x))
    model(x).square().sum().backward()
    want = selection.gather(dense.weight.grad.view(24, 5))
    torch.testing.assert_close(model.weight_selected.values.grad, want, rtol=1e-12, atol=1e-12)


def test_autocast_has_the_dense_results():
    """fp32 weights, 16-bit products: the forward bit for bit, fp32 gradients of 16-bit products."""
    dense, batch, path = build("Qwen3Moe", "eager", torch.float32)
    name = f"{path}.gate_up_proj"
    selection = numbers_of("experts", dense.get_parameter(name).shape)
    model = copy.deepcopy(dense)
    sft.convert(model, {name: selection})
    losses = []
    for each in (dense, model):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(each(**batch).loss)
        losses[-1].backward()
    assert same_bits(losses[0].detach(), losses[1].detach())
    want = selection.gather(dense.get_parameter(name).grad.reshape(sft.matrix_shape(dense, name)))
    got = model.get_submodule(f"{name}_selected").values.grad
    assert got.dtype == torch.float32
    assert (got - want).norm() <= 0.01 * want.norm()
