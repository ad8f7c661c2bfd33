"""The widgets as a user meets them: JupyterLab on a free port, headless Chromium, clicks.

Screenshots go to the folder OMNIJET_SCREENSHOTS, if set. The chapters that read a run are opened on a copy of the finished smoke run OMNIJET_TEST_RUN,
and left out where it is not set; their screenshots are those of README (figures/)."""
import ast
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

    def widget(self, source):
        "Bring the cell with this last line into view; its outputs."
        found = self.page.evaluate("""async source => {
            const book = window.jupyterapp.shell.currentWidget.content, i = book.widgets.findIndex(c => c.model.sharedModel.source.trim().split("\\n").pop().startsWith(source));
            if (i < 0) return false;
            await book.scrollToItem(i, 'start');
            book.widgets[i].node.setAttribute('data-cell', i);
            return String(i); }""", source)
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
            self.page.wait_for_timeout(500)                                          # it is laid out again
        from PIL import Image                                                        # comes with matplotlib

        picture = Image.open(io.BytesIO((part or self.page).screenshot()))
        picture.convert("RGB").save(folder / f"{name}.png", optimize=True)


def point_at_a_mark(page, canvas, step=9):
    "Move the mouse over a canvas until its tooltip shows; (what the tooltip says, x, y)."
    for _ in range(3):                                                               # JupyterLab may still be moving the cell
        canvas.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        box = canvas.bounding_box()
        for y in range(40, int(box["height"]) - 45, step):
            for x in range(60, int(box["width"]) - 15, step):
                page.mouse.move(box["x"] + x, box["y"] + y)
                if canvas.locator(".omnijet-tip").is_visible():
                    return canvas.locator(".omnijet-tip").inner_text(), box["x"] + x, box["y"] + y
    raise AssertionError("nothing to point at")


def pixels(canvas):
    return canvas.locator("canvas").first.evaluate("c => c.toDataURL()")


def changes(canvas, before):
    "Wait until a canvas shows something else."
    canvas.page.wait_for_function("([c, before]) => c.toDataURL() !== before", arg=[canvas.locator("canvas").first.element_handle(), before])


def says(locator, text, timeout=MINUTE):
    "Wait until something that the user can read matches `text`, a regular expression."
    from playwright.sync_api import expect

    expect(locator).to_have_text(re.compile(text), timeout=timeout, use_inner_text=True)


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

    box = scatter.bounding_box()                                                     # a lasso around nearly everything
    corners = [(60, 40), (box["width"] - 20, 40), (box["width"] - 20, box["height"] - 60), (60, box["height"] - 60), (60, 50)]
    page.mouse.move(box["x"] + corners[0][0], box["y"] + corners[0][1])
    page.mouse.down()
    for dx, dy in corners[1:]:
        page.mouse.move(box["x"] + dx, box["y"] + dy, steps=5)
    page.mouse.up()
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


def test_alternatives_of_an_earlier_step_and_what_the_model_makes_of_them(chapter):
    cell, page = chapter.widget("GenerationPlayground(small, grid, jets)"), chapter.page
    title, plane, bars = cell.locator("h4").first, cell.locator(".omnijet-canvas").nth(1), cell.locator(".omnijet-canvas").nth(0)
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
    said, x, y = point_at_a_mark(page, plane, 5)
    chapter.shot("06_generation_alternatives", cell)
    for _ in range(40):                                                              # until it is an alternative, not a constituent of the jet
        if re.fullmatch(r"code \d+: pT = [\d.]+ GeV, [\d.e-]+ %", said):
            break
        x, y = x + 4, y + (4 if x > plane.bounding_box()["x"] + 300 else 0)
        page.mouse.move(x, y)
        said = plane.locator(".omnijet-tip").inner_text()
    else:
        said, x, y = point_at_a_mark(page, bars)
    page.mouse.click(x, y)
    says(title, r"· 3 constituents ·")
    sequence = cell.locator(".tokens").first.inner_text()
    cell.get_by_role("button", name="Finish").click()
    says(title, r"stopped|· 128 constituents")
    assert cell.locator(".tokens").first.inner_text().startswith(sequence)           # what was kept is kept
    first = cell.locator(".tokens").first.inner_text()
    cell.get_by_role("button", name="Again").click()
    says(title, r"jet 2 ·")
    assert cell.locator(".tokens").first.inner_text().startswith(sequence) and cell.locator(".tokens").first.inner_text() != first


