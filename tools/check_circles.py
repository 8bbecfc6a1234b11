#!/usr/bin/env python3
"""Checks imports: files of one crate must not import each other in a circle, and imports between crates must go
downwards.

An edge goes from the file that names something to the file that defines it. Re-exports are followed: a name that
`lib.rs` passes on leads to where it is defined, and one that a module passes on leads to that module as well. Comments,
strings, `#[cfg(test)]` items, `mod x;` lines and re-exports do not count. The checker does not see what no path names,
such as a method of a value that another file passed.

    tools/check_circles.py              # the whole workspace
    tools/check_circles.py --crate node # one crate; circles only
    tools/check_circles.py --edges node # every edge of one crate, with the line that makes it
    tools/check_circles.py --self-test  # the checker against small trees whose answers are known
"""

import argparse
import pathlib
import re
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The layers of the workspace, from the top. A crate may import only crates in layers below its own, and none beside it.
FLOORS = [
    ["cli"],
    ["sim"],
    ["host"],
    ["crusade", "grail", "compute"],
    ["node"],
    ["serve"],
    ["bench"],
    ["incentive"],
    ["model"],
    ["train"],
    ["record"],
    ["cpu", "engine"],
    ["codec"],
    ["chain"],
    ["data"],
    ["store"],
    ["sandbox"],
    ["ledger"],
    ["protocol"],
]
# The rehearsal wraps what real nodes run, so nothing but the binary may know it.
ONLY_FOR = {"sim": {"cli"}}
# Not part of the layers: development tools, which may import anything.
OUTSIDE = {"xtask"}

TOKEN = re.compile(r"r?\w+|::|=>|->|\.\.=|\.\.|[^\s\w]")
KEYWORDS_OF_ITEMS = {"fn", "struct", "enum", "trait", "const", "static", "type", "union"}


def without_comments(text: str) -> str:
    """The text with comments, strings and characters blanked out and every line in its place."""
    out = []
    i, n = 0, len(text)

    def blank(piece: str) -> None:
        out.append("".join(c if c == "\n" else " " for c in piece))

    while i < n:
        two = text[i : i + 2]
        if two == "//":
            end = text.find("\n", i)
            end = n if end < 0 else end
        elif two == "/*":
            depth, end = 1, i + 2
            while end < n and depth:
                pair = text[end : end + 2]
                depth += {"/*": 1, "*/": -1}.get(pair, 0)
                end += 2 if pair in ("/*", "*/") else 1
        elif (raw := re.compile(r'\b[bc]?r(#*)"').match(text, i)) and (i == 0 or not re.match(r"\w", text[i - 1])):
            end = text.find('"' + raw[1], raw.end())
            end = n if end < 0 else end + 1 + len(raw[1])
        elif text[i] == '"':
            end = i + 1
            while end < n and text[end] != '"':
                end += 2 if text[end] == "\\" else 1
            end += 1
        elif character := re.compile(r"'(\\x..|\\u\{[^}]*\}|\\.|[^\\'])'").match(text, i):
            end = character.end()
        else:
            out.append(text[i])
            i += 1
            continue
        blank(text[i:end])
        i = end
    return "".join(out)


def tokens_of(text: str) -> list[tuple[str, int]]:
    return [
        (found.group(), line)
        for line, content in enumerate(without_comments(text).split("\n"), 1)
        for found in TOKEN.finditer(content)
    ]


class Module:
    """A module: a file, or a `mod name { … }` inside one."""

    def __init__(self, crate: "Crate", path: tuple[str, ...], file: pathlib.Path, parent: "Module | None"):
        self.crate, self.path, self.file, self.parent = crate, path, file, parent
        self.children: dict[str, Module] = {}
        self.items: set[str] = set()
        self.imports: list[tuple[tuple[str, ...], str, bool, int]] = []  # path, alias ("*" for all), re-exported, line
        self.paths: list[tuple[tuple[str, ...], int]] = []  # what the code names in full
        self.words: dict[str, int] = {}  # single words of the code, with their first line

    def __repr__(self) -> str:
        return "::".join(("crate", *self.path))


class Crate:
    def __init__(self, folder: pathlib.Path):
        self.folder, self.name = folder, folder.name
        self.modules: list[Module] = []
        self.outside: list[tuple[str, pathlib.Path, int]] = []  # crates of the workspace that the code names
        self.roots = [
            self.read_file(root, (), None, root.parent)
            for root in (folder / "src" / "lib.rs", folder / "src" / "main.rs")
            if root.exists()
        ]

    def read_file(self, file: pathlib.Path, path: tuple[str, ...], parent: Module | None, below: pathlib.Path) -> Module:
        module = Module(self, path, file, parent)
        self.modules.append(module)
        Reader(tokens_of(file.read_text(encoding="utf-8")), module, below).items()
        return module


