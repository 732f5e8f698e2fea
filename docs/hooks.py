"""Links that leave the documentation: in the repository they lead to a file, on the site they are its name."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?:README|CHANGELOG|CONTRIBUTING|examples|tests|src|benchmarks)[^)]*)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page with the names of the repository's files instead of links to them."""
    up = page.file.src_uri.count("/") + 1

    def name(found: re.Match[str]) -> str:
        return f"{found[1]}" if found[0].count("../") == up else found[0]

    return _OUTSIDE.sub(name, markdown)
