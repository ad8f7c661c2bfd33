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
# # Widgets
#
# > Tokens, jets, generation and transfer, looked at by hand.
#
# What does code 17 mean? Where does the tokenizer move a constituent, and what would the model have drawn instead? Four widgets answer such questions in
# JupyterLab; they go through sections III A (tokens), III B (generation) and III C (transfer) of the paper, one jet, one code, one point at a time. What they
# draw is made in chapter [06a](06a_panels.ipynb); here it is put together with controls. Without a browser (in this file's outputs) a widget is the picture of its
# first view.
#
# | widget | what it shows |
# |---|---|
# | `JetBrowser` | a jet in the η–φ plane, its tokens, what the tokenizer makes of it |
# | `TokenExplorer` | all codes: where they lie, how often they are used, what they mean in a jet |
# | `GenerationPlayground` | a jet growing token by token, and the distributions of many |
# | `TransferExplorer` | figure 7, and the scores behind each of its points |

# %% [markdown]
# ```mermaid
# flowchart LR
#     simulation --> jets
#     files --> jets
#     jets --> tokens --> backbone --> generated(new jets)
#     jets --> observables
#     backbone --> tagger
#     classDef here fill:#ffa90e,color:#111
#     class jets,tokens,generated,tagger here
# ```

# %%
#| default_exp widgets
reads = ["01_vqvae", "03_gpt", "05_transfer"]  # chapters whose work this one needs
writes = []  # what it leaves in the run folder

# %%
#| export
import threading
from pathlib import Path

import awkward as ak
import ipywidgets as W
import numpy as np
from fastcore.basics import patch

from omnijet.files import OmnijetError
from omnijet.data import CLASSES, CLASS_NAMES, FEATURES, sample_jets
from omnijet.observables import color, flat_constituents, jet_mass, n_constituents, observables
from omnijet.vqvae import load_tokenizer
from omnijet.gpt import GenerativeModel, Sampling, load_tokens
from omnijet.transfer import JetClassifier, METRICS, STRATEGIES
from omnijet.panels import (
    Canvas, CodeUse, Growing, Work, button, code_panels, contexts_panel, control, framed,
    generated_panels, growing_panels, headless, html, jet_panel, link, mass_and_count, note,
    picture, read_sweep, row, score_panel, shown_jets, sweep_panel, use_panel,
)

# %%
import torch

from omnijet.data import Ragged
from omnijet.training import TrainingConfig, train
from omnijet.vqvae import BinnedTokenizer

# %% tags=["parameters"]
preset = "smoke"
run_dir = "../runs/smoke"
seed = 1

# %% [markdown]
# ## What widgets are given
#
# Jets, and models or their folders and names; without an argument a widget takes what comes with omnijet.

# %%
#| export
SHIPPED = {"tokenizer": "omnijet/tokenizer-512", "backbone": "omnijet/backbone",
           "its tokenizer": "omnijet/tokenizer-8192"}


def _loaded(given, load=load_tokenizer, needs="encode decode codebook_size"):
    "A model, or that of a folder or name; `OmnijetError` if it is of another kind."
    model = load(given) if isinstance(given, (str, Path)) else given
    if missing := [name for name in needs.split() if not hasattr(model, name)]:
        kind = type(model).__name__
        raise OmnijetError(f"{kind} has no {missing[0]}: another kind of model is expected here")
    return model


def _table(heads: list, rows: list, here: int = -1) -> str:
    "HTML of a table that scrolls, with one row marked."
    html = "".join(f"<th>{head}</th>" for head in heads)
    for i, cells in enumerate(rows):
        html += f"<tr{' class=here' * (i == here)}><td>{'</td><td>'.join(cells)}</td></tr>"
    return f"<div class='scroll'><table>{html}</table></div>"

# %%
jets = sample_jets(max_jets=200)
assert _table(["a", "b"], ["12"], here=0).count("<tr class=here>") == 1


# %% [markdown]
# ## Jets
#
# The jet browser goes through jets by button or arrow key, filled circles with the tokenizer's reconstruction as rings, and marks the constituent that is
# pointed at in its table and in the sequence of its tokens.

