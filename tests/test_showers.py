"""Showers: the simulation against its source, files, cells, and the way of hits through tokenizer and backbone."""
import warnings

import awkward as ak
import h5py
import numpy as np
import pytest
import torch
from scipy.special import gammainc

from omnijet.data import Ragged, sample_jets
from omnijet.files import OmnijetError
from omnijet.gpt import GenerativeModel, JetSoFar, Vocabulary, jet_token_edges
from omnijet.models import decoded_codes
from omnijet.showers import (
    GRIDS, Calorimeter, draw_profiles, limit_hits, merge_cells, observe, profile, read_showers, shower_features, simulate_showers, to_cells, to_showers,
    write_showers,
)
from omnijet.training import TrainingConfig, train
from omnijet.vqvae import VQVAE

ILD = Calorimeter()
COLUMN = Calorimeter(cells=(1, 1), cell_size=1e9, threshold=0)  # each layer is one cell, nothing leaks sideways
DEEP = Calorimeter(cells=(1, 1), cell_size=1e9, layers=tuple(range(1, 61)), absorber=(2.1,) * 60, threshold=0)  # nor behind


# -- the simulation; its formulas (hep-ex/0001020) once more, in numbers of tungsten and silicon

W, SI = 2.66 * (6.76 * 74 / 183.84) ** 1.1, 2.66 * (21.82 * 14 / 28.09) ** 1.1
MASS = np.array([8.4 * 19.3, 30 * 0.0525 * 2.329])  # g/cm² of 84 mm and 15.75 mm
SHARE = MASS / MASS.sum()
X0 = 1 / (SHARE[0] / 6.76 + SHARE[1] / 21.82)
EC = X0 * (SHARE[0] * W / 6.76 + SHARE[1] * SI / 21.82)
Z = SHARE @ [74, 14]
F = 30 * X0 / MASS.sum()
EM = 1 / (1 + 0.007 * 60)


def moments(energy):
    "Means, widths and correlation of ln T and ln α."
    y = np.log(energy * 1000 / EC)
    T = y - 0.812 - 0.55 / F - 0.69 * (1 - EM)
    alpha = 0.81 + (0.458 + 2.26 / Z) * y - 0.476 / F
    return np.log(T), np.log(alpha), 1 / (-2.5 + 1.25 * y), 1 / (-0.82 + 0.79 * y), 0.784 - 0.023 * y


def expected_layers(energy, nodes=24):
    "Weights (m,) and energies (m, 30) that showers lose in the layers, by Gauss-Hermite quadrature over T and α."
    T, alpha, sT, sa, rho = moments(energy)
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    a, b = (g.ravel() for g in np.meshgrid(x, x))
    weight = np.outer(w, w).ravel() / w.sum() ** 2
    T = np.exp(T + sT * a)
    alpha = np.exp(alpha + sa * (rho * a + np.sqrt(1 - rho**2) * b))
    good = alpha > 1.05
    weight, T, alpha = weight[good], T[good], alpha[good]
    depth = np.append(0, np.cumsum([d / 3.5026 + 0.525 / 93.69 for d in [2.1] * 20 + [4.2] * 10]))  # mm over mm
    return weight / weight.sum(), energy * np.diff(gammainc(alpha[:, None], ((alpha - 1) / T)[:, None] * depth))


@pytest.mark.parametrize("energy", [5.0, 20.0, 80.0])
def test_the_maximum_of_showers_is_where_the_source_has_it(energy):
    found = [np.log(x) for x in draw_profiles(np.full(100_000, energy), ILD, np.random.default_rng(1))]
    T, alpha, sT, sa, rho = moments(energy)
    assert np.exp(np.mean(found[0]) - T) == pytest.approx(1, rel=0.02) and np.exp(np.mean(found[1]) - alpha) == pytest.approx(1, rel=0.02)
    assert np.std(found[0]) == pytest.approx(sT, rel=0.02) and np.std(found[1]) == pytest.approx(sa, rel=0.02)
    assert np.corrcoef(found)[0, 1] == pytest.approx(rho, rel=0.02)


