"""Simulation: against plain loops, against other processes and executors, and what goes wrong."""
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import awkward as ak
import numpy as np
import pytest

from omnijet import simulation
from omnijet.data import CLASSES, LABELS, read_jets
from omnijet.files import OmnijetError, holds, read_metadata, write_columns
from omnijet.simulation import (BENDING, FIELD, HALF_LENGTH, HCAL, RADIUS, Particles, cluster, decay_partons,
                                detect, directions, energy_flow, link_jetclass, make_shard, propagate, shapes,
                                simulate, simulate_files, stable_particles, start_pythia, tracking_efficiency,
                                truth_matched)
from omnijet.statistics import two_sample_auc


def particles(pt, eta, phi, charge, vertex=0.0, mass=0.13957, pdg=211):
    arrays = np.broadcast_arrays(0, pdg, charge, pt, eta, phi, mass, *np.broadcast_arrays(*np.asarray(vertex).T if np.ndim(vertex) else (0.0, 0.0, 0.0)))
    return Particles(*(np.atleast_1d(np.array(a)) for a in arrays))


def walk(pt, eta, phi, charge, x, y, z, step=2e-4):
    "Follow one particle in small steps to the surface: (eta, phi) there."
    turn = step * BENDING * charge * FIELD / pt
    while np.hypot(x, y) < RADIUS and abs(z) < HALF_LENGTH:
        x, y, z = x + step * np.cos(phi - turn / 2), y + step * np.sin(phi - turn / 2), z + step * np.sinh(eta)
        phi -= turn
    return np.arcsinh(z / np.hypot(x, y)), np.arctan2(y, x)


def test_propagation_agrees_with_small_steps():
    rng = np.random.default_rng(1)
    n = 40
    pt, eta, phi, charge = rng.uniform(0.3, 5, n), rng.uniform(-2, 2, n), rng.uniform(-3.1, 3.1, n), rng.choice([-1, 0, 1], n)
    vertex = rng.normal(0, 0.1, (n, 3))
    inside, at_eta, at_phi, _ = propagate(particles(pt, eta, phi, charge, vertex))
    assert len(inside) == n
    walked = np.array([walk(*one) for one in zip(pt, eta, phi, charge, *vertex.T)])
    assert np.allclose(at_eta, walked[:, 0], atol=0.01)
    assert np.allclose(np.cos(at_phi - walked[:, 1]), 1, atol=1e-3)


def test_tracks_point_along_their_circle_at_closest_approach():
    rng = np.random.default_rng(2)
    n = 200
    pt, phi, charge, vertex = rng.uniform(0.5, 5, n), rng.uniform(-3.1, 3.1, n), rng.choice([-1, 1], n), rng.normal(0, 0.05, (n, 3))
    _, _, _, track_phi = propagate(particles(pt, 0.3, phi, charge, vertex))
    radius = pt / (BENDING * charge * FIELD)
    centre = vertex[:, 0] + radius * np.sin(phi), vertex[:, 1] - radius * np.cos(phi)
    assert np.allclose(np.cos(track_phi) * centre[0] + np.sin(track_phi) * centre[1], 0, atol=1e-9)  # at right angles to where the centre is
    straight = particles(1000, 0.3, phi, 0, vertex)
    assert np.allclose(propagate(straight)[3], phi)


def test_particles_born_outside_are_not_seen():
    inside, *_ = propagate(particles(5.0, 0.0, 0.0, 0, [[0, 0, 0], [1.3, 0, 0], [0, 0, 3.1]]))
    assert inside.tolist() == [0]


def test_a_missing_vertex_is_the_interaction_point():
    pythia, hook = start_pythia("TTBar")
    events = pythia.nextBatch(3)
    p = stable_particles(events, pythia.particleData.charge)
    final = [q for event in events for q in event.prt.to_list() if q["status"] > 0 and abs(q["id"]) not in (12, 14, 16)]
    plain = [q for q in final if q["p"]["px"] ** 2 + q["p"]["py"] ** 2 > 1e-9]  # without what flies along the beam, as Delphes has it
    assert len(p) == len(plain) >= len(final) - 2
    assert sum(q["vProd"] is None for q in plain) == np.sum((p.x == 0) & (p.y == 0) & (p.z == 0)) > 0
    assert np.isclose(p.energy.sum(), sum(q["p"]["e"] for q in plain))