# %%
#| export
def _before_and_after(jet, tokenizer) -> tuple:  # [its constituents, reconstructed ones], codes
    codes = None if tokenizer is None else tokenizer.encode(jet)
    return ([jet], None) if codes is None else ([jet, tokenizer.decode(codes)], np.array(codes[0]))


class JetBrowserView(W.VBox):
    def __init__(self, jets, tokenizer):
        self.constituents, self.label = jets.constituents, np.asarray(jets.label)
        self.mass, self.count = jet_mass(jets), n_constituents(jets)
        self.tokenizer, self.chosen, self.at = tokenizer, np.arange(len(jets)), 0
        self.title, self.about, self.rows, self.tokens = (html() for _ in range(4))
        self.canvas = Canvas(on_arrow=self.move)
        self.canvas.observe(lambda _: self.write_rows(), "hover")
        kinds = [(CLASS_NAMES[k], int(k)) for k in np.unique(self.label) if k >= 0]
        self.classes = control(W.Dropdown, self.select, 140, options=[("all classes", -1), *kinds])
        self.masses, self.counts = (
            control(W.IntRangeSlider, self.select, 330, value=(0, top), max=top, description=text)
            for text, top in (("mass [GeV]", int(np.ceil(self.mass.max()))),
                              ("constituents", int(self.count.max()))))
        self.show()
        moves = (("Previous", "arrow-left", -1), ("Next", "arrow-right", 1),
                 ("Random", "random", None))
        buttons = [button(*look, lambda by=by: self.move(by), focus=self.canvas)
                   for *look, by in moves]
        beside = W.VBox([self.about, self.tokens, self.rows], layout={"max_width": "520px"})
        super().__init__([W.HBox([*buttons, self.classes]), W.HBox([self.masses, self.counts]),
                          self.title, row(framed("jet", self.table, self.canvas), beside)])

    def select(self):
        "Jets of the chosen class, mass and count; stay, or go on to the next that passes."
        keep = (self.label == self.classes.value) | (self.classes.value < 0)
        for values, slider in ((self.mass, self.masses), (self.count, self.counts)):
            keep &= (values >= slider.value[0]) & (values <= slider.value[1])
        before = self.chosen[self.at] if len(self.chosen) else 0
        self.chosen = np.flatnonzero(keep)
        self.at = np.searchsorted(self.chosen, before)
        self.move(0)

    def move(self, by: int | None):  # None: to any jet
        by = np.random.default_rng().integers(len(self.label)) if by is None else by
        self.at = int(self.at + by) % max(len(self.chosen), 1)
        self.show()

    def table(self) -> dict:
        "The constituents, {column: values}."
        t = {"position": np.arange(len(self.shown[0][0]))}
        t |= {} if self.codes is None else {"code": self.codes}
        for prefix, jet in zip(("", "reconstructed_"), self.shown):
            t |= {prefix + name: ak.to_numpy(jet[0][name]) for name in FEATURES}
        return t

# %% [markdown]
# The jet that is shown, its observables before and after, and its constituents.

# %%
#| export
@patch
def show(self: JetBrowserView):
    "Tokenize and draw the jet."
    self.canvas.hover = -1
    if not len(self.chosen):
        self.title.value = "<h4>no jet passes</h4>"
        self.about.value = self.rows.value = self.tokens.value = ""
        self.canvas.panel = jet_panel(self.constituents[0][:0])
        return
    i = self.chosen[self.at]
    self.shown, self.codes = _before_and_after(self.constituents[i:i + 1], self.tokenizer)
    names = [CLASS_NAMES[k] for k in self.label[i:i + 1] if k >= 0] + [f"jet {i}"]
    facts = [*names, f"mass {self.mass[i]:.1f} GeV", f"{self.count[i]} constituents"]
    self.title.value = f"<h4>{' · '.join(facts)}</h4>{self.at + 1:,} of {len(self.chosen):,} jets"
    self.canvas.panel = jet_panel(*(jet[0] for jet in self.shown), title=", ".join(names))
    names = {"mass": "mass [GeV]", "pt": "p<sub>T</sub> [GeV]", "n_constituents": "constituents",
             "tau21": "τ<sub>21</sub>", "tau32": "τ<sub>32</sub>"}
    values = [observables(jet, names) for jet in self.shown]
    rows = [[f"<strong>{text}</strong>", *(f"{v[name][0]:.4g}" for v in values)]
            for name, text in names.items()]
    self.about.value = _table(["", "original", "reconstructed"][:1 + len(values)], rows)
    self.write_rows()


