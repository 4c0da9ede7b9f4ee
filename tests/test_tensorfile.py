"""The file format: what it keeps, that the safetensors package agrees, and that damage is a
ValueError.
"""

import json
import os
import random
import stat

import pytest
import safetensors
import safetensors.torch
import torch

from sparse_ft import _tensorfile

DTYPES = (
    torch.int32,
    torch.int64,
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.bool,
    torch.uint8,
)
DOCUMENT = {"format": "test", "list": [1, 2.5, None, "ü"], "nested": {"a": True}}


def tensors():
    made = {f"{dtype}": torch.arange(6).view(2, 3).to(dtype) for dtype in DTYPES}
    return {
        **made,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "permuted": torch.arange(6.0).view(2, 3).T,
        "ünï.code": torch.tensor([1], dtype=torch.uint8),
    }


def same(a, b):
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def write(path, header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)
    return path


META = {"__metadata__": {"sparse_ft": "{}"}}


def test_round_trip(tmp_path):
    for path in (tmp_path / "a", str(tmp_path / "b")):
        _tensorfile.save(path, tensors(), DOCUMENT)
        loaded, document = _tensorfile.load(path)
        assert document == DOCUMENT and {k: loaded[k] for k in tensors()}.keys() == loaded.keys()
        assert same({k: loaded[k] for k in tensors()}, tensors())


def test_loaded_tensors_are_writable_and_own_their_memory(tmp_path):
    _tensorfile.save(tmp_path / "a", tensors(), {})
    loaded, _ = _tensorfile.load(tmp_path / "a")
    for tensor in loaded.values():
        tensor.zero_()
    assert same({k: _tensorfile.load(tmp_path / "a")[0][k] for k in tensors()}, tensors())


def test_no_tensors_and_no_document(tmp_path):
    _tensorfile.save(tmp_path / "a", {}, None)
    assert _tensorfile.load(tmp_path / "a") == ({}, None)


def test_safetensors_reads_what_we_write(tmp_path):
    _tensorfile.save(tmp_path / "a", tensors(), DOCUMENT)
    assert same({k: safetensors.torch.load_file(tmp_path / "a")[k] for k in tensors()}, tensors())
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert json.loads(file.metadata()["sparse_ft"]) == DOCUMENT


def test_we_read_what_safetensors_writes(tmp_path):
    contiguous = {name: tensor.contiguous() for name, tensor in tensors().items()}
    safetensors.torch.save_file(
        contiguous, tmp_path / "a", {"sparse_ft": json.dumps(DOCUMENT), "other": "x"}
    )
    loaded, document = _tensorfile.load(tmp_path / "a")
    assert document == DOCUMENT and same({k: loaded[k] for k in contiguous}, contiguous)


def test_data_is_aligned(tmp_path):
    for name in ("x" * n for n in range(1, 9)):
        _tensorfile.save(tmp_path / "a", {name: torch.ones(2)}, {})
        assert int.from_bytes((tmp_path / "a").read_bytes()[:8], "little") % 8 == 0


BROKEN = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "a header of 2**63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header that is not JSON": (2).to_bytes(8, "little") + b"{[",
    "a header that is not UTF-8": (2).to_bytes(8, "little") + b"\xff\xfe",
    "a header that nests too deeply": (100000).to_bytes(8, "little") + b"[" * 100000,
    "a zip file": b"PK\x03\x04" + bytes(100),
}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "a list": [],
    "a number": 3,
    "null": None,
    "no metadata": {"x": ENTRY},
    "metadata of a list": {"__metadata__": []},
    "metadata of no document": {"__metadata__": {"format": "pt"}},
    "a document that is not text": {"__metadata__": {"sparse_ft": {}}},
    "a document that is not JSON": {"__metadata__": {"sparse_ft": "{"}},
    **{
        f"{key} {value!r}": {**META, "x": {**ENTRY, key: value}}
        for key, value in [
            ("dtype", "F8_E4M3"),
            ("dtype", None),
            ("dtype", []),
            ("dtype", "I64"),
            ("shape", [3]),
            ("shape", [-2]),
            ("shape", [2.0]),
            ("shape", None),
            ("shape", 2),
            ("shape", "2"),
            ("shape", {}),
            ("shape", ["2"]),
            ("shape", [True, 2.0]),
            ("shape", [[2]]),
            ("shape", [-1, -2]),
            ("shape", [2**62, 2**62]),
            ("shape", [0, 2**62, 2**62]),
            ("shape", [0, 2**70]),
            ("shape", [10**400]),
            ("data_offsets", [0, 16]),
            ("data_offsets", [4, 8]),
            ("data_offsets", [8, 0]),
            ("data_offsets", [-8, 0]),
            ("data_offsets", [0]),
            ("data_offsets", None),
            ("data_offsets", [0, 8, 8]),
            ("data_offsets", ["0", "8"]),
            ("data_offsets", [0.0, 8.0]),
            ("data_offsets", [0, 2**70]),
        ]
    },
    "an entry that is a list": {**META, "x": [1]},
    "an entry without shape": {**META, "x": {"dtype": "F32", "data_offsets": [0, 8]}},
    "overlapping": {**META, "x": ENTRY, "y": ENTRY},
    "a hole": {**META, "x": {**ENTRY, "data_offsets": [0, 4], "shape": [1]}},
    "empty of a shape past int64": {
        **META,
        "x": ENTRY,
        "y": {**ENTRY, "shape": [0, 2**70], "data_offsets": [8, 8]},
    },
    "empty of a shape of a boolean": {
        **META,
        "x": ENTRY,
        "y": {**ENTRY, "shape": [False], "data_offsets": [8, 8]},
    },
    "mixed offsets": {**META, "x": ENTRY, "y": {**ENTRY, "data_offsets": ["0", "8"]}},
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_files(tmp_path, content):
    (tmp_path / "bad.file").write_bytes(content)
    with pytest.raises(ValueError, match="path: .*bad.file.* is not a whole sparse_ft file"):
        _tensorfile.load(tmp_path / "bad.file")


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_broken_headers(tmp_path, header):
    with pytest.raises(ValueError, match="path: .*bad.file.* is not a whole sparse_ft file"):
        _tensorfile.load(write(tmp_path / "bad.file", header, bytes(8)))


