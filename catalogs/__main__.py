"""`python -m catalogs list|show ROOT...`."""

from __future__ import annotations

from pipeline.cli import lazy_group

main = lazy_group(
    "List the stores and runs below some folders, or look into them.",
    {
        "list": ("catalogs.commands:list_items", "one row per store or run"),
        "show": ("catalogs.commands:show_items", "one page per store or run"),
    },
)

if __name__ == "__main__":
    main()