@patch
def write_rows(self: JetBrowserView):
    "The sequence of tokens and the table, with the constituent that is pointed at."
    if not len(self.chosen):
        return
    texts = {"position": ("", "d"), "code": ("code", "d"), "pt": ("p<sub>T</sub>", ".1f"),
             "eta_rel": ("η", ".3f"), "phi_rel": ("φ", ".3f")}
    heads, columns, here = [], [], self.canvas.hover
    for name, values in self.table().items():
        text, form = texts[name.removeprefix("reconstructed_")]
        heads.append("→ " * name.startswith("reconstructed_") + text)
        columns.append([format(value, form) for value in values])
    self.rows.value = _table(heads, zip(*columns), here)
    if self.codes is not None:
        spans = [f"<span{' class=here' * (i == here)}>{c}</span>" for i, c in enumerate(self.codes)]
        self.tokens.value = f"<div class='tokens scroll'>{''.join(spans)}</div>"


# %%
#| export
def JetBrowser(
    jets=None,  # jets or their constituents; None: the sample that comes with omnijet
    tokenizer=None,  # a tokenizer, its folder or name: its reconstruction is laid over the jet
):
    "Jets one at a time, chosen by class, mass and count. Raises OmnijetError if there are none."
    try:
        tokenizer = None if tokenizer is None else _loaded(tokenizer)
    except OmnijetError as error:
        return note(error, "JetBrowser(tokenizer='runs/smoke/tokenizers/conditional-512')")
    jets = shown_jets(jets, to_tokenize=tokenizer is not None)
    if not headless():
        return JetBrowserView(jets, tokenizer)
    shown, _ = _before_and_after(jets.constituents[:1], tokenizer)
    title = ", ".join([CLASS_NAMES[k] for k in jets.label[:1] if k >= 0] + ["jet 0"])
    return picture(jet_panel(*(jet[0] for jet in shown), title=title))

# %%
JetBrowser(jets)

# %% [markdown]
# Constituents alone, such as decoded tokens, are browsed in the same way; they have no class, and the centres of bins are reconstructed as they are.

# %%
grid = BinnedTokenizer((8, 8, 8))
JetBrowser(grid.decode(grid.encode(jets)), grid)


# %% [markdown]
# ## Codes
#
# The token explorer shows every code in three linked scatters and, of the one that is pointed at, clicked on, or of all in a lasso, the use by jet type, the
# constituents behind it, and a jet that contains it.

