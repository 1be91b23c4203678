"""What MkDocs is told beside mkdocs.yml: pages that are made from the registries, and files that are not in docs/."""

from __future__ import annotations

from typing import Any

import pages as made
import repository
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what docs/ has not, and the reference's pages to the navigation."""
    for file in repository.linked_files(files, config):
        files.append(file)
    pages = {**made.optimizer_pages(), **made.schedule_pages()}
    for address, content in pages.items():
        files.append(File.generated(config, address, content=content))
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"][:0] = [
                {title: [address for address in pages if address.startswith(folder) and address.endswith(".md")]}
                for title, folder in (("Optimizers", "optimizers/"), ("Schedules", "schedules/"))
            ]
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Let links to files of the repository lead to where these are in the site."""
    return repository.relinked(markdown, page.file.src_uri)
