"""The widgets as a user meets them: JupyterLab on a free port, headless Chromium, clicks.

Screenshots go to the folder OMNIJET_SCREENSHOTS, if set. The chapters that read a run are opened on a copy of the finished run OMNIJET_TEST_RUN,
with the tokenizer that its backbone reads, and left out where it is not set; their screenshots are those of README (figures/). What is timed is timed only where OMNIJET_TEST_SPEED is set."""
import ast
import inspect
import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
MISSING = [name for name, there in {"chromium": CHROMIUM, "playwright": find_spec("playwright"), "jupyterlab": find_spec("jupyterlab")}.items() if not there]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here: the widgets are not tested in a browser")

FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
RUN = os.environ.get("OMNIJET_TEST_RUN") and Path(os.environ["OMNIJET_TEST_RUN"])
WIDGETS = {"01_vqvae": ["TokenExplorer(", "JetBrowser("], "04_generation": ["GenerationPlayground("], "05_transfer": ["TransferExplorer("]}
MINUTE = 60_000                                                                     # Playwright counts milliseconds


class Notebook:
    "A notebook opened in JupyterLab."

    def __init__(self, page):
        self.page, self.errors = page, []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    def open(self, url):
        self.page.goto(url)
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=2 * MINUTE)
        self.idle()

    def idle(self, timeout=2 * MINUTE):
        self.page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=timeout)

    def command(self, name, arguments="{}", wait=True):
        self.page.evaluate(f"() => {{ const done = window.jupyterapp.commands.execute('{name}', {arguments}); {'return done.then(() => null);' if wait else ''} }}")

    def cells(self):
        "(source, names of errors, has outputs) of each code cell."
        return self.page.evaluate("""() => window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code').map(c => {
            const outputs = c.model.outputs.toJSON();
            return [c.model.sharedModel.source, outputs.filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`), outputs.length > 0]; })""")

    def failures(self):
        return [f"{source.splitlines()[0]}: {error}" for source, errors, _ in self.cells() for error in errors]

    def run(self, chosen):
        "Run the code cells that `chosen(source, tags)` picks, one after the other."
        cells = self.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets.map(c => [c.model.type, c.model.sharedModel.source, c.model.getMetadata('tags') ?? []])")
        for i, (kind, source, tags) in enumerate(cells):
            if kind == "code" and chosen(source, tags):
                self.page.evaluate("i => { window.jupyterapp.shell.currentWidget.content.deselectAll(); window.jupyterapp.shell.currentWidget.content.activeCellIndex = i; }", i)
                self.command("notebook:run-cell")

    def widget(self, source, which="findIndex"):
        "Bring the first cell with this last line (with `findLastIndex` the last one) into view; its outputs."
        found = self.page.evaluate("""async ([source, which]) => {
            const book = window.jupyterapp.shell.currentWidget.content, i = book.widgets[which](c => c.model.sharedModel.source.trim().split("\\n").pop().startsWith(source));
            if (i < 0) return false;
            await book.scrollToItem(i, 'start');
            book.widgets[i].node.setAttribute('data-cell', i);
            return String(i); }""", [source, which])
        assert found, f"no cell ends with {source}"
        cell = self.page.locator(f'[data-cell="{found}"]')
        cell.locator(".jp-OutputArea-output").first.wait_for(timeout=MINUTE)
        return cell

    def shot(self, name, part=None, width=None):
        if not os.environ.get("OMNIJET_SCREENSHOTS"):
            return
        folder = Path(os.environ["OMNIJET_SCREENSHOTS"])
        folder.mkdir(parents=True, exist_ok=True)
        if width:
            self.page.set_viewport_size({"width": width, "height": 1500})
            self.page.evaluate("document.activeElement.blur()")
            self.page.mouse.move(2, 2)
            self.page.wait_for_timeout(500)                                          # it is laid out again
        from PIL import Image                                                        # comes with matplotlib

        picture = Image.open(io.BytesIO((part or self.page).screenshot()))
        picture.convert("RGB").save(folder / f"{name}.png", optimize=True)


FIND = """(canvas, [wanted, step]) => {
    const box = canvas.getBoundingClientRect(), tip = canvas.querySelector(".omnijet-tip"), said = new RegExp(wanted);
    for (let y = 40; y < box.height - 45; y += step) {
        for (let x = 60; x < box.width - 15; x += step) {
            const at = {clientX: box.left + x, clientY: box.top + y};
            canvas.querySelectorAll("canvas")[1].dispatchEvent(new PointerEvent("pointermove", at));
            if (!tip.hidden && said.test(tip.textContent)) return [at.clientX, at.clientY]; } }
    return null; }"""


def point_at_a_mark(page, canvas, wanted="", step=5):
    "Move the mouse to where a canvas' tooltip says what is wanted, a regular expression; (what it says, x, y)."
    for _ in range(3):                                                               # JupyterLab may still be moving the cell
        canvas.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        if at := canvas.evaluate(FIND, [wanted, step]):                               # a mouse takes a frame for each step on the way there
            page.mouse.move(2, 2)
            page.mouse.move(*at)
            tip = canvas.locator(".omnijet-tip")
            if tip.is_visible() and re.search(wanted, tip.inner_text()):
                return tip.inner_text(), *at
    raise AssertionError(f"nothing to point at that says {wanted}")


def lasso(page, canvas):
    "Draw a line around nearly all of a canvas."
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    corners = [(60, 40), (box["width"] - 20, 40), (box["width"] - 20, box["height"] - 60), (60, box["height"] - 60), (60, 50)]
    page.mouse.move(box["x"] + corners[0][0], box["y"] + corners[0][1])
    page.mouse.down()
    for dx, dy in corners[1:]:
        page.mouse.move(box["x"] + dx, box["y"] + dy, steps=5)
    page.mouse.up()


def pixels(canvas):
    return canvas.locator("canvas").first.evaluate("c => c.toDataURL()")


def changes(canvas, before):
    "Wait until a canvas shows something else."
    canvas.page.wait_for_function("([c, before]) => c.toDataURL() !== before", arg=[canvas.locator("canvas").first.element_handle(), before])


def says(locator, text, timeout=MINUTE):
    "Wait until something that the user can read matches `text`, a regular expression."
    from playwright.sync_api import expect

    expect(locator).to_have_text(re.compile(text), timeout=timeout, use_inner_text=True)


def until(page, holds):
    "Wait until a condition on what several parts of the page show is true: they are drawn one after the other."
    end = time.monotonic() + MINUTE / 1000
    while not holds():
        assert time.monotonic() < end, inspect.getsource(holds)
        page.wait_for_timeout(50)


def says_in(canvas, text):
    "Wait until what a canvas is called matches `text`, a regular expression."
    from playwright.sync_api import expect

    expect(canvas).to_have_attribute("aria-label", re.compile(text), timeout=MINUTE)


PARAMETER = r'backbone_tokenizer = \\?"([\w-]+)'


