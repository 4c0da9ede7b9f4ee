"""What is kept for backward in one Llama-like layer, by method, × hidden size a token.

`python -m bench.saved`.

Protocol: unique storages that autograd holds, parameters excluded (`sft.memory.ledger`), of a model
of 4 layers less one of 2, over 2: a layer in the middle, without the last norm, the head and the
rotary tables. bf16, sdpa. The forward runs without data, as in `sft.estimate`; --real runs it for
real, which is slow where the CPU has no bf16 products.
"""

import argparse
import warnings

import torch

import sparse_ft as sft
from bench.arguments import positive
from sparse_ft.memory.batch import batch_for
from sparse_ft.texts import aligned

SHAPE = dict(
    hidden_size=1024,
    intermediate_size=2816,
    num_attention_heads=16,
    num_key_value_heads=8,
    vocab_size=512,
)
OURS = {"columns": 0.05, "rows": 0.05, "entries": 0.01}  # structure: density
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


def config_of(layers, positions, shape):
    from transformers import LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=layers, max_position_embeddings=positions, use_cache=False, **shape
    )
    config._attn_implementation, config.dtype = "sdpa", torch.bfloat16
    return config


def frozen(model):
    """All frozen, and the first layer's input needs a gradient.

    Every layer is one in the middle.
    """
    model.requires_grad_(False).enable_input_require_grads()
    return model


def peft(kind, **settings):
    def prepare(model):
        import peft

        config = getattr(peft, f"{kind}Config")(
            r=8, target_modules=[f"{name}_proj" for name in LINEARS]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peft.get_peft_model(frozen(model), config, **settings)

    return prepare


def selected(structure, lean=False):
    """The share of OURS of every linear layer, evenly spread.

    Layers that read one input keep the same columns of it.
    """

    def prepare(model):
        kind = {"columns": sft.Columns, "rows": sft.Rows, "entries": sft.Entries}[structure]
        plan, known = {}, {}
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                size = {
                    "columns": weight.size(1),
                    "rows": weight.size(0),
                    "entries": weight.numel(),
                }[structure]
                count = max(1, round(OURS[structure] * size))
                plan[name] = known.setdefault(size, kind([i * size // count for i in range(count)]))
        frozen(model)
        return plan

    return prepare


METHODS = {  # name: (what prepares the model or gives its plan, whether it is made lean)
    "full fine-tuning": (None, False),
    "LoRA r8 (PEFT)": (peft("Lora"), False),
    "LoRA r8 (PEFT), autocast_adapter_dtype=False": (
        peft("Lora", autocast_adapter_dtype=False),
        False,
    ),
    "SHiRA r8 (PEFT)": (peft("Shira"), False),
    "all frozen": (frozen, False),
    "all frozen, lean": (frozen, True),
}
BY_VALUES = {"SHiRA r8 (PEFT)"}  # looks at its weights, which a dry run does not have
for _structure, _density in OURS.items():
    METHODS[f"{_density:.0%} {_structure}"] = selected(_structure), False
    METHODS[f"{_density:.0%} {_structure}, lean"] = selected(_structure), True


def held(method, layers, batch, sequence, padded, real=False, shape=SHAPE):
    """Bytes that autograd holds after a forward."""
    prepare, lean = METHODS[method]
    config = config_of(layers, sequence, shape)
    if not real:
        return sft.estimate(
            config, prepare, batch, sequence, lean=lean, optimizer=None, padded=padded
        ).activations
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(config).to(torch.bfloat16).train()
    prepared = model if prepare is None else prepare(model)
    if isinstance(prepared, dict):
        sft.convert(model, prepared)
        prepared = model
    if lean:
        sft.lean(prepared)
    return sft.memory.ledger(prepared, **batch_for(model, batch, sequence, padded)).total


def per_layer(method, batch, sequence, padded, real=False, shape=SHAPE):
    """Bytes a layer holds, in multiples of a token's hidden state in bf16."""
    four, two = (held(method, layers, batch, sequence, padded, real, shape) for layers in (4, 2))
    return (four - two) / 2 / (batch * sequence) / shape["hidden_size"] / 2


def from_few_tokens(method, tokens, shape=SHAPE):
    """`per_layer` without padding of a method that does not run without data.

    So much a token, so much a layer.
    """
    few, more = (per_layer(method, 1, n, padded=False, real=True, shape=shape) for n in (8, 16))
    of_layer = (few - more) * 16
    return more - of_layer / 16 + of_layer / tokens


def measured(method, batch, sequence, real=False, shape=SHAPE):
    """`per_layer` without padding and, of what runs without data, with it."""
    if method in BY_VALUES and not real:
        return [from_few_tokens(method, batch * sequence, shape)]
    return [per_layer(method, batch, sequence, padded, real, shape) for padded in (False, True)]


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m bench.saved", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--batch", type=positive, default=4)
    parser.add_argument(
        "--sequence",
        type=int,
        default=256,
        help="tokens a row; what a padded batch keeps grows with them",
    )
    parser.add_argument("--real", action="store_true", help="run the models for real")
    arguments = parser.parse_args(argv)
    lines = [("method", "no padding", "padded")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in METHODS:
            shape = arguments.batch, arguments.sequence
            try:
                found = measured(name, *shape, arguments.real)
            except ImportError as why:
                print(f"{name}: left out, {why}")
                continue
            lines.append((name, *(f"{number:.3f}" for number in found), *[""] * (2 - len(found))))
    print(
        f"held for backward by one layer, batch {arguments.batch} × {arguments.sequence}, × hidden"
        " size a token"
    )
    print("\n".join(aligned(lines, numbers=(1, 2))))


if __name__ == "__main__":
    main()
