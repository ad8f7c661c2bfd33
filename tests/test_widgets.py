"""Widgets without a browser: what they compute, save and refuse. What a user sees is tested in tests/browser."""
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import awkward as ak
import ipywidgets as W
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from omnijet import panels, playground as growth, widgets
from omnijet.data import CLASSES, FEATURES, sample_folder, sample_jets, write_tokens
from omnijet.files import OmnijetError
from omnijet.formats import UNLABELLED, add_class, class_key
from omnijet.gpt import GenerativeModel
from omnijet.observables import OBSERVABLES
from omnijet.transfer import JetClassifier
from omnijet.vqvae import VQVAE, BinnedTokenizer


@pytest.fixture(autouse=True)
def with_widgets(monkeypatch):
    monkeypatch.delenv("OMNIJET_HEADLESS", raising=False)


@pytest.fixture(scope="module")
def jets():
    return sample_jets(max_jets=20)


@pytest.fixture(scope="module")
def conditional(jets):
    torch.manual_seed(1)
    tokenizer = VQVAE(codebook_size=64, width=16, blocks=1, heads=2).eval()
    tokenizer.quantizer.codebook.weight.data *= 0.5
    return tokenizer


@pytest.fixture(scope="module")
def grid():
    return BinnedTokenizer((6, 6, 6))


@pytest.fixture(scope="module")
def model(grid):
    torch.manual_seed(2)
    return GenerativeModel(grid.codebook_size, width=16, blocks=1, heads=2, classes=10).eval()


def open_widgets():
    return set(W.widgets.widget._instances)


# codes

def test_code_use_counts_what_a_loop_counts(conditional, jets):
    use = panels.CodeUse(conditional, jets)
    assert list(use.steps(70)) == [70, 140, 200]
    use.collect()
    tokens = conditional.encode(use.jets)
    decoded = conditional.decode(tokens)
    code = int(use.count.argmax())
    uses, by_type, reconstructions = 0, np.zeros(10, int), []
    for label, jet, out in zip(use.label, tokens.to_list(), decoded.to_list()):
        for k, c in zip(jet, out):
            if k == code:
                uses, reconstructions = uses + 1, reconstructions + [[c[f] for f in FEATURES]]
                by_type[label] += 1
    assert uses == use.count[code] and (by_type == use.by_type[:, code]).all()
    assert np.allclose(use.decoded[use.rows([code])], reconstructions, rtol=1e-4, atol=1e-5)
    assert np.allclose(use.at[code], [np.exp(np.log(np.array(reconstructions)[:, 0]).mean()), *np.array(reconstructions)[:, 1:].mean(0)], rtol=1e-4, atol=1e-5)
    assert set(use.label[:10]) == set(range(10))                                     # a part of the jets has all classes


def test_contexts_of_a_conditional_tokenizer_differ(conditional, jets):
    use = panels.CodeUse(conditional, jets)
    next(use.steps(100))
    use.collect()
    contexts = use.contexts(5, n=30)
    assert contexts.shape == (30, 3) and (contexts[:, 0] > 0).all()
    assert np.array_equal(contexts, use.contexts(5, n=30)) and not np.array_equal(contexts, use.contexts(6, n=30))


def test_latent_plane_keeps_most_of_the_codebook(conditional):
    plane = panels.latent_plane(conditional)
    codebook = conditional.quantizer.get_codebook().detach().double().numpy()
    assert np.isclose(plane.var(0).sum(), np.sort(np.linalg.eigvalsh(np.cov(codebook.T, ddof=0)))[-2:].sum())


def test_explorer_follows_selection_number_and_slider(grid, jets):
    explorer = widgets.TokenExplorer(grid, jets)
    explorer.work.wait()
    assert explorer.work.text.value == "200 of 200 jets"
    counts = np.bincount(np.asarray(ak.flatten(grid.encode(jets))), minlength=216)
    used, unused = np.flatnonzero(counts)[3], np.flatnonzero(counts == 0)[0]
    explorer.number.value = int(used)
    assert f"<h4>code {used}</h4>used {counts[used]:,} times" in explorer.title.value
    explorer.scatters[0].selected = [int(used), int(unused)]
    assert "2 codes" in explorer.title.value and f"used {counts[used]:,} times" in explorer.title.value
    explorer.scatters[0].hover = int(unused)
    assert f"<h4>code {unused}</h4>used 0 times" in explorer.title.value and explorer.jet_title.value == "in no jet"
    explorer.pt.index = (5, 8)
    shown = explorer.scatters[1].panel["layers"][0]["ids"]
    low, high = explorer.pt.value
    assert set(shown) == set(np.flatnonzero((explorer.use.at[:, 0] >= low) & (explorer.use.at[:, 0] <= high)))
    for by in ("p_T", "jet type", "use"):
        explorer.by.value = by
    table = explorer.table()
    assert (table["used"] == counts).all() and {len(v) for v in table.values()} == {216}


def test_explorer_saves_the_constituents_behind_what_is_shown(grid, jets):
    explorer = widgets.TokenExplorer(grid, jets)
    explorer.work.wait()
    counts = np.bincount(np.asarray(ak.flatten(grid.encode(jets))), minlength=216)
    two, rare = [int(c) for c in np.argsort(counts)[-2:]], int(np.flatnonzero((counts > 0) & (counts < 10))[0])
    explorer.scatters[0].selected = two
    table = explorer.detail_table()
    assert len(table["code"]) == counts[two].sum() and set(table["code"]) == set(two)
    constituents = explorer.use.jets.constituents.pt
    assert all(np.isclose(np.asarray(constituents[jet]), pt).any() for jet, pt in zip(table["jet"][:20], table["pt"]))
    assert (table["label"] == explorer.use.label[table["jet"]]).all()
    explorer.scatters[0].selected = [rare]
    table = explorer.detail_table()
    drawn = explorer.cloud.panel["layers"][1]
    assert (table["jet"] >= 0).sum() == counts[rare] and np.isnan(table["pt"]).sum() == len(drawn["x"]) == 50
    assert np.array_equal(table["reconstructed_eta_rel"][table["jet"] < 0], drawn["x"])


