"""The documentation as its sources say it is: all chapters are in it, links lead somewhere, what it tells to type works."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
CHAPTERS = sorted((ROOT / "nbs").glob("*.ipynb"))


def markdown(path):
    "The text of a page or of a chapter's text cells, without its code."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return re.sub(r"```(?!\{run-figure\}).*?```|`[^`\n]+`", "", text, flags=re.S)


@pytest.mark.parametrize("path", [*PAGES, *CHAPTERS, *ROOT.glob("*.md"), *ROOT.glob("omnijet/pretrained/*/README.md")], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(path):
    text = markdown(path)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"\{run-figure\} (\S+)", text)
    for link in links:
        address = link.partition("#")[0]
        if not re.match(r"[a-z]+:", address) and address:
            target = path.parent / address
            if path.parent == DOCS and address.startswith("chapters/"):     # copied from nbs when the site is built
                target = ROOT / "nbs" / address.removeprefix("chapters/")
            assert target.exists(), link


def test_every_page_is_in_the_table_of_contents():
    trees = re.findall(r"```\{toctree\}(.*?)```", "".join(page.read_text(encoding="utf-8") for page in PAGES), flags=re.S)
    entries = {line.strip() for tree in trees for line in tree.splitlines() if line.strip() and not line.startswith(":")}
    assert {"chapters/*", "api/*"} < entries
    assert {page.stem for page in PAGES} - {"index"} == entries - {"chapters/*", "api/*"}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_begins_with_its_title(chapter):
    first = json.loads(chapter.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown" and "".join(first["source"]).startswith("# ")


def test_every_chapter_and_module_becomes_a_page(tmp_path):
    sys.path.insert(0, str(DOCS))
    try:
        extension = pytest.importorskip("extension", reason="the extra docs is not installed")
    finally:
        sys.path.remove(str(DOCS))
    extension.write_pages(type("App", (), {"srcdir": tmp_path}), None)
    assert {path.name for path in tmp_path.glob("chapters/*")} == {path.name for path in CHAPTERS}
    modules = {path.stem for path in ROOT.glob("omnijet/*.py") if not path.stem.startswith("_")}
    assert {path.stem for path in tmp_path.glob("api/*")} == modules
    for path in tmp_path.glob("chapters/*"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        titles = [line for cell in cells if cell["cell_type"] == "markdown" for line in "".join(cell["source"]).splitlines() if line.startswith("# ")]
        assert len(titles) == 1 and titles[0].startswith(f"# {path.stem.partition('_')[0]} "), titles
        assert not any(line.startswith("#|") for cell in cells for line in "".join(cell["source"]).splitlines())
    for address, there in ("a.html#here", True), ("a.html#nowhere", False), ("b.html", False), ("#here", True), ("https://x.org", True):
        (tmp_path / "a.html").write_text(f'<p id="here"><a href="{address}">x</a></p>')
        assert (extension.dead_links(tmp_path) == []) == there


def test_pictures_of_pages_say_which_run_made_them(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    extension = pytest.importorskip("extension", reason="the extra docs is not installed")
    pictures = {picture for page in PAGES for picture in re.findall(r"\{run-figure\} (\S+)", page.read_text(encoding="utf-8"))}
    assert len(pictures) > 5
    for picture in pictures:
        assert {"command", "git_commit", "device"} <= extension.origin_of(DOCS / picture).keys()


@pytest.mark.parametrize("page", ["start", "own_jets"])
def test_what_a_page_tells_to_type_works(page, tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), flags=re.S))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path, "OMNIJET_HEADLESS": "1", "TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
