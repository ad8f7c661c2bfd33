"""The classification head against the published one, what a tagger may see, bad input, and sweeps that are killed."""
import json
import os
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch

from omnijet.data import CLASSES, Ragged, sample_jets, to_columns, write_tokens
from omnijet.files import OmnijetError, write_columns
from omnijet.gpt import Backbone, GenerativeModel, load_tokens, token_parts
from omnijet.statistics import quality, rejection
from omnijet.training import TrainingConfig
from omnijet.transfer import (ClassificationHead, JetClassifier, as_codes, balanced, check_unseen, fine_tuning, finetune_files, over_seeds,
                              read_samples, sweep, train_one)
from omnijet.vqvae import BinnedTokenizer


@pytest.fixture(scope="module")
def jets():
    return sample_jets(classes=["ZJetsToNuNu", "TTBar"], max_jets=500)


@pytest.fixture(scope="module")
def tokenizer():
    return BinnedTokenizer(bins=(6, 6, 6))


@pytest.fixture(scope="module")
def tokens(jets, tokenizer):
    return tokenizer.encode(jets)


@pytest.fixture
def classifier(tokenizer):
    torch.manual_seed(1)
    return JetClassifier(Backbone(tokenizer.codebook_size + 2, width=32, blocks=1, heads=4))


QUICK = TrainingConfig(epochs=5, batch_size=100, lr=3e-3)


# the published head

def published_head(golden):
    io = np.load(golden / "gabbro_classification_io.npz")
    head = ClassificationHead(io["head.classification_head_linear_embed.weight"].shape[1], len(io["logits"][0]))
    head.load_state_dict({f"{ours}.{part}": torch.from_numpy(io[f"head.classification_head_linear_{theirs}.{part}"])
                          for ours, theirs in {"embed": "embed", "classify": "class"}.items() for part in ("weight", "bias")})
    return head, torch.from_numpy(io["logits"])


def test_head_gives_the_published_logits(golden):
    head, logits = published_head(golden)
    io = np.load(golden / "gabbro_generative_io.npz")
    with torch.no_grad():
        ours = head(torch.from_numpy(io["embeddings"]), torch.from_numpy(io["mask"]) > 0)
    assert (ours - logits).abs().max() < 1e-4


def test_backbone_and_head_give_the_published_logits(golden):
    head, logits = published_head(golden)
    io = np.load(golden / "gabbro_generative_io.npz")
    model = GenerativeModel.from_gabbro(golden / "gabbro_generative.ckpt")
    tokens, mask = torch.from_numpy(io["tokens"]), torch.from_numpy(io["mask"]) > 0
    with torch.no_grad():
        ours = JetClassifier(model.backbone, head).head(model.backbone(tokens), mask)
    assert (ours - logits).abs().max() < 1e-4


# what a tagger may see

def test_shuffled_labels_teach_nothing(jets, tokens, classifier):
    "The same training with true and with shuffled labels: only the true ones can be learnt, so no label reaches the inputs."
    rng = np.random.default_rng(1)
    train, test = np.split(rng.permutation(len(jets)), [600])
    labels = np.asarray(jets.label)
    classifier.fit(tokens[train], labels[train], "scratch", config=QUICK, progress=False)
    honest = classifier.evaluate(tokens[test], labels[test])
    assert honest["auc"] > 0.5 + 5 * honest["auc_error"]
    shuffled = rng.permutation(labels)
    classifier.fit(tokens[train], shuffled[train], "scratch", config=QUICK, progress=False)
    nothing = classifier.evaluate(tokens[test], shuffled[test])
    assert abs(nothing["auc"] - 0.5) < 3 * nothing["auc_error"]


def test_predict_needs_no_label(jets, tokens, classifier):
    table = {"tokens": tokens, "label": np.asarray(jets.label)}
    import awkward as ak
    other = {**table, "label": 8 - table["label"]}
    assert np.array_equal(classifier.predict(ak.zip(table, depth_limit=1)), classifier.predict(ak.zip(other, depth_limit=1)))


