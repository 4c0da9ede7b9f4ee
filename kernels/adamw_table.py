"""The tables by which masked_adamw_'s kernels know their tensors: addresses, sizes and layouts."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from .layout import cdiv, check_layout, check_tensors, check_values, matrix_strides

# Fields of a table row, int64 each: addresses, sizes, then the layout (zeros for a plain
# parameter).
VALUES, GRAD, EXP_AVG, EXP_AVG_SQ, WEIGHT, INDEX = (tl.constexpr(i) for i in range(6))
COUNT, FIRST_CHUNK, TENSOR = (tl.constexpr(i) for i in range(6, 9))
ROWS, COLUMNS, STRIDE_M, STRIDE_N, NUM, M, N, BLOCK_H, BLOCK_W = (
    tl.constexpr(i) for i in range(9, 18)
)
# What differs from entry to entry, zeros where nothing does. AGES: the first row of coefficients of
# its generations; FACTOR_RUN: so many adjoining entries have one factor.
GENERATION, AGES, FACTOR, FACTOR_RUN, ORIGIN = (tl.constexpr(i) for i in range(18, 23))
FIELDS = tl.constexpr(23)
COEFFICIENTS = tl.constexpr(8)
# 8 entries a thread in 4 warps: two 128-bit loads in flight for each of the four float32 streams.
CHUNK = 1024


# Of the last steps: gradients mostly come back to the same addresses.
REMEMBERED = 64
# {what was uploaded: (where it lies on the host, the same on the device)}
_uploaded: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}
# What recorded graphs copy from the host at each replay.
_recorded: list[torch.Tensor] = []


def on_gpu(key: tuple, make: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor:
    """Small host data on a device, pinned so that the copy joins the stream without waiting for it.

    key: the same data have the same, and are not copied again. make: the data, on the host. The
    result is not to be written.
    """
    if device.type != "cuda":
        return make().to(device)
    if torch.cuda.is_current_stream_capturing():
        pinned = make().pin_memory()
        _recorded.append(pinned)
        return pinned.to(device, non_blocking=True)
    key = *key, device, torch.cuda.current_stream(device).cuda_stream
    found = _uploaded.pop(key, None)
    if found is None:
        pinned = make().pin_memory()
        found = pinned, pinned.to(device, non_blocking=True)
    _uploaded[key] = found  # as the newest
    while len(_uploaded) > REMEMBERED:
        del _uploaded[next(iter(_uploaded))]
    return found[1]


def to_device(numbers: list, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers, or rows of them, on a device."""
    is_table = bool(numbers) and isinstance(numbers[0], list)
    key = tuple(map(tuple, numbers)) if is_table else tuple(numbers)
    return on_gpu((key, dtype), lambda: torch.tensor(numbers, dtype=dtype, device="cpu"), device)


def _dense(tensor):
    """Whether its elements fill memory without gaps or overlap, in any order
    (channels_last, say).
    """
    order = sorted(
        range(tensor.dim()), key=lambda d: (tensor.stride(d), tensor.size(d)), reverse=True
    )
    return tensor.permute(order).is_contiguous()


def _check_state(i, values, grad, exp_avg, exp_avg_sq, step):
    if not _dense(values):
        raise ValueError(
            f"values[{i}] must be dense, got {list(values.shape)} with strides {values.stride()}"
        )
    state = {
        f"values[{i}]": values,
        f"grads[{i}]": grad,
        f"exp_avgs[{i}]": exp_avg,
        f"exp_avg_sqs[{i}]": exp_avg_sq,
    }
    for name, tensor in state.items():
        if tensor.dtype != values.dtype:
            raise TypeError(
                f"{name} must have the dtype of values[{i}], {values.dtype}, got {tensor.dtype}"
            )
        if tensor.shape != values.shape or (
            tensor is not grad and tensor.stride() != values.stride()
        ):
            raise ValueError(
                f"{name} must have the shape and strides of values[{i}], {list(values.shape)} and"
                f" {values.stride()}, got {list(tensor.shape)} and {tensor.stride()}"
            )
    if step.dtype != torch.float32 or step.numel() != 1:
        raise TypeError(f"steps[{i}] must be one float32, got {list(step.shape)} of {step.dtype}")
    check_tensors(**state, **{f"steps[{i}]": step})


