"""Backbones that read features, and masked particles: who sees whom, tested on values; errors; saving."""
import json
import math

import awkward as ak
import numpy as np
import pytest
import torch

from omnijet.files import OmnijetError
from omnijet.data import Ragged, sample_jets, write_tokens
from omnijet.training import TrainingConfig, train
from omnijet.models import JETS, Packing
from omnijet.vqvae import BinnedTokenizer
from omnijet.gpt import Cache, GenerativeModel
from omnijet.masked import MaskedModel
from omnijet.transfer import JetClassifier, sweep

GRID = BinnedTokenizer((5, 4, 4))
K = GRID.codebook_size
SIZES = {"width": 16, "blocks": 2, "heads": 4}


def hybrid(**options):
    torch.manual_seed(1)
    return GenerativeModel(K, **SIZES, reads="features", **options).learn_codes(GRID).double().eval()


def masked(**options):
    torch.manual_seed(1)
    model = MaskedModel(K, **{"reads": "features", **SIZES, **options})
    model.generative.learn_codes(GRID)
    return model.double().eval()


def some_jets(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return Ragged(rng.integers(0, K, sum(lengths)), np.concatenate([[0], np.cumsum(lengths)]), {"label": rng.integers(0, 10, len(lengths))})


def as_batch(data, **options):
    return {name: torch.from_numpy(values) for name, values in data.pad(**options).items()}


READS = pytest.mark.parametrize("reads", ["tokens", "features"])


def test_what_is_read_is_what_a_code_decodes_to_by_itself():
    embedding, code = hybrid().backbone.embedding, 37
    alone = GRID.decode([[code]])[0, 0]
    expected = JETS.scale(np.array([[alone.pt, alone.eta_rel, alone.phi_rel]]))[0]
    assert np.allclose(embedding.table[code + 1, :4], [*expected, 1], atol=1e-6)
    assert not embedding.table[[0, K + 1]].any()      # start and stop decode to nothing
    x = embedding(torch.arange(K + 2))
    assert x.shape == (K + 2, 16) and len(torch.unique(x.round(decimals=9), dim=0)) == K + 2


def test_a_later_constituent_changes_nothing_before_it():
    model, data = hybrid(so_far=True), some_jets([12])
    batch = as_batch(data)
    for at in (0, 5, 11):
        other = {**batch, "x": batch["x"].clone()}
        other["x"][0, at] = (other["x"][0, at] + 13) % K
        before, after = (model.real_positions(b)[0] for b in (batch, other))
        assert torch.equal(before[:at + 1], after[:at + 1]) and not torch.allclose(before[at + 1:], after[at + 1:])


def test_cached_generation_is_that_of_the_whole_sequence():
    model = hybrid()
    tokens = torch.cat([torch.zeros(3, 1, dtype=torch.long), torch.randint(1, K + 1, (3, 9))], 1)
    cache = Cache(model.backbone, 3, 10)
    with torch.inference_mode():
        steps = torch.cat([model(token[:, None], cache) for token in tokens.T], 1)
        assert torch.allclose(steps, model(tokens), atol=1e-12)
    jets = model.generate(7, seed=3, progress=False, max_constituents=20)
    again = model.generate(4, seed=3, first=3, batch_size=2, progress=False, max_constituents=20)
    assert jets[3:].to_list() == again.to_list() and jets.to_list() != model.generate(7, seed=4, progress=False, max_constituents=20).to_list()
    for codes in jets.to_list()[:3]:      # by hand, everything read again for every token
        read, said = [0], []
        from omnijet.gpt import sample, uniforms
        j = jets.to_list().index(codes)
        for position in range(20):
            scores = model(torch.tensor([read]))[:, -1].detach()
            scores[:, [0] if position else [0, K + 1]] = -math.inf
            token = int(sample(scores, uniforms(3, torch.tensor([j]), position))[0])
            if token == K + 1:
                break
            said.append(token - 1)
            read.append(token)
        assert said == codes


@READS
def test_a_hidden_constituent_changes_nothing_in_the_encoder(reads, monkeypatch):
    "What the backbone makes of the others, and what the head says, is the same bit for bit whatever was hidden; what is seen does matter, before and behind."
    model, batch, made = masked(reads=reads), as_batch(some_jets([9, 5, 1, 30])), []
    hidden = model.hide(batch["x"], batch["mask"])
    backbone = model.generative.backbone.forward
    monkeypatch.setattr(model.generative.backbone, "forward", lambda *args: made.append(backbone(*args)) or made[-1])
    other = {**batch, "x": torch.where(hidden, (batch["x"] + 11) % K, batch["x"])}
    with torch.inference_mode():
        x, said = model.hidden_positions(batch, hidden)
        y, said_other = model.hidden_positions(other, hidden)
        assert torch.equal(x, y) and torch.equal(*made) and not torch.equal(said, said_other)
        assert len(made[0]) == 4 + (batch["mask"] & ~hidden).sum()      # start, and those that are seen
        for at in (int((~hidden[0]).nonzero()[0]), int((~hidden[0] & batch["mask"][0]).nonzero()[-1])):
            changed = {**batch, "x": batch["x"].clone()}
            changed["x"][0, at] = (changed["x"][0, at] + 11) % K
            z, _ = model.hidden_positions(changed, hidden)
            first = int(hidden[0].sum())
            assert all(not torch.allclose(a, b) for a, b in zip(z[:first], x[:first])) and torch.equal(z[first:], x[first:])


@READS
@pytest.mark.parametrize("classes", [0, 10])
def test_loss_of_a_jet_is_its_own(reads, classes):
    "Alone, padded, with others: the same losses and gradients."
    model, data, sums = masked(reads=reads, classes=classes), some_jets([12, 1, 7, 40]), {}
    for name, groups, length in (("alone", [[0], [1], [2], [3]], None), ("together", [[0, 1, 2, 3]], None), ("padded", [[0], [1], [2], [3]], 90)):
        model.zero_grad()
        total = 0
        for group in groups:
            batch = as_batch(data, index=group, length=length)
            hidden = model.hide(batch["x"], batch["mask"])
            total = total + model.masked_loss(batch, hidden) * max(int(hidden.sum()), 1)
        total.backward()
        sums[name] = total.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for value, gradient in (sums["together"], sums["padded"]):
        assert value == pytest.approx(sums["alone"][0], rel=1e-6) and torch.allclose(gradient, sums["alone"][1], rtol=1e-8, atol=1e-9)


def test_how_many_are_hidden():
    "The fraction, rounded, at least one; one stays; of a single constituent, or none, nothing is hidden. In training anew each time."
    model, lengths = masked(fraction=0.4), [0, 1, 2, 3, 10, 100]
    batch = as_batch(some_jets(lengths))
    hidden = model.hide(batch["x"], batch["mask"])
    assert hidden.sum(1).tolist() == [0, 0, 1, 1, 4, 40] and not (hidden & ~batch["mask"]).any()
    assert torch.equal(hidden, model.hide(batch["x"], batch["mask"]))
    draws = torch.stack([model.train().hide(batch["x"], batch["mask"]) for _ in range(400)]).double().mean(0)[5]
    assert abs(draws - 0.4).max() < 5 * 0.5 / 20
    for fraction, expected in ((0.999, [0, 0, 1, 2, 9, 99]), (0.001, [0, 0, 1, 1, 1, 1])):
        assert masked(fraction=fraction).hide(batch["x"], batch["mask"]).sum(1).tolist() == expected


def test_jets_with_a_single_constituent():
    "They count for the next token alone; a training on nothing else goes on, its masked loss is 0."
    model = masked()
    found = model.loss(as_batch(some_jets([1, 1, 1])))
    assert found["masked"] == 0 and found["loss"] == found["next"] > 0
    assert np.isfinite(train(masked(next_weight=0).float(), some_jets([1] * 8), config=TrainingConfig(2, 4), progress=False)[-1]["train_loss"])
    with pytest.raises(OmnijetError, match="1 of 1 constituents are hidden"):
        model.fill([3], [0])


def test_both_losses_and_their_weights():
    batch = as_batch(some_jets([12, 7, 40]))
    model = masked(next_weight=0.25, masked_weight=2.0)
    found = model.loss(batch)
    assert found["next"].item() == pytest.approx(model.generative.loss(batch)["loss"].item()) and found["loss"].item() == pytest.approx(float(0.25 * found["next"] + 2 * found["masked"]))
    assert "next" not in masked(next_weight=0).loss(batch) and "masked" not in masked(masked_weight=0).loss(batch)
    assert masked().generative.backbone.both_ways and not masked(masked_weight=0).generative.backbone.both_ways
    found["loss"].backward()      # one set of weights has gradients of both
    assert all(p.grad is not None for p in model.parameters())


def test_one_set_of_weights_learns_both():
    jets = sample_jets(["ZJetsToNuNu", "TTBar"], 200)
    data = Ragged.from_tokens(ak.zip({"tokens": GRID.encode(jets)}, depth_limit=1))
    torch.manual_seed(1)
    model = MaskedModel(K, **SIZES, reads="features")
    model.generative.learn_codes(GRID).start_from(GRID, data)
    history = train(model, data, data[::4], TrainingConfig(4, 20, 5e-3), progress=False)
    for name in ("val_next", "val_masked"):
        assert history[-1][name] < history[0][name]


@pytest.mark.parametrize("wrong,told", [
    ({"fraction": 0}, "fraction is 0.0"), ({"fraction": 1}, "fraction is 1.0"), ({"fraction": -0.1}, "fraction is -0.1"), ({"fraction": "half"}, "fraction is 'half'"),
    ({"fraction": math.nan}, "fraction is nan"), ({"next_weight": -1}, "next_weight is -1"), ({"next_weight": 0, "masked_weight": 0}, "the sum of next_weight and masked_weight"),
    ({"reads": "images"}, "reads is 'images', expected tokens or features"), ({"head_blocks": -1}, "head_blocks is -1"), ({"width": 0}, "width is 0")])
def test_odd_options_name_themselves(wrong, told):
    with pytest.raises(OmnijetError, match=told) as error:
        MaskedModel(K, **{**SIZES, **wrong})
    assert "\n" not in str(error.value)


def test_features_without_a_tokenizer():
    model, batch = GenerativeModel(K, **SIZES, reads="features"), as_batch(some_jets([5, 3]))
    for doing in (lambda: model.loss(batch), lambda: model.generate(2, progress=False), lambda: JetClassifier.from_generative(model)(batch["x"], batch["mask"])):
        with pytest.raises(OmnijetError, match="codes that it does not know: expected learn_codes"):
            doing()
    with pytest.raises(OmnijetError, match=f"the tokenizer has 27 codes of pt, eta_rel, phi_rel, the model reads {K} of 3 features"):
        model.learn_codes(BinnedTokenizer((3, 3, 3)))


@pytest.mark.parametrize("codes,hidden,told", [([1, 2, 3], [], "0 of 3"), ([1, 2, 3], [0, 1, 2], "3 of 3"), ([1, 2, 3], [3], "a hidden position is 3"), ([1, K], [0], "tokens of another tokenizer")])
def test_hiding_by_hand_checks_what_it_gets(codes, hidden, told):
    with pytest.raises(OmnijetError, match=told):
        masked().fill(codes, hidden)


def test_filling_by_hand_is_the_model():
    model, data = masked(), some_jets([20])
    p = model.fill(data.content, [7, 2, 7])
    batch, hidden = as_batch(data), torch.zeros(1, 20, dtype=torch.bool)
    hidden[0, [2, 7]] = True
    x, said = model.hidden_positions(batch, hidden)
    assert np.allclose(p, model.generative.head(x)[:, 1:K + 1].softmax(-1).detach()) and said.tolist() == (data.content[[2, 7]] + 1).tolist()
    assert np.array_equal(p, model.fill(np.where(np.isin(np.arange(20), [2, 7]), 0, data.content), [2, 7]))


@pytest.mark.parametrize("options", [{}, {"reads": "tokens"}, {"next_weight": 0, "fraction": 0.2}, {"head_blocks": 0, "classes": 10}, {"jet_tokens": {"pt": [450.0, 600, 1000]}, "so_far": True}])
def test_saved_and_loaded(options, tmp_path):
    model, batch = masked(**options).float(), as_batch(some_jets([9, 5, 30]))
    model.save_pretrained(tmp_path / "whole")
    again = MaskedModel.from_pretrained(tmp_path / "whole")
    assert again.settings() == model.settings() and again.loss(batch) == model.loss(batch)
    model.generative.save_pretrained(tmp_path / "backbone")
    backbone = GenerativeModel.from_pretrained(tmp_path / "backbone")
    assert backbone.loss(batch)["loss"] == model.generative.loss(batch)["loss"]
    config = json.loads((tmp_path / "backbone" / "config.json").read_text())
    assert config["both_ways"] and config["reads"] == options.get("reads", "features")


def test_earlier_models_read_tokens():
    "Folders without the new settings load as before."
    model = GenerativeModel.from_pretrained("omnijet/backbone")
    assert not model.backbone.decoded and not model.backbone.both_ways
    tagger = JetClassifier.from_pretrained("omnijet/top-tagger")
    assert tagger.settings()["head"] == "sum" and not tagger.backbone.both_ways


@pytest.mark.parametrize("head", ["sum", "attention"])
@READS
def test_a_tagger_lets_a_backbone_see_what_it_learnt_to_see(reads, head, tmp_path):
    "Both ways after masked particles, causally else; its answer is a jet's own; it is what it was when it comes back; from scratch it still knows the codes."
    data = some_jets([12, 7, 30])
    batch = as_batch(data)
    for weight in (0, 1):
        tagger = JetClassifier.from_generative(masked(reads=reads, masked_weight=weight).generative, head=head).double().eval()
        x, real = tagger.embeddings(batch["x"], batch["mask"])
        other = batch["x"].clone()
        other[2, 20] = (other[2, 20] + 5) % K
        same = torch.isclose(x, tagger.embeddings(other, batch["mask"])[0]).all(-1)[2]
        assert same[:21].all() == (weight == 0) and not same[21:].any()
        alone = [tagger(batch["x"][i:i + 1, :n], batch["mask"][i:i + 1, :n]) for i, n in enumerate(data.lengths)]
        assert torch.allclose(torch.cat(alone), tagger(batch["x"], batch["mask"]))
        tagger.float().save_pretrained(tmp_path / str(weight))
        again = JetClassifier.from_pretrained(tmp_path / str(weight))
        assert torch.equal(again(batch["x"], batch["mask"]), tagger(batch["x"], batch["mask"])) and again.settings() == tagger.settings()
        fresh = tagger.backbone.untrained()
        assert fresh.shape() == tagger.backbone.shape() and not torch.equal(fresh.blocks[0].attention.qkv.weight, tagger.backbone.blocks[0].attention.qkv.weight)
        if reads == "features":
            assert torch.equal(fresh.embedding.table, tagger.backbone.embedding.table)


def test_a_sweep_from_a_masked_backbone(tmp_path):
    jets = sample_jets(["ZJetsToNuNu", "TTBar"], 150)
    tokens = GRID.encode(jets)
    for i, split in enumerate(("train", "val", "test")):
        for k in (0, 1):
            part = slice(150 * k + 50 * i, 150 * k + 50 * i + 50)
            write_tokens(tokens[part], tmp_path / "tokens" / split / f"{k}.parquet", jets.label[part], jets.id[part])
    model = masked().float()
    model.generative.save_pretrained(tmp_path / "backbone")
    options = {"seeds": [1], "epochs": 2, "lr": 3e-3, "batch_size": 20, "workers": 1, "progress": False}
    for head in ("sum", "attention"):
        found = sweep(tmp_path / "backbone", tmp_path, tmp_path / head, [40], ["finetune", "frozen", "scratch"], head=head, **options)
        assert [r["strategy"] for r in found] == ["finetune", "frozen", "scratch"] and all(0 <= r["accuracy"] <= 1 for r in found)
        again = JetClassifier.from_pretrained(tmp_path / head / "scratch_40_seed1")
        assert again.settings()["head"] == head and again.backbone.both_ways and again.backbone.embedding.table.any()
    assert [r["accuracy"] for r in sweep(tmp_path / "backbone", tmp_path, tmp_path / "sum", [40], ["frozen"], **options)] == [next(r["accuracy"] for r in sweep(tmp_path / "backbone", tmp_path, tmp_path / "sum", [40], ["frozen"], **options))]
    with pytest.raises(OmnijetError, match="head is 'mean', expected one of sum, attention"):
        sweep(tmp_path / "backbone", tmp_path, tmp_path / "other", [40], ["frozen"], head="mean", **options)


def test_a_packing_in_which_all_see_all():
    mask = torch.arange(9) < torch.tensor([[2], [9]])
    both = Packing(mask, causal=False)
    assert Packing(mask).seen(mask) is None and both.seen(mask).shape == (2, 1, 1, 9)
