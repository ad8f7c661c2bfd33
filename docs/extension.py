"""What the site needs beyond Sphinx, MyST-NB and furo; none of it asks the network, now or in the reader's browser.

Drawings (Mermaid, by mermaidx) and equations (MathML, by latex2mathml) are made while the site is built. Parameters are documented
from the comments beside them, the page of numbers from `figures/results.json`, and a dead link of the built site is an error."""
import functools
import html
import inspect
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from docutils import nodes
from docutils.parsers.rst.directives.images import Figure
from fastcore.docments import docments
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "figures"  # with results.json of the run in git; those of other runs, and some figures, in folders of their name


# Pages
def write_pages(app, config):
    "docs/api/MODULE.rst for each module, docs/chapters/CHAPTER.ipynb for each chapter; what is there and the same stays."
    pages = {f"api/{path.stem}.rst": api_page(path.stem) for path in ROOT.glob("omnijet/*.py") if not path.stem.startswith("_")}
    pages |= {f"chapters/{path.name}": without_directives(path) for path in ROOT.glob("nbs/*.ipynb")}
    for folder in "api", "chapters":
        Path(app.srcdir, folder).mkdir(exist_ok=True)
        for path in Path(app.srcdir, folder).glob("*.*"):
            if f"{folder}/{path.name}" not in pages:
                path.unlink()
    for name, text in pages.items():
        path = Path(app.srcdir, name)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def api_page(module: str) -> str:
    source = (ROOT / f"omnijet/{module}.py").read_text(encoding="utf-8")
    chapter = re.search(r"File to edit: \S*?(\w+)\.ipynb", source)[1]
    return f"{module}\n{'=' * len(module)}\n\nFrom chapter :doc:`/chapters/{chapter}`.\n\n.. automodule:: omnijet.{module}\n"


def without_directives(path: Path) -> str:
    "A chapter with its number, without nbdev's lines (`#| export`) and cells that hold nothing else."
    notebook, number = json.loads(path.read_text(encoding="utf-8")), path.stem.partition("_")[0]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown" and number:
            cell["source"], found = re.subn(r"^# ", f"# {number} ", "".join(cell["source"]), count=1)
            number = "" if found else number
        if cell["cell_type"] == "code":
            cell["source"] = re.sub(r"^#\|.*\n?", "", "".join(cell["source"]), flags=re.M).strip("\n")
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["source"] or cell.get("outputs")]
    return json.dumps(notebook)


# API
def as_rst(text: str) -> str:
    "A plain sentence, with code between backticks, as reStructuredText."
    parts = re.split(r"`+", text)
    return "".join(f"``{part}``" if i % 2 and part.strip() else re.sub(r"([*_|\\])", r"\\\1", part) for i, part in enumerate(parts))


def add_parameters(app, what, name, obj, options, lines):
    "Behind a docstring, what the comments beside its parameters say."
    lines[:] = [as_rst(line) for line in lines]
    if what not in ("function", "method", "class"):
        return
    if isinstance(obj, type) and not lines and obj.__doc__ is None:
        return
    try:
        found = docments(getattr(obj, "__func__", obj), full=True, eval_str=False)
    except Exception:  # without source or signature, such as a built-in: nothing to add
        return
    rows = [(key, of["docment"]) for key, of in found.items() if of.get("docment")]
    if rows:
        lines += ["", *(f":{'returns' if key == 'return' else 'param ' + key}: {as_rst(' '.join(text.split()))}" for key, text in rows), ""]


def is_field(app, what, name, member, skip, options):
    "Fields of a class stand among its parameters already."
    return True if what == "class" and not (inspect.isroutine(member) or isinstance(member, (property, functools.cached_property))) else None


# Drawings and equations
class Mermaid(SphinxDirective):
    "A drawing as SVG in the page; its text stays readable where it cannot be drawn."
    has_content = True

    def run(self):
        text = "\n".join(self.content)
        try:
            picture = draw(text)
        except Exception as error:
            raise self.error(f"cannot draw {text.splitlines()[0]!r}: {error}") from error
        label = html.escape(", ".join(text.split("\n")[1:]).replace("    ", ""))
        return [nodes.raw("", f'<div class="mermaid" role="img" aria-label="{label}">{picture}</div>', format="html")]


