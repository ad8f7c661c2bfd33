"""Files of generated jets, the judges, and bad input."""
import awkward as ak
import numpy as np
import pytest
import torch

from omnijet.files import OmnijetError, read_metadata, write_columns
from omnijet.data import Ragged, read_jets, read_tokens, write_tokens
from omnijet.generation import (
    boosted_trees_auc, classifier_auc, compare_planes, distances, generate_files, mixture, nearest_distance, pt_map, share_of_copies,
)
from omnijet.gpt import GenerativeModel
from omnijet.observables import NINE, SIX, observables
from omnijet.statistics import select, w1_with_error
from omnijet.vqvae import BinnedTokenizer


@pytest.fixture
def tokenizer(): return BinnedTokenizer(bins=(3, 3, 3))


@pytest.fixture
def model():
    torch.manual_seed(1)
    return GenerativeModel(27, width=16, blocks=1, heads=2).eval()


def random_jets(n, seed=1, scale=1.0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 30, n)
    total = lengths.sum()
    content = np.stack([scale * rng.exponential(20, total) + 1, *rng.normal(0, 0.15, (2, total)).clip(-0.79, 0.79)], 1)
    return Ragged(content.astype(np.float32), np.concatenate([[0], np.cumsum(lengths)])).to_constituents()


def test_files_are_the_jets_of_the_seed(model, tokenizer, tmp_path):
    files = generate_files(model, tmp_path, 25, tokenizer=tokenizer, seed=4, shard_size=10, progress=False)
    assert [f.name for f in files] == ["generated_00000.parquet", "generated_00001.parquet", "generated_00002.parquet"]
    written, expected = ak.concatenate([ak.from_parquet(f) for f in files]), model.generate(25, seed=4, progress=False)
    assert ak.all(written.tokens == expected) and ak.all(read_tokens(tmp_path).tokens == expected)
    decoded = tokenizer.decode(expected)
    assert np.allclose(ak.flatten(np.hypot(written.part_px, written.part_py)), ak.flatten(decoded.pt), rtol=1e-5)
    assert np.allclose(ak.flatten(np.arctan2(written.part_py, written.part_px)), ak.flatten(decoded.phi_rel), atol=1e-6)
    assert np.allclose(ak.flatten(np.arcsinh(written.part_pz / np.hypot(written.part_px, written.part_py))), ak.flatten(decoded.eta_rel), atol=1e-5)


def test_files_of_a_class_are_jetclass_files(tokenizer, tmp_path):
    torch.manual_seed(1)
    model = GenerativeModel(27, width=16, blocks=1, heads=2, classes=10).eval()
    generate_files(model, tmp_path, 10, tokenizer=tokenizer, jet_class="TTBar", progress=False)
    jets = read_jets(tmp_path)
    assert ak.all(jets.label == 8) and len(jets) == 10
    expected = tokenizer.decode(model.generate(10, jet_class="TTBar", progress=False))
    assert np.allclose(ak.sum(jets.constituents.pt, axis=1), ak.sum(expected.pt, axis=1), rtol=1e-4)


def test_interrupted_and_continued(model, tmp_path, monkeypatch):
    whole = generate_files(model, tmp_path / "whole", 30, shard_size=10, progress=False)
    calls, generate = [], GenerativeModel.generate

    def interrupted(self, n, *rest, **options):
        calls.append(options["first"])
        if len(calls) == 3: raise KeyboardInterrupt
        return generate(self, n, *rest, **options)

    monkeypatch.setattr(GenerativeModel, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_files(model, tmp_path / "parts", 30, shard_size=10, progress=False)
    assert len(list((tmp_path / "parts").iterdir())) == 2
    files = generate_files(model, tmp_path / "parts", 30, shard_size=10, progress=False)
    assert calls == [0, 10, 20, 20]
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in whole]


