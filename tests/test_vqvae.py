"""Tokenizers: golden numbers of the reference implementations, padding, dead codes, saving, bad input."""
import json
import os
import shutil
from functools import partial

import awkward as ak
import numpy as np
import pytest
import torch

from omnijet import vqvae
from omnijet.files import OmnijetError, read_metadata, write_columns
from omnijet.data import Ragged, read_jets, read_tokens, sample_jets, to_columns, write_tokens
from omnijet.gpt import load_tokens
from omnijet.models import Features, PretrainedMixin, find_pretrained, jet_features, read_gabbro
from omnijet.training import TrainingConfig, train
from omnijet.vqvae import (
    MIRRORS, VQVAE, BinnedTokenizer, VectorQuant, kmeans, load_tokenizer, mass_resolution, nearest, new_tokenizer, tokenize_files,
)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(1)


def some_jets(lengths, seed=1):
    "Constituents that look like those of jets: falling spectrum, inside the cone."
    rng, n = np.random.default_rng(seed), sum(lengths)
    jets = ak.zip({"pt": np.float32(0.5 + rng.exponential(20, n)), "eta_rel": np.float32(rng.uniform(-0.7, 0.7, n)),
                   "phi_rel": np.float32(rng.uniform(-0.7, 0.7, n))})
    jets = ak.unflatten(jets, lengths)
    return jets[ak.argsort(jets.pt, ascending=False)]


def scrambled(**settings):
    "A tokenizer far from its initialisation, where blocks are the identity."
    model = VQVAE(**{"codebook_size": 64, "width": 32, "blocks": 2, "heads": 4, **settings})
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


# -- the reference implementations

def test_quantizer_is_vqtorchs(golden):
    g = np.load(golden / "vqtorch.npz")
    quantizer = VectorQuant(int(g["feature_size"]), int(g["num_codes"]), beta=float(g["beta"]), sync_nu=float(g["sync_nu"]),
                            affine_lr=float(g["affine_lr"]), replace_freq=0, kmeans_init=False)
    quantizer.load_state_dict({"codebook.weight": torch.tensor(g["codebook"]), "affine_transform.scale": torch.tensor(g["affine_scale"]),
                               "affine_transform.bias": torch.tensor(g["affine_bias"])})
    z = torch.tensor(g["z"], requires_grad=True)
    z_q, out = quantizer(z)
    ((z_q * torch.tensor(g["weight"])).sum() + 10 * out["loss"]).backward()

    def equal(ours, theirs):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())

    assert np.array_equal(out["q"].numpy().reshape(g["codes"].shape), g["codes"])
    equal(z_q, g["z_q"])
    equal(out["loss"], g["vq_loss"])
    equal(z.grad, g["grad_z"])
    equal(quantizer.codebook.weight.grad, g["grad_codebook"])
    equal(quantizer.affine_transform.scale.grad, g["grad_affine_scale"])
    equal(quantizer.affine_transform.bias.grad, g["grad_affine_bias"])
    equal(quantizer.get_codebook(), g["effective_codebook"])


@pytest.mark.parametrize("kind", ["normformer", "mlp"])
def test_published_checkpoints(golden, kind):
    model = VQVAE.from_gabbro(golden / f"gabbro_tokenizer_{kind}.ckpt")
    g = np.load(golden / f"gabbro_tokenizer_{kind}_io.npz")
    mask = torch.tensor(g["mask"]) > 0
    assert model.conditional == (kind == "normformer")
    with torch.no_grad():
        reconstruction, out = model(torch.tensor(g["x"]), mask)
    assert np.array_equal(out["q"].numpy(), g["codes"][mask.numpy()])
    np.testing.assert_allclose(reconstruction[mask].numpy(), g["reconstruction"][mask.numpy()], rtol=1e-4, atol=1e-4)


def test_state_dict_keys_are_vqtorchs(golden):
    state = read_gabbro(golden / "gabbro_tokenizer_normformer.ckpt")[1]
    theirs = {key.removeprefix("model.vqlayer.") for key in state if "vqlayer" in key}
    assert set(VectorQuant(4, 64, kmeans_init=False).state_dict()) == theirs
    assert set(VectorQuant(4, 64).state_dict()) == theirs | {"data_initialized"}


