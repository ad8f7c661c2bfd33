"""The backbone against the reference implementation, exact generation, and bad input."""
import math
import os

import awkward as ak
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare

from omnijet.files import OmnijetError
from omnijet.data import Ragged, sample_jets, write_tokens
from omnijet.gpt import (
    Cache, GenerativeModel, Sampling, Vocabulary, attend_causally, jet_token_edges, load_tokens, next_token_loss, probabilities, sample,
    surprise, uniforms,
)
from omnijet.models import GroupedHead, decoded_codes
from omnijet.vqvae import BinnedTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def reference(golden):
    with np.load(golden / "gabbro_generative_io.npz") as file:
        numbers = {name: torch.from_numpy(file[name]) for name in file}
    return GenerativeModel.from_gabbro(golden / "gabbro_generative.ckpt"), numbers


def small(codebook_size=30, seed=1, **sizes):
    torch.manual_seed(seed)
    return GenerativeModel(codebook_size, **{"width": 32, "blocks": 2, "heads": 4, **sizes}).double().eval()


def some_jets(lengths, codebook_size=30, seed=0):
    rng = np.random.default_rng(seed)
    return Ragged(rng.integers(0, codebook_size, sum(lengths)), np.concatenate([[0], np.cumsum(lengths)]), {"label": rng.integers(0, 10, len(lengths))})


def as_batch(data, **options):
    return {name: torch.from_numpy(values) for name, values in data.pad(**options).items()}


def test_golden_full_forward(reference):
    model, numbers = reference
    real = numbers["mask"].bool()
    with torch.inference_mode():
        embeddings, logits = model.backbone(numbers["tokens"]), model(numbers["tokens"])
    assert (embeddings - numbers["embeddings"])[real].abs().max() < 1e-4
    assert (logits - numbers["logits"])[real].abs().max() < 1e-4


def test_golden_through_the_cache(reference):
    model, numbers = reference
    tokens, real = numbers["tokens"], numbers["mask"].bool()
    cache = Cache(model.backbone, *tokens.shape)
    with torch.inference_mode():
        logits = torch.cat([model(token[:, None], cache) for token in tokens.T], 1)
    assert (logits - numbers["logits"])[real].abs().max() < 1e-4


def test_checkpoint_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self): return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": {}, "hyper_parameters": {"x": Evil()}}, tmp_path / "evil.ckpt")
    with pytest.raises(OmnijetError, match="system"):
        GenerativeModel.from_gabbro(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_checkpoint_of_another_model(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(3)}, "hyper_parameters": {}}, tmp_path / "other.ckpt")
    with pytest.raises(OmnijetError, match="not a generative model"):
        GenerativeModel.from_gabbro(tmp_path / "other.ckpt")


