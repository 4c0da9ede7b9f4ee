"""What each promise was expected to measure, written down before the first measurement on a quiet machine.

For a 2-core machine with AVX2 and no bf16 instructions (Zen 3), one thread, reasoned from published figures of AVX-512
sketches: half the vector width doubles the arithmetic of the kernels and of the dense product alike, so ratios against dense
hold; ratios against memory-bound baselines shrink where a kernel turns arithmetic-bound. Trials of gather_selected,
masked_adamw and linear on a busy machine had been seen by then; nothing of the others.
"""

_ADAMW = "entries {} %: times as fast as {}"
_WGRAD = "entries {} % {}: times as fast as {}"
_STEP = "step of a Llama-1B layer, {}: {}"

EXPECTED = {
    # the scatter misses the cache once an entry in both; what is saved is one pass over values and the cast
    _ADAMW.format("0.1", "compact fused + index_copy_"): 1.3,
    _ADAMW.format("1", "compact fused + index_copy_"): 1.5,
    _ADAMW.format("5", "compact fused + index_copy_"): 1.3,
    _ADAMW.format("10", "compact fused + index_copy_"): 1.6,
    # 28 bytes an entry of everything against 34 and a miss for every hundredth
    _ADAMW.format("1", "dense fused fp32"): 15,
    _ADAMW.format("1", "dense fused bf16"): 12,
    _ADAMW.format("1", "gradient × mask, dense fused fp32"): 21,
    _ADAMW.format("1", "gradient × mask, dense fused bf16"): 18,
    "rows 10 %: share of same-run triad bandwidth, useful bytes": 1.0,
    # a line of 32 bf16 columns holds three selected ones: 128 bytes move where 2 × 3 are useful
    "columns 10 %: share of same-run triad bandwidth, useful bytes": 0.45,
    # counted in whole lines; written after trials of single lines: sorted but scattered ones come at 7 ns each, cold
    "entries 1 %: share of same-run triad bandwidth, whole cache lines": 0.7,
    "columns 10 %: share of same-run triad bandwidth, whole cache lines": 1.3,
    "blocks 10 %: share of same-run triad bandwidth, useful bytes": 0.85,
    "everything selected (as rows): time over torch fused on an fp32 master plus the bf16 copy": 0.9,
    "same bits with 1 and 2 threads (1: yes)": 1,
    _WGRAD.format("0.1", "fp32", "dense fp32"): 30,
    _WGRAD.format("1", "fp32", "dense fp32"): 12,
    _WGRAD.format("5", "fp32", "dense fp32"): 4.5,
    _WGRAD.format("10", "fp32", "dense fp32"): 2.8,
    # torch's bf16 product is a slow loop here, ours converts and runs at fp32 speed
    _WGRAD.format("1", "bf16", "dense bf16"): 60,
    _WGRAD.format("5", "bf16", "dense bf16"): 25,
    _WGRAD.format("10", "bf16", "dense bf16"): 15,
    _WGRAD.format("1", "fp32", "sampled_addmm"): 1.8,
    _WGRAD.format("5", "fp32", "sampled_addmm"): 2.5,
    _WGRAD.format("10", "fp32", "sampled_addmm"): 3,
    "blocks 5 % fp32: (64 × 64) times as fast as dense fp32": 15,
    "blocks 10 % fp32: (64 × 64) times as fast as dense fp32": 8,
    "blocks 25 % fp32: (64 × 64) times as fast as dense fp32": 3.5,
    "rows 1 % fp32: share of its roofline": 0.5,
    "rows 5 % fp32: share of its roofline": 0.75,
    "rows 10 % fp32: share of its roofline": 0.85,
    "rows 25 % fp32: share of its roofline": 0.9,
    "columns 1 % fp32: share of its roofline": 0.5,
    "columns 5 % fp32: share of its roofline": 0.75,
    "columns 10 % fp32: share of its roofline": 0.85,
    "columns 25 % fp32: share of its roofline": 0.9,
    "at any density: time over dense fp32 + gather, at worst": 1.1,
    "rows 100 %: share of same-run copy bandwidth, useful bytes": 0.9,
    "blocks 100 %: share of same-run copy bandwidth, useful bytes": 0.8,
    # one per cent of the columns is copied: 20 KB beside a product of a gigaflop
    "forward, 1024² × 512 tokens: time of SelectiveLinear (1 % columns) over nn.Linear": 1.01,
    "host time that SelectiveLinear adds to a forward, µs (columns)": 14,
    "host time that SelectiveLinear adds to a forward, µs (entries)": 9,  # written after it was measured
    # LoRA adds two thin products a layer and their dgrad, SHiRA a dense copy of each weight; a third of full is wgrad
    _STEP.format("fp32", "times as fast as LoRA r=8"): 1.05,
    _STEP.format("fp32", "times as fast as SHiRA r=8"): 1.4,
    _STEP.format("fp32", "times as fast as full"): 1.45,
    _STEP.format("fp32", "time over the all-frozen step plus the selected GEMM"): 1.04,
    # with so few tokens and so slow a dgrad the methods differ by next to nothing
    _STEP.format("bf16", "times as fast as LoRA r=8"): 1.0,
    _STEP.format("bf16", "times as fast as SHiRA r=8"): 1.2,
    _STEP.format("bf16", "times as fast as full"): 1.1,
    _STEP.format("bf16", "time over the all-frozen step plus the selected GEMM"): 1.02,
    # one pass over the norm instead of six, one over the gated product instead of three each way
    "Llama layer, columns: time of a lean step over one without": 0.93,
    "Llama layer, rows: time of a lean step over one without": 0.95,
    "Llama layer, entries: time of a lean step over one without": 0.95,
    # LayerNorm and GELU are torch's own; entries make their input again
    "MiniLM, columns: time of a lean step over one without": 1.0,
    "MiniLM, entries: time of a lean step over one without": 1.02,
    "ResNet, frozen: time of a lean step over one without": 1.0,
    # kept by torch 15.3 h and 20 h, by lean modules 10.6 h
    "Llama layer, columns: bytes held without lean modules over those with": 1.45,
    "Llama layer, rows: bytes held without lean modules over those with": 1.9,
    "Llama layer, entries: bytes held without lean modules over those with": 1.9,
    "MiniLM, columns: bytes held without lean modules over those with": 1.2,
    "MiniLM, entries: bytes held without lean modules over those with": 1.5,
    "ResNet, frozen: bytes held without lean modules over those with": 50,
    "resident peak of a step over saved + values + gradients + state, activation gradients as in the all-frozen step": 1.02,
    "allocator peak of a step over saved + values + gradients + state, activation gradients as in the all-frozen step": 1.0,
}
