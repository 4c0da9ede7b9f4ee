"""Stage `model`: training steps of Llama-shaped layers and of a whole random-weight model, ours
beside full, LoRA and SHiRA.

Every way trains as many parameters as LoRA of rank 32 (`full` all of them), on the same input, in
bf16. On the whole model each runs in a process of its own, so that one that fails costs its own row
only. Peak memory is of a step, weights and optimiser state included.
"""

import argparse
import gc
import importlib.util
import json
import subprocess
import sys
from unittest import mock

import torch
from torch import nn

import sparse_ft as sft
from bench import gpu_children, training
from bench.cases import selection
from bench.device import captured, compare, peak_bytes
from bench.gpu_results import OK, RED, SHORT, SKIPPED, Results
from bench.machine import ROOT
from bench.suite import MILLI, Unavailable

RANK, TINY_RANK = 32, 4
LR = 1e-5
SCHEDULE = (1e-3, 1e-4, 3e-3, 1e-5)  # of the comparison of replayed with eager steps
OURS = ("columns", "rows", "blocks", "entries")
LORA = "LoRA r32"
# What a cut would cost least comes last.
WAYS = (
    LORA,
    "columns",
    "columns lean",
    "blocks",
    "full",
    "columns graph",
    "entries",
    "rows",
    "columns in backward",
    "SHiRA r32",
)
AT_MOST_LORA = ("columns", "rows", "blocks")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

WHOLE = "Llama-3.2-3B"
# {name: (shape, layers, vocabulary, batch, tokens)}; a small vocabulary leaves a layer
# and nothing else to speak of
MODELS = {
    "tiny": (training.llama(64, 128, 2, 1), 2, 32, 2, 16),
    "Llama-1B layer": (training.LLAMA_1B, 1, 256, 4, 1024),
    "Llama-3B layer": (training.LLAMA_3B, 1, 256, 4, 1024),
    "Llama-8B layer": (training.LLAMA_8B, 1, 256, 4, 1024),
    WHOLE: (training.LLAMA_3B, 28, 128256, 4, 768),
}


def base(name, device, dtype=torch.bfloat16):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape, layers, vocabulary, _, _ = MODELS[name]
    config = LlamaConfig(
        **shape,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype).requires_grad_(False)


def unmasked():
    """Batches here are not padded; to find that out transformers waits for the GPU, and in a graph
    builds a mask instead.
    """
    return mock.patch(
        "transformers.models.llama.modeling_llama.create_causal_mask", lambda **_: None
    )


def rank(model):
    return RANK if model.config.hidden_size >= 1024 else TINY_RANK