@pytest.mark.parametrize("energy", [5.0, 15.0, 45.0])
def test_mean_and_spread_of_the_profile(energy):
    "Within 2 %: the energy in each layer where there is 90 % of it, the mean depth and its spread from shower to shower."
    showers = simulate_showers(8000, energy, "electron", COLUMN, seed=2)
    layers = profile(showers, (1, 1, 30)) / COLUMN.medium["share"] / 1000  # GeV lost there
    weight, expected = expected_layers(energy)
    mean = weight @ expected
    order = np.argsort(-mean)
    core = np.sort(order[: np.searchsorted(np.cumsum(mean[order]), 0.9 * mean.sum()) + 1])
    assert layers.mean(0)[core] == pytest.approx(mean[core], rel=0.02)
    place = np.arange(30)
    depth, theirs = layers @ place / layers.sum(1), expected @ place / expected.sum(1)
    assert depth.mean() == pytest.approx(weight @ theirs, rel=0.02)
    spread = np.sqrt(weight @ theirs**2 - (weight @ theirs) ** 2)
    shape = expected / expected.sum(1, keepdims=True)
    within = weight @ (shape @ place**2 - theirs**2)  # the variance along one shower, of which sampling moves the mean
    assert depth.std() == pytest.approx(np.hypot(spread, 0.17 * np.sqrt(within / energy)), rel=0.02)


def test_linear_within_a_percent_and_sampling_resolution():
    response = []
    for energy in (10.0, 30.0, 100.0):
        cells = profile(simulate_showers(1000, energy, calorimeter=Calorimeter(threshold=0), seed=3), (30, 30, 30))
        response.append((cells / ILD.medium["share"]).sum(1).mean() / 1000 / energy)
    assert np.array(response) == pytest.approx(np.mean(response), rel=0.01) and 0.97 < min(response) < max(response) < 1   # the rest leaks
    for energy in (5.0, 20.0, 80.0):
        total = profile(simulate_showers(4000, energy, "electron", DEEP, seed=4), (1, 1, 60)).sum(1)
        assert total.std() / total.mean() == pytest.approx(0.17 / energy**0.5, rel=0.04)
        assert total.mean() / 1000 / DEEP.medium["share"][0] == pytest.approx(energy, rel=0.01)


def test_a_moliere_radius_holds_nine_tenths():
    radius = ILD.medium["R_M"]
    fine = Calorimeter(cells=(100, 100), cell_size=radius / 10, threshold=0)
    hits = simulate_showers(300, 20.0, calorimeter=fine, seed=5).constituents
    r = np.hypot(ak.to_numpy(ak.flatten(hits.x)) - 49.5, ak.to_numpy(ak.flatten(hits.y)) - 49.5) / 10
    energy = ak.to_numpy(ak.flatten(hits.energy))
    assert energy[r < 1].sum() / energy.sum() == pytest.approx(0.9, abs=0.03)


def test_a_photon_travels_first():
    "9/7 radiation lengths later than an electron, on average; exponentially."
    depth = [observe(simulate_showers(4000, 5.0, particle, DEEP, seed=6))["gravity_z"] for particle in ("photon", "electron")]
    layer = DEEP.medium["depth"][1]  # radiation lengths
    assert layer * (depth[0].mean() - depth[1].mean()) == pytest.approx(9 / 7, rel=0.06)
    assert layer**2 * (depth[0].var() - depth[1].var()) == pytest.approx((9 / 7) ** 2, rel=0.15)


def test_a_shower_depends_on_its_number_and_the_seed_alone():
    many = simulate_showers(130, (1, 5), seed=7)
    assert ak.array_equal(simulate_showers(70, (1, 5), seed=7), many[:70])
    assert not ak.array_equal(simulate_showers(70, (1, 5), seed=8).incident_energy, many[:70].incident_energy)
    assert 1 <= ak.min(many.incident_energy) < ak.max(many.incident_energy) <= 5
    hits = many.constituents
    assert ak.all(hits.energy[:, 1:] <= hits.energy[:, :-1]) and ak.min(hits.energy) > 0.1 and ak.all((hits.x >= 0) & (hits.x < 30) & (hits.z < 30))