@pytest.mark.parametrize("options", [{}, {"classes": 10}, {"grouped": 8}, {"grouped": 7, "classes": 10}])
def test_loss_of_a_jet_is_its_own(options):
    model, data = small(**options), some_jets([12, 1, 7, 40])
    sums = {}
    for name, groups, length in (("alone", [[0], [1], [2], [3]], None), ("together", [[0, 1, 2, 3]], None), ("padded", [[0], [1], [2], [3]], 128)):
        model.zero_grad()
        parts = [model.loss(as_batch(data, index=g, length=length)) for g in groups]
        total = sum(p["loss"] * p["weight"] for p in parts)
        total.backward()
        assert sum(p["weight"] for p in parts) == len(data.content) + len(data)
        sums[name] = total.item(), torch.cat([p.grad.flatten() for p in model.parameters()])
    for value, gradient in (sums["together"], sums["padded"]):
        assert value == pytest.approx(sums["alone"][0], rel=1e-6)      # the loss itself is summed in float32
        assert torch.allclose(gradient, sums["alone"][1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("grouped", [0, 8])
def test_surprise_agrees_with_the_loss(grouped):
    model, data = small(grouped=grouped), some_jets([12, 1, 7, 40, 3])
    nats = surprise(model, data, batch_size=2)
    for i in range(len(data)):
        batch = as_batch(data, index=[i])
        assert nats[[i]].content.mean() == pytest.approx(model.loss(batch)["loss"].item(), rel=1e-5)


def test_chunked_loss_has_the_gradient_of_cross_entropy():
    torch.manual_seed(2)
    head, x, targets = torch.nn.Linear(8, 50).double(), torch.randn(101, 8, dtype=torch.double, requires_grad=True), torch.randint(0, 50, (101,))
    expected = torch.autograd.grad(3 * F.cross_entropy(head(x), targets), (x, *head.parameters()))
    for chunk in (7, 101, 500):
        found = torch.autograd.grad(3 * next_token_loss(x, head, targets, chunk), (x, *head.parameters()))
        assert all(torch.allclose(a, b) for a, b in zip(expected, found))


@pytest.mark.parametrize("dtype,tolerance", [(torch.bfloat16, 0.01), (torch.float32, 1e-6)])
@pytest.mark.parametrize("causal,length,seen", [(True, 23, 23), (True, 1, 1), (False, 1, 37)])      # in training; through the cache
def test_attention_is_that_of_torch(causal, length, seen, dtype, tolerance):
    "Values and gradients, to the precision of each type."
    torch.manual_seed(3)
    exact = [torch.randn(4, 2, n, 16, dtype=torch.double, requires_grad=True) for n in (length, seen, seen)]
    rounded = [t.detach().to(dtype).requires_grad_() for t in exact]
    expected = F.scaled_dot_product_attention(*exact, is_causal=causal)
    found, slope = attend_causally(*rounded), torch.randn(4, 2, length, 16)
    pairs = [(found, expected), *zip(torch.autograd.grad(found, rounded, slope.to(dtype)), torch.autograd.grad(expected, exact, slope.double()))]
    for a, b in pairs:
        assert a.dtype == dtype and (a.double() - b).norm() <= tolerance * (b.norm() + 1e-3)


def uncached(model, n, seed, max_constituents, label=None, **options):
    "Each jet by itself, the whole sequence read again for every token."
    v, jets = model.vocabulary, []
    for j in range(n):
        read = v.prefix(1, None if label is None else torch.tensor([label]))
        codes = []
        for position in range(max_constituents):
            u, never = uniforms(seed, torch.tensor([j]), position), [v.start] if position else [v.start, v.stop]
            scores = model(read)[:, -1].clone()
            scores[:, never] = -math.inf
            in_two_steps = isinstance(model.head, GroupedHead) and not options
            token = model.head.draw(model.backbone(read)[:, -1], u, never) if in_two_steps else sample(scores, u, **options)
            if token == v.stop: break
            codes.append(int(token) - 1)
            read = torch.cat([read, token[:, None]], 1)
        jets.append(codes)
    return jets


@pytest.mark.parametrize("grouped", [0, 8])
@pytest.mark.parametrize("classes,jet_class,options", [(0, None, {}), (10, "TTBar", {"temperature": 0.7, "top_k": 12}), (0, None, {"top_p": 0.6})])
def test_generation_does_not_depend_on_cache_and_batch(classes, jet_class, options, grouped):
    model = small(classes=classes, grouped=grouped)
    with torch.inference_mode():
        expected = uncached(model, 30, seed=3, max_constituents=25, label=None if jet_class is None else 8, **options)
    assert {len(jet) for jet in expected} - {25}                        # some stop by themselves
    for batch_size in (1, 7, 512):
        made = model.generate(30, seed=3, batch_size=batch_size, max_constituents=25, jet_class=jet_class, progress=False, **options)
        assert made.to_list() == expected
    assert model.generate(10, seed=3, first=20, max_constituents=25, jet_class=jet_class, progress=False, **options).to_list() == expected[20:]


@pytest.mark.parametrize("grouped", [0, 8])
def test_first_tokens_follow_the_models_probabilities(grouped):
    model = small(grouped=grouped)
    n = 10_000
    first = ak.to_numpy(ak.firsts(model.generate(n, seed=11, max_constituents=1, progress=False)))
    with torch.inference_mode():
        scores = model(torch.zeros(1, 1, dtype=torch.long))[0, 0, 1:31]     # neither start nor stop
    assert chisquare(np.bincount(first, minlength=30), n * scores.softmax(0).numpy()).pvalue > 0.001


def test_generated_lengths_follow_the_models_stop_probability():
    "A head that ignores its input: lengths are geometric, whatever leaves the batch when."
    model = small(codebook_size=9)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    n, p = 5000, 1 / 10                                                     # nine codes and the stop token
    lengths = ak.to_numpy(ak.num(model.generate(n, seed=5, batch_size=1000, max_constituents=8, progress=False)))
    expected = np.array([p * (1 - p) ** (k - 1) for k in range(1, 8)] + [(1 - p) ** 7])
    assert chisquare(np.bincount(lengths, minlength=9)[1:], n * expected).pvalue > 0.001


def test_streams_are_uniform_and_independent():
    u = torch.stack([uniforms(seed, torch.arange(20_000), position) for seed in (0, 1, -5, 2**40) for position in (0, 1, 127)])
    assert u.min() >= 0 and u.max() < 1
    for row in u.numpy():
        assert chisquare(np.histogram(row, 50, (0, 1))[0]).pvalue > 1e-4
    assert (torch.corrcoef(u) - torch.eye(len(u))).abs().max() < 0.035      # 4.9 σ


def test_forbidden_tokens_are_never_drawn():
    scores = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]])
    u = torch.tensor([0.0, 1e-30, 0.3, 1 - 2**-24, 1 - 2**-53], dtype=torch.double)
    for dtype in (torch.float32, torch.float64):
        assert set(sample(scores.to(dtype).expand(5, 5), u).tolist()) <= {1, 3}