def run_tokenizer(name):
    "The tokenizer that a chapter of the run had as its parameter: the last value that it was given."
    executed = (RUN / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    return re.findall(PARAMETER, executed)[-1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab on a copy of the chapters; the address of a notebook in it."
    folder = tmp_path_factory.mktemp("lab")
    (folder / "nbs").mkdir()
    for path in (ROOT / "nbs").glob("*.ipynb"):
        book = json.loads(path.read_text(encoding="utf-8"))
        for cell in book["cells"]:
            if "outputs" in cell:
                cell["outputs"] = []                                                   # those of the run that the repository keeps
            if "parameters" in cell["metadata"].get("tags", []) and RUN and path.stem in WIDGETS:
                cell["source"] = re.sub(PARAMETER, f'backbone_tokenizer = "{run_tokenizer(path.stem)}', "".join(cell["source"]))
        (folder / "nbs" / path.name).write_text(json.dumps(book), encoding="utf-8")
    if RUN:
        shutil.copytree(RUN, folder / "runs" / "smoke", ignore=shutil.ignore_patterns("notebooks"))
    quiet = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {k: v for k, v in os.environ.items() if k != "OMNIJET_HEADLESS"} | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "JUPYTER_TOKEN": token}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
               f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "lab.log").read_text()
            with socket.socket() as trial:
                trial.settimeout(1)
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/nbs/{name}.ipynb?reset&token={token}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def chapter(lab, browser):
    "The widgets chapter, all cells run."
    book = Notebook(browser.new_page(viewport={"width": 1400, "height": 1500}))
    book.open(lab("06_widgets"))
    book.command("application:toggle-left-area")
    book.command("notebook:run-all-cells")
    book.idle(5 * MINUTE)
    assert not book.failures()
    yield book
    assert not book.errors


def test_next_jet_changes_the_title(chapter):
    cell = chapter.widget("JetBrowser(jets)")
    title = cell.locator("h4").first
    says(title, r"q/g · jet 0 ·")
    before = pixels(cell.locator(".omnijet-canvas").first)
    cell.get_by_role("button", name="Next").click()
    says(title, r"q/g · jet 1 ·")
    cell.locator(".omnijet-canvas:focus").wait_for()                                 # and arrow keys go on from there
    for key, jet in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        chapter.page.keyboard.press(key)
        says(title, rf"q/g · jet {jet} ·")
    chapter.page.evaluate("document.activeElement.blur()")
    cell.locator(".omnijet-canvas").first.click(position={"x": 60, "y": 60})
    chapter.page.keyboard.press("ArrowDown")
    says(title, r"q/g · jet 3 ·")
    changes(cell.locator(".omnijet-canvas").first, before)
    cell.locator("select").select_option(label="t → bqq′")
    says(title, r"t → bqq′ · jet 1600 ·")
    point_at_a_mark(chapter.page, cell.locator(".omnijet-canvas").first)
    says(cell.locator("tr.here").first, r"^\d+\s")
    chapter.shot("06_jet_browser", cell)


def test_mass_of_what_a_lasso_caught_and_its_code(chapter):
    from omnijet.data import sample_jets
    from omnijet.observables import jet_mass, jet_pt

    cell, page = chapter.widget("JetBrowser(jets)"), chapter.page
    title = cell.locator("h4").first
    number = int(re.search(r"jet (\d+)", title.inner_text())[1]) + 1
    cell.get_by_role("button", name="Next").click()
    says(title, rf"jet {number} ·")
    lasso(page, cell.locator(".omnijet-canvas").first)
    says(cell, r"\d+ selected: mass [\d.]+ GeV, pT [\d.]+ GeV")
    until(page, lambda: f"{cell.locator('tr.here').count()} selected:" in cell.inner_text())
    chosen = [int(row.inner_text()) for row in cell.locator("tr.here td:first-child").all()]
    some = sample_jets(max_jets=200).constituents[number:number + 1][:, chosen]
    mass, pt = jet_mass(some)[0], jet_pt(some)[0]
    assert len(chosen) > 3 and f"{len(chosen)} selected: mass {mass:.1f} GeV, pT {pt:.1f} GeV" in cell.inner_text()
    chapter.shot("06_jet_browser_lasso", cell)
    cell.get_by_role("button", name="Code").click()
    says(cell.locator("pre"), re.escape(f"selected = shown[0][:, {chosen}]"))
    code = cell.locator("pre").inner_text()
    made = run_below(chapter, code)
    made.locator("img").first.wait_for(timeout=MINUTE)
    assert abs(float(re.search(r"([\d.]+) GeV", made.locator(".jp-OutputArea-output").first.inner_text())[1]) - mass) < 0.01
    cell = chapter.widget("JetBrowser(jets)")
    cell.locator(".omnijet-canvas").first.press("Escape")
    cell.locator(".omnijet-canvas").first.press("Escape")
    cell.get_by_text("selected: mass").wait_for(state="detached", timeout=MINUTE)


@pytest.mark.parametrize("kind, begins", [("PNG", b"\x89PNG"), ("PDF", b"%PDF"), ("CSV", b'"position"'), ("Parquet", b"PAR1")])
def test_one_button_saves_the_picture_and_its_data(chapter, kind, begins):
    cell = chapter.widget("JetBrowser(jets)")
    with chapter.page.expect_download() as download:
        cell.get_by_role("button", name=kind).click()
    assert download.value.suggested_filename == f"jet.{kind.lower()}"
    assert Path(download.value.path()).read_bytes().startswith(begins)


@pytest.mark.parametrize("source, names", [("JetBrowser(jets)", ["jet"]), ("TokenExplorer(grid, jets)", ["codes", "code"]),
                                           ("GenerationPlayground(small, grid, jets)", ["growing_jet", "generated"]),
                                           ("JetGallery(jets, grid, untrained, tagger=None)", ["gallery", "tokens"]),
                                           ("TransferExplorer(made_up)", ["transfer", "scores"])])
def test_all_pictures_can_be_saved_with_their_data(chapter, source, names):
    cell = chapter.widget(source)
    found = {}
    for kind in ("PNG", "PDF", "CSV", "Parquet"):
        buttons = cell.get_by_role("button", name=kind)
        assert buttons.count() == len(names)
        for i in range(len(names)):
            with chapter.page.expect_download() as download:
                buttons.nth(i).click()
            found[download.value.suggested_filename] = Path(download.value.path()).stat().st_size
    assert set(found) == {f"{name}.{kind}" for name in names for kind in ("png", "pdf", "csv", "parquet")} and min(found.values()) > 0