def test_energy_flow_agrees_with_a_loop_over_towers(monkeypatch):
    rng = np.random.default_rng(3)
    monkeypatch.setattr(simulation, "log_normal", lambda mean, sigma, rng: mean)
    n, m = 400, 150
    deposits = rng.integers(0, 2, n), rng.uniform(-0.3, 0.3, n), rng.uniform(-0.3, 0.3, n), rng.exponential(3, n)
    tracks = rng.integers(0, 2, m), rng.uniform(-0.3, 0.3, m), rng.uniform(-0.3, 0.3, m), rng.exponential(3, m)
    objects, factor = energy_flow(HCAL, deposits, tracks, rng)
    at, track_at = HCAL.tower(*deposits[:3]), HCAL.tower(*tracks[:3])
    excesses = []
    for tower in np.unique([*at, *track_at]):
        energy, tracked, own = deposits[3][at == tower].sum(), tracks[3][track_at == tower].sum(), track_at == tower
        sigma = np.sqrt((0.05 * energy) ** 2 + 1.5**2 * energy)
        if energy < 1 or energy < sigma:
            energy = 0
        if energy - tracked > max(1, sigma):
            excesses.append(energy - tracked)
            assert (factor[own] == 1).all()
        else:
            assert np.allclose(factor[own], energy / tracked if own.any() else 0)
    assert np.allclose(np.sort(objects[3]), np.sort(excesses))
    assert (HCAL.tower(*objects[:3]) == np.sort(HCAL.tower(*objects[:3]))).all() and np.isin(HCAL.tower(*objects[:3]), at).all()


def test_tracking_efficiency_is_what_comes_out():
    rng = np.random.default_rng(4)
    many = particles(np.full(20_000, 20.0), rng.uniform(-1.4, 1.4, 20_000), rng.uniform(-3.1, 3.1, 20_000), 1, mass=0.10566, pdg=13)
    objects, _ = detect(many, rng)  # muons leave nothing in the calorimeters
    assert abs(len(objects) / len(many) - 0.99) < 0.003 and np.isin(objects.pt, many.pt).all()
    assert tracking_efficiency(np.array([13]), np.array([2000.0]), np.array([0.0])) == pytest.approx(0.99 * np.exp(-0.5))


def plain_anti_kt(momenta, R=0.8):
    "Anti-kT in its definition."
    jets, live = [], [(m, [i]) for i, m in enumerate(momenta)]
    while live:
        pt, phi = [np.hypot(m[0], m[1]) for m, _ in live], [np.arctan2(m[1], m[0]) for m, _ in live]
        y = [0.5 * np.log((m[3] + m[2]) / (m[3] - m[2])) for m, _ in live]
        best = min(((p**-2, i, None) for i, p in enumerate(pt)), key=lambda t: t[0])
        for i in range(len(live)):
            for j in range(i):
                angle = abs(phi[i] - phi[j])
                d = min(pt[i] ** -2, pt[j] ** -2) * ((y[i] - y[j]) ** 2 + min(angle, 2 * np.pi - angle) ** 2) / R**2
                if d < best[0]:
                    best = d, i, j
        _, i, j = best
        if j is None:
            jets.append(live.pop(i))
        else:
            (a, members), (b, others) = live[i], live[j]
            live = [one for k, one in enumerate(live) if k not in (i, j)] + [(a + b, members + others)]
    return jets


def test_jets_agree_with_plain_anti_kt():
    rng = np.random.default_rng(5)
    n = 60
    event = np.sort(rng.integers(0, 3, n))
    p = particles(rng.exponential(60, n), rng.normal(0, 0.7, n), rng.normal(0, 0.7, n), 0)
    p.event = event
    jet_event, members, momentum = cluster(p, 3)
    expected = []
    for k in range(3):
        own = np.flatnonzero(event == k)
        for total, inside in plain_anti_kt([np.append(p[i].momentum.ravel(), p[i].energy) for i in own]):
            pt, eta, _ = directions(*total[:3])
            if 500 < pt < 1000 and abs(eta) < 2:
                expected.append((k, sorted(own[inside].tolist()), total))
    found = sorted((int(e), sorted(m), tuple(q)) for e, m, q in zip(jet_event, members.to_list(), momentum.T))
    assert len(expected) >= 2
    for (e, m, q), (k, own, total) in zip(found, sorted(expected, key=lambda t: t[:2]), strict=True):
        assert e == k and m == own and np.allclose(q, total)