def test_each_strategy_trains_what_it_should(jets, tokens, classifier):
    before = {k: v.clone() for k, v in classifier.backbone.state_dict().items()}
    moved = {}
    for strategy in ("frozen", "finetune", "scratch"):
        model = JetClassifier(classifier.backbone)
        model.fit(tokens, jets.label, strategy, config=TrainingConfig(epochs=1, batch_size=100, lr=1e-4), progress=False)
        moved[strategy] = max(float((v - before[k]).abs().max()) for k, v in model.backbone.state_dict().items())
        assert all(torch.equal(v, before[k]) for k, v in classifier.backbone.state_dict().items())
        assert all(p.requires_grad for p in model.parameters())
    assert moved["frozen"] == 0 < moved["finetune"] < 0.01 < moved["scratch"]


def test_frozen_from_stored_embeddings_is_the_same_training(jets, tokens, classifier, monkeypatch):
    "With and without room for the embeddings: the same head."
    config = TrainingConfig(epochs=2, batch_size=100, lr=1e-3)
    stored, streamed = JetClassifier(classifier.backbone), JetClassifier(classifier.backbone)
    stored.fit(tokens, jets.label, "frozen", config=config, progress=False)
    monkeypatch.setattr("omnijet.transfer.MEMORY", 0)
    streamed.fit(tokens, jets.label, "frozen", config=config, progress=False)
    assert np.allclose(stored.predict(tokens), streamed.predict(tokens), atol=1e-4)


def test_ten_classes(tokenizer, classifier):
    jets = sample_jets(max_jets=60)
    model = JetClassifier(classifier.backbone, classes=CLASSES)
    model.fit(tokenizer.encode(jets), jets.label, "scratch", config=TrainingConfig(epochs=1, batch_size=100, lr=1e-3), progress=False)
    p = model.predict(tokenizer.encode(jets))
    result = quality(p, np.asarray(jets.label))
    assert p.shape == (600, 10) and len(result["rejection_30"]) == 9 and 0 < result["accuracy"] < 1


# numbers

def test_rejection_is_the_one_of_the_roc_curve():
    from sklearn.metrics import roc_curve
    rng = np.random.default_rng(3)
    background, signal = rng.normal(size=5000), rng.normal(size=4000) + 1.5
    fpr, tpr, _ = roc_curve(np.repeat([0, 1], [5000, 4000]), np.concatenate([background, signal]), drop_intermediate=False)
    for efficiency in (0.3, 0.5):
        assert np.isclose(rejection(background, signal, efficiency)[0], 1 / fpr[np.searchsorted(tpr, efficiency)])
    assert rejection(background - 100, signal, 0.5)[0] == 5000


# bad input

def test_bad_input_is_named(jets, tokens, classifier, tokenizer):
    labels = np.asarray(jets.label)
    fit = lambda *args, **kwargs: classifier.fit(*args, config=QUICK, progress=False, **kwargs)
    with pytest.raises(OmnijetError, match="so 5 of class q/g, but there are only 0"): fit(tokens[labels == 8], labels[labels == 8])
    with pytest.raises(OmnijetError, match="jet 3 has label 4, expected one of \\[0, 8\\]"): fit(tokens, np.where(np.arange(len(labels)) == 3, 4, labels))
    with pytest.raises(OmnijetError, match="10 labels for 1000 jets"): fit(tokens, labels[:10])
    with pytest.raises(OmnijetError, match="strategy is 'guess'"): fit(tokens, labels, "guess")
    with pytest.raises(OmnijetError, match="0 … 215"): fit(BinnedTokenizer(bins=(7, 7, 7)).encode(jets), labels)
    with pytest.raises(OmnijetError, match="two to ten"): JetClassifier(classifier.backbone, classes=["TTBar"])
    with pytest.raises(OmnijetError, match="Nonsense"): JetClassifier(classifier.backbone, classes=["TTBar", "Nonsense"])
    with pytest.raises(OmnijetError, match="32, the backbone's width"): JetClassifier(classifier.backbone, ClassificationHead(16))
    with pytest.raises(OmnijetError, match="1 of class q/g, but there are only 0"): classifier.evaluate(tokens[labels == 8], labels[labels == 8])


