"""What mkdocs calls while it builds the site: see `hooks` in mkdocs.yml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ELSEWHERE = {"contributing.md": "CONTRIBUTING.md"}
"""Pages whose text stands in a file of the repository, which is read without the site."""

_SHIM = "https://unpkg.com/iframe-worker/shim"
"""what the plugin `offline` names, which needs the network"""

_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#]*)(?:#[^)]*)?\)")
_FROM_ROOT = re.compile(r"\]\((?!https?:|mailto:|#)([^)]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """A link to a file outside docs/ becomes one to the repository, or its name where none is set.

    scripts/check_links.py sees that these files exist.
    """
    docs = Path(config.docs_dir).resolve()
    here = (docs / page.file.src_path).parent
    source = ELSEWHERE.get(page.file.src_path)
    if source is not None:
        text = (docs.parent / source).read_text(encoding="utf-8")
        markdown = _FROM_ROOT.sub(lambda link: f"]({_from_docs(link[1])})", text)

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


def _from_docs(target: str) -> str:
    """A link of a file at the root, as a page of docs/ has it."""
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
