"""Odd input that users of neighbouring projects stumbled over, a case a kind; the right value beside each."""
import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch

import omnijet
from omnijet.data import Ragged, read_jets, read_tokens, sample_jets, to_columns, to_jets, write_tokens
from omnijet.files import OmnijetError, origin, write_columns
from omnijet.generation import generate_files
from omnijet.gpt import GenerativeModel
from omnijet.models import JETS, jet_features
from omnijet.simulation import simulate, simulate_files
from omnijet.statistics import auc
from omnijet.training import TrainingConfig, train
from omnijet.transfer import JetClassifier, check_unseen, finetune_files
from omnijet.vqvae import VQVAE, BinnedTokenizer, tokenize_files

CODES = Ragged(np.zeros(50, int), np.arange(11) * 5)


def model():
    return GenerativeModel(16, 16, 1, 2)


def command(*words, cwd=None, env=()):
    "The command line: (exit status, output)."
    done = subprocess.run([sys.executable, "-c", "from omnijet.run import main; import sys; sys.exit(main())", *map(str, words)], cwd=cwd, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **dict(env)}, capture_output=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def columns(n=3, label="TTBar"):
    return to_columns(sample_jets(label, n))


# an output is an input

def test_tokens_do_not_overwrite_the_jets(tmp_path):
    write_columns(columns(), tmp_path / "TTBar.parquet")
    before = (tmp_path / "TTBar.parquet").read_bytes()
    with pytest.raises(OmnijetError, match="TTBar.parquet"):
        tokenize_files(BinnedTokenizer(), tmp_path, tmp_path, progress=False)
    BinnedTokenizer().save_pretrained(tmp_path / "bins")
    status, said = command("tokenize", "--tokenizer", tmp_path / "bins", "--data", tmp_path, "--out", tmp_path)
    assert status and "TTBar.parquet" in said and "Traceback" not in said
    assert (tmp_path / "TTBar.parquet").read_bytes() == before


def test_tokens_do_not_overwrite_what_a_user_made(tmp_path):
    write_columns(columns(), tmp_path / "jets" / "TTBar.parquet")
    write_columns(columns(2), tmp_path / "tokens" / "TTBar.parquet")  # not tokens
    with pytest.raises(OmnijetError, match="TTBar.parquet"):
        tokenize_files(BinnedTokenizer(), tmp_path / "jets", tmp_path / "tokens", progress=False)
    assert len(read_jets(tmp_path / "tokens")) == 2


def test_simulated_and_generated_jets_do_not_overwrite_what_a_user_made(tmp_path):
    write_columns(columns(2), tmp_path / "a" / "TTBar_00000.parquet")
    write_columns(columns(2), tmp_path / "b" / "generated_00000.parquet")
    with pytest.raises(OmnijetError, match="TTBar_00000.parquet"):
        simulate_files(tmp_path / "a", 1, "TTBar", workers=1, progress=False)
    with pytest.raises(OmnijetError, match="generated_00000.parquet"):
        generate_files(model(), tmp_path / "b", 2, progress=False, overwrite=True)
    assert len(read_jets(tmp_path / "a")) == len(read_jets(tmp_path / "b")) == 2


# settings that JSON cannot write

@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, lambda x: np.array(x, np.float32), lambda x: torch.tensor(x)])
def test_a_numpy_setting_of_bins_is_kept(tmp_path, kind):
    jets = sample_jets("TTBar", 5)
    shift = kind(1.25)
    tokenizer = BinnedTokenizer.fit(jets, features=jet_features(shift))
    tokenizer.save_pretrained(tmp_path / "b")
    again = BinnedTokenizer.from_pretrained(tmp_path / "b")
    assert again.features == jet_features(1.25)
    tokens = tokenizer.encode(jets)
    assert ak.array_equal(again.decode(tokens), tokenizer.decode(tokens))


