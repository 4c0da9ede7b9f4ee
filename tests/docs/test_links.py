"""Every link of the pages leads somewhere, every name of the package has its place in the API."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.exhaustive import slow

import sparse_ft as sft
from docs.make import links, pages, tables

ENTRY = re.compile(r"^::: sparse_ft\.([\w.]+)$", re.M)


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged") / "docs"
    pages.write(folder)
    return folder


def test_no_link_of_a_page_is_broken(staged):
    assert not links.broken_in_pages(staged)
    texts = {page.relative_to(staged): page.read_text() for page in staged.rglob("*.md")}
    assert len(texts) >= 20 and sum(len(links.links_of(text)) for text in texts.values()) > 50
    left = [str(page) for page, text in texts.items() if re.search(r"^<!-- (include|made)", text)]
    assert not left


def test_a_broken_link_is_found(tmp_path):
    text = "[a](b.md) [c](#d) [e](here.md#there) [f](ftp://x) `[g](h)`\n\n```\n[i](j)\n```\n"
    (tmp_path / "page.md").write_text(text)
    (tmp_path / "here.md").write_text("# Here\n")
    assert links.broken_in_pages(tmp_path) == [
        "page.md: b.md is not there",
        "page.md: #d has no such heading",
        "page.md: here.md#there has no such heading",
        "page.md: ftp://x is of no known kind",
    ]
    (tmp_path / "page.html").write_text(
        '<link href="https://far/a.css"><a href="b.html">b</a><a href="#c">c</a><i id="d">'
        '<a href="#d">d</a><img src="e.png">'
    )
    assert links.broken_in_site(tmp_path) == [
        "page.html: https://far/a.css is loaded from elsewhere",
        "page.html: b.html is not there",
        "page.html: #c has no such place",
        "page.html: e.png is not there",
    ]


def test_every_page_is_in_the_navigation(staged):
    listed = set(re.findall(r'"([\w/-]+\.md)"', (pages.ROOT / "zensical.toml").read_text()))
    assert listed == {page.relative_to(staged).as_posix() for page in staged.rglob("*.md")}


def test_every_public_name_has_its_place_in_the_api():
    documented = set()
    for page in (pages.DOCS / "api").glob("*.md"):
        documented |= set(ENTRY.findall(page.read_text()))
    for name in documented:
        assert docstring_of(name), f"{name} says nothing"
    rooms = {"deltas", "functional", "memory", "nn", "quantised", "recipes"}
    missing = set(sft.__all__) - rooms - documented
    assert not missing, f"name them on a page of docs/api, as ::: sparse_ft.name: {missing}"
    missing = {each for each in sft.deltas.__all__ if not {each, f"deltas.{each}"} & documented}
    assert missing == {"Part", "on_base"}


def docstring_of(name: str) -> str | None:
    """Of `sparse_ft.<name>`; of what another library's import would be dear for, from its file."""
    if name.startswith("trainers."):
        room, _, own = name.rpartition(".")
        path = pages.ROOT / "sparse_ft" / f"{room.replace('.', '/')}.py"
        body = ast.parse(path.read_text()).body
        (found,) = [each for each in body if getattr(each, "name", "") == own]
        return ast.get_docstring(found)
    parts = name.split(".")
    if len(parts) > 1:  # sft.units is a function, its room is beside it
        found = importlib.import_module(f"sparse_ft.{parts.pop(0)}")
    else:
        found = sft
    for part in parts:
        found = getattr(found, part)
    return found.__doc__


def test_the_recipes_are_those_of_the_registry(staged):
    text = (staged / "recipes.md").read_text()
    for each in sft.recipes.list():
        assert f"### {each.name}\n" in text and each.says.replace("|", "\\|") in text, each.name


def test_the_numbers_of_the_guide_are_those_of_the_results(staged):
    """And what its sentences make of them is so."""
    text = (staged / "guide.md").read_text()
    rows = {row["label"]: row for row in tables.read("demo.csv") + tables.read("demo-all.csv")}
    for row in rows.values():
        assert re.search(rf"^\| {re.escape(row['label'])} \|.*`make demo", text, re.M), row["label"]
    accuracy = {label: float(row["accuracy"]) for label, row in rows.items()}
    peak = {label: int(row["peak_bytes"]) for label, row in rows.items()}
    columns, shira = "ours, columns, 1 %, lean", "ours, SHiRA, 1 %, lean"
    assert accuracy[shira] > accuracy[columns] and peak[columns] < peak[shira]
    assert accuracy["ours, entries, 3.14 %"] - accuracy["ours, entries, 1 %"] < 0.005
    methods = (pages.ROOT / "bench/results/methods.md").read_text()
    assert methods.splitlines()[-1] in text
    seeds = re.findall(r"^\| shira \| [\d.]+ ± [\d.]+ \| (\d+) \|", methods, re.M)
    assert seeds == ["5"], "the guide names SHiRA first, by five seeds"


def test_the_drawings_need_nothing_from_elsewhere():
    for drawing in (pages.DOCS / "drawings").glob("*.svg"):
        text = drawing.read_text()
        assert "<title>" in text and "href" not in text and "url(http" not in text, drawing.name


@slow
def test_the_site_is_built_offline_and_has_no_broken_link():
    """In a network of its own, which has nothing in it but itself; where that may be made."""
    pytest.importorskip("zensical")
    alone = ["unshare", "-rn"] if subprocess.run(["unshare", "-rn", "true"]).returncode == 0 else []
    done = subprocess.run(
        [*alone, sys.executable, "-m", "docs.make"],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path(pages.SITE / "index.html").is_file()