def test_sound_header_is_read_by_the_same_helper(tmp_path):
    loaded, document = _tensorfile.load(write(tmp_path / "good", {**META, "x": ENTRY}, bytes(8)))
    assert document == {} and torch.equal(loaded["x"], torch.zeros(2))


def test_bytes_after_the_last_tensor_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 bytes after the last tensor"):
        _tensorfile.load(write(tmp_path / "long", {**META, "x": ENTRY}, bytes(9)))


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        _tensorfile.load(tmp_path / "nowhere")


def small_file(tmp_path):
    _tensorfile.save(
        tmp_path / "whole",
        {"a": torch.tensor([1, 5], dtype=torch.int32), "b": torch.tensor([1.5])},
        {"k": [1]},
    )
    return (tmp_path / "whole").read_bytes()


def test_every_truncation_is_refused(tmp_path):
    whole = small_file(tmp_path)
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut"):
            _tensorfile.load(tmp_path / "cut")


def test_flipped_bytes_load_or_are_refused(tmp_path):
    whole, generator, refused = small_file(tmp_path), random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(generator.choice((1, 1, 1, 4))):
            damaged[generator.randrange(len(whole))] = generator.randrange(256)
        (tmp_path / "flipped").write_bytes(damaged)
        try:
            _tensorfile.load(tmp_path / "flipped")
        except ValueError as error:
            assert "flipped" in str(error)
            refused += 1
    assert refused > 100


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    _tensorfile.save(tmp_path / "a", {"x": torch.ones(2)}, {"old": 1})
    old = (tmp_path / "a").read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    for name in ("replace", "fchmod", "fsync", "fdopen"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(KeyboardInterrupt):
                _tensorfile.save(tmp_path / "a", {"x": torch.zeros(2)}, {"new": 1})
        assert (tmp_path / "a").read_bytes() == old and os.listdir(tmp_path) == ["a"], name
    with pytest.raises(TypeError):
        _tensorfile.save(tmp_path / "a", {}, {"unwritable": object()})
    assert (tmp_path / "a").read_bytes() == old and os.listdir(tmp_path) == ["a"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        _tensorfile.save(tmp_path / "a", {}, {})
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o640


def test_no_damage_of_a_single_bit_goes_unnoticed(tmp_path):
    """It is refused, or what it says is the same."""
    _tensorfile.save(tmp_path / "whole", tensors(), DOCUMENT)
    content = (tmp_path / "whole").read_bytes()
    expected, document = _tensorfile.load(tmp_path / "whole")
    noticed = 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            found, told = _tensorfile.load(tmp_path / "damaged")
        except ValueError:
            noticed += 1
        else:
            assert told == document and same(found, expected), at
    assert noticed > 0.9 * len(content)


def test_a_checksum_does_not_depend_on_the_order_of_who_writes_it_again(tmp_path):
    _tensorfile.save(tmp_path / "ours", tensors(), DOCUMENT)
    with safetensors.safe_open(tmp_path / "ours", "pt") as file:
        metadata = file.metadata()
    found, _ = _tensorfile.load(tmp_path / "ours")
    safetensors.torch.save_file(dict(reversed(found.items())), tmp_path / "theirs", metadata)
    again, document = _tensorfile.load(tmp_path / "theirs")
    assert document == DOCUMENT and same({name: again[name] for name in found}, found)
    metadata["sparse_ft"] = metadata["sparse_ft"].replace("2.5", "2.6")
    safetensors.torch.save_file(found, tmp_path / "changed", metadata)
    with pytest.raises(ValueError, match="changed' is not a whole .* its bytes are not those"):
        _tensorfile.load(tmp_path / "changed")
