"""A safetensors file with one JSON document in its metadata: what plans are saved as. Reading checks every claim of the file.

The format (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON header
{name: {dtype, shape, data_offsets}, "__metadata__": {str: str}}, then the data. Written here because the runtime needs only
torch and numpy; the tests read these files with the safetensors package and the other way round.
"""

import json
import math
import os
import tempfile

import numpy
import torch

_NAMES = {
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
    torch.uint8: "U8",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library


def save(path, tensors, document):
    """Write `tensors` {name: tensor} and the JSON-able `document`; the file appears whole or not at all."""
    header, chunks, offset = {"__metadata__": {"sparse_ft": json.dumps(document)}}, [], 0
    for name, tensor in tensors.items():
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    folder = os.path.dirname(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.writelines(chunks)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path):
    """`(tensors, document)` of a file that `save` wrote. Raises ValueError that names the file and what is wrong with it."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        return _parse(data)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"path: {os.fspath(path)!r} is not a whole sparse_ft file: {error}") from None


def _parse(data):
    if len(data) < 8:
        raise ValueError(f"{len(data)} bytes are too few for a header")
    length = int.from_bytes(data[:8], "little")
    if length > min(_HEADER_LIMIT, len(data) - 8):
        raise ValueError(f"the header claims {length} bytes, the file has {len(data) - 8} left")
    header = json.loads(data[8 : 8 + length].decode("utf-8"))
    body = memoryview(data)[8 + length :]
    document = json.loads(header.pop("__metadata__")["sparse_ft"])
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (start, stop) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        size = math.prod(shape) * dtype.itemsize
        if not all(type(n) is int and n >= 0 for n in shape) or start != end or stop - start != size or stop > len(body):
            raise ValueError(f"tensor {name!r} claims bytes {start} to {stop} of {len(body)} for shape {shape}")
        raw = torch.from_numpy(numpy.frombuffer(body[start:stop], dtype=numpy.uint8).copy())
        flat = raw.view(dtype) if size else torch.empty(0, dtype=dtype)
        tensors[name], end = flat.reshape(shape), stop
    if end != len(body):
        raise ValueError(f"{len(body) - end} bytes after the last tensor")
    return tensors, document


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
