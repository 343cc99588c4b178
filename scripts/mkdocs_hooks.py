"""What mkdocs calls while it builds the site: see `hooks` in mkdocs.yml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

OPTIONAL = {"serving.md"}
"""Pages that the nav names where they exist."""

_SHIM = "https://unpkg.com/iframe-worker/shim"
"""what the plugin `offline` names, which needs the network"""

_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#]*)(?:#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """Leave out of the nav what is not there."""
    docs = Path(config.docs_dir)
    config.nav = _there(config.nav, docs)
    return config


def _there(entries: list[Any], docs: Path) -> list[Any]:
    kept = []
    for entry in entries:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            kept.append({title: _there(target, docs)})
        elif target not in OPTIONAL or (docs / target).is_file():
            kept.append(entry)
    return kept


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """A link to a file outside docs/ becomes one to the repository, or its name where none is set.

    scripts/check_links.py sees that these files exist.
    """
    docs = Path(config.docs_dir).resolve()
    here = (docs / page.file.src_path).parent

    def put(link: re.Match[str]) -> str:
        target = (here / link[2]).resolve()
        if target.is_relative_to(docs):
            return link[0]
        name = target.relative_to(docs.parent).as_posix()
        if config.repo_url:
            return f"[{link[1]}]({config.repo_url.rstrip('/')}/blob/main/{name})"
        return link[1] if name in link[1] else f"{link[1]} (`{name}`)"

    return _LINK.sub(put, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Take the script that searches a site without a server from the site itself."""
    depth = page.file.dest_uri.count("/")
    return output.replace(_SHIM, "../" * depth + "javascripts/iframe-worker.js")


def on_post_template(output_content: str, template_name: str, config: Any, **_: Any) -> str:
    """Do the same for pages that are no Markdown, such as 404.html, which may be shown anywhere."""
    return output_content.replace(_SHIM, "/javascripts/iframe-worker.js")
