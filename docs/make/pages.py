"""The pages as the site has them: those of docs/, with what they include filled in.

A line `<!-- include: PATH -->` stands for a file of the repository: code becomes a block with its
name, Markdown loses its heading, `README.md#Limits` is one section. `<!-- recipes -->` and its
like are made by `tables`.
"""

import re
import shutil
from pathlib import Path

from docs.make import tables

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
STAGED = ROOT / "build" / "docs"
SITE = ROOT / "build" / "site"
# Beside the pages: pictures that tables show.
PICTURES = ("bench/results/demo.png",)
INCLUDE = re.compile(r"^<!-- include: ([\w./-]+)(?:#(.+?))? -->$", re.M)
MADE = re.compile(r"^<!-- (recipes|facts|rates|options|keys|exits|promises: [\w ]+) -->$", re.M)
FENCES = re.compile(r"^(`{3,}).*?^\1$", re.M | re.S)


def sources() -> list[Path]:
    """The pages in docs/, sorted."""
    return sorted(DOCS.rglob("*.md"))


def write(folder: Path) -> None:
    """Write all pages and pictures to `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for source in sources():
        page = folder / source.relative_to(DOCS)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(filled(source.read_text()))
    shutil.copytree(DOCS / "drawings", folder / "drawings")
    for file in (DOCS / "style.css", *(ROOT / picture for picture in PICTURES)):
        shutil.copy(file, folder)


def filled(text: str) -> str:
    """A page with what it includes."""
    text = INCLUDE.sub(lambda found: included(found[1], found[2]), text)
    return MADE.sub(lambda found: tables.made(found[1]), text)


def included(path: str, section: str | None) -> str:
    """What `<!-- include: path#section -->` stands for.

    Raises FileNotFoundError for a file, and ValueError for a section, that is not there.
    """
    text = (ROOT / path).read_text()
    if section is not None:
        return with_lists(section_of(text, section))
    if path.endswith(".md"):
        return with_lists(without_heading(text))
    # Wider than any fence in it.
    return f'````python title="{path}"\n{text.rstrip()}\n````'


def section_of(text: str, heading: str) -> str:
    """What stands under the heading `## heading`, up to the next of its kind."""
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    sections = dict(zip(parts[1::2], parts[2::2]))
    if heading not in sections:
        raise ValueError(f"section: there is no {heading!r}, but {', '.join(sections)}")
    return sections[heading].strip()


def without_heading(text: str) -> str:
    """Markdown whose first heading is a bold line instead: the page has one already."""
    return re.sub(r"\A# (.+)$", r"**\1**", text.strip(), count=1, flags=re.M)


def with_lists(text: str) -> str:
    """Markdown with an empty line before each list, without which Python-Markdown sees none."""
    return re.sub(r"^(?![-|] |[ \t]|```)(.+)\n(?=- )", r"\1\n\n", text, flags=re.M)