@pytest.mark.parametrize("wrong, words", [
    (dict(n=0), "n is 0"), (dict(energy=float("nan")), "energy is nan"), (dict(energy=-3), "energy is -3"), (dict(energy=(5, 1)), "low, high"), (dict(energy=(1, 2, 3)), "low, high"),
    (dict(particle="pion"), "expected photon or electron"), (dict(seed=-1), "seed is -1"), (dict(energy="hot"), "energy is 'hot'")])
def test_what_cannot_be_simulated(wrong, words):
    with pytest.raises(OmnijetError, match=words) as error:
        simulate_showers(**{"n": 3, "energy": 5, **wrong})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [dict(cells=(30, 0)), dict(cells=(3,)), dict(absorber=(2.1,) * 29), dict(sensor=0), dict(sampling=np.nan), dict(cell_size="wide"), dict(threshold=-1), dict(layers=(1,), absorber=(1,))])
def test_no_such_calorimeter(wrong):
    with pytest.raises(OmnijetError) as error:
        Calorimeter(**wrong)
    assert "\n" not in str(error.value)


# -- files, as their projects write them

def some_cells(shape, n=7, seed=1):
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, *shape)) < 0.02, rng.exponential(3, (n, *shape)), 0.0), rng.uniform(10, 100, (n, 1))


def dense(showers, shape):
    cells = np.zeros((len(showers), *shape))
    for i, shower in enumerate(showers.constituents):
        cells[i, np.asarray(shower.z), np.asarray(shower.x), np.asarray(shower.y)] = np.asarray(shower.energy)
    return cells


def test_getting_high_is_read_as_it_is_written(tmp_path):
    cells, energy = some_cells((30, 30, 30))
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        group = file.create_group("30x30")
        group.create_dataset("energy", data=energy)
        group.create_dataset("layers", data=cells)
    showers = read_showers(tmp_path / "a.hdf5", threshold=0)
    assert np.array_equal(dense(showers, (30, 30, 30)), cells) and np.array_equal(showers.incident_energy, energy[:, 0])
    assert len(read_showers(tmp_path / "a.hdf5", 3)) == 3 and ak.min(read_showers(tmp_path / "a.hdf5").constituents.energy) > 0.1


@pytest.mark.parametrize("name", ["calochallenge-2", "calochallenge-3"])
def test_calochallenge_is_read_as_it_is_written(tmp_path, name):
    shape = GRIDS[name]
    cells, energy = some_cells(shape)
    flat = np.zeros((len(cells), cells[0].size))
    for layer in range(shape[0]):                 # their voxels: layer after layer, angle after angle, r fastest
        for angle in range(shape[1]):
            first = (layer * shape[1] + angle) * shape[2]
            flat[:, first:first + shape[2]] = cells[:, layer, angle]
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("incident_energies", data=1000 * energy, compression="gzip")
        file.create_dataset("showers", data=flat, compression="gzip")
    showers = read_showers(tmp_path / "a.hdf5", threshold=0)
    assert np.array_equal(dense(showers, shape), cells) and np.allclose(showers.incident_energy, energy[:, 0], rtol=1e-15)
    assert ak.max(showers.constituents.y) < shape[2] and ak.max(showers.constituents.x) < shape[1]


@pytest.mark.parametrize("layout", list(GRIDS))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_written_is_read_back_exactly(tmp_path, layout, dtype):
    cells, energy = some_cells(GRIDS[layout])
    showers = to_showers(cells.astype(dtype), energy[:, 0], 0)
    write_showers(showers, tmp_path / "a.hdf5", layout)
    again = read_showers(tmp_path / "a.hdf5", threshold=0)
    assert ak.array_equal(again.constituents, showers.constituents) and np.allclose(again.incident_energy, showers.incident_energy, rtol=1e-15)
    assert dtype == ak.to_numpy(ak.flatten(again.constituents.energy)).dtype