def test_selecting_a_code_shows_its_number_and_its_count(chapter):
    import awkward as ak
    import numpy as np

    from playwright.sync_api import expect

    from omnijet.data import sample_jets
    from omnijet.vqvae import BinnedTokenizer

    codes = np.asarray(ak.flatten(BinnedTokenizer((8, 8, 8)).encode(sample_jets(max_jets=200))))
    cell, page = chapter.widget("TokenExplorer(grid, jets)"), chapter.page
    title = cell.locator(".omnijet-html", has=page.locator("h4")).first
    says(cell, "2,000 of 2,000 jets")
    number = cell.locator("input[type=number]").first
    number.fill("290")
    number.press("Enter")
    says(title, rf"code 290\s+used {(codes == 290).sum():,} times")
    chapter.shot("06_token_explorer", cell)

    scatter = cell.locator(".omnijet-canvas").nth(1)
    scatter.scroll_into_view_if_needed()
    before = pixels(cell.locator(".omnijet-canvas").nth(4))
    said, x, y = point_at_a_mark(page, scatter)
    code = int(re.fullmatch(r"code (\d+)", said)[1])
    assert code != 290
    says(title, rf"code {code}\s+used {(codes == code).sum():,} times")               # pointing at it is enough
    page.mouse.click(x, y)
    page.mouse.move(x, scatter.bounding_box()["y"] + 5)
    says(title, rf"code {code}\s+used {(codes == code).sum():,} times")               # and a click keeps it
    expect(number).to_have_value(str(code))
    changes(cell.locator(".omnijet-canvas").nth(4), before)

    lasso(page, scatter)
    says(title, r"\d\d+ codes: ")
    cell.get_by_role("button", name="jet type").click()
    says(cell, "unused")
    chapter.shot("06_token_explorer_by_type", cell)


def test_a_jet_grows_and_generating_changes_the_histogram(chapter):
    cell, page = chapter.widget("GenerationPlayground(small, grid, jets)"), chapter.page
    title, bars = cell.locator("h4").first, cell.locator(".omnijet-canvas").nth(0)
    says(title, r"jet 0 · 0 constituents")
    assert cell.locator("select").first.evaluate("menu => menu.selectedOptions[0]?.text") == "as\xa0trained"
    cell.get_by_role("button", name="Step").click()
    says(title, r"1 constituents")
    cell.get_by_role("button", name="Step").click()
    says(title, r"2 constituents")
    cell.get_by_role("button", name="Undo").click()
    says(title, r"1 constituents")
    said, x, y = point_at_a_mark(page, bars)
    page.mouse.click(x, y)                                                           # by hand
    says(title, r"2 constituents")
    assert not bars.locator(".omnijet-tip").is_visible()                             # it spoke of what is gone
    says(cell.locator(".tokens span").last, rf"^{said.split(':')[0]}$")
    chapter.shot("06_generation_step", cell)
    cell.get_by_role("button", name="Finish").click()
    says(title, r"stopped|128 constituents")

    histogram = cell.locator(".omnijet-canvas").nth(2)
    before = pixels(histogram)
    number = cell.locator("input[type=number]").last
    number.fill("60")
    number.press("Enter")
    cell.get_by_role("button", name="Generate").click()
    says(cell, r"60 of 60 jets")
    canvas = histogram.locator("canvas[role=img]")
    page.wait_for_function("c => c.getAttribute('aria-label') === '60 generated jets'", arg=canvas.element_handle())
    changes(histogram, before)
    number.fill("100000")
    number.press("Enter")
    cell.get_by_role("button", name="Generate").click()
    says(cell, r"\d+ of 100,000 jets")
    cell.get_by_role("button", name="Stop").click()
    says(cell, r"of 100,000 jets, stopped")
    done = re.search(r"([\d,]+) of 100,000 jets", cell.inner_text())[1]
    page.wait_for_function("([c, text]) => c.getAttribute('aria-label') === text", arg=[canvas.element_handle(), f"{done} generated jets"])
    histogram.scroll_into_view_if_needed()
    chapter.shot("06_generation", cell)


def field(cell, name):
    "A field for numbers by the text before it."
    return cell.get_by_label(name, exact=True)


def fill(box, value):
    box.fill(str(value))
    box.press("Enter")


def codes_of(cell, i=0):
    "The codes of a growing jet, as its sequence of tokens says them."
    words = cell.locator(".tokens").nth(i).locator("span").all_inner_texts()
    return [int(word) for word in words if word not in ("start", "stop")]


def test_alternatives_of_an_earlier_step_and_what_the_model_makes_of_them(chapter):
    cell, page = chapter.widget("GenerationPlayground(small, grid, jets)"), chapter.page
    title, plane = cell.locator("h4").first, cell.locator(".omnijet-canvas").nth(1)
    cell.get_by_role("button", name="New jet").click()
    says(title, r"· 0 constituents ·")
    for n in (1, 2, 3):
        cell.get_by_role("button", name="Step").click()
        says(title, rf"· {n} constituents ·")
    cell.get_by_role("button", name="Finish").click()
    says(title, r"stopped|· 128 constituents")
    before = pixels(plane)
    fill(field(cell, "keep the first"), 2)                                           # back to the third step
    changes(plane, before)
    says(cell.locator(".tokens .later").first, r"^\d+$")
    chapter.shot("06_generation_alternatives", cell)
    said, x, y = point_at_a_mark(page, plane, r"^code \d+: pT = [\d.]+ GeV, [\d.e-]+ %$")     # an alternative, not a constituent of the jet
    page.mouse.click(x, y)
    says(title, r"· 3 constituents ·")
    says(cell.locator(".tokens span").last, f"^{re.match('code ([0-9]+)', said)[1]}$")
    tokens = cell.locator(".tokens").first
    sequence = tokens.inner_text()
    cell.get_by_role("button", name="Finish").click()
    says(title, r"stopped|· 128 constituents")
    until(page, lambda: len(tokens.inner_text()) > len(sequence))
    first = tokens.inner_text()
    assert first.startswith(sequence)                                                # what was kept is kept
    cell.get_by_role("button", name="Again").click()
    says(title, r"jet 2 ·")
    until(page, lambda: tokens.inner_text() != first)
    assert tokens.inner_text().startswith(sequence)


def test_steps_by_keys_and_back_by_a_click_on_a_constituent(chapter):
    from playwright.sync_api import expect

    cell, page = chapter.widget("GenerationPlayground(small, grid, jets)"), chapter.page
    title, plane = cell.locator("h4").first, cell.locator(".omnijet-canvas").nth(1)
    cell.get_by_role("button", name="New jet").click()
    says(title, r"· 0 constituents ·")
    plane.focus()
    for key, n in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowDown", 3), ("ArrowLeft", 2), ("ArrowUp", 1), ("ArrowRight", 2), ("ArrowRight", 3)):
        page.keyboard.press(key)
        says(title, rf"· {n} constituents ·")
    said, x, y = point_at_a_mark(page, plane, r"^[012]: pT = [\d.]+ GeV, click to go back to it$")
    page.mouse.click(x, y)
    kept = int(said[0])
    expect(field(cell, "keep the first")).to_have_value(str(kept), timeout=MINUTE)
    expect(cell.locator(".tokens .later")).to_have_count(3 - kept)
    says(title, r"· 3 constituents ·")                                               # it is still there until another is chosen
    page.keyboard.press("ArrowRight")
    says(title, rf"· {kept + 1} constituents ·")
    expect(cell.locator(".tokens .later")).to_have_count(0)