@functools.cache
def draw(text: str) -> str:
    import mermaidx
    picture = mermaidx.render(text).svg()
    return picture[picture.index("<svg"):]


def mathml(tex: str, display: str) -> str:
    from latex2mathml.converter import convert
    return convert(tex.strip(), display=display)


def visit_inline_math(self, node):
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block_math(self, node):
    tex, tags = re.sub(r"\\tag\{.*?\}", "", node.astext()), re.findall(r"\\tag\{(.*?)\}", node.astext())
    number = tags[0] if tags else node["number"]
    number = f'<span class="eqno">({number})</span>' if number else ""
    self.body.append(f'<div class="math">{number}{mathml(tex, "block")}</div>')
    raise nodes.SkipNode


# Numbers
class Numbers(SphinxDirective):
    """The numbers of the run in git that have the paper's beside them (or those of the keys that are the content).

    Option `chapter`: of that one alone; `of`: of another run, by the name of its folder in figures/."""
    has_content, option_spec = True, {"chapter": str, "of": str}

    def run(self):
        from omnijet.statistics import read_numbers, select, show
        results = FIGURES / self.options.get("of", "") / "results.json"
        self.env.note_dependency(str(results))
        numbers = read_numbers(results, self.options.get("chapter"))
        keys = " ".join(self.content).split()
        chosen = select(numbers, *keys) if keys else [n for n in numbers if n["paper"] is not None]
        return [nodes.raw("", f'<div class="table-wrapper">{show(chosen, len(chosen)).data}</div>'.replace("<table>", '<table class="docutils">'), format="html")]


FACTS = "preset", "seed", "device", "git_commit", "date"  # what results.json says of each chapter; an older one of the last call alone


def run_facts(of: str = "") -> dict:  # a folder in figures/
    return json.loads((FIGURES / of / "results.json").read_text(encoding="utf-8"))


def facts_of(run: dict, chapter: str) -> dict:
    "What made a chapter's numbers; where its entry does not say, what the last call was."
    return {key: run["chapters"].get(chapter, {}).get(key, run.get(key)) for key in FACTS}


def kind(facts: dict) -> tuple:
    return facts["preset"], facts["device"]


def main_kind(run: dict) -> tuple:
    "Preset and device of most chapters."
    kinds = [kind(facts_of(run, chapter)) for chapter in run["chapters"]] or [kind(run)]
    return max(kinds, key=kinds.count)


def about_run(run: dict) -> str:
    "Preset, device, dates and commits of most chapters, and which ones are of another run."
    main, found = main_kind(run), {chapter: facts_of(run, chapter) for chapter in run["chapters"]}
    told = all("date" in of for of in run["chapters"].values())
    mine = [facts for facts in found.values() if told and kind(facts) == main] or [run]
    seeds, days = sorted({facts["seed"] for facts in mine}), sorted({facts["date"][:10] for facts in mine})
    commits = dict.fromkeys(str(facts["git_commit"])[:10] for facts in sorted(mine, key=lambda facts: facts["date"]))
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    text = (f"Run: preset {main[0]}, seed {', '.join(map(str, seeds))}, on {main[1]}; {'chapters run' if told else 'last call'} {' to '.join(dict.fromkeys([days[0], days[-1]]))}, "
            f"commit{'s' * (len(commits) > 1)} {', '.join(commits)} ({versions}).")
    if any(" -p " in of.get("command", "") for of in (run, *run["chapters"].values())):
        text += " Parameters that differ from the preset's stand in figures/results.json (command)."
    for other in dict.fromkeys(map(kind, found.values())):
        if other != main:
            names = ", ".join(chapter for chapter, facts in found.items() if kind(facts) == other)
            text += f" Of another run, preset {other[0]}, on {other[1]}: {names}."
    return text