def bad_file(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values
    return path


def test_files_that_hold_no_such_showers(tmp_path):
    energy = np.full((2, 1), 5000.0)
    good = np.ones((2, 6480))
    wrong = {
        "368 voxels a shower": {"incident_energies": energy, "showers": np.ones((2, 368))}, "has pixels, expected": {"pixels": good},
        "has nothing, expected": {}, "2 energies, expected as many": {"incident_energies": energy, "showers": np.ones((3, 6480))},
        "shower 1: a cell's energy is nan": {"incident_energies": energy, "showers": np.where(np.arange(2)[:, None] == 1, np.nan, good)},
        "shower 0: a cell's energy is -1": {"incident_energies": energy, "showers": -good}, "shower 0: incident energy is nan": {"incident_energies": energy * np.nan, "showers": good},
        "shower 0: incident energy is -5": {"incident_energies": -energy, "showers": good}, "has 30x30, expected": {"30x30__layers": np.ones((1, 30, 30, 30))},
    }
    for words, datasets in wrong.items():
        with pytest.raises(OmnijetError, match=words) as error:
            read_showers(bad_file(tmp_path / "bad.hdf5", **datasets))
        assert "\n" not in str(error.value) and "bad.hdf5" in str(error.value)
    (tmp_path / "text.hdf5").write_text("no HDF5")
    whole = bad_file(tmp_path / "whole.hdf5", incident_energies=energy, showers=good).read_bytes()
    (tmp_path / "half.hdf5").write_bytes(whole[:len(whole) // 2])
    for name in ("text", "half", "missing"):
        with pytest.raises(OmnijetError, match=f"{name}.hdf5") as error:
            read_showers(tmp_path / f"{name}.hdf5")
        assert "\n" not in str(error.value)
    with pytest.raises(OmnijetError, match="layout is 'root'"):
        write_showers(to_showers(good.reshape(2, 45, 16, 9), energy[:, 0]), tmp_path / "x.hdf5", "root")
    with pytest.raises(OmnijetError, match="z from 0 to 44, expected 0 … 29"):
        write_showers(to_showers(good.reshape(2, 45, 16, 9), energy[:, 0]), tmp_path / "x.hdf5")
    assert not (tmp_path / "x.hdf5").exists()


def test_empty_showers_are_counted():
    cells, energy = some_cells((4, 5, 6))
    cells[[2, 5]] = 0.05
    with pytest.warns(UserWarning, match=r"2 without a hit above 0.1 MeV \(first: shower 12\)"):
        assert len(to_showers(cells, energy[:, 0], start=10)) == 5


# -- cells

def in_cells_slowly(shower, n):
    "One shower, hit by hit: every hit asks for its cell, then those without one for the next nearest of the 27 around it, …"
    waiting = sorted(shower, key=lambda h: -h[0])
    at = [np.clip(h[1:], 0, np.array(n) - 1) for h in waiting]
    around = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
    ways = [np.rint(a) + around[np.argsort(((np.rint(a) + around - a) ** 2).sum(1), kind="stable")] for a in at]
    taken, done = {}, [None] * len(waiting)
    for step in range(27):
        for i, way in enumerate(ways):
            cell = tuple(map(int, way[step]))
            if done[i] is None and all(0 <= c < size for c, size in zip(cell, n)) and cell not in taken:
                taken[cell] = done[i] = i
    return {cell: waiting[i][0] for cell, i in taken.items()}, sum(waiting[i][0] for i, d in enumerate(done) if d is None)


def test_decoded_hits_go_into_cells():
    rng, n = np.random.default_rng(3), (3, 4, 6)
    lists = [[(rng.exponential(2) + 0.01, *rng.uniform(-0.8, np.array(n) - 0.2)) for _ in range(k)] for k in (1, 20, 60, 5)]
    hits = ak.Array([[dict(zip(("energy", "x", "y", "z"), map(float, h))) for h in shower] for shower in lists])
    cells = to_cells(hits, shower_features(n))
    assert np.allclose(ak.sum(cells.energy, axis=1), ak.sum(hits.energy, axis=1), rtol=1e-12)
    for shower, given in zip(cells, lists):
        found = {(h.x, h.y, h.z): h.energy for h in shower}
        slow, left = in_cells_slowly(given, n)
        assert len(found) == len(shower) and found.keys() == slow.keys()              # no cell twice
        assert left or found == pytest.approx(slow)
        assert list(ak.to_numpy(shower.energy)) == sorted(shower.energy, reverse=True)


def test_where_all_is_full_the_energy_is_kept():
    hits = ak.Array([[{"energy": float(e), "x": 0.0, "y": 0.0, "z": 1.0} for e in range(1, 6)]])
    cells = to_cells(hits, shower_features((1, 1, 3)))
    assert cells.to_list() == [[{"energy": 8.0, "x": 0, "y": 0, "z": 1}, {"energy": 4.0, "x": 0, "y": 0, "z": 0}, {"energy": 3.0, "x": 0, "y": 0, "z": 2}]]
    assert len(to_cells(hits[:0], shower_features((1, 1, 3)))) == 0


def test_coarser_cells_and_fewer_hits():
    showers = simulate_showers(100, 5.0)
    coarse = merge_cells(showers, (3, 2, 5))
    full, merged = dense(showers, (30, 30, 30)), dense(coarse, (6, 10, 15))
    assert np.allclose(full.reshape(100, 6, 5, 10, 3, 15, 2).sum((2, 4, 6)), merged, rtol=1e-5)
    assert ak.all(coarse.constituents.energy[:, 1:] <= coarse.constituents.energy[:, :-1])
    with pytest.warns(UserWarning, match=r"of 100 showers have more than 30 hits \(up to \d+\)"):
        assert ak.all(limit_hits(coarse, 30).constituents.energy == coarse.constituents.energy[:, :30])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limit_hits(coarse, 10_000)


# -- tokens and backbone, unchanged

@pytest.fixture(scope="module")
def coarse():
    return merge_cells(simulate_showers(200, (1, 3), seed=9), (3, 3, 3))


def test_showers_go_the_way_of_jets(coarse, tmp_path):
    features = shower_features((10, 10, 10), 60)
    torch.manual_seed(1)
    tokenizer = VQVAE(32, width=16, blocks=1, heads=2, features=features, replace_freq=20)
    data = Ragged.from_jets(coarse, features.names)
    assert np.array_equal(data.extras["incident_energy"], coarse.incident_energy)
    history = train(tokenizer, data, data, TrainingConfig(4, 20, 3e-3), progress=False)
    assert history[-1]["val_reconstruction"] < 0.9 * history[0]["val_reconstruction"]
    tokenizer.save_pretrained(tmp_path / "t")
    tokens = VQVAE.from_pretrained(tmp_path / "t").encode(coarse)
    model = GenerativeModel(32, 16, 1, 2)
    flat = Ragged(ak.to_numpy(ak.flatten(tokens)), data.offsets)
    history = train(model, flat, flat, TrainingConfig(3, 20, 5e-3), progress=False)
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    made = to_cells(tokenizer.decode(model.generate(10, max_constituents=60, progress=False)), features)
    assert len(made) == 10 and ak.max(made.z) < 10 and np.isfinite(observe(made)["energy_sum"]).all()


def test_showers_of_an_energy_can_be_asked_for(coarse, tmp_path):
    "The energy is a token before the first hit; who asks for little gets few hits, and who asks nothing gets both."
    features = shower_features((10, 10, 10), 60)
    torch.manual_seed(1)
    tokenizer = VQVAE(32, width=16, blocks=1, heads=2, features=features).eval()
    low, high = np.random.default_rng(1).integers(0, 32, (200, 3)), np.random.default_rng(2).integers(0, 32, (200, 9))
    energy = {"incident_energy": np.repeat([1.5, 2.5], 200)}
    data = Ragged(np.concatenate([low.ravel(), high.ravel()]), np.append(0, np.cumsum(np.repeat([3, 9], 200))), energy)
    model = GenerativeModel(32, 16, 1, 2, jet_tokens={"incident_energy": [1, 2, 3]})
    with pytest.raises(OmnijetError, match="does not know its codes"):
        train(model, data, data, TrainingConfig(1, 50, 1e-2), progress=False)
    model.start_from(tokenizer, data).learn_codes(tokenizer)
    train(model, data, data, TrainingConfig(12, 50, 1e-2), progress=False)
    model.save_pretrained(tmp_path / "m")
    model = GenerativeModel.from_pretrained(tmp_path / "m")
    few, many, either = (ak.to_numpy(ak.num(model.generate(100, max_constituents=60, progress=False, **asked))) for asked in ({"incident_energy": 1.2}, {"incident_energy": (2, 3)}, {}))
    assert few.mean() < 5 < 7 < many.mean() and 0.2 < np.mean(either > 6) < 0.8
    for wrong, words in (({"pt": 5}, "pt is asked for"), ({"incident_energy": "hot"}, "incident_energy is 'hot'"), ({"incident_energy": (3, 1)}, "expected a number, or a pair")):
        with pytest.raises(OmnijetError, match=words):
            model.generate(1, progress=False, **wrong)
    with pytest.raises(OmnijetError, match="a token of incident_energy, which its sequences do not have"):
        train(model, Ragged(data.content, data.offsets), None, TrainingConfig(1, 50), progress=False)
    with pytest.raises(OmnijetError, match="codes of energy, x, y, z have no mass"):
        GenerativeModel(32, 16, 1, 2, jet_tokens={"mass": [1, 2, 3]}).learn_codes(tokenizer)
    with pytest.raises(OmnijetError, match="codes of pt, eta_rel, phi_rel have no energy_sum"):
        GenerativeModel(8, 16, 1, 2, jet_tokens={"energy_sum": [1, 2, 3]}).learn_codes(VQVAE(8, width=8, blocks=1, heads=2))


class Hits:  # codes that are one hit each, of 1, 2, … MeV at depths 0, 9, 0, 9, …
    codebook_size, features = 4, shower_features((10, 10, 10), 60)
    decode = staticmethod(lambda codes: ak.Array([[{"energy": i + 1.0, "x": 2.0, "y": 4.5, "z": 9.0 * (i % 2)}] for i, in codes]))


def test_a_shower_so_far():
    "Energy and hits so far and still missing, and the depth; in units of 100 MeV and 40 hits."
    bins = jet_token_edges(Hits, Ragged(np.array([0, 1, 2, 3]), [0, 1, 4]), {"energy_sum": 1, "n_constituents": 1})
    assert bins["energy_sum"] == pytest.approx([1, 9], rel=0.01) and bins["n_constituents"] == [0.5, 2.5]
    told = Vocabulary(4, jet_tokens={"energy_sum": [1, 9], "n_constituents": [0.5, 4.5]})
    so_far = JetSoFar(told.size, 8).learn(Hits, decoded_codes(Hits), told)
    total = so_far.totals(torch.tensor([[0, told.bins["energy_sum"].start, told.bins["n_constituents"].start, 4, 2]]))
    found, seen = so_far.quantities(total), so_far.features(total)[0]
    assert found["energy_sum"][0].tolist() == [0, 0, 0, 4, 6] and found["n_constituents"][0].tolist() == [0, 0, 0, 1, 2]
    assert np.allclose(seen[:, 6] * 100, [0, 5, 5, 1, -1], atol=1e-4) and np.allclose(seen[:, 8] * 20, [0, 0, 2.5, 1.5, 0.5], atol=1e-4)
    assert np.allclose(seen[3:, 15], [4.05, 4.05], atol=1e-5)  # both in the last layer


def test_jets_and_showers_are_not_taken_for_each_other(coarse):
    hits, jets = shower_features((10, 10, 10), 60), sample_jets("TTBar", 3)
    for tokenizer, other, words in ((VQVAE(8, width=8, blocks=1, heads=2, features=hits), jets, "hits have no field energy, x, y, z"),
                                    (VQVAE(8, width=8, blocks=1, heads=2), coarse, "constituents have no field pt, eta_rel, phi_rel")):
        with pytest.raises(OmnijetError, match=words) as error:
            tokenizer.encode(other)
        assert "\n" not in str(error.value)
    short = VQVAE(8, width=8, blocks=1, heads=2, features=shower_features((10, 10, 10), 20))
    with pytest.raises(OmnijetError, match=r"shower \d+ has \d+ hits, expected 1 … 20 \(\d+ such showers\)"):
        short.encode(coarse)
