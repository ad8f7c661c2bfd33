"""Model folders of version 0.1: with the keys of its config.json and the names of its weights they are the models they were."""
import json

import numpy as np
import pytest
import torch

from omnijet.data import sample_jets
from omnijet.files import checksum, read_weights, save_weights
from omnijet.gpt import GenerativeModel
from omnijet.transfer import JetClassifier, finetune
from omnijet.vqvae import BinnedTokenizer

TRAINING = {"epochs": 8, "batch_size": 64, "lr": 0.002, "optimizer": "adam", "weight_decay": 0.01, "betas": [0.9, 0.999], "schedule": "one-cycle", "warmup": 0.1,
            "lr_start": None, "lr_end": None, "patience": None, "monitor": "loss", "validate_every": 1, "grad_clip": None, "precision": "auto", "compile": False,
            "devices": 1, "strategy": "auto", "num_nodes": 1, "seed": 1, "variants": 4, "sequences": 64000, "steps": 8000, "seconds": 1481.1}
ORIGIN = {"training": TRAINING, "versions": {"omnijet": "0.1.0", "torch": "2.13.0+cpu"}, "git_commit": "e8eec2f805b7b3857716ce1dce24812feb40e555",
          "device": "CPU, 2 cores", "command": "omnijet run --preset laptop"}
BLOCK = [f"{part}.{what}" for part in ("attention.project", "mlp.0", "mlp.2", "norm1", "norm2") for what in ("bias", "weight")] + ["attention.qkv.weight"]
HEADS = {"GenerativeModel": ["head.bias", "head.weight"],
         "JetClassifier": ["head.classify.bias", "head.classify.weight", "head.embed.bias", "head.embed.weight"]}


def folder_of_the_first_version(model, folder, **settings):
    "The same weights under the names and with the settings that 0.1 wrote, which are these alone."
    now = folder.with_name(f"{folder.name}_now")
    model.save_pretrained(now)
    weights, kind = read_weights(now / "model.safetensors"), type(model).__name__
    expected = {"backbone.embedding.weight", *(f"backbone.blocks.{i}.{name}" for i in range(2) for name in BLOCK), *HEADS[kind]}
    folder.mkdir()
    save_weights({name: weights.pop(name) for name in expected}, folder / "model.safetensors")
    assert not weights  # nothing that 0.1 did not have
    config = {"kind": kind, **settings, "origin": ORIGIN | {"weights": checksum(folder / "model.safetensors")}}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    assert set(config) < set(json.loads((now / "config.json").read_text()))  # today's has more
    return now


@pytest.fixture
def grid():
    return BinnedTokenizer(bins=(4, 4, 4))


@pytest.mark.parametrize("classes", [0, 10])
def test_a_backbone(tmp_path, grid, classes):
    torch.manual_seed(3)
    model = GenerativeModel(grid.codebook_size, width=16, blocks=2, heads=2, classes=classes).eval()
    now = folder_of_the_first_version(model, tmp_path / "backbone", width=16, blocks=2, heads=2, classes=classes, codebook_size=64)
    old, new = (GenerativeModel.from_pretrained(folder) for folder in (tmp_path / "backbone", now))
    assert old.settings() == new.settings()
    tokens, how = torch.randint(0, 64, (3, 7)), {"jet_class": "TTBar"} if classes else {}
    with torch.no_grad():
        states = [one.backbone(tokens) for one in (model, old, new)]
    assert all(torch.equal(states[0], other) for other in states[1:]) and states[0].std() > 0
    made = [one.generate(20, seed=2, progress=False, **how).to_list() for one in (model, old, new)]
    assert made[0] == made[1] == made[2] and sum(map(len, made[0])) > 20


def test_a_tagger(tmp_path, grid):
    torch.manual_seed(4)
    shape, jets = {"vocabulary_size": 66, "width": 16, "blocks": 2, "heads": 2}, sample_jets(["ZJetsToNuNu", "TTBar"], max_jets=10)
    tagger = JetClassifier(shape).eval()
    now = folder_of_the_first_version(tagger, tmp_path / "tagger", backbone=shape, classes=[0, 8], codebook_size=64)
    old, new = (JetClassifier.from_pretrained(folder) for folder in (tmp_path / "tagger", now))
    assert old.settings() == new.settings() and old.classes == [0, 8]
    said = [one.tag(jets, grid) for one in (tagger, old, new)]
    assert np.array_equal(said[0], said[1]) and np.array_equal(said[0], said[2]) and said[0].std() > 0
    quick = {"epochs": 1, "batch_size": 10, "images": 2, "progress": False}
    further = [finetune(jets, folder, grid, **quick).tag(jets, grid) for folder in (tmp_path / "tagger", now)]
    assert np.array_equal(*further) and not np.allclose(further[0], said[0])
