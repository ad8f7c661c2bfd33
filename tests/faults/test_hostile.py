"""Files that would run a command when loaded: nothing runs, and the error names what was refused."""
import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import tasks
import torch
from faults import ROOT

import omnijet
from omnijet.files import OmnijetError, read_checkpoint, read_weights
from omnijet.gpt import Backbone, GenerativeModel
from omnijet.models import read_gabbro
from omnijet.run import read_preset
from omnijet.transfer import JetClassifier
from omnijet.vqvae import BinnedTokenizer, VQVAE, load_tokenizer


class Command:
    "A pickle of it runs `touch canary`."
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def content(canary):
    return {"hyper_parameters": {"model_type": "MLP", "model_kwargs": Command(canary)}, "state_dict": {}, "omnijet": {"same": "", "history": []}}


FORMS = {
    "zip": lambda canary, path: torch.save(content(canary), path),
    "legacy": lambda canary, path: torch.save(content(canary), path, _use_new_zipfile_serialization=False),
    "pickle": lambda canary, path: path.write_bytes(pickle.dumps(content(canary), protocol=2)),
    "pickle 5": lambda canary, path: path.write_bytes(pickle.dumps(content(canary), protocol=5)),
}


def in_model(kind, load):
    "A loader of a model's folder whose model.safetensors is the hostile file."
    def loader(path, folder):
        if kind == "classifier":
            JetClassifier(Backbone(18, width=8, blocks=1, heads=2)).save_pretrained(folder / "model")
        else:
            {"tokenizer": lambda: VQVAE(16, width=8, blocks=1, heads=2), "backbone": lambda: GenerativeModel(16, 8, 1, 2)}[kind]().save_pretrained(folder / "model")
        shutil.copy(path, folder / "model" / "model.safetensors")
        return load(folder / "model")
    return loader


def resume(name):
    "A training that finds the hostile file in its folder."
    def loader(path, folder):
        if name == "best.safetensors":
            tasks.backbone(folder / "run", 1)
        (folder / "run" / "training").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "run" / "training" / name)
        return tasks.backbone(folder / "run", 1)
    return loader


LOADERS = {
    "read_checkpoint": lambda path, folder: read_checkpoint(path),
    "read_weights": lambda path, folder: read_weights(path),
    "read_gabbro": lambda path, folder: read_gabbro(path),
    "VQVAE.from_gabbro": lambda path, folder: VQVAE.from_gabbro(path),
    "GenerativeModel.from_gabbro": lambda path, folder: GenerativeModel.from_gabbro(path),
    "VQVAE.from_pretrained": in_model("tokenizer", VQVAE.from_pretrained),
    "load_tokenizer": in_model("tokenizer", load_tokenizer),
    "GenerativeModel.from_pretrained": in_model("backbone", GenerativeModel.from_pretrained),
    "JetClassifier.from_pretrained": in_model("classifier", JetClassifier.from_pretrained),
    "JetClassifier.from_generative": in_model("backbone", JetClassifier.from_generative),
    "resume, last.ckpt": resume("last.ckpt"),
    "resume, best.safetensors": resume("best.safetensors"),
}


def test_the_canary_sings(tmp_path):
    "Loaded as Python would, the files do run their command: what follows is no empty proof."
    FORMS["pickle"](tmp_path / "canary", tmp_path / "x.pt")
    pickle.loads((tmp_path / "x.pt").read_bytes())
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loader", [name for name in LOADERS if not name.startswith("resume")])
def test_nothing_of_a_checkpoint_runs(tmp_path, loader, form, suffix):
    path = tmp_path / f"hostile{suffix}"
    FORMS[form](tmp_path / "canary", path)
    with pytest.raises(OmnijetError, match="refused to load (posix|nt).system") as error:
        LOADERS[loader](path, tmp_path)
    assert not (tmp_path / "canary").exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("loader", [name for name in LOADERS if name.startswith("resume")])
def test_nothing_runs_when_a_training_goes_on(tmp_path, loader, form):
    FORMS[form](tmp_path / "canary", tmp_path / "hostile")
    with pytest.raises(OmnijetError, match="refused to load (posix|nt).system"):
        LOADERS[loader](tmp_path / "hostile", tmp_path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("field, value", [("width", 10**9), ("codebook_size", 10**12), ("blocks", 10**9), ("width", "wide"), ("heads", 0), ("colour", 1), ("blocks", None)])
@pytest.mark.parametrize("make", [lambda: VQVAE(16, width=8, blocks=1, heads=2), lambda: GenerativeModel(16, 8, 1, 2)])
def test_a_configuration_alone_reserves_no_memory(tmp_path, make, field, value):
    model = make()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(OmnijetError):
        type(model).from_pretrained(tmp_path)


def test_deeply_nested_configurations(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    for load in (VQVAE.from_pretrained, BinnedTokenizer.from_pretrained, GenerativeModel.from_pretrained, JetClassifier.from_pretrained, load_tokenizer):
        with pytest.raises(OmnijetError, match="not the configuration"):
            load(tmp_path)


@pytest.mark.parametrize("text", ["seed: !!python/object/apply:os.system ['touch canary']", "seed: !!python/name:os.system", "seed: 2026-01-01", "seed: !!binary aGk=",
                                  "a: &a [1, 1]\nb: &b [*a, *a]\nseed: [*b, *b]", "seed: " + "[" * 3000, "? [1, 2]\n: 3", "\x00", "seed: !!set {a, b}"])
def test_presets_hold_plain_values(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(OmnijetError, match="mine.yaml") as error:
        read_preset("mine.yaml")
    assert not (tmp_path / "canary").exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["'; import os; os.system('touch canary') #", '"\n__import__("os")', "\\", "'''", ["a\n'b"], {"k'": 'v"\n'}])
def test_parameters_reach_a_chapter_as_values(value):
    from papermill.translators import PythonTranslator

    statements = ast.parse(PythonTranslator.codify({"preset": value}, "Parameters")).body
    assert [type(s) for s in statements] == [ast.Assign] and ast.literal_eval(statements[0].value) == value


def parsed(path):
    "A module, or the code cells of a chapter but for their magics."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        lines = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code").splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
    return ast.parse(text)


def calls(path):
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", sorted([*(ROOT / "omnijet").glob("*.py"), *(ROOT / "nbs").glob("*.ipynb")]), ids=lambda path: path.name)
def test_the_package_loads_nothing_that_can_run(path):
    tree = parsed(path)
    modules = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert not modules & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for call in calls(path):
        name, words = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert name not in ("eval", "exec", "os.system", "os.popen"), name
        assert not name.endswith(("yaml.load", "unsafe_load", "full_load", "load_all", "read_pickle")), name
        assert "allow_pickle" not in words and words.get("shell") != "True"
        if name.endswith("torch.load"):
            assert words.get("weights_only") == "True", ast.unparse(call)


def test_the_check_above_looks_at_the_package():
    names = {ast.unparse(call.func) for path in Path(omnijet.__file__).parent.glob("*.py") for call in calls(path)}
    assert {"torch.load", "yaml.parse"} <= names