def test_files_hold_the_direction_to_the_calorimeter_and_the_momentum_of_jets():
    p = particles([400.0, 200.0, 0.5], [0.1, 0.2, 0.3], [0.0, 0.1, 0.2], [1, 0, 1])
    surface_eta = np.array([0.11, 0.2, 1.9])
    momentum = np.append(p.momentum.sum(axis=1), p.energy.sum())[:, None]
    jet = simulation.jetclass_columns("label_Zqq", p, surface_eta, ak.Array([[2, 0, 1]]), momentum)[0]
    pt, eta, phi = directions(*(ak.to_numpy(jet[f"part_{axis}"]) for axis in ("px", "py", "pz")))
    assert np.allclose(pt, p.pt) and np.allclose(eta, surface_eta) and np.allclose(phi, p.phi, atol=1e-6)
    assert np.allclose(jet.part_energy**2, p.mass**2 + (pt * np.cosh(eta)) ** 2)
    assert np.allclose([jet.jet_pt, jet.jet_eta], directions(*momentum[:3, 0])[:2])
    assert jet.part_isNeutralHadron.to_list() == [False] * 3 and jet.part_charge.to_list() == [1, 0, 1] and jet.label_Zqq


def test_substructure_of_a_jet_known_by_hand():
    "Two hard prongs and one soft particle at a wide angle, which soft drop removes."
    p = particles([300.0, 200.0, 5.0], [0.0, 0.0, 0.0], [0.0, 0.3, -0.6], 0, mass=0.0)
    found = simulation.substructure(simulation.four_momenta(p, [3]))
    assert found["jet_sdmass"][0] == pytest.approx(np.sqrt(2 * 300 * 200 * (1 - np.cos(0.3))), rel=1e-5)
    assert found["jet_tau2"][0] == pytest.approx(5 * 0.6 / (505 * 0.8), rel=0.02)
    assert found["jet_tau1"][0] == pytest.approx((200 * 0.3 + 5 * 0.6) / (505 * 0.8), rel=0.02)  # the axis of least sum lies on the hardest
    assert found["jet_tau3"][0] == pytest.approx(0, abs=1e-6) and found["jet_tau4"][0] == pytest.approx(0, abs=1e-6)


def plain_partons(event, resonance):
    "The visible decay partons of each resonance of one event, particle after particle."
    prt = event.prt.to_list()

    def daughters(p):
        return [prt[i] for i in range(p["daughter1"], p["daughter2"] + 1) if i] if p["daughter2"] >= p["daughter1"] else [prt[p["daughter1"]], prt[p["daughter2"]]]

    def last(p):
        same = [d for d in daughters(p) if p["daughter1"] and d["id"] == p["id"]]
        return last(same[0]) if same else p

    def leaves(p):
        if abs(p["id"]) in (24, resonance):
            return [leaf for d in daughters(last(p)) for leaf in leaves(d)]
        return [last(p)] if abs(p["id"]) in (11, 13) else [p] if abs(p["id"]) in (1, 2, 3, 4, 5, 21) else []

    found = [leaves(p) for p in prt if abs(p["id"]) == resonance and not any(d["id"] == p["id"] for d in daughters(p))]
    return [[(q["p"]["px"], q["p"]["py"], q["p"]["pz"]) for q in partons] for partons in found if partons]