def test_asked_for_more_later(model, tmp_path):
    generate_files(model, tmp_path, 12, shard_size=10, progress=False)
    generate_files(model, tmp_path, 18, shard_size=10, progress=False)
    assert ak.all(read_tokens(tmp_path).tokens == model.generate(18, progress=False))
    assert read_metadata(tmp_path / "generated_00001.parquet")["n"] == 8


def test_other_settings_in_the_folder(model, tmp_path):
    generate_files(model, tmp_path, 5, seed=1, progress=False)
    with pytest.raises(OmnijetError, match="seed 1, expected 2"):
        generate_files(model, tmp_path, 5, seed=2, progress=False)
    with torch.no_grad(): model.head.bias[3] += 1
    with pytest.raises(OmnijetError, match="weights"):
        generate_files(model, tmp_path, 5, seed=1, progress=False)


def test_other_settings_overwritten(model, tmp_path):
    generate_files(model, tmp_path, 5, seed=1, progress=False)
    generate_files(model, tmp_path, 5, seed=2, overwrite=True, progress=False)
    assert ak.all(read_tokens(tmp_path).tokens == model.generate(5, seed=2, progress=False))


def test_tokenizer_that_does_not_fit(model, tmp_path):
    with pytest.raises(OmnijetError, match="64 codes, the model was trained on tokens of 27"):
        generate_files(model, tmp_path, 5, tokenizer=BinnedTokenizer(bins=(4, 4, 4)), progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU here")
def test_cuda_where_there_is_none(model, tmp_path):
    with pytest.raises(OmnijetError, match="where is 'cuda'"):
        generate_files(model, tmp_path, 5, where="cuda", progress=False)


@pytest.mark.parametrize("options,words", [({"n": -3}, "n is -3"), ({"temperature": -1}, "temperature"), ({"top_k": 99}, "top_k"), ({"jet_class": "TTBar"}, "class tokens")])
def test_bad_options(model, tmp_path, options, words):
    with pytest.raises(OmnijetError, match=words):
        generate_files(model, tmp_path, **{"n": 5, "progress": False, **options})


@pytest.mark.parametrize("wrong", [{"n": True}, {"n": 2.5}, {"shard_size": 0}, {"shard_size": "big"}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**63}, {"temperature": np.inf}, {"top_p": 0},
                                   {"max_constituents": 10**9}, {"overwrite": "yes"}, {"where": "nowhere"}, {"where": "meta"}, {"where": 0.5}, {"where": "cuda:99"}])
def test_odd_options_name_themselves_before_anything_is_written(model, tmp_path, wrong):
    with pytest.raises(OmnijetError, match=f"{next(iter(wrong))} is") as error:
        generate_files(model, tmp_path / "out", **{"n": 5, "progress": False, **wrong})
    assert not (tmp_path / "out").exists() and "\n" not in str(error.value)


def test_numbers_of_numpy(model, tmp_path):
    options = dict(seed=np.uint8(3), shard_size=np.array(4), batch_size=np.int16(2), temperature=np.float32(0.5), overwrite=np.bool_(False))
    files = generate_files(model, tmp_path, np.int64(6), progress=False, **options)
    assert ak.all(read_tokens(files).tokens == model.generate(6, seed=3, temperature=0.5, progress=False))
    assert len(generate_files(model, tmp_path, 6, seed=3, shard_size=4, temperature=0.5, progress=False)) == 2  # the same settings


@pytest.mark.parametrize("made", ["nothing of omnijet", "simulated", "tokens", "truncated"])
def test_what_others_made_is_not_overwritten(model, tmp_path, made):
    mine = tmp_path / "generated_00001.parquet"
    if made == "tokens":
        write_tokens(ak.Array([[1, 2]]), mine, codebook_size=27)
    elif made == "simulated":
        write_columns(ak.Array({"jet_pt": [1.0, 2.0]}), mine, seed=1, n=2, first=0)
    else:
        ak.to_parquet(ak.Array({"x": [1, 2]}), str(mine))
    if made == "truncated":
        mine.write_bytes(mine.read_bytes()[:-9])
    before = mine.read_bytes()
    for n in (5, 15):  # beyond the files to be made, and among them
        with pytest.raises(OmnijetError, match="generated_00001.parquet"):
            generate_files(model, tmp_path, n, shard_size=10, overwrite=True, progress=False)
    assert mine.read_bytes() == before and list(tmp_path.iterdir()) == [mine]  # and nothing was made


