"""Small models in folders, rows in files, and the command in this process."""

import csv
import random
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

for name in ("typer", "pydantic", "yaml", "transformers", "accelerate"):
    pytest.importorskip(name)
import transformers  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from sparse_ft.cli import training  # noqa: E402
from sparse_ft.cli.main import main  # noqa: E402

GOOD = "good fine lovely warm bright".split()
BAD = "bad dull awful cold grey".split()
REST = "a the film book it was and very not so".split()
SPECIAL = ("[PAD]", "[UNK]", "[EOS]")
ROWS = 72


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        return Ended(code, *capsys.readouterr())

    return run


def tokenizer() -> Any:
    """One token a word."""
    numbers = {word: at for at, word in enumerate([*SPECIAL, *GOOD, *BAD, *REST])}
    words = Tokenizer(models.WordLevel(numbers, unk_token=SPECIAL[1]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, unknown, end = SPECIAL
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=pad,
        unk_token=unknown,
        eos_token=end,
        model_input_names=["input_ids", "attention_mask"],
    )


SIZES = {
    "vocab_size": len(SPECIAL) + len(GOOD) + len(BAD) + len(REST),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BERT without a head, as an encoder comes."""
    folder = tmp_path_factory.mktemp("models") / "encoder"
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SIZES))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama."""
    folder = tmp_path_factory.mktemp("models") / "decoder"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, bos_token_id=None, eos_token_id=2)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of short reviews, `text` and `label`."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("data") / "reviews.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["text", "label", "source"])
        for number in range(ROWS):
            words = draw.choices(GOOD if number % 2 else BAD, k=2)
            words += draw.choices(REST, k=draw.randint(2, 6))
            draw.shuffle(words)
            label = "good" if number % 2 else "bad"
            writer.writerow([" ".join(words), label, "new" if number % 3 else "old"])
    return file


@pytest.fixture
def config(tmp_path: Path, encoder: Path, rows: Path) -> Path:
    """A config of a short run of the encoder on the rows."""
    file = tmp_path / "config.yaml"
    file.write_text(
        f"""
model: {encoder}
data: {{train: {rows}, validation: 0.25, max_length: 12}}
settings: {{structure: columns, density: 0.1}}
training: {{steps: 6, batch_size: 8, learning_rate: 1e-2, save_every: 2, log_every: 1, cpu: true}}
output: {tmp_path / "run"}
"""
    )
    return file


class Raises(transformers.TrainerCallback):
    """Sends this process a signal in the third step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def interrupted(monkeypatch):
    """From now on a run gets Ctrl-C in its third step; called, it does not any more."""
    made = training.trainer_of

    def with_signal(*arguments):
        *most, callbacks = arguments
        return made(*most, [Raises(), *callbacks])

    monkeypatch.setattr(training, "trainer_of", with_signal)
    return lambda: monkeypatch.setattr(training, "trainer_of", made)
