"""The house as its sources say it is: sizes of modules, who imports whom, how a chapter is written."""
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# a module imports only from those before it
MODULES = ["files", "formats", "data", "simulation", "observables", "statistics", "training", "models", "vqvae", "token_quality",
           "gpt", "generation", "flow_matching", "transfer", "masked", "public_jets", "panels", "playground", "gallery", "widgets", "run", "shipping", "showers", "speed"]
CHAPTERS = sorted((ROOT / "nbs").glob("*.ipynb"))
modules = pytest.mark.parametrize("module", MODULES)
chapters = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


def cells(chapter, kind="code"):
    return [c for c in json.loads(chapter.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def parsed(chapter):
    "(text, syntax tree) of each code cell that is Python."
    for cell in cells(chapter):
        yield source(cell), ast.parse(source(cell))


def test_every_chapter_has_a_module_in_this_list():
    found = [re.search(r"default_exp (\w+)", "".join(map(source, cells(path))))[1] for path in CHAPTERS]
    assert sorted(found) == sorted(MODULES)


@modules
def test_no_module_over_700_lines(module):
    assert len((ROOT / "omnijet" / f"{module}.py").read_text(encoding="utf-8").splitlines()) <= 700


def imported_modules(tree):
    "(node, module of the package, name by which the code has it or None) of each import of another module, however it is written."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            package = node.level == 1 or (node.module or "").partition(".")[0] == "omnijet"
            module = (node.module or "").removeprefix("omnijet").removeprefix(".")
            if package and module:
                yield node, module.partition(".")[0], None
            elif package:  # from omnijet import x
                yield from ((node, name.name, name.asname or name.name) for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.Import):  # import omnijet.x, import omnijet.x as y
            yield from ((node, name.name.split(".")[1], name.asname or name.name) for name in node.names if name.name.startswith("omnijet."))


def later_modules(tree):
    "{name: module} of modules that are imported when something of them is used: `files = _Later('omnijet.files')`."
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Name, ast.Tuple)):
            targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            for target, value in zip(targets, values):
                words = [x.value for x in ast.walk(value) if isinstance(x, ast.Constant) and isinstance(x.value, str)]
                if isinstance(value, ast.Call) and len(words) == 1 and words[0].removeprefix("omnijet.") in MODULES:
                    found[ast.unparse(target)] = words[0].removeprefix("omnijet.")
    return found


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def breaches(text, module):
    "What a module takes from modules behind it, and the private names that it takes from any other."
    tree, found = ast.parse(text), []
    names = {f"omnijet.{other}": other for other in MODULES} | later_modules(tree)
    for node, other, name in imported_modules(tree):
        if other not in MODULES or MODULES.index(other) > MODULES.index(module):  # itself: for other processes
            found.append(f"line {node.lineno}: {module} imports {other}")
        if name is None:
            found += [f"line {node.lineno}: from {other} import {x.name}" for x in node.names if is_private(x.name)]
        else:
            names[name] = other
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) in names:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@modules
def test_imports_lead_upwards_and_name_nothing_private(module):
    assert not breaches((ROOT / "omnijet" / f"{module}.py").read_text(encoding="utf-8"), module)


@pytest.mark.parametrize("text, found", [
    ("from omnijet.data import Ragged\nfrom .files import atomic\nimport omnijet\nimport omnijet.data\nfrom . import files as f\nf.atomic\nself._files", 0),
    ("from omnijet import run", 1), ("import omnijet.run", 1), ("import omnijet.run as r", 1), ("from . import run", 1), ("from .run import main", 1),
    ("def late():\n    from omnijet import run, data", 1), ("from omnijet.run import (\n    main,\n)", 1),
    ("from omnijet import files\nfiles._alone(1)", 1), ("import omnijet.data\nomnijet.data._parts", 1), ("import omnijet.data as d\nd._parts()", 1),
    ("from .files import _alone as alone", 1), ("from omnijet.files import atomic, _alone", 1), ("files = Later('omnijet.files')\nfiles._alone", 1),
    ("a, b = Later('omnijet.files'), Later('omnijet.data')\na.atomic\nb._parts", 1),
])
def test_every_way_to_import_is_seen(text, found):
    assert len(breaches(text, "training")) == found


@chapters
def test_code_lines_have_at_most_100_characters(chapter):
    long = [line for cell in cells(chapter) for line in source(cell).splitlines() if len(line) > 100]
    assert not long, "\n".join(long)


@chapters
def test_one_statement_a_line_and_no_assigned_lambdas(chapter):
    wrong = []
    for text, tree in parsed(chapter):
        first = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt):
                line = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                wrong += [text.splitlines()[line - 1]] if line in first else []
                first[line] = node
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                wrong.append(text.splitlines()[node.lineno - 1])
    assert not wrong, "\n".join(wrong)


@chapters
def test_no_conditional_stands_as_a_statement(chapter):
    assert not [ast.unparse(node) for _, tree in parsed(chapter) for node in ast.walk(tree)
                if isinstance(node, ast.Expr) and isinstance(node.value, (ast.IfExp, ast.BoolOp))]


@chapters
def test_no_method_is_assigned_to_its_class(chapter):
    classes = {node.name for _, tree in parsed(chapter) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for text, tree in parsed(chapter):
        if "#| export" not in text:
            continue
        for node in tree.body:
            for target in node.targets if isinstance(node, ast.Assign) else []:
                owner = target.value.id if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) else None
                assert owner not in classes, ast.unparse(node)


@chapters
def test_a_chapter_says_where_we_are_and_what_it_reads_and_writes(chapter):
    first = source(cells(chapter, "markdown")[0])
    assert first.startswith("# ") and "\n> " in first
    assert any("```mermaid" in source(cell) for cell in cells(chapter, "markdown")[:3])
    names = {t.id for text, tree in parsed(chapter) if text.startswith("#| default_exp") for n in tree.body for t in n.targets}
    assert names == {"reads", "writes"}


@pytest.mark.parametrize("words", [r"(?<![\w.])/(root|home|Users)/\w", "Hanley"])
def test_the_text_speaks_of_the_project(words):
    files = [*CHAPTERS, *ROOT.glob("*.md"), *ROOT.glob("omnijet/*.py"), *ROOT.glob("nbs/presets/*.yaml")]
    assert not [path.name for path in files if re.search(words, path.read_text(encoding="utf-8"))]
