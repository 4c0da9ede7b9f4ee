"""Broken links of pages and of the built site, found without a network.

Links to other hosts are not followed: only that they are written as such is known here.
"""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FENCED = re.compile(r"^(`{3,}|~{3,}).*?^\1`*$", re.M | re.S)
INLINE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6} (.+?)\s*$", re.M)


def slug(heading: str) -> str:
    """The anchor of a heading, as Python-Markdown's toc makes it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    kept = re.sub(r"[^\w\s-]", "", plain).strip().lower()
    return re.sub(r"[-\s]+", "-", kept)


def anchors(text: str) -> set[str]:
    """The anchors of a page; a heading that is there again gets a number."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(FENCED.sub("", text)):
        name = slug(heading)
        found.add(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def links_of(text: str) -> list[str]:
    """Where a page links to, code left out."""
    return LINK.findall(INLINE.sub("`code`", FENCED.sub("", text)))


def broken_in_pages(folder: Path) -> list[str]:
    """Sentences on links of the Markdown files in `folder` that lead nowhere."""
    found = []
    for page in sorted(folder.rglob("*.md")):
        for link in links_of(page.read_text()):
            why = _wrong(page, link)
            if why:
                found.append(f"{page.relative_to(folder)}: {link} {why}")
    return found


def _wrong(page: Path, link: str) -> str | None:
    parts = urlsplit(link)
    if parts.scheme:
        return None if parts.scheme in ("https", "http", "mailto") else "is of no known kind"
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file():
        return "is not there"
    if parts.fragment and target.suffix == ".md":
        if parts.fragment not in anchors(target.read_text()):
            return "has no such heading"
    return None


class _Page(HTMLParser):
    """What a page of the site links to and loads, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value for key, value in attributes if value}
        self.names |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        for key in ("src", "href"):
            if (
                key in given
                and tag in ("img", "script", "link")
                and given.get("rel") != "canonical"
            ):
                self.loads.append(given[key])


def broken_in_site(folder: Path) -> list[str]:
    """Sentences on links of the built site that lead nowhere, and on what it would fetch from
    elsewhere.
    """
    pages = {path: _Page(path.read_text()) for path in sorted(folder.rglob("*.html"))}
    if not pages:
        return [f"{folder}: there is no page"]
    found = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        for load in page.loads:
            if urlsplit(load).netloc:
                found.append(f"{where}: {load} is loaded from elsewhere")
        if path.name == "404.html":
            continue  # its links are from the root of wherever the site will be
        for link in [*page.links, *page.loads]:
            why = _wrong_in_site(folder, path, link, pages)
            if why:
                found.append(f"{where}: {link} {why}")
    return found


def _wrong_in_site(folder: Path, path: Path, link: str, pages: dict[Path, _Page]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = path
    if parts.path:
        target = (path.parent / unquote(parts.path)).resolve()
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file():
        return "is not there"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names:
        return "has no such place"
    return None
