"""The dry run against the real one.

What it holds for backward, and the peak that torch's allocator saw.
"""

import copy
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft._torch import FakeTensor
from sparse_ft.memory.batch import batch_for
from sparse_ft.memory.dry import Dry
from sparse_ft.memory.specs import prepare
from sparse_ft.token_losses.chunks import standing_for

transformers = pytest.importorskip("transformers")
from helpers import wide_models  # noqa: E402
from helpers.measured_steps import measured  # noqa: E402

PLANS = {"full": None, "columns": 0.05, "rows": 0.05, "entries": 0.01}  # structure: density
SHAPES = [(4, 64), (2, 96)]
GPU = torch.device("cuda:0")


def assert_close(model, plan, shape, **settings):
    lean = settings.pop("lean", False)
    told = sft.estimate(model, plan, *shape, lean=lean, **settings)
    held, peak = measured(model, plan, batch_for(model, *shape, **settings), lean)
    assert told.activations == pytest.approx(held, rel=0.05)
    assert told.peak == pytest.approx(peak, rel=0.05)
    return told


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("name", wide_models.MODELS)
def test_within_five_percent_of_the_ledger_and_of_the_allocator(name, kind, shape):
    model = wide_models.wide(name)
    plan = (
        None
        if kind == "full"
        else sft.select(model, density=PLANS[kind], score="random", structure=kind)
    )
    assert_close(model, plan, shape)


@pytest.mark.parametrize("name", ["Llama", "BERT", "T5"])
def test_padded_batches(name):
    model = wide_models.wide(name)
    assert_close(
        model,
        sft.select(model, density=0.05, score="random", structure="rows"),
        SHAPES[0],
        padded=True,
    )


@pytest.mark.parametrize("kind", PLANS)
def test_lean(kind):
    model = wide_models.wide("Llama")
    plan = (
        None
        if kind == "full"
        else sft.select(model, density=PLANS[kind], score="random", structure=kind)
    )
    lean = assert_close(model, plan, SHAPES[0], lean=True)
    assert (
        lean.activations
        < 0.95 * sft.estimate(wide_models.wide("Llama"), plan, *SHAPES[0]).activations
    )


def test_a_loss_from_hidden_states_has_the_chunks_of_the_device_that_is_named():
    """A GPU takes 512 tokens' logits at a time, here of 1,024; a CPU 262."""
    shape, lean = (4, 256), {"loss": True}
    config = wide_models.wide("Llama").config
    config.vocab_size = 32000
    model = transformers.LlamaForCausalLM(config)
    plan = sft.select(model, density=0.05, score="random", structure="rows")
    peaks = {}
    for device in ("cpu", "cuda"):
        told = sft.estimate(model, plan, *shape, lean=lean, device=device)
        with standing_for(torch.device(device)):
            twin = copy.deepcopy(model)
            _, peak = measured(twin, plan, batch_for(model, *shape), lean)
        assert told.peak == pytest.approx(peak, rel=0.05)
        peaks[device] = told.peak
    logits = 4 * config.vocab_size  # bytes of a token
    assert peaks["cuda"] - peaks["cpu"] > 0.9 * (512 - 262) * logits
    assert sft.estimate(model, plan, *shape, lean=lean).peak == peaks["cpu"]
    of_config = sft.estimate(config, {"structure": "rows", "density": 0.05}, *shape, lean=lean,
                             device="cuda")  # fmt: skip
    assert of_config.peak == pytest.approx(peaks["cuda"], rel=0.02)


@pytest.mark.parametrize(
    "plan",
    [
        {"0.weight": sft.Columns([1, 2]), "1.weight": sft.Blocks([[0, 0]], 2)},
        {"structure": "columns", "density": 0.2},
        {"structure": "blocks", "density": 0.2, "block_size": 2},
    ],
    ids=["a plan", "columns", "blocks"],
)
def test_what_trains_of_a_model_on_a_gpu_has_its_indices_there(plan):
    """The model has no data, and claims to be there: a dry run as far as it goes without one."""
    dry = Dry()
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8))
    for name, parameter in list(model.named_parameters()):
        there = FakeTensor(dry.mode, parameter.detach().to("meta"), GPU)
        model.get_submodule(name[0])._parameters[name[2:]] = nn.Parameter(there)
    with dry:
        prepare(model, plan, dry)
    for layer in model:
        features, layout = layer.selection.restrict(1, layer.in_features)
        assert layer.selection.index.device == layout.index.device == layer.values.device == GPU
        assert features is None or features.device == GPU