@pytest.mark.parametrize("process, n_partons", [("HToWW2Q1L", {3}), ("TTBarLep", {2}), ("ZToQQ", {2}), ("TTBar", {3})])
def test_truth_match_agrees_with_a_walk_through_the_event(process, n_partons):
    pythia, hook = start_pythia(process)
    events = pythia.nextBatch(8)
    resonance = simulation.PROCESSES[process].resonance
    event, eta, phi = decay_partons(events, resonance)
    plain = [(k, [directions(*np.array(q)) for q in partons]) for k in range(len(events)) for partons in plain_partons(events[k], resonance)]
    assert set(np.isfinite(eta).sum(axis=1)) == n_partons
    assert sorted((int(e), sorted(np.round(x[np.isfinite(x)], 9))) for e, x in zip(event, eta)) == sorted((k, sorted(round(float(q[1]), 9) for q in qs)) for k, qs in plain)
    jets = np.repeat(np.arange(len(events)), 20), *np.random.default_rng(6).uniform([[-1.5], [-3.14]], [[1.5], [3.14]], (2, 160))
    one = event[:1], eta[:1], phi[:1]
    jets = np.append(jets[0], one[0]), np.append(jets[1], np.nanmean(one[1])), np.append(jets[2], one[2][0, np.isfinite(one[2][0])][0])
    expected = [any(k == e and all(np.hypot(y - a, np.angle(np.exp(1j * (f - b)))) < 0.8 for _, y, f in partons) for k, partons in plain) for e, a, b in zip(*jets)]
    assert truth_matched(jets, (event, eta, phi)).tolist() == expected


def test_the_vincia_shower_starts():
    pythia, hook = start_pythia("ZToQQ", ["PartonShowers:model = 2"])
    assert len(pythia.nextBatch(2)) == 2 and pythia.settings.mode("PartonShowers:model") == 2


def test_a_worker_imports_what_it_needs():
    code = "import sys, omnijet.simulation as s; s.simulate('HToBB', 1); print({'torch', 'lightning', 'matplotlib', 'sklearn', 'scipy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_neither_pythia_nor_fastjet_says_anything(capfd):
    assert len(simulate("ZToQQ", 2, settings=["PartonShowers:model = 2"])) == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("process", CLASSES)
def test_every_class(process, monkeypatch):
    monkeypatch.setattr(simulation, "BATCH", 20)
    columns = simulate(process, 3, seed=5)
    assert len(columns) == 3
    label = LABELS[CLASSES.index(process)]
    assert all((columns[name] == (name == label)).to_list() == [True] * 3 for name in LABELS)
    assert ak.all((columns.jet_pt > 500) & (columns.jet_pt < 1000) & (abs(columns.jet_eta) < 2))
    pt = np.hypot(columns.part_px, columns.part_py)
    assert ak.all(pt[:, 1:] <= pt[:, :-1])
    assert ak.all(columns.jet_nparticles == ak.num(pt))
    assert np.allclose(ak.sum(columns.part_px, axis=1), columns.jet_pt * np.cos(columns.jet_phi), atol=0.05)
    mass2 = columns.part_energy**2 - pt**2 - columns.part_pz**2
    assert ak.all(abs(mass2[columns.part_charge == 0]) < 1e-5 * columns.part_energy[columns.part_charge == 0] ** 2)
    eta = np.arcsinh(columns.part_pz / pt)
    assert ak.all(abs(columns.part_deta - np.where(columns.jet_eta > 0, 1, -1) * (eta - columns.jet_eta)) < 1e-4)


def test_more_jets_begin_with_the_same_ones_and_seeds_differ(monkeypatch):
    monkeypatch.setattr(simulation, "BATCH", 20)
    few, many, other, shard = simulate("WToQQ", 5), simulate("WToQQ", 12), simulate("WToQQ", 5, seed=2), simulate("WToQQ", 5, shard=1)
    assert ak.array_equal(few, many[:5])
    assert not {*few.jet_pt.to_list()} & ({*other.jet_pt.to_list()} | {*shard.jet_pt.to_list()})


SCRIPT = """
from omnijet.simulation import simulate_files
if __name__ == "__main__":
    simulate_files({out!r}, n=30, classes=["HToBB"], shard_size=10, workers={workers}, seed=3)
"""


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    out = tmp_path_factory.mktemp("one_worker")
    files = simulate_files(out, n=30, classes="HToBB", shard_size=10, workers=1, seed=3, progress=False)
    return [ak.from_parquet(file) for file in files]


