"""Loads plan files that were damaged at random: `plan_fuzz.py FIRST COUNT` prints what came.

Each file has a seed of its own, FIRST to FIRST + COUNT - 1.
A file loads, or is refused with a ValueError that names it; a plan that loaded can be used, or its
use is refused. Nothing else may happen: no other exception, and no memory that the file does not
justify.
"""

import copy
import json
import random
import resource
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from resident import most_resident

import sparse_ft as sft

ALLOWED = 64 << 20  # bytes, beside what the largest file here justifies: a few KB
# Bytes beyond those at the start, where the system refuses them: a bomb must not take the machine.
LIMIT = 2 << 30
SHAPE = (12, 16)
PLANS = (
    sft.Plan({"a": sft.Rows([1, 3]), "b": "all"}),
    sft.Plan({"a": sft.Columns([0, 5, 9]).on(SHAPE), "b": sft.Entries([3, 70, 191])}),
    sft.Plan({"a": sft.Blocks([[0, 1], [2, 0]], (4, 8)).on(SHAPE), "b": sft.Entries([2**40])}),
    sft.Plan({f"layer.{i}.weight": sft.Rows([i]) for i in range(6)}),
    sft.Plan({"a": sft.Entries(torch.arange(0, 190, 2)).on(SHAPE)}),
)
HOSTILE = (
    0, 1, -1, 2, 4, 7, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 2**200,
    -(2**63), 10**18, 1_500_000_000,
    0.0, 1.5, 4.0, 1e308, float("nan"), float("inf"), True, False, None,
    "", "a", "all", "rows", "columns", "blocks", "entries", "index.0", "index.1",
    "I32", "I64", "F32", "BOOL", "sparse_ft.plan",
    [], {}, [1], [0, 4], [4, 4], [[0, 1]], ["a", 2], [2**62, 4], {"kind": "rows"}, [[[[[]]]]],
    [0] * 70, [2**63 - 1] * 64,
)  # fmt: skip


def split(content):
    """(the header with its document parsed, the bytes of the tensors) of a whole file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"].pop("sparse_ft.crc32")  # as another writer leaves it out
    header["__metadata__"]["sparse_ft"] = json.loads(header["__metadata__"]["sparse_ft"])
    return header, content[8 + length :]


def joined(header, body):
    header = copy.deepcopy(header)
    try:
        header["__metadata__"]["sparse_ft"] = json.dumps(header["__metadata__"]["sparse_ft"])
    except (KeyError, TypeError):
        pass
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def places(node):
    """Every (container, key) below a JSON value."""
    items = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in list(items):
        yield node, key
        yield from places(value)


def with_other_values(content, draw):
    """One to three values of the JSON are others, are gone, or stand twice."""
    header, body = split(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        container, key = draw.choice(list(places(header)) or [({}, "x")])
        what = draw.random()
        if what < 0.7:
            container[key] = copy.deepcopy(draw.choice(HOSTILE))
        elif what < 0.8:
            container.pop(key, None) if isinstance(container, dict) else container.pop(key)
        elif isinstance(container, dict):
            container[draw.choice(("x", "index.9", "__metadata__", "b"))] = copy.deepcopy(
                container.get(key)
            )
        else:
            container.append(copy.deepcopy(container[key]))
    return joined(header, body)


def with_other_bytes(content, draw):
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def truncated(content, draw):
    return content[: draw.randrange(len(content))]


def with_other_length(content, draw):
    length = draw.choice(
        (
            0,
            1,
            8,
            len(content),
            len(content) - 8,
            10**8,
            2**31,
            2**63,
            2**64 - 1,
            draw.randrange(2 * len(content)),
        )
    )
    return length.to_bytes(8, "little") + content[8:]


def with_a_piece_elsewhere(content, draw):
    start, stop = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    at = draw.randrange(len(content) + 1)
    return (
        content[:at]
        + content[start:stop] * draw.choice((1, 1, 3))
        + content[at if draw.random() < 0.5 else stop :]
    )


def with_other_numbers(content, draw):
    """The JSON stays, the numbers of the indices are others."""
    header, body = split(content)
    numbers = bytearray(body)
    for _ in range(draw.choice((1, 3))):
        if numbers:
            at = 4 * draw.randrange(len(numbers) // 4)
            numbers[at : at + 4] = draw.choice((0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1)).to_bytes(
                4, "little"
            )
    return joined(header, bytes(numbers))


DAMAGES = (with_other_values,) * 4 + (
    with_other_bytes,
    truncated,
    with_other_length,
    with_a_piece_elsewhere,
    with_other_numbers,
)


def bombs():
    """Small files whose claims would take memory, or time, without end."""
    plan = {
        "format": "sparse_ft.plan",
        "version": 1,
        "plan": {"a": {"kind": "rows", "index": "i", "block_size": [1, 1]}},
    }
    for shape in (
        [1_500_000_000, "a"],
        ["a", 1_500_000_000],
        [[0], 1_500_000_000],
        [2**63 - 1] * 200_000,
        [2**40],
        1_500_000_000,
    ):
        entry = {"dtype": "I32", "shape": shape, "data_offsets": [0, 4]}
        yield joined({"i": entry, "__metadata__": {"sparse_ft": plan}}, bytes(4))
    numbers = torch.arange(1 << 17, dtype=torch.int32).numpy().tobytes()
    entry = {"dtype": "I32", "shape": [1 << 17], "data_offsets": [0, len(numbers)]}
    shared = {
        **plan,
        "plan": {str(i): {"kind": "rows", "index": "i", "block_size": [1, 1]} for i in range(1000)},
    }
    yield joined({"i": entry, "__metadata__": {"sparse_ft": shared}}, numbers)


def use(plan):
    """As who converts a model with it would."""
    for what in plan.values():
        if isinstance(what, str):
            continue
        for call in (what.check, what.values_shape, what.mask, what.density):
            refused(call, SHAPE)
        refused(what.gather, torch.zeros(SHAPE))
    str(plan), repr(plan)


def refused(call, *arguments):
    try:
        call(*arguments)
    except (ValueError, IndexError) as error:
        assert str(error)


def run(folder, seed, wholes):
    """Whether a damaged file loaded."""
    draw = random.Random(seed)
    return loads(folder / "damaged.plan", draw.choice(DAMAGES)(draw.choice(wholes), draw), seed)


def loads(path, content, seed):
    path.write_bytes(content)
    try:
        plan = sft.Plan.load(path)
    except ValueError as error:
        assert "damaged.plan" in str(error), f"seed {seed}: {error}"
        cause = error.__context__
        assert not isinstance(cause, MemoryError) and "allocate" not in str(cause), (
            f"seed {seed}: it asked for memory: {cause}"
        )
        return False
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {error!r}") from error
    use(plan)
    return True


def main(first, count):
    warnings.simplefilter("ignore")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    loaded = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wholes = []
        for plan in PLANS:
            plan.save(folder / "whole.plan")
            wholes.append((folder / "whole.plan").read_bytes())
            use(sft.Plan.load(folder / "whole.plan"))
        before = most_resident()
        for number, bomb in enumerate(bombs()):
            assert not loads(folder / "damaged.plan", bomb, f"bomb {number}")
        for seed in range(first, first + count):
            loaded += run(folder, seed, wholes)
            grown = most_resident() - before
            assert grown < ALLOWED, f"seed {seed}: the process has grown by {grown >> 20} MiB"
    print(json.dumps({"loaded": loaded, "refused": count - loaded, "grown": grown}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]))