# %%
#| export
class TokenExplorerView(W.VBox):
    def __init__(self, tokenizer, jets):
        self.use, self.work, self.jet_at, self.shown = CodeUse(tokenizer, jets), Work(), 0, None
        self.lock = threading.RLock()  # the thread and the user draw in turn
        steps = self.use.steps()
        next(steps)  # enough for a first picture, the others follow
        self.use.collect()
        first = int(self.use.count.argmax())
        by = [("use", "use"), ("momentum", "p_T"), ("jet type", "jet type")]
        self.by = control(W.ToggleButtons, self.redraw, 330, options=by,
                          style={"button_width": "100px"})
        marks = [m * 10.0**e for e in range(-2, 4) for m in (1, 2, 5)][2:-1]  # 0.05 … 2000
        self.pt = control(W.SelectionRangeSlider, self.redraw, 330, description="pT [GeV]",
                          options=[(f"{m:g}", m) for m in marks], index=(0, len(marks) - 1))
        self.number = control(W.BoundedIntText, self.type_code, 120, value=first,
                              max=self.use.size - 1, description="code")
        self.legend, self.title, self.jet_title = html(), html(), html()
        self.scatters = [Canvas(p) for p in code_panels(self.use)]
        link(*self.scatters)
        self.bars, self.cloud, self.jet = Canvas(), Canvas(), Canvas(on_arrow=self.turn)
        self.scatters[0].observe(lambda _: self.detail(), ["hover", "selected"])
        self.scatters[0].selected = [first]
        turns = [button("", icon, lambda by=by: self.turn(by), 40, "another jet with this code",
                        self.jet) for icon, by in (("arrow-left", -1), ("arrow-right", 1))]
        super().__init__([
            W.HBox([W.Label("colour by"), self.by, self.pt, self.number]), self.work, self.legend,
            framed("codes", self.table, *self.scatters), self.title,
            W.HBox([*turns, self.jet_title]),
            framed("code", self.detail_table, self.bars, self.cloud, self.jet)])
        self.work.start(steps, len(self.use.jets), self.refresh, every=1.5)

    def type_code(self):
        self.scatters[0].selected = [self.number.value]

    def refresh(self):
        with self.lock:
            self.use.collect()
            self.redraw()
            self.detail(again=True)

    def redraw(self):
        "The scatters."
        for canvas, p in zip(self.scatters, code_panels(self.use, self.by.value, self.pt.value)):
            canvas.panel = p
        used = np.unique(self.use.label) if self.by.value == "jet type" else []
        names = {"unused": "initial"} if len(used) else {}
        names |= {CLASS_NAMES[k]: color(CLASSES[k]) for k in used}
        self.legend.value = "  ".join(
            f"<span style='white-space:nowrap'><b style='--colour:{c}'>■</b> {name}</span>"
            for name, c in names.items())

# %% [markdown]
# Below the scatters: what is to be seen of the code that is pointed at, or else of those selected.

# %%
#| export
@patch
def detail(self: TokenExplorerView, again: bool = False):
    "The panels of the code that is pointed at, or of those selected."

    def spread(pt):
        low, middle, high = np.quantile(pt, [0.16, 0.5, 0.84]) if len(pt) else [np.nan] * 3
        return f"{middle:.3g} ({low:.3g}–{high:.3g})" if len(pt) else "–"

    with self.lock:
        one, use = self.scatters[0], self.use
        if len(one.selected) == 1:
            self.number.value = one.selected[0]
        codes = [one.hover] if one.hover >= 0 else list(one.selected) or self.shown
        if codes == self.shown and not again:
            return
        self.jet_at *= codes == self.shown
        self.shown, rows = codes, use.rows(codes)
        self.having = np.unique(use.jet[rows])
        # decoding takes too long while the pointer moves
        rare = len(rows) < 10 and codes == list(one.selected)[:1]
        self.put = use.contexts(codes[0]) if rare else None
        listed, total = ", ".join(map(str, codes[:8])) + " …" * (len(codes) > 8), len(use.code)
        name = f"{len(codes)} codes: {listed}" if len(codes) > 1 else f"code {listed}"
        decoded = use.decoded[rows] if self.put is None else self.put
        self.title.value = (
            f"<h4>{name}</h4>used {len(rows):,} times, {100 * len(rows) / total:.3g} % of "
            f"{total:,} constituents, in {len(self.having):,} of {len(use.starts) - 1:,} jets; "
            f"p<sub>T</sub> {spread(use.original[rows, 0])} GeV → {spread(decoded[:, 0])} GeV "
            "(median, central 68 %)" + "; too rare, so put into 50 jets" * (self.put is not None))
        self.bars.panel = use_panel(use, codes)
        self.cloud.panel = contexts_panel(use, codes, self.put)
        self.turn(0)