def test_what_if_this_one_had_100_gev(chapter):
    from playwright.sync_api import expect

    from omnijet.vqvae import BinnedTokenizer

    cell = chapter.widget("GenerationPlayground(small, grid, jets)")
    fill(field(cell, "keep the first"), 0)
    cell.get_by_role("button", name="Real jet").click()
    expect(field(cell, "keep the first")).to_have_value("5", timeout=MINUTE)         # of the real jet
    fill(field(cell, "pT [GeV]"), 100)
    expect(cell.locator(".tokens .later").first).to_be_visible()
    before, title = codes_of(cell), cell.locator("h4").first.inner_text()
    cell.get_by_role("button", name="What if").click()
    says(cell, r"constituent 5 had [\d.]+ GeV; asked for 100 GeV, the nearest code has [\d.]+ GeV")
    until(cell.page, lambda: codes_of(cell) != before)
    after, grid = codes_of(cell), BinnedTokenizer((8, 8, 8))
    had, has = map(float, re.search(r"had ([\d.]+) GeV; .* has ([\d.]+) GeV", cell.inner_text()).groups())
    at, = (i for i in range(6) if after[:i] + after[i + 1:6] == before[:5])             # the five before it are kept, it stands by falling pT
    pts = [grid.decode([codes]).pt[0, i] for codes, i in ((before, 5), (after, at))]
    assert at < 5 and after[at] != before[5] and abs(had - pts[0]) < 0.06 and abs(has - pts[1]) < 0.06 and had < 50 < has < 150
    says(cell.locator("h4").first, "^(?!" + re.escape(title) + ")")
    chapter.shot("06_generation_what_if", cell)


def test_two_models_side_by_side(chapter):
    cell = chapter.widget("GenerationPlayground(small, grid, jets, other=untrained)")
    titles = [cell.locator("h4").nth(i) for i in (0, 1)]
    for n in (1, 2, 3):
        cell.get_by_role("button", name="Step").click()
        for title in titles:
            says(title, rf"model \d: .*· {n} constituents ·")
    until(cell.page, lambda: [len(codes_of(cell, i)) for i in (0, 1)] == [3, 3])
    kept = [cell.locator(".tokens").nth(i).inner_text() for i in (0, 1)]
    assert kept[0] == kept[1]
    until(cell.page, lambda: pixels(cell.locator(".omnijet-canvas").nth(0)) != pixels(cell.locator(".omnijet-canvas").nth(2)))
    cell.get_by_role("button", name="Finish").click()
    for title in titles:
        says(title, r"stopped|· 128 constituents")
    jets = [cell.locator(".tokens").nth(i) for i in (0, 1)]
    until(cell.page, lambda: jets[0].inner_text() != jets[1].inner_text() and all(jet.inner_text().startswith(kept[0]) for jet in jets))
    fill(cell.locator("input[type=number]").last, 40)
    cell.get_by_role("button", name="Generate").click()
    says(cell, r"40 of 40 jets")
    boxes = [cell.locator(".omnijet-canvas").nth(i).bounding_box() for i in (0, 1, 2, 3)]
    assert len({round(box["y"]) for box in boxes}) == 1                              # all in one row at 1400 pixels
    chapter.shot("06_generation_two_models", cell)


def test_two_models_of_two_tokenizers(chapter):
    from omnijet.vqvae import BinnedTokenizer

    cell = run_below(chapter, "coarse = BinnedTokenizer((4, 4, 4))\nother = GenerativeModel(coarse.codebook_size, width=16, blocks=1, heads=2)\n"
                              "GenerationPlayground(small, grid, jets, other=other, other_tokenizer=coarse)")
    titles, fine, coarse = [cell.locator("h4").nth(i) for i in (0, 1)], BinnedTokenizer((8, 8, 8)), BinnedTokenizer((4, 4, 4))
    for n in (1, 2, 3):
        cell.get_by_role("button", name="Step").click()
        for title in titles:
            says(title, rf"model \d: .*· {n} constituents ·")
    until(chapter.page, lambda: [len(codes_of(cell, i)) for i in (0, 1)] == [3, 3])
    assert codes_of(cell, 1) == coarse.encode(fine.decode([codes_of(cell, 0)]))[0].to_list()
    said, x, y = point_at_a_mark(chapter.page, cell.locator(".omnijet-canvas").nth(3), "^code ")    # by hand, in the second's plane
    chapter.page.mouse.click(x, y)
    for title in titles:
        says(title, r"· 4 constituents ·")
    until(chapter.page, lambda: [len(codes_of(cell, i)) for i in (0, 1)] == [4, 4])
    codes = codes_of(cell, 1)
    assert f"code {codes[-1]}:" in said and codes_of(cell, 0) == fine.encode(coarse.decode([codes]))[0].to_list()
    chapter.shot("06_generation_two_tokenizers", cell)


def test_jets_of_an_asked_mass(chapter):
    cell = run_below(chapter, "told = GenerativeModel(grid.codebook_size, width=16, blocks=1, heads=2, jet_tokens={'mass': [0, 40, 80, 120, 400]})\n"
                              "GenerationPlayground(told, grid, jets)")
    fill(field(cell, "jet mass"), "85, 115")
    cell.get_by_role("button", name="Finish").click()
    says(cell.locator("h4").first, r"stopped|· 128 constituents")
    cell.get_by_role("button", name="Code").first.click()
    says(cell.locator("pre").first, r"mass=\(85\.0, 115\.0\)")                       # the jet shown was asked for
    fill(field(cell, "jet mass"), "heavy")
    says(cell, "mass.*heavy")                                                        # and what is no mass is one line
    chapter.shot("06_generation_asked", cell)


def test_gallery_sorts_turns_pages_and_shows_a_jet(chapter):
    cell, page = chapter.widget("JetGallery(jets, grid, untrained, tagger=None)"), chapter.page
    title, about, first = cell.locator("h4").first, cell.locator("h4").nth(1), cell.locator(".omnijet-canvas").first
    says(title, "Jet mass .GeV., highest first")
    cell.locator("select").first.select_option(label="−ln p")
    says(cell, r"2,000 of 2,000 jets", 3 * MINUTE)
    says(title, "−ln p, highest first")
    highest = first.get_attribute("aria-label")
    cell.get_by_role("button", name="lowest").click()
    says(title, "−ln p, lowest first")
    page.wait_for_function("([c, before]) => c.getAttribute('aria-label') !== before", arg=[first.element_handle(), highest])
    value = [float(re.search(r": ([\d.e+]+)", label)[1]) for label in (highest, first.get_attribute("aria-label"))]
    assert value[0] > value[1]
    before = cell.locator(".omnijet-canvas").nth(1).get_attribute("aria-label")
    cell.get_by_role("button", name="Next").click()
    says(cell, "13 to 24 of 2,000 jets")
    until(page, lambda: cell.locator(".omnijet-canvas").nth(1).get_attribute("aria-label") != before)
    cell.locator(".omnijet-canvas").nth(1).click()
    number = re.search(r"jet (\d+): ([\d.]+)", cell.locator(".omnijet-canvas").nth(1).get_attribute("aria-label"))
    says(about, rf"jet {number[1]} ·.*−ln p {float(number[2]):.1f}")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")                                                     # the next picture, by keys
    number = re.search(r"jet (\d+):", cell.locator(".omnijet-canvas").nth(2).get_attribute("aria-label"))
    says(about, rf"jet {number[1]} ·")
    page.keyboard.press("ArrowRight")
    says(cell, "25 to 36 of 2,000 jets")
    said, x, y = point_at_a_mark(page, cell.locator(".omnijet-canvas").nth(12))
    assert re.search(r"−ln p = [\d.]+$", said)
    chapter.shot("06_gallery", cell)