def of_own_classes(jets):
    "(jets without a label, theirs), (jets of two classes of one's own, theirs), (of one's own, of JetClass and of none, theirs)."
    heavy, light = add_class("heavy"), add_class("light")
    bare, label = jets.constituents, np.asarray(jets.label)
    yield bare, ["unlabelled"]
    yield ak.zip({"constituents": bare, "label": np.where(label == 8, heavy, light)}, depth_limit=1), [class_key(k) for k in sorted([heavy, light])]
    mixed = np.select([label == 8, label < 2], [heavy, label], UNLABELLED)
    yield ak.zip({"constituents": bare, "label": mixed}, depth_limit=1), ["unlabelled", "ZJetsToNuNu", "HToBB", "heavy"]


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("headless", ["", "1"])
def test_explorer_of_jets_without_a_label_and_of_own_classes(which, headless, grid, jets, monkeypatch):
    from matplotlib.figure import Figure

    monkeypatch.setenv("OMNIJET_HEADLESS", headless)
    given, keys = [*of_own_classes(jets)][which]
    explorer = widgets.TokenExplorer(grid, given)
    if headless:
        assert isinstance(explorer, Figure)
        return
    explorer.work.wait()
    explorer.by.value = "jet type"
    label = np.asarray(panels.shown_jets(given).label)
    codes, of_jet = np.asarray(ak.flatten(grid.encode(jets))), np.repeat(label, ak.num(jets.constituents.pt))
    table, names = explorer.table(), [panels.class_name(k) for k in np.unique(label)]
    assert [name for name in table if name.startswith("used_")] == [f"used_{key}" for key in keys]
    for key, k in zip(keys, np.unique(label)):
        assert np.array_equal(table[f"used_{key}"], np.bincount(codes[of_jet == k], minlength=216))
    code = int(explorer.use.count.argmax())
    explorer.scatters[0].selected = [code]
    bars = explorer.bars.panel
    assert bars["y"]["names"] == names and len(set(bars["layers"][0]["colors"])) == len(names)
    assert np.allclose(bars["layers"][0]["value"], [np.sum((codes == code) & (of_jet == k)) / np.sum(label == k) for k in np.unique(label)])
    assert explorer.jet.panel["title"] == panels.class_name(explorer.use.label[explorer.jet_at])
    assert re.findall(r"</b> ([^<]+)</span>", explorer.legend.value) == ["unused", *names]
    points = explorer.scatters[0].panel["layers"][0]
    best = {c: int(np.argmax(explorer.use.by_type[:, c] / explorer.use.by_type.sum(1))) for c in points["ids"][-5:]}       # the most used
    assert points["c"][-5:].tolist() == [1 + best[c] for c in points["ids"][-5:]] and points["colors"][1:] == bars["layers"][0]["colors"]
    assert set(explorer.detail_table()["label"]) <= set(label)
    assert same_picture(run_cell(explorer.code(), tokenizer=grid, jets=given), *explorer.scatters)
    assert same_picture(run_cell(explorer.detail_code(), tokenizer=grid, jets=given), explorer.bars, explorer.cloud, explorer.jet)


def test_explorer_that_is_stopped_counts_what_is_done(grid, jets):
    explorer = widgets.TokenExplorer(grid, jets)
    explorer.work.stop()
    explorer.work.wait()
    done = explorer.use.done
    assert explorer.use.count.sum() == ak.sum(ak.num(explorer.use.jets.constituents[:done])) and f" of {done:,} jets;" in explorer.title.value


# jets

def test_browser_filters_and_moves(jets, conditional):
    browser = widgets.JetBrowser(jets, conditional)
    assert "jet 0 ·" in browser.title.value
    browser.move(-1)
    assert f"jet {len(jets) - 1} ·" in browser.title.value
    browser.classes.value = CLASSES.index("TTBar")
    assert (browser.label[browser.chosen] == CLASSES.index("TTBar")).all() and len(browser.chosen) == 20
    browser.masses.value = (100, 200)
    assert 0 < len(browser.chosen) < 20 and (browser.mass[browser.chosen] >= 100).all()
    browser.counts.value = (0, 1)
    assert "no jet passes" in browser.title.value
    browser.move(1)
    browser.counts.value = (0, 128)
    t = browser.table()
    i = browser.chosen[browser.at]
    assert (t["code"] == np.asarray(conditional.encode(jets[i:i + 1])[0])).all()
    assert np.allclose(t["reconstructed_pt"], np.asarray(conditional.decode(conditional.encode(jets[i:i + 1]))[0].pt))


def test_saved_files_hold_the_table(jets, conditional):
    browser = widgets.JetBrowser(jets, conditional)
    table = browser.table()
    back = pq.read_table(io.BytesIO(panels.saved("Parquet", [browser.canvas.panel], table)))
    assert back.column_names == list(table) and np.array_equal(back["pt"].to_numpy(), table["pt"])
    csv = np.genfromtxt(io.BytesIO(panels.saved("CSV", [browser.canvas.panel], table)), delimiter=",", names=True)
    assert np.allclose(csv["code"], table["code"])


@pytest.mark.parametrize("widget", [widgets.JetBrowser, lambda jets: widgets.TokenExplorer(BinnedTokenizer((3, 3, 3)), jets)])
def test_no_jets(widget, jets):
    with pytest.raises(OmnijetError, match="there are no jets"):
        widget(jets[:0])


# generation

@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_k": 5}, {"temperature": 0}])
def test_step_by_step_is_generate(model, grid, options):
    growing = growth.Growing(model, grid, seed=4, number=2, jet_class="TTBar", **options)
    while not growing.finished:
        growing.draw()
    assert growing.codes == model.generate(1, seed=4, first=2, jet_class="TTBar", progress=False, **options)[0].to_list()


def test_expected_probabilities(model, grid):
    growing = growth.Growing(model, grid, jet_class="HToBB", temperature=0.7)
    tokens, p = growing.expected(10_000)
    assert np.isclose(p.sum(), 1) and 0 not in tokens and model.vocabulary.stop not in tokens      # an empty jet cannot stop
    growing.options = replace(growing.options, top_k=3)
    assert len(growing.expected()[0]) == 3
    growing.options = replace(growing.options, temperature=0)
    assert growing.expected()[1].tolist() == [1.0] and growing.expected()[0][0] == tokens[0]


