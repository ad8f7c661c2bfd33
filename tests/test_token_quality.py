"""Token quality: what comes back, what does not belong together, small classes, classifiers' scores."""
import warnings

import awkward as ak
import numpy as np
import pytest
import torch

from omnijet.data import CLASSES, Ragged, sample_jets, to_columns
from omnijet.files import OmnijetError, write_columns
from omnijet.models import JETS, jet_features
from omnijet.observables import observables
from omnijet.token_quality import (
    QUALITY, ClassAttention, DeepSets, Tagger, Transformer, accuracy_lost, check_together, class_data, class_jets,
    code_reconstructions, compare_tokenizers, confusion, coverage, evaluate, matching_bins, measure, occupied_cells,
    open_tokenizer, plot_class_differences, plot_class_distributions, plot_confusion, predict, reconstruct, resolutions, run_tokenizers,
    score_trainings, train_tagger,
)
from omnijet.vqvae import VQVAE, BinnedTokenizer


@pytest.fixture(scope="module")
def jets():
    return sample_jets(max_jets=40)


@pytest.fixture(scope="module")
def binned(jets):
    return BinnedTokenizer.fit(jets)


class Identity:
    """A tokenizer that loses nothing: constituents numbered through."""
    codebook_size = 10**6

    def encode(self, jets, batch_size=None):
        self.kept = jets.constituents
        counts = ak.num(self.kept.pt)
        return ak.unflatten(np.arange(ak.sum(counts)), counts)

    def decode(self, tokens, batch_size=None):
        return self.kept


class Short(Identity):
    def decode(self, tokens, batch_size=None):
        return self.kept[:, :-1]


class Rescaled(Identity):
    """Trained on ln p_T without the shift of 1.8."""
    def decode(self, tokens, batch_size=None):
        return ak.with_field(self.kept, self.kept.pt * np.exp(1.8), "pt")


def test_nothing_lost(jets):
    values = measure({"identity": Identity()}, jets)
    found = resolutions(values, jets.label, bootstrap=3)
    assert len(found) == 40 and all(r["sigma_gauss"] == r["half_width"] == r["bias"] == 0 for r in found.values())
    assert reconstruct(Identity(), jets).fields == jets.fields


def test_what_fails_is_left_out_and_the_rest_goes_on(jets, binned):
    with pytest.warns(UserWarning) as said:
        values = measure({"short": Short(), "other features": Rescaled(), "binned-21": binned}, jets)
    assert list(values) == ["original", "binned-21"]
    text = " | ".join(str(w.message) for w in said)
    assert "short is left out" in text and "constituents but" in text
    assert "other features is left out" in text and "factor of 6.0" in text and "another scaling" in text
    with pytest.raises(OmnijetError, match="another scaling"):
        measure({"other features": Rescaled()}, jets)
    with pytest.warns(UserWarning), pytest.raises(OmnijetError, match="none of the tokenizers"):
        measure({"short": Short(), "other features": Rescaled()}, jets)


def test_jets_and_tokens_that_do_not_belong_together(jets):
    tokens = ak.ones_like(jets.constituents.pt)
    check_together(jets.constituents, tokens)
    with pytest.raises(OmnijetError, match="400 jets and 399 sequences"):
        check_together(jets.constituents, tokens[1:])
    n = ak.num(jets.constituents.pt)
    other = int(np.flatnonzero(n[1:] != n[:-1])[0])
    with pytest.raises(OmnijetError, match=f"jet {other} has {n[other]} constituents but {n[other + 1]} tokens"):
        check_together(jets.constituents[:-1], tokens[1:])


def test_small_class_is_named_and_drawn(jets, binned):
    keep = (jets.label != 3) | (np.cumsum(jets.label == 3) <= 5)
    values = measure({"binned-21": binned}, jets[keep])
    with pytest.warns(UserWarning, match="H → gg: 5 jets are too few"):
        found = resolutions(values, jets[keep].label, bootstrap=3)
    assert {index for _, index, _ in found} == set(range(10)) - {3}
    fig = plot_class_differences(values, jets[keep].label, found, "mass")
    assert any("5 jets" in text.get_text() for text in fig.axes[3].texts)
    import matplotlib.pyplot as plt
    plt.close(fig)