@pytest.mark.parametrize("tokens", [1, 5, 128, 129, 1000])                     # one group, whole groups, a rest
def test_the_token_drawn_is_the_first_whose_cumulative_probability_exceeds_u(tokens):
    rng = np.random.default_rng(tokens)
    p = rng.dirichlet(np.full(tokens, 0.1), 400)
    p[p < 1e-6] = 0                                                         # tokens that may not be drawn
    total, u = p.cumsum(1), rng.random(400)
    u[:2] = 0, 1 - 2**-53
    drawn = sample(torch.from_numpy(p).log(), torch.from_numpy(u)).numpy()
    rows = np.arange(400)
    assert (p[rows, drawn] > 0).all()
    goal, rounding = u * total[:, -1], 1e-12
    assert (goal < total[rows, drawn] + rounding).all() and (goal > total[rows, drawn] - p[rows, drawn] - rounding).all()


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"top_k": 500}, {"top_p": 0.9}])
def test_options_of_sampling_in_bfloat16(options):
    "Sums over thousands of tokens are taken in float32: the tokens drawn are those of the same scores in float32."
    torch.manual_seed(4)
    scores, u = 2 * torch.randn(1, 8194).bfloat16(), torch.rand(4000, dtype=torch.double)
    assert torch.equal(*(sample(s.expand(4000, -1), u, **options) for s in (scores, scores.float())))


def test_sampling_in_bfloat16():
    "Without options, the probabilities themselves are rounded, and nothing else: u lies in the token's share of the exact sum, to 0.002."
    torch.manual_seed(5)
    scores, u = 2 * torch.randn(1, 8194).bfloat16(), torch.rand(4000, dtype=torch.double)
    p = scores.double().softmax(-1)[0]
    total, drawn = p.cumsum(0), sample(scores.expand(4000, -1), u)
    assert ((u < total[drawn] + 0.002) & (u > total[drawn] - p[drawn] - 0.002)).all()


@pytest.mark.parametrize("grouped", [0, 8])
def test_saved_and_loaded(tmp_path, grouped):
    model = small(grouped=grouped).float()
    model.save_pretrained(tmp_path / "model")
    again = GenerativeModel.from_pretrained(tmp_path / "model")
    tokens = torch.randint(0, 32, (2, 5))
    assert torch.equal(model(tokens), again(tokens)) and not again.training
    assert sorted(p.name for p in (tmp_path / "model").iterdir() if p.suffix != ".md") == ["config.json", "model.safetensors"]


def test_greedy_and_no_jets():
    model = small()
    greedy = model.generate(5, temperature=0, max_constituents=10, progress=False).to_list()
    assert all(jet == greedy[0] for jet in greedy)
    none = model.generate(0, progress=False)
    assert len(none) == 0 and none.ndim == 2


@pytest.mark.parametrize("options,words", [
    ({"n": -1}, "n is -1, expected a whole number at least 0"), ({"temperature": -0.5}, "temperature is -0.5"), ({"temperature": math.nan}, "temperature"),
    ({"top_k": 0}, "top_k is 0, expected a whole number at least 1"), ({"top_k": 33}, "top_k is 33"), ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"),
    ({"max_constituents": 0}, "max_constituents"), ({"batch_size": -1}, "batch_size"), ({"jet_class": "TTBar"}, "without class tokens")])
def test_bad_options(options, words):
    with pytest.raises(OmnijetError, match=words):
        small().generate(**{"n": 2, "progress": False, **options})


