"""What a delta file holds: every structure and dtype, readable by safetensors, within the bytes
that were promised; what does not fit is named.
"""

import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from helpers import small_deltas
from helpers.small_deltas import PLAN, net, same_bits, trained
from torch import nn

import sparse_ft as sft
from demo.assets import encoder_folder, reviews_file
from sparse_ft import _tensorfile
from sparse_ft.deltas import Part

HELPERS = Path(small_deltas.__file__).parent

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def same(a, b):
    if list(a) != list(b) or (a.rest, a.base_name, a.recipe) != (b.rest, b.base_name, b.recipe):
        return False
    for name in a:
        mine, other = a[name], b[name]
        if (mine.shape, mine.matrix_shape, mine.rest) != (
            other.shape,
            other.matrix_shape,
            other.rest,
        ):
            return False
        if mine.selection != other.selection or mine.reader != other.reader:
            return False
        if not torch.equal(mine.values, other.values) or mine.values.dtype != other.values.dtype:
            return False
    return True


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_file_gives_back_the_delta(tmp_path, dtype):
    model = trained(dtype=dtype)
    delta = sft.save_delta(
        model, tmp_path / "a", base_name="net", recipe={"lr": 1e-2, "steps": [1, 2]}
    )
    loaded = sft.load_delta(tmp_path / "a")
    assert same(delta, loaded)
    assert loaded.recipe == {"lr": 1e-2, "steps": [1, 2]} and loaded.base_name == "net"
    assert {name: what for name, what in loaded.plan.items() if name in PLAN} == dict(PLAN)
    sft.save_delta(loaded, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_makes_the_fine_tuned_model_in_another_process_bit_for_bit(tmp_path, dtype):
    model = trained(dtype=dtype)
    sft.save_delta(model, tmp_path / "delta")
    base = net(dtype)
    sft.apply(base, sft.load_delta(tmp_path / "delta"))
    assert same_bits(base, small_deltas.reverted(model))


def test_the_safetensors_package_reads_it(tmp_path):
    sft.save_delta(trained(), tmp_path / "delta")
    tensors = safetensors.torch.load_file(tmp_path / "delta")
    assert torch.equal(tensors["layers.1.weight.index"], torch.tensor([0, 11], dtype=torch.int32))
    assert tensors["layers.3.weight.gaps"].tolist() == [0, 0, 48, 92]
    assert tensors["layers.2.weight.values"].shape == (2, 5, 7)
    assert tensors["head.weight.values"].shape == (5, 12)
    with safetensors.safe_open(tmp_path / "delta", "pt") as file:
        document = json.loads(file.metadata()["sparse_ft"])
    assert document["format"] == "sparse_ft.delta" and document["version"] == 1
    assert document["library"] == sft.__version__
    assert document["parts"]["conv.weight"]["matrix_shape"] == [12, 36]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_odd_counts_of_odd_widths_are_aligned_for_safetensors(tmp_path, dtype):
    plan = {f"layers.{i}.weight": sft.Entries(range(i + 1)) for i in range(3)}
    sft.save_delta(trained(plan, dtype), tmp_path / "delta")
    tensors = safetensors.torch.load_file(tmp_path / "delta")
    assert all(len(tensors[f"layers.{i}.weight.values"]) == i + 1 for i in range(3))


def test_a_folder_gets_a_card_once(tmp_path):
    sft.save_delta(trained(), tmp_path, base_name="someone/base")
    assert sorted(os.listdir(tmp_path)) == ["README.md", "delta.safetensors"]
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and "base_model: someone/base" in card and "sft.apply" in card
    assert same(sft.load_delta(tmp_path), sft.load_delta(tmp_path / "delta.safetensors"))
    (tmp_path / "README.md").write_text("mine")
    sft.save_delta(trained(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_without_huggingface_hub_there_is_no_card(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sft.save_delta(trained(), tmp_path)
    assert os.listdir(tmp_path) == ["delta.safetensors"]


def test_the_readme_of_hugging_face_models_names_the_base(tmp_path):
    model = trained()
    model.config = type("Config", (), {"name_or_path": "someone/model"})()
    assert sft.save_delta(model, tmp_path / "delta").base_name == "someone/model"


def heavy_tailed(rows, columns, generator):
    """Scores of entries that cluster in lines, as gradients of real layers do."""
    by_row = torch.randn(rows, 1, generator=generator).mul(1.2).exp()
    by_column = torch.randn(1, columns, generator=generator).mul(1.2).exp()
    return by_row * by_column * torch.randn(rows, columns, generator=generator).abs()


BYTES = [(0.001, 4.1), (0.01, 3.3), (0.05, 3.1)]  # of values and positions, by density


def payload(delta, path):
    """The bytes of values and positions in a file, an entry."""
    tensors, _ = _tensorfile.load_tensors(path)
    return (
        sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / delta.entries
    )


@pytest.mark.parametrize("density, most", BYTES)
def test_bytes_an_entry(tmp_path, density, most):
    """bf16, entries chosen by scores with the statistics of a sentence encoder's gradients: the
    bytes of values and positions; the header adds up to 400 a tensor.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(384, 384)] * 4 + [(1536, 384), (384, 1536)]
    model = nn.Sequential(*(nn.Linear(n, m, bias=False, dtype=torch.bfloat16) for m, n in shapes))
    plan = {}
    for number, (rows, columns) in enumerate(shapes):
        scores = heavy_tailed(rows, columns, generator)
        best = scores.view(-1).topk(int(density * rows * columns)).indices
        plan[f"{number}.weight"] = sft.Entries(best.sort().values)
    sft.convert(model, plan)
    delta = sft.save_delta(model, tmp_path / "delta")
    held = payload(delta, tmp_path / "delta")
    assert held <= most
    size = (tmp_path / "delta").stat().st_size
    assert size - held * delta.entries <= 400 * len(shapes) + 400


def test_origin_is_kept_where_it_is_known(tmp_path):
    delta = sft.diff(net(), small_deltas.reverted(trained()))
    assert delta.has_origin
    sft.save_delta(delta, tmp_path / "without")
    sft.save_delta(delta, tmp_path / "with", origin=True)
    assert not sft.load_delta(tmp_path / "without").has_origin
    loaded = sft.load_delta(tmp_path / "with")
    assert loaded.has_origin
    assert all(torch.equal(loaded[name].origin, delta[name].origin) for name in delta)


def test_a_converted_model_knows_its_base_where_it_was_kept(tmp_path):
    model = trained(origin=True)
    sft.save_delta(model, tmp_path / "delta", origin=True)
    delta = sft.load_delta(tmp_path / "delta")
    base = sft.deltas.on_base(sft.Delta.of(trained()), net())
    assert delta.has_origin and list(delta) == list(base)
    for name, part in delta.items():
        assert part.origin is None or torch.equal(part.origin, base[name].origin)
    assert same_bits(sft.apply(net(), delta), small_deltas.reverted(model))


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(ValueError, match="model: it is not converted.*sft.diff"):
        sft.save_delta(net(), tmp_path / "delta")
    with pytest.raises(ValueError, match="origin: True, and nothing tells.*sft.diff"):
        sft.save_delta(trained(), tmp_path / "delta", origin=True)
    odd = Part(None, torch.zeros(2, dtype=torch.complex64), (2,), (1, 2))
    with pytest.raises(TypeError, match="x: a delta file holds no tensors of torch.complex64"):
        sft.save_delta(sft.Delta({"x": odd}), tmp_path / "delta")
    with pytest.raises(TypeError, match="recipe: .*JSON"):
        sft.save_delta(trained(), tmp_path / "delta", recipe=object())
    assert not os.listdir(tmp_path)


def test_other_files_are_named(tmp_path):
    PLAN.save(tmp_path / "plan")
    with pytest.raises(ValueError, match="path: '.*plan' is not a delta of sparse_ft"):
        sft.load_delta(tmp_path / "plan")
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match="path: '.*other'"):
        sft.load_delta(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="path: .*none"):
        sft.load_delta(tmp_path / "none")
    _tensorfile.save(tmp_path / "new", {}, {"format": "sparse_ft.delta", "version": 2})
    with pytest.raises(ValueError, match="path: '.*new' has version 2 of the format.*update"):
        sft.load_delta(tmp_path / "new")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_loading_takes_memory_for_what_the_file_holds(tmp_path):
    """Four million entries: values, positions and their gaps, and 64 MiB at most beside."""
    count, shape = 4_000_000, (4000, 10_000)
    index = torch.arange(0, 10 * count, 10, dtype=torch.int32)
    selection = sft.Entries(index).on(shape)
    part = Part(selection, torch.zeros(count, dtype=torch.bfloat16), shape, shape)
    sft.save_delta(sft.Delta({"weight": part}), tmp_path / "delta")
    code = """
import sys, sparse_ft as sft
sys.path.append(sys.argv[2])
from resident import most_resident
before = most_resident()
delta = sft.load_delta(sys.argv[1])
print(delta.entries, most_resident() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "delta", HELPERS],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    entries, grown = map(int, run.stdout.split())
    assert entries == count
    assert grown < count * (2 + 4 + 1) + (64 << 20)


@pytest.mark.skipif(
    not (encoder_folder().is_dir() and reviews_file().is_file()),
    reason="the demo's encoder or its reviews are not installed; make demo fetches them",
)
@pytest.mark.parametrize("density, most", BYTES)
def test_bytes_an_entry_of_the_real_encoder(tmp_path, density, most):
    """As above, for entries that its gradients choose."""
    import transformers

    folder = str(encoder_folder())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with open(reviews_file()) as file:
        texts = [row["text"] for row in itertools.islice(csv.DictReader(file), 8)]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, dtype=torch.bfloat16
    )
    batches = [dict(batch, labels=torch.arange(8) % 2)]
    plan = sft.select(
        model, density=density, structure="entries", score="gradient", batches=batches
    )
    sft.convert(model, plan)
    assert payload(sft.save_delta(model, tmp_path / "delta"), tmp_path / "delta") <= most