class Run(SphinxDirective):
    "Which run the figures and numbers are of; option `of`: another one, by the name of its folder in figures/."
    option_spec = {"of": str}

    def run(self):
        of = self.options.get("of", "")
        self.env.note_dependency(str(FIGURES / of / "results.json"))
        return [nodes.paragraph("", about_run(run_facts(of)))]


class RunFigure(Figure):
    """A figure of the run in git; its caption ends with the preset, the device and the jets that it rests on.

    Option `jets`: numbers of these jets, e.g. `mass_sigma jet_class=TTBar`; `earlier-jets`: how many they were, while the figure is of an earlier run."""
    option_spec = Figure.option_spec | {"jets": str.split, "earlier-jets": int}

    def run(self):
        png = (Path(self.state.document.current_source).parent / self.arguments[0]).resolve()
        self.content[-1] += f" {about_figure(origin_of(png), run_facts(png.parent.relative_to(FIGURES)), self.options.pop('jets'), self.options.pop('earlier-jets', None))}"
        return super().run()


def about_figure(origin: dict, run: dict, jets: list, earlier_jets: int = None) -> str:
    "Preset, device and number of jets of a figure, from what it says itself; `jets`: key and fields (`chapter` among them) of numbers that rest on the same jets."
    key, *fields = jets
    fields = [field.split("=") for field in fields]
    sizes, chapter = next(
        (found, chapter) for chapter, of in run["chapters"].items()
        if (found := {n["n_jets"] for n in of.get("numbers", []) if n["key"] == key and all(str({**n, "chapter": chapter}.get(name)) == x for name, x in fields)}))
    numbers_of = kind(facts_of(run, chapter))
    made_by = preset_of(origin["command"]) or numbers_of[0], origin["device"]
    sizes = sizes if made_by == numbers_of else {earlier_jets} - {None}
    text = f"reset {made_by[0]}; {made_by[1]}"
    if sizes:
        text += f"; {' to '.join(f'{size:,}' for size in sorted({min(sizes), max(sizes)}))} jets"
    return f"P{text}." if made_by == main_kind(run) else f"Of an earlier run: p{text}."


def preset_of(command: str):
    "The preset that a command names; None for what is no `omnijet run`, as a notebook."
    words = shlex.split(command)
    if words[1:2] != ["run"]:
        return None
    named = re.search(r"--preset[ =](\S+)", " ".join(words))
    return Path(named[1]).stem if named else "smoke"


def origin_of(png: Path) -> dict:
    "What `save_figure` noted in a picture: command, commit, device, versions."
    data, at = png.read_bytes(), 8
    while at < len(data):
        size, kind = int.from_bytes(data[at:at + 4], "big"), data[at + 4:at + 8]
        name, _, text = data[at + 8:at + 8 + size].partition(b"\0")
        if kind == b"tEXt" and name == b"Keywords":
            return json.loads(text)
        at += size + 12
    raise ExtensionError(f"{png}: does not say which command made it")


# Links
class Page(HTMLParser):
    "The addresses that a page names, and the anchors that it has."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and tag not in ("base",) and value:
                self.links.add(value)
            if name in ("id", "name") and value:
                self.anchors.add(value)


def dead_links(site: Path) -> list:
    "Links of a built site to pages, files and anchors of its own that are not there."
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    dead = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            there = target.exists() and (not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].anchors)
            if not there:
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


def check_links(app, exception):
    if exception is None and app.builder.format == "html" and (dead := dead_links(Path(app.outdir).resolve())):
        raise ExtensionError(f"{len(dead)} dead links:\n" + "\n".join(dead))


def setup(app):
    app.add_directive("mermaid", Mermaid)
    app.add_directive("numbers", Numbers)
    app.add_directive("run", Run)
    app.add_directive("run-figure", RunFigure)
    app.add_html_math_renderer("mathml", (visit_inline_math, None), (visit_block_math, None))
    app.connect("config-inited", write_pages)
    app.connect("autodoc-process-docstring", add_parameters)
    app.connect("autodoc-skip-member", is_field)
    app.connect("build-finished", check_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