def test_gallery_of_any_observable_a_tagger_a_class_and_some_jets(chapter):
    import numpy as np
    import torch

    from omnijet.data import sample_jets
    from omnijet.gpt import GenerativeModel
    from omnijet.observables import observables
    from omnijet.transfer import JetClassifier
    from omnijet.vqvae import BinnedTokenizer

    made = "GenerativeModel(grid.codebook_size, width=16, blocks=1, heads=2)"
    cell, page = run_below(chapter, f"torch.manual_seed(5)\ntagger = JetClassifier.from_generative({made})\nJetGallery(jets, grid, None, tagger)"), chapter.page
    jets, grid = sample_jets(max_jets=200), BinnedTokenizer((8, 8, 8))
    torch.manual_seed(5)
    scores = JetClassifier.from_generative(eval(made)).predict(grid.encode(jets))[:, 1]
    small, title = cell.locator(".omnijet-canvas"), cell.locator(".omnijet-html", has=page.locator("h4")).first
    by, kind = cell.get_by_label("sorted by"), cell.get_by_label("class", exact=True)
    shown = lambda: [re.search(r"jet (\d+): ([\d.,e-]+), ", small.nth(i).get_attribute("aria-label")).groups() for i in range(12)]
    sorted_by = {"τ21": observables(jets, ["tau21"])["tau21"], "D2": observables(jets, ["d2"])["d2"], "Σ pT² [GeV²]": observables(jets, ["sum_pt2"])["sum_pt2"], "Tagger score": scores}
    for name, values in sorted_by.items():
        by.select_option(label=name)
        says(title, rf"^{re.escape(name)}, highest first\s+1 to 12 of 2,000 jets$", 3 * MINUTE)
        at = np.argsort(-values, kind="stable")[:12]
        until(page, lambda: np.allclose([float(value.replace(",", "")) for _, value in shown()], values[at], rtol=1e-3))
        assert np.allclose(values[[int(number) for number, _ in shown()]], values[at], rtol=1e-3)
        chapter.shot(f"06_gallery_{list(sorted_by).index(name)}", cell)
    kind.select_option(label="t → bqq′")
    says(title, "1 to 12 of 200 jets$")
    best = np.flatnonzero(jets.label == 8)[np.argsort(-scores[jets.label == 8], kind="stable")[:12]]
    says_in(small.first, rf"^t → bqq′ jet {best[0]}:")
    until(page, lambda: all(small.nth(i).get_attribute("aria-label").startswith("t → bqq′ jet ") for i in range(12)))

    chosen = [int(re.search(r"jet (\d+)", small.nth(i).get_attribute("aria-label"))[1]) for i in (1, 4, 6)]
    for i, also in ((1, []), (4, ["Shift"])):
        small.nth(i).click(modifiers=also)
    small.nth(5).focus()
    page.keyboard.press("Tab")                                                       # to the next one
    page.keyboard.press("Space")
    says(small.nth(6).get_by_role("status"), "^3 chosen$")
    cell.get_by_role("button", name="Code").click()
    says(cell.locator("pre"), re.escape(f"numbers = {chosen}"))
    image = run_below(chapter, cell.locator("pre").inner_text()).locator("img").first
    image.wait_for(timeout=MINUTE)
    assert 2.5 < image.bounding_box()["width"] / image.bounding_box()["height"] < 3.5   # three in a row


def test_codebook_plane_and_jet_are_linked(chapter):
    cell, page = chapter.widget("TokenExplorer(grid, jets)"), chapter.page
    title, jet = cell.locator(".omnijet-html", has=page.locator("h4")).first, cell.locator(".omnijet-canvas").nth(5)
    codebook, plane = cell.locator(".omnijet-canvas canvas:nth-child(2)").nth(0), cell.locator(".omnijet-canvas canvas:nth-child(2)").nth(1)
    rings = [canvas.evaluate("c => c.toDataURL()") for canvas in (codebook, plane)]
    said, x, y = point_at_a_mark(page, jet)
    code = re.fullmatch(r"\d+: pT = [\d.]+ GeV, code (\d+)", said)[1]
    says(title, rf"code {code}\s")                                                  # the jet leads to the codebook and the plane
    for canvas, before in zip((codebook, plane), rings):
        page.wait_for_function("([c, before]) => c.toDataURL() !== before", arg=[canvas.element_handle(), before])
    lasso(page, jet)
    says(title, r"\d+ codes: ")
    chapter.shot("06_token_explorer_linked", cell)
    which = cell.get_by_text(re.compile(r"jet [\d,]+ of [\d,]+ with it")).last
    before = which.inner_text()
    said, x, y = point_at_a_mark(page, cell.locator(".omnijet-canvas").nth(4))     # contexts
    page.mouse.click(x, y)
    says(which, r"^(?!" + re.escape(before) + ")")


def test_marks_are_reached_and_chosen_by_keys(chapter):
    cell, page = chapter.widget("TokenExplorer(grid, jets)"), chapter.page
    title, scatter = cell.locator(".omnijet-html", has=page.locator("h4")).first, cell.locator(".omnijet-canvas").nth(1)
    fill(cell.locator("input[type=number]").first, 290)
    says(title, r"code 290\s")
    scatter.focus()
    page.keyboard.press("ArrowRight")                                                # begins at what is selected
    spoken = scatter.get_by_role("status")
    says(spoken, "^code 290$")
    page.keyboard.press("ArrowRight")
    says(spoken, r"^code (?!290)\d+$")
    code = spoken.inner_text().removeprefix("code ")
    says(title, rf"code {code}\s")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    says(title, r"code")
    says(spoken, "^2 chosen$")
    page.keyboard.press("Escape")
    says(title, rf"2 codes: {code}, \d+")
    before = pixels(scatter)
    page.keyboard.press("+")
    changes(scatter, before)
    page.keyboard.press("0")
    page.wait_for_function("([c, before]) => c.toDataURL() === before", arg=[scatter.locator("canvas").first.element_handle(), before])


def check_names(cell, roles):
    "All that has a role is named, each of `roles` is there, and canvases are reached by Tab and say their keys."
    cell.page.wait_for_timeout(3000)                                                 # sliders are named a second after they are shown
    tree = cell.locator(".jp-OutputArea-output").last.aria_snapshot().splitlines()
    found = [match for line in tree if (match := re.match(r"\s*- '?(button|slider|textbox|spinbutton|combobox|listbox|progressbar|application|img)( \".)?", line))]
    assert not [match.string for match in found if not match[2]]
    assert {match[1] for match in found} >= set(roles.split())
    for canvas in cell.locator(".omnijet-canvas").all():
        if canvas.is_visible():
            assert canvas.get_attribute("tabindex") == "0" and "zoom" in canvas.get_attribute("aria-description")