class Reader:
    """Reads the tokens of one file into its modules."""

    def __init__(self, tokens: list[tuple[str, int]], module: Module, below: pathlib.Path):
        self.tokens, self.at = tokens, 0
        self.module, self.below = module, below

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][0] if self.at + ahead < len(self.tokens) else ""

    def line(self) -> int:
        return self.tokens[min(self.at, len(self.tokens) - 1)][1]

    def skip_group(self) -> list[str]:
        """Steps over a bracketed group and returns its tokens."""
        depth, start = 0, self.at
        while self.at < len(self.tokens):
            depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(self.peek(), 0)
            self.at += 1
            if depth == 0:
                break
        return [token for token, _ in self.tokens[start : self.at]]

    def skip_item(self) -> None:
        """Steps over one item, statement, field, arm or expression: to its `;`, its `,` or its closing brace."""
        while self.peek() == "#":
            self.at += 1
            self.skip_group()
        while self.peek() not in ("", ";", ",", "}"):
            if self.peek() == "{":
                self.skip_group()
                return
            if self.peek() in ("(", "["):
                self.skip_group()
            else:
                self.at += 1
        if self.peek() in (";", ","):
            self.at += 1

    def items(self, inline: bool = False) -> None:
        """Reads to the end of the file, or to the brace that closes an inline module."""
        depth, item_depth = 0, 0
        public = False
        while self.at < len(self.tokens):
            token, after = self.peek(), self.peek(1)
            if token == "#" and after in ("[", "!"):
                self.at += 2 if after == "!" else 1
                attribute = "".join(self.skip_group())
                if after == "[" and re.fullmatch(r"\[cfg\((all\()?test\b.*\]", attribute):
                    self.skip_item()
                continue
            if token == "pub":
                public = True
                self.at += 1
                if self.peek() == "(":
                    self.skip_group()
                continue
            if token == "use" and re.match(r"[\w:{*$]", after):
                self.at += 1
                self.use_tree((), public)
            elif token == "mod" and re.match(r"\w", after):
                self.at += 1
                self.submodule()
            elif token in KEYWORDS_OF_ITEMS and re.match(r"\w", after):
                word = after
                if word in ("mut", "unsafe", "fn", "async", "extern"):
                    word = ""
                if depth == item_depth and word:
                    self.module.items.add(word)
                self.at += 2 if word else 1
            elif token == "macro_rules" and after == "!":
                self.module.items.add(self.peek(2))
                self.at += 3
            elif token == "}" and inline and depth == 0:
                self.at += 1
                return
            elif re.match(r"[A-Za-z_]", token) or (token == "$" and after == "crate"):
                self.path()
            else:
                depth += {"{": 1, "}": -1}.get(token, 0)
                self.at += 1
            public = False

    def path(self) -> None:
        line = self.line()
        before = self.tokens[self.at - 1][0] if self.at else ""
        if self.peek() == "$":
            self.at += 1
        found = [self.peek()]
        self.at += 1
        while self.peek() == "::" and re.match(r"[A-Za-z_]", self.peek(1)):
            found.append(self.peek(1))
            self.at += 2
        if before in (".", "::", "'"):
            return
        if len(found) > 1:
            self.module.paths.append((tuple(found), line))
        self.module.words.setdefault(found[0], line)

    def use_tree(self, prefix: tuple[str, ...], public: bool) -> None:
        """Reads `a::b::{c, d as e, f::*}` and the `;` behind it."""
        while self.peek() not in ("", ";", ",", "}"):
            line = self.line()
            token = self.peek()
            self.at += 1
            if token == "{":
                while self.peek() not in ("", "}"):
                    self.use_tree(prefix, public)
                    if self.peek() == ",":
                        self.at += 1
                self.at += 1
                break
            if token == "*":
                self.module.imports.append((prefix, "*", public, line))
                break
            if token in ("::", "$"):
                continue
            prefix = (*prefix, token)
            if self.peek() != "::":
                full = prefix[:-1] if token == "self" and len(prefix) > 1 else prefix
                alias = full[-1]
                if self.peek() == "as":
                    alias = self.peek(1)
                    self.at += 2
                self.module.imports.append((full, alias, public, line))
                break
        if self.peek() == ";":
            self.at += 1

    def submodule(self) -> None:
        name = self.peek()
        path = (*self.module.path, name)
        self.at += 1
        outer, below = self.module, self.below
        if self.peek() == "{":
            self.at += 1
            inner = Module(outer.crate, path, outer.file, outer)
            outer.crate.modules.append(inner)
            outer.children[name] = inner
            self.module, self.below = inner, below / name
            self.items(inline=True)
            self.module, self.below = outer, below
            return
        self.at += 1
        for file in (below / f"{name}.rs", below / name / "mod.rs"):
            if file.exists():
                outer.children[name] = outer.crate.read_file(file, path, outer, below / name)


