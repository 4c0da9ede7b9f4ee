"""A zstd frame (RFC 8878) that stores its content as it is.

Readable by every decoder, and written without a compressor, which the runtime does not have.
"""

_MAGIC = 0xFD2FB528
_DESCRIPTOR = 0b1110_0000  # a content size of 8 bytes, in a single segment, no checksum
_LARGEST_BLOCK = 128 << 10  # bytes
_RAW = 0


def frame(content: bytes) -> bytes:
    """One frame that holds `content`."""
    parts = [
        _MAGIC.to_bytes(4, "little"),
        _DESCRIPTOR.to_bytes(1, "little"),
        len(content).to_bytes(8, "little"),
    ]
    for start in range(0, max(len(content), 1), _LARGEST_BLOCK):
        block = content[start : start + _LARGEST_BLOCK]
        is_last = start + _LARGEST_BLOCK >= len(content)
        header = is_last | _RAW << 1 | len(block) << 3
        parts += [header.to_bytes(3, "little"), block]
    return b"".join(parts)