@pytest.mark.parametrize("source, roles", [("JetBrowser(jets)", "button slider combobox"), ("JetGallery(jets, grid, untrained, tagger=None)", "button combobox progressbar"),
                                           ("TokenExplorer(grid, jets)", "button slider spinbutton progressbar"),
                                           ("GenerationPlayground(small, grid, jets)", "button slider spinbutton combobox progressbar"),
                                           ("GenerationPlayground(small, grid, jets, other=untrained)", "button slider spinbutton combobox progressbar"),
                                           ("TransferExplorer(made_up)", "button slider combobox listbox progressbar")])
def test_everything_has_a_name_for_a_screen_reader(chapter, source, roles):
    check_names(chapter.widget(source), roles + " application img")


def run_below(chapter, code, timed=False):
    "Run a cell of code at the end of the notebook; its locator. `timed`: from a moment when the cell has been there for a while."
    chapter.page.evaluate("""code => { const book = window.jupyterapp.shell.currentWidget.content; book.deselectAll(); book.activeCellIndex = book.widgets.length - 1; }""", code)
    chapter.command("notebook:insert-cell-below")
    chapter.page.evaluate("""code => window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.setSource(code)""", code)
    if timed:
        chapter.page.wait_for_timeout(1000)
        chapter.page.evaluate("() => { window.begun = performance.now(); }")
    chapter.command("notebook:run-cell")
    chapter.idle()
    assert not chapter.failures()
    return chapter.widget(code.strip().splitlines()[-1], "findLastIndex")


@pytest.mark.parametrize("source, which", [("JetBrowser(jets)", [0]), ("TokenExplorer(grid, jets)", [0, 1]), ("GenerationPlayground(small, grid, jets)", [0, 1]),
                                           ("JetGallery(jets, grid, untrained, tagger=None)", [0]), ("TransferExplorer(made_up)", [0])])
def test_code_makes_what_is_shown_again(chapter, source, which):
    from PIL import Image

    chapter.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for i in which:
        cell = chapter.widget(source)
        cell.get_by_role("button", name="Code").nth(i).click()
        says(cell.locator("pre").nth(i), "picture", MINUTE)
        code = cell.locator("pre").nth(i).inner_text()
        chapter.page.wait_for_function("code => navigator.clipboard.readText().then(text => text.trim() === code.trim())", arg=code)
        made = run_below(chapter, code).locator("img").first
        made.wait_for(timeout=MINUTE)
        image = Image.open(io.BytesIO(made.screenshot())).convert("L")
        low, high = image.getextrema()
        assert image.width > 200 and low < 100 and high > 200                         # a picture, not a blank one


def test_a_point_of_figure_7_can_be_opened(chapter):
    cell, page = chapter.widget("TransferExplorer(made_up)"), chapter.page
    cell.locator("select").first.select_option(label="accuracy")
    said, x, y = point_at_a_mark(page, cell.locator(".omnijet-canvas").first)
    page.mouse.click(x, y)
    says(cell.locator("h4").last, re.escape(said.split(":")[0]))
    chapter.shot("06_transfer_explorer", cell)


def test_code_of_the_scores_behind_a_point(chapter):
    cell = run_below(chapter, """from omnijet.data import write_tokens
from omnijet.transfer import JetClassifier
tops = jets[(jets.label == 0) | (jets.label == 8)]
write_tokens(grid.encode(tops), "sweep/tokens/test/jets.parquet", tops.label, tops.id)
plain = GenerativeModel(grid.codebook_size, width=16, blocks=1, heads=2)
for k in (1, 2):
    folder = Path(f"sweep/transfer/finetune_100_seed{k}")
    JetClassifier.from_generative(plain).save_pretrained(folder)
    said = f'{{"strategy": "finetune", "size": 100, "seed": {k}, "accuracy": 0.{k}, "auc": 0.8}}'
    done = (folder / "result.json").write_text(said)
TransferExplorer("sweep")""")
    said, x, y = point_at_a_mark(chapter.page, cell.locator(".omnijet-canvas").first)
    chapter.page.mouse.click(x, y)
    says(cell, "400 of 400 jets")
    says(cell.locator("h4").last, re.escape(said.split(":")[0]))
    cell.get_by_role("button", name="Code").click()
    says(cell.locator("pre"), "from_pretrained")
    code = cell.locator("pre").inner_text()
    assert f"sweep/transfer/finetune_100_seed{said.split(':')[0][-1]}" in code
    drawn = run_below(chapter, code).locator("img").first
    drawn.wait_for(timeout=MINUTE)
    assert drawn.bounding_box()["width"] / drawn.bounding_box()["height"] > 1.8        # curve and scores, side by side
    chapter.shot("06_transfer_code", chapter.widget('TransferExplorer("sweep")', "findLastIndex"))


def test_a_missing_model_says_what_to_load(chapter):
    says(chapter.widget("missing"), r"omnijet/no-such-tokenizer: .*(\n.*)*TokenExplorer\('runs/")
    says(chapter.widget('TransferExplorer("no-such-run")'), r"run chapter 05_transfer first")


WATCH = """() => {                                                                  // when which canvas has been shown, drawn anew
    const clear = CanvasRenderingContext2D.prototype.clearRect;
    window.shown = [];
    CanvasRenderingContext2D.prototype.clearRect = function (...box) {
        requestAnimationFrame(() => window.shown.push([this.canvas, performance.now()]));
        return clear.apply(this, box); };
    document.addEventListener("pointermove", () => { window.moved ??= performance.now(); }, true); }"""
FIRST = """cell => {                                                                    // when the first of a cell's canvases was shown, and the last
    const first = new Map();
    for (const [canvas, at] of window.shown) if (cell.contains(canvas) && !first.has(canvas)) first.set(canvas, at);
    return [Math.min(...first.values()) - window.begun, Math.max(...first.values()) - window.begun]; }"""
SINCE = """canvas => {
    const found = window.shown.find(([c, at]) => c === canvas && at > window.moved);
    return found ? found[1] - window.moved : null; }"""