@pytest.mark.parametrize("make", [
    lambda n, x: VQVAE(n(16), width=n(8), blocks=n(1), heads=n(2), latent=n(4), beta=x(0.5), alpha=x(5), pt_power=x(0.5), features=jet_features(x(1.25))),
    lambda n, x: VQVAE(n(16), conditional=np.bool_(False), width=n(8), blocks=n(2), dropout=x(0)),
    lambda n, x: GenerativeModel(n(16), n(16), n(1), n(2), classes=n(10)),
    lambda n, x: BinnedTokenizer(bins=np.array([n(4), n(5), n(6)]), edges=np.array([[-3, 5], [-2, 2], [-2, 2]], np.float32), features=jet_features(1.8, x(2))),
    lambda n, x: JetClassifier(GenerativeModel(n(16), n(16), n(1), n(2)).backbone, classes=np.array([0, 8]), codebook_size=n(16)),
], ids=["VQVAE", "unconditional", "GenerativeModel", "BinnedTokenizer", "JetClassifier"])
@pytest.mark.parametrize("n", [np.int64, np.uint8, lambda x: np.array(x)], ids=["int64", "uint8", "array"])
def test_numpy_settings_of_every_model_are_kept(tmp_path, make, n):
    first = make(n, np.float32)
    first.save_pretrained(tmp_path / "m")
    again = type(first).from_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text()) is not None
    for name in ("codebook_size", "pt_power", "alpha", "features", "classes", "bins", "edges"):
        if hasattr(first, name):
            assert np.all(np.equal(getattr(first, name), getattr(again, name))) or getattr(first, name) == getattr(again, name), name
    if isinstance(first, torch.nn.Module):
        assert repr(first) == repr(again)
        assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_setting_that_cannot_be_kept_is_an_error():
    with pytest.raises(OmnijetError, match="shifts"):
        BinnedTokenizer(features={**asdict(JETS), "shifts": (1 + 2j, 0, 0)})


# training

def test_numpy_numbers_are_numbers_to_a_training(tmp_path):
    for seed in np.arange(1, 2):
        config = TrainingConfig(epochs=np.int64(1), batch_size=np.array(5), lr=np.float32(1e-3), seed=seed)
        assert len(train(model(), CODES, CODES, config, out=tmp_path / "o", progress=False)) == 1
    assert isinstance(config.seed, int) and isinstance(config.lr, float)


@pytest.mark.parametrize("wrong", [dict(epochs=0), dict(epochs=1.5), dict(batch_size=-1), dict(batch_size=True), dict(lr=float("nan")), dict(lr=-1),
                                   dict(lr="fast"), dict(patience=0), dict(warmup=2), dict(grad_clip=0), dict(seed=-1), dict(seed=2**63), dict(variants=0),
                                   dict(weight_decay=float("inf")), dict(schedule="zigzag"), dict(optimizer="lbfgs"), dict(precision="8-bit")])
def test_settings_out_of_range_name_themselves(wrong):
    with pytest.raises(OmnijetError, match=next(iter(wrong))):
        TrainingConfig(**wrong)


def test_what_can_be_monitored_is_said_before_training():
    steps = []

    class Counting(GenerativeModel):
        def loss(self, batch):
            steps.append(self.training)
            return super().loss(batch)

    with pytest.raises(OmnijetError, match="acuracy.*loss"):
        train(Counting(16, 16, 1, 2), CODES, CODES, TrainingConfig(epochs=10, patience=2, monitor="acuracy"), progress=False)
    assert True not in steps
    with pytest.raises(OmnijetError, match="patience"):
        train(model(), CODES, None, TrainingConfig(epochs=10, patience=2), progress=False)


def test_a_class_with_too_few_jets_is_named_before_training(tmp_path):
    write_columns(columns(60, "ZJetsToNuNu"), tmp_path / "ZJetsToNuNu.parquet")
    write_columns(columns(4, "TTBar"), tmp_path / "TTBar.parquet")
    grid = BinnedTokenizer(bins=(4, 4, 4))
    grid.save_pretrained(tmp_path / "bins")
    GenerativeModel(64, 16, 1, 2).save_pretrained(tmp_path / "backbone")
    with pytest.raises(OmnijetError, match="t → bqq′|TTBar") as error:
        finetune_files(tmp_path / "backbone", tmp_path / "bins", tmp_path / "*.parquet", tmp_path / "out", epochs=3, progress=False)
    assert "4" in str(error.value) and not (tmp_path / "out").exists()


# files

def test_linked_folders_are_read(tmp_path):
    for i, folder in enumerate(("near", "far")):
        write_columns(columns(), tmp_path / folder / f"TTBar_00{i}.parquet")
    (tmp_path / "near" / "more").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "round").symlink_to(tmp_path / "near")
    assert len(read_jets(tmp_path / "near")) == 6


@pytest.mark.parametrize("dtype", [int, np.int8, bool, float, np.uint64])
def test_auc_takes_labels_of_any_type(dtype):
    assert auc(np.array([0.1, 0.9]), np.array([0, 1], dtype)) == 1.0
    assert auc([0.1, 0.9], [1, 0]) == 0.0


@pytest.mark.parametrize("labels", [[0, 2], [0.5, 1], ["a", "b"], [0, float("nan")]])
def test_auc_refuses_other_labels(labels):
    with pytest.raises(OmnijetError, match="0 or 1"):
        auc(np.array([0.1, 0.9]), np.array(labels))