def test_a_killed_run_resumes_to_the_same_jets(one_worker, tmp_path):
    run = subprocess.Popen([sys.executable, "-c", SCRIPT.format(out=str(tmp_path), workers=2)], start_new_session=True, stderr=subprocess.PIPE,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))     # also where the tests run in the background
    while not list(tmp_path.glob("HToBB_*.parquet")) and run.poll() is None:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(timeout=20) != 0
    finished = {file: file.stat().st_mtime_ns for file in tmp_path.glob("HToBB_*.parquet")}
    assert 1 <= len(finished) < 3
    files = simulate_files(tmp_path, n=30, classes="HToBB", shard_size=10, workers=2, seed=3, progress=False)
    assert all(file.stat().st_mtime_ns == then for file, then in finished.items())
    assert [file.name for file in files] == [f"HToBB_{i:05d}.parquet" for i in range(3)]
    assert all(ak.array_equal(ak.from_parquet(file), expected) for file, expected in zip(files, one_worker))


def test_dask_makes_the_same_jets(one_worker, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as grid, distributed.Client(grid) as client:
        files = simulate_files(tmp_path, n=20, classes="HToBB", shard_size=10, seed=3, executor=client.get_executor(), progress=False)
    assert all(ak.array_equal(ak.from_parquet(file), expected) for file, expected in zip(files, one_worker))


def test_metadata_tells_how_a_file_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "BATCH", 10)
    softer = "TimeShower:alphaSvalue = 0.12"
    varied = simulation.Shard(str(tmp_path / "WToQQ_00002.parquet"), "WToQQ", 2, 1, 2, (softer,))
    assert make_shard(varied) == 2
    about = read_metadata(varied.path)
    assert about["settings"] == [softer] and softer in about["pythia"]
    assert (about["process"], about["n"], about["seed"], about["index"]) == ("WToQQ", 2, 1, 2)
    program, word, *options = shlex.split(about["command"])
    assert (program, word) == ("omnijet", "simulate")
    assert {"--classes=WToQQ", "--n=2", "--seed=1", "--start=2", f"--settings={softer}"} <= {*options}
    assert {"omnijet", "pythia8mc", "fastjet"} <= about["origin"]["versions"].keys()
    plain = simulate("WToQQ", 2, shard=2)
    assert not ak.array_equal(plain.jet_pt, ak.from_parquet(varied.path).jet_pt)


def test_root_files_hold_the_same_jets(tmp_path, monkeypatch):
    import uproot

    monkeypatch.setattr(simulation, "BATCH", 10)
    shards = [simulation.Shard(str(tmp_path / f"TTBarLep_00000.{kind}"), "TTBarLep", 4, 1, 0) for kind in ("root", "parquet")]
    for shard in shards:
        make_shard(shard)
        assert holds(shard.path, shard.facts())
    tree, parquet = uproot.open(shards[0].path)["tree"], ak.from_parquet(shards[1].path)
    assert set(parquet.fields) <= set(tree.keys())
    for name in parquet.fields:
        assert tree[name].array().to_list() == parquet[name].to_list(), name
    assert ak.array_equal(read_jets(shards[0].path), read_jets(shards[1].path))


def test_as_many_files_of_jetclass_are_linked_as_are_needed(tmp_path):
    jets = ak.from_parquet(Path(__file__).parents[1] / "data" / "TTBar.parquet")[:30]
    for i in range(3):
        write_columns(jets[10 * i : 10 * i + 10], tmp_path / "test_20M" / f"TTBar_{100 + i}.root")
    for again in range(2):
        links = link_jetclass(tmp_path, tmp_path / "run", "test", {"TTBar": 11})
        assert [link.name for link in links] == ["TTBar_100.root", "TTBar_101.root"]
        assert all(link.resolve().parent == tmp_path.resolve() / "test_20M" for link in links)
    with pytest.raises(OmnijetError, match="30 jets of TTBar, 31 asked for"):
        link_jetclass(tmp_path, tmp_path / "run", "test", {"TTBar": 31})
    with pytest.raises(OmnijetError, match="no such folder"):
        link_jetclass(tmp_path, tmp_path / "run", "val", {"TTBar": 1})


def test_rounded_numbers_stay_close():
    values = ak.Array([[1.2345678, -2e-3], [], [3e5]])
    rounded = simulation._round(ak.values_astype(values, np.float32), 12)
    assert np.allclose(ak.flatten(rounded), ak.flatten(values), rtol=2**-13) and not ak.array_equal(rounded, values)
    bits = ak.to_numpy(ak.flatten(rounded)).view(np.uint32)
    assert (bits & 0x7FF == 0).all() and ak.num(rounded).to_list() == [2, 0, 1]