def test_options_of_sampling_give_the_label():
    vocabulary = Vocabulary(30, classes=10)
    assert Sampling(jet_class="TTBar").label(vocabulary) == Sampling(jet_class=8).label(vocabulary) == 8
    assert Sampling(top_k=32, top_p=1, temperature=0).label(Vocabulary(30)) is None
    with pytest.raises(TypeError, match="temprature"):
        small().generate(2, temprature=1)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0}])
def test_tokens_are_drawn_with_these_probabilities(options):
    torch.manual_seed(6)
    scores, n = 2 * torch.randn(1, 20).double(), 20_000
    p = probabilities(scores, **options)[0].numpy()
    drawn = sample(scores.expand(n, -1), torch.rand(n, dtype=torch.double), **options).bincount(minlength=20).numpy()
    assert p.sum() == pytest.approx(1) and (drawn[p == 0] == 0).all()
    assert (p > 0).sum() == 1 or chisquare(drawn[p > 0], n * p[p > 0]).pvalue > 0.001


@pytest.mark.parametrize("jet_class", [None, "Higgs", 10, -1, True, np.True_, 0.5, [8]])
def test_bad_jet_class(jet_class):
    with pytest.raises(OmnijetError, match="TTBar"):
        small(classes=10).generate(2, jet_class=jet_class, progress=False)


@pytest.mark.parametrize("jet_class", ["TTBar", "label_Tbqq", 8, np.int32(8), np.uint8(8), np.array(8), torch.tensor(8)])
def test_a_jet_class_by_any_of_its_names(jet_class):
    model = small(classes=10)
    assert Sampling(jet_class=jet_class) == Sampling(jet_class=8)
    assert ak.array_equal(model.generate(3, jet_class=jet_class, progress=False), model.generate(3, jet_class=8, progress=False))


def test_a_class_that_a_model_was_not_made_for():
    with pytest.raises(OmnijetError, match="jet_class is 8, expected ZJetsToNuNu, HToBB, HToCC$"):
        small(classes=3).generate(2, jet_class="TTBar", progress=False)
    with pytest.raises(OmnijetError, match="labels .*expected 0 … 2"):
        small(classes=3).loss({**as_batch(some_jets([3, 4])), "label": torch.tensor([1, 8])})


@pytest.mark.parametrize("wrong", [{"temperature": 1e300}, {"temperature": True}, {"temperature": None}, {"top_p": 1e-30}, {"top_p": True}, {"top_k": np.array([3])}, {"seed": True},
                                   {"seed": 2**64}, {"seed": None}, {"first": 2**63}, {"first": 0.5}, {"batch_size": 1.5}, {"max_constituents": 10**5}, {"max_constituents": None}])
def test_numbers_that_cannot_be_name_themselves(wrong):
    (name,) = wrong
    with pytest.raises(OmnijetError, match=f"^{name} is .*, expected") as error:
        small().generate(2, progress=False, **wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"seed": 0}, {"seed": 2**63 - 1}, {"temperature": 1e-300}, {"temperature": np.float16(1e6 / 20)}, {"top_p": 1e-6}, {"top_k": np.array(1)},
                                     {"first": 2**62}, {"batch_size": 10**12}, {"max_constituents": np.uint16(3)}])
def test_numbers_at_the_edge(options):
    made = small().float().generate(4, progress=False, **{"max_constituents": 10, **options})
    assert len(made) == 4 and 0 <= ak.min(made) <= ak.max(made) < 30


@pytest.mark.parametrize("make", [lambda: GenerativeModel(0), lambda: GenerativeModel(True), lambda: GenerativeModel(codebook_size="many"), lambda: Vocabulary(codebook_size=-3)])
def test_a_codebook_that_cannot_be(make):
    with pytest.raises(OmnijetError, match="codebook_size is"):
        make()


@pytest.mark.parametrize("size, value", [("width", 0), ("width", 8.5), ("heads", 0), ("blocks", -1), ("blocks", np.nan), ("classes", 11), ("classes", -1), ("classes", None)])
def test_sizes_out_of_range_name_themselves(size, value):
    with pytest.raises(OmnijetError, match=f"{size} is"):
        GenerativeModel(16, **{"width": 16, "blocks": 1, "heads": 2, size: value})