class Search:
    """What a search for a name remembers: where it has been, and which modules passed the name on."""

    def __init__(self) -> None:
        self.seen: set = set()
        self.passed_on: list[Module] = []


def resolve(module: Module, path: tuple[str, ...], seen: Search) -> Module | None:
    """The module that defines what `path` names as seen from `module`, or None if that is outside the crate."""
    key = (module.path, module.file, path)
    if key in seen.seen or not path:
        return None if path else module
    seen.seen.add(key)
    first, rest = path[0], path[1:]
    if first == "crate":
        return follow(root_of(module), rest, seen)
    if first == "self":
        return follow(module, rest, seen)
    if first == "super":
        return resolve(module.parent, ("self", *rest), seen) if module.parent else None
    if first in module.children:
        return follow(module.children[first], rest, seen)
    for full, alias, _, _ in module.imports:
        if alias == first and full != path:
            return resolve(module, (*full, *rest), seen)
    return None


def follow(module: Module, path: tuple[str, ...], seen: Search) -> Module | None:
    """The module that defines what `path` names inside `module`."""
    if not path:
        return module
    first, rest = path[0], path[1:]
    if first == "super":
        return follow(module.parent, rest, seen) if module.parent else None
    if first in module.children:
        return follow(module.children[first], rest, seen)
    if first in module.items:
        return module
    for full, alias, _, _ in module.imports:
        if alias == first:
            seen.passed_on.append(module)
            return resolve(module, (*full, *rest), seen)
    for full, alias, _, _ in module.imports:
        if alias == "*" and (found := resolve(module, full, seen)):
            if found is not module and (first in found.items or first in found.children or found.imports):
                inner = follow_if_there(found, (first, *rest), seen)
                if inner:
                    return inner
    return module


def follow_if_there(module: Module, path: tuple[str, ...], seen: Search) -> Module | None:
    there = path[0] in module.items or path[0] in module.children or any(a == path[0] for _, a, _, _ in module.imports)
    return follow(module, path, seen) if there else None


def root_of(module: Module) -> Module:
    while module.parent:
        module = module.parent
    return module


Edges = dict[pathlib.Path, dict[pathlib.Path, tuple[int, str]]]


def edges_of(crate: Crate) -> Edges:
    edges: Edges = {module.file: {} for module in crate.modules}

    def edge(module: Module, path: tuple[str, ...], line: int, through: str = "") -> None:
        search = Search()
        ends = [resolve(module, path, search)]
        # A module that re-exports a name is imported too, except by its own submodules. `lib.rs` does not count as such
        # a module.
        ends += [room for room in search.passed_on if room.path and module.path[: len(room.path)] != room.path]
        for to in ends:
            if to is not None and to.file != module.file:
                edges[module.file].setdefault(to.file, (line, "::".join(path) + through))

    for module in crate.modules:
        paths_start = {path[0] for path, _ in module.paths}
        for path, alias, public, line in module.imports:
            if workspace_crate(path[0]):
                crate.outside.append((path[0], module.file, line))
                continue
            if public and (alias == "*" or alias not in module.words):
                continue  # passed on, not used here
            if names_module(module, path) and alias in paths_start:
                continue  # the paths that start with the module say which of its files are meant
            edge(module, path, line, "::*" if alias == "*" else "")
        for path, line in module.paths:
            if workspace_crate(path[0]) and path[0] not in module.children:
                crate.outside.append((path[0], module.file, line))
            else:
                edge(module, path, line)
    return edges


def names_module(module: Module, path: tuple[str, ...]) -> bool:
    to = resolve(module, path, Search())
    return to is not None and bool(to.path) and path[-1] in (to.path[-1], "super", "self")


def workspace_crate(word: str) -> bool:
    return word.startswith("templar_")