def test_distributions_of_samples_of_any_name(jets):
    import matplotlib.pyplot as plt
    values = {"mass": observables(jets, ["mass"])["mass"]}
    fig = plot_class_distributions({"reconstructed": values, "generated": values}, jets.label, "mass")
    shown = [text.get_text() for legend in fig.legends for text in legend.get_texts()]
    assert {"reconstructed", "generated"} <= {*shown, *fig.axes[0].get_legend_handles_labels()[1]}
    plt.close(fig)


def test_resolution_numbers_are_the_differences(jets, binned):
    values = measure({"binned-21": binned}, jets)
    found = resolutions(values, jets.label, bootstrap=3)
    tops = jets[jets.label == 8]
    back = binned.decode(binned.encode(tops))
    difference = observables(back, ["mass"])["mass"] - observables(tops, ["mass"])["mass"]
    assert found["binned-21", 8, "mass"]["bias"] == pytest.approx(np.median(difference))
    low, high = np.quantile(difference, [0.16, 0.84])
    assert found["binned-21", 8, "mass"]["half_width"] == pytest.approx((high - low) / 2)


def test_unconditional_codes_are_points_and_conditional_are_clouds(binned):
    points = code_reconstructions(binned, contexts=4)
    direct = binned.decode(ak.Array([[7], [123]]))
    assert points.shape == (9261, 1, 3)
    np.testing.assert_allclose(points[[7, 123], 0, 0], ak.flatten(direct.pt), rtol=1e-6)
    torch.manual_seed(2)
    conditional = VQVAE(codebook_size=30, width=16, blocks=1, heads=2)
    for p in conditional.decoder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    clouds = code_reconstructions(conditional, contexts=50)
    assert clouds.shape == (30, 50, 3)
    scaled = JETS.scale(clouds)
    assert (scaled.std(axis=1) > 0).all() and np.isfinite(clouds).all()
    within, between = scaled.std(axis=1).mean(), scaled.mean(axis=1).std()
    assert within < 10 * between      # the code still matters: clouds are of one code each, in order


def test_coverage_is_counted(jets):
    cells = occupied_cells(jets)
    assert len(np.unique(cells, axis=0)) == len(cells)
    some = JETS.unscale(cells[:100])
    assert coverage(some, cells, 0.05)[0] == pytest.approx(100 / len(cells))
    brute = (np.linalg.norm(cells[:, None] - cells[None, :100], axis=-1).min(axis=1) < 0.3).mean()
    assert coverage(some, cells, 0.3)[0] == pytest.approx(brute)


def test_compare_tokenizers_from_anywhere(jets, binned, golden, tmp_path, capsys):
    binned.save_pretrained(tmp_path / "mine")
    other = BinnedTokenizer.fit(jets, bins=(13, 13, 13), features=jet_features(0.0))
    result = compare_tokenizers(tmp_path / "mine", other, jets, bootstrap=10)
    printed = capsys.readouterr().out
    assert "feature scalings differ" in printed and all(name in printed for name in (*QUALITY, "d2"))
    assert result["mass"][0]["sigma_gauss"] < result["mass"][1]["sigma_gauss"]
    theirs = open_tokenizer(golden / "gabbro_tokenizer_normformer.ckpt")
    assert len(theirs.encode(jets[:3])) == 3
    with pytest.raises(OmnijetError, match="nosuch"):
        compare_tokenizers(tmp_path / "nosuch", binned, jets)


def test_tokenizers_of_a_run(binned, tmp_path):
    with pytest.raises(OmnijetError, match="run chapter 01_vqvae first"):
        run_tokenizers(tmp_path)
    (tmp_path / "tokenizers" / "conditional-512").mkdir(parents=True)
    (tmp_path / "tokenizers" / ".cache").mkdir()
    with pytest.warns(UserWarning, match="conditional-512 is left out"), pytest.raises(OmnijetError, match="no tokenizer"):
        run_tokenizers(tmp_path)
    binned.save_pretrained(tmp_path / "tokenizers" / "binned-21")
    with pytest.warns(UserWarning, match="conditional-512 is left out"):
        assert list(run_tokenizers(tmp_path)) == ["binned-21"]
    with pytest.raises(OmnijetError, match="00b_simulation"):
        class_jets(tmp_path, "test", 10)