@pytest.mark.skipif(not os.environ.get("OMNIJET_TEST_SPEED"), reason="OMNIJET_TEST_SPEED is not set: nothing is timed")
def test_what_the_browser_adds_to_what_the_user_waits_for(chapter, capsys):
    "Prints, with 8,192 codes and 10,000 jets, how long it is from a click on Run to a first picture, and from a move of the mouse to the panel of a code."
    import random
    import statistics

    page = chapter.page
    page.evaluate(WATCH)
    lines = []
    for name, last in (("JetBrowser(every, large)", 0), ("JetGallery(every, large)", 12), ("GenerationPlayground(tokenizer=large, jets=every)", 3), ("TokenExplorer(large, every)", 5)):
        chapter.command("notebook:clear-all-cell-outputs")
        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")   # nothing has been used there before
        chapter.idle()
        run_below(chapter, "import time\nfrom omnijet.widgets import *\nfrom omnijet.data import sample_jets\nfrom omnijet.vqvae import load_tokenizer\nlarge, every = load_tokenizer('omnijet/tokenizer-8192'), sample_jets()\nlen(every)")
        cell = run_below(chapter, f"begun = time.perf_counter()\nshown = {name}\nprint(f'kernel: {{1000 * (time.perf_counter() - begun):.0f}} ms')\nshown", timed=True)
        canvas = cell.locator(".omnijet-canvas canvas[role=img]").nth(last)
        canvas.wait_for(timeout=MINUTE)
        page.wait_for_function("canvas => window.shown.some(([c]) => c === canvas)", arg=canvas.element_handle())
        one, every = cell.evaluate(FIRST)
        kernel = float(re.search(r"kernel: (\d+) ms", cell.inner_text())[1])
        lines.append(f"{name}: first picture {one:.0f} ms, all {every:.0f}, of these in the kernel {kernel:.0f}")
    says(cell, "10,000 of 10,000 jets", 10 * MINUTE)
    cell.scroll_into_view_if_needed()
    scatter, contexts = cell.locator(".omnijet-canvas").nth(1), cell.locator(".omnijet-canvas").nth(4)
    title, box, generator = cell.locator(".omnijet-html", has=page.locator("h4")).first, scatter.bounding_box(), random.Random(1)
    rings, panels = [], []
    while len(panels) < 20:
        page.evaluate("() => { window.moved = null; }")                              # the first move counts, not those that Chromium makes up when a page is laid out
        page.mouse.move(box["x"] + generator.uniform(0.3, 0.8) * box["width"], box["y"] + generator.uniform(0.3, 0.7) * box["height"])
        said = scatter.locator(".omnijet-tip").inner_text()
        if not said or title.inner_text().startswith(f"{said}\n"):                    # no mark there, or the same
            continue
        says(title, rf"^{said}\s")
        if "used 0 times" in title.inner_text():                                     # nothing to draw
            continue
        page.wait_for_function(SINCE, arg=contexts.locator("canvas").first.element_handle())
        for times, canvas in ((rings, scatter.locator("canvas").last), (panels, contexts.locator("canvas").first)):
            times.append(canvas.evaluate(SINCE))
    lines += [f"from a move of the mouse to {what}: median {statistics.median(times):.0f} ms, slowest {max(times):.0f}" for what, times in (("the ring", rings), ("the contexts of the code", panels))]
    with capsys.disabled():
        print("", *lines, sep="\n")


def test_dark_theme(chapter):
    cell = chapter.widget("JetBrowser(jets)")
    canvas = cell.locator(".omnijet-canvas").first
    light = pixels(canvas)
    chapter.command("apputils:change-theme", "{theme: 'JupyterLab Dark'}")
    chapter.page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    changes(canvas, light)
    for name, source in (("jet_browser", "JetBrowser(jets)"), ("token_explorer", "TokenExplorer(grid, jets)"), ("generation", "GenerationPlayground(small, grid, jets)"),
                         ("gallery", "JetGallery(jets, grid, untrained, tagger=None)"), ("transfer_explorer", "TransferExplorer(made_up)"), ("missing", "missing")):
        chapter.shot(f"06_{name}_dark", chapter.widget(source))
    chapter.command("apputils:change-theme", "{theme: 'JupyterLab Light'}")          # the server remembers it


def test_after_a_restart_of_the_kernel(chapter):
    chapter.command("notebook:clear-all-cell-outputs")
    chapter.command("notebook:restart-run-all", wait=False)
    chapter.page.get_by_role("dialog").get_by_role("button", name=re.compile("restart", re.I)).last.click()
    run = "c => c.model.type !== 'code' || !c.model.sharedModel.source.trim() || c.model.executionCount !== null"
    chapter.page.wait_for_function(f"() => window.jupyterapp.shell.currentWidget.content.widgets.every({run})", timeout=5 * MINUTE)
    chapter.idle(5 * MINUTE)
    assert not chapter.failures()
    cell = chapter.widget("JetBrowser(jets)")
    says(cell.locator("h4").first, r"q/g · jet 0 ·", 3 * MINUTE)
    cell.get_by_role("button", name="Next").click()
    says(cell.locator("h4").first, r"q/g · jet 1 ·")
    assert not chapter.errors


def shows(source, tags, widgets):
    "Whether a cell holds parameters, nothing but imports, or one of these widgets."
    body = ast.parse(source).body
    return "parameters" in tags or source.strip().split("\n")[-1].startswith(tuple(widgets)) or bool(body) and all(isinstance(line, ast.Import | ast.ImportFrom) for line in body)


@pytest.fixture
def opened(request, lab, browser):
    """A chapter with its parameters, imports and widgets run, on a finished run.

    The other cells are left out: they take the run's quarter of an hour again (`omnijet run` executes them), and a widget needs nothing of theirs
    but the files, as it does for a user who comes back to a finished run."""
    if not RUN:
        pytest.skip("OMNIJET_TEST_RUN is not set: this chapter reads what a finished run made")
    widgets = WIDGETS[request.param]
    book = Notebook(browser.new_page(viewport={"width": 1400, "height": 1500}))
    book.open(lab(request.param))
    book.command("application:toggle-left-area")
    book.run(lambda source, tags: shows(source, tags, widgets))
    book.idle(5 * MINUTE)
    assert not book.failures()
    assert sum(outputs for *_, outputs in book.cells()) == len(widgets)                # nothing else has been run
    yield book
    assert not book.errors
    book.page.close()


@pytest.mark.parametrize("opened", ["01_vqvae"], indirect=True)
def test_chapter_of_tokens(opened):
    import awkward as ak
    import numpy as np

    from omnijet.data import CLASS_NAMES, read_jets, sample_jets
    from omnijet.vqvae import load_tokenizer

    tokenizer = load_tokenizer(RUN / "tokenizers" / run_tokenizer("01_vqvae"))
    uses = np.bincount(ak.to_numpy(ak.flatten(tokenizer.encode(sample_jets()))), minlength=tokenizer.codebook_size)
    cell = opened.widget("TokenExplorer(")
    says(cell, "10,000 of 10,000 jets", 3 * MINUTE)
    title, number = cell.locator(".omnijet-html", has=opened.page.locator("h4")).first, cell.locator("input[type=number]").first
    code = int(np.argsort(uses)[-20])
    number.fill(str(code))
    number.press("Enter")
    says(title, rf"code {code}\s+used {uses[code]:,} times")
    before = pixels(cell.locator(".omnijet-canvas").first)
    cell.get_by_role("button", name="momentum").click()
    changes(cell.locator(".omnijet-canvas").first, before)
    opened.shot("token_explorer", cell.locator(".jp-OutputArea-output"), 1200)
    cell.get_by_role("button", name="jet type").click()
    says(cell, "unused")
    said, x, y = point_at_a_mark(opened.page, cell.locator(".omnijet-canvas").first)
    opened.page.mouse.click(x, y)
    code = int(said.removeprefix("code "))
    says(title, rf"code {code}\s+used {uses[code]:,} times")

    jets = read_jets(RUN / "data" / "test", max_jets=2000)
    cell = opened.widget("JetBrowser(")
    title, canvas = cell.locator("h4").first, cell.locator(".omnijet-canvas").first
    says(title, rf"{CLASS_NAMES[jets.label[0]]} · jet 0 ·")
    before = pixels(canvas)
    cell.get_by_role("button", name="Next").click()
    says(title, rf"{CLASS_NAMES[jets.label[1]]} · jet 1 ·")
    changes(canvas, before)
    cell.locator("select").select_option(label="t → bqq′")
    top = int(np.flatnonzero(jets.label == 8)[0])
    says(title, rf"t → bqq′ · jet {top} ·")
    says(cell.locator(".tokens"), "^" + r"\s*".join(map(str, tokenizer.encode(jets[top:top + 1])[0].to_list())) + "$")
    opened.shot("jet_browser", cell.locator(".jp-OutputArea-output"), 1120)