@patch
def turn(self: TokenExplorerView, by: int):
    "Another of the jets that contain the code."
    with self.lock:
        use, original, decoded, here = self.use, self.use.jets.constituents[0][:0], None, []
        self.jet_title.value = "in no jet"
        if len(self.having):
            self.jet_at = (self.jet_at + by) % len(self.having)
            i = self.having[self.jet_at]
            part = slice(use.starts[i], use.starts[i + 1])
            original, decoded = use.jets.constituents[i], dict(zip(FEATURES, use.decoded[part].T))
            here = np.flatnonzero(np.isin(use.code[part], self.shown)).tolist()
            self.jet_title.value = (f"jet {self.jet_at + 1:,} of {len(self.having):,} with it, "
                                    f"{CLASS_NAMES[use.label[i]]}")
        self.jet.panel, self.jet.selected = jet_panel(original, decoded, size=(320, 320)), here

# %% [markdown]
# What is saved: one row a code, and one row a constituent with a code that is shown. A rare code is put into fifty jets; those rows have no jet (−1) and no original.

# %%
#| export
@patch
def table(self: TokenExplorerView) -> dict:
    use = self.use
    components = {"component_1": use.latent[:, 0], "component_2": use.latent[:, 1]}
    types = {f"used_{CLASSES[k]}": use.by_type[k] for k in np.unique(use.label)}
    return {"code": np.arange(use.size), "used": use.count, **components,
            **dict(zip(FEATURES, use.at.T)), **types}


@patch
def detail_table(self: TokenExplorerView) -> dict:
    use, rows = self.use, self.use.rows(self.shown)
    put = np.zeros((0, 3)) if self.put is None else self.put
    columns = {"code": (use.code[rows], self.shown[0]), "jet": (use.jet[rows], -1),
               "label": (use.label[use.jet[rows]], -1)}
    for k, name in enumerate(FEATURES):
        columns[name] = use.original[rows, k], np.nan
        columns["reconstructed_" + name] = use.decoded[rows, k], put[:, k]
    return {name: np.append(values, np.broadcast_to(new, len(put)))
            for name, (values, new) in columns.items()}


# %%
#| export
def TokenExplorer(
    tokenizer=SHIPPED["tokenizer"],  # a tokenizer, its folder or name
    jets=None,  # jets to tokenize; None: the sample that comes with omnijet
):
    "All codes in linked scatters; of a code its use, its reconstructions and jets that contain it."
    try:
        tokenizer = _loaded(tokenizer)
    except OmnijetError as error:
        return note(error, "TokenExplorer('runs/smoke/tokenizers/conditional-512')")
    if not headless():
        return TokenExplorerView(tokenizer, jets)
    use = CodeUse(tokenizer, jets)
    next(use.steps())
    use.collect()
    return picture(*code_panels(use), contexts_panel(use, [int(use.count.argmax())]))

# %%
TokenExplorer(grid, jets)

# %%
missing = TokenExplorer("omnijet/no-such-tokenizer")
missing


# %% [markdown]
# ## Generation
#
# In the playground a jet grows by chance (*Step*) or by hand (click on a token), and *Generate* makes many in the background, twenty at a time; the histograms
# fill up, and *Stop* ends it.