def circles(edges: Edges) -> list[list[pathlib.Path]]:
    """The strongly connected components of more than one file (Tarjan)."""
    index: dict[pathlib.Path, int] = {}
    low: dict[pathlib.Path, int] = {}
    stack: list[pathlib.Path] = []
    found: list[list[pathlib.Path]] = []

    def visit(node: pathlib.Path) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for to in edges[node]:
            if to not in index:
                visit(to)
                low[node] = min(low[node], low[to])
            elif to in stack:
                low[node] = min(low[node], index[to])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def describe(crate: Crate, edges: Edges, circle: list[pathlib.Path], root: pathlib.Path) -> str:
    names = [file.relative_to(crate.folder / "src").as_posix().removesuffix(".rs") for file in circle]
    lines = [f"{crate.name}: files import each other in a circle: {' – '.join(names)}"]
    for file in circle:
        for to, (line, what) in sorted(edges[file].items()):
            if to in circle:
                lines.append(f"  {file.relative_to(root)}:{line}: `{what}` leads to {to.relative_to(crate.folder / 'src')}")
    return "\n".join(lines)


def floor_errors(crates: list[Crate], root: pathlib.Path) -> list[str]:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    errors = []

    def check(crate: str, to: str, where: str) -> None:
        if to == crate or crate in OUTSIDE:
            return
        if to not in floor:
            errors.append(f"{where}: templar-{to} has no floor; give it one in tools/check_circles.py")
        elif floor[to] <= floor[crate]:
            errors.append(f"{where}: {crate} imports {to}, which is not below it (tools/check_circles.py, FLOORS)")
        elif crate not in ONLY_FOR.get(to, {crate}):
            errors.append(f"{where}: {crate} imports {to}, which only {', '.join(sorted(ONLY_FOR[to]))} may")

    for crate in crates:
        if crate.name not in floor and crate.name not in OUTSIDE:
            errors.append(f"{crate.folder.relative_to(root)}: this crate has no floor; give it one in tools/check_circles.py")
            continue
        for name, file, line in crate.outside:
            check(crate.name, name.removeprefix("templar_"), f"{file.relative_to(root)}:{line}")
        manifest = tomllib.loads((crate.folder / "Cargo.toml").read_text(encoding="utf-8"))
        tables = [manifest, *manifest.get("target", {}).values()]
        for name in [name for table in tables for name in table.get("dependencies", {})]:
            if name.startswith("templar-"):
                check(crate.name, name.removeprefix("templar-"), f"{(crate.folder / 'Cargo.toml').relative_to(root)}")
    return list(dict.fromkeys(errors))


def check(root: pathlib.Path, only: str | None = None) -> list[str]:
    folders = sorted(path.parent for path in (root / "crates").glob("*/Cargo.toml"))
    crates = [Crate(folder) for folder in folders if only in (None, folder.name)]
    errors = []
    for crate in crates:
        edges = edges_of(crate)
        errors += [describe(crate, edges, circle, root) for circle in circles(edges)]
    return errors if only else errors + floor_errors(crates, root)


