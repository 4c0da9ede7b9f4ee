"""APPROXIMATE steps (`sft.Contextual`) beside the exact step: what they save, and what they cost.

python -m bench.contextual

SmolLM2-135M, columns of q_proj and v_proj training, lean; text of Python's own manual. Of each
variant the loss of one batch, how far its gradient is from the exact one, and the CPU seconds of a
step, the least of some rounds in turn on one thread. Writes results/contextual.md.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

import sparse_ft as sft
from bench.arguments import positive
from bench.machine import ROOT
from sparse_ft.texts import aligned

KEPT_EXACT = ("*layers.0.*", "*layers.1.*", "*layers.2.*", "*layers.29.*")
VARIANTS = {
    "exact": None,
    "75 % of the channels": sft.Contextual(0.75, 8, KEPT_EXACT),
    "50 %": sft.Contextual(0.5, 8, KEPT_EXACT),
    "25 %": sft.Contextual(0.25, 8, KEPT_EXACT),
    "75 %, of all layers": sft.Contextual(0.75, 8),
}
HEAD = ("variant", "loss", "cosine of the gradient", "its error, relative", "CPU s", "of exact")
ABOUT = """# APPROXIMATE steps beside the exact one

`python -m bench.contextual`: SmolLM2-135M in fp32, {tokens} tokens, columns of q_proj and v_proj
training, lean; one thread, the least of {rounds} rounds in turn. Frozen gated MLPs use a share of
their channels, chosen in each batch on every eighth token (`sft.Contextual`, off unless asked for);
the first three and the last stay exact but in the last row.
"""


def plan_of(model: nn.Module) -> sft.Plan:
    """A tenth of the columns of queries and values."""
    ends = ("self_attn.q_proj.weight", "self_attn.v_proj.weight")
    names = [name for name, _ in model.named_parameters() if name.endswith(ends)]
    width = model.get_parameter(names[0]).size(1)
    return sft.Plan(dict.fromkeys(names, sft.Columns(range(0, width, 10))))


def step_of(model: nn.Module, ids: torch.Tensor) -> tuple[float, torch.Tensor, float]:
    """(loss, the gradient of all that trains, CPU seconds) of one forward and backward."""
    model.zero_grad()
    start = time.process_time()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    took = time.process_time() - start
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients), took


def measured(model: nn.Module, ids: torch.Tensor, rounds: int) -> dict[str, tuple]:
    """{variant: (loss, gradient, least CPU seconds)}."""
    plan = plan_of(model)
    found: dict[str, tuple] = {}
    for _ in range(rounds):
        for name, contextual in VARIANTS.items():
            sft.convert(model, plan)
            sft.lean(model, loss=True, contextual=contextual)
            loss, gradient, took = step_of(model, ids)
            sft.revert(model)
            least = min(took, found[name][2]) if name in found else took
            found[name] = loss, gradient, least
    return found


def table(found: dict[str, tuple]) -> list[tuple[str, ...]]:
    """Rows of text, the head first."""
    _, exact, base = found["exact"]
    rows = [HEAD]
    for name, (loss, gradient, took) in found.items():
        cosine = torch.nn.functional.cosine_similarity(gradient, exact, dim=0).item()
        error = ((gradient - exact).norm() / exact.norm()).item()
        numbers = (loss, cosine, error, took, took / base)
        rows.append((name, *(f"{number:.2f}" for number in numbers)))
    return rows


def markdown(rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| --- |" + " ---: |" * (len(rows[0]) - 1))
    return "\n".join(lines)


def decoder_and_text(tokens: int) -> tuple[nn.Module, torch.Tensor]:
    """SmolLM2-135M in training mode, and [4, tokens / 4] ids."""
    import pydoc_data.topics

    from bench.methods import decoder

    manual = "\n\n".join(pydoc_data.topics.topics.values())[: 20 * tokens]
    ids = torch.tensor(decoder.tokenizer()(manual)["input_ids"])
    return decoder.model().train(), ids[:tokens].view(4, -1)


def main(load: Callable = decoder_and_text) -> None:
    """Measure, print, write."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--rounds", type=positive, default=3)
    parse.add_argument("--tokens", type=positive, default=512)
    given = parse.parse_args()
    torch.set_num_threads(1)
    model, ids = load(given.tokens)
    rows = table(measured(model, ids, given.rounds))
    print("APPROXIMATE, but for the first row")
    print("\n".join(aligned(rows)), flush=True)
    told = ABOUT.format(tokens=given.tokens, rounds=given.rounds)
    path = ROOT / "bench" / "results" / "contextual.md"
    path.write_text(f"{told}\n{markdown(rows)}\n")


if __name__ == "__main__":
    main()