def test_fewer_jets_of_other_settings_leave_no_mixture(model, tmp_path):
    generate_files(model, tmp_path, 25, shard_size=10, progress=False)
    with pytest.raises(OmnijetError, match="seed"):
        generate_files(model, tmp_path, 5, seed=2, shard_size=10, progress=False)
    files = generate_files(model, tmp_path, 5, seed=2, shard_size=10, overwrite=True, progress=False)
    assert list(tmp_path.iterdir()) == files and ak.all(read_tokens(tmp_path).tokens == model.generate(5, seed=2, progress=False))


def test_jets_of_another_tokenizer_are_not_kept(model, tokenizer, tmp_path):
    generate_files(model, tmp_path, 5, tokenizer=tokenizer, progress=False)
    other = BinnedTokenizer(bins=(27, 1, 1))
    with pytest.raises(OmnijetError, match="decoded"):
        generate_files(model, tmp_path, 5, tokenizer=other, progress=False)


@pytest.mark.parametrize("model, tokenizer", [(5, None), (None, None), ("nosuch", None), (BinnedTokenizer(bins=(3, 3, 3)), None), (GenerativeModel(27, 16, 1, 2), 5), (GenerativeModel(27, 16, 1, 2), GenerativeModel(27, 16, 1, 2)),
                                              (GenerativeModel(27, 16, 1, 2), "nosuch")])