def test_a_loss_that_is_not_finite_is_named(jets, tokens, classifier):
    with torch.no_grad(): classifier.backbone.embedding.weight[:] = np.nan
    with pytest.raises(OmnijetError, match="loss .* nan"): classifier.fit(tokens, jets.label, "finetune", config=QUICK, progress=False)


def test_a_folder_that_is_no_classifier_is_named(tmp_path, tokenizer):
    GenerativeModel(tokenizer.codebook_size, 32, 1, 4).save_pretrained(tmp_path / "backbone")
    with pytest.raises(OmnijetError, match="kind is 'GenerativeModel', expected JetClassifier"): JetClassifier.from_pretrained(tmp_path / "backbone")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text('{"kind": "JetClassifier", "classes": [0, 8]}')
    with pytest.raises(OmnijetError, match="backbone"): JetClassifier.from_pretrained(tmp_path / "half")


# sweeps

class Here:
    "An executor that works in this process, and can die after some trainings as a killed one would."
    def __init__(self, deaths=10**9): self.left, self.done = deaths, []

    def submit(self, function, task):
        from concurrent.futures import Future
        future = Future()
        if self.left <= 0: raise KeyboardInterrupt
        self.left -= 1
        self.done.append(Path(task["out"]).name)
        future.set_result(function(task))
        return future


@pytest.fixture
def run(tmp_path, jets, tokens, tokenizer):
    "A run folder with tokens and an untrained backbone."
    for split, part in {"train": slice(0, 300), "val": slice(300, 350), "test": slice(350, 500)}.items():
        for label in (0, 8):
            chosen = np.flatnonzero(jets.label == label)[part]
            write_tokens(tokens[chosen], tmp_path / "tokens" / split / f"{CLASSES[label]}.parquet", label=jets.label[chosen], id=jets.id[chosen])
    torch.manual_seed(1)
    GenerativeModel(tokenizer.codebook_size, width=32, blocks=1, heads=4).save_pretrained(tmp_path / "backbone")
    return tmp_path


def test_a_sweep_holds_no_more_training_jets_than_it_needs(run):
    every, few = read_samples(run, ["ZJetsToNuNu", "TTBar"]), read_samples(run, ["ZJetsToNuNu", "TTBar"], n_train=100)
    assert len(every["train"]) == 600 and np.bincount(few["train"].extras["label"])[[0, 8]].tolist() == [50, 50]
    assert set(few["train"].extras["id"]) < set(every["train"].extras["id"])
    assert (few["val"].content == every["val"].content).all()
    whole = load_tokens(run, "train", ["ZJetsToNuNu", "TTBar"])
    chosen = balanced(whole.extras["label"], 100, [0, 8], seed=0)
    assert (few["train"].content == whole[chosen].content).all()
    with pytest.raises(OmnijetError, match="600 test jets were seen in training"):
        check_unseen(whole, {"validation": token_parts(run, "val"), "training": token_parts(run, "train")})


def sweep_here(run, executor, out="transfer", **changes):
    return sweep(run / "backbone", run, run / out, **{"sizes": [20, 100], "strategies": ["frozen", "scratch"], "seeds": [1, 2], "executor": executor,
                                                      "progress": False, "epochs": 2, "batch_size": 50, **changes})


def plain(results): return [{k: v for k, v in r.items() if k not in ("seconds", "history")} for r in results]


def test_a_killed_sweep_continues_to_the_same_results(run):
    whole = sweep_here(run, Here(), "whole")
    first, second, third = Here(3), Here(), Here()
    with pytest.raises(KeyboardInterrupt): sweep_here(run, first)
    (run / "transfer" / ".scratch_20_seed2.123.tmp").mkdir()                    # what a killed process may leave
    results = sweep_here(run, second)
    again = sweep_here(run, third)
    assert len(first.done) == 3 and len(second.done) == 5 and not set(first.done) & set(second.done) and third.done == []
    assert plain(results) == plain(whole) == plain(again) and len(results) == 8
    assert list(over_seeds(results, "scratch")[0]) == [20, 100]


def test_a_sweep_with_other_settings_starts_again(run):
    sweep_here(run, Here(), sizes=[20], seeds=[1])
    other = Here()
    sweep_here(run, other, sizes=[20], seeds=[1], lr=1e-3)
    assert len(other.done) == 2


