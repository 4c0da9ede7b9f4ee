"""Loads delta files that were damaged at random, each from a seed of its own: `delta_fuzz.py FIRST
COUNT` prints what came.

A file loads, or is refused with a ValueError that names it; a delta that loaded goes into a model
and comes out again bit for bit, or is refused, and then the model is as it was. Nothing else may
happen: no other exception, and no memory that the file does not justify.
"""

import json
import random
import resource
import sys
import tempfile
import warnings
from pathlib import Path

import plan_fuzz
import small_deltas
import torch
from resident import most_resident

import sparse_ft as sft

PLANS = (
    small_deltas.PLAN,
    {"layers.0.weight": sft.Entries(range(0, 144, 2)), "norm.bias": "all"},
    {"embed.weight": sft.Rows([3]), "conv.weight": sft.Blocks([[0, 0], [2, 4]], (4, 7))},
)
REFUSED = (ValueError, KeyError)


def wholes(folder):
    """The bytes of a few whole files."""
    found = []
    for plan in PLANS:
        for dtype in (torch.float32, torch.bfloat16):
            for origin in (False, True):
                model = small_deltas.trained(plan, dtype)
                delta = sft.Delta.of(model)
                if origin:
                    delta = sft.diff(small_deltas.net(dtype), small_deltas.reverted(model))
                sft.save_delta(delta, folder / "whole.delta", origin=origin, recipe={"lr": [1, 2]})
                found.append((folder / "whole.delta").read_bytes())
    return found


def bombs():
    """Small files whose claims would take memory, or time, without end."""
    for kind, shape, what in (
        ("entries", [1 << 31, 1 << 31], "gaps"),
        ("rows", [4, 1 << 40], "index"),
        ("columns", [1 << 40, 4], "index"),
        ("blocks", [1 << 40, 1 << 20], "index"),
        ("all", [1 << 40], "index"),
    ):
        told = {"kind": kind, "shape": shape, "block_size": [1 << 20, 1 << 20]}
        document = {
            "format": "sparse_ft.delta",
            "version": 1,
            "base": {"name": None, "rest": None},
            "parts": {"x": told},
        }
        header = {
            "x.values": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            f"x.{what}": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]},
            "__metadata__": {"sparse_ft": document},
        }
        yield plan_fuzz.joined(header, bytes(8))


def use(delta, model, before, seed):
    """Into the model and out again; whether it went in."""
    str(delta), repr(delta)
    went_in = False
    for force in (False, True):
        try:
            sft.apply(model, delta, force=force)
        except REFUSED as error:
            assert str(error), f"seed {seed}: no message"
        else:
            went_in = True
            sft.remove(model)
        assert small_deltas.same_bits(model, before), f"seed {seed}: the model has changed"
    return went_in


def loads(path, content, seed, model, before):
    path.write_bytes(content)
    try:
        delta = sft.load_delta(path)
    except ValueError as error:
        assert "damaged.delta" in str(error), f"seed {seed}: {error}"
        cause = error.__context__
        assert not isinstance(cause, MemoryError) and "allocate" not in str(cause), (
            f"seed {seed}: it asked for memory: {cause}"
        )
        return "refused"
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {error!r}") from error
    return "applied" if use(delta, model, before, seed) else "no model takes it"


def main(first, count):
    warnings.simplefilter("ignore")
    told = {"refused": 0, "applied": 0, "no model takes it": 0}
    model = small_deltas.net()
    before = small_deltas.bits(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = wholes(folder)
        path = folder / "damaged.delta"
        for content in files:
            assert loads(path, content, "none", model, before) == "applied"
        start = most_resident()
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + plan_fuzz.LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number, bomb in enumerate(bombs()):
            assert loads(path, bomb, f"bomb {number}", model, before) == "refused", number
        for seed in range(first, first + count):
            draw = random.Random(seed)
            content = draw.choice(plan_fuzz.DAMAGES)(draw.choice(files), draw)
            told[loads(path, content, seed, model, before)] += 1
            grown = most_resident() - start
            assert grown < plan_fuzz.ALLOWED, f"seed {seed}: grown by {grown >> 20} MiB"
    print(json.dumps({**told, "grown": grown}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]))