def test_a_device_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="device: expected .* got 'gpu'"):
        sft.estimate(nn.Linear(3, 3), inputs={"input": torch.zeros(1, 3)}, device="gpu")


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}]
)
def test_gradient_checkpointing(settings):
    model = wide_models.MODELS["Llama"]().train()
    plain = sft.estimate(model, None, *SHAPES[0])
    model.gradient_checkpointing_enable(**settings)
    model.enable_input_require_grads()
    assert assert_close(model, None, SHAPES[0]).activations < plain.activations / 2


def test_autocast():
    model = wide_models.wide("BERT")
    plan = sft.select(model, density=0.05, score="random", structure="columns")
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(model, plan, SHAPES[0])


def test_blocks_and_whole_parameters():
    model = wide_models.wide("Llama")
    plan = sft.select(model, density=0.1, score="random", structure="blocks", block_size=32) | {
        "model.norm.weight": "all"
    }
    assert_close(model, plan, SHAPES[0])


@pytest.mark.parametrize("kind", PLANS)
def test_a_convnet_holds_for_backward_what_it_was_told_to(kind):
    """Its peak is not compared: convolutions on the CPU allocate workspaces of their own."""
    model, x = wide_models.ConvNet(), torch.randn(4, 3, 32, 32)
    targets = ["body.0.weight", "body.4.weight", "head.weight"]
    plan = (
        None
        if kind == "full"
        else sft.select(model, density=PLANS[kind], score="random", structure=kind, targets=targets)
    )
    told = sft.estimate(model, plan, inputs={"x": x})
    assert told.activations == measured(model, plan, {"x": x})[0]


@pytest.mark.parametrize("kind, per_value", [("columns", 0), ("rows", 0), ("entries", 4)])
def test_the_parts_add_up(kind, per_value):
    model = wide_models.wide("Llama")
    plan = sft.select(model, density=0.05, score="random", structure=kind)
    told = sft.estimate(model, plan, *SHAPES[0])
    values = sum(what.nnz(sft.matrix_shape(model, name)) for name, what in plan.items()) * 4
    assert told.weights == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert told.values == told.gradients == values
    assert told.optimizer_state == 2 * values + 4 * len(plan)  # and a step count each
    assert told.indices >= values / 4 * per_value
    assert (
        told.peak == max(told.peaks.values()) >= told.weights + told.values + told.optimizer_state
    )
    assert told.ledger.total == told.activations and told.ledger.tokens == 4 * 64


def test_a_random_selection_is_told_without_drawing_it():
    model = wide_models.wide("Llama")
    for structure in ("rows", "columns", "entries", "entries_per_row", "blocks"):
        spec = {"structure": structure, "density": 0.05, "block_size": 16}
        drawn = sft.select(model, score="random", **spec)
        told, real = (sft.estimate(model, plan, *SHAPES[0]) for plan in (spec, drawn))
        assert told.values == real.values
        assert told.activations == pytest.approx(real.activations, rel=0.01)
        assert told.peak == pytest.approx(real.peak, rel=0.01)


def test_layers_that_share_columns_share_the_copy():
    model = wide_models.wide("Llama")
    one = sft.Columns(torch.arange(0, 192, 16))
    attention = "model.layers.0.self_attn"
    shared = {f"{attention}.{name}_proj.weight": one for name in "qkv"}
    apart = {name: sft.Columns(torch.arange(i, 192, 16)) for i, name in enumerate(shared)}
    copy = 4 * 64 * len(one) * 4
    assert (
        sft.estimate(model, apart, 4, 64).activations
        - sft.estimate(model, shared, 4, 64).activations
        == 2 * copy
    )


