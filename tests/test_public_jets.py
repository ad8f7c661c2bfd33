"""Images of a jet, the recipe, starting from a tagger, scores of files, other people's jets; the public files themselves where they are."""
import json
import os
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch

from omnijet.data import read_jets, sample_jets, to_columns
from omnijet.files import OmnijetError, read_metadata, write_columns
from omnijet.formats import add_class, class_key
from omnijet.gpt import GenerativeModel
from omnijet.public_jets import other_detector, read_public
from omnijet.run import main
from omnijet.statistics import linear_probe
from omnijet.transfer import JetClassifier, encode_images, finetune, finetune_files, image, recipe, tag_files, targets
from omnijet.vqvae import BinnedTokenizer, VQVAE


@pytest.fixture(scope="module")
def jets():
    jets = sample_jets(["ZJetsToNuNu", "TTBar"], max_jets=60)
    return jets[np.random.default_rng(1).permutation(len(jets))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, jets):
    "A grid, an untrained backbone and files of jets."
    folder, grid = tmp_path_factory.mktemp("models"), BinnedTokenizer(bins=(6, 6, 6))
    grid.save_pretrained(folder / "grid")
    torch.manual_seed(1)
    GenerativeModel(grid.codebook_size, width=16, blocks=1, heads=2).save_pretrained(folder / "backbone")
    write_columns(to_columns(jets[:80]), folder / "mine.parquet")
    write_columns(to_columns(jets[80:]), folder / "others.parquet")
    return folder


QUICK = {"epochs": 2, "batch_size": 20, "lr": 1e-3, "progress": False}


# images

def test_images_are_the_jet_mirrored_and_turned(jets):
    "Sixteen different ones; masses and p_T stay, and each is a symmetry: distances between constituents are the same."
    from omnijet.observables import jet_mass
    x, mass = jets.constituents, jet_mass(jets)
    seen = set()
    for i in range(16):
        turned = image(jets, i)
        seen.add(np.round(np.asarray([turned.eta_rel[0, 0], turned.phi_rel[0, 0]]), 5).tobytes())
        assert ak.all(turned.pt == x.pt)
        apart = [np.hypot(a.eta_rel[:, 0] - a.eta_rel, a.phi_rel[:, 0] - a.phi_rel) for a in (x, turned)]
        assert ak.max(np.abs(apart[0] - apart[1])) < 1e-5
        assert np.median(np.abs(jet_mass(turned) / mass - 1)) < (1e-5 if i < 4 else 0.1)
    assert len(seen) == 16
    with pytest.raises(OmnijetError, match="image is 16"): image(jets, 16)


def test_a_tagger_says_the_same_of_a_mirrored_jet(folder, jets):
    tagger, grid = JetClassifier.from_generative(folder / "backbone"), BinnedTokenizer.from_pretrained(folder / "grid")
    assert np.allclose(tagger.tag(jets, grid), tagger.tag(image(jets, 2), grid), atol=1e-5)
    assert not np.allclose(tagger.tag(jets, grid, 1), tagger.tag(image(jets, 2), grid, 1), atol=1e-5)
    codes = encode_images(grid, jets, 3)
    assert np.allclose(tagger.predict(codes, images=3), tagger.tag(jets, grid, 3), atol=1e-6)
    assert tagger.tag(jets[:0], grid).shape == (0, 2)


# the recipe

@pytest.mark.parametrize("strategy", ["finetune", "frozen", "scratch"])
def test_the_recipe_adapts(strategy):
    "More jets: larger batches and more steps, fewer epochs; and changes of any setting."
    configs = [recipe(n, strategy) for n in (10, 100, 1000, 10_000)]
    steps = [c.epochs * n / c.batch_size for c, n in zip(configs, (10, 100, 1000, 10_000))]
    assert steps == sorted(steps) and [c.epochs for c in configs] == sorted((c.epochs for c in configs), reverse=True)
    assert all(c.patience is None for c in configs)
    changed = recipe(100, strategy, epochs=3, lr=0.5, seed=7)
    assert (changed.epochs, changed.lr, changed.seed) == (3, 0.5, 7)
    with pytest.raises(OmnijetError, match="epochs is 'many'"): recipe(100, strategy, epochs="many")


