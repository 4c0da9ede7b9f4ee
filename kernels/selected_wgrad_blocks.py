"""selected_wgrad of blocks, 16-bit operands.

One program multiplies a panel by the features that its blocks gather.

A program a block of 64 x 64 does 32 FLOP for each byte it loads; a panel of 64 against 256 gathered
columns does 51, and wgmma reads both from shared memory as they lie in memory, token by token.
Blocks whose sides, and operands whose features are no multiples of 16 are copied two bytes at a
time. Blocks below 64 stand on the 256 side of the instruction as well: the gathered columns are its
rows then, so that 16 and 32 fill it without padding.
"""

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl

from .launching import launch
from .layout import INTERPRETED, cdiv, on_device, power_of_two, round_to
from .problems import code, launches, number, pick, programs_of, within
from .selected_wgrad_splits import Tiles, chunk_of_tokens
from .selected_wgrad_tables import PANEL, panels

# Of the fields of `_panel`: the tables of an index, and where the products go.
TABLES, OUT = slice(2, 5), 5
PROCESSORS = 132, 233472  # of an H200, and the bytes of shared memory of each
# Tiles for each program that runs at a time from which programs stay and take several: by
# arithmetic, not measured yet. A new program costs 1 us of a tile's 45 (64 x 256, 8192 tokens);
# before that the device's own order fills the last round better.
PERSISTENT_FROM = 4
# {(panel, gathered features): (tokens at a time, warps, stages)} where a measurement chose:
# `bench/gpu.sh ops` times the candidates as "tiles". None is measured yet; by arithmetic 64 x 256
# in 8 warps is one program a processor, by its memory, and two of its three stages on their way are
# 80 KB, where L2 at 7 TB/s and 0.8 us of latency ask for 42 KB a processor.
TILES = {}