def plan(model, kind):
    """A selection of each target that has as many entries as LoRA has parameters there."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS:
            rows, columns = module.weight.shape
            density = rank(model) * (rows + columns) / (rows * columns)
            block, device = min(64, columns // 4), module.weight.device
            # A GPU draws the coins of 3 G entries in a second, one core in minutes.
            chosen = selection(kind, (rows, columns), density, block, device=device)
            found[f"{name}.weight"] = chosen
    return found


def prepare(way, model):
    """(model, optimiser): the model trains in this way."""
    kind, _, how = way.partition(" ")
    if kind in OURS:
        sft.convert(model, plan(model, kind))
        if how == "lean":
            sft.lean(model, loss=True)
        # That a replay reads anew.
        lr = torch.full((), LR, device=next(model.parameters()).device) if how == "graph" else LR
        return model, sft.SelectiveAdamW(
            model.parameters(), lr=lr, in_backward=how == "in backward"
        )
    if way == "full":
        model.requires_grad_(True)
    else:
        model = training.adapters(model, kind, rank(model), rank(model), TARGETS)
    return model, torch.optim.AdamW(training.trained(model), lr=LR, fused=True)


def run(name, way, device, seconds):
    """{value, p20, p80 in ms, rounds, gib, loss, trained} of a training step.

    The loss is that of the last one.
    """
    gc.collect()  # what ran here before
    with unmasked():
        return _run(name, way, device, seconds)


def _run(name, way, device, seconds):
    (*_, batch, tokens), before = MODELS[name], _allocated(device)
    model, optimizer = prepare(way, base(name, device))
    labels = torch.randint(model.config.vocab_size, (batch, tokens), device=device)
    latest = torch.zeros((), device=device)

    def step():
        loss = model(input_ids=labels, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        latest.copy_(loss.detach())

    for _ in range(2):
        step()
    held = _allocated(device) - before
    peak = peak_bytes(step, device) + held
    call = captured(step, device) if way.endswith("graph") else step
    times = compare({way: call}, device, seconds, warm_up=1, least=3, most=50)[way]
    trained = sum(p.numel() for p in training.trained(model))
    figures = {"gib": peak / 2**30, "loss": latest.item(), "trained": trained}
    return times.fields(MILLI, "value") | figures


def replayed(name, device):
    """The largest difference of values, relative in norm, after eager and after replayed steps with
    the rates of SCHEDULE.
    """
    with unmasked():
        return _replayed(name, device)


def _replayed(name, device):
    ends, (*_, batch, tokens) = [], MODELS[name]
    for graph in (False, True):
        model, optimizer = prepare("columns graph", base(name, device))
        labels = torch.randint(
            model.config.vocab_size, (batch, tokens), device=device, generator=_generator(device)
        )
        values = training.trained(model)

        def step():
            optimizer.zero_grad()  # noqa: B023
            model(input_ids=labels, labels=labels).loss.backward()  # noqa: B023
            optimizer.step()  # noqa: B023

        (lr,) = (group["lr"] for group in optimizer.param_groups)
        with torch.no_grad():
            before = [p.clone() for p in values]
            lr.zero_()
        step()
        call = captured(step, device) if graph else step
        with torch.no_grad():  # as they were before the steps that capturing took
            for p, old in zip(values, before):
                p.copy_(old)
                for state in optimizer.state[p].values():
                    state.zero_()
        sft.sync(model)
        for rate in SCHEDULE:
            lr.fill_(rate)
            call()
        ends.append([p.detach() for p in values])
    moved = sum((b - a).norm() for a, b in zip(before, ends[0]))
    apart = max((a - b).norm() / a.norm() for a, b in zip(*ends))
    return apart.item(), moved.item()


def _generator(device):
    return torch.Generator(device).manual_seed(1)


def _allocated(device):
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def apart(name, way, device, seconds, limit):
    """`run` in a process of its own, whose last line of output is the result."""
    words = ["--one", name, way, "--device", str(device), "--seconds", str(seconds)]
    command = [sys.executable, "-m", "bench.gpu_model", *words]
    child = gpu_children.start(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        said, complained = child.communicate(timeout=limit)
    finally:
        child.kill()
        child.wait()
    if child.returncode:
        last = (complained.strip().splitlines() or [f"ended with status {child.returncode}"])[-1]
        raise RuntimeError(last[:300])
    found = json.loads(said.strip().splitlines()[-1])
    if "missing" in found:
        raise Unavailable(found["missing"])
    return found


def measure(name, way, results, how, lora=None):
    """What `how` found, or None; a row is written in any case. lora: what LoRA took, which ours
    should not exceed.
    """
    try:
        found = how(name, way)
    except Unavailable as why:
        results.add("model", name, way, SKIPPED, note=str(why))
        return None
    except Exception as problem:  # noqa: BLE001 - the other ways go on
        # A step that cannot be captured trains all the same.
        status = SHORT if way.endswith("graph") else RED
        results.add(
            "model",
            name,
            way,
            status,
            note=f"{type(problem).__name__}: {problem}".splitlines()[0][:300],
        )
        return None
    status = OK
    note = f"{found['gib']:.2f} GiB, {found['trained'] / 1e6:.2f} M train, loss {found['loss']:.4f}"
    if lora is not None:
        more_memory = found["gib"] / lora["gib"]
        note = (
            f"{found['value'] / lora['value']:.2f} x LoRA's time, {more_memory:.2f} x its memory;"
            f" {note}"
        )
        if (
            way.partition(" ")[0] in AT_MOST_LORA
            and max(found["value"] / lora["value"], more_memory) > 1
        ):
            status = SHORT
    if not abs(found["loss"]) < float("inf"):
        status = RED
    timed = {k: found[k] for k in ("value", "p20", "p80", "rounds")}
    results.add("model", name, way, status, unit="ms", note=note, **timed)
    return found


def check_replay(device, results):
    """A row: whole steps from a CUDA graph give what eager ones give, also where the learning rate
    changes in between.
    """
    try:
        apart, moved = replayed("tiny", device)
    except Exception as problem:  # noqa: BLE001 - the ways go on
        return results.add(
            "model",
            "tiny",
            "replay",
            RED,
            note=f"{type(problem).__name__}: {problem}".splitlines()[0][:300],
        )
    same = "the same bits" if apart == 0 else f"apart by {apart:.1e}"
    status = OK if apart <= 1e-5 and moved else RED
    results.add(
        "model",
        "tiny",
        "replay",
        status,
        note=f"{len(SCHEDULE)} learning rates, eager and replayed: {same}",
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--size", default="full", choices=("tiny", "full"))
    parser.add_argument("--seconds", default=1.0, type=float, help="for each way")
    parser.add_argument(
        "--limit", default=45.0, type=float, help="seconds after which a way is given up"
    )
    parser.add_argument("--only", default="", help="ways whose name has this in it")
    parser.add_argument(
        "--one",
        nargs=2,
        metavar=("MODEL", "WAY"),
        help="run this one here and print its result as JSON",
    )
    given = parser.parse_args(arguments)
    if given.one:
        try:
            print(json.dumps(run(*given.one, given.device, given.seconds)))
        except Unavailable as why:
            print(json.dumps({"missing": str(why)}))
        return 0
    from bench import gpu_steps  # which imports this file

    results, tiny = Results(device=str(given.device), torch=torch.__version__), given.size == "tiny"
    if importlib.util.find_spec("transformers") is None:
        results.add(
            "model",
            "",
            status=SKIPPED,
            note="transformers is not installed: the models are its own",
        )
        return 0
    for way in (way for way in gpu_steps.WAYS if given.only in way):
        gpu_steps.check(way, given.device, results)
    if given.only in "columns graph":
        check_replay(given.device, results)
    for name in ["tiny"] if tiny else [WHOLE, *(n for n in MODELS if n.endswith("layer"))]:

        def how(name, way):
            if name == WHOLE:
                return apart(name, way, given.device, given.seconds, given.limit)
            return run(name, way, given.device, given.seconds)

        lora = None
        for way in (way for way in WAYS if given.only in way):
            found = measure(name, way, results, how, lora)
            lora = found if way == LORA and given.device.type == "cuda" else lora
    return 0  # what is red has a row


if __name__ == "__main__":
    sys.exit(main())