# %%
#| export
class GenerationPlaygroundView(W.VBox):
    def __init__(self, model, tokenizer, jets):
        self.model, self.tokenizer, self.jets, self.real = model, tokenizer, jets, None
        self.made = self.against = {"mass": np.zeros(0), "count": np.zeros(0, int)}
        v = model.vocabulary
        self.temperature = control(W.FloatSlider, self.show, 250, value=1, max=2, step=0.05,
                                   description="temperature")
        self.top_k = control(W.IntSlider, self.show, 250, value=0, max=min(200, v.predicted),
                             description="top-k (0: all)")
        classes = [*zip(CLASS_NAMES, CLASSES)][:v.classes] or [("as trained", "")]
        self.jet_class = control(W.Dropdown, self.new, 120, options=classes, disabled=not v.classes)
        self.seed = control(W.BoundedIntText, self.new, 150, value=1, max=2**31, description="seed")
        self.number = control(W.BoundedIntText, lambda: None, 130, value=1000, min=1, max=10**6,
                              description="jets")
        self.title, self.sequence, self.work = html(), html(), Work()
        self.bars, self.plane = (Canvas(on_click=lambda token: self.grow("add", token),
                                        on_arrow=lambda by: self.grow("draw" if by > 0 else "undo"))
                                 for _ in range(2))
        link(self.bars, self.plane)
        self.histograms = [Canvas(p) for p in generated_panels(self.made, self.made)]
        self.new()
        buttons = [button("Step", "step-forward", lambda: self.grow("draw")),
                   button("Undo", "undo", lambda: self.grow("undo")),
                   button("Finish", "fast-forward", lambda: self.grow("draw", True)),
                   button("New jet", "plus", lambda: self.new(self.growing.number + 1))]
        super().__init__([
            W.HBox([self.temperature, self.top_k, self.jet_class, self.seed]), W.HBox(buttons),
            self.title, row(framed("next_token", self.next_table, self.bars),
                            framed("growing_jet", self.jet_table, self.plane)), self.sequence,
            W.HBox([self.number, button("Generate", "play", self.generate), self.work]),
            framed("generated", self.made_table, *self.histograms)])

    def options(self) -> dict:
        return {"seed": self.seed.value, "temperature": self.temperature.value,
                "top_k": self.top_k.value or None, "jet_class": self.jet_class.value or None}

    def new(self, number: int = 0):
        self.growing = Growing(self.model, self.tokenizer, number, **self.options())
        self.show()

    def grow(self, how: str, *given):
        "`add`, `draw` or `undo` of the jet."
        getattr(self.growing, how)(*given)
        self.show()

    def generate(self):
        self.work.start(self.generating(), self.number.value, self.show_made)

    def show_made(self):
        for canvas, p in zip(self.histograms, generated_panels(self.against, self.made)):
            canvas.panel = p

# %% [markdown]
# The jet as it is now; and many of them, in the background.

# %%
#| export
@patch
def show(self: GenerationPlaygroundView):
    "Draw the jet and what may come next."
    g = self.growing
    g.options = Sampling(**self.options())
    self.expected = (np.zeros(0, int), np.zeros(0)) if g.finished else g.expected()
    self.bars.hover, self.bars.selected = -1, []
    self.bars.panel, self.plane.panel = growing_panels(g, *self.expected)
    self.title.value = (f"<h4>seed {g.options.seed}, jet {g.number} · {len(g.codes)} constituents"
                        f" · mass {jet_mass(g.constituents())[0]:.1f} GeV"
                        + " · stopped" * g.finished + "</h4>")
    words = "</span><span>".join(map(str, ["start", *g.codes, *["stop"] * g.finished]))
    self.sequence.value = f"<div class='tokens'><span>{words}</span></div>"


@patch
def generating(self: GenerationPlaygroundView, batch: int = 20):
    n, options = self.number.value, self.options()
    if self.real is None:
        codes = self.tokenizer.encode(self.jets.constituents)
        self.real = mass_and_count(self.tokenizer.decode(codes))
    label = np.asarray(self.jets.label)
    chosen = label == CLASSES.index(self.jet_class.value) if self.jet_class.value else label > -2
    self.against = {key: values[chosen] for key, values in self.real.items()}
    self.made = {key: values[:0] for key, values in self.made.items()}
    for first in range(0, n, batch):
        tokens = self.model.generate(min(batch, n - first), first=first, progress=False, **options)
        made = mass_and_count(self.tokenizer.decode(tokens))
        self.made = {key: np.append(self.made[key], made[key]) for key in made}
        yield min(first + batch, n)

# %% [markdown]
# What is saved: the next codes (−1: stop) and where they would lie; the jet; and the values behind the histograms, one row a jet, the real ones first.

# %%
#| export
@patch
def next_table(self: GenerationPlaygroundView) -> dict:
    tokens, p = self.expected
    code = np.where(tokens == self.model.vocabulary.stop, -1, tokens - 1)
    places = np.full((len(code), 3), np.nan)
    places[code >= 0] = self.growing.places(tokens[code >= 0])
    return {"code": code, "probability": p, **dict(zip(FEATURES, places.T))}