@pytest.mark.parametrize("classes", [["ZJetsToNuNu", "TTBar"], ["HToBB", "TTBar", "WToQQ"]])
@pytest.mark.parametrize("strategy", ["finetune", "frozen"])
def test_fine_tuning_starts_from_the_linear_probe(folder, classes, strategy):
    "At a learning rate of nearly nothing the tagger is the regularized logistic regression on the sums of the embeddings."
    grid, some = BinnedTokenizer.from_pretrained(folder / "grid"), sample_jets(classes, max_jets=40)
    some = some[np.random.default_rng(2).permutation(len(some))]
    tagger = finetune(some, folder / "backbone", grid, strategy, images=3, **QUICK | {"lr": 1e-12})
    codes, target = encode_images(grid, some, 3), targets(some.label, tagger.classes)
    x = JetClassifier.from_generative(folder / "backbone", classes).sums(codes)
    weights, constants = linear_probe(x, target, 3)
    logits = torch.from_numpy(x @ weights.T + constants)
    assert np.allclose(tagger.predict(codes), logits.softmax(1), atol=1e-3)
    assert (logits[:len(some)].argmax(1).numpy() == target).mean() > 1.3 / len(classes)


def test_few_jets_and_narrow_networks(folder):
    "One jet of a class leaves nothing to cross-validate by; ten classes do not fit a head of sixteen units as a linear one."
    grid, some = BinnedTokenizer.from_pretrained(folder / "grid"), sample_jets(max_jets=2)
    assert finetune(some, folder / "backbone", grid, images=2, **QUICK).tag(some, grid).shape == (20, 10)
    two = sample_jets(["ZJetsToNuNu", "TTBar"], max_jets=1)
    assert finetune(two, folder / "backbone", grid, images=2, **QUICK).tag(two, grid).shape == (2, 2)


def test_a_tagger_is_gone_on_from(folder, jets, tmp_path):
    "At a learning rate of nearly nothing a tagger stays what it was; another's classes need a new head."
    grid = BinnedTokenizer.from_pretrained(folder / "grid")
    first = finetune(jets, folder / "backbone", grid, **QUICK)
    first.save_pretrained(tmp_path / "first")
    same = finetune(jets, tmp_path / "first", grid, **QUICK | {"lr": 1e-12})
    assert np.allclose(same.tag(jets, grid), first.tag(jets, grid), atol=1e-4)
    swapped = finetune(jets, tmp_path / "first", grid, classes=["TTBar", "ZJetsToNuNu"], **QUICK | {"lr": 1e-12})
    assert swapped.classes == [0, 8] and np.allclose(swapped.tag(jets, grid), first.tag(jets, grid), atol=1e-4)
    others = sample_jets(["HToBB", "TTBar"], max_jets=20)
    other = finetune(others, tmp_path / "first", grid, **QUICK)
    assert other.classes == [1, 8] and not torch.equal(other.head.embed.weight, first.head.embed.weight)
    scratch = finetune(jets, tmp_path / "first", grid, "scratch", **QUICK | {"lr": 1e-12})
    assert not np.allclose(scratch.tag(jets, grid), first.tag(jets, grid), atol=1e-4)


def test_each_class_counts_the_same(folder, jets):
    "Of 60 q/g and 6 top jets, all alike but for that: the mean probability is a half, not a tenth."
    grid, label = BinnedTokenizer.from_pretrained(folder / "grid"), np.asarray(jets.label)
    some = np.concatenate([np.flatnonzero(label == 0), np.flatnonzero(label == 8)[:6]])
    rng = np.random.default_rng(1)
    alike = ak.with_field(jets[some], rng.permutation(label[some]), "label")
    tagger = finetune(alike, folder / "backbone", grid, "frozen", **QUICK | {"epochs": 10})
    assert 0.3 < tagger.tag(jets, grid)[:, 1].mean() < 0.7


# commands