def test_a_label_that_is_not_a_number_is_not_set():
    jets = columns(3)
    jets = ak.with_field(jets, np.array([1, np.nan, 1.0]), "label_Tbqq")
    with pytest.raises(OmnijetError, match="jet 1 has 0 labels set"):
        to_jets(jets, "x.root")


def test_a_root_file_in_a_folder_with_colons(tmp_path):
    (tmp_path / "a").write_text("mine")
    path = tmp_path / "a::b" / "TTBar_000.root"
    write_columns(columns(), path)
    assert (tmp_path / "a").read_text() == "mine" and len(read_jets(path)) == 3


def test_provenance_is_not_that_of_another_repository(tmp_path):
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "theirs").write_text("")
    subprocess.run([*git, "add", "theirs"], check=True)
    subprocess.run([*git, "commit", "-qm", "theirs"], check=True)
    site = tmp_path / "venv" / "site-packages"
    site.mkdir(parents=True)
    (site / "omnijet").symlink_to(Path(omnijet.__file__).parent)
    import shutil

    (site / "omnijet").unlink()
    shutil.copytree(Path(omnijet.__file__).parent, site / "omnijet", ignore=shutil.ignore_patterns("pretrained"))
    done = subprocess.run([sys.executable, "-c", "from omnijet.files import origin; print(origin()['git_commit'])"], cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert done.stdout.strip() == "None", done.stdout + done.stderr


def test_the_id_of_a_jet_tells_folders_and_seeds_apart(tmp_path):
    tokens = {}
    for seed in (1, 2):
        simulate_files(tmp_path / str(seed), 20, "TTBar", seed=seed, workers=1, progress=False)
        tokenize_files(BinnedTokenizer(), tmp_path / str(seed), tmp_path / f"tokens{seed}", progress=False)
        tokens[seed] = Ragged.from_tokens(read_tokens(tmp_path / f"tokens{seed}"))
    check_unseen(tokens[1], {"training": tokens[2]})
    with pytest.raises(OmnijetError, match="20"):
        check_unseen(tokens[1], {"training": tokens[1]})


@pytest.mark.parametrize("n", [-1, 0.5, "many", None, True, np.nan])
def test_a_number_of_jets_that_cannot_be(n, tmp_path):
    with pytest.raises(OmnijetError, match="n is"):
        simulate("TTBar", n)
    with pytest.raises(OmnijetError, match="n is"):
        simulate_files(tmp_path, n, "TTBar", workers=1, progress=False)
    with pytest.raises(OmnijetError, match="n is"):
        model().eval().generate(n, progress=False)


@pytest.mark.parametrize("tokens", [[[-1, 3], [2]], [[2**31 + 5]], [[0.5]], [["a"]]])
def test_tokens_that_cannot_be_are_not_written(tokens, tmp_path):
    with pytest.raises(OmnijetError, match="jet 0"):
        write_tokens(ak.Array(tokens), tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/tmp/x", ""])
def test_the_name_of_a_run_is_not_a_path(tmp_path, name):
    (tmp_path / "home" / "runs").mkdir(parents=True)
    (tmp_path / "home" / "tokenizers").mkdir()
    (tmp_path / "home" / "tokenizers" / "mine").write_text("")
    status, said = command("run", "--runs", tmp_path / "home" / "runs", "--name", name, "--only", "00d_statistics")
    assert status and "Traceback" not in said and (tmp_path / "home" / "tokenizers" / "mine").exists()


# the wrong error, or too much memory

@pytest.mark.parametrize("name", ["jet_pt", "jet_eta", "jet_phi", "label_Tbqq"])
def test_a_column_of_lists_where_one_value_belongs(name):
    jets = columns(250)
    jets = ak.with_field(jets, ak.unflatten(jets[name], np.ones(250, int)), name)
    with pytest.raises(OmnijetError, match=f"{name} has lists, expected one value a jet"):
        to_jets(jets, "x.parquet")


def test_padded_momenta_are_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    jets = sample_jets("TTBar", 20)
    table = {}
    for name in ("part_px", "part_py", "part_pz"):
        padded = ak.to_numpy(ak.fill_none(ak.pad_none(to_columns(jets)[name], 128), 0)).astype(np.float32)
        table[name] = pa.FixedSizeListArray.from_arrays(pa.array(padded.ravel()), 128)
    pq.write_table(pa.table({**table, "label_Tbqq": np.ones(20, bool)}), tmp_path / "padded.parquet")
    again = read_jets(tmp_path / "padded.parquet")
    assert ak.all(ak.num(again.constituents) == ak.num(jets.constituents)) and ak.all(again.constituents.pt > 0)


@pytest.mark.parametrize("wrong", [dict(temperature=float("inf")), dict(temperature=float("nan")), dict(temperature=-1), dict(seed=2**63), dict(seed=1.5), dict(seed=-1),
                                   dict(top_k=0), dict(top_k=2.5), dict(top_p=0), dict(top_p=float("nan")), dict(batch_size=0), dict(max_constituents=0),
                                   dict(temperature="hot"), dict(first=-1), dict(max_constituents=1e9)])
def test_options_of_sampling_out_of_range_name_themselves(wrong):
    with pytest.raises(OmnijetError, match=next(iter(wrong))):
        model().eval().generate(3, progress=False, **wrong)


def test_options_of_sampling_may_be_numpy_numbers():
    m = model().eval()
    given = m.generate(np.int64(3), seed=np.uint8(2), temperature=np.float32(0.5), top_k=np.int16(4), batch_size=np.array(2), progress=False)
    assert ak.array_equal(given, m.generate(3, seed=2, temperature=0.5, top_k=4, progress=False))


def test_momenta_too_small_for_float32_are_cut():
    zero = [[0.0, 0.0]]
    jets = to_jets(ak.Array({"part_px": [[300.0, 1e-50]], "part_py": zero, "part_pz": zero, "label_Tbqq": [True]}))
    assert ak.num(jets.constituents).to_list() == [1]
    BinnedTokenizer().encode(jets)


def test_a_folder_that_is_a_dataset_is_read(tmp_path):
    write_columns(columns(), tmp_path / "spark" / "TTBar.parquet" / "part-00000.parquet")
    (tmp_path / "spark" / "TTBar.parquet" / "_SUCCESS").write_text("")
    assert len(read_jets(tmp_path / "spark")) == len(read_jets(tmp_path / "spark" / "TTBar.parquet")) == 3


def test_an_empty_shard_is_skipped_with_a_word(tmp_path):
    import pyarrow.parquet as pq

    write_columns(columns(), tmp_path / "jets" / "TTBar_000.parquet")
    pq.write_table(pq.read_table(tmp_path / "jets" / "TTBar_000.parquet")[:0].replace_schema_metadata({}), tmp_path / "jets" / "TTBar_001.parquet")
    with pytest.warns(UserWarning, match="TTBar_001.parquet"):
        tokenize_files(BinnedTokenizer(), tmp_path / "jets", tmp_path / "tokens", progress=False)
    assert len(read_tokens(tmp_path / "tokens")) == 3


@pytest.mark.parametrize("options", [dict(map_location="cpu"), dict(revision="main"), dict(local_files_only=True), dict(cache_dir="x"), dict(token=False), dict(force_download=False)])
def test_options_of_the_hub(tmp_path, options):
    made = {"v": VQVAE(16, width=8, blocks=1, heads=2), "b": BinnedTokenizer(), "g": model(), "c": JetClassifier(model().backbone)}
    for name, one in made.items():
        one.save_pretrained(tmp_path / name)
        assert type(type(one).from_pretrained(tmp_path / name, **options)) is type(one)


def test_a_style_without_latex():
    import matplotlib.pyplot as plt

    from omnijet.observables import style

    with plt.rc_context({"text.usetex": True}):
        style()
        assert plt.rcParams["text.usetex"] is False


def test_a_script_without_a_main_guard(tmp_path):
    (tmp_path / "script.py").write_text("from omnijet.simulation import simulate_files\nprint(len(simulate_files('out', 2, 'TTBar', shard_size=1, workers=2, progress=False)))\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                          capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert (done.returncode == 0 and done.stdout.strip() == "2") or ("__main__" in said and len(said.strip().splitlines()) == 1), said[-2000:]


def test_progress_bars_only_where_somebody_looks(tmp_path):
    status, said = command("simulate", "--n", 3, "--classes", "TTBar", "--out", tmp_path / "jets", "--shard-size", 1)
    assert status == 0 and "\r" not in said and len(said.splitlines()) < 10, said


def test_errors_of_the_command_line_are_one_line_and_whole_on_request(tmp_path):
    status, said = command("tokenize", "--tokenizer", tmp_path / "nothing", "--data", tmp_path, "--out", tmp_path / "out")
    assert status and len(said.strip().splitlines()) == 1 and "nothing" in said
    status, said = command("tokenize", "--traceback", "--tokenizer", tmp_path / "nothing", "--data", tmp_path, "--out", tmp_path / "out")
    assert status and "Traceback" in said


def test_a_warning_is_not_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        origin()
