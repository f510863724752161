"""Look for links of the built site that lead nowhere inside it: python docs/links.py SITE.

Sphinx warns of those between pages; this looks at what it has built: pages, sections, pictures and files.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and what links may lead to in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element leads to, or is called."""
        found = dict(attrs)
        self.places.add(found.get("id") or "")
        self.links += [link for name in ("href", "src") if (link := found.get(name))]


def dead(site: Path) -> list[str]:
    """Each dead link, with the page that has it."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not target.exists() or (target in pages and place not in pages[target].places):
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


if __name__ == "__main__":
    lost = dead(Path(sys.argv[1]))
    print("\n".join(lost) or "docs: all links inside the site hold")
    sys.exit(bool(lost))