def test_by_hand_undo_and_the_longest_jet(model, grid):
    growing = growth.Growing(model, grid, jet_class="HToBB")
    growing.add(model.vocabulary.stop)
    assert not growing.finished and growing.codes == []
    for _ in range(130):
        growing.add(7)
    assert growing.codes == [6] * 128 and growing.finished
    growing.undo()
    assert len(growing.codes) == 127 and not growing.finished
    growing.add(model.vocabulary.stop)
    assert growing.finished
    growing.undo()
    assert len(growing.codes) == 127 and not growing.finished


def test_places_are_the_decoded_jets(model, conditional):
    small = GenerativeModel(64, width=16, blocks=1, heads=2)
    growing = growth.Growing(small, conditional)
    growing.codes = [3, 9, 9]
    expected = [[conditional.decode([[3, 9, 9, c]])[0, -1][f] for f in FEATURES] for c in (0, 63)]
    assert np.allclose(growing.places([1, 64]), expected, rtol=1e-4)


def test_playground_generates_in_the_background_and_stops(model, grid, jets):
    playground = widgets.GenerationPlayground(model, grid, jets)
    side = playground.sides[0]
    playground.jet_class.value = "TTBar"
    playground.number.value = 50
    playground.generate()
    playground.work.wait()
    made = grid.decode(model.generate(50, seed=1, jet_class="TTBar", progress=False))
    assert np.allclose(side.made["count"], ak.num(made.pt)) and playground.histograms[0].panel["title"] == "50 generated jets"
    table, real = playground.made_table(), grid.decode(grid.encode(jets))[jets.label == CLASSES.index("TTBar")]
    assert np.array_equal(table["count"], np.concatenate([ak.num(real.pt), ak.num(made.pt)])) and table["generated"].sum() == 50
    playground.number.value = 1_000_000
    playground.generate()
    playground.work.stop()
    playground.work.wait()
    assert playground.work.text.value.endswith("stopped") and playground.work.button.disabled
    done = int(playground.work.text.value.split(" ")[0])
    assert done % 20 == 0 and len(side.made["mass"]) == done and playground.histograms[0].panel["title"] == f"{done} generated jets"


def test_next_tokens_are_saved_with_their_places(model, grid, jets):
    playground = widgets.GenerationPlayground(model, grid, jets)
    side = playground.sides[0]
    playground.step()
    everything = side.table()
    table = {name: values[everything["part"] == "next"] for name, values in everything.items()}
    drawn = side.bars.panel["layers"][0]
    assert np.array_equal(table["probability"], drawn["value"]) and len(table["code"]) == 20
    assert np.array_equal(np.where(table["code"] < 0, model.vocabulary.stop, table["code"] + 1), drawn["ids"])
    places = side.growing.places(table["code"][table["code"] >= 0] + 1)
    assert np.array_equal(np.stack([table[f] for f in FEATURES], 1)[table["code"] >= 0], places)
    playground.finish()
    playground.keep.value = playground.keep.max
    table = side.table()
    assert set(table["part"]) == {"kept"} and table["code"].tolist() == side.growing.codes and np.isnan(table["probability"]).all()


def rings(panel):
    "What the plane shows as alternatives: tokens and the texts of their probabilities."
    layer = next(layer for layer in panel["layers"] if layer["name"] == "next")
    return layer["ids"], layer["text"], panel["tips"][-len(layer["ids"]):]


def test_alternatives_of_a_step_lie_in_the_plane_with_their_probabilities(model, grid, jets):
    playground = widgets.GenerationPlayground(model, grid, jets)
    side = playground.sides[0]
    playground.finish()
    whole = list(side.growing.codes)
    assert playground.keep.value == 0 and len(whole) > 3                             # nothing was kept
    playground.keep.value = 2
    before = growth.Growing(model, grid, codes=whole[:2], **playground.options(side))
    tokens, p = before.expected()
    ids, texts, tips = rings(side.plane.panel)
    assert np.array_equal(ids, tokens[tokens != model.vocabulary.stop]) and side.growing.codes == whole
    assert texts[0] == f"{100 * p[0]:.0f} %" * int(p[0] >= 0.01) and f"{100 * p[0]:.2g} %" in tips[0]
    assert side.bars.selected == [whole[2] + 1]                                      # what had been drawn at this step
    kept, after = side.plane.panel["layers"][:2]
    assert len(kept["x"]) == 2 and len(after["x"]) == len(whole) - 2 and kept["fill"] > after["fill"]
    other = int(next(t for t in tokens if t not in (whole[2] + 1, model.vocabulary.stop)))
    playground.click(side, other)
    assert side.growing.codes == [*whole[:2], other - 1] and playground.keep.value == 3
    playground.click(side, model.vocabulary.size + 1)                                # a constituent: back to it
    assert playground.keep.value == 1 and len(side.growing.codes) == 3


def test_the_model_finishes_what_is_kept(model, grid, jets):
    playground = widgets.GenerationPlayground(model, grid, jets)
    side = playground.sides[0]
    playground.step()
    playground.step()
    playground.finish()
    first = side.growing.codes
    assert first == model.generate(1, seed=1, jet_class=CLASSES[0], progress=False)[0].to_list()
    playground.finish()
    assert side.growing.codes == first                                               # the same random numbers
    playground.again()
    again = side.growing.codes
    assert again[:2] == first[:2] and again != first and playground.keep.value == 2
    playground.undo()
    assert side.growing.codes == first[:2]
    playground.undo()
    assert side.growing.codes == first[:1] and playground.keep.value == 1
    playground.take()
    assert side.growing.codes == grid.encode(jets[:1])[0].to_list() and playground.keep.value == min(5, len(side.growing.codes))