@patch
def jet_table(self: GenerationPlaygroundView) -> dict:
    jet = flat_constituents(self.growing.constituents())[1:]
    return {"code": np.array(self.growing.codes, int), **dict(zip(FEATURES, jet))}


@patch
def made_table(self: GenerationPlaygroundView) -> dict:
    both = {key: np.append(self.against[key], self.made[key]) for key in self.made}
    return {"generated": np.arange(len(both["mass"])) >= len(self.against["mass"]), **both}


# %%
#| export
def GenerationPlayground(
    model=SHIPPED["backbone"],  # a GenerativeModel, its folder or name
    tokenizer=SHIPPED["its tokenizer"],  # the one it was trained with, its folder or name
    jets=None,  # real jets; None: the sample, of the paper's two classes if the model has no others
):
    """A jet grows token by token; then many, compared with real ones (tokenized and reconstructed).

    Raises OmnijetError if tokenizer and model do not belong together."""
    try:
        tokenizer = _loaded(tokenizer)
        model = _loaded(model, GenerativeModel.from_pretrained, "generate vocabulary")
    except OmnijetError as error:
        return note(error, "GenerationPlayground('runs/smoke/backbone', "
                           "'runs/smoke/tokenizers/conditional-512')")
    classes = CLASSES[:model.vocabulary.classes]
    if jets is None:
        jets = sample_jets(classes or ["ZJetsToNuNu", "TTBar"], max_jets=300)
    jets = shown_jets(jets, to_tokenize=True)
    if not headless():
        return GenerationPlaygroundView(model, tokenizer, jets)
    growing = Growing(model, tokenizer, jet_class=classes[0] if classes else None)
    for _ in range(5):
        growing.draw()
    return picture(*growing_panels(growing, *growing.expected()))

# %% [markdown]
# Here with a small model, some seconds old, which knows that soft constituents follow hard ones, and not much more.

# %%
torch.manual_seed(seed)
small = GenerativeModel(grid.codebook_size, width=32, blocks=1, heads=4)
tokens = Ragged.from_tokens(ak.zip({"tokens": grid.encode(jets)}, depth_limit=1))
config = TrainingConfig(epochs=2, batch_size=64, lr=5e-3)
train(small, tokens, config=config, progress=False)
GenerationPlayground(small, grid, jets)

# %%
try:
    GenerationPlayground(small, BinnedTokenizer((9, 9, 9)), jets)
except OmnijetError as error:
    print(error)
    assert "729 codes, the model 512" in str(error)


# %% [markdown]
# ## Figure 7, point by point
#
# The transfer explorer draws a metric against the number of training jets, and a click on a point asks its classifier, kept by the sweep of chapter
# [05](05_transfer.ipynb), for the scores of the test jets.

# %%
#| export
class TransferExplorerView(W.VBox):
    def __init__(self, trainings):
        self.trainings, self.work, self.scores = trainings, Work(), {}
        metrics = [(name, key) for key, name in METRICS.items() if any(key in r for r in trainings)]
        self.metric = control(W.Dropdown, self.show, 320, options=metrics, description="metric")
        used = {r["strategy"] for r in trainings}
        present = [(STRATEGIES[s], s) for s in STRATEGIES if s in used]
        self.strategies = control(W.SelectMultiple, self.show, 320, options=present, rows=3,
                                  value=[s for _, s in present], description="strategies")
        sizes = sorted({r["size"] for r in trainings})
        self.sizes = control(W.SelectionRangeSlider, self.show, 320, description="jets",
                             options=[(f"{n:,}", n) for n in sizes], index=(0, len(sizes) - 1))
        self.title = html("click on a point for its scores")
        self.curve, self.distribution = Canvas(on_click=self.choose), Canvas()
        self.show_scores("scores of the test jets")
        self.show()
        super().__init__([W.HBox([W.VBox([self.metric, self.sizes]), self.strategies]),
                          row(framed("transfer", self.table, self.curve),
                              framed("scores", lambda: dict(zip(("score", "target"), self.shown)),
                                     self.distribution)), self.title, self.work])

    def show(self):
        low, high = self.sizes.value
        trainings = [r for r in self.trainings if low <= r["size"] <= high]
        shown = sweep_panel(trainings, self.metric.value, self.strategies.value)
        self.curve.panel, self.found = shown

    def show_scores(self, *instead):
        "The scores, or a text instead."
        if instead:
            self.shown = np.zeros(0), np.zeros(0, int), *instead, ("background", "signal")
        self.distribution.panel = score_panel(*self.shown)

    def table(self) -> dict:
        keys = ["strategy", "size", "seed", *(key for _, key in self.metric.options)]
        return {key: [r.get(key, np.nan) for r in self.found] for key in keys}

    def choose(self, point: int):
        "The score distribution of one training."
        r = self.found[point]
        facts = [f"{text}: {r[key]:.4g}" for text, key in self.metric.options if key in r]
        facts.append(f"{r.get('epochs', '–')} epochs")
        self.title.value = f"<h4>{r['name']}</h4>{', '.join(facts)}"
        if r["folder"]:
            self.work.start(self.scoring(r), 1, self.show_scores)
        else:
            self.show_scores("no classifier kept: give the run folder")