def test_what_is_asked_for_is_compared_with_whole_jets(tmp_path):
    alone, whole = {"mass": [0.0, 1.0, 2.0, 3.0]}, {"mass": [0.0, 10.0, 20.0, 30.0]}
    asked = Sampling(mass=15)
    assert np.argmax(asked.allowed(Vocabulary(8, jet_tokens=alone, whole_jets=whole))[0]) == 1
    assert np.argmax(asked.allowed(Vocabulary(8, jet_tokens=alone))[0]) == 2  # the outer bins are open
    small(8, jet_tokens=alone, whole_jets=whole).save_pretrained(tmp_path)
    again = GenerativeModel.from_pretrained(tmp_path).vocabulary
    assert again.whole["mass"].tolist() == whole["mass"] and again.edges["mass"].tolist() == alone["mass"]
    for wrong in ({"mass": [0.0, 1.0]}, {"pt": [0.0, 1.0, 2.0, 3.0]}):
        with pytest.raises(OmnijetError, match="whole_jets"):
            Vocabulary(8, jet_tokens=alone, whole_jets=wrong)


def test_edges_of_whole_jets_have_their_bins_below():
    class Doubling(BinnedTokenizer):
        "Decodes a jet to twice the momenta of its codes, each alone: what context can do."
        def decode(self, tokens):
            jets = super().decode(tokens)
            return ak.with_field(jets, ak.where(ak.num(jets.pt) > 1, 2, 1) * jets.pt, "pt")

    jets = sample_jets(["ZJetsToNuNu", "TTBar"], max_jets=300).constituents
    grid = Doubling.fit(jets, [8, 8, 8])
    coded = Ragged.from_tokens(ak.zip({"tokens": grid.encode(jets)}, depth_limit=1))
    bins = {"pt": 16, "mass": 16, "n_constituents": 64}  # more bins than there are counts of some of the jets
    alone, whole = (jet_token_edges(grid, coded, bins, x) for x in (False, True))
    assert len(alone["n_constituents"]) < 65 and whole["n_constituents"] == alone["n_constituents"]
    for name in ("pt", "mass"):
        assert np.allclose(whole[name], 2 * np.array(alone[name]), rtol=1e-3)
    average = jet_token_edges(grid, coded, bins, decoded=decoded_codes(grid, coded))  # of sums over codes as they are in jets
    assert np.allclose(average["pt"], whole["pt"], rtol=1e-3) and np.allclose(average["mass"], whole["mass"], rtol=1e-2)
    some = jet_token_edges(grid, coded[:100], bins, True)
    assert {k: len(x) for k, x in some.items()} == {k: len(x) for k, x in jet_token_edges(grid, coded[:100], bins).items()}


def test_the_average_of_a_code_in_jets():
    "By a loop over constituents, with one more of what the code is alone; so that sums over many jets are those of the jets."
    jets = sample_jets(["ZJetsToNuNu", "TTBar"], max_jets=200).constituents
    tokenizer = load_tokenizer("omnijet/tokenizer-512")
    coded = Ragged.from_tokens(ak.zip({"tokens": tokenizer.encode(jets)}, depth_limit=1))
    whole = ak.flatten(tokenizer.decode(ak.unflatten(coded.content, coded.lengths)))
    alone, found = decoded_codes(tokenizer), decoded_codes(tokenizer, coded)
    scale = ak.sum(whole.pt) / alone[coded.content, 0].sum()
    used, counts = np.unique(coded.content, return_counts=True)
    for code in (*used[np.argsort(counts)][[0, 9, -9, -1]], *np.setdiff1d(np.arange(512), used)[:2]):
        seen = [(float(pt), float(eta)) for pt, eta in zip(whole.pt[coded.content == code], whole.eta_rel[coded.content == code])]
        seen.append((alone[code, 0] * scale, alone[code, 1]))
        total = sum(pt for pt, _ in seen)
        assert found[code, 0] == pytest.approx(total / len(seen), rel=1e-5)
        assert found[code, 1] == pytest.approx(sum(pt * eta for pt, eta in seen) / total, rel=1e-4, abs=1e-6)
    assert found[coded.content, 0].sum() == pytest.approx(ak.sum(whole.pt), rel=0.02)


def test_codes_of_another_tokenizer():
    with pytest.raises(OmnijetError, match="expected 0 … 29"):
        small().loss(as_batch(some_jets([3, 4], codebook_size=99, seed=3)))
    wrong = as_batch(some_jets([3, 4]))
    wrong["x"][0, 1] = -1
    with pytest.raises(OmnijetError, match="codes -1 .*expected 0 … 29"):
        small().loss(wrong)


def test_jets_without_tokens():
    model, data = small(), some_jets([0, 3, 0])
    nats = surprise(model, data)
    assert nats.lengths.tolist() == [1, 4, 1] and np.isfinite(nats.content).all()
    assert np.isfinite(model.loss(as_batch(data, index=[0, 2]))["loss"].item())  # nothing but stop tokens
    assert len(surprise(model, data[[]]).content) == 0