def test_what_is_no_model_or_tokenizer(model, tokenizer, tmp_path):
    with pytest.raises(OmnijetError):
        generate_files(model, tmp_path / "out", 5, tokenizer=tokenizer, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("jet_class", ["label_Tbqq", np.int64(8), np.array(8)])
def test_files_of_a_class_by_any_of_its_names(jet_class, tmp_path):
    model = GenerativeModel(27, width=16, blocks=1, heads=2, classes=10).eval()
    (first,) = generate_files(model, tmp_path / "a", 3, jet_class="TTBar", progress=False)
    (other,) = generate_files(model, tmp_path / "b", 3, jet_class=jet_class, progress=False)
    assert read_metadata(first)["jet_class"] == read_metadata(other)["jet_class"] == 8
    with pytest.raises(OmnijetError, match="no jet class"):
        generate_files(model, tmp_path / "c", 3, jet_class=True, progress=False)


def test_no_jets(model, tmp_path):
    assert generate_files(model, tmp_path, 0, progress=False) == []


def test_missing_model(tmp_path):
    with pytest.raises(OmnijetError, match="nosuch"):
        generate_files(tmp_path / "nosuch", tmp_path / "out", 5, progress=False)


def test_classifier_sees_a_difference_and_none_where_there_is_none():
    options = dict(epochs=10, lr=1e-2, batch_size=64, progress=False)
    same, error, n_jets = classifier_auc(random_jets(400, 1), random_jets(400, 2), **options)
    other, _, _ = classifier_auc(random_jets(400, 1), random_jets(400, 2, scale=2.0), **options)
    assert abs(same - 0.5) < 4 * error and other > 0.7
    assert n_jets == 160


def test_classifier_needs_jets():
    with pytest.raises(OmnijetError, match="at least 10"):
        classifier_auc(random_jets(5), random_jets(50), progress=False)


def test_trees_judge_jets_and_observables_alike():
    real, made = random_jets(300, 1), random_jets(300, 2, scale=1.8)
    for names in (SIX, NINE, ("pt",)):
        area, error, n_jets = boosted_trees_auc(real, made, names, seeds=2)
        assert area > 0.6 and 0 < error < 0.05 and n_jets == 600
    of = observables(real, SIX + NINE), observables(made, SIX + NINE)
    assert boosted_trees_auc(*of, NINE) == boosted_trees_auc(real, made, NINE)
    area, error, _ = boosted_trees_auc(random_jets(400, 3), random_jets(400, 4), NINE)
    assert abs(area - 0.5) < 4 * error
    with pytest.raises(OmnijetError, match="no observable colour"):
        boosted_trees_auc(real, made, ["colour"])
    with pytest.raises(OmnijetError, match="at least 20 jets"):
        boosted_trees_auc(real[:5], made)


def test_planes_show_where_two_samples_differ():
    import matplotlib.pyplot as plt
    rng = np.random.default_rng(1)
    real = {"pt": rng.uniform(500, 1000, 4000), "mass": rng.uniform(0, 200, 4000)}
    made = {"pt": rng.uniform(500, 1000, 8000), "mass": np.append(rng.uniform(0, 200, 6000), rng.uniform(90, 95, 2000))}
    fig = compare_planes({"a": {"reconstructed": real, "generated": made}, "b": {"reconstructed": real, "generated": real}}, bins=((10, 500, 1000), (20, 0, 200)))
    pulls = [fig.axes[i].collections[0].get_array() for i in (2, 5)]
    assert pulls[0].shape == (20, 10) and (pulls[0][9] > 3).all() and abs(np.delete(pulls[0], 9, 0)).max() < 6
    assert (pulls[1] == 0).all()
    plt.close("all")


def test_distances_name_what_they_compare():
    real, made = observables(random_jets(200, 1)), observables(random_jets(300, 2, scale=1.5))
    found = distances({"original": real, "generated": made}, model="flow_matching")
    assert all(n["model"] == "flow_matching" for n in found) and len(found) == 17
    mass, = select(found, "w1_mass")
    assert mass["value"] == w1_with_error(real["mass"], made["mass"])[0] and mass["n_jets"] == 300
    floor, = select(found, "w1_mass_floor")
    assert mass["value"] > 3 * floor["value"] and floor["n_jets"] == 200
    medians = {n["sample"]: n["value"] for n in select(found, "median_constituents")}
    assert medians == {"original": np.median(real["n_constituents"]), "generated": np.median(made["n_constituents"])}


def test_nearest_distances():
    jets = random_jets(40)
    assert (nearest_distance(jets, jets) < 1e-6).all()
    a, b = pt_map(jets[:3]), pt_map(jets[3:5])
    expected = 0.5 * np.abs(a[:, None] - b).sum(-1).min(1)
    assert nearest_distance(jets[:3], jets[3:5]) == pytest.approx(expected, abs=1e-6)
    far = ak.zip({"pt": [[10.0]], "eta_rel": [[0.75]], "phi_rel": [[-0.75]]})
    near = ak.zip({"pt": [[20.0]], "eta_rel": [[0.0]], "phi_rel": [[0.0]]})
    assert nearest_distance(far, near) == pytest.approx([1.0])


def test_jets_without_constituents():
    some = random_jets(3)
    empty = ak.concatenate([some[:, :0], some])
    assert np.isfinite(pt_map(empty)).all() and np.isfinite(nearest_distance(empty, some)).all()
    assert share_of_copies(ak.Array([[1]])[:0], Ragged(np.array([1]), [0, 1])) == 0
    assert share_of_copies(ak.Array([[1], []]), Ragged(np.array([1]), [0, 1])) == 0.5


def test_copies():
    training = Ragged(np.array([1, 2, 3, 4, 5, 6]), [0, 3, 4, 6])
    assert share_of_copies(ak.Array([[1, 2, 3], [1, 2], [4], [5, 6, 6]]), training) == 0.5


def test_mixture():
    label = np.repeat([0, 3, 8], [100, 40, 10])
    chosen = mixture(label, np.repeat([0, 8], [900, 100]), 1000)
    assert len(set(chosen)) == len(chosen) == 100 and (label[chosen] == 8).sum() == 10 and (label[chosen] != 3).all()