@triton.jit
def _panel(
    problems,
    program,
    SIZE_P: tl.constexpr,
    SIZE_Q: tl.constexpr,
    P_FIRST: tl.constexpr,
    SUBS: tl.constexpr,
    VECTOR_P: tl.constexpr,
    VECTOR_Q: tl.constexpr,
    RUN: tl.constexpr,
    DOT: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """One tile of one problem."""
    # [tokens, features_p], the operand whose panel a program takes
    p_ptr = pick(problems, program, 0)
    # [tokens, features_q], the operand whose features it gathers
    q_ptr = pick(problems, program, 1)
    order_ptr = pick(problems, program, 2)  # [n]
    others_ptr = pick(problems, program, 3)  # [n]
    tiles_ptr = pick(problems, program, 4)  # [tiles, 4]
    out_ptr = pick(problems, program, 5)  # [splits, n, SIZE_P * SIZE_Q]
    stride_pt = pick(problems, program, 6)
    stride_qt = pick(problems, program, 7)
    features_p = number(pick(problems, program, 8))
    features_q = number(pick(problems, program, 9))
    tokens = number(pick(problems, program, 10))
    chunk = number(pick(problems, program, 11))  # tokens of a split
    numel = number(pick(problems, program, 12))  # of one split's values
    programs = number(pick(problems, program, 13))  # of one split
    tile = within(problems, program)
    split = tile // programs
    tile -= split * programs
    stride_op: tl.constexpr = SIZE_Q if P_FIRST else 1
    stride_oq: tl.constexpr = 1 if P_FIRST else SIZE_P

    tile_ptr = tiles_ptr + 4 * (tile // SUBS)
    panel, first, count, start = (
        tl.load(tile_ptr),
        tl.load(tile_ptr + 1),
        tl.load(tile_ptr + 2),
        tl.load(tile_ptr + 3),
    )
    in_p = tile % SUBS * BLOCK_P + tl.arange(0, BLOCK_P)
    p = panel * SIZE_P + in_p
    at_q = start + tl.arange(0, BLOCK_Q)
    nth = at_q // SIZE_Q
    in_q = at_q % SIZE_Q
    exists_p, exists_q = in_p < SIZE_P, nth < count
    nth = first + tl.where(exists_q, nth, 0)
    q = tl.load(others_ptr + nth) * SIZE_Q + in_q
    inside_p, inside_q = exists_p & (p < features_p), exists_q & (q < features_q)
    # A feature outside reads the first one instead, and its sums are dropped: masks would narrow
    # the copies.
    p = tl.max_contiguous(tl.multiple_of(tl.where(inside_p, p, 0), VECTOR_P), VECTOR_P)
    q = tl.max_contiguous(tl.multiple_of(tl.where(inside_q, q, 0), VECTOR_Q), VECTOR_Q)

    offs_t = tl.arange(0, BLOCK_T)
    begin = split * chunk
    end = tl.minimum(begin + chunk, tokens)
    t = (begin + offs_t).to(tl.int64)
    # The operand on the left is loaded transposed; a tl.trans of its tile would keep sm_80 from
    # copying it asynchronously.
    PANEL_LEFT: tl.constexpr = BLOCK_P >= 64
    if PANEL_LEFT:
        p_ptrs = p_ptr + (t[None, :] * stride_pt + p[:, None])
        q_ptrs = q_ptr + (t[:, None] * stride_qt + q[None, :])
        acc = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
    else:
        p_ptrs = p_ptr + (t[:, None] * stride_pt + p[None, :])
        q_ptrs = q_ptr + (t[None, :] * stride_qt + q[:, None])
        acc = tl.zeros((BLOCK_Q, BLOCK_P), tl.float32)
    step = tl.full((), BLOCK_T, tl.int64)
    for at in range(begin, end, BLOCK_T):
        left = end - at
        if PANEL_LEFT:
            p_tile = tl.load(p_ptrs, mask=(offs_t < left)[None, :], other=0.0).to(DOT)
            q_tile = tl.load(q_ptrs, mask=(offs_t < left)[:, None], other=0.0).to(DOT)
            acc = tl.dot(p_tile, q_tile, acc, input_precision="ieee")
        else:
            p_tile = tl.load(p_ptrs, mask=(offs_t < left)[:, None], other=0.0).to(DOT)
            q_tile = tl.load(q_ptrs, mask=(offs_t < left)[None, :], other=0.0).to(DOT)
            acc = tl.dot(q_tile, p_tile, acc, input_precision="ieee")
        p_ptrs += step * stride_pt
        q_ptrs += step * stride_qt

    # Where a run of RUN columns goes is computed once for all of them: one address a column would
    # fill the registers.
    run = start + tl.arange(0, BLOCK_Q // RUN) * RUN
    nth, in_q = run // SIZE_Q, run % SIZE_Q
    exists_q = nth < count
    nth = first + tl.where(exists_q, nth, 0)
    q = tl.load(others_ptr + nth) * SIZE_Q + in_q
    offs_q = tl.load(order_ptr + nth).to(OFFSET) * (SIZE_P * SIZE_Q) + in_q.to(OFFSET) * stride_oq
    offs_p = in_p.to(OFFSET) * stride_op
    lane = tl.arange(0, RUN)
    out_ptr += split.to(tl.int64) * numel
    if PANEL_LEFT:
        acc = tl.reshape(acc, (BLOCK_P, BLOCK_Q // RUN, RUN))
        o_ptrs = out_ptr + (
            offs_p[:, None, None] + offs_q[None, :, None] + lane[None, None, :] * stride_oq
        )
        mask = exists_p[:, None, None] & exists_q[None, :, None]
        inside = (panel * SIZE_P + in_p < features_p)[:, None, None] & (
            q[None, :, None] + lane[None, None, :] < features_q
        )
    else:
        acc = tl.reshape(acc, (BLOCK_Q // RUN, RUN, BLOCK_P))
        o_ptrs = out_ptr + (
            offs_q[:, None, None] + lane[None, :, None] * stride_oq + offs_p[None, None, :]
        )
        mask = exists_q[:, None, None] & exists_p[None, None, :]
        inside = (q[:, None, None] + lane[None, :, None] < features_q) & (
            panel * SIZE_P + in_p < features_p
        )[None, None, :]
    tl.store(o_ptrs, round_to(tl.where(inside, acc, 0.0), out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _panel_kernel(
    problems,  # of the fields that `_panel` picks
    SIZE_P: tl.constexpr,  # of a block
    SIZE_Q: tl.constexpr,
    # the panel is one of grad_output, whose features are the rows of a block
    P_FIRST: tl.constexpr,
    SUBS: tl.constexpr,  # programs across a panel
    VECTOR_P: tl.constexpr,  # features that one copy may take
    VECTOR_Q: tl.constexpr,
    RUN: tl.constexpr,  # gathered features that are surely of one block
    DOT: tl.constexpr,
    # of the values: 32 bits where that is enough, for addresses fill the registers
    OFFSET: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PERSISTENT: tl.constexpr,  # a program takes several tiles
):
    if PERSISTENT:
        for program in tl.range(tl.program_id(0), programs_of(problems), tl.num_programs(0)):
            _panel(problems, program, SIZE_P, SIZE_Q, P_FIRST, SUBS, VECTOR_P, VECTOR_Q, RUN, DOT,
                   OFFSET, BLOCK_P, BLOCK_Q, BLOCK_T)  # fmt: skip
    else:
        program = tl.program_id(0)
        _panel(problems, program, SIZE_P, SIZE_Q, P_FIRST, SUBS, VECTOR_P, VECTOR_Q, RUN, DOT,
               OFFSET, BLOCK_P, BLOCK_Q, BLOCK_T)  # fmt: skip


@triton.jit
def _sum_splits_kernel(
    # of (partial [splits, numel], values [numel], numel, splits, the block after its last)
    problems,
    ACCUMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    partial_ptr = pick(problems, program, 0)
    values_ptr = pick(problems, program, 1)
    numel = pick(problems, program, 2)
    offs = within(problems, program).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < numel
    acc = tl.zeros((BLOCK,), tl.float32)
    for _ in range(number(pick(problems, program, 3))):  # always in this order
        acc += tl.load(partial_ptr + offs, mask=mask, other=0.0)
        partial_ptr += numel
    if ACCUMULATE:
        acc += tl.load(values_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(values_ptr + offs, round_to(acc, values_ptr.dtype.element_ty), mask=mask)


def _vector(operand: torch.Tensor, size: int) -> int:
    """Features that one copy of 16 bytes takes where every block starts on such a
    boundary, else 1.
    """
    aligned = operand.data_ptr() % 16 == 0 and operand.stride(0) % 16 == 0
    return (
        16 // operand.element_size()
        if aligned and operand.size(1) % 16 == 0 and size % 16 == 0
        else 1
    )


def _tile_of(block_p: int, width: int) -> tuple[int, int, int]:
    """(tokens at a time, warps, stages) of a tile."""
    return TILES.get((block_p, width), (64, 8 if block_p * width >= 64 * 256 else 4, 3))


def _tile(size: int, width: int, vector: int) -> dict[str, int]:
    """Tile and pipeline of a panel of blocks of `size` and of `width` gathered features.

    Features copied one by one have an address each, and half the tokens to leave registers for
    them.
    """
    block_p = min(max(power_of_two(size), 16), PANEL)
    block_t, warps, stages = _tile_of(block_p, width)
    return dict(
        BLOCK_P=block_p,
        BLOCK_Q=width,
        BLOCK_T=block_t if vector > 1 else 32,
        num_warps=warps,
        num_stages=stages,
    )


@functools.cache
def _processors_of(device: int) -> tuple[int, int]:
    """Processors of a device, and bytes of shared memory of each."""
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_multiprocessor


def _residents(device: torch.device, tile: dict[str, Any]) -> int:
    """Programs that a device runs at a time, by the shared memory of their pipelines.

    What they sum does not depend on it.
    """
    memory = tile["num_stages"] * (tile["BLOCK_P"] + tile["BLOCK_Q"]) * tile["BLOCK_T"] * 2
    processors, shared = PROCESSORS
    if device.type == "cuda":
        processors, shared = _processors_of(device.index)
    return processors * max(1, min(4, shared // memory))


def plan_of_blocks(
    values: torch.Tensor,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    index: torch.Tensor,
    block_h: int,
    block_w: int,
    accumulate: bool,
) -> tuple[tuple, tuple, int, int]:
    """(what a kernel is compiled for, the fields of this problem but for the last, programs,
    splits).
    """
    table = panels(index, block_h, block_w)
    sides = (grad_output, block_h), (input, block_w)
    (p, size_p), (q, size_q) = sides[table.shared], sides[1 - table.shared]
    vector_p, vector_q, tokens, numel = (
        _vector(p, size_p),
        _vector(q, size_q),
        p.size(0),
        values.numel(),
    )
    tile = _tile(size_p, table.width, min(vector_p, vector_q))
    subs = cdiv(size_p, tile["BLOCK_P"])
    programs = table.tiles.size(0) * subs
    work = Tiles(programs, tile["BLOCK_P"], table.width, table.loads, numel)
    chunk = chunk_of_tokens(tokens, work)
    splits = max(1, cdiv(tokens, chunk)) if chunk else 1
    # Old values beside the sums and an address for each do not fit the registers.
    direct = splits == 1 and not accumulate
    out = values if direct else values.new_empty(splits, numel, dtype=torch.float32)
    dot = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(p.dtype, tl.float32)
    if INTERPRETED.value and dot == tl.bfloat16:
        dot = tl.float32  # the interpreter's tl.dot multiplies the raw bits of bfloat16
    constants = dict(
        SIZE_P=size_p,
        SIZE_Q=size_q,
        P_FIRST=table.shared == 0,
        SUBS=subs,
        VECTOR_P=vector_p,
        VECTOR_Q=vector_q,
        RUN=math.gcd(size_q, 16),
        DOT=dot,
        OFFSET=tl.int32 if numel < 2**31 else tl.int64,
        **tile,
    )
    sizes = code(p.size(1), q.size(1), tokens, chunk, numel, programs)
    fields = p, q, table.order, table.others, table.tiles, out, p.stride(0), q.stride(0), *sizes
    return (
        (values.device, p.dtype, out.dtype, *constants.items()),
        fields,
        programs * splits,
        splits,
    )


def panels_launch(
    constants: dict[str, Any], group: tuple, programs: int, device: torch.device
) -> tuple[tuple, dict[str, Any]]:
    """(kernel, grid and arguments, constants) of the tiles of problems that compile alike."""
    resident = _residents(device, constants)
    persistent = programs >= PERSISTENT_FROM * resident
    grid = (resident if persistent else programs,)
    constants = {**constants, "PERSISTENT": persistent, "enable_fp_fusion": True}
    return (_panel_kernel, grid, group), constants


def sums_launch(group: tuple, programs: int, accumulate: bool) -> tuple[tuple, dict[str, Any]]:
    """The same of the splits of problems."""
    constants = dict(ACCUMULATE=accumulate, BLOCK=1024, num_warps=4, enable_fp_fusion=True)
    return (_sum_splits_kernel, (programs,), group), constants


def wgrad_of_blocks(problems: list[tuple], accumulate: bool) -> None:
    """values (+)= blocks of grad_output.T @ input for each (values, grad_output, input, index,
    block_h, block_w).

    values: [n, block_h, block_w], contiguous, not empty; grad_output, input: row-major, of one
    16-bit dtype. A launch takes the tiles of the problems that compile alike, and another adds up
    their splits over the tokens; the bits are those of each problem alone.
    """
    plans, sums = [plan_of_blocks(*problem, accumulate) for problem in problems], []
    for (device, _, _, *constants), group, programs in launches(plan[:3] for plan in plans):
        arguments, constants = panels_launch(dict(constants), group, programs, device)
        with on_device(group[0][0]):
            launch(*arguments, **constants)
    for (values, *_), (_, fields, _, splits) in zip(problems, plans):
        partial, numel = fields[OUT], values.numel()
        if partial is not values:
            key = values.device, values.dtype, numel % 16 == 0, values.data_ptr() % 16 == 0
            sums.append((key, (partial, values, numel, *code(splits)), cdiv(numel, 1024)))
    for _, group, programs in launches(sums):
        arguments, constants = sums_launch(group, programs, accumulate)
        with on_device(group[0][0]):
            launch(*arguments, **constants)