@pytest.mark.filterwarnings("ignore:.*no file of")
def test_tops_of_a_run_are_the_same_jets_and_more(tmp_path, jets):
    for label in (2, 8):
        write_columns(to_columns(jets[jets.label == label]), tmp_path / "data" / "test" / f"{CLASSES[label]}_00000.parquet")
    with pytest.warns(UserWarning, match="ZJetsToNuNu"):
        equal, more = class_jets(tmp_path, "test", 15), class_jets(tmp_path, "test", 15, 30)
    assert np.bincount(equal.label).tolist() == [0, 0, 15] + 5 * [0] + [15]
    assert np.bincount(more.label).tolist() == [0, 0, 15] + 5 * [0] + [30]
    assert ak.almost_equal(more[:30], equal)      # the classifiers' jets do not change with `tops`


@pytest.mark.filterwarnings("ignore:.*no file of")
def test_jets_of_classifiers_are_the_same_from_streams(tmp_path, jets, binned, monkeypatch):
    from omnijet import token_quality
    for label in (2, 8):
        write_columns(to_columns(jets[jets.label == label]), tmp_path / "data" / "train" / f"{CLASSES[label]}_00000.parquet")
    for tokenizer in (None, binned):
        monkeypatch.setattr(token_quality, "IN_MEMORY", 10**6)
        held = class_data(tmp_path, "train", 10**6, tokenizer)
        monkeypatch.setattr(token_quality, "IN_MEMORY", 10)
        streamed = class_data(tmp_path, "train", 10**6, tokenizer)
        assert streamed.sequences == len(held)
        rows = np.concatenate([batch["x"][batch["mask"]] for batch in streamed])
        assert (np.unique(rows, axis=0) == np.unique(held.content, axis=0)).all()
    first, second = (train_tagger("DeepSets", streamed, None, epochs=1, batch_size=20, progress=False, out=tmp_path / "out") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_confusion_is_drawn():
    import matplotlib.pyplot as plt
    labels = np.array([0, 0, 0, 1, 1])
    shares = confusion(np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]]), labels)
    np.testing.assert_allclose(shares, [[2 / 3, 1 / 3, 0], [0, 1, 0], [0, 0, 0]])
    fig = plot_confusion({"one": shares, "other": shares.tolist()}, ["a", "b", "c"])
    assert [ax.get_title() for ax in fig.axes] == ["one", "other"]
    assert [text.get_text() for text in fig.axes[1].texts] == [".67", ".33", "", "", "1.00", "", "", "", ""]
    assert [text.get_text() for text in fig.axes[0].get_xticklabels()] == ["a", "b", "c"]
    plt.close(fig)


def test_matching_bins():
    sigma = {8: 16.0, 16: 8.0, 32: 4.0}
    assert matching_bins(sigma, 8.0) == pytest.approx(16)
    assert matching_bins(sigma, np.sqrt(32)) == pytest.approx(np.sqrt(16 * 32))
    assert matching_bins(sigma, 3.9) is None and matching_bins(sigma, 17.0) is None and matching_bins(sigma, 0.0) is None


def test_scores_with_an_absent_class_and_seeds():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 9, size=600)      # class 9 is absent
    def guesses(strength): return rng.random((600, 10)) + strength * np.eye(10)[labels]
    one = evaluate(guesses(0.5), labels, bootstrap=30)
    assert np.isnan(one["auc"][9]) and np.isfinite(one["mean_auc"]) and one["confusion"][9].sum() == 0
    assert one["accuracy_error"] == pytest.approx(np.sqrt(one["accuracy"] * (1 - one["accuracy"]) / 600), rel=0.4)
    both = score_trainings({("DeepSets", "original"): [guesses(0.8), guesses(0.9)], ("DeepSets", "t"): [guesses(0.2), guesses(0.6)]}, labels, bootstrap=30)
    lost, error = accuracy_lost(both, "DeepSets", "t")
    assert lost == pytest.approx(both["DeepSets", "original"]["accuracy"] - both["DeepSets", "t"]["accuracy"]) and lost > 0
    assert both["DeepSets", "t"]["spread"] > 0 and error > both["DeepSets", "t"]["spread"]


def test_sizes_are_the_papers():
    count = lambda module: sum(p.numel() for p in module.parameters())
    layer = lambda a, b: a * b + b
    assert count(DeepSets()) == layer(3, 100) + layer(100, 100) + layer(100, 256) + layer(256, 100) + 2 * layer(100, 100) + layer(100, 10)
    transformer = Transformer()
    assert len(transformer.blocks) == 5 and len(transformer.class_blocks) == 2 and transformer.token.shape == (1, 1, 128)