def self_test() -> None:
    """Small trees whose answers are known: the checker must report each correctly."""

    def run(files: dict[str, str]) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = pathlib.Path(folder) / "crates" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                manifest = path.parents[len(path.relative_to(pathlib.Path(folder) / "crates").parts) - 2] / "Cargo.toml"
                if not manifest.exists():
                    manifest.write_text("[package]\n", encoding="utf-8")
            return check(pathlib.Path(folder))

    def expect(name: str, files: dict[str, str], *parts: str) -> None:
        errors = run(files)
        text = "\n".join(errors)
        wrong = [part for part in parts if part not in text] if parts else errors
        if wrong or (parts and len(errors) != 1):
            sys.exit(f"self-test, {name}: expected {list(parts) or 'nothing'}, got:\n{text or 'nothing'}")

    lib = "mod a;\nmod b;\npub use a::A;\npub use b::B;\n"
    expect(
        "two files",
        {"node/src/lib.rs": lib, "node/src/a.rs": "use crate::b::B;\npub struct A(B);", "node/src/b.rs": "use crate::a::A;\npub struct B;"},
        "circle: a – b", "a.rs:1: `crate::b::B`", "b.rs:1: `crate::a::A`",
    )  # fmt: skip
    expect(
        "one way only",
        {"node/src/lib.rs": lib, "node/src/a.rs": "use crate::b::B;\npub struct A(B);", "node/src/b.rs": "pub struct B;"},
    )
    expect(
        "re-exported names lead to the file that defines them",
        {"node/src/lib.rs": lib, "node/src/a.rs": "use crate::B;\npub struct A(B);", "node/src/b.rs": "pub struct B;\nfn f(_: &crate::A) {}"},
        "circle: a – b", "a.rs:1: `crate::B`", "b.rs:2: `crate::A`",
    )  # fmt: skip
    expect(
        "groups, aliases of modules and paths in code",
        {
            "node/src/lib.rs": "mod a;\nmod b;\nmod c;",
            "node/src/a.rs": "use crate::{b as other, c::{self, C}};\npub struct A;\nfn f() { other::g(); c::h(); let _ = C; }",
            "node/src/b.rs": "pub fn g() {}\npub fn h(_: super::a::A) {}",
            "node/src/c.rs": "pub struct C;\npub fn h() {}",
        },
        "circle: a – b", "a.rs:3: `other::g`", "b.rs:2: `super::a::A`",
    )  # fmt: skip
    expect(
        "a parent and its child",
        {
            "node/src/lib.rs": "pub mod a;",
            "node/src/a.rs": "mod inner;\npub const X_MAX: u32 = 1;\npub fn f() { inner::g() }",
            "node/src/a/inner.rs": "use super::X_MAX;\npub fn g() { let _ = X_MAX; }",
        },
        "circle: a/inner – a", "a.rs:3: `inner::g`", "a/inner.rs:1: `super::X_MAX`",
    )  # fmt: skip
    expect(
        "a parent that only passes on",
        {
            "node/src/lib.rs": "pub mod a;",
            "node/src/a.rs": "mod inner;\npub use inner::g;\npub const X_MAX: u32 = 1;",
            "node/src/a/inner.rs": "use super::X_MAX;\npub fn g() { let _ = X_MAX; }",
        },
    )
    expect(
        "a room that passes a name on",
        {
            "node/src/lib.rs": "pub mod a;\nmod b;",
            "node/src/a.rs": "mod inner;\npub use inner::Inner;\nuse crate::b::B;\nfn f(_: B) {}",
            "node/src/a/inner.rs": "pub struct Inner;",
            "node/src/b.rs": "use crate::a::Inner;\npub struct B(Inner);",
        },
        "circle: a – b", "b.rs:1: `crate::a::Inner` leads to a.rs",
    )  # fmt: skip
    expect(
        "comments, strings and tests are not imports",
        {
            "node/src/lib.rs": lib,
            "node/src/a.rs": "use crate::b::B;\npub struct A(B);",
            "node/src/b.rs": "/// See [`crate::a::A`].\n// use crate::a::A;\n/* use crate::a::A; */\n"
            'pub struct B;\nconst S: &str = "use crate::a::A;";\nconst R: &str = r#"crate::a::A"#;\n'
            "#[cfg(test)]\nmod tests {\n use crate::a::A;\n fn f() { let _ = '{'; }\n}\n#[cfg(test)]\nuse crate::a::A;\n",
        },
    )
    expect(
        "what follows a test is read",
        {
            "node/src/lib.rs": lib,
            "node/src/a.rs": "use crate::b::B;\npub struct A(B);",
            "node/src/b.rs": "#[cfg(test)]\nmod tests { fn f<'a>(_: &'a str) {} }\npub struct B;\nfn g(_: crate::a::A) {}",
        },
        "circle: a – b", "b.rs:4",
    )  # fmt: skip
    expect("upwards", {"node/src/lib.rs": "use templar_sim::World;", "sim/src/lib.rs": ""}, "lib.rs:1: node imports sim")
    expect("sideways", {"crusade/src/lib.rs": "fn f() { templar_grail::f() }", "grail/src/lib.rs": ""}, "crusade imports grail")
    expect("downwards", {"node/src/lib.rs": "use templar_protocol::RunSpec;", "protocol/src/lib.rs": ""})
    expect("no floor", {"attic/src/lib.rs": ""}, "crates/attic: this crate has no floor")
    print("self-test passed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crate", help="look at one crate only")
    parser.add_argument("--edges", metavar="CRATE", help="print every edge of one crate")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="the workspace (default: this script's own)")
    args = parser.parse_args()
    if args.self_test:
        self_test()
        return 0
    root = args.root.resolve()
    if args.edges:
        crate = Crate(root / "crates" / args.edges)
        for file, to in sorted(edges_of(crate).items()):
            for target, (line, what) in sorted(to.items()):
                print(f"{file.relative_to(root)}:{line}: {what} -> {target.relative_to(crate.folder / 'src')}")
        return 0
    errors = check(root, args.crate)
    print("\n".join(errors) or "no circles; every import goes downwards")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