@pytest.mark.parametrize("position, pt", [(0, 300.0), (2, 400.0), (2, 1.0)])
def test_a_constituent_with_another_pt_stands_by_falling_pt(position, pt, conditional, model):
    for tokenizer in (BinnedTokenizer((30, 6, 6)), conditional):
        small = GenerativeModel(tokenizer.codebook_size, width=16, blocks=1, heads=2)
        growing = growth.Growing(small, tokenizer, codes=[tokenizer.codebook_size - k for k in (3, 40, 41, 50)])
        before, codes = growing.constituents()[0].to_list(), growing.codes
        growing.change_pt(position, pt)
        after = growing.constituents()[0].to_list()
        others = codes[:position]
        at = next(i for i in range(position + 1) if growing.codes[:i] + growing.codes[i + 1:] == others)
        assert len(after) == position + 1 and not growing.finished
        assert at == sum(c["pt"] >= pt for c in before[:position])
        if isinstance(tokenizer, BinnedTokenizer):
            assert abs(np.log(after[at]["pt"] / pt)) < 0.5 and np.isclose(after[at]["eta_rel"], before[position]["eta_rel"])


def test_what_if_finishes_and_tells_what_came_of_it(model, grid, jets):
    playground = widgets.GenerationPlayground(model, grid, jets)
    playground.what_if()
    assert "no constituent yet" in playground.told.value
    playground.finish()
    playground.keep.value, playground.pt.value = 1, 100
    playground.what_if()
    assert "asked for 100 GeV" in playground.told.value and playground.keep.value == 2 and playground.sides[0].growing.finished
    pts = playground.sides[0].growing.constituents().pt[0, :2]
    assert f"the nearest code has {min(pts, key=lambda x: abs(np.log(x / 100))):.1f} GeV" in playground.told.value


def test_two_models_share_what_is_kept(model, grid, conditional, jets):
    torch.manual_seed(3)
    second = GenerativeModel(grid.codebook_size, width=16, blocks=1, heads=2)
    playground = widgets.GenerationPlayground(model, grid, jets, other=second)
    one, two = playground.sides
    playground.step()
    playground.step()
    assert one.growing.codes == two.growing.codes and len(one.growing.codes) == 2
    assert not np.allclose(one.expected[1], two.expected[1])
    playground.finish()
    assert one.growing.codes[:2] == two.growing.codes[:2] and one.growing.codes != two.growing.codes
    assert two.growing.codes == growth.Growing(second, grid, codes=two.growing.codes, seed=1).codes
    playground.number.value = 30
    playground.generate()
    playground.work.wait()
    assert np.bincount(playground.made_table()["generated"])[1:].tolist() == [30, 30]
    assert [layer["name"] for layer in playground.histograms[0].panel["layers"]] == ["real", "model 1", "model 2"]
    third = GenerativeModel(64, width=16, blocks=1, heads=2)                         # of another tokenizer
    playground = widgets.GenerationPlayground(model, grid, jets, other=third, other_tokenizer=conditional)
    one, two = playground.sides
    playground.step()
    assert two.growing.codes == conditional.encode(one.growing.constituents())[0].to_list()
    with pytest.raises(OmnijetError, match="216 codes, the model 64"):
        widgets.GenerationPlayground(model, grid, jets, other=third)


@pytest.mark.parametrize("grouped", [0, 16])
def test_a_jet_of_asked_mass_grows_as_generate_makes_it(grid, jets, grouped):
    torch.manual_seed(4)
    edges = {"mass": [0, 40, 80, 120, 400], "n_constituents": [1, 20, 40, 128]}
    model = GenerativeModel(grid.codebook_size, width=16, blocks=1, heads=2, classes=10, jet_tokens=edges, grouped=grouped).eval()
    playground = widgets.GenerationPlayground(model, grid, jets)
    playground.asked["mass"].value = "85, 115"
    playground.finish()
    assert playground.sides[0].growing.codes == model.generate(1, seed=1, jet_class=CLASSES[0], mass=(85, 115), progress=False)[0].to_list()
    assert "mass=(85.0, 115.0)" in playground.code(playground.sides[0])
    before = playground.sides[0].growing
    for odd in ("heavy", "120, 80", "1, 2, 3"):
        playground.asked["mass"].value = odd
        assert "mass" in playground.told.value and playground.sides[0].growing is before


def test_model_and_tokenizer_that_do_not_belong_together(model, conditional, jets):
    with pytest.raises(OmnijetError, match="64 codes, the model 216"):
        widgets.GenerationPlayground(model, conditional, jets)


# the gallery

def sorted_gallery(jets, by, **models):
    view = widgets.JetGallery(jets, **{"tokenizer": None, "model": None, "tagger": None, **models})
    view.by.value = by
    view.work.wait()
    return view


@pytest.mark.parametrize("by", OBSERVABLES)
def test_gallery_sorts_by_observables(by, jets):
    from omnijet.observables import observables

    view, values = sorted_gallery(jets, by), observables(jets, [by])[by]
    order = np.argsort(-values, kind="stable")
    assert view.shown.tolist() == order[:12].tolist() and view.small[0].panel["id"] == order[0]
    view.turn(1)
    assert view.shown.tolist() == order[12:24].tolist()
    view.turn(-2)
    assert view.shown.tolist() == order[192:].tolist() and view.small[8].layout.display == "none"      # 8 of 200 are left on the last page
    view.ends.value = 1
    assert view.shown.tolist() == np.argsort(values, kind="stable")[:12].tolist()
    view.classes.value = CLASSES.index("TTBar")
    assert set(np.asarray(jets.label)[view.shown]) == {CLASSES.index("TTBar")} and "1 to 12 of 20 jets" in view.title.value


def test_gallery_sorts_by_what_models_say(jets, grid, model):
    import torch.nn.functional as F

    torch.manual_seed(1)
    tagger = JetClassifier.from_generative(GenerativeModel(216, width=16, blocks=1, heads=2))
    models = {"tokenizer": grid, "model": model, "tagger": tagger}
    view, codes = sorted_gallery(jets, "surprise", **models), grid.encode(jets)
    i = int(view.shown[0])
    by_hand, v = [], model.vocabulary
    with torch.no_grad():                                                             # token by token, without `surprise`
        for n, token in enumerate([*(codes[i] + 1), v.stop]):
            read = torch.cat([v.prefix(1, int(jets.label[i])), torch.tensor([codes[i, :n].to_list()], dtype=torch.long) + 1], 1)
            by_hand.append(F.cross_entropy(model.head(model.backbone(read))[0, -1], torch.tensor(token)).item())
    assert np.isclose(view.values["surprise"][i], sum(by_hand), rtol=1e-3)
    view.choose(i)
    assert np.allclose(view.surprise, by_hand, rtol=1e-2, atol=1e-3) and np.allclose(view.jet_table()["surprise"], view.surprise[:-1])
    assert np.array_equal(view.bars.panel["layers"][0]["value"], view.surprise) and len(view.jet.panel["layers"][0]["ids"]) == len(codes[i])
    assert view.values["surprise"][i] == np.nanmax(view.values["surprise"])
    view = sorted_gallery(jets, "score", **models)
    assert np.allclose(view.values["score"], tagger.predict(codes)[:, 1], atol=1e-5) and view.shown[0] == view.values["score"].argmax()