def test_finetune_with_a_sample_of_its_own_for_testing_then_tag(folder, tmp_path, capsys):
    words = ["--backbone", "backbone", "--tokenizer", "grid", "--data", "mine.parquet", "--test", "others.parquet"]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    words = [str(folder / word) if (folder / word).exists() else word for word in words]
    assert main(["finetune", *words, "--images", "2", "--out", str(tmp_path / "tagger")]) == 0
    result = json.loads((tmp_path / "tagger" / "result.json").read_text())
    assert (result["train_jets"], result["n_jets"], result["images"]) == (80, 40, 2)
    words = ["tag", "--tagger", str(tmp_path / "tagger"), *words[2:4], "--data", str(folder / "others.parquet")]
    assert main([*words, "--images", "2", "--out", str(tmp_path / "scores.parquet")]) == 0
    scores, jets = ak.from_parquet(tmp_path / "scores.parquet"), read_jets(folder / "others.parquet")
    assert np.array_equal(scores.id, jets.id) and np.array_equal(scores.label, jets.label)
    assert abs((np.asarray(scores.score_TTBar > 0.5) == (np.asarray(jets.label) == 8)).mean() - result["accuracy"]) < 1e-9
    assert read_metadata(tmp_path / "scores.parquet")["images"] == 2
    for out in (tmp_path / "scores.parquet", folder / "mine.parquet", tmp_path / "scores.root", folder):
        assert main([*words, "--out", str(out)]) == 1
        said = capsys.readouterr().err
        assert "expected the name of a new .parquet file" in said and said.count("\n") == 1
    assert all(path.read_bytes() == data for path, data in before.items())


def test_what_cannot_be_is_said_in_one_line(folder, tmp_path):
    start = folder / "backbone", folder / "grid"
    with pytest.raises(OmnijetError, match="80 of its jets are in"):
        finetune_files(*start, folder / "mine.parquet", tmp_path / "out", test=folder / "mine.parquet", **QUICK)
    with pytest.raises(OmnijetError, match="images is 0"):
        finetune_files(*start, folder / "mine.parquet", tmp_path / "out", images=0, **QUICK)
    with pytest.raises(OmnijetError, match="kind is 'BinnedTokenizer', expected GenerativeModel or JetClassifier"):
        finetune_files(folder / "grid", folder / "grid", folder / "mine.parquet", tmp_path / "out", **QUICK)
    with pytest.raises(OmnijetError, match="kind is 'GenerativeModel'"): tag_files(*start, folder / "mine.parquet", tmp_path / "s.parquet")
    BinnedTokenizer(bins=(3, 3, 3)).save_pretrained(tmp_path / "coarse")
    with pytest.raises(OmnijetError, match="27 codes.* 8192"): tag_files("omnijet/top-tagger", tmp_path / "coarse", folder / "mine.parquet", tmp_path / "s.parquet")
    assert not (tmp_path / "out").exists() and not (tmp_path / "s.parquet").exists()


# other people's jets

def test_another_detector_sees_less(jets):
    other = other_detector(jets, spread=0.0, angle=0.0, threshold=0.0, response=0.5)
    assert np.allclose(ak.sum(other.constituents.pt, 1), 0.5 * ak.sum(jets.constituents.pt, 1), rtol=1e-4)
    assert np.array_equal(other.label, jets.label) and len(other_detector(jets, threshold=1e5)) == 0


def test_folders_without_public_jets_are_named(tmp_path):
    for sample in ("top tagging", "quark/gluon"):
        with pytest.raises(OmnijetError, match=f"no {sample} jets, expected one of"): read_public(tmp_path, sample)
    with pytest.raises(OmnijetError, match="no sample 'w bosons'"): read_public(tmp_path, "w bosons")


def write_top_tagging(path, jets):
    "As the reference publishes its splits: a table of pandas, 200 places of (E, p_x, p_y, p_z) with zeros behind the last constituent."
    pd = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    columns = to_columns(jets)
    px, py, pz = (ak.to_numpy(ak.fill_none(ak.pad_none(columns[name], 200, clip=True), 0.0)) for name in ("part_px", "part_py", "part_pz"))
    places = np.stack([np.sqrt(px**2 + py**2 + pz**2), px, py, pz], 2).reshape(len(jets), -1).astype(np.float32)
    frame = pd.DataFrame(places, columns=[f"{name}_{i}" for i in range(200) for name in ("E", "PX", "PY", "PZ")])
    frame.assign(is_signal_new=(np.asarray(jets.label) == 8).astype(int)).to_hdf(path, key="table", format="table", complib="blosc", complevel=5)


