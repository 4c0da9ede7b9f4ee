"""Every block of every page in docs/ runs as it is written, one after another, in a folder of its
own; what needs several processes names the test that runs it.
"""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

import pytest
import torch
from helpers import commands, pages, trl_runs

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [str(page.relative_to(DOCS)) for page in sorted(DOCS.rglob("*.md"))]
LANGUAGES = ("python", "yaml", "console")
FENCE = re.compile(r"^```(\w*)", re.M)
SKIP = re.compile(r'^<!-- skip: next "(.*)" -->\n```', re.M)
# What a page needs beside transformers; in the folder of trainers, perhaps.
NEEDS = {"trainers.md": ("peft", "trl", "datasets", "accelerate"), "migration.md": ("peft",),
         "deltas.md": ("peft", "typer", "pydantic", "yaml"), "quantised.md": ("bitsandbytes",),
         "quick-start.md": ("typer", "pydantic", "yaml", "accelerate"),
         "command-line.md": ("typer", "pydantic", "yaml", "accelerate", "trl",
                             "datasets")}  # fmt: skip


def fences(text: str) -> list[str]:
    """The languages of the blocks of a page."""
    return [found[1] for found in FENCE.finditer(text)][::2]


WITH_BLOCKS = [page for page in PAGES if fences((DOCS / page).read_text())]


def write_file(example: object) -> None:
    """A YAML block is the file that its first line names."""
    text = str(example.parsed)
    name = re.match(r"# ([\w.-]+)\n", text)
    assert name is not None, "a YAML block begins with the name of its file"
    Path(name[1]).write_text(text)


def run_commands(example: object) -> None:
    """Each line that begins with "$ " is a command."""
    for line in str(example.parsed).splitlines():
        if line.startswith("$ "):
            commands.run(line.removeprefix("$ "))


@pytest.fixture(scope="module")
def reader() -> object:
    sybil = pytest.importorskip("sybil")
    from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

    parsers = [
        PythonCodeBlockParser(),
        CodeBlockParser("yaml", write_file),
        CodeBlockParser("console", run_commands),
        SkipParser(),
    ]
    return sybil.Sybil(parsers)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Blocks print; and what they draw is the same whichever page runs first."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_there_are_pages():
    assert len(WITH_BLOCKS) >= 9 and "quick-start.md" in WITH_BLOCKS


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_every_block_runs(page, reader, tmp_path, monkeypatch):
    trl_runs.make_importable("transformers", *NEEDS.get(page, ()))
    monkeypatch.chdir(tmp_path)
    if page in ("quick-start.md", "command-line.md"):  # their files
        pages.write_encoder(tmp_path / "my-model")
        pages.write_reviews(tmp_path / "reviews.csv")
        pages.write_decoder(tmp_path / "my-decoder")
        pages.write_pairs(tmp_path / "pairs.jsonl")
    document = reader.parse(DOCS / page)
    document.namespace.update(pages.start())
    skipped = ran = 0
    for example in document.examples():
        try:
            example.evaluate()
            ran += 1
        except SkipTest:
            skipped += 1
    text = (DOCS / page).read_text()
    assert skipped == len(SKIP.findall(text))
    # A directive counts as one that ran.
    assert ran == len(fences(text)), "a block was not seen"


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_blocks_are_of_known_kinds_and_skips_name_a_test(page):
    text = (DOCS / page).read_text()
    assert set(fences(text)) <= set(LANGUAGES)
    for reason in SKIP.findall(text):
        named = re.findall(r"tests/[\w/]+\.py", reason)
        assert named and all((ROOT / each).is_file() for each in named), reason


def test_the_way_to_a_delta_of_ones_own_rows_is_short():
    """Of the quick start: what is typed until there is a delta, and the same from a file."""
    text = (DOCS / "quick-start.md").read_text()
    blocks = re.findall(r"^```(?:console|yaml)\n(.*?)^```", text, re.M | re.S)
    install, train, *_ = blocks
    typed = [line for block in (install, train) for line in block.splitlines()]
    assert len(typed) == 2 and "sparse-ft finetune" in typed[-1]
    (config,) = [block for block in blocks if block.startswith("# reviews.yaml")]
    assert len(config.splitlines()) < 10


def test_every_command_is_on_the_page_of_the_command_line():
    for name in ("typer", "pydantic", "yaml"):
        pytest.importorskip(name)
    import typer

    from sparse_ft.cli.main import app

    there = set()
    for name, command in typer.main.get_command(app).commands.items():
        there |= {f"{name} {each}" for each in getattr(command, "commands", ())} or {name}
    listed = re.findall(
        r"^\| `sparse-ft ([\w ]+)` \|", (DOCS / "command-line.md").read_text(), re.M
    )
    assert set(listed) == there


def test_the_page_of_the_command_line_has_every_option_key_and_exit_code():
    """As the program says them: each --help, --keys, and the codes below --help."""
    for name in ("typer", "pydantic", "yaml"):
        pytest.importorskip(name)
    from docs.make.pages import filled

    text = filled((DOCS / "command-line.md").read_text())
    sections = dict(re.findall(r"^### sparse-ft ([\w ]+)\n(.*?)(?=^##)", text, re.M | re.S))
    for name, section in sections.items():
        help = commands.told(f"sparse-ft {name} --help")
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help.partition("Options:")[2]))
        assert options, name
        for option in options - {"--help"}:
            assert f"`{option}`" in section, (name, option)
    top = commands.told("sparse-ft --help")
    listed = re.findall(r"^  (\w+)  ", top.partition("Commands:")[2], re.M)
    assert {name.split()[0] for name in sections} == set(listed) and len(sections) >= 13
    for line in commands.told("sparse-ft finetune --keys").splitlines()[2:]:
        assert f"| `{line.split()[0]}` |" in text, line
    codes = re.findall(r"(\d+)\s+\w", top.partition("Exit codes:")[2])
    assert len(codes) >= 5 and all(f"| {code} | " in text for code in codes), codes
    assert "package:NAME/PATH" in text