def test_what_if_this_one_had_100_gev(chapter):
    from playwright.sync_api import expect

    cell = chapter.widget("GenerationPlayground(small, grid, jets)")
    fill(field(cell, "keep the first"), 0)
    cell.get_by_role("button", name="Real jet").click()
    expect(field(cell, "keep the first")).to_have_value("5", timeout=MINUTE)         # of the real jet
    fill(field(cell, "keep the first"), 1)
    fill(field(cell, "pT [GeV]"), 100)
    cell.get_by_role("button", name="What if").click()
    says(cell, r"constituent 1 had [\d.]+ GeV; asked for 100 GeV, the nearest code has [\d.]+ GeV")
    chapter.shot("06_generation_what_if", cell)


def test_two_models_side_by_side(chapter):
    cell = chapter.widget("GenerationPlayground(small, grid, jets, other=untrained)")
    titles = [cell.locator("h4").nth(i) for i in (0, 1)]
    for n in (1, 2, 3):
        cell.get_by_role("button", name="Step").click()
        for title in titles:
            says(title, rf"model \d: .*· {n} constituents ·")
    kept = [cell.locator(".tokens").nth(i).inner_text() for i in (0, 1)]
    assert kept[0] == kept[1] and pixels(cell.locator(".omnijet-canvas").nth(0)) != pixels(cell.locator(".omnijet-canvas").nth(2))
    cell.get_by_role("button", name="Finish").click()
    for title in titles:
        says(title, r"stopped|· 128 constituents")
    jets = [cell.locator(".tokens").nth(i).inner_text() for i in (0, 1)]
    assert jets[0] != jets[1] and all(jet.startswith(kept[0]) for jet in jets)
    fill(cell.locator("input[type=number]").last, 40)
    cell.get_by_role("button", name="Generate").click()
    says(cell, r"40 of 40 jets")
    boxes = [cell.locator(".omnijet-canvas").nth(i).bounding_box() for i in (0, 1, 2, 3)]
    assert len({round(box["y"]) for box in boxes}) == 1                              # all in one row at 1400 pixels
    chapter.shot("06_generation_two_models", cell)


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
    cell.get_by_role("button", name="Next").click()
    says(cell, "13 to 24 of 2,000 jets")
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


def test_codebook_plane_and_jet_are_linked(chapter):
    cell, page = chapter.widget("TokenExplorer(grid, jets)"), chapter.page
    title, jet = cell.locator(".omnijet-html", has=page.locator("h4")).first, cell.locator(".omnijet-canvas").nth(5)
    codebook, plane = cell.locator(".omnijet-canvas canvas:nth-child(2)").nth(0), cell.locator(".omnijet-canvas canvas:nth-child(2)").nth(1)
    rings = [canvas.evaluate("c => c.toDataURL()") for canvas in (codebook, plane)]
    said, x, y = point_at_a_mark(page, jet, 5)
    code = re.fullmatch(r"\d+: pT = [\d.]+ GeV, code (\d+)", said)[1]
    says(title, rf"code {code}\s")                                                  # the jet leads to the codebook and the plane
    for canvas, before in zip((codebook, plane), rings):
        page.wait_for_function("([c, before]) => c.toDataURL() !== before", arg=[canvas.element_handle(), before])
    box = jet.bounding_box()                                                         # a lasso in the jet
    page.mouse.move(box["x"] + 60, box["y"] + 40)
    page.mouse.down()
    for dx, dy in ((box["width"] - 20, 40), (box["width"] - 20, box["height"] - 60), (60, box["height"] - 60), (60, 50)):
        page.mouse.move(box["x"] + dx, box["y"] + dy, steps=5)
    page.mouse.up()
    says(title, r"\d+ codes: ")
    chapter.shot("06_token_explorer_linked", cell)
    which = cell.get_by_text(re.compile(r"jet [\d,]+ of [\d,]+ with it")).last
    before = which.inner_text()
    said, x, y = point_at_a_mark(page, cell.locator(".omnijet-canvas").nth(4), 5)     # contexts
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