def test_gallery_offers_what_it_can_sort_by_and_tells_what_is_missing(jets, grid, tmp_path):
    assert {key for _, key in widgets.JetGallery(jets, None).by.options} == set(OBSERVABLES)
    with_models = dict(widgets.JetGallery(jets, grid, "omnijet/backbone").by.options)
    assert {key for key in with_models.values()} == {*OBSERVABLES, "surprise", "surprise_per_token", "score"} and len(with_models) == len(OBSERVABLES) + 3
    assert {"Jet pT [GeV]", "Jet η", "τ21", "D2", "Largest ΔR", "Σ pT² [GeV²]", "z1", "−ln p", "Tagger score"} <= with_models.keys()
    assert "score" not in {key for _, key in widgets.JetGallery(jets, grid, "omnijet/backbone", None).by.options}
    view = sorted_gallery(jets, "surprise", tokenizer=grid, model=tmp_path / "none")
    assert view.work.text.value.startswith("OmnijetError: ") and "none" in view.work.text.value and "none" in view.title.value
    view.by.value = "mass"
    assert "1 to 12 of 200 jets" in view.title.value
    bare = widgets.JetGallery(jets.constituents[:3], None)
    assert bare.shown.tolist() == np.argsort(-bare.values["mass"]).tolist() and "jet" in bare.small[0].panel["title"]


def test_gallery_that_is_stopped_sorts_what_is_done(grid, model):
    view = widgets.JetGallery(sample_jets(max_jets=100), grid, model, None)
    steps = view.computing("tau21")
    view.values["tau21"] = np.full(1000, np.nan)
    assert next(steps) == 200 and next(steps) == 400
    view.by.value = "tau21"                                                            # goes on in the background
    view.work.stop()
    view.work.wait()
    done = np.isfinite(view.values["tau21"]).sum()
    assert 400 < done <= 1000 and view.shown[0] == np.nanargmax(view.values["tau21"]) and f"of {done:,} jets" in view.title.value


# codebook, plane and jet

def test_codebook_plane_and_jet_are_one_selection(grid, jets):
    explorer = widgets.TokenExplorer(grid, jets)
    explorer.work.wait()
    jet, one = explorer.jet.panel["layers"][0], explorer.scatters[0]
    i = explorer.jet_at
    assert np.array_equal(jet["ids"], np.asarray(grid.encode(explorer.use.jets[i:i + 1])[0]))         # the scatters' ids: codes
    rare = min(set(jet["ids"].tolist()), key=lambda code: explorer.use.count[code])
    one.hover = rare                                                                  # as the browser does when one points at it in the jet
    assert f"<h4>code {rare}</h4>" in explorer.title.value and explorer.jet_at == i   # the jet stays where it is
    elsewhere = next(c for c in np.argsort(-explorer.use.count) if c not in jet["ids"])
    one.hover = int(elsewhere)
    assert explorer.jet_at != i and elsewhere in explorer.jet.panel["layers"][0]["ids"]
    one.hover, one.selected = -1, [int(c) for c in jet["ids"][:3]]
    context = explorer.cloud.panel["layers"][0]
    explorer.show_jet(int(context["ids"][-1]))                                        # a click among the contexts
    assert explorer.jet_at == context["ids"][-1] and f"jet {np.searchsorted(explorer.having, explorer.jet_at) + 1:,} of " in explorer.jet_title.value
    explorer.turn(1)
    assert explorer.having[np.searchsorted(explorer.having, context["ids"][-1]) + 1 - len(explorer.having)] == explorer.jet_at


def test_mass_of_selected_constituents(jets, conditional):
    from omnijet.observables import jet_mass

    browser = widgets.JetBrowser(jets, conditional)
    browser.canvas.selected = [3, 0, 1]
    again = conditional.decode(conditional.encode(jets[:1]))
    for shown in (jets.constituents[:1], again):
        assert f"mass {jet_mass(shown[:, [0, 1, 3]])[0]:.1f} GeV" in browser.chosen_text.value
    assert browser.rows.value.count("<tr class=here>") == 3 and browser.tokens.value.count("class=here") == 3
    browser.move(1)
    assert browser.chosen_text.value == "" and browser.canvas.selected == []


# a cell of code that makes it again

