"""Floors of each op on a GPU.

Operations over the matrix rate, least bytes over the rate of the memory they come from.

Times in seconds, sizes in bytes. Operands and weights have 2 bytes an element, values, state and
gradients of values 4, and an index 4. An op is a list of phases: within one the largest term
counts, phases that need each other's results add up.
"""

import itertools
from dataclasses import dataclass

from sparse_ft.kernels.selected_wgrad_splits import Tiles, splits_of

from bench.ceilings import Ceilings

DENSITIES = (0.001, 0.01, 0.05, 0.1, 0.25)
MANY = (0.5, 1.0)  # of blocks, beside those: there the dense product and a gather are the rival
STREAM = 1 << 26  # elements
WORKSPACE = 32 << 20  # bytes that a method of selected_wgrad takes beside its result
SECTOR = 32  # bytes that device memory moves at least
# One program of grouped blocks: a panel of TILE features against up to SPAN panels of as many, the
# largest that does not spill.
TILE = 64
SPAN = 4


@dataclass(frozen=True)
class Phase:
    """What must be done at least. dram, l2: bytes through each; launches: of kernels."""

    flop: float = 0.0
    dram: float = 0.0
    l2: float = 0.0
    launches: int = 1

    def floor(self, ceilings):
        product = self.flop / ceilings.gemm["bfloat16"]
        return max(product, self.dram / ceilings.copy, self.l2 / ceilings.l2)


def floor(phases, ceilings):
    return sum(phase.floor(ceilings) for phase in phases)


def launches(phases):
    return sum(phase.launches for phase in phases)


def sectors(density, element=2):
    """Bytes of sectors touched a selected entry, by entries drawn at random."""
    across = SECTOR // element
    return SECTOR * (1 - (1 - density) ** across) / (across * density)


def touched(kind, density, element=2):
    """Bytes of a weight that move for one selected entry, one way.

    A lone entry or column takes a sector with it.
    """
    return sectors(density, element) if kind in ("entries", "columns") else element


def index_bytes(kind):
    """Of an index a selected entry; rows, columns and blocks share theirs among hundreds."""
    return 4 if kind == "entries" else 0


def copied(kind, nnz, density):
    """gather_selected or scatter_selected.

    Values on one side, the weight's sectors on the other.
    """
    return [Phase(dram=nnz * (4 + index_bytes(kind) + touched(kind, density)))]


def adamw(kind, nnz, density):
    """masked_adamw_: value and both moments in and out, gradient in, weight out."""
    return [Phase(dram=nnz * (28 + index_bytes(kind) + touched(kind, density)), launches=3)]


def dense_wgrad(tokens, shape):
    rows, columns = shape
    return [Phase(2 * tokens * rows * columns, 2 * tokens * (rows + columns) + 4 * rows * columns)]


def rows_wgrad(tokens, shape, density):
    """The rows' features of grad_output are gathered (whole sectors), then a library product."""
    rows, columns = shape
    few = max(1, round(density * rows))
    gather = Phase(dram=tokens * few * (2 + touched("columns", density)))
    return [
        gather,
        Phase(2 * tokens * few * columns, 2 * tokens * (few + columns) + 4 * few * columns),
    ]


def columns_wgrad(tokens, shape, density):
    """The forward kept the columns alone: a library product."""
    rows, columns = shape
    few = max(1, round(density * columns))
    return [Phase(2 * tokens * rows * few, 2 * tokens * (rows + few) + 4 * rows * few)]


