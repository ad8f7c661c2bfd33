"""The models that come with omnijet: each loads offline, does what its card says, and README's lines run as printed."""
import re
import subprocess
import sys
from pathlib import Path

import awkward as ak
import numpy as np
import pytest

import omnijet
from omnijet.data import CLASSES, sample_jets
from omnijet.files import OmnijetError
from omnijet.gpt import GenerativeModel
from omnijet.models import take_model
from omnijet.observables import jet_mass
from omnijet.transfer import JetClassifier
from omnijet.vqvae import VQVAE, load_tokenizer

SHELF = Path(omnijet.__file__).parent / "pretrained"
ROOT = Path(__file__).parent.parent
OFFLINE = "import socket\ndef _refuse(*a, **k): raise OSError('no network in this test')\nsocket.socket.connect = socket.create_connection = socket.getaddrinfo = _refuse\n"
TOPS = sample_jets("TTBar", max_jets=200)


def test_shelf():
    names = sorted(path.name for path in SHELF.iterdir() if path.is_dir())
    assert {"tokenizer-512", "tokenizer-8192", "backbone", "top-tagger"} <= set(names)
    assert sum(path.stat().st_size for path in SHELF.rglob("*") if path.is_file()) < 40e6
    for name in names:
        card = (SHELF / name / "README.md").read_text()
        assert all(word in card for word in ("licence", "seed", "device", "date", "versions", "omnijet run")), name
    with pytest.raises(OmnijetError, match="omnijet/tokenizer-8192"):
        load_tokenizer("omnijet/tokenizer-8193")


def test_a_model_is_taken_as_it_is(tmp_path):
    folder = tmp_path / "run" / "tokenizers" / "conditional-512"
    assert take_model("omnijet/tokenizer-512", folder) == []
    for name in ("config.json", "model.safetensors"):  # with the origin of its training
        assert (folder / name).read_bytes() == (SHELF / "tokenizer-512" / name).read_bytes()
    (folder / "training").mkdir(exist_ok=True)
    (folder / "training" / "history.json").write_text('[{"epoch": 0, "val_loss": 1.5}]')
    assert take_model(folder, tmp_path / "next") == [{"epoch": 0, "val_loss": 1.5}]
    tokens = load_tokenizer(tmp_path / "next").encode(TOPS[:5])
    assert tokens.to_list() == load_tokenizer("omnijet/tokenizer-512").encode(TOPS[:5]).to_list()
    with pytest.raises(OmnijetError, match="no such folder"):
        take_model(tmp_path / "nosuch", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_tokenizers_keep_the_mass():
    width = {}
    for name in ("tokenizer-512", "tokenizer-8192"):
        tokenizer = VQVAE.from_pretrained(f"omnijet/{name}")
        tokens = tokenizer.encode(TOPS)
        again = tokenizer.decode(tokens)
        assert ak.all(ak.num(tokens) == ak.num(TOPS.constituents.pt)) and ak.max(tokens) < tokenizer.codebook_size
        low, high = np.percentile(jet_mass(again) - jet_mass(TOPS), [16, 84])
        width[name] = (high - low) / 2
    assert width["tokenizer-8192"] < 0.7 * width["tokenizer-512"] < 15


def test_backbone_makes_jets_like_the_sample():
    tokenizer, model = load_tokenizer("omnijet/tokenizer-8192"), GenerativeModel.from_pretrained("omnijet/backbone")
    jets = tokenizer.decode(model.generate(200, seed=1, progress=False))
    real = sample_jets(["ZJetsToNuNu", "TTBar"], max_jets=500)
    assert abs(np.median(ak.num(jets.pt)) - np.median(ak.num(real.constituents.pt))) < 10
    assert abs(np.median(jet_mass(jets)) - np.median(jet_mass(real))) < 40


@pytest.mark.skipif(not (SHELF / "backbone-conditional").is_dir(), reason="no class-conditional backbone ships")
def test_conditional_backbone_makes_what_is_asked_for():
    tokenizer, model = load_tokenizer("omnijet/tokenizer-8192"), GenerativeModel.from_pretrained("omnijet/backbone-conditional")
    mass = {name: np.median(jet_mass(tokenizer.decode(model.generate(100, seed=1, jet_class=name, progress=False)))) for name in ("ZJetsToNuNu", "WToQQ", "TTBar")}
    assert mass["ZJetsToNuNu"] < mass["WToQQ"] < mass["TTBar"]


def test_top_tagger():
    tokenizer, tagger = load_tokenizer("omnijet/tokenizer-8192"), JetClassifier.from_pretrained("omnijet/top-tagger")
    jets = sample_jets(["ZJetsToNuNu", "TTBar"], max_jets=300)
    found = tagger.evaluate(tokenizer.encode(jets), np.asarray(jets.label))
    assert found["accuracy"] > 0.8 and tagger.classes == [CLASSES.index("ZJetsToNuNu"), CLASSES.index("TTBar")]


def test_readme_lines_offline(tmp_path):
    block = re.search(r"## From Python.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    assert "omnijet/tokenizer-8192" in block and "omnijet/backbone" in block
    check = "\nassert len(tokens) == len(again) == len(jets) and len(generated) == 1000, (len(jets), len(generated))\n"
    run = subprocess.run([sys.executable, "-c", OFFLINE + block + check], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