def _layout_fields(i, values, weight, kind, index, block_h, block_w):
    """(ROWS to BLOCK_W of the table row, whether flat positions address the weight)."""
    *strides, flat = matrix_strides(f"weights[{i}]", weight)
    walk, shape = check_layout(kind, index, block_h, block_w, *weight.shape)
    check_values(f"values[{i}]", values, shape)
    if not values.is_contiguous():
        raise ValueError(
            f"values[{i}] must be contiguous to be written through, got strides {values.stride()}"
        )
    check_tensors(**{f"values[{i}]": values, f"weights[{i}]": weight, "index": index})
    return [*weight.shape, *strides, *walk, block_h, block_w], flat


class Variation:
    """What differs from entry to entry: lists as the op has them, or None."""

    def __init__(self, generations, births, factors, origins):
        self.generations, self.births = generations, births
        self.factors, self.origins = factors, origins
        self.ages = []  # (tensor, address of its birth) of each generation

    def of(self, i, values, first_age):
        """((aged, scaled, dtype of the origin), GENERATION to ORIGIN of the table row)."""
        generation, births = _item(self.generations, i), _item(self.births, i)
        factor, origin = _item(self.factors, i), _item(self.origins, i)
        fields = [0] * 5
        if generation is not None:
            fields[:2] = generation.data_ptr(), first_age + len(self.ages)
            _check_like(f"generations[{i}]", generation, values)
            check_tensors(**{f"values[{i}]": values, f"births[{i}]": births})
            size = births.element_size()
            self.ages += [(i, births.data_ptr() + g * size) for g in range(births.numel())]
        if factor is not None:
            by_first = factor.dim() == 1 and values.dim() > 1
            if not by_first:
                _check_like(f"factors[{i}]", factor, values)
            elif not (factor.is_contiguous() and values.is_contiguous()):
                raise ValueError(f"factors[{i}] of a first dimension wants contiguous values[{i}]")
            run = values.numel() // max(factor.numel(), 1)
            fields[2:4] = factor.data_ptr(), run
        if origin is not None:
            _check_like(f"origins[{i}]", origin, values)
            fields[4] = origin.data_ptr()
        dtype = None if origin is None else origin.dtype
        return (generation is not None, factor is not None, dtype), fields


def _item(tensors, i):
    """Number i of a list in which a tensor without elements stands for none."""
    if tensors is None or not tensors[i].numel():
        return None
    return tensors[i]


def _check_like(name, tensor, values):
    if tensor.device != values.device:
        raise ValueError(f"{name} is on {tensor.device} but its values are on {values.device}")
    if tensor.shape != values.shape or tensor.stride() != values.stride():
        raise ValueError(
            f"{name} must have the shape and strides of its values, {list(values.shape)} and"
            f" {values.stride()}, got {list(tensor.shape)} and {tensor.stride()}"
        )


def group(states, steps, weights, kinds, indices, blocks, variation):
    """{what a launch specialises on: table rows}.

    A tensor without elements has a step, but no row.
    """
    groups = {}
    for i, state in enumerate(states):
        _check_state(i, *state, steps[i])
        addresses, count = [x.data_ptr() for x in state], state[0].numel()
        key, weight_and_index, fields = (torch.float32, torch.int32, "all", True), [0, 0], [0] * 9
        if i < len(weights):
            weight, index, kind = weights[i], indices[i], kinds[i]
            fields, flat = _layout_fields(
                i, state[0], weight, kind, index, *blocks[2 * i : 2 * i + 2]
            )
            key, weight_and_index = (
                (weight.dtype, index.dtype, kind, flat),
                [weight.data_ptr(), index.data_ptr()],
            )
        if count:
            aligned = count % 8 == 0 and all(address % 16 == 0 for address in addresses)
            varied, varied_fields = variation.of(i, state[0], len(steps))
            rows = groups.setdefault((state[0].dtype, *key, *varied, aligned), [])
            first = (
                rows[-1][FIRST_CHUNK.value] + triton.cdiv(rows[-1][COUNT.value], CHUNK)
                if rows
                else 0
            )
            rows.append([*addresses, *weight_and_index, count, first, i, *fields, *varied_fields])
    return groups


def upload(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The chunk and pointer tables of one group, on the device."""
    counts = tuple(cdiv(row[COUNT.value], CHUNK) for row in rows)

    def chunks() -> torch.Tensor:
        numbers = torch.arange(len(rows), dtype=torch.int32, device="cpu")
        return torch.repeat_interleave(numbers, torch.tensor(counts, device="cpu"))

    return on_gpu(("chunks", counts), chunks, device), to_device(rows, torch.int64, device)