def test_failed_trainings_are_named_and_the_others_kept(run, monkeypatch):
    import omnijet.transfer as transfer
    def sometimes(task, train_one=transfer.train_one):
        return train_one(task | {"config": task["config"] | {"lr": 1e30}} if (task["strategy"], task["seed"]) == ("scratch", 2) else task)
    monkeypatch.setattr(transfer, "train_one", sometimes)
    with pytest.raises(OmnijetError, match="1 of 4 trainings failed \\(scratch with 20 jets, seed 2: OmnijetError: .*nan"): sweep_here(run, Here(), sizes=[20])
    assert sorted(os.listdir(run / "transfer")) == ["frozen_20_seed1", "frozen_20_seed2", "scratch_20_seed1"]


def test_sweep_refuses_what_it_cannot_do(run, tmp_path, jets, tokens):
    with pytest.raises(OmnijetError, match="700 jets asked for, so 350 of class q/g, but there are only 300"): sweep_here(run, Here(), sizes=[20, 700])
    GenerativeModel(100, width=32, blocks=1, heads=4).save_pretrained(run / "other")
    with pytest.raises(OmnijetError, match="0 … 99"): sweep(run / "other", run, run / "transfer", [20], executor=Here(), progress=False)
    chosen = np.flatnonzero(jets.label == 8)[290:340]
    write_tokens(tokens[chosen], run / "tokens" / "test" / "TTBar.parquet", label=jets.label[chosen], id=jets.id[chosen])
    with pytest.raises(OmnijetError, match="10 test jets were seen in pre-training"): sweep_here(run, Here())
    assert not (run / "transfer").exists() or not os.listdir(run / "transfer")


def test_worker_processes_give_the_same_results(run):
    here = sweep_here(run, Here(), "here", sizes=[20], seeds=[1])
    there = sweep_here(run, None, "there", sizes=[20], seeds=[1], workers=2)
    assert [r["size"] for r in there] == [20, 20]
    assert np.allclose([r["auc"] for r in here], [r["auc"] for r in there], atol=1e-6)


# odd inputs

@pytest.fixture
def files(tmp_path, jets, tokenizer):
    "Files of 60 q/g and 4 top jets, a tokenizer and an untrained backbone for `finetune_files`."
    for label, n in {0: 60, 8: 4}.items():
        write_columns(to_columns(jets[np.asarray(jets.label) == label][:n]), tmp_path / "few" / f"{CLASSES[label]}.parquet")
        write_columns(to_columns(jets[np.asarray(jets.label) == label][:30]), tmp_path / "jets" / f"{CLASSES[label]}.parquet")
    tokenizer.save_pretrained(tmp_path / "grid")
    GenerativeModel(tokenizer.codebook_size, width=16, blocks=1, heads=2).save_pretrained(tmp_path / "backbone")
    return tmp_path


def tune(files, data="jets", out="out", **changes):
    backbone, grid = changes.pop("backbone", files / "backbone"), changes.pop("tokenizer", files / "grid")
    return finetune_files(backbone, grid, files / data, files / out, **{"epochs": 1, "batch_size": 20, "progress": False, **changes})


def test_a_doomed_fine_tuning_says_so_first(files, monkeypatch):
    monkeypatch.setattr(JetClassifier, "fit", lambda *_, **__: pytest.fail("it trains"))
    for message, wrong in {"6 of class t → bqq′, but there are only 4": {"data": "few"}, "strategy is 'guess'": {"strategy": "guess"},
                           "classes are TTBar, TTBar": {"classes": ["TTBar", "TTBar"]}, "HToNothing": {"classes": ["HToNothing", "TTBar"]},
                           "classes are ZJetsToNuNu": {"data": "jets/ZJetsToNuNu.parquet"}, "seed is": {"seed": -1}, "epochs is": {"epochs": "many"},
                           "so 6 of class q/g, but there are only 5": {"max_jets": 10}}.items():
        with pytest.raises(OmnijetError, match=message): tune(files, **wrong)
    BinnedTokenizer(bins=(3, 3, 3)).save_pretrained(files / "other")
    with pytest.raises(OmnijetError, match="27 codes.* 216"): tune(files, tokenizer=files / "other")
    assert not (files / "out").exists()