@pytest.mark.parametrize("opened", ["04_generation"], indirect=True)
def test_chapter_of_generation(opened):
    cell, page = opened.widget("GenerationPlayground("), opened.page
    title, histogram = cell.locator("h4").first, cell.locator(".omnijet-canvas").nth(2)
    for n in range(1, 9):
        cell.get_by_role("button", name="Step").click()
        says(title, rf"· {n} constituents ·")
    before, number = pixels(histogram), cell.locator("input[type=number]").last
    number.fill("200")
    number.press("Enter")
    cell.get_by_role("button", name="Generate").click()
    says(cell, "200 of 200 jets", 3 * MINUTE)
    page.wait_for_function("c => c.getAttribute('aria-label') === '200 generated jets'", arg=histogram.locator("canvas[role=img]").element_handle())
    changes(histogram, before)
    opened.shot("generation_step", cell.locator(".jp-OutputArea-output"), 1120)


@pytest.mark.parametrize("opened", ["05_transfer"], indirect=True)
def test_chapter_of_transfer(opened):
    cell = opened.widget("TransferExplorer(")
    curve, distribution = cell.locator(".omnijet-canvas").nth(0), cell.locator(".omnijet-canvas").nth(1)
    before = pixels(curve)
    cell.locator("select").first.select_option(label="accuracy")
    changes(curve, before)
    before = pixels(distribution)
    said, x, y = point_at_a_mark(opened.page, curve)
    opened.page.mouse.click(x, y)
    says(cell.locator("h4").last, re.escape(said.split(":")[0]))
    says(cell, r"([\d,]+) of \1 jets", 5 * MINUTE)
    changes(distribution, before)
    opened.shot("transfer_explorer", cell.locator(".jp-OutputArea-output"), 1120)

    tagger = max((RUN / "transfer").glob("finetune_*_seed1"), key=lambda folder: int(folder.name.split("_")[1])).name
    cell = run_below(opened, f"""from pathlib import Path
from omnijet.data import sample_jets
from omnijet.widgets import JetGallery
both, run_dir = sample_jets(["ZJetsToNuNu", "TTBar"], max_jets=500), Path(run_dir)
tokenizer, tagger = run_dir / "tokenizers" / backbone_tokenizer, run_dir / "transfer" / "{tagger}"
JetGallery(both, tokenizer, run_dir / "backbone", tagger)""")
    title, small = cell.locator(".omnijet-html", has=opened.page.locator("h4")).first, cell.locator(".omnijet-canvas")
    for name in ("−ln p a token", "Tagger score"):
        cell.get_by_label("sorted by").select_option(label=name)
        says(title, rf"^{name}, highest first\s+1 to 12 of 1,000 jets$", 4 * MINUTE)
    cell.get_by_label("class", exact=True).select_option(label="q/g")                   # which of them does it take for tops?
    says(title, "1 to 12 of 500 jets$")
    says_in(small.first, "^q/g jet")
    scores = [float(re.search(r"^q/g jet \d+: ([\de.-]+)", small.nth(i).get_attribute("aria-label"))[1]) for i in range(12)]
    assert scores == sorted(scores, reverse=True)
    small.first.click()
    number = re.search(r"jet (\d+):", small.first.get_attribute("aria-label"))[1]
    says(cell.locator("h4").nth(1), rf"^q/g · jet {number} ·.*−ln p [\d.]+$")
    opened.shot("jet_gallery", cell.locator(".jp-OutputArea-output").last, 1400)
    cell.get_by_role("button", name="lowest").click()
    says(title, "^Tagger score, lowest first")
    assert float(re.search(r"^q/g jet \d+: ([\de.-]+)", small.first.get_attribute("aria-label"))[1]) < scores[-1]


def test_showers_are_turned_and_counted(lab, browser):
    "The examples of chapter 08, run; the next shower, and another side of it."
    book = Notebook(browser.new_page(viewport={"width": 1400, "height": 1500}))
    book.open(lab("08_showers"))
    book.command("application:toggle-left-area")
    book.run(lambda source, tags: "eval: false" not in source)
    book.idle(5 * MINUTE)
    assert not book.failures()
    cell = book.widget("ShowerBrowser(halves")
    canvas = cell.locator(".omnijet-canvas").first
    named = canvas.locator("canvas[role=img]")
    named.wait_for(timeout=MINUTE)
    book.shot("08_shower_browser", cell.locator(".jp-OutputArea-output").last)
    first = named.get_attribute("aria-label")
    assert re.match(r"original: \d+ MeV, \d+ hits", first)
    before = pixels(canvas)
    cell.get_by_role("button", name="Next").click()
    changes(canvas, before)
    assert named.get_attribute("aria-label") != first
    before = pixels(canvas)
    cell.locator(".noUi-handle").first.press("ArrowRight")
    changes(canvas, before)
    assert "MeV" in point_at_a_mark(book.page, canvas)[0]
    check_names(cell, "button slider application img")
    assert not book.errors
    book.page.close()


def test_particles_are_hidden_by_a_click(lab, browser):
    "The examples of chapter 03a, run; other constituents hidden than those that it begins with."
    book = Notebook(browser.new_page(viewport={"width": 1400, "height": 1500}))
    book.open(lab("03a_masked"))
    book.command("application:toggle-left-area")
    book.run(lambda source, tags: "eval: false" not in source)
    book.idle(5 * MINUTE)
    assert not book.failures()
    cell = book.widget("MaskedParticles(both")
    canvas = cell.locator(".omnijet-canvas").first
    says_in(canvas, r"^2 of \d+ constituents hidden")
    before = pixels(canvas)
    said, x, y = point_at_a_mark(book.page, canvas, r"^(?!0:|3:)\d+: pT")
    book.page.mouse.click(x, y)
    says_in(canvas, r"^1 of \d+ constituents hidden, .*1 hidden.*, 5 said")            # the likeliest five codes of the one
    changes(canvas, before)
    book.shot("03a_masked_particles", cell.locator(".jp-OutputArea-output").last)
    said, x, y = point_at_a_mark(book.page, canvas, f"^(?!{said.split(':')[0]}:)")
    book.page.keyboard.down("Shift")
    book.page.mouse.click(x, y)
    book.page.keyboard.up("Shift")
    says_in(canvas, r"^2 of \d+ constituents hidden, .*2 hidden.*, 10 said")
    check_names(cell, "application img")
    assert not book.errors
    book.page.close()
