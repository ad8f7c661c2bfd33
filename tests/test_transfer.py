"""The classification head against the published one, what a tagger may see, bad input, and sweeps that are killed."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from omnijet.data import CLASSES, sample_jets, write_tokens
from omnijet.files import OmnijetError
from omnijet.gpt import Backbone, GenerativeModel
from omnijet.training import TrainingConfig
from omnijet.transfer import ClassificationHead, JetClassifier, check_unseen, as_codes, finetune_files, fine_tuning, over_seeds, quality, rejection, sweep, train_one
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
