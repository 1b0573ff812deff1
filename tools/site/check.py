"""Checks the built site: links and their anchors exist, and nothing is loaded from another host.

``python tools/site/check.py build/site``
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHES = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src")}
"""Tags and attributes that make a page load something; of links, those to style sheets, icons and the like."""
LINKS_BY_HAND = {"canonical", "prev", "next", "alternate"}
FETCHED_BY_STYLE = re.compile(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//")


class Page(HTMLParser):
    """Collects the anchors, links and loaded addresses of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the anchors, links and loaded addresses of a tag."""
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") not in LINKS_BY_HAND:
            self.fetched.append(found.get("href", ""))
        self.fetched += [found[name] for kind, name in FETCHES if kind == tag and name in found]


def problems(site: Path) -> list[str]:
    """The problems, page by page; absolute addresses occur only in a server's 404.html."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = [
        f"{path.relative_to(site)}: a style sheet loads something from another host"
        for path in site.rglob("*.css")
        if FETCHED_BY_STYLE.search(path.read_text())
    ]
    for path, page in pages.items():
        name = path.relative_to(site)
        for address in page.fetched:
            if urlsplit(address).netloc:
                found.append(f"{name}: loads {address}")
            elif not address.startswith(("data:", "/")) and not _file(path, address).exists():
                found.append(f"{name}: {address} does not exist")
        if name.name != "404.html":  # its addresses are those of a server
            found += [f"{name}: {link} {why}" for link in page.links if (why := _dead(path, link, pages))]
    return found


def _dead(path: Path, link: str, pages: dict[Path, Page]) -> str:
    """Why a link is broken, or ``""``; addresses of other hosts are not checked."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return ""
    target = _file(path, link)
    if not target.exists():
        return "does not exist"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return "has no such anchor"
    return ""


def _file(path: Path, address: str) -> Path:
    where = unquote(urlsplit(address).path)
    return (path.parent / where).resolve() if where else path


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]).resolve())
    print("\n".join(wrong) or "all links exist; nothing is loaded from another host")
    sys.exit(bool(wrong))