def test_fine_tuning_overwrites_nothing(files, monkeypatch):
    monkeypatch.setattr(JetClassifier, "fit", lambda *_, **__: pytest.fail("it trains"))
    (files / "mine").mkdir()
    (files / "mine" / "thesis.txt").write_text("mine")
    for out in ("mine", "mine/thesis.txt", "jets", "backbone", "grid"):
        with pytest.raises(OmnijetError, match=f"{out} .*choose another"): tune(files, out=out)
    assert (files / "mine" / "thesis.txt").read_text() == "mine" and len(list((files / "jets").iterdir())) == 2


def test_numbers_of_any_library(files):
    (files / "out").mkdir()  # and empty
    result = tune(files, seed=np.int64(3), max_jets=np.array(50), epochs="1", batch_size=np.uint8(20), lr=np.float32(1e-3), classes=np.array([0, 8]))
    assert json.loads((files / "out" / "result.json").read_text()) == json.loads(json.dumps(result)) and result["seed"] == 3
    assert JetClassifier.from_pretrained(files / "out").classes == [0, 8]


def test_what_was_trained_is_kept_if_it_cannot_be_judged(files, monkeypatch):
    def broken(*_): raise MemoryError("too little")
    monkeypatch.setattr("omnijet.transfer.quality", broken)
    with pytest.raises(MemoryError): tune(files)
    assert JetClassifier.from_pretrained(files / "out").classes == [0, 8]
    assert json.loads((files / "out" / "result.json").read_text())["train_jets"] == 48


def test_a_sweep_that_cannot_be_judged_keeps_its_trainings(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("omnijet.transfer.quality", lambda *_: 1 / 0)
        with pytest.raises(OmnijetError, match="ZeroDivisionError"): sweep_here(run, Here(), sizes=[20], seeds=[1], strategies="frozen")
    assert JetClassifier.from_pretrained(run / "transfer" / "frozen_20_seed1").classes == [0, 8]
    again = Here()
    assert 0 < sweep_here(run, again, sizes=[20], seeds=[1], strategies="frozen")[0]["accuracy"] < 1 and len(again.done) == 1


def test_sweeps_take_numbers_of_any_library(run):
    options = dict(classes=np.array([0, 8]), n_test=np.int16(100), n_val="40", workers=np.int64(0), lr=np.float32(1e-3), batch_size="50")
    results = sweep_here(run, Here(), sizes=np.array([20, 20]), seeds=np.arange(1, 3), strategies=np.array(["frozen"]), **options)
    assert [(r["size"], r["seed"], r["n_jets"]) for r in results] == [(20, 1, 100), (20, 2, 100)]
    none = Here()
    assert sweep_here(run, none, sizes=20, seeds=[2, 1], strategies="frozen", **options | {"lr": options["lr"].item(), "n_val": 40}) == results and not none.done


def test_a_doomed_sweep_says_so_first(run):
    none = Here()
    for message, wrong in {"sizes is -5": {"sizes": [-5]}, "sizes is .*2.5": {"sizes": [2.5]}, "sizes is 1": {"sizes": [1]}, "seeds is": {"seeds": [-1]}, "n_val is": {"n_val": 1},
                           "n_test is": {"n_test": "all"}, "workers is": {"workers": -1}, "strategy is 'guess'": {"strategies": ["frozen", "guess"]},
                           "epochs is None": {"epochs": {20: 3}}, "classes are TTBar": {"classes": ["TTBar"]}, "HToNothing": {"classes": ["TTBar", "HToNothing"]},
                           "so 400 of class": {"sizes": [20, 800]}, "batch_size is": {"batch_size": 0}}.items():
        with pytest.raises(OmnijetError, match=message): sweep_here(run, none, **wrong)
    (run / "transfer" / "frozen_20_seed1").mkdir(parents=True)
    (run / "transfer" / "frozen_20_seed1" / "thesis.txt").write_text("mine")
    with pytest.raises(OmnijetError, match="frozen_20_seed1"): sweep_here(run, none)
    assert not none.done and (run / "transfer" / "frozen_20_seed1" / "thesis.txt").read_text() == "mine"
    (run / "tokens" / "val" / "TTBar.parquet").unlink()
    with pytest.raises(OmnijetError, match="so 1 of class t → bqq′, but there are only 0"): sweep_here(run, none, "other")


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor, lambda x: np.asarray(x, float), lambda x: np.asarray(x, np.uint8)])
def test_labels_of_any_kind(jets, tokens, classifier, kind):
    labels = np.asarray(jets.label)
    assert classifier.evaluate(tokens, kind(labels.tolist())) == classifier.evaluate(tokens, labels)


