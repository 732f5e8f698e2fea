"""`python -m everlog` is `everlog`; the workers of `everlog run --workers` are started so."""

from __future__ import annotations

from everlog.cli import main

if __name__ == "__main__":
    main()
