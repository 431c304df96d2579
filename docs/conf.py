"""How the documentation site is built: ``make docs``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent.resolve()
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "src"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from acclimate import __version__  # noqa: E402

project = "acclimate"
author = "the authors of acclimate"
copyright = author  # noqa: A001 - the name that Sphinx asks for
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "pictures"]
html_theme = "furo"
html_title = f"acclimate {release}"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["site.css"]

# The anchors that a link in a page names are those of its headings, as repository viewers make them.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Listed under their own heading; by default they would be called variables.
napoleon_custom_sections = [("Attributes", "params_style")]
python_display_short_literal_types = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# Types of other packages, and modules that have no page, are named in signatures and docstrings; nothing is fetched
# to resolve them. Links between pages, to headings and to glossary entries are all checked.
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_INCLUDED = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)


def page_for(path: Path) -> Path | None:
    """Return the page of the site that shows a file or folder of the repository, or None."""
    if path.is_relative_to(DOCS):
        page = path / "index.md" if path.is_dir() else path
        return page if page.suffix == ".md" and page.exists() else None
    known = {
        ROOT / "README.md": DOCS / "index.md",
        ROOT / "CHANGELOG.md": DOCS / "changelog.md",
        ROOT / "CONTRIBUTING.md": DOCS / "contributing.md",
        ROOT / "benchmarks": DOCS / "benchmarks" / "index.md",
        ROOT / "benchmarks" / "README.md": DOCS / "benchmarks" / "index.md",
    }
    folder = path.parent if path.name == "README.md" else path
    if folder.parent == ROOT / "benchmarks":
        known[path] = DOCS / "benchmarks" / f"{folder.name}.md"
    return known.get(path)


def with_links_of_the_site(text: str, *, written_in: Path, shown_in: Path) -> str:
    """Return a page whose links lead to pages of the site; files that have no page there are named in plain text."""

    def replaced(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = (written_in.parent / target).resolve()
        page = page_for(path)
        if page is not None:
            return f"[{label}]({os.path.relpath(page, shown_in.parent)}{anchor})"
        if not path.exists():
            return match[0]
        name = str(path.relative_to(ROOT))
        return f"`{name}`" if label.strip("`") in (name, path.name) else f"{label} (`{name}`)"

    return _LINK.sub(replaced, text)


def on_source_read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put included files in, and make links lead to pages of the site."""
    here = DOCS / f"{docname}.md"

    def included(match: re.Match[str]) -> str:
        path = (here.parent / match[1]).resolve()
        app.env.note_dependency(str(path), docname=docname)
        return with_links_of_the_site(path.read_text(encoding="utf-8"), written_in=path, shown_in=here)

    source[0] = _INCLUDED.sub(included, with_links_of_the_site(source[0], written_in=here, shown_in=here))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the function above."""
    app.connect("source-read", on_source_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
