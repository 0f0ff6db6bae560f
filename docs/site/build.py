"""The documentation as a site that works without a network: `make docs` writes it to .docs/site.

Pages are staged at the paths that they have in the checkout, so a link that works there works here.
Exits with 1 for a broken link or anchor, a page that the index lacks, or a request to another host.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]
BUILD = ROOT / ".docs"
SOURCE, SITE = BUILD / "source", BUILD / "site"
ZENSICAL = BUILD / "environment/bin/zensical"
FRONT = "README.md"
INDEX = "docs/index.md"
API = "docs/reference/http.md"
ASSETS = (
    "docs/site/iframe-worker/LICENSE",
    "docs/site/iframe-worker/shim.js",
    "docs/site/mermaid/LICENSE",
    "docs/site/mermaid/mermaid.tiny.js",
    "docs/site/site.css",
)
FAVICON = "xalen_batch/api/assets/favicon.png"
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"\s]+)\"")
# Elements whose address a browser fetches by itself, and the attributes that hold it.
FETCHED = {"script": "src", "link": "href", "img": "src", "source": "srcset", "iframe": "src"}


def main() -> None:
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    pages = [FRONT, *sorted(_names("*.md") - {FRONT}), *sorted(_names("docs/**/*.md"))]
    pages += sorted(_names("examples/*.md"))
    for name in (*pages, *ASSETS, *_linked(pages)):
        _stage(name)
    _stage(FAVICON, "docs/site/favicon.png")
    # Imported late: it reads the whole package.
    from api_page import page

    (SOURCE / API).write_text(page(), "utf-8")
    sections = _sections()
    sections["Reference"].append(("HTTP API", API))
    if (
        lacking := {*pages, API}
        - {FRONT, INDEX}
        - {name for links in sections.values() for _, name in links}
    ):
        sys.exit(f"docs/index.md names no section for {', '.join(sorted(lacking))}")
    (BUILD / "zensical.toml").write_text(
        (ROOT / "docs/site/zensical.toml")
        .read_text("utf-8")
        .replace("[project]\n", f"[project]\nnav = {_nav(sections)}\n", 1),
        "utf-8",
    )
    built = subprocess.run(
        [ZENSICAL, "build", "--strict", "--clean", "--config-file", BUILD / "zensical.toml"],
        cwd=BUILD,
    )
    if built.returncode:
        sys.exit("The site was not built: see the warnings above.")
    if foreign := sorted(set(_foreign())):
        sys.exit("\n".join(["The site would ask other hosts:", *foreign]))
    sys.stdout.write(f"{len(pages) + 1} pages in {SITE.relative_to(ROOT)}/index.html\n")


def _names(pattern: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}


def _stage(name: str, as_name: str | None = None) -> None:
    target = SOURCE / (as_name or name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, target)


def _linked(pages: list[str]) -> set[str]:
    """Files that pages link to or show and that are no pages, such as pictures and examples.

    Ends the build if one is missing: the builder checks links to pages only.
    """
    found, missing = set(), []
    for page in pages:
        text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL)
        for link, picture in LINK.findall(text):
            address = urlsplit(link or picture)
            target = ((ROOT / page).parent / unquote(address.path)).resolve()
            if address.scheme or not address.path or target.suffix == ".md":
                continue
            if target.is_file():
                found.add(target.relative_to(ROOT).as_posix())
            else:
                missing.append(f"{page}: there is no {address.path}")
    if missing:
        sys.exit("\n".join(missing))
    return found


def _sections() -> dict[str, list[tuple[str, str]]]:
    """The sections of docs/index.md, each with the titles and paths of its pages."""
    _, *sections = (ROOT / INDEX).read_text("utf-8").split("\n## ")
    found = {}
    for section in sections:
        name, _, rows = section.partition("\n")
        links = re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\) \| (.+) \|$", rows, re.MULTILINE)
        found[name] = [
            # A record is known by its decision, not by its number.
            (
                f"{title}. {words}" if title.isdigit() else title,
                (ROOT / "docs" / target).resolve().relative_to(ROOT).as_posix(),
            )
            for title, target, words in links
        ]
    return found


def _nav(sections: dict[str, list[tuple[str, str]]]) -> str:
    """The navigation as TOML."""
    parts = [f'{{ "xalen-batch" = "{FRONT}" }}', f'{{ "All pages" = "{INDEX}" }}']
    for name, links in sections.items():
        pages = ", ".join(f'{{ "{title}" = "{target}" }}' for title, target in links)
        parts.append(f'{{ "{name}" = [{pages}] }}')
    return "[\n  " + ",\n  ".join(parts) + ",\n]"


def _foreign() -> Iterator[str]:
    """What a reader's browser would fetch from another host, as `page: address`."""
    for path in SITE.rglob("*.html"):
        finder = _Fetched()
        finder.feed(path.read_text("utf-8"))
        yield from (f"{path.relative_to(SITE)}: {address}" for address in finder.addresses)
    for path in SITE.rglob("*.css"):
        for address in re.findall(
            r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", path.read_text("utf-8")
        ):
            yield f"{path.relative_to(SITE)}: {address}"


class _Fetched(HTMLParser):
    """Collects the addresses of other hosts that a page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "alternate"):
            return
        address = given.get(FETCHED.get(tag, "")) or ""
        if re.match(r"(?:https?:)?//", address):
            self.addresses.append(address)


if __name__ == "__main__":
    main()
