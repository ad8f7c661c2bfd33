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


def test_addresses_elsewhere_are_asked_every_week():
    "A dead one fails the job; the job that builds the site does not wait for others' servers."
    yaml = pytest.importorskip("yaml")
    jobs = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    asking = {name: [step for job in of["jobs"].values() for step in job["steps"] if "linkcheck" in step.get("run", "")] for name, of in jobs.items()}
    assert [name for name, steps in asking.items() if steps] == ["links"]
    assert jobs["links"][True]["schedule"] and all("continue-on-error" not in of for of in (*asking["links"], *jobs["links"]["jobs"].values()))  # YAML 1.1 takes "on" for true


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


@pytest.fixture
def extension(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    return pytest.importorskip("extension", reason="the extra docs is not installed")


def figures_of_pages():
    "(picture, {option: words}) of each figure of the run in the pages."
    for page in PAGES:
        for picture, block in re.findall(r"\{run-figure\} (\S+)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
            yield picture, dict(re.findall(r"^:([\w-]+): (.+)$", block, flags=re.M))


def test_pictures_of_pages_say_which_run_made_them(extension):
    "Preset and device as the picture's own command says them, and jets that its chapter counted; nothing longer than a line."
    figures = list(figures_of_pages())
    assert len(figures) > 12 and all(len(options["alt"]) > 20 for _, options in figures)
    for picture, options in figures:
        run = extension.run_facts((DOCS / picture).resolve().parent.relative_to(extension.FIGURES))
        counted = {n["n_jets"] for chapter in run["chapters"].values() for n in chapter["numbers"]}
        origin = extension.origin_of(DOCS / picture)
        told = extension.about_figure(origin, run, options["jets"].split(), options.get("earlier-jets") and int(options["earlier-jets"]))
        earlier, preset, device, jets = re.fullmatch(r"(Of an earlier run: )?[Pp]reset (\S+); (.+); ([\d,]+(?: to [\d,]+)?) jets\.", told).groups()
        assert f"--preset {preset} " in origin["command"] + " " and device == origin["device"] and len(told) < 100
        assert bool(earlier) == ((preset, device) != extension.main_kind(run)), told
        assert {int(size.replace(",", "")) for size in jets.split(" to ")} <= ({int(options["earlier-jets"])} if earlier else counted)


def results(**chapters):
    "results.json of a run whose last call made one chapter; of the chapters what is given."
    number = {"key": "accuracy", "sample": "original", "n_jets": 1200}
    facts = {"preset": "gpu", "seed": 1, "device": "CPU, 2 cores", "git_commit": "a" * 40, "date": "2026-01-02T03:04:05+0000"}
    chapters = {name: {"numbers": [number]} | (facts | changes if changes is not None else {}) for name, changes in chapters.items()}
    return facts | {"versions": {"omnijet": "0.2.0"}, "command": "omnijet run --preset gpu --only 01 -p x=1", "git_commit": "b" * 40, "chapters": chapters}


PICTURE = {"command": "omnijet run --preset gpu --jobs 2 -p 'a={b: 1}'", "device": "CPU, 2 cores", "git_commit": "c" * 40}


@pytest.mark.parametrize("chapters, changes, expected", [
    ({"a": {}, "b": {}}, {}, "Preset gpu; CPU, 2 cores; 1,200 jets."),  # another commit alone is no other run
    ({"a": None, "b": None}, {}, "Preset gpu; CPU, 2 cores; 1,200 jets."),  # results.json of a version that did not say it
    ({"a": {}, "b": {}}, {"device": "NVIDIA H100"}, "Of an earlier run: preset gpu; NVIDIA H100."),
    ({"a": {}, "b": {}}, {"command": "omnijet run --preset=mine/laptop.yaml"}, "Of an earlier run: preset laptop; CPU, 2 cores."),
    ({"a": {}, "b": {}}, {"command": "omnijet run --jobs 2"}, "Of an earlier run: preset smoke; CPU, 2 cores."),
    ({"a": {}, "b": {}}, {"command": "a notebook"}, "Preset gpu; CPU, 2 cores; 1,200 jets."),
    ({"a": {"preset": "laptop"}, "b": {}, "c": {}}, {"command": "omnijet run --preset laptop"}, "Of an earlier run: preset laptop; CPU, 2 cores; 1,200 jets."),
    ({"a": {"device": "NVIDIA H100"}, "b": {}, "c": {}}, {}, "Preset gpu; CPU, 2 cores."),  # these numbers are not of this picture
])
def test_captions_of_figures(extension, chapters, changes, expected):
    assert extension.about_figure(PICTURE | changes, results(**chapters), ["accuracy", "sample=original", "chapter=a"]) == expected


def test_jets_of_captions(extension):
    run = results(a={}, b={})
    run["chapters"]["b"]["numbers"] = [{"key": "accuracy", "size": 10, "n_jets": 500}, {"key": "accuracy", "size": 20, "n_jets": 20_000}, {"key": "accuracy", "size": 20, "n_jets": 1000}]
    assert extension.about_figure(PICTURE, run, ["accuracy", "chapter=b"]).endswith("; 500 to 20,000 jets.")
    assert extension.about_figure(PICTURE, run, ["accuracy", "size=10"], 7).endswith("; 500 jets.")
    assert extension.about_figure(PICTURE | {"device": "x"}, run, ["accuracy", "size=10"], 7) == "Of an earlier run: preset gpu; x; 7 jets."


def test_what_a_page_says_of_the_run(extension):
    "Not the last call's command, which may have made one chapter of many."
    told = extension.about_run(results(a={"git_commit": "c" * 40, "date": "2026-01-01"}, b={}, c={"preset": "laptop", "seed": 3}))
    assert told.startswith("Run: preset gpu, seed 1, on CPU, 2 cores; chapters run 2026-01-01 to 2026-01-02, commits cccccccccc, aaaaaaaaaa (omnijet 0.2.0).")
    assert told.endswith("Of another run, preset laptop, on CPU, 2 cores: c.") and "differ from the preset's" in told and "--only" not in told
    assert "; last call 2026-01-02, commit bbbbbbbbbb (" in extension.about_run(results(a=None, b={}))
    now = extension.about_run(extension.run_facts())
    assert "--only" not in now and len(now) < 600 and extension.run_facts()["preset"] in now


@pytest.mark.parametrize("page", ["start", "own_jets"])
def test_what_a_page_tells_to_type_works(page, tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), flags=re.S))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path, "OMNIJET_HEADLESS": "1", "TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