def test_width_and_heads():
    with pytest.raises(OmnijetError, match="multiple"):
        GenerativeModel(10, width=30, heads=4)


def test_so_many_jets_each_with_its_mirror_images(tmp_path):
    codes = np.arange(12).reshape(6, 2)
    for i, split in enumerate(("train", "train_eta_rel", "train_phi_rel", "train_eta_rel_phi_rel")):
        tokens = ak.Array((100 * i + codes).tolist())
        write_tokens(tokens, tmp_path / "tokens" / split / "TTBar.parquet", label=np.full(6, 8))
    few = load_tokens(tmp_path, "train", mirrored=True, max_jets=2, seed=3)
    first = few.content.reshape(4, 2, 2)
    assert (first == 100 * np.arange(4)[:, None, None] + first[0]).all() and first[0].max() < 12
    assert (load_tokens(tmp_path, "train", max_jets=2, seed=3).content == first[0].ravel()).all()


@pytest.mark.parametrize("wrong", [{"max_jets": 0}, {"max_jets": True}, {"max_jets": 1.5}, {"mirrored": 2}, {"mirrored": None}])
def test_odd_options_of_tokens_name_themselves(tmp_path, wrong):
    write_tokens(ak.Array([[1, 2]]), tmp_path / "tokens" / "train" / "TTBar.parquet", label=[8])
    with pytest.raises(OmnijetError, match=f"{next(iter(wrong))} is"):
        load_tokens(tmp_path, "train", **wrong)
    with pytest.raises(OmnijetError, match="HToBB"):
        load_tokens(tmp_path, "train", "HToBB")


def test_missing_tokens_name_the_chapter(tmp_path):
    with pytest.raises(OmnijetError, match="01_vqvae"):
        load_tokens(tmp_path, "train")


def test_vocabulary_needs_labels():
    with pytest.raises(OmnijetError, match="label"):
        Vocabulary(5, classes=10).prefix(3)


def test_a_start_from_codes_knows_how_frequent_they_are_and_which_are_alike():
    from omnijet.data import sample_jets

    tokenizer = BinnedTokenizer((6, 6, 6))
    jets = sample_jets(["ZJetsToNuNu"], 100)
    tokens = Ragged.from_tokens(ak.zip({"tokens": tokenizer.encode(jets)}, depth_limit=1))
    model = small(216, width=64).start_from(tokenizer, tokens)
    chances = model.head.bias.softmax(0).detach().numpy()
    count = np.bincount(tokens.content, minlength=216) + 1
    assert np.allclose(chances[1:-1], count / (count.sum() + 101)) and np.isclose(chances[-1], 100 / (count.sum() + 101))
    codes = tokenizer.decode(np.arange(216)[:, None])
    place = np.stack([ak.to_numpy(ak.flatten(values)) for values in (np.log(codes.pt), codes.eta_rel, codes.phi_rel)], 1)
    place = (place - place.mean(0)) / place.std(0)
    apart = np.linalg.norm(place[:, None] - place, axis=2)
    for weight in (model.backbone.embedding.weight[1:217], model.head.weight[1:217]):
        alike = F.cosine_similarity(weight[:, None], weight, dim=2).detach().numpy()
        assert alike[(apart > 0) & (apart < 0.8)].mean() > alike[apart > 2].mean() + 0.2
    with pytest.raises(OmnijetError, match="64 codes does not fit a model with a codebook of 216"):
        model.start_from(BinnedTokenizer((4, 4, 4)), tokens)


def test_a_start_from_odd_input():
    model, tokenizer, tokens = small(27), BinnedTokenizer((3, 3, 3)), some_jets([3, 0, 4], 27)
    before = model.head.bias.clone()
    continuous = Ragged(np.zeros((2, 3), np.float32), [0, 2])
    for wrong in (tokens[[]], [[1, 2]], None, some_jets([30], 99), Ragged([-1], [0, 1]), continuous):
        with pytest.raises(OmnijetError, match="expected"):
            model.start_from(tokenizer, wrong)
    for wrong in (None, 5, "nosuch", model):
        with pytest.raises(OmnijetError):
            model.start_from(wrong, tokens)
    with pytest.raises(OmnijetError, match="seed"):
        model.start_from(tokenizer, tokens, seed=-1)
    assert torch.equal(model.head.bias, before)
    assert torch.isfinite(model.start_from(tokenizer, tokens, seed=np.int64(2)).head.bias).all()
