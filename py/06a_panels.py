# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Panels
#
# > Pictures written down as dictionaries, and drawn by matplotlib or by the browser.
#
# How does a widget draw a jet, a code or figure 7, so that what is saved is what was seen? Every view of the widgets ([06](06_widgets.ipynb)), which go
# through sections III A to III C of the paper, is a *panel* with two painters; the first half of this chapter makes them, and the buttons, bars and texts
# around them, the second half the panels of codes, of a jet that grows, and of transfer learning.

# %% [markdown]
# ```mermaid
# flowchart LR
#     simulation --> jets
#     files --> jets
#     jets --> tokens --> backbone --> generated(new jets)
#     jets --> observables
#     backbone --> tagger
#     jets & tokens & generated & tagger -.-> panels
#     style panels fill:#ffa90e,color:#111
# ```

# %%
#| default_exp panels
reads = []  # chapters whose work this one needs
writes = []  # what it leaves in the run folder

# %%
#| export
import atexit, io, json, os, re, threading, time
from numbers import Real
from pathlib import Path

import anywidget, pyarrow.csv, pyarrow.parquet, torch, traitlets
import awkward as ak
import ipywidgets as W
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

import omnijet
from omnijet.files import OmnijetError, as_number, run_path
from omnijet.data import CLASSES, CLASS_NAMES, FEATURES, FeatureScaling, MAX_CONSTITUENTS, Ragged
from omnijet.data import class_indices, sample_jets
from omnijet.observables import PALETTE, color, flat_constituents, jet_mass, n_constituents
from omnijet.vqvae import BinnedTokenizer
from omnijet.gpt import Sampling, probabilities, sample, uniforms
from omnijet.transfer import METRICS, STRATEGIES, over_seeds

# %%
from omnijet.data import sample_jets
from omnijet.gpt import GenerativeModel
from omnijet.training import TrainingConfig, train
from omnijet.vqvae import BinnedTokenizer

# %% tags=["parameters"]
preset = "smoke"
run_dir = "../runs/smoke"
seed = 1

# %% [markdown]
# ## A picture, described once
#
# A panel is two axes and a few layers of marks, written down as a dictionary. Two painters know how to draw one: matplotlib, for files and for runs without a
# browser, and a canvas in the browser, for everything that moves. What is saved is therefore what is seen.
#
# A layer whose marks can be pointed at has `ids` (and the panel `tips`: their texts, or what precedes the id), whole numbers that say which code, jet or point a mark stands for; layers in several panels with the same
# `ids` can be linked.

# %%
#| export
ORIGINAL, RECONSTRUCTED = PALETTE[0], PALETTE[2]
FAINT = "faint"  # a colour near to that of the page, be it light or dark
RAMP = ["#440f64", "#472d7b", "#3b518b", "#2c718e", "#21908d", "#27ad81", "#5cc863", "#aadc32",
        "#e4c62b"]  # viridis, without its palest end
CANVAS = Path(omnijet.__file__).with_name("canvas.js")


def axis(label="", range=(0, 1), log=False, names=None) -> dict:
    "An axis of a panel; `names` stand at the positions 0, 1, 2 …, instead of numbers."
    return {"label": label, "range": [float(end) for end in range], "log": log, "names": names}


def panel(x, y, *layers, size=(320, 320), title="", tips=None, lasso=False, bar=None) -> dict:
    "Axes, layers with a `mark` (circles, points, bars, steps or line), `tips` of marks with ids."
    return {"x": x, "y": y, "layers": [layer for layer in layers if layer], "size": list(size),
            "title": title, "tips": tips, "lasso": lasso, "bar": bar}

# %%
empty = panel(axis("p_T [GeV]", (1, 1000), log=True), axis("use"), title="no layer yet")
assert empty["layers"] == [] and empty["x"]["range"] == [1.0, 1000.0]


# %% [markdown]
# The most common layer and the most common panel: a jet.

# %%
#| export
def circles(constituents, color: str, name: str, **more) -> dict:  # more: `fill`, `ids`
    "Constituents in the η–φ plane, area ∝ p_T: disks of an opacity `fill`, or rings."
    pt, eta, phi = (np.asarray(constituents[name], np.float32) for name in FEATURES)
    return {"mark": "circles", "name": name, "color": color,
            "x": eta, "y": phi, "r": 1.1 * np.sqrt(pt), **more}


ETA, PHI = axis("η_rel", (-0.85, 0.85)), axis("φ_rel", (-0.85, 0.85))


def jet_panel(original, reconstruction=None, size=(400, 400), title="") -> dict:
    "One jet's constituents, and rings for those after a tokenizer; ids: positions in the jet."
    disks = circles(original, ORIGINAL, "original", fill=0.45, ids=np.arange(len(original)))
    rings = reconstruction is not None and circles(reconstruction, RECONSTRUCTED, "reconstructed")
    tips = [f"{i}: p_T = {pt:.1f} GeV" for i, pt in enumerate(original.pt)]
    return panel(ETA, PHI, disks, rings, size=size, tips=tips, title=title)