def run_cell(code, **names):
    "What a cell shows: the value of its last line; and its names."
    import ast

    *before, last = ast.parse(code).body
    names = dict(names)
    exec(compile(ast.Module(before, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names), names


def same_picture(cell_and_names, *canvases):
    "A cell draws what the canvases show: the same pixels."
    def pixels(figure):
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=40)
        return file.getvalue()
    return pixels(cell_and_names[0]) == pixels(panels.picture(*(canvas.panel for canvas in canvases)))


def test_cells_of_the_browser_and_the_explorer(jets, conditional, grid):
    browser = widgets.JetBrowser(jets, conditional)
    browser.move(7)
    assert same_picture(run_cell(browser.code(), jets=jets, tokenizer=conditional), browser.canvas)
    browser.canvas.selected = [0, 2]
    assert len(run_cell(browser.code(), jets=jets, tokenizer=conditional)[1]["selected"][0]) == 2
    assert same_picture(run_cell(widgets.JetBrowser().code()), widgets.JetBrowser().canvas)
    explorer = widgets.TokenExplorer(grid, jets)
    explorer.work.wait()
    explorer.by.value, explorer.pt.index = "jet type", (3, 9)
    assert same_picture(run_cell(explorer.code(), tokenizer=grid, jets=jets), *explorer.scatters)
    two, rare = np.argsort(-explorer.use.count)[:2].tolist(), int(np.flatnonzero(explorer.use.count == 1)[0])
    for codes in (two, [rare]):
        explorer.scatters[0].selected = codes
        made = run_cell(explorer.detail_code(), tokenizer=grid, jets=jets)
        assert np.array_equal(made[1]["constituents"][:, 0], explorer.detail_table()["pt"][:explorer.use.count[codes].sum()])
        assert same_picture(made, explorer.bars, explorer.cloud, explorer.jet)


def test_cells_of_the_playground(jets, model, grid):
    playground = widgets.GenerationPlayground(model, grid, jets)
    side = playground.sides[0]
    playground.jet_class.value, playground.temperature.value = "TTBar", 0.8
    playground.step()
    playground.finish()
    made = run_cell(playground.code(side), model=model, tokenizer=grid)
    assert made[1]["growing"].codes == side.growing.codes and same_picture(made, side.bars, side.plane)
    playground.number.value = 40
    playground.generate()
    playground.work.wait()
    assert same_picture(run_cell(playground.made_code(), model=model, tokenizer=grid, jets=jets), *playground.histograms)


def test_cells_of_the_gallery(jets, model, grid):
    view = sorted_gallery(jets, "surprise", tokenizer=grid, model=model)
    made = run_cell(view.code(), jets=jets, tokenizer=grid, model=model)[1]
    assert made["numbers"] == view.shown.tolist() and np.allclose(made["values"], view.values["surprise"][view.shown], rtol=1e-4)
    view.small[0].selected = [5, 100]
    view.by.value = "mass"
    made = run_cell(view.code(), jets=jets)[1]
    assert made["numbers"] == [5, 100] == view.table()["jet"].tolist() and np.allclose(made["values"], view.values["mass"][[5, 100]])


def test_a_cell_loads_by_name_what_was_given_by_name(tmp_path, jets, model, grid, monkeypatch):
    import __main__

    model.save_pretrained(tmp_path / "model")
    grid.save_pretrained(tmp_path / "grid")
    playground = widgets.GenerationPlayground(tmp_path / "model", str(tmp_path / "grid"), jets)
    monkeypatch.setattr(__main__, "my_jets", jets, raising=False)
    playground.finish()
    code = playground.code(playground.sides[0])
    assert f"model = GenerativeModel.from_pretrained('{tmp_path}/model')" in code
    assert run_cell(code)[1]["growing"].codes == playground.sides[0].growing.codes
    assert "jets = my_jets" in widgets.JetBrowser(jets).code()


# transfer

def test_scores_behind_a_point(tmp_path, model, grid, jets):
    chosen = jets[np.isin(jets.label, [0, 8])]
    write_tokens(grid.encode(chosen), tmp_path / "tokens" / "test" / "jets.parquet", chosen.label, chosen.id)
    torch.manual_seed(1)
    plain = GenerativeModel(grid.codebook_size, width=16, blocks=1, heads=2)
    classifier = JetClassifier.from_generative(plain)
    for seed in (1, 2):
        folder = tmp_path / "transfer" / f"finetune_100_seed{seed}"
        classifier.save_pretrained(folder)
        (folder / "result.json").write_text(f'{{"strategy": "finetune", "size": 100, "seed": {seed}, "accuracy": 0.8, "auc": 0.9, "rejection_30": 10.0, "rejection_50": 5.0}}')
    explorer = widgets.TransferExplorer(tmp_path)
    assert len(explorer.found) == 2
    explorer.choose(1)
    explorer.work.wait()
    scores, target, _, names = explorer.scores["fine-tuned, 100 jets, seed 2"]
    assert explorer.work.text.value == "40 of 40 jets"
    assert np.allclose(np.sort(scores), np.sort(classifier.predict(grid.encode(chosen))[:, 1]), atol=1e-5) and target.sum() == 20 and len(target) == 40
    assert explorer.distribution.panel["title"] == "fine-tuned, 100 jets, seed 2" and names == ["q/g", "t → bqq′"]
    assert explorer.shown[0] is scores and np.allclose(scores[target == 1].mean(), classifier.predict(grid.encode(chosen))[chosen.label == 8, 1].mean())
    assert explorer.table()["seed"] == [1, 2]
    made, names = run_cell(explorer.code())
    assert len(made.axes) == 2 and np.allclose(np.sort(names["classifier"].predict(grid.encode(chosen))[:, 1]), np.sort(scores), atol=1e-5)
    explorer.strategies.value = ()
    assert not explorer.found and explorer.table()["seed"] == []


def test_scoring_stops_between_jets(tmp_path, model, grid, jets):
    write_tokens(grid.encode(jets), tmp_path / "tokens" / "test" / "jets.parquet", jets.label, jets.id)
    folder = tmp_path / "transfer" / "scratch_100_seed1"
    JetClassifier.from_generative(model).save_pretrained(folder)
    (folder / "result.json").write_text('{"strategy": "scratch", "size": 100, "seed": 1, "accuracy": 0.8}')
    explorer = widgets.TransferExplorer(tmp_path)
    steps = explorer.scoring(explorer.found[0], batch=8)
    assert next(steps) == 8 and next(steps) == 16 and explorer.work.bar.max == 40
    steps.close()
    assert len(explorer.shown[0]) == 16 and not explorer.scores and set(explorer.shown[1]) == {0, 1}


# odd inputs: a picture or one line

SCRATCH = {"strategy": "scratch", "size": 100, "seed": 1, "accuracy": 0.6}


def one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize("headless", ["", "1"])
@pytest.mark.parametrize("odd", [
    lambda jets: jets[0], lambda jets: jets.constituents[0], lambda jets: jets[:1], lambda jets: jets[["constituents"]], lambda jets: jets.constituents.to_list(),
    lambda jets: ak.with_field(jets, [CLASSES[k] for k in jets.label], "label"), lambda jets: ak.with_field(jets, ak.values_astype(jets.label, float), "label"),
    lambda jets: {name: jets.constituents[name] for name in FEATURES}, lambda jets: ak.values_astype(jets.constituents, np.float64)])
def test_jets_in_other_shapes(odd, headless, jets, grid, monkeypatch):
    from matplotlib.figure import Figure

    monkeypatch.setenv("OMNIJET_HEADLESS", headless)
    shown = panels.shown_jets(odd(jets))
    assert np.allclose(shown.constituents[0].pt, jets.constituents[0].pt) and set(shown.label.to_list()) <= set(range(-1, 10))
    for tokenizer in (None, grid):
        assert isinstance(widgets.JetBrowser(odd(jets), tokenizer), Figure if headless else widgets.JetBrowserView)


def test_jets_without_constituents_or_with_many_are_browsed_until_tokenized(jets, grid):
    many = ak.unflatten(ak.flatten(jets.constituents)[:200], [0, 200])
    browser = widgets.JetBrowser(many)
    assert "0 constituents" in browser.title.value
    browser.move(1)
    assert "200 constituents" in browser.title.value and len(browser.table()["pt"]) == 200
    for odd in (jets.constituents[:0], many[:1], many[1:], ak.concatenate([jets.constituents[:3], many])):
        for widget in (lambda j: widgets.JetBrowser(j, grid), lambda j: widgets.TokenExplorer(grid, j), lambda j: widgets.GenerationPlayground(GenerativeModel(216, 16, 1, 2), grid, j)):
            with pytest.raises(OmnijetError, match="there are no jets|jet 0 has 0 constituents|jet 0 has 200|jet 3 has 0") as error:
                widget(odd)
            assert one_line(error)


@pytest.mark.parametrize("odd", [3, "jets", Path("jets"), np.ones((4, 3)), torch.ones(2, 4, 3), [[1, 2], [3]], {"pt": [[1.0, 2]], "eta_rel": [[0.0]], "phi_rel": [[0.0]]},
                                 {"pt": [[1.0]], "eta_rel": [[np.nan]], "phi_rel": [[0.0]]}, {"pt": [[-1.0]], "eta_rel": [[0.0]], "phi_rel": [[0.0]]}])
@pytest.mark.parametrize("headless", ["", "1"])
def test_what_is_no_jet(odd, headless, grid, model, monkeypatch):
    monkeypatch.setenv("OMNIJET_HEADLESS", headless)
    for widget in (widgets.JetBrowser, lambda j: widgets.JetBrowser(j, grid), lambda j: widgets.TokenExplorer(grid, j), lambda j: widgets.GenerationPlayground(model, grid, j)):
        with pytest.raises(OmnijetError) as error:
            widget(odd)
        assert one_line(error)


@pytest.mark.parametrize("label", [[12], [np.nan], ["top"], [None], [-2, 3, 3]])
def test_labels_that_are_no_class(label, jets):
    with pytest.raises(OmnijetError, match="no jet class"):
        widgets.JetBrowser(ak.with_field(jets[:len(label)], ak.Array(label), "label"))


def test_models_of_another_kind(tmp_path, model, grid, jets):
    model.save_pretrained(tmp_path / "model")
    grid.save_pretrained(tmp_path / "grid")
    JetClassifier.from_generative(model).save_pretrained(tmp_path / "tagger")
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "model", str(tmp_path / "tagger"), tmp_path / "empty", model, 3, VQVAE, jets):
        for shown in (widgets.JetBrowser(jets, wrong), widgets.TokenExplorer(wrong, jets), widgets.GenerationPlayground(model, wrong, jets)):
            assert "Nothing to show yet" in texts(shown)
    for wrong in (tmp_path / "grid", tmp_path / "tagger", grid, None, JetClassifier.from_generative(model)):
        assert "Nothing to show yet" in texts(widgets.GenerationPlayground(wrong, grid, jets))