def test_lora():
    peft = pytest.importorskip("peft")
    model = wide_models.wide("Llama").to(torch.bfloat16)
    told = sft.estimate(model, {"lora": 8, "target_modules": "all-linear"}, *SHAPES[0])
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear"))
    held, peak = measured(adapted, None, batch_for(model, *SHAPES[0]))
    assert told.activations == pytest.approx(held, rel=0.05)
    assert told.peak == pytest.approx(peak, rel=0.05)
    assert told.values == sum(p.nbytes for p in adapted.parameters() if p.requires_grad)


def test_the_model_is_left_alone():
    model = wide_models.wide("BERT")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sft.estimate(model, {"structure": "rows"}, *SHAPES[0], lean=True, dtype=torch.bfloat16)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert type(model.classifier) is nn.Linear and "forward" not in model.__dict__
    sft.convert(model, sft.select(model, density=0.1, score="random"))


def test_a_model_on_the_meta_device_and_its_config_tell_the_same():
    model = wide_models.wide("Llama")
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(model.config)
    numbers = [
        sft.estimate(m, {"structure": "rows"}, *SHAPES[0])[:7] for m in (model, empty, model.config)
    ]
    assert numbers[0] == numbers[1] == numbers[2]
    half = sft.estimate(model.config, None, *SHAPES[0], dtype=torch.bfloat16)
    assert half.weights == pytest.approx(
        sft.estimate(model.config, None, *SHAPES[0]).weights / 2, rel=0.01
    )


def test_optimizers():
    model = wide_models.wide("Llama")
    sgd = sft.estimate(model, None, *SHAPES[0], optimizer="sgd")
    momentum = sft.estimate(
        model, None, *SHAPES[0], optimizer=lambda p: torch.optim.SGD(p, lr=1, momentum=0.9)
    )
    assert sgd.optimizer_state == 0 and momentum.optimizer_state == momentum.gradients
    assert sft.estimate(model, None, *SHAPES[0], optimizer=None).peak <= sgd.peak


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(plan={"structure": "diagonals"}), "structure: expected"),
        (dict(plan={"density": 2.0}), "density: expected"),
        (dict(plan=3), "plan: expected"),
        (dict(optimizer="lion"), "optimizer: expected"),
        (dict(batch_size=0), "batch_size: expected a positive integer, got 0"),
        (dict(sequence_length=-1), "sequence_length: expected a positive integer, got -1"),
        (dict(batch_size=1.5), "batch_size: expected a positive integer, got 1.5"),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sft.estimate(wide_models.wide("Llama"), **settings)


def test_what_it_cannot_know_it_asks_for():
    with pytest.raises(ValueError, match="inputs: no batch is known"):
        sft.estimate(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="model_or_config: expected"):
        sft.estimate({"hidden_size": 3})
    model = wide_models.wide("Llama")
    sft.convert(model, sft.select(model, density=0.1, score="random"))
    with pytest.raises(ValueError, match="converted already"):
        sft.estimate(model)


LLAMA_8B = dict(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)


def test_eight_billion_parameters_take_seconds():
    config = transformers.LlamaConfig(**LLAMA_8B, vocab_size=128256, dtype=torch.bfloat16)
    start = time.process_time()
    told = sft.estimate(config, {"structure": "entries", "density": 0.01}, 4, 512)
    assert time.process_time() - start < 10
    assert 14.9 < told.weights / 2**30 < 15 and 0.25 < told.indices / 2**30 < 0.27


def test_the_command_prints_them_side_by_side(tmp_path, capsys):
    from sparse_ft.module_command import main

    config = wide_models.wide("Llama").config
    config.save_pretrained(tmp_path)
    assert (
        main(
            [
                "estimate",
                str(tmp_path / "config.json"),
                "--batch",
                "2",
                "--sequence",
                "32",
                "--structure",
                "rows",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    for word in (
        "full",
        "LoRA r8",
        "0.01 rows",
        "held for backward",
        "most at once",
        "MiB",
        "convolutions on a CPU",
    ):
        assert word in printed
    with pytest.raises(SystemExit):
        main(["estimate", str(tmp_path / "missing.json")])
    assert "no file or folder" in capsys.readouterr().err


def test_the_command_says_when_transformers_is_missing():
    code = (
        "import sys; sys.modules['transformers'] = None; from sparse_ft.module_command import main;"
        " main(['estimate', 'x.json'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 2 and "pip install transformers" in run.stderr
