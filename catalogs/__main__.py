"""`python -m catalogs list|show ROOT...`."""

from __future__ import annotations

from pipeline.cli import lazy_group

main = lazy_group(
    "List the stores below some folders, or look into them.",
    {
        "list": ("catalogs.commands:list_stores", "one row per store"),
        "show": ("catalogs.commands:show_stores", "one page per store"),
    },
)

if __name__ == "__main__":
    main()