def blocks_wgrad(
    tokens: int, shape: tuple[int, int], density: float, block: int = 64, span: int = SPAN
) -> list[Phase]:
    """Programs of one panel of one operand against up to `span` tiles of gathered panels of the
    other, out of the cache; then the sums over the parts that few blocks split the tokens into.
    """
    (rows, columns), nnz = shape, density * shape[0] * shape[1]
    blocks, grid = nnz / block**2, (rows // block, columns // block)
    used = [size * (1 - (1 - density) ** across) for size, across in zip(grid, reversed(grid))]
    group = max(1.0, min(span * TILE / block, density * max(grid)))
    loads = blocks / group * (1 + group) * block  # features that all programs load for one token
    tiles = Tiles(
        programs=max(1, round(blocks / group)),
        panel=block,
        gathered=round(group * block),
        loads=round(loads),
        numel=round(nnz),
    )
    parts = splits_of(tokens, tiles)
    products = Phase(2 * tokens * nnz, 2 * tokens * block * sum(used) + 4 * nnz, 2 * loads * tokens)
    return [products, *sums_of_parts(nnz, parts)]


def sums_of_parts(nnz: float, parts: int) -> list[Phase]:
    """fp32 sums of each part of the tokens, written and read again while in the cache."""
    return [Phase(dram=4 * nnz, l2=2 * 4 * parts * nnz)] if parts > 1 else []


def single_blocks_wgrad(tokens, shape, density, block=64):
    """One program a block: both its panels out of the cache."""
    return blocks_wgrad(tokens, shape, density, block, span=0)


def entry_dots(tokens, shape, density):
    """Both operands transposed, then a dot an entry.

    Its column from the cache each time, its row once for all of a row.
    """
    nnz = density * shape[0] * shape[1]
    parts = -(-2 * tokens * sum(shape) // WORKSPACE)  # of the tokens
    transpose = Phase(dram=2 * 2 * tokens * sum(shape), launches=2 * parts)
    return [
        transpose,
        Phase(dram=4 * nnz + 4 * nnz, l2=2 * tokens * (nnz + shape[0]), launches=parts),
    ]


def grouped_wgrad(problems: list[tuple[int, tuple[int, int]]], density: float) -> list[Phase]:
    """Blocks of several (tokens, shape) in one launch, their sums in a second one."""
    each = [blocks_wgrad(tokens, shape, density) for tokens, shape in problems]
    together = itertools.zip_longest(*each, fillvalue=Phase())
    return [
        Phase(*(sum(getattr(one, term) for one in phases) for term in ("flop", "dram", "l2")))
        for phases in together
    ]


def block_strips(tokens, shape, density):
    """As of entries, whose index has no equal here."""
    product, gather = entry_strips(tokens, shape, density)
    return [product, Phase(dram=gather.dram / 2, l2=density * gather.l2, launches=gather.launches)]


def entry_strips(tokens, shape, density):
    """Strips of the dense product by the library, fp32, each gathered out of the cache before the
    next.
    """
    rows, columns = shape
    nnz, strips = density * rows * columns, -(-4 * rows * columns // WORKSPACE)
    product = Phase(
        2 * tokens * rows * columns, 2 * tokens * (rows + strips * columns), launches=strips
    )
    return [product, Phase(dram=8 * nnz, l2=8 * rows * columns, launches=strips)]


def dense_and_gather(kind, tokens, shape, density):
    """What any user can write: the dense gradient in fp32, then its selected entries."""
    nnz = density * shape[0] * shape[1]
    return [
        *dense_wgrad(tokens, shape),
        Phase(dram=nnz * (4 + index_bytes(kind) + touched(kind, density, 4))),
    ]


METHODS = {
    "rows": {"gather, product": rows_wgrad},
    "columns": {"product": columns_wgrad},
    "blocks": {
        "grouped panels": blocks_wgrad,
        "one program a block": single_blocks_wgrad,
        "strips": block_strips,
    },
    "entries": {"dots": entry_dots, "strips": entry_strips},
}


def selected_wgrad(kind, tokens, shape, density, ceilings):
    """(phases, name) of the method with the lowest floor."""
    found = [(method(tokens, shape, density), name) for name, method in METHODS[kind].items()]
    return min(found, key=lambda pair: floor(pair[0], ceilings))


def name(op, kind, density):
    """How a case is called in every table."""
    return f"{op} {kind} {100 * density:g} %"


def streamed(elements, per_element):
    """An op that touches each element once.

    gated_product 6 bytes an element, its backward 10, and so on.
    """
    return [Phase(dram=elements * per_element)]


STREAMS = {  # bytes an element of the input
    "rms_norm": 4,
    "rms_norm_backward": 6,
    "gated_product": 6,
    "gated_product_backward": 10,
    "positive_bits": 2 + 1 / 8,
    "relu_bits": 4 + 1 / 8,
    "where_bits": 4 + 1 / 8,
    "batch_norm_": 4 + 1 / 8,
    "batch_norm_backward": 4,
    "max_pool": 2 + 3 / 4,  # of 2 x 2
}


def crossover(one, other, ceilings, low=1e-5, high=1.0):
    """The density at which the floors of two methods of density meet.

    None where one is below the other everywhere.
    """

    def gap(density):
        return floor(one(density), ceilings) - floor(other(density), ceilings)

    if gap(low) * gap(high) > 0:
        return None
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if gap(low) * gap(middle) > 0 else (low, middle)
    return low


# Measured on an H200: 4.3 TB/s copied, 790 TFLOP/s. The A100 (80 GB, SXM) is its datasheet (2.04
# TB/s, 312 TFLOP/s) times the share of its own that the H200 reached. Both caches are assumptions.
H200 = Ceilings(4.3e12, None, {"bfloat16": 790e12}, l2=5.5e12)
A100 = Ceilings(1.83e12, None, {"bfloat16": 249e12}, l2=3.5e12)