@pytest.mark.parametrize("options", [{"jet_class": "top"}, {"jet_class": None}, {"number": -1}, {"number": 1.5}, {"number": "three"}])
def test_options_of_a_growing_jet_that_cannot_be(options, model, grid):
    with pytest.raises(OmnijetError) as error:
        growth.Growing(model, grid, **{"jet_class": "TTBar", **options})
    assert one_line(error)


def test_numbers_of_a_growing_jet_in_other_types(model, grid, jets):
    growing = growth.Growing(model, grid, number="2", seed=np.int64(4), jet_class=np.int64(8), top_k=np.int32(5), temperature=np.float32(0.5))
    growing.draw(everything=True)
    assert growing.codes == model.generate(1, seed=4, first=2, jet_class="TTBar", top_k=5, temperature=0.5, progress=False)[0].to_list()
    assert len(growing.expected("3")[0]) == 3
    growing = growth.Growing(model, grid, jet_class="TTBar", max_constituents=3)
    growing.draw(everything=True)
    assert len(growing.codes) <= 3 and growing.finished
    for token in (0, -3, 300, 1.5, "stop"):
        with pytest.raises(OmnijetError, match="token is"):
            growing.add(token)


def test_failed_and_odd_trainings(tmp_path, monkeypatch):
    failed = {**SCRATCH, "seed": 2, "failed": "ValueError: nan"}
    del failed["accuracy"]
    other = {"strategy": "finetune", "size": np.int64(100), "seed": np.int64(1), "auc": np.float32(0.7), "accuracy": float("nan"), "rejection_30": [1, 2]}
    explorer = widgets.TransferExplorer([SCRATCH, failed, other])
    assert [key for _, key in explorer.metric.options] == ["auc", "accuracy"] and len(explorer.found) == 1 and len(explorer.trainings) == 2
    explorer.metric.value = "accuracy"
    assert explorer.table()["accuracy"] == [0.6] and np.isnan(explorer.table()["auc"][0])
    assert explorer.sizes.value == (100, 100) and explorer.curve.panel["x"]["range"][0] < 100 < explorer.curve.panel["x"]["range"][1]
    explorer.choose(0)
    assert explorer.distribution.panel["title"] == "no classifier kept: give the run folder"
    gone = widgets.TransferExplorer([SCRATCH], tmp_path / "no-such-run")
    gone.choose(0)
    gone.work.wait()
    assert gone.work.text.value.startswith("OmnijetError: ") and "scratch_100_seed1" in gone.work.text.value
    for wrong in ([failed], [], None, 3, SCRATCH, [None], [{"accuracy": 0.5}], [{**SCRATCH, "strategy": "mine"}], [{**SCRATCH, "size": "many"}]):
        assert "training" in texts(widgets.TransferExplorer(wrong))
    for text in ("{", "", "[]", '{"failed": "nan"}', '{"accuracy": 0.5}'):
        path = tmp_path / "run" / "transfer" / "scratch_100_seed1" / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        assert "scratch_100_seed1" in texts(widgets.TransferExplorer(tmp_path / "run")) or "no finished training" in texts(widgets.TransferExplorer(tmp_path / "run"))
    monkeypatch.setenv("OMNIJET_HEADLESS", "1")
    assert widgets.TransferExplorer([{**SCRATCH, "accuracy": None, "auc": 0.5}]).axes[0].lines


