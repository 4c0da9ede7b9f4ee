"""Training 4 of 64 experts: time of the backward beside all of them and none of them.

python -m bench.experts

The promise: what the chosen ones add is at most their share of what all add, and a tenth of the
dense backward of the experts. Experts of transformers' Qwen3-MoE, 2,048 tokens, 8 experts each.
"""

import argparse
import time
from types import SimpleNamespace

import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

import sparse_ft as sft
from bench.arguments import positive

EXPERTS, TOP, TOKENS = 64, 8, 2048
HIDDEN, INNER = 512, 384
CHOSEN = (3, 17, 40, 63)
NAMES = ("gate_up_proj", "down_proj")
OVER = 0.1  # of the dense backward


def experts(implementation):
    """The layer alone, with its weights."""
    config = SimpleNamespace(
        num_experts=EXPERTS,
        num_local_experts=EXPERTS,
        hidden_size=HIDDEN,
        moe_intermediate_size=INNER,
        hidden_act="silu",
        _experts_implementation=implementation,
    )
    torch.manual_seed(0)
    layer = Qwen3MoeExperts(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return layer


def variants(implementation):
    """{name: () -> one forward and backward}."""
    torch.manual_seed(1)
    x = torch.randn(TOKENS, HIDDEN)
    gates, chosen = torch.randn(TOKENS, EXPERTS).softmax(-1).topk(TOP)
    sent = torch.randn(TOKENS, HIDDEN)

    def made(which):
        layer = experts(implementation)
        if which == "all":
            trained = layer
        elif which == "chosen":
            plan = {}
            for name in NAMES:
                rows = layer.get_parameter(name).size(1)
                index = [expert * rows + row for expert in CHOSEN for row in range(rows)]
                plan[name] = sft.Rows(index)
            sft.convert(layer, plan)
            trained = layer
        else:
            trained = layer.requires_grad_(False)

        def run():
            input = x.clone().requires_grad_()
            output = trained(input, chosen, gates)
            if which != "forward":
                output.backward(sent)
            for parameter in trained.parameters():
                parameter.grad = None

        return run

    return {which: made(which) for which in ("forward", "none", "chosen", "all")}


def best_of(variants, rounds):
    """{name: CPU seconds of the process}, the least of `rounds` in turn: other processes, which
    take the cores away for a while, hardly count.
    """
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return best


def main():
    """Measure, print, and say whether the promise is held."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--rounds", type=positive, default=5)
    given = parse.parse_args()
    torch.set_num_threads(1)
    share = len(CHOSEN) / EXPERTS
    for implementation in ("grouped_mm", "eager"):
        took = best_of(variants(implementation), given.rounds)
        dense = took["all"] - took["forward"]
        limit = share * (took["all"] - took["none"]) + OVER * dense
        added = took["chosen"] - took["none"]
        told = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in took.items())
        held = "holds" if added <= limit else "FAILS"
        print(f"{implementation}: {told}")
        print(f"  added {added * 1e3:.1f} ms, at most {limit * 1e3:.1f} ms: {held}", flush=True)


if __name__ == "__main__":
    main()