@pytest.mark.parametrize("network", [DeepSets(), Transformer(width=16, blocks=1, class_blocks=2, heads=2).eval()])
def test_padding_and_order_do_not_matter(network, jets):
    data = Ragged.from_jets(jets[:6])
    short, long = data.pad(), data.pad(length=128)
    long["x"][~long["mask"]] = 3.0
    tagger = Tagger(network).eval()
    with torch.no_grad():
        a = tagger(torch.from_numpy(short["x"]), torch.from_numpy(short["mask"]))
        b = tagger(torch.from_numpy(long["x"]), torch.from_numpy(long["mask"]))
        c = tagger(torch.from_numpy(short["x"]).flip(1), torch.from_numpy(short["mask"]).flip(1))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)


def test_class_attention_sees_every_constituent():
    torch.manual_seed(1)
    block = ClassAttention(16, 2).eval()
    token, x, mask = torch.randn(1, 1, 16), torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.bool)
    for i in range(5):
        moved = x.clone()
        moved[0, i, 0] += 1.0      # (a shift of all components would be lost in the norm)
        assert not torch.allclose(block(token, x, mask), block(token, moved, mask))


def test_training_learns_and_is_found_again(jets, tmp_path):
    two = jets[(jets.label == 0) | (jets.label == 8)]
    data = Ragged.from_jets(two)
    settings = dict(epochs=40, batch_size=20, seed=3, out=tmp_path, progress=False)
    tagger = train_tagger("DeepSets", data, None, **settings)
    p = predict(tagger, data)
    assert (p.argmax(1) == data.extras["label"]).mean() > 0.9
    folders = sorted(tmp_path.iterdir())
    again = train_tagger("DeepSets", data, None, **settings)
    np.testing.assert_allclose(predict(again, data), p, atol=1e-5)
    assert sorted(tmp_path.iterdir()) == folders
    train_tagger("DeepSets", data[10:], None, **settings)      # other jets: another training
    assert len(list(tmp_path.iterdir())) == 2


def test_reconstruct_keeps_the_rest(jets, binned):
    back = reconstruct(binned, jets)
    assert set(back.fields) == set(jets.fields) and ak.all(back.label == jets.label)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure({"binned-21": binned}, jets[:5])


def test_numbers_are_checked_before_any_work(jets, binned, tmp_path):
    values = measure({"binned-21": binned}, jets)
    data = Ragged.from_jets(jets)
    calls = {"bootstrap": [lambda x: resolutions(values, jets.label, x), lambda x: evaluate(np.ones((1, 10)), [0], x),
                           lambda x: compare_tokenizers("nosuch", binned, jets, bootstrap=x)],
             "contexts": [lambda x: code_reconstructions(binned, x)], "length": [lambda x: code_reconstructions(binned, 1, x)],
             "delta": [lambda x: coverage(np.ones((1, 3)), np.ones((1, 3)), x)], "step": [lambda x: occupied_cells(jets, x)],
             "max_jets": [lambda x: class_jets(tmp_path, "test", x)], "tops": [lambda x: class_jets(tmp_path, "test", 1, x)],
             "seed": [lambda x: train_tagger("DeepSets", data, None, 1, seed=x)], "lr": [lambda x: train_tagger("DeepSets", data, None, 1, lr=x)],
             "width": [lambda x: Transformer(width=x)], "heads": [lambda x: Transformer(heads=x)]}
    for name, several in calls.items():
        for call in several:
            for wrong in (-1, np.nan, "many", True):
                with pytest.raises(OmnijetError, match=f"^{name} is"):
                    call(wrong)
    with pytest.raises(OmnijetError, match="heads is 3, expected a divisor"):
        Transformer(width=np.int64(8), heads="3")
    with pytest.raises(OmnijetError, match="no kind 'DeepSet'"):
        train_tagger("DeepSet", data, None, 1)
    with pytest.raises(OmnijetError, match="shape"):
        evaluate(np.ones((2, 10)), [0])


def test_no_jets_come_back_as_none(jets, binned):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(reconstruct(binned, jets[:0])) == 0