# %% [markdown]
# Behind a point: the scores of the test jets, a thousand at a time.

# %%
#| export
@patch
def scoring(self: TransferExplorerView, training: dict, batch: int = 1000):
    name, scores = training["name"], []
    if name in self.scores:
        self.shown = self.scores[name]
        self.work.bar.max = len(self.shown[0])
        yield len(self.shown[0])
        return
    classifier = JetClassifier.from_pretrained(training["folder"])
    classes = classifier.classes[:2]
    test = load_tokens(training["folder"].parents[1], "test", classes)
    order = np.random.default_rng(1).permutation(len(test))  # both classes from the first jets on
    target = (test.extras["label"][order] == classes[1]).astype(int)
    self.work.bar.max = len(test)
    for first in range(0, len(test), batch):
        more = classifier.predict(test[order[first:first + batch]])[:, 1]
        scores = np.append(scores, more)
        self.shown = scores, target[:len(scores)], name, [CLASS_NAMES[k] for k in classes]
        yield len(scores)
    self.scores[name] = self.shown

# %%
#| export
def TransferExplorer(
    results="../runs/smoke",  # a run folder, or what `sweep` returned
    run_dir=None,  # the run folder, if `results` are not
):
    "Figure 7 with metric, sizes and strategies to choose; a click on a point shows its scores."
    try:
        trainings = read_sweep(results, run_dir)
    except OmnijetError as error:
        return note(error, "TransferExplorer('runs/smoke')")
    if not headless():
        return TransferExplorerView(trainings)
    metric = min(METRICS.keys() & trainings[0].keys())
    return picture(sweep_panel(trainings, metric, STRATEGIES)[0])

# %% [markdown]
# Twelve trainings with numbers made up for this cell.

# %%
made_up = [{"strategy": s, "size": n, "seed": k, "accuracy": 0.8 + 0.02 * k + 0.01 * i, "auc": 0.9}
           for i, s in enumerate(STRATEGIES) for n in (100, 1000) for k in (1, 2)]
TransferExplorer(made_up)

# %%
TransferExplorer("no-such-run")

# %% [markdown]
# ## On the models of a run
#
# The same widgets on the run's tokenizer, backbone and transfer, where `omnijet run` has made them.

# %%
#| eval: false
run_tokenizer = Path(run_dir, "tokenizers", "conditional-512")
JetBrowser(tokenizer=run_tokenizer)

# %%
#| eval: false
TokenExplorer(run_tokenizer)

# %%
#| eval: false
GenerationPlayground(Path(run_dir, "backbone"), run_tokenizer)

# %%
#| eval: false
TransferExplorer(run_dir)

# %% [markdown]
# A code of a conditional tokenizer has no place of its own: what it decodes to depends on the other constituents, which the explorer shows and a table of codes
# cannot. The paper has no such pictures. To try: choose the second likeliest token at the first step in the playground, and see how much of the jet it decides.
