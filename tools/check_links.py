#!/usr/bin/env python3
"""Checks that every relative link in the Markdown files leads to a file."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def main() -> int:
    broken = []
    book = sorted((ROOT / "docs").rglob("*.md"))
    files = [*sorted(ROOT.glob("*.md")), *book]
    for file in files:
        for target, _ in LINK.findall(file.read_text(encoding="utf-8")):
            if "://" in target or target.startswith("mailto:"):
                continue
            if not (file.parent / target).exists():
                broken.append(f"{file.relative_to(ROOT)}: {target}")
    listed = (ROOT / "docs" / "SUMMARY.md").read_text(encoding="utf-8")
    for file in book:
        name = file.relative_to(ROOT / "docs").as_posix()
        if name != "SUMMARY.md" and f"({name})" not in listed:
            broken.append(f"docs/SUMMARY.md does not list {name}")
    print("\n".join(broken) or f"{len(files)} files, all relative links lead to a file")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