def test_bad_input_is_one_clear_line(tmp_path):
    with pytest.raises(OmnijetError, match="no jet class 'HToZZ'"):
        simulate("HToZZ", 1)
    with pytest.raises(OmnijetError, match="no setting 'PartonShowers:modl = 2'"):
        simulate_files(tmp_path, n=1, classes="TTBar", settings=["PartonShowers:modl = 2"], progress=False)
    with pytest.raises(OmnijetError, match="no format 'csv'"):
        simulate_files(tmp_path, format="csv")
    with pytest.raises(OmnijetError, match="n is 0"):
        simulate_files(tmp_path, n=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OmnijetError, match="cannot be written"):
        make_shard(simulation.Shard(str(tmp_path / "file" / "WToQQ_00000.parquet"), "WToQQ", 1, 1, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_seed_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "BATCH", 10)
    make_shard(simulation.Shard(str(tmp_path / "WToQQ_00000.parquet"), "WToQQ", 1, 1, 0))
    with pytest.raises(OmnijetError, match=r"WToQQ_00000.parquet: holds other jets \(seed 1, expected 2\)"):
        simulate_files(tmp_path, n=1, classes="WToQQ", seed=2, progress=False)


def test_the_sample_cannot_be_told_from_real_jets(jetclass):
    import uproot

    real = shapes(uproot.open(jetclass / "HToBB_1500.root")["tree"].arrays())
    sample = shapes(ak.from_parquet(Path(__file__).parents[1] / "data" / "HToBB.parquet"))
    auc, error = two_sample_auc(real, sample)
    assert auc < 0.52, f"{auc:.3f} ± {error:.3f}"
    for name in ("mass", "n", "mean_dr"):
        quantiles = np.percentile(sample[name], [10, 50, 90]) / np.percentile(real[name], [10, 50, 90])
        assert np.allclose(quantiles, 1, atol=0.04), (name, quantiles)


def test_jets_of_another_momentum(tmp_path):
    "In files that say so; those of JetClass's momenta are the same whether it is given or not."
    few = dict(n=3, classes="WToQQ", progress=False, settings="PhaseSpace:pTHatMin = 250")
    file, = simulate_files(tmp_path / "soft", jet_pt="300,400.5", **few)
    jets = ak.from_parquet(file)
    assert len(jets) == 3 and ak.all((jets.jet_pt > 300) & (jets.jet_pt < 400.5))
    assert read_metadata(file)["jet_pt"] == [300, 400.5] and "--jet-pt=300.0,400.5" in read_metadata(file)["command"].split()
    assert ak.array_equal(simulate("WToQQ", 3, settings=["PhaseSpace:pTHatMin = 250"], jet_pt=(300, 400.5)).jet_pt, jets.jet_pt)
    for other in (None, (300, 401)):
        with pytest.raises(OmnijetError, match="jet_pt"):
            simulate_files(tmp_path / "soft", jet_pt=other, **few)
    usual, = simulate_files(tmp_path / "usual", **few)
    before = usual.stat().st_mtime_ns
    assert simulate_files(tmp_path / "usual", jet_pt=(500, 1000), **few) == [usual] and usual.stat().st_mtime_ns == before
    assert ak.all(ak.from_parquet(usual).jet_pt > 500)


def test_jets_of_other_pythia_settings_are_not_taken_for_these(tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "BATCH", 10)
    shard = simulation.Shard(str(tmp_path / "WToQQ_00000.parquet"), "WToQQ", 2, 1, 0)
    make_shard(shard)
    assert holds(shard.path, shard.facts())
    monkeypatch.setattr(simulation, "COMMON", (*simulation.COMMON, "TimeShower:alphaSvalue = 0.12"))
    with pytest.raises(OmnijetError, match=r"pythia \[\], expected \['TimeShower:alphaSvalue = 0.12'\]"):
        holds(shard.path, shard.facts())
    assert not holds(shard.path, shard.facts(), replace=True)


@pytest.mark.parametrize("wrong", [dict(seed=-1), dict(seed=2**63), dict(seed=True), dict(workers=-1), dict(workers="all"), dict(shard_size=0), dict(start=-1),
                                   dict(start=100_000), dict(mantissa_bits=0), dict(mantissa_bits=24), dict(replace="yes"), dict(n={"TTBar": -1}), dict(classes=[]), dict(jet_pt=500),
                                   dict(jet_pt="500"), dict(jet_pt=(600, 500)), dict(jet_pt="a,b"), dict(jet_pt=(-1, 500))])
def test_options_out_of_range_name_themselves(wrong, tmp_path):
    with pytest.raises(OmnijetError, match=f"^{next(iter(wrong))} is"):
        simulate_files(tmp_path / "out", **{"n": 1, "progress": False} | wrong)
    assert not (tmp_path / "out").exists()


def test_numbers_of_any_library(tmp_path):
    options = dict(seed=np.array(3), workers="1", shard_size=np.int64(1), start="4", mantissa_bits=np.uint8(10))
    files = simulate_files(tmp_path, {"TTBar": np.int8(2), "label_Hbb": "1"}, settings="TimeShower:alphaSvalue = 0.12", progress=False, **options)
    assert [file.name for file in files] == ["TTBar_00004.parquet", "TTBar_00005.parquet", "HToBB_00004.parquet"]
    about = read_metadata(files[0])
    assert about["settings"] == ["TimeShower:alphaSvalue = 0.12"] and (about["seed"], about["index"]) == (3, 4)


@pytest.mark.parametrize("settings", ["", "!x", "x", ["PartonShowers:model = 9"], [3], None, ["25:onMode = off\n24:onMode = off"]])
def test_settings_that_pythia_would_pass_over(settings, capfd):
    with pytest.raises(OmnijetError, match="Pythia has no setting"):
        simulate("TTBar", 1, settings=settings)


def test_settings_without_jets_end(monkeypatch):
    monkeypatch.setattr(simulation, "BATCH", 1)
    with pytest.raises(OmnijetError, match="no jet of ZToQQ in 100 events"):
        simulate("ZToQQ", 1, settings=["PhaseSpace:pTHatMin = 20", "PhaseSpace:pTHatMax = 60"])


def test_what_others_made_is_kept(tmp_path):
    sample = ak.from_parquet(Path(__file__).parents[1] / "data" / "TTBar.parquet")[:3]
    write_columns(sample, tmp_path / "a" / "mine.parquet")
    with pytest.raises(OmnijetError, match="mine.parquet: not simulated here"):
        simulate_files(tmp_path / "a", 1, "TTBar", replace=True, workers=1, progress=False)
    write_columns(sample, tmp_path / "val_5M" / "TTBar_120.root")
    write_columns(sample, tmp_path / "run" / "val" / "TTBar_120.root")
    before = (tmp_path / "run" / "val" / "TTBar_120.root").read_bytes()
    with pytest.raises(OmnijetError, match="TTBar_120.root: no link"):
        link_jetclass(tmp_path, tmp_path / "run", "val", {"TTBar": 2})
    assert (tmp_path / "run" / "val" / "TTBar_120.root").read_bytes() == before
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "val").symlink_to(tmp_path / "val_5M")
    with pytest.raises(OmnijetError, match="TTBar_120.root: no link"):
        link_jetclass(tmp_path, tmp_path / "same", "val", {"TTBar": 2})
    assert len(read_jets(tmp_path / "val_5M")) == 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_script_without_a_main_guard(how, tmp_path):
    script = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom omnijet.simulation import simulate_files\nsimulate_files({str(tmp_path)!r}, 9000, 'TTBar', shard_size=3, workers=2)\n"
    (tmp_path / "script.py").write_text(script)
    run = subprocess.Popen([sys.executable, tmp_path / "script.py"], stderr=subprocess.PIPE, start_new_session=True)
    while not list(tmp_path.glob("TTBar_*.parquet")) and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(how)
    assert run.wait(timeout=20) != 0
    for _ in range(100):  # nobody of its group is left, but for what the system has yet to bury
        states = subprocess.run(["ps", "-o", "stat=", "-g", str(run.pid)], capture_output=True, text=True).stdout.split()
        if all(state.startswith("Z") for state in states):
            return
        time.sleep(0.1)
    pytest.fail(f"{states} left")
