"""Links of the documentation to files of the repository: the files become pages of the site too."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "repository"
"""Where in the site the files are that are not in docs/."""
SHOWN = {".py": "python", ".pyx": "cython", ".c": "c", ".h": "c", ".def": "c", ".txt": "text"}
"""Suffixes of texts that become a page with a block of code, and the block's language."""

LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")


def linked_files(files: Files, config: MkDocsConfig) -> list[File]:
    """Return the files outside of docs/ that pages link to, and those that these link to."""
    found: dict[str, File] = {}
    unread = [file.src_uri for file in files.documentation_pages() if file.generated_by is None]
    while unread:
        origin = _path(unread.pop())
        for _, target, _, _ in LINK.findall((ROOT / origin).read_text(encoding="utf-8")):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
            address = _address(path)
            if path.startswith("docs/") or address in found or not (ROOT / path).is_file():
                continue
            found[address] = _file(path, address, config)
            unread += [address] if path.endswith(".md") else []
    return list(found.values())


def relinked(markdown: str, page: str) -> str:
    """Return the text of a page with its links to files of the repository made links of the site."""

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(_path(page)), match[2]))
        if not (ROOT / path).is_file():
            return match[0]
        return (
            f"{match[1]}{posixpath.relpath(_address(path), posixpath.dirname(page) or '.')}{match[3] or ''}{match[4]}"
        )

    return LINK.sub(link, markdown)


def _path(address: str) -> str:
    """Return where in the repository a page of the site comes from."""
    return address.removeprefix(f"{FOLDER}/") if address.startswith(f"{FOLDER}/") else f"docs/{address}"


def _address(path: str) -> str:
    """Return where in the site a file of the repository is."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{FOLDER}/{path}" + (".md" if Path(path).suffix in SHOWN else "")


def _file(path: str, address: str, config: MkDocsConfig) -> File:
    language = SHOWN.get(Path(path).suffix)
    if language is None:
        return File.generated(config, address, abs_src_path=str(ROOT / path))
    text = (ROOT / path).read_text(encoding="utf-8")
    return File.generated(config, address, content=f"# {path}\n\n````{language}\n{text}````\n")
