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


@modules
def test_imports_lead_upwards_and_name_nothing_private(module):
    tree = ast.parse((ROOT / "omnijet" / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").startswith("omnijet.")):
            other = (node.module or "").removeprefix("omnijet.")
            private = [name.name for name in node.names if name.name.startswith("_") and not name.name.endswith("__")]
            assert not private, f"line {node.lineno}: from {other} import {', '.join(private)}"
            if other:
                assert MODULES.index(other) <= MODULES.index(module), f"line {node.lineno}: {module} imports {other}"  # itself: for other processes


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
