"""A safetensors file with one JSON document in its metadata: what plans and deltas are saved as.

Reading checks every claim of the file, and a checksum over document and tensors, so that a damaged
file is no other plan and no other delta. Files without a checksum (of other writers) are read, too.

The format (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON
header {name: {dtype, shape, data_offsets}, "__metadata__": {str: str}}, then the data. Written here
because the runtime needs only torch and numpy; the tests read these files with the safetensors
package and the other way round.
"""

import errno
import json
import math
import os
import stat
import zlib
from collections.abc import Callable, Mapping
from io import BufferedReader
from typing import Any

import torch

from ._atomic import checked_path, naming_path, written_whole

_NAMES = {
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.uint32: "U32",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library
CHECKSUM = "sparse_ft.crc32"  # its key in the metadata
_UNKNOWN = "0" * 8  # of the same length, until all tensors were written
_MOST_DIMENSIONS, _LARGEST = 64, 2**63 - 1  # as in torch

# What may be raised by reading a file that is none of ours, or a broken one.
FAULTS = (
    AttributeError, IndexError, KeyError, MemoryError, OverflowError, RecursionError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip

Claim = tuple[str, torch.dtype, list[int]]  # name, dtype and shape of a tensor


def save(
    path: str | bytes | os.PathLike, tensors: Mapping[str, torch.Tensor], document: Any
) -> None:
    """Write `tensors` {name: tensor} and the JSON-able `document`.

    The file appears whole or not at all (see `written_whole`).

    Raises OSError, TypeError or ValueError that name `path`.
    """
    text = json.dumps(document, separators=(",", ":"))
    save_tensors(path, tensors, {"sparse_ft": text, CHECKSUM: _UNKNOWN})


def save_tensors(
    path: str | bytes | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a plain safetensors file, whole or not at all.

    The widest dtypes come first, as the safetensors library wants them: each tensor begins at a
    multiple of its item size. A metadata of `CHECKSUM` is filled in when all was written.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    header: dict[str, dict[str, Any]] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in ordered.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    checksum = Checksum(metadata)
    with written_whole(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in ordered.items():
            host = tensor.detach().cpu().contiguous()
            memory = _bytes_of(host) if host.numel() else b""
            checksum.add((name, tensor.dtype, list(tensor.shape)), memory)
            file.write(memory)
        if CHECKSUM in metadata:
            # No quote of a text is bare, so that nothing else in the header reads like this.
            key = f'"{CHECKSUM}":"'.encode()
            file.seek(8 + text.index(key) + len(key))
            file.write(checksum.text().encode())


class Checksum:
    """CRC-32 of a document and of each tensor with its name, dtype and shape, in any order."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._sum = zlib.crc32(str(metadata.get("sparse_ft")).encode())

    def add(self, claim: "Claim", memory: memoryview | bytes) -> None:
        """Another tensor: its claim, and its bytes."""
        name, dtype, shape = claim
        told = f"{name} {_NAMES[dtype]} {shape} ".encode()
        self._sum += zlib.crc32(memory, zlib.crc32(told))

    def text(self) -> str:
        """Eight digits."""
        return f"{self._sum % (1 << 32):08x}"


def holds(dtype: torch.dtype) -> bool:
    """Whether files of this format hold tensors of `dtype`."""
    return dtype in _NAMES


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor in host memory, as a buffer."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def load(path: str | bytes | os.PathLike) -> tuple[dict[str, torch.Tensor], Any]:
    """`(tensors, document)` of a file that `save` wrote.

    Raises ValueError that names the file and what is wrong with it.

    What the file claims is checked against its size before it is read: memory is taken for the
    header, 100 MB of text at most, and for the bytes of the tensors. Raises OSError that names
    `path` where it cannot be read.
    """
    return _load(path, lambda metadata: json.loads(metadata["sparse_ft"]))


def load_tensors(path: str | bytes | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """`(tensors, metadata)` of any safetensors file, checked as in `load`."""
    return _load(path, dict)


def _load(path: str | bytes | os.PathLike, of_metadata: Callable[[dict], Any]) -> tuple[dict, Any]:
    path = checked_path(path)
    with naming_path(path), open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "expected a file, this is a device or a pipe")
        try:
            return _read(file, status.st_size, of_metadata)
        except FAULTS as error:
            raise ValueError(f"path: {path!r} is not a whole sparse_ft file: {error}") from None


def _without_waiting(path: str, flags: int) -> int:
    """An opener for which a pipe that nobody writes to is no reason to wait."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read(
    file: BufferedReader, size: int, of_metadata: Callable[[dict], Any]
) -> tuple[dict[str, torch.Tensor], Any]:
    if size < 8:
        raise ValueError(f"{size} bytes are too few for a header")
    length = int.from_bytes(file.read(8), "little")
    if length > min(_HEADER_LIMIT, size - 8):
        raise ValueError(f"the header claims {length} bytes, the file has {size - 8} left")
    header = json.loads(file.read(length).decode("utf-8"))
    metadata = header.pop("__metadata__", {})
    document = of_metadata(metadata)
    metadata = metadata if isinstance(metadata, dict) else {}
    tensors = {}
    checksum = Checksum(metadata)
    for claim in _claims(header, size - 8 - length):
        name, dtype, shape = claim
        tensors[name] = _read_tensor(file, dtype, shape)
        checksum.add(claim, _bytes_of(tensors[name]) if math.prod(shape) else b"")
    if metadata.get(CHECKSUM, checksum.text()) != checksum.text():
        raise ValueError(
            "its bytes are not those that were written (another checksum); copy it anew"
        )
    return tensors, document


def _claims(header: dict[str, dict[str, Any]], left: int) -> list[Claim]:
    """[(name, dtype, shape)] in the order of the file, once they are what its `left` bytes hold."""
    claims, end = [], 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (start, stop) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if type(shape) is not list or len(shape) > _MOST_DIMENSIONS:
            raise ValueError(
                f"tensor {name!r} has no shape, a list of at most {_MOST_DIMENSIONS} numbers"
            )
        if not all(type(n) is int and 0 <= n <= _LARGEST for n in shape):
            raise ValueError(
                f"tensor {name!r} has a shape that is not made of numbers in [0, 2^63)"
            )
        if type(start) is not int or type(stop) is not int or not start == end <= stop <= left:
            raise ValueError(
                f"tensor {name!r} does not begin at byte {end}, or end in the {left} that there are"
            )
        if math.prod(shape) * dtype.itemsize != stop - start:
            raise ValueError(
                f"tensor {name!r} claims bytes {start} to {stop} of {left} for shape {shape}"
            )
        claims.append((name, dtype, shape))
        end = stop
    if end != left:
        raise ValueError(f"{left - end} bytes after the last tensor")
    return claims


def _read_tensor(file: BufferedReader, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    memory = _bytes_of(tensor) if tensor.numel() else memoryview(b"")
    if tensor.numel() and file.readinto(memory) != len(memory):
        raise ValueError(f"the file ended {len(memory)} bytes early or changed while it was read")
    return tensor