# work, headless, missing

def test_an_error_in_the_background_is_told():
    def fails():
        yield 1
        raise OmnijetError("jet 3 is odd")
    work = panels.Work()
    work.start(fails(), 10)
    work.wait()
    assert work.text.value == "OmnijetError: jet 3 is odd" and work.bar.bar_style == "danger"


def test_headless_makes_pictures_and_no_widgets(monkeypatch, model, grid, jets, tmp_path):
    from matplotlib.figure import Figure

    monkeypatch.setenv("OMNIJET_HEADLESS", "1")
    before = open_widgets()
    made = [widgets.JetBrowser(jets, grid), widgets.TokenExplorer(grid, jets), widgets.GenerationPlayground(model, grid, jets),
            widgets.TransferExplorer([{"strategy": "scratch", "size": 100, "seed": 1, "accuracy": 0.6}])]
    missing = [widgets.TokenExplorer("omnijet/no-such").data, widgets.TransferExplorer(tmp_path).data]
    assert all(isinstance(figure, Figure) for figure in made) and open_widgets() == before
    assert "no such folder" in missing[0] and "run chapter 05_transfer first" in missing[1]


def texts(widget):
    return " ".join(child.value for child in widget.children if isinstance(child, W.HTML))


def test_a_missing_model_says_what_to_load(tmp_path, jets):
    assert "omnijet/no-such: no such folder" in texts(widgets.TokenExplorer("omnijet/no-such")) and "TokenExplorer('runs/smoke/" in texts(widgets.TokenExplorer("omnijet/no-such"))
    assert "omnijet/no-such" in texts(widgets.GenerationPlayground("omnijet/no-such", BinnedTokenizer((3, 3, 3))))
    assert "omnijet/no-such" in texts(widgets.JetBrowser(jets, "omnijet/no-such"))
    assert "run chapter 05_transfer first" in texts(widgets.TransferExplorer(tmp_path))
    (tmp_path / "transfer").mkdir()
    assert "no finished training" in texts(widgets.TransferExplorer(tmp_path))


def test_without_argument_the_shipped_models_are_shown(tmp_path, monkeypatch):
    import omnijet

    run = tmp_path / "elsewhere"
    run.mkdir()
    monkeypatch.chdir(run)                                                           # no run folder here
    monkeypatch.setenv("OMNIJET_SAMPLE", str(sample_folder()))
    monkeypatch.setattr(omnijet, "__file__", str(tmp_path / "__init__.py"))         # models that ship lie beside it
    assert "omnijet/tokenizer-512: " in texts(widgets.TokenExplorer())
    assert "omnijet/tokenizer-8192: " in texts(widgets.GenerationPlayground())
    assert "../runs/smoke" in texts(widgets.TransferExplorer()) and "run chapter 05_transfer first" in texts(widgets.TransferExplorer())
    assert "jet 0 ·" in widgets.JetBrowser().title.value                             # needs no model

    torch.manual_seed(1)
    for codes in (512, 8192):
        VQVAE(codes, width=16, blocks=1, heads=2).save_pretrained(tmp_path / "pretrained" / f"tokenizer-{codes}")
    assert "omnijet/backbone: " in texts(widgets.GenerationPlayground())
    GenerativeModel(8192, width=16, blocks=1, heads=2).save_pretrained(tmp_path / "pretrained" / "backbone")
    explorer = widgets.TokenExplorer()
    explorer.work.stop()
    explorer.work.wait()
    assert explorer.use.size == 512 and len(explorer.use.jets) == 10_000
    playground = widgets.GenerationPlayground()
    assert playground.sides[0].tokenizer.codebook_size == 8192 and set(playground.jets.label) == {0, 8}      # the paper's two classes


# bare constituents

def test_constituents_without_classes_are_browsed(jets, conditional, monkeypatch):
    from matplotlib.figure import Figure

    bare = conditional.decode(conditional.encode(jets[:12]))
    browser = widgets.JetBrowser(bare, conditional)
    assert browser.title.value.startswith("<h4>jet 0 · mass") and len(browser.classes.options) == 1
    browser.move(3)
    assert (browser.table()["code"] == np.asarray(conditional.encode(bare[3:4])[0])).all()
    with pytest.raises(OmnijetError, match="constituents have no field eta_rel, phi_rel"):
        widgets.JetBrowser(bare[["pt"]], conditional)
    monkeypatch.setenv("OMNIJET_HEADLESS", "1")
    assert isinstance(widgets.JetBrowser(bare, conditional), Figure)


# the canvas

def test_canvas_is_what_the_browser_gets():
    canvas = panels.Canvas()
    assert str(canvas._esm) == panels.CANVAS.read_text()
    assert str(canvas._css) == panels.CANVAS.with_suffix(".css").read_text()


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
def test_canvas_is_javascript(tmp_path):
    module = tmp_path / "canvas.mjs"
    shutil.copy(panels.CANVAS, module)
    subprocess.run(["node", "--check", module], check=True)
    code = f"import canvas from '{module}'; process.exit(typeof canvas.render === 'function' ? 0 : 1)"
    subprocess.run(["node", "--input-type=module", "--eval", code], check=True)


def test_canvas_is_linted():
    def eslint(*given):
        return subprocess.run(["npx", "--yes", "--prefer-offline", "eslint@9", *given], capture_output=True, text=True, timeout=120)

    if not shutil.which("npx") or eslint("--version").returncode:
        pytest.skip("no eslint, and npm does not bring it here")
    rules = Path(__file__).parent / "browser" / "eslint.config.mjs"
    done = eslint("--config", rules, "--max-warnings", "0", panels.CANVAS)
    assert done.returncode == 0, done.stdout + done.stderr