def test_one_step_of_the_original():
    original = pytest.importorskip("vqtorch", reason="vqtorch is not installed").nn.VectorQuant
    settings = dict(feature_size=4, num_codes=64, beta=0.9, sync_nu=1.0, affine_lr=2.0, replace_freq=0, kmeans_init=False)
    theirs, ours = original(**settings, dim=-1), VectorQuant(**settings)
    ours.load_state_dict(theirs.state_dict())
    z, weight, results = torch.randn(3, 17, 4), torch.randn(3, 17, 4), []
    for quantizer in (theirs, ours):
        x = z.clone().requires_grad_()
        optimizer = torch.optim.AdamW(quantizer.parameters(), 1e-3)
        z_q, out = quantizer(x)
        ((z_q * weight).sum() + 10 * out["loss"]).backward()
        optimizer.step()
        results.append([z_q, out["q"].flatten(), out["loss"], x.grad, *quantizer.parameters()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_both_searches_find_the_nearest_code():
    for num_codes, rows in ((512, 500), (4096, 500), (4096, 2000)):                  # the last by the tree
        for spread in (0.01, 1.0, 10.0):
            z, codebook = spread * torch.randn(rows, 4) + 1, torch.randn(num_codes, 4)
            distance = torch.cdist(z.double(), codebook.double())
            found = distance.gather(1, nearest(z, codebook)[:, None])[:, 0]
            torch.testing.assert_close(found, distance.min(1).values, rtol=1e-5, atol=1e-6)


# -- padding

@pytest.mark.parametrize("conditional", [True, False])
def test_padding_changes_nothing(conditional):
    model = scrambled(conditional=conditional, codebook_size=2048)
    jets = some_jets([1, 7, 40, 128, 23, 23, 90])
    together = model.encode(jets)
    decoded = model.decode(together)
    for i in range(len(jets)):
        alone = model.encode(jets[i:i + 1])
        assert ak.all(alone[0] == together[i])
        again = model.decode(alone)[0]
        for name in again.fields:
            np.testing.assert_allclose(again[name], decoded[name][i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("codebook_size", [512, 2048])                     # both searches
def test_alone_padded_to_128_and_beside_longer_jets(conditional, codebook_size):
    from omnijet.data import Ragged

    model = scrambled(conditional=conditional, codebook_size=codebook_size, kmeans_init=False)
    sequences = Ragged.from_jets(ak.zip({"constituents": some_jets([128, 9, 40, 128])}, depth_limit=1))

    def look(index, length=None):
        "Loss, and codes and reconstruction of each jet; padding holds numbers that would be seen."
        batch = {key: torch.from_numpy(value) for key, value in sequences.pad(index, length).items()}
        batch["x"][~batch["mask"]] = 77.0
        with torch.no_grad():
            reconstruction, quantized = model(model.features.scale(batch["x"]), batch["mask"])
            lengths = batch["mask"].sum(1).tolist()
            return model.loss(batch)["loss"], quantized["q"].split(lengths), reconstruction[batch["mask"]].split(lengths)

    alone = [look([i]) for i in range(4)]
    for i in range(4):
        loss, codes, reconstruction = look([i], 128)
        torch.testing.assert_close(loss, alone[i][0], rtol=1e-5, atol=0)
        assert torch.equal(codes[0], alone[i][1][0])
        torch.testing.assert_close(reconstruction[0], alone[i][2][0], rtol=1e-5, atol=1e-5)
    loss, codes, reconstruction = look(range(4))
    weighted = sum(n * one[0] for n, one in zip(sequences.lengths, alone)) / sequences.lengths.sum()
    torch.testing.assert_close(loss, weighted.float(), rtol=1e-5, atol=0)
    for i in range(4):
        assert torch.equal(codes[i], alone[i][1][0])
        torch.testing.assert_close(reconstruction[i], alone[i][2][0], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_training_is_the_same():
    "Dead codes replaced on the way, as in presets with `tokenizer_compile`."
    data = Ragged.from_jets(sample_jets(["ZJetsToNuNu", "TTBar"])[::8])
    histories = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model = VQVAE(codebook_size=64, width=16, blocks=1, heads=2, replace_freq=2)
        histories.append(train(model, data, data[:50], TrainingConfig(epochs=2, batch_size=32, compile=compiled), progress=False))
    for plain, compiled in zip(*histories):
        assert plain["train_codes_replaced"] == compiled["train_codes_replaced"] > 0
        assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4) and compiled["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_loss_ignores_padding(training):
    sequences = Ragged.from_jets(ak.zip({"constituents": some_jets([7, 40, 23])}, depth_limit=1))
    results = []
    for length in (None, 128):
        torch.manual_seed(1)
        model = scrambled(kmeans_init=False, replace_freq=2).train(training)
        batch = {key: torch.from_numpy(value) for key, value in sequences.pad(length=length).items()}
        batch["x"][~batch["mask"]] = 77.0
        for _ in range(3):                                        # with replacements on the way
            loss = model.loss(batch)["loss"]
        loss.backward()
        results.append([loss.detach(), model.encoder.project_in.weight.grad, model.quantizer.codebook.weight])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# -- dead codes

def test_dead_codes_land_on_real_encoder_outputs():
    quantizer = VectorQuant(4, 512, replace_freq=3, kmeans_init=False)
    quantizer.affine_transform.scale.data.fill_(0.4)
    quantizer.affine_transform.bias.data.fill_(-0.3)
    mask = torch.rand(40, 20) < 0.5
    z = torch.where(mask[..., None], torch.randn(40, 20, 4) + 3, 1e4)      # padding would be seen at once
    for _ in range(3):
        before = quantizer.get_codebook().detach()
        _, out = quantizer(z, mask)
    moved = (quantizer.get_codebook() - before).abs().sum(1) > 0
    assert moved.sum() == out["replaced"] > 300
    assert torch.cdist(quantizer.get_codebook()[moved].double(), z[mask].double()).min(1).values.max() < 1e-4
    assert not moved[out["q"]].any()                                       # those in use stay


def test_every_code_is_used_after_200_steps():
    quantizer = VectorQuant(4, 512, kmeans_init=False)
    optimizer = torch.optim.AdamW(quantizer.parameters(), 1e-3)
    hit = torch.zeros(512, dtype=torch.bool)
    for _ in range(200):
        z = torch.where(torch.rand(1000, 1) < 0.9, 0.05 * torch.randn(1000, 4), 3 * torch.randn(1000, 4))
        out = quantizer(z)[1]
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        hit[out["q"]] = True
    assert hit.all()


def test_evaluation_leaves_the_codebook_alone():
    model = scrambled(replace_freq=1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.encode(some_jets([10, 20]))
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_kmeans_start():
    quantizer = VectorQuant(4, 64)
    z = torch.randn(2000, 4) * 5 + 20
    loss = quantizer(z)[1]["loss"].item()
    assert quantizer.data_initialized and loss < 0.2 * z.var().item()
    assert quantizer.get_codebook().mean().item() == pytest.approx(20, abs=1)
    assert torch.isfinite(kmeans(torch.ones(10, 4), 64)).all()


def _one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)
    quantizer = VectorQuant(4, 256, replace_freq=2)
    for _ in range(6):
        quantizer(torch.randn(100 + 50 * rank, 4) + rank)
    torch.save(quantizer.codebook.weight, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_share_one_codebook(tmp_path):
    torch.multiprocessing.spawn(_one_of_two, args=(str(tmp_path),), nprocs=2)
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(a, b)


def test_broken_features_are_named():
    with pytest.raises(OmnijetError, match="4 components of the encoder's output are not finite"):
        VectorQuant(4, 2048)(torch.full((1, 4), torch.nan))


# -- training

def test_names_of_tokenizers():
    jets = some_jets([30] * 20)
    assert new_tokenizer("conditional-128", width=32, heads=4).codebook_size == 128
    assert not new_tokenizer("unconditional-64").conditional
    assert new_tokenizer("binned-7", jets).codebook_size == 343
    for name in ("conditional", "quantum-512", "conditional-x", "binned-0", "binned-²", None, 5):
        with pytest.raises(OmnijetError, match="expected conditional-K"):
            new_tokenizer(name, jets)


def test_a_tokenizer_learns():
    jets = ak.zip({"constituents": some_jets([10, 20, 30] * 60)}, depth_limit=1)
    model = new_tokenizer("conditional-256", width=16, blocks=1, heads=2)
    before = mass_resolution(model, jets, bootstrap=0)
    def validate(model):
        found = mass_resolution(model, jets, bootstrap=0)
        return {"mass": found["half_width"], "codes_used": found["codes_used"]}

    sequences, config = Ragged.from_jets(jets), TrainingConfig(epochs=8, batch_size=16, lr=5e-3, monitor="mass")
    history = train(model, sequences, sequences, config, on_epoch=validate, progress=False)
    after = mass_resolution(model, jets, bootstrap=0)
    best = min(history, key=lambda row: row["mass"])                            # its weights are those kept
    assert best["codes_used"] == after["codes_used"] and best["mass"] == after["half_width"] < history[0]["mass"]
    assert {"val_loss", "train_perplexity", "train_codes_used", "train_codes_replaced"} <= set(history[0])
    assert history[-1]["train_reconstruction"] < 0.3 * history[0]["train_reconstruction"]
    assert after["half_width"] < 0.5 * before["half_width"] and after["codes_used"] > 0.9


# -- files

@pytest.mark.parametrize("make", [lambda: scrambled(features=jet_features(1.5)), lambda: scrambled(conditional=False), lambda: BinnedTokenizer((5, 6, 7), ((-2, 4), (-1, 1), (-2, 2)))])
def test_save_and_load(make, tmp_path):
    tokenizer, jets = make(), some_jets([5, 60, 128])
    tokenizer.save_pretrained(tmp_path / "t")
    again = load_tokenizer(tmp_path / "t")
    tokens = tokenizer.encode(jets)
    assert type(again) is type(tokenizer) and ak.all(again.encode(jets) == tokens) and ak.max(tokens) < again.codebook_size
    assert ak.all(again.decode(tokens).pt == tokenizer.decode(tokens).pt)
    assert again.features == tokenizer.features


HITS = Features(("energy", "x", "y", "z"), ("MeV", "", "", ""), (-1, 3, 3, 7), (1, 0.9, 0.9, 0.4), ((0, None), (0, 7), (0, 7), (0, 15)), 200, ("shower", "hit"))


@pytest.mark.parametrize("make", [lambda: scrambled(features=HITS), lambda: BinnedTokenizer((4, 8, 8, 16), ((-5, 5), (-3, 3), (-3, 3), (-3, 3)), HITS)])
def test_any_features_are_tokens(make, tmp_path):
    "Nothing knows what the features mean: hits of a calorimeter go the way of jets, and messages speak of hits."
    hits = ak.Array([[{"energy": 5.0, "x": 3.0, "y": 4.0, "z": 7.0}, {"energy": 0.2, "x": 3.0, "y": 3.0, "z": 9.0}], [{"energy": 1.0, "x": 0.0, "y": 7.0, "z": 15.0}]])
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path / "t")
    again = load_tokenizer(tmp_path / "t")
    tokens = tokenizer.encode(hits)
    assert again.features == HITS and ak.all(again.encode(hits) == tokens) and again.decode(tokens).fields == list(HITS.names)
    for wrong, words in ((hits[:, :0], "shower 0 has 0 hits, expected 1 … 200"), (ak.concatenate([hits] * 201, axis=1), "shower 0 has 402 hits, expected 1 … 200"),
                         (ak.with_field(hits, -hits.energy, "energy"), r"shower 0, hit 0: energy = -5 MeV, x = 3, y = 4, z = 7, expected finite numbers and energy > 0 \(3 such\)"),
                         (some_jets([3]), "hits have no field energy, x, y, z")):
        with pytest.raises(OmnijetError, match=words) as error:
            tokenizer.encode(wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(OmnijetError, match="constituents have no field pt, eta_rel, phi_rel"):
        scrambled().encode(hits)


def test_a_folder_of_omnijet_0_1_names_two_numbers(tmp_path):
    tokenizer = scrambled(features=jet_features(1.5, 2.5))
    tokenizer.save_pretrained(tmp_path / "t")
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    assert config["features"]["shifts"] == [1.5, 0, 0]
    del config["features"]
    (tmp_path / "t" / "config.json").write_text(json.dumps(config | {"pt_shift": 1.5, "angle_factor": 2.5}))
    jets = some_jets([5])
    assert load_tokenizer(tmp_path / "t").features == tokenizer.features and ak.all(load_tokenizer(tmp_path / "t").encode(jets) == tokenizer.encode(jets))
    (tmp_path / "t" / "config.json").write_text(json.dumps(config | {"features": {"names": ["pt"]}}))
    with pytest.raises(OmnijetError, match="describes no model"):
        load_tokenizer(tmp_path / "t")


@pytest.mark.parametrize("make", [lambda: scrambled(features=jet_features(1.5)), lambda: BinnedTokenizer()])
def test_to_the_hub_and_back(make, tmp_path, monkeypatch):
    "The hub's side of it taken by a folder: what is pushed is what can be loaded by its name."
    import huggingface_hub

    class Hub:
        def __init__(self, *args, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **kwargs):
            shutil.copytree(folder_path, tmp_path / repo_id)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **kwargs: str(tmp_path / repo_id))
    tokenizer, jets = make(), some_jets([5, 60])
    tokenizer.push_to_hub("who/what")
    assert {"config.json", "README.md"} <= {path.name for path in (tmp_path / "who" / "what").iterdir()}
    assert ak.all(load_tokenizer("who/what").encode(jets) == tokenizer.encode(jets))


def test_shipped_models_and_unknown_names():
    with pytest.raises(OmnijetError, match="models that come with omnijet"):
        find_pretrained("omnijet/no-such-model")
    with pytest.raises(OmnijetError, match="models that come with omnijet"):
        find_pretrained("./no-such-folder")


def test_tokenize_files(tmp_path):
    n = 30
    jets = ak.zip({"constituents": some_jets([20] * n), "pt": np.full(n, 600.0), "eta": np.zeros(n), "phi": np.zeros(n),
                   "label": np.full(n, 8), "id": np.arange(n)}, depth_limit=1)
    for name in ("TTBar_000", "TTBar_001", "HToBB_000"):
        write_columns(to_columns(jets), tmp_path / "data" / f"{name}.parquet")
    model = scrambled()
    out = tmp_path / "tokens"
    out.mkdir()
    write_tokens(ak.Array([[1, 2]]), out / "TTBar.parquet", tokenizer="VQVAE", codebook_size=64, mirror=[])  # omnijet 0.1 wrote a file a process
    for other in ("other", "HToBB"):                                                  # not of omnijet
        (out / f"{other}.parquet").write_bytes(b"")
    files = tokenize_files(model, tmp_path / "data", out, progress=False)
    assert [f.name for f in files] == ["HToBB_000.parquet", "TTBar_000.parquet", "TTBar_001.parquet"]    # by class, then name
    assert not (out / "TTBar.parquet").exists() and (out / "other.parquet").exists() and (out / "HToBB.parquet").exists()
    for other in ("other", "HToBB"):
        (out / f"{other}.parquet").unlink()
    table, read = read_tokens(out), read_jets(tmp_path / "data")
    assert ak.all(table.tokens == model.encode(read)) and ak.all(table.id == read.id) and len(set(table.id.tolist())) == 3 * n
    assert set(table.label.tolist()) == {8}
    assert {"tokenizer": "VQVAE", "codebook_size": 64, "mirror": []}.items() <= read_metadata(files[0]).items()


def test_files_are_tokenized_batch_by_batch(tmp_path, monkeypatch):
    "No more jets than a batch are in memory, and the tokens are those of all of them together."
    jets = sample_jets(["TTBar"], 50)
    write_columns(to_columns(jets), tmp_path / "data" / "TTBar_000.parquet")
    model, seen, encode = scrambled(), [], VQVAE.encode
    monkeypatch.setattr(vqvae, "iter_jets", partial(vqvae.iter_jets, batch_size=20))
    monkeypatch.setattr(VQVAE, "encode", lambda self, jets, **settings: seen.append(len(jets)) or encode(self, jets, **settings))
    files = tokenize_files(model, tmp_path / "data", tmp_path / "tokens", progress=False)
    assert seen == [20, 20, 10] and ak.all(read_tokens(files).tokens == encode(model, jets))


def test_two_files_of_one_name(tmp_path):
    for folder in ("a", "b"):
        write_columns(to_columns(sample_jets(["TTBar"], 5)), tmp_path / "data" / folder / "TTBar_000.parquet")
    with pytest.raises(OmnijetError, match="b/TTBar_000.parquet: its tokens and those of .*a/TTBar_000.parquet would have one name"):
        tokenize_files(BinnedTokenizer(), tmp_path / "data", tmp_path / "tokens", progress=False)
    assert not (tmp_path / "tokens").exists()


def test_weights_of_constituents():
    "Codes start and are placed anew only where there is weight, and weights of 1 are no weights."
    z, mask = torch.randn(8, 50, 4), torch.ones(8, 50, dtype=torch.bool)
    counts = (torch.arange(50) < 10).float().expand(8, -1)                             # the first ten of each
    quantizer = VectorQuant(4, 16, replace_freq=1)
    for _ in range(5):
        quantizer(z, mask, counts)
    distance = torch.cdist(quantizer.get_codebook(), z[:, :10].reshape(-1, 4)).amin(1)
    every = torch.cdist(quantizer.get_codebook(), z[:, 10:].reshape(-1, 4)).amin(1)
    assert (distance < 1.5).all() and distance.mean() < every.mean()
    quantizer.eval()
    plain, ones, twice = (quantizer(z, mask, w)[1]["loss"] for w in (None, torch.ones(8, 50), 2 * torch.ones(8, 50)))
    assert torch.allclose(plain, ones) and torch.allclose(2 * plain, twice)


def test_loss_with_pt_power_is_that_of_each_jet():
    model = VQVAE(64, width=16, blocks=1, heads=2, pt_power=0.6, kmeans_init=False).eval()
    both = Ragged.from_jets(ak.zip({"constituents": some_jets([5, 40])}, depth_limit=1))
    losses = [float(model.loss({k: torch.tensor(v) for k, v in part.items()})["loss"].detach()) for part in (both[:1].pad(), both[:1].pad(length=128), both[1:].pad(), both.pad())]
    assert np.isclose(losses[0], losses[1], rtol=1e-5) and np.isclose((5 * losses[0] + 40 * losses[2]) / 45, losses[3], rtol=1e-5)


def test_mirror_images(tmp_path):
    jets = sample_jets(["TTBar"], 50)
    write_columns(to_columns(jets), tmp_path / "data" / "TTBar_000.parquet")
    grid = BinnedTokenizer((40, 40, 40))                                             # the same bins on both sides of 0
    tables = {}
    for mirror in [(), *MIRRORS]:
        tokenize_files(grid, tmp_path / "data", tmp_path / "tokens" / "_".join(["train", *mirror]), mirror=mirror, progress=False)
        tables[mirror] = grid.decode(read_tokens(tmp_path / "tokens" / "_".join(["train", *mirror])).tokens)
    for mirror in MIRRORS:
        for name in ("pt", "eta_rel", "phi_rel"):
            assert np.allclose(ak.flatten(tables[mirror][name]), (-1 if name in mirror else 1) * ak.flatten(tables[()][name]), atol=1e-6)
    plain, every = load_tokens(tmp_path, "train"), load_tokens(tmp_path, "train", mirrored=True)
    assert len(every) == 4 * len(jets) and np.array_equal(every[:len(jets)].content, plain.content)
    assert np.array_equal(every.extras["id"], np.tile(plain.extras["id"], 4)) and np.array_equal(every.lengths, np.tile(plain.lengths, 4))


# -- bins

def test_bins():
    tokenizer = BinnedTokenizer((4, 5, 6), ((-2.0, 6.0), (-2.4, 2.4), (-2.4, 2.4)))
    every = ak.unflatten(np.arange(120), [120])
    assert ak.all(tokenizer.encode(tokenizer.decode(every)) == every) and tokenizer.out_of_range == 0
    outside = ak.Array([[{"pt": 1e5, "eta_rel": 0.0, "phi_rel": 0.0}, {"pt": 10.0, "eta_rel": -0.9, "phi_rel": 0.9}]])
    cells = np.unravel_index(ak.to_numpy(tokenizer.encode(outside)[0]), (4, 5, 6))
    assert tokenizer.out_of_range == 2
    tokenizer.encode(ak.Array([[{"pt": 10.0, "eta_rel": 0.0, "phi_rel": phi} for phi in (-0.81, -0.79, 0.79, 0.81)]]))  # edges at 0.8
    assert tokenizer.out_of_range == 2 and cells[0][0] == 3 and cells[1][1] == 0 and cells[2][1] == 5


# -- bad input

@pytest.mark.parametrize("make", [lambda: scrambled(), lambda: BinnedTokenizer()])
def test_bad_jets_and_tokens(make):
    tokenizer, good = make(), some_jets([3, 5])
    with pytest.raises(OmnijetError, match="jet 1 has 0 constituents, expected 1 … 128"):
        tokenizer.encode(ak.unflatten(ak.flatten(good), [8, 0]))
    with pytest.raises(OmnijetError, match="jet 0 has 129 constituents"):
        tokenizer.encode(some_jets([129]))
    for value, found in ((0.0, "pt = 0 GeV"), (-2.0, "pt = -2 GeV"), (np.nan, "pt = nan"), (np.inf, "pt = inf")):
        pt = np.array([5, 4, 3, 5, 4, 3, value, 1], dtype=np.float32)
        with pytest.raises(OmnijetError, match=f"jet 1, constituent 3: {found}"):
            tokenizer.encode(ak.zip({**{f: good[f] for f in good.fields}, "pt": ak.unflatten(pt, [3, 5])}))
    with pytest.raises(OmnijetError, match="no field eta_rel"):
        tokenizer.encode(good[["pt", "phi_rel"]])
    K = tokenizer.codebook_size
    for wrong in (-1, K, 0.5):
        with pytest.raises(OmnijetError, match=f"jet 1, constituent 1: token {wrong}, expected 0 … {K - 1}"):
            tokenizer.decode(ak.Array([[0, 1], [2, wrong]]))


def test_bad_settings():
    with pytest.raises(OmnijetError, match="multiple of heads"):
        VQVAE(width=30, heads=4)
    with pytest.raises(OmnijetError, match="vqtorch"):
        VQVAE(quantizer="nosuch")
    with pytest.raises(OmnijetError, match="3 pairs"):
        BinnedTokenizer(edges=((1, 0), (0, 1), (0, 1)))


@pytest.mark.parametrize("wrong", [dict(codebook_size=0), dict(width=0), dict(blocks=-1), dict(blocks=10**9), dict(latent=0), dict(heads=0), dict(dropout=2), dict(beta=2), dict(alpha=-1),
                                   dict(replace_freq=0.5), dict(kmeans_init=2), dict(conditional="no"), dict(pt_power=np.nan)])
def test_settings_out_of_range_name_themselves(wrong):
    with pytest.raises(OmnijetError, match=f"^{next(iter(wrong))} is"):
        VQVAE(**{"codebook_size": 16, "width": 8, "heads": 2, "blocks": 1, **wrong})


@pytest.mark.parametrize("wrong", [dict(bins=5), dict(bins=(0, 1, 2)), dict(bins=(1.5, 2, 3)), dict(bins=(10**4,) * 3), dict(edges=((1, 2), (3,))), dict(edges=np.ones((3, 2))), dict(quantiles=(-1, 1))])
def test_bins_that_cannot_be(wrong):
    with pytest.raises(OmnijetError, match=next(iter(wrong))) as error:
        BinnedTokenizer.fit(some_jets([5]), **wrong) if "edges" not in wrong else BinnedTokenizer(**wrong)
    assert "\n" not in str(error.value)


def test_what_is_no_jet_and_no_token():
    for wrong in (None, 5, [], "a"):
        with pytest.raises(OmnijetError, match="no field pt"):
            BinnedTokenizer().encode(wrong)
    for wrong in (None, 5, [1, 2], [["a"]], [[None]]):
        with pytest.raises(OmnijetError, match="expected lists of integers"):
            BinnedTokenizer().decode(wrong)
    for wrong in (None, object(), torch.nn.Linear(1, 1)):
        with pytest.raises(OmnijetError, match="is no tokenizer"):
            load_tokenizer(wrong)
    tokenizer = BinnedTokenizer()
    assert load_tokenizer(tokenizer) is tokenizer


def test_tokens_do_not_go_among_the_jets(tmp_path):
    write_columns(to_columns(sample_jets("TTBar", 3)), tmp_path / "d" / "TTBar_000.parquet")
    before = (tmp_path / "d" / "TTBar_000.parquet").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "d")
    (tmp_path / "hard").mkdir()
    os.link(tmp_path / "d" / "TTBar_000.parquet", tmp_path / "hard" / "TTBar_000.parquet")
    for data, out in (("d", "d"), ("d", "d/tokens"), ("d", "link"), ("link", "d/tokens"), ("d/*.parquet", "d"), ("d", "hard")):
        with pytest.raises(OmnijetError, match="TTBar_000.parquet: "):
            tokenize_files(BinnedTokenizer(), tmp_path / data, tmp_path / out, progress=False)
    assert (tmp_path / "d" / "TTBar_000.parquet").read_bytes() == (tmp_path / "hard" / "TTBar_000.parquet").read_bytes() == before
    for mirror in (["phi_rel", "eta_rel"], ()):                                       # tokens are replaced by tokens
        tokenize_files(BinnedTokenizer(), tmp_path / "d", tmp_path / "tokens", mirror=mirror, progress=False)
    for wrong in (dict(mirror=["pt"]), dict(mirror="eta_rel"), dict(batch_size=0)):
        with pytest.raises(OmnijetError, match=next(iter(wrong))):
            tokenize_files(BinnedTokenizer(), tmp_path / "d", tmp_path / "tokens", progress=False, **wrong)


def test_models_do_not_overwrite_other_things(tmp_path):
    for i, (name, text) in enumerate({"config.json": '{"model_type": "bert"}', "model.safetensors": "mine"}.items()):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(OmnijetError, match="config.json"):
            BinnedTokenizer().save_pretrained(folder)
        assert (folder / name).read_text() == text and len(list(folder.iterdir())) == 1
    for bins in ((3, 3, 3), (4, 4, 4)):
        BinnedTokenizer(bins).save_pretrained(tmp_path / "bins")
    assert load_tokenizer(tmp_path / "bins").codebook_size == 64
    with pytest.raises(OmnijetError, match="kind is 'BinnedTokenizer', expected VQVAE"):
        scrambled().save_pretrained(tmp_path / "bins")


def test_what_is_written_is_read_back(tmp_path, monkeypatch):
    from pathlib import Path

    model = scrambled()
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: write(self, content[:-1] + bytes([content[-1] ^ 1])))
    with pytest.raises(OmnijetError, match="model.safetensors"):
        model.save_pretrained(tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_options_of_loading(tmp_path):
    scrambled().save_pretrained(tmp_path)
    assert VQVAE.from_pretrained("omnijet/tokenizer-512", revision="main", proxies={}, map_location=torch.device("cpu")).codebook_size == 512
    with pytest.raises(OmnijetError, match="no option revison"):
        VQVAE.from_pretrained(tmp_path, revison="main")
    with pytest.raises(OmnijetError, match="map_location is 'nowhere'"):
        load_tokenizer(tmp_path, map_location="nowhere")


class Loose(PretrainedMixin, torch.nn.Module):
    "A model whose signature says nothing."

    def __init__(self, width, names=(), **more):
        super().__init__()
        self.layer, self.names, self.more = torch.nn.Linear(3, int(width)), names, more


def test_settings_of_any_model_are_kept_or_refused(tmp_path):
    model = Loose(np.int64(4), names=np.array(["a", "b"]), scale=np.float32(0.1), grid=torch.ones(2))
    model.training_facts = {"loss": np.float32(1)}
    model.save_pretrained(tmp_path)
    again = Loose.from_pretrained(tmp_path)
    assert again.settings() == model.settings() == {"width": 4, "names": ["a", "b"], "scale": float(np.float32(0.1)), "grid": [1.0, 1.0]}
    for wrong in (1j, object(), float("nan"), {1, 2}):
        with pytest.raises(OmnijetError, match="^scale is"):
            Loose(4, scale=wrong)


def test_folders_that_are_not_tokenizers(tmp_path):
    with pytest.raises(OmnijetError, match="no config.json"):
        VQVAE.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OmnijetError, match="not the configuration"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "GenerativeModel"}))
    with pytest.raises(OmnijetError, match="kind is 'GenerativeModel', expected VQVAE or BinnedTokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "VQVAE", "colour": 1}))
    with pytest.raises(OmnijetError, match="colour"):
        load_tokenizer(tmp_path)
    scrambled().save_pretrained(tmp_path / "a")
    scrambled(width=16).save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "a" / "model.safetensors")
    with pytest.raises(OmnijetError, match=r"weights of another architecture: .* is \(.*\), expected \("):
        load_tokenizer(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(OmnijetError, match="model.safetensors: cannot be read"):
        load_tokenizer(tmp_path / "a")


class Sized(PretrainedMixin, torch.nn.Module):
    "A model whose `__init__` takes something that no configuration can hold."

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def settings(self):
        return {"sizes": [self.layer.in_features, self.layer.out_features]}

    @classmethod
    def from_settings(cls, settings):
        return cls(torch.nn.Linear(*settings["sizes"]))


def test_models_with_a_configuration_of_their_own(tmp_path):
    model = Sized(torch.nn.Linear(3, 5))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["sizes"] == [3, 5]
    again = Sized.from_pretrained(tmp_path)
    assert not again.training and torch.equal(again.layer.weight, model.layer.weight)
    with pytest.raises(OmnijetError, match="kind is 'Sized', expected VQVAE or BinnedTokenizer"):
        load_tokenizer(tmp_path)


class Hostile:
    def __init__(self, function, marker):
        self.function, self.marker = function, marker

    def __reduce__(self):
        return self.function, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function, name", [(os.mkdir, "mkdir"), (shutil.rmtree, "shutil.rmtree")])
def test_no_code_of_a_checkpoint_is_executed(tmp_path, zipped, function, name):
    if name != "mkdir":
        (tmp_path / "marker").mkdir()
    torch.save({"hyper_parameters": {"model_type": "MLP", "optimizer": Hostile(function, tmp_path / "marker")}, "state_dict": {}},
               tmp_path / "hostile.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(OmnijetError, match=f"hostile.ckpt: refused to load .*{name}"):
        VQVAE.from_gabbro(tmp_path / "hostile.ckpt")
    assert (tmp_path / "marker").exists() == (name != "mkdir")


def test_other_checkpoints(golden, tmp_path):
    torch.save({"hyper_parameters": {"model_type": "BackboneGenerative", "model_kwargs": {}}, "state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(OmnijetError, match="model_type is 'BackboneGenerative', expected"):
        VQVAE.from_gabbro(tmp_path / "other.ckpt")
    hyper_parameters, state = read_gabbro(golden / "gabbro_tokenizer_mlp.ckpt")
    model = hyper_parameters["model_kwargs"]
    for kind, changed in {"VQVAENormFormer": {}, "MLP": {"latent_dim": "four"}, "Transformer": {"hidden_dim": 32, "num_blocks": 1, "num_heads": 5}}.items():
        torch.save({"hyper_parameters": {"model_type": kind, "model_kwargs": model | changed}, "state_dict": state}, tmp_path / "other.ckpt")
        with pytest.raises(OmnijetError, match=f"other.ckpt: model_kwargs do not describe a {kind}"):
            VQVAE.from_gabbro(tmp_path / "other.ckpt")
    for kind, changed in {"MLP": {"vq_kwargs": {"num_codes": 10**12}}, "Transformer": {"hidden_dim": 32, "num_blocks": 1, "num_heads": 4}}.items():
        torch.save({"hyper_parameters": {"model_type": kind, "model_kwargs": model | changed}, "state_dict": state}, tmp_path / "other.ckpt")
        with pytest.raises(OmnijetError, match="other.ckpt: weights of another architecture"):
            VQVAE.from_gabbro(tmp_path / "other.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(OmnijetError, match="no entry 'hyper_parameters'"):
        VQVAE.from_gabbro(tmp_path / "other.ckpt")
    (tmp_path / "short.ckpt").write_bytes((golden / "gabbro_tokenizer_mlp.ckpt").read_bytes()[:5000])
    with pytest.raises(OmnijetError, match="short.ckpt is not a checkpoint: cannot be read"):
        VQVAE.from_gabbro(tmp_path / "short.ckpt")
    with pytest.raises(OmnijetError, match="missing.ckpt"):
        VQVAE.from_gabbro(tmp_path / "missing.ckpt")