# %%
jets = sample_jets(max_jets=200)
top = jets[jets.label == CLASSES.index("TTBar")][0]
plane = jet_panel(top.constituents, title=f"t → bqq′, p_T = {top.pt:.0f} GeV")
radii = plane["layers"][0]["r"]
assert len(plane["layers"]) == 1
assert (radii[:-1] >= radii[1:]).all()  # constituents come by falling p_T


# %% [markdown]
# ## The first painter: matplotlib
#
# It gives a figure that belongs to no window, so nothing is shown twice.

# %%
#| export
def _math(text: str) -> str:
    "Subscripts as matplotlib writes them."
    return re.sub(r"(\w)_(\w+)", r"$\1_\\mathrm{\2}$", text)


def paint(p: dict, ax):
    "Draw the panel `p` on matplotlib's axes."
    for layer in p["layers"]:
        mark, name, fill = layer["mark"], layer.get("name"), layer.get("fill")
        colors = [{FAINT: "#cccccc"}.get(c, c) for c in layer.get("colors") or [layer["color"]]]
        c = [colors[i] for i in layer["c"]] if "c" in layer else colors[0]
        if mark in ("circles", "points"):
            radius = np.asarray(layer["r"] if mark == "circles" else layer["size"])
            look = {"c": c, "alpha": fill, "linewidths": 0}
            if mark == "circles" and not fill:
                look = {"facecolors": "none", "edgecolors": c, "linewidths": 1.1}
            ax.scatter(layer["x"], layer["y"], (1.5 * radius) ** 2, label=name, **look)  # points²
        elif mark == "bars":
            ax.barh(np.arange(len(layer["value"])), layer["value"], 0.7, color=c, label=name)
        elif mark == "steps":
            ax.stairs(layer["values"], layer["edges"], color=c, fill=bool(fill), alpha=fill or 1,
                      linewidth=1.6, label=name)
        else:
            ax.errorbar(layer["x"], layer["y"], layer["error"], color=c, label=name,
                        linestyle="--" if layer["dash"] else "-", linewidth=1.4, capsize=2)
    for which, pixels in zip("xy", p["size"]):
        a = p[which]
        ax.set(**{f"{which}label": _math(a["label"]), f"{which}lim": a["range"],
                  f"{which}scale": "log" if a["log"] else "linear"})
        if a["names"] is not None:
            ax.set(**{f"{which}ticks": range(len(a["names"])), f"{which}ticklabels": a["names"]})
            ax.minorticks_off()
        elif not a["log"]:
            ax.locator_params(axis=which, nbins=pixels // 60)
    ax.set_title(_math(p["title"]), fontsize="medium", loc="left")
    if p["bar"]:
        colors = plt.cm.ScalarMappable(cmap=ListedColormap(p["bar"]["colors"]))
        scale = ax.figure.colorbar(colors, ax=ax, location="top", shrink=0.6, aspect=30)
        scale.set_ticks([0, 1], labels=[p["bar"]["low"], p["bar"]["high"]])
        scale.set_label(_math(p["bar"]["label"]), fontsize="small")
    if any(layer.get("name") for layer in p["layers"]):
        for handle in ax.legend(fontsize="small", frameon=False).legend_handles:
            if hasattr(handle, "set_sizes"):
                handle.set_sizes([40])  # circles and points alike


def picture(*panels):
    "A matplotlib figure of panels side by side."
    widths, heights = zip(*(p["size"] for p in panels))
    fig, axes = plt.subplots(1, len(panels), figsize=(sum(widths) / 80, max(heights) / 80),
                             width_ratios=widths, squeeze=False, layout="constrained")
    for p, ax in zip(panels, axes[0]):
        paint(p, ax)
    plt.close(fig)
    return fig


# %%
picture(plane, jet_panel(jets[0].constituents, title=f"q/g, p_T = {jets[0].pt:.0f} GeV"))

# %% [markdown]
# ## The second painter: a canvas
#
# `omnijet/canvas.js`, one file of plain JavaScript without a build step, draws any panel in the browser; [anywidget](https://anywidget.dev) carries it there.
# Colours follow JupyterLab's theme: text in the theme's colours, and on a dark page every colour a little lighter. What the pointer is over goes to `hover`, a
# click or a lasso to `selected`; Shift and the wheel zoom, a double click zooms back; arrow keys are messages. On a second canvas above the first lie only
# the rings around what is pointed at, so that nothing else is drawn again when the mouse moves.

# %%
#| export
def _pack(p, widget=None):
    "A panel as the browser takes it: arrays as float32 bytes."
    layers = [{key: memoryview(np.ascontiguousarray(value, np.float32))
               if isinstance(value, np.ndarray) else value for key, value in layer.items()}
              for layer in p.get("layers", [])]
    return {**p, "layers": layers}


class Canvas(anywidget.AnyWidget):
    "A panel in the browser; `hover` and `selected`: the ids that the pointer is on and has chosen."
    _esm, _css = CANVAS, CANVAS.with_suffix(".css")
    panel = traitlets.Dict().tag(sync=True, to_json=_pack)
    hover = traitlets.Int(-1).tag(sync=True)
    selected = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(self, panel=None, on_click=None, on_arrow=None):
        "`on_click(id)`; `on_arrow(1)` for the keys → and ↓, `on_arrow(-1)` for ← and ↑."
        super().__init__(panel=panel or {})

        def message(_, content, buffers):
            if "click" in content and on_click:
                on_click(int(content["click"]))
            if "key" in content and on_arrow:
                on_arrow(1 if content["key"] in ("ArrowRight", "ArrowDown") else -1)

        self.on_msg(message)


def link(*canvases):
    "What is pointed at or selected in one is so in all, in the browser itself."
    for one, two in zip(canvases, canvases[1:]):
        for name in ("hover", "selected"):
            W.jslink((one, name), (two, name))

# %% [markdown]
# A canvas is made from a panel, and shows another as soon as it is given one.

# %%
canvas = Canvas(plane)
canvas.panel = jet_panel(jets[0].constituents)
assert len(_pack(canvas.panel)["layers"][0]["x"]) == len(jets[0].constituents)


# %% [markdown]
# ## Buttons, texts, saving
#
# Four buttons below a picture save what is seen: as PNG or PDF, and its data as CSV or Parquet.

# %%
#| export
def control(kind, changed, width: int, **options) -> W.Widget:  # kind: W.Dropdown, W.IntSlider …
    "A control that calls `changed()` when it has another value."
    look = {"layout": {"width": f"{width}px"}, "style": {"description_width": "initial"}}
    made = kind(**look | options)
    if hasattr(made, "continuous_update"):
        made.continuous_update = False
    made.observe(lambda _: changed(), "value")
    return made


def button(text: str, icon: str, go, width: int = 100, tooltip: str = "", focus=None) -> W.Button:
    "A button that calls `go()`; afterwards arrow keys go to the canvas `focus`."
    made = W.Button(description=text, icon=icon, tooltip=tooltip, layout={"width": f"{width}px"})
    made.on_click(lambda _: go())
    if focus is not None:
        made.on_click(lambda _: focus.send({"focus": True}))
    return made


def html(text: str = "") -> W.HTML:
    "A text that looks alike in all widgets."
    return W.HTML(text, _dom_classes=["omnijet-html"])


def row(*children) -> W.HBox:
    "Side by side, and below each other where the page is narrow."
    flow = {"flex_flow": "row wrap", "align_items": "flex-start", "grid_gap": "12px"}
    return W.HBox(children, layout=flow)


def saved(kind: str, panels: list, table: dict) -> bytes:
    "A PNG or PDF of the panels, or a CSV or Parquet file of a table {column: (n,) values}."
    file = io.BytesIO()
    if kind in ("PNG", "PDF"):
        picture(*panels).savefig(file, format=kind.lower(), dpi=150, bbox_inches="tight")
    else:
        write = {"CSV": pyarrow.csv.write_csv, "Parquet": pyarrow.parquet.write_table}[kind]
        write(pyarrow.table(table), file)
    return file.getvalue()


def framed(name: str, table, *canvases) -> W.VBox:  # name: of the files
    "Canvases side by side, and buttons to download the picture or its data, `table()`."

    def save(kind):
        file = saved(kind, [canvas.panel for canvas in canvases], table())
        canvases[0].send({"download": f"{name}.{kind.lower()}"}, [file])

    buttons = [button(kind, "download", lambda kind=kind: save(kind), 96, f"save as {kind}")
               for kind in ("PNG", "PDF", "CSV", "Parquet")]
    return W.VBox([row(*canvases), W.HBox(buttons)])

# %%
constituents = {name: ak.to_numpy(top.constituents[name]) for name in FEATURES}
begins = {"PNG": b"\x89PNG", "PDF": b"%PDF", "Parquet": b"PAR1"}
assert all(saved(kind, [plane], constituents).startswith(begins[kind]) for kind in begins)
assert saved("CSV", [plane], constituents).count(b"\n") == len(top.constituents) + 1


# %% [markdown]
# ## Long work
#
# Long computations are generators: each `yield` says how much is done. They run in a thread, so that the notebook stays free; the stop button ends them at the
# next `yield`. Drawing takes time too, and so is done only now and then, and in the end.

# %%
#| export
class Work(W.HBox):
    "A progress bar with a stop button, for one computation at a time."

    def __init__(self):
        self.bar, self.text = W.IntProgress(layout={"width": "180px"}), W.Label()
        self.button = button("Stop", "stop", self.stop, 80)
        self.button.disabled = True
        self.thread, self.ended = None, threading.Event()
        atexit.register(self.wait)  # the last registered comes first: it ends between two steps
        atexit.register(self.stop)
        super().__init__([self.bar, self.button, self.text])

    def start(self, steps, total: int, draw=lambda: None, every: float = 0.3):
        "Run `steps`, which yield how many jets are done, in a thread; `draw()` `every` so often."
        self.stop()
        self.wait()
        ended = self.ended = threading.Event()
        self.bar.max, self.bar.value, self.bar.bar_style = total, 0, ""
        self.button.disabled = False

        def run():
            last = time.perf_counter()
            try:
                for done in steps:
                    self.bar.value = done
                    self.text.value = f"{done:,} of {self.bar.max:,} jets"
                    if ended.is_set():
                        break
                    if time.perf_counter() - last > every:
                        draw()
                        last = time.perf_counter()
                steps.close()  # what it does in `finally`
                draw()
                self.bar.bar_style = "" if ended.is_set() else "success"
                self.text.value += ", stopped" * ended.is_set()
            except Exception as error:  # a thread has nobody else to tell
                self.bar.bar_style, self.text.value = "danger", f"{type(error).__name__}: {error}"
            self.button.disabled = True

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def stop(self):
        "End it at its next step."
        self.ended.set()

    def wait(self):
        "Return when it has ended."
        if self.thread not in (None, threading.current_thread()):
            self.thread.join()

# %%
work, drawn = Work(), []
work.start((i for i in range(1, 1001)), 1000, draw=lambda: drawn.append(work.bar.value))
work.wait()
assert work.text.value == "1,000 of 1,000 jets" and work.button.disabled and drawn[-1] == 1000


# %% [markdown]
# ## Without a browser, without a model
#
# With `OMNIJET_HEADLESS=1`, which `omnijet run` sets, a widget is the picture of its first view. And a model that is not there is a text that says what to load.

# %%
#| export
def headless() -> bool:
    "Whether pictures take the place of widgets."
    return os.environ.get("OMNIJET_HEADLESS", "") not in ("", "0")


def note(error, example: str):
    "What a widget shows when its model is missing: an example of what can be shown after a run."
    use = "Give a model, its folder or its name, for instance, after omnijet run:"
    if headless():
        fig = plt.figure(figsize=(7, 1))
        fig.text(0.01, 0.5, f"{error}\n{use}\n{example}", wrap=True, va="center")
        plt.close(fig)
        return fig
    style = f"<style>{CANVAS.with_suffix('.css').read_text()}</style>"
    text = f"<h4>Nothing to show yet</h4><p>{error}</p><p>{use} <code>{example}</code></p>"
    return W.VBox([html(style + text)])


# %%
note("omnijet/tokenizer-4: no such folder", "TokenExplorer('runs/smoke/tokenizers/binned-21')")


# %% [markdown]
# ## Pictures of codes
#
# What does a code mean? For a conditional tokenizer the answer depends on the jet it stands in. `CodeUse` tokenizes jets, a few hundred at a time, and remembers
# every constituent with its code and its reconstruction. A code that has not been seen lies where it is decoded to among random other codes.

# %%
#| export
def shown_jets(jets=None, to_tokenize=False) -> ak.Array:  # {constituents, label}; −1: no label
    "Jets, one jet, constituents alone, or (None) the sample; `OmnijetError` for anything else."
    jets = sample_jets() if jets is None else jets
    try:
        jets = jets if isinstance(jets, ak.Record) else ak.Array(jets)
        parts = jets["constituents"] if "constituents" in jets.fields else jets
        if set(FEATURES) <= set(parts.fields):
            parts = {name: ak.Array(parts[name]) for name in FEATURES}
            parts = ak.zip({k: x[np.newaxis] if x.ndim == 1 else x for k, x in parts.items()})
        if not len(parts):
            raise OmnijetError("there are no jets to show")
        flat_constituents(parts)
        known = "label" in jets.fields
        label = class_indices(ak.to_list(jets["label"])) if known else np.full(len(parts), -1)
        jets = ak.zip({"constituents": parts, "label": np.asarray(label)}, depth_limit=1)
    except OmnijetError:
        raise
    except Exception as error:
        found = str(getattr(jets, "type", type(jets).__name__))[:100]
        raise OmnijetError(f"jets are {found}, expected jets or their constituents") from error
    if to_tokenize:
        BinnedTokenizer((1, 1, 1)).encode(parts)  # it refuses what all tokenizers refuse
    return jets


def _flat(constituents) -> np.ndarray:  # (total, 3)
    return np.stack(flat_constituents(constituents)[1:], 1)


def latent_plane(tokenizer) -> np.ndarray:  # (codebook_size, 2)
    "The two main components of the codebook; without one, of the decoded codes (scaled features)."
    if hasattr(tokenizer, "quantizer"):
        points = tokenizer.quantizer.get_codebook().detach().cpu().double().numpy()
    else:
        codes = np.arange(tokenizer.codebook_size)[:, None]
        points = FeatureScaling().scale(_flat(tokenizer.decode(codes)))
    points = points - points.mean(0)
    return points @ np.linalg.svd(points, full_matrices=False)[2][:2].T

# %%
plane_of_bins = latent_plane(BinnedTokenizer((2, 2, 2)))
assert ak.all(shown_jets(jets).label == jets.label)
assert np.all(shown_jets(jets.constituents).label == -1) and len(shown_jets(top)) == 1
assert plane_of_bins.shape == (8, 2) and np.allclose(plane_of_bins.mean(0), 0)


# %%
#| export
class CodeUse:
    "Which constituents of which jets a tokenizer gives each code, and what it makes of them."

    def __init__(self, tokenizer, jets):
        jets = shown_jets(jets, to_tokenize=True)
        label = np.asarray(jets.label)
        if label.min() < 0:
            raise OmnijetError("these jets have no label: the use of codes is shown by jet type")
        by = np.argsort(label, kind="stable")
        rank = np.arange(len(jets)) - np.searchsorted(label[by], label[by])
        order = by[np.argsort(rank, kind="stable")]  # classes in turn: a part has all of them
        self.tokenizer, self.size = tokenizer, tokenizer.codebook_size
        self.jets, self.label, self.done, self.parts = jets[order], label[order], 0, []
        self.latent = latent_plane(tokenizer)
        codes = np.random.default_rng(1).permutation(self.size)  # in jets of random codes
        lengths = np.bincount(np.arange(self.size) // MAX_CONSTITUENTS)
        self.unseen = _flat(tokenizer.decode(ak.unflatten(codes, lengths)))[np.argsort(codes)]

    def steps(self, n: int = 100):  # yields the number of jets done
        "Tokenize the jets that are left, `n` at a time."
        n = as_number(n, "n", 1)
        for first in range(self.done, len(self.jets), n):
            some = self.jets.constituents[first:first + n]
            tokens = self.tokenizer.encode(some)
            self.parts.append((ak.to_numpy(ak.num(tokens)), ak.to_numpy(ak.flatten(tokens)),
                               _flat(some), _flat(self.tokenizer.decode(tokens))))
            self.done = first + len(some)
            yield self.done

    def collect(self):
        "Sum up what has been tokenized."
        lengths, self.code, self.original, self.decoded = map(np.concatenate, zip(*self.parts))
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.jet = np.repeat(np.arange(len(lengths)), lengths)
        K, scaling = self.size, FeatureScaling()
        both = self.label[self.jet] * K + self.code
        self.by_type = np.bincount(both, minlength=10 * K).reshape(10, K)
        self.count = self.by_type.sum(0)  # (K,)
        sums = [np.bincount(self.code, x, K) for x in scaling.scale(self.decoded).T]
        mean = scaling.unscale(np.stack(sums, 1) / np.maximum(self.count, 1)[:, None])
        self.at = np.where(self.count[:, None] > 0, mean, self.unseen)  # (K, 3)

    def rows(self, codes) -> np.ndarray:
        "Positions in `code`, `jet`, `original`, `decoded` of the constituents with one of `codes`."
        return np.flatnonzero(np.isin(self.code, codes))

    def contexts(self, code: int, n: int = 50, seed: int = 1) -> np.ndarray:  # (n, 3)
        "What the code would be in `n` of the jets, in each of which it replaces one constituent."
        rng = np.random.default_rng(seed)
        jets = rng.integers(len(self.starts) - 1, size=as_number(n, "n", 1))
        tokens = Ragged(self.code, self.starts)[jets]
        at = tokens.offsets[:-1] + rng.integers(tokens.lengths)
        tokens.content[at] = code
        return _flat(self.tokenizer.decode(ak.unflatten(tokens.content, tokens.lengths)))[at]

# %%
grid = BinnedTokenizer((8, 8, 8))
use = CodeUse(grid, jets[::10])
assert list(use.steps(50)) == [50, 100, 150, 200]
use.collect()
assert use.count.sum() == ak.sum(ak.num(jets[::10].constituents)) == use.by_type.sum()
code = int(use.count.argmax())
codes = np.asarray(ak.flatten(grid.encode(use.jets)))
assert np.sum(codes == code) == len(use.rows([code]))
assert np.allclose(use.contexts(code), use.unseen[code])  # bins do not look at other constituents

# %% [markdown]
# Three scatters show one point a code, linked by its number: in latent space, in the plane, and as p_T against the distance from the axis.

# %%
#| export
def code_panels(use: CodeUse, by: str = "use", pt_range: tuple = (0, np.inf)) -> list:
    "Three panels with a point for each code, coloured by use, p_T or jet type."
    pt, eta, phi = use.at.T
    used = (use.count > 0) | (by == "p_T")
    if by == "jet type":  # the one of whose constituents the code has the largest share
        share = use.by_type / np.maximum(use.by_type.sum(1, keepdims=True), 1)
        level, colors, bar = share.argmax(0), [*map(color, CLASSES)], None
    else:
        value = np.log10(pt if by == "p_T" else np.maximum(use.count, 1))
        low, high = np.quantile(value[used], [0.05, 1])
        level = np.clip((value - low) / max(high - low, 1e-9) * 9, 0, 8).astype(int)
        low, high = (f"{10**end:,.0f}" if end > 2 else f"{10**end:.3g}" for end in (low, high))
        bar = {"label": by + " [GeV]" * (by == "p_T"), "low": f"≤ {low}", "high": high}
        colors, bar = RAMP, {**bar, "colors": RAMP}
    ids = np.flatnonzero((pt >= pt_range[0]) & (pt <= pt_range[1]))
    ids = ids[np.argsort(use.count[ids], kind="stable")]  # the often used ones last, on top
    look = {"mark": "points", "c": (used * (1 + level))[ids], "colors": [FAINT, *colors],
            "ids": ids, "size": 3.5 if use.size <= 1024 else 2.2}
    latent, margin = use.latent.T, 0.05 * np.ptp(use.latent, 0) + 1e-6
    ends = zip(latent.min(1) - margin, latent.max(1) + margin)
    first, second = map(axis, ("first component", "second component"), ends)
    log_pt = axis("p_T [GeV]", (pt.min() / 1.5, pt.max() * 1.5), log=True)
    distance = axis("distance ΔR from the axis", (0, 1.1))
    views = (("codebook", first, second, *latent, bar), ("in the plane", ETA, PHI, eta, phi, None),
             ("in p_T", log_pt, distance, pt, np.hypot(eta, phi), None))
    return [panel(x, y, {**look, "x": u[ids], "y": v[ids]}, title=title, bar=bar, tips="code",
                  lasso=True, size=(330, 340)) for title, x, y, u, v, bar in views]


# %%
picture(*code_panels(use))


# %% [markdown]
# And two panels for one code, or for some: in which jets it is used, and what was given it.

# %%
#| export
def use_panel(use: CodeUse, codes) -> dict:
    "How often codes are used in jets of each type."
    jets = np.bincount(use.label[:len(use.starts) - 1], minlength=len(CLASSES))
    value = use.by_type[:, codes].sum(1) / np.maximum(jets, 1)
    bars = {"mark": "bars", "value": value, "c": np.arange(10), "colors": [*map(color, CLASSES)]}
    x = axis("times a jet", (0, value.max() * 1.1 or 1))
    y = axis("", (9.5, -0.5), names=CLASS_NAMES)
    return panel(x, y, bars, title="use by jet type", size=(300, 320))


def contexts_panel(use: CodeUse, codes, put=None) -> dict:
    "What was given these codes, and what became of it (at most 1,000) or of a rare code (`put`)."
    rows = use.rows(codes)[:1000]
    name, decoded = ("reconstructed", use.decoded[rows]) if put is None else ("put into jets", put)
    clouds = (("original", use.original[rows], ORIGINAL, 2.0), (name, decoded, RECONSTRUCTED, 2.4))
    around = np.concatenate([points for _, points, *_ in clouds])[:, 1:]
    around = around if len(around) else np.zeros((1, 2))
    middle = np.median(around, 0)
    half = max(0.1, 1.1 * np.quantile(np.abs(around - middle), 0.98))
    x, y = (axis(a["label"], (m - half, m + half)) for a, m in zip((ETA, PHI), middle))
    return panel(x, y, *({"mark": "points", "name": name, "x": points[:, 1], "y": points[:, 2],
                          "color": c, "size": size} for name, points, c, size in clouds),
                 title="contexts")


# %%
picture(*code_panels(use, "jet type")[1:], use_panel(use, [code]), contexts_panel(use, [code]))


# %% [markdown]
# ## A jet, token by token
#
# `Growing` is a jet that is being made: what the model expects next, where it would put it, and the token drawn. It uses the random numbers of
# `model.generate`, so that a jet made step by step is the one that `generate` makes; by hand, one may choose otherwise.

# %%
#| export
class Growing:
    "A jet under construction: `codes` (0 … K − 1), `finished` when it has stopped."

    def __init__(self, model, tokenizer, number: int = 0, **options):  # options: those of Sampling
        has, needs = tokenizer.codebook_size, model.vocabulary.codebook_size
        if has != needs:
            raise OmnijetError(f"the tokenizer has {has} codes, the model {needs}: "
                               "they do not belong together")
        self.model, self.tokenizer, self.stop = model, tokenizer, model.vocabulary.stop
        self.number, self.options = as_number(number, "number", 0), Sampling(**options)
        self.options.label(model.vocabulary)  # raises now what it would raise at the first token
        self.codes, self.finished = [], False

    @torch.inference_mode()
    def scores(self) -> torch.Tensor:  # (1, K + 2)
        "Unnormalized log-probabilities of the next token; what cannot come is −∞."
        v, codes = self.model.vocabulary, torch.tensor([self.codes], dtype=torch.long)
        read = torch.cat([v.prefix(1, self.options.label(v)), codes + 1], 1)
        scores = self.model.head(self.model.backbone(read)[:, -1]).float()
        scores[:, [v.start] if self.codes else [v.start, v.stop]] = -np.inf
        return scores

    def expected(self, n: int = 20) -> tuple:
        "The `n` likeliest next tokens and their probabilities, as they would be drawn."
        o = self.options
        p = probabilities(self.scores(), o.temperature, o.top_k, o.top_p)[0]
        best = p.topk(min(as_number(n, "n", 1), int((p > 0).sum())))
        return best.indices.numpy(), best.values.numpy()

    def places(self, tokens) -> np.ndarray:  # (n, 3)
        "Where each of `tokens` (not the stop token) would put its constituent."
        jets = [[*self.codes, int(token) - 1] for token in tokens]
        decoded = _flat(self.tokenizer.decode(jets)) if jets else np.zeros((0, 3))
        return decoded.reshape(len(jets), len(self.codes) + 1, 3)[:, -1]

    def constituents(self) -> ak.Array:  # of one jet
        return self.tokenizer.decode([self.codes or [0]])[:, :len(self.codes)]

    def add(self, token: int):
        "Put a token behind the others; the stop token ends the jet, as does the longest's last."
        token = as_number(token, "token", 1, self.stop)
        if token == self.stop:
            self.finished = bool(self.codes)
        elif not self.finished:
            self.codes = [*self.codes, token - 1]
            self.finished = len(self.codes) >= self.options.max_constituents

    def draw(self, everything: bool = False):
        "Draw the next token and add it; or go on until the jet is finished."
        o, more = self.options, not self.finished
        while more:
            u = uniforms(o.seed, torch.tensor([self.number]), len(self.codes))
            self.add(sample(self.scores(), u, o.temperature, o.top_k, o.top_p)[0])
            more = everything and not self.finished

    def undo(self):
        "Take the last token back."
        if not self.finished or len(self.codes) >= self.options.max_constituents:
            self.codes = self.codes[:-1]
        self.finished = False

# %% [markdown]
# Here a small model, some seconds old: it knows that soft constituents follow hard ones, and not much more. Step by step and in one go it makes the same jet.

# %%
torch.manual_seed(seed)
small = GenerativeModel(grid.codebook_size, width=32, blocks=1, heads=4)
tokens = Ragged.from_tokens(ak.zip({"tokens": grid.encode(jets)}, depth_limit=1))
config = TrainingConfig(epochs=2, batch_size=64, lr=5e-3)
train(small, tokens, config=config, progress=False)
growing = Growing(small, grid, seed=seed, number=3)
growing.draw(everything=True)
assert growing.codes == small.generate(1, seed=seed, first=3, progress=False)[0].to_list()
growing.undo()
likeliest, p = growing.expected(514)
assert small.vocabulary.stop in likeliest and (np.diff(p) <= 0).all()
likeliest = likeliest[likeliest != small.vocabulary.stop]
assert np.allclose(growing.places(likeliest), use.unseen[likeliest - 1])


# %%
#| export
def growing_panels(growing: Growing, tokens, p) -> list:
    "The likeliest next tokens as bars; the jet so far, and rings where they would lie."
    names = ["stop" if t == growing.stop else str(t - 1) for t in tokens]
    tips = [f"{name}: {100 * q:.2g} %, click to choose" for name, q in zip(names, p)]
    bars = {"mark": "bars", "value": p, "color": PALETTE[1], "ids": tokens}
    x = axis("probability", (0, max(1.1 * p[0], 1e-3) if len(p) else 1))
    y = axis("", (19.6, -0.6), names=names)
    ids = tokens[tokens != growing.stop]
    rings = circles(dict(zip(FEATURES, growing.places(ids).T)), PALETTE[1], "next", ids=ids)
    disks = circles(growing.constituents()[0], ORIGINAL, "the jet", fill=0.45)
    return [panel(x, y, bars, tips=tips, size=(300, 420),
                  title="next token" if len(p) else "the jet has stopped"),
            panel(ETA, PHI, disks, rings, tips="code token", size=(420, 420),
                  title=f"jet {growing.number}, {len(growing.codes)} constituents")]


def histogram_panel(samples: dict, edges, label: str, title: str, size=(400, 300)) -> dict:
    "Densities of an observable; `samples` is {name: (values, colour, opacity of the filling)}."
    steps, top = [], 0
    for name, (values, colour, fill) in samples.items():
        density = np.histogram(values, edges)[0] / max(len(values), 1) / np.diff(edges)
        top = max(top, density.max())
        steps.append({"mark": "steps", "name": name, "color": colour, "fill": fill,
                      "edges": edges, "values": density})
    x, y = axis(label, (edges[0], edges[-1])), axis("density", (0, 1.25 * top or 1))
    return panel(x, y, *steps, title=title, size=size)


def mass_and_count(constituents) -> dict:
    return {"mass": jet_mass(constituents), "count": n_constituents(constituents)}


def generated_panels(real: dict, generated: dict) -> list:
    "Mass and number of constituents of generated and real jets, as `mass_and_count` gives them."
    title = f"{len(generated['mass']):,} generated jets"
    return [histogram_panel({"real": (real[key], "#9e9e9e", 0.4),
                             "generated": (generated[key], RECONSTRUCTED, 0)}, edges, label, title)
            for key, edges, label in (("mass", np.linspace(0, 300, 41), "jet mass [GeV]"),
                                      ("count", np.linspace(0, 128, 33), "constituents"))]

# %%
growing = Growing(small, grid, seed=seed)
for _ in range(5):
    growing.draw()
made = mass_and_count(grid.decode(small.generate(200, seed=seed, progress=False)))
picture(*growing_panels(growing, *growing.expected()),
        *generated_panels(mass_and_count(jets), made))


# %% [markdown]
# ## Figure 7
#
# A sweep of chapter [05](05_transfer.ipynb) leaves a folder with one trained classifier for each point and seed.

# %%
#| export
def read_sweep(results, run_dir=None) -> list:  # dictionaries with `name`, `folder` (or None)
    "Finished trainings of a run, or of what `sweep` returned, with the metrics that are numbers."
    if isinstance(results, (str, Path)):
        folder = run_path(results, "transfer", chapter="05_transfer")
        run_dir, results = results, sorted(folder.glob("*_seed*/result.json"))
    trainings, item = [], results
    try:
        for item in results:
            r = json.loads(item.read_text()) if isinstance(item, Path) else item
            r = {key: value for key, value in r.items()
                 if key not in METRICS or isinstance(value, Real) and np.isfinite(value)}
            if METRICS.keys() & r.keys():
                strategy, size, seed = r["strategy"], as_number(r["size"], "size", 1), r["seed"]
                name = f"{STRATEGIES[strategy]}, {size:,} jets, seed {seed}"
                folder = Path(run_dir or "", "transfer", f"{strategy}_{size}_seed{seed}")
                trainings.append({**r, "size": size, "name": name, "folder": run_dir and folder})
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        found = item if isinstance(item, Path) else str(item)[:80]
        raise OmnijetError(f"{found}: not the result of a training ({error!r})") from error
    if not trainings:
        raise OmnijetError(f"{run_dir or 'results'}: no finished training (…_seed…/result.json): "
                           "run chapter 05_transfer first")
    return trainings


def sweep_panel(trainings: list, metric: str, strategies) -> tuple:  # panel, the trainings in it
    "A metric against the training size: each training, mean and deviation over seeds."
    found = [r for r in trainings if r["strategy"] in strategies and metric in r]
    sizes, values = (np.array([r[key] for r in found], float) for key in ("size", metric))
    lines, ends = [], [values]
    for strategy in dict.fromkeys(r["strategy"] for r in found):
        x, y, spread = over_seeds(found, strategy, metric)
        name, error = STRATEGIES[strategy], np.nan_to_num(spread)
        lines.append({"mark": "line", "color": color(name), "name": name, "x": x.astype(float),
                      "y": y, "error": error, "dash": strategy == "scratch"})
        ends += [y - error, y + error]
    ids, colors = np.arange(len(found)), [color(STRATEGIES[r["strategy"]]) for r in found]
    points = found and {"mark": "points", "x": sizes, "y": values, "size": 4.0, "ids": ids,
                        "c": ids, "colors": colors}
    ends = np.concatenate(ends) if found else np.array([0, 1])
    margin = 0.1 * np.ptp(ends) or 0.05
    span = (sizes.min() / 1.6, sizes.max() * 1.6) if found else (10, 1000)
    x = axis("training jets", span, log=True)
    y = axis(METRICS[metric], (ends.min() - margin, ends.max() + margin))
    tips = [f"{r['name']}: {r[metric]:.4g}" for r in found]
    return panel(x, y, *lines, points, title="figure 7", size=(520, 400), tips=tips), found


def score_panel(scores, target, title: str, names) -> dict:
    "The distribution of the score for background and signal."
    samples = {names[0]: (scores[target == 0], PALETTE[0], 0.35),
               names[1]: (scores[target == 1], PALETTE[2], 0)}
    edges = np.linspace(0, 1, 41)
    return histogram_panel(samples, edges, f"score for {names[1]}", title, (400, 400))

# %% [markdown]
# Twelve trainings with numbers made up for this cell show how it is drawn.

# %%
made_up = [{"strategy": s, "size": n, "seed": k, "accuracy": 0.8 + 0.02 * k + 0.01 * i, "auc": 0.9}
           for i, s in enumerate(STRATEGIES) for n in (100, 1000) for k in (1, 2)]
drawn, found = sweep_panel(read_sweep(made_up), "accuracy", list(STRATEGIES))
assert len(found) == 12 and len(drawn["layers"]) == 4
assert np.allclose(drawn["layers"][0]["y"], 0.83)
picture(drawn)

# %% [markdown]
# A picture that is one dictionary can be drawn by two painters and still show the same. What they do not share is the choice of ticks and the zoom: a saved picture
# shows the whole panel. To try: a panel of your own, from the layers above, in a `Canvas`.