@pytest.mark.parametrize("label", [float("nan"), None, "TTBar", 0.5, 9])
def test_a_label_that_is_none_is_named(jets, tokens, classifier, label):
    labels = jets.label.to_list()
    labels[3] = label
    labels = labels if isinstance(label, str) is False else np.array(labels, object)
    for work in (classifier.evaluate, classifier.fit):
        with pytest.raises(OmnijetError, match=f"jet 3 has label {label}, expected one of"): work(tokens, labels)
    with pytest.raises(OmnijetError, match="1000 × 1 labels for 1000 jets"): classifier.evaluate(tokens, np.asarray(jets.label)[:, None])
    with pytest.raises(OmnijetError, match="3 labels for 1000 jets"): classifier.evaluate(tokens, [0, 8, 8])


def test_tokens_of_any_kind(tokens, classifier):
    four = tokens[:4].to_list()
    expected = classifier.predict(tokens[:4])
    for given in (four, [np.array(jet, np.uint8) for jet in four], np.array([np.array(jet) for jet in four], object), [torch.tensor(jet) for jet in four], as_codes(four, 216)):
        assert np.array_equal(classifier.predict(given), expected)
    assert np.allclose(classifier.predict(np.array([four[0]] * 2)), expected[[0, 0]], atol=1e-6)
    for nothing in ([], np.empty((0, 5), int), tokens[:0], as_codes([], 216)):
        assert classifier.predict(nothing).shape == (0, 2)
    assert classifier.predict([[], [3]]).shape == (2, 2)
    assert len(classifier.positions(as_codes([], 216))) == 0
    for wrong in ([3, 1], [[0.5]], [["a"]], [[None, 1]], [[[1]]], np.array([[0.5, 1]]), [[3, -1]], [[216]]):
        with pytest.raises(OmnijetError, match="tokens are|expected 0 … 215"): classifier.predict(wrong)


def test_a_model_that_answers_nan_is_not_judged(tokens, jets, classifier):
    with torch.no_grad(): classifier.head.embed.weight[:] = np.nan
    with pytest.raises(OmnijetError, match="jet 0"): classifier.evaluate(tokens, jets.label)


def test_the_same_jets_are_known_under_any_name(tokens):
    def sample(part, key): return Ragged.from_tokens(ak.zip({"tokens": tokens[part], "id": np.arange(len(tokens))[part] + (key << 32)}, depth_limit=1))
    test, seen = sample(slice(0, 100), 5), sample(slice(100, 1000), 5)
    check_unseen(test, {"training": seen})
    check_unseen(test, {"training": sample(slice(100, 200), 6)})
    for other in (sample(slice(95, 200), 6), Ragged.from_tokens(ak.zip({"tokens": tokens[95:200]}, depth_limit=1))):  # another name, or none
        with pytest.raises(OmnijetError, match="5 test jets were seen in training, going by their tokens"): check_unseen(test, {"training": other})
    coarse = Ragged(np.zeros(600, int), np.arange(31) * 20, {"id": np.arange(30)})  # all jets look alike
    check_unseen(coarse[:10], {"training": coarse[10:]})


def test_a_sweep_in_a_script_without_a_main_guard(run, tmp_path):
    import subprocess
    import sys
    (tmp_path / "script.py").write_text("from omnijet.transfer import sweep\n"
                                        "print(len(sweep('backbone', '.', 'out', [20], ['frozen'], [1, 2], workers=2, epochs=1, progress=False)))\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == "2", done.stderr[-2000:]