def write_quark_gluon(path, jets):
    "As EnergyFlow publishes it: (p_T, rapidity, azimuth from 0 to 2π, number of the particle), photons here."
    x = jets.constituents
    features = [x.pt, x.eta_rel + jets.eta, (x.phi_rel + jets.phi) % (2 * np.pi), x.pt * 0 + 22]
    np.savez_compressed(path, X=np.stack([ak.to_numpy(ak.fill_none(ak.pad_none(values, 150, clip=True), 0.0)) for values in features], 2), y=(np.asarray(jets.label) == 8).astype(float))


@pytest.mark.parametrize("sample, write, names, excerpt, background, signal", [
    ("top tagging", write_top_tagging, ("train.h5", "test.h5"), "top_tagging_1000.h5", "ZJetsToNuNu", "TTBar"),
    ("quark/gluon", write_quark_gluon, ("QG_jets.npz", "QG_jets_19.npz"), "QG_jets_1000.npz", "gluon", "quark"),
])
def test_published_splits_are_read_whole(jets, tmp_path, sample, write, names, excerpt, background, signal):
    "Training and test jets are those of their files, with momenta and classes; an excerpt beside them is left alone, and halved where it is all there is."
    parts = jets[:70], jets[70:110]
    write(tmp_path / excerpt, jets[110:])
    halves = read_public(tmp_path, sample)
    assert [len(half) for half in halves] == [5, 5] and len({*halves[0].id.to_list(), *halves[1].id.to_list()}) == 10
    assert [len(half) for half in read_public(tmp_path, sample, 3, 4)] == [3, 4]
    write(tmp_path / names[0], parts[0])
    assert [len(half) for half in read_public(tmp_path, sample)] == [5, 5]  # a training sample without its test sample
    write(tmp_path / names[1], parts[1])
    found = read_public(tmp_path, sample)
    for part, original in zip(found, parts):
        assert np.array_equal(ak.num(part.constituents), ak.num(original.constituents))
        assert np.allclose(ak.flatten(part.constituents.pt), ak.flatten(original.constituents.pt), rtol=1e-5)
        assert {class_key(label) for label in part.label} == {background, signal}
        assert np.array_equal(np.asarray(part.label) == add_class(signal), np.asarray(original.label) == 8)
    few = read_public(tmp_path, sample, 20, 10)
    assert [len(part) for part in few] == [20, 10]
    assert all(set(part.id.to_list()) <= set(whole.id.to_list()) for part, whole in zip(few, found))
    assert not set(few[0].id.to_list()) & set(few[1].id.to_list())


def test_the_shipped_tagger_on_public_top_jets(public):
    "Zero-shot, on the first half of the public jets: 500, so that the AUC has an error of 0.012."
    jets, others = read_public(public, "top tagging")
    assert len(jets) == len(others) == 500 and not set(jets.id.to_list()) & set(others.id.to_list())
    tokenizer, tagger = VQVAE.from_pretrained("omnijet/tokenizer-8192"), JetClassifier.from_pretrained("omnijet/top-tagger")
    codes = encode_images(tokenizer, jets)
    many, one = (tagger.evaluate(codes[:n * len(jets)], jets.label, n) for n in (4, 1))
    assert many["accuracy"] > 0.83 and many["auc"] > max(0.93, one["auc"])


def test_classes_of_ones_own_are_fine_tuned_saved_and_tagged(public, folder, tmp_path):
    result = finetune_files(folder / "backbone", folder / "grid", public / "QG_jets_1000.npz", tmp_path / "out", "frozen", **QUICK)
    assert sorted(result["classes"]) == ["gluon", "quark"] and result["n_jets"] == 200
    tag_files(tmp_path / "out", folder / "grid", public / "QG_jets_1000.npz", tmp_path / "scores.parquet", max_jets=50, progress=False)
    scores = ak.from_parquet(tmp_path / "scores.parquet")
    assert len(scores) == 50 and np.allclose(scores.score_gluon + scores.score_quark, 1, atol=1e-5)