def test_everything_has_a_name_for_a_screen_reader(chapter):
    for source in ("JetBrowser(jets)", "JetGallery(jets, grid, untrained, tagger=None)", "TokenExplorer(grid, jets)", "GenerationPlayground(small, grid, jets)", "TransferExplorer(made_up)"):
        cell = chapter.widget(source)
        chapter.page.wait_for_timeout(3000)                                          # sliders are named a second after they are shown
        tree = cell.locator(".jp-OutputArea-output").first.aria_snapshot()
        nameless = [line for line in tree.splitlines() if re.match(r"\s*- (button|slider|textbox|spinbutton|combobox|listbox|application|img)(?! \")", line)]
        assert not nameless, f"{source}: {nameless}"
        for canvas in cell.locator(".omnijet-canvas").all():
            if canvas.is_visible():
                assert canvas.get_attribute("tabindex") == "0" and "zoom" in canvas.get_attribute("aria-description")


def run_below(chapter, code):
    "Run a cell of code at the end of the notebook; its locator."
    chapter.page.evaluate("""code => { const book = window.jupyterapp.shell.currentWidget.content; book.deselectAll(); book.activeCellIndex = book.widgets.length - 1; }""", code)
    chapter.command("notebook:insert-cell-below")
    chapter.page.evaluate("""code => window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.setSource(code)""", code)
    chapter.command("notebook:run-cell")
    chapter.idle()
    assert not chapter.failures()
    return chapter.widget(code.strip().splitlines()[-1])


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


def test_a_missing_model_says_what_to_load(chapter):
    says(chapter.widget("missing"), r"omnijet/no-such-tokenizer: .*(\n.*)*TokenExplorer\('runs/")
    says(chapter.widget('TransferExplorer("no-such-run")'), r"run chapter 05_transfer first")


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


WIDGETS = {"01_vqvae": ["TokenExplorer(", "JetBrowser("], "04_generation": ["GenerationPlayground("], "05_transfer": ["TransferExplorer("]}


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

    tokenizer = load_tokenizer(RUN / "tokenizers" / "conditional-512")
    uses = np.bincount(ak.to_numpy(ak.flatten(tokenizer.encode(sample_jets()))), minlength=512)
    cell = opened.widget("TokenExplorer(")
    says(cell, "10,000 of 10,000 jets", 3 * MINUTE)
    title, number = cell.locator(".omnijet-html", has=opened.page.locator("h4")).first, cell.locator("input[type=number]").first
    code = int(np.argsort(uses)[-20])
    number.fill(str(code))
    number.press("Enter")
    says(title, rf"code {code}\s+used {uses[code]:,} times")
    cell.get_by_role("button", name="jet type").click()
    says(cell, "unused")
    opened.shot("token_explorer", cell.locator(".jp-OutputArea-output"), 1200)
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
    opened.shot("generation_step", cell.locator(".jp-OutputArea-output"), 1020)


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
    says(cell, r"([\d,]+) of \1 jets")
    changes(distribution, before)
    opened.page.mouse.move(2, 2)
    opened.shot("transfer_explorer", cell.locator(".jp-OutputArea-output"), 1120)


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
    assert not book.errors
    book.page.close()
