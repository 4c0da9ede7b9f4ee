"""Twice the batch under one memory cap: how many sequences a step can hold, fully fine-tuned and
with sparse_ft.

    python examples/twice_the_batch.py [MiB of memory beyond the weights, default 700]

Each try is a fork of this process, which only imports; the system limits its data segment: asking
for more fails, as on a full machine. Linux.
"""

import multiprocessing
import resource
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sparse_ft as sft

FORK = multiprocessing.get_context("fork")
SHAPE = dict(
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
)


def train(ours, batch, cap):
    """Two steps on `batch` sequences, within `cap` bytes beyond what the process holds with the
    weights loaded.
    """
    torch.set_num_threads(2)  # each thread has a stack, which counts too: the same everywhere
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, use_cache=False, **SHAPE)).train()
    if ours:
        plan = sft.select(
            model, density=0.05, structure="columns", score="random", targets="*_proj.weight"
        )
        sft.convert(model, plan, lean=True)
    optimizer = (
        sft.SelectiveAdamW(model.parameters()) if ours else torch.optim.AdamW(model.parameters())
    )
    data = next(
        int(line.split()[1]) << 10
        for line in open("/proc/self/status")
        if line.startswith("VmData")
    )
    resource.setrlimit(resource.RLIMIT_DATA, (data + cap, data + cap))
    try:
        for _ in range(2):
            tokens = torch.randint(8192, (batch, 256))
            model(tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    except (MemoryError, RuntimeError) as error:
        sys.exit("memory" not in str(error) and str(error) or 1)


def largest_batch(name, ours, cap):
    for batch in range(2, 1000, 2):
        process = FORK.Process(target=train, args=(ours, batch, cap))
        process.start()
        process.join()
        print(
            f"{name}: {batch} sequences {'do not fit' if process.exitcode else 'fit'}", flush=True
        )
        if process.exitcode:
            return batch - 2


if __name__ == "__main__":
    cap = int(sys.argv[1] if len(sys.argv) > 1 else 700) << 20
    full = largest_batch("full fine-tuning", False, cap)
    ours = largest_batch("sparse_ft", True, cap)
    print(
        f"within {cap >> 20} MiB: {full} sequences of 256 tokens fully fine-tuned, {ours} with"
        " sparse_ft"
    )
    sys.exit(0 if ours >= 2 * full > 0 else 1)
