"""MkDocs hooks: add the pages without a file in docs/, and the notebooks' results."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tools.site import figures, gallery_page, notebooks, reference

ROOT = Path(__file__).parents[2]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {
        "explanation/gains.svg": figures.gains(),
        "gallery/index.md": gallery_page.page(),
        "reference/command-line.md": reference.command_line(),
        "reference/methods.md": reference.methods(),
        "reference/changelog.md": _moved("CHANGELOG.md"),
        "reference/contributing.md": _moved("CONTRIBUTING.md"),
        "reference/security.md": _moved("SECURITY.md"),
        **reference.api_pages(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for file in list(files.documentation_pages()):
        if file.src_uri.startswith("notebooks/"):
            made = notebooks.executed(Path(file.abs_src_path or ""))
            file.content_string = made.page
            for name, content in made.files.items():
                files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """Replace ``<!-- lines of FILE -->`` by the content of a file in docs/, as code."""
    return re.sub(
        r"<!-- lines of (\S+) -->", lambda found: f"```python\n{(ROOT / 'docs' / found[1]).read_text()}```", markdown
    )


def _moved(name: str) -> str:
    """A page of the top folder, with links into docs/ and to its neighbours changed to be relative to reference/."""
    text = re.sub(r"\]\(docs/", "](../", (ROOT / name).read_text())
    return re.sub(r"\]\((CHANGELOG|CONTRIBUTING|SECURITY)\.md", lambda match: f"]({match[1].lower()}.md", text)
