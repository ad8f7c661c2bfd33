"""Other people's files: each format as its own project writes it, own layouts, events, labels, and what is refused."""
import json
from dataclasses import replace

import awkward as ak
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot

from omnijet import formats, run
from omnijet.data import AXIS, MOMENTA, JetStream, Ragged, count_entries, iter_jets, momenta, read_jets, read_tokens, sample_jets, to_columns, to_jets
from omnijet.files import OmnijetError, write_columns
from omnijet.formats import CLASSES, LABELS, Layout, add_class, as_layout, class_indices, class_key, class_name, find_layout, of_classes
from omnijet.generation import generate_files, pretrain_files
from omnijet.training import training_data
from omnijet.transfer import JetClassifier
from omnijet.vqvae import BinnedTokenizer, tokenize_files

N, M = 40, 30  # jets; constituents at most, as JetNet has them


@pytest.fixture(scope="module")
def truth():
    "q/g and t → bqq′ jets of at most 30 constituents with the axis of their sum: columns in float32."
    jets = sample_jets(["ZJetsToNuNu", "TTBar"], N // 2)
    order = np.random.default_rng(1).permutation(N)
    columns = to_columns(jets[order])
    columns = ak.zip({name: columns[name][:, :M] if name.startswith("part_") else columns[name] for name in columns.fields}, depth_limit=1)
    jets = to_jets(columns[[*MOMENTA, *LABELS]])  # the axis of the sum of what is left
    return to_columns(jets)


def axis_of(jets):
    return {name: jets[name].to_numpy() for name in AXIS}


def padded(values, size=M):
    return ak.to_numpy(ak.fill_none(ak.pad_none(values, size, clip=True), 0.0)).astype(np.float32)


def angles(jets):
    "p_T, η, φ of constituents in float64."
    px, py, pz = (ak.values_astype(jets[name], np.float64) for name in MOMENTA)
    pt = np.hypot(px, py)
    return pt, np.arcsinh(pz / pt), np.arctan2(py, px)


def wrapped(phi):
    return (phi + np.pi) % (2 * np.pi) - np.pi


def is_top(jets):
    return jets.label_Tbqq.to_numpy().astype(int)


def plain_parquet(columns, path):
    "As other programs write it: no checksums, one row group."
    pq.write_table(ak.to_arrow_table(ak.zip(columns, depth_limit=1), list_to32=True, extensionarray=False), path)
    return path


def jetclass(folder, jets, labelled, suffix):
    columns = {name: jets[name] for name in jets.fields if labelled or not name.startswith("label_")}
    pt, eta, phi = angles(jets)
    columns["part_deta"] = ak.values_astype((eta - jets.jet_eta) * np.where(jets.jet_eta > 0, 1, -1), np.float32)
    columns["part_dphi"] = ak.values_astype(wrapped(phi - jets.jet_phi), np.float32)
    path = folder / f"mixed.{suffix}"
    if suffix == "parquet":
        return plain_parquet(columns, path), {}
    with uproot.recreate(path) as file:
        file["tree"] = {name: values for name, values in columns.items()}
    return path, {}


def jetclass_2(folder, jets, labelled):
    columns = {name: jets[name] for name in jets.fields if not name.startswith("label_")}
    number = np.where(is_top(jets) == 1, 17, 161 + np.arange(len(jets)) % 27)
    return plain_parquet(columns | ({"jet_label": number} if labelled else {}), folder / "Res2P_0000.parquet"), {}


def weaver(folder, jets, labelled, pid=False):
    pt, eta, phi = angles(jets)
    columns = {name: jets[name] for name in [*MOMENTA, "part_energy", *AXIS, "jet_energy", "jet_nparticles"]}
    columns["part_deta"] = (eta - jets.jet_eta) * np.where(jets.jet_eta > 0, 1, -1)
    columns["part_dphi"] = wrapped(phi - jets.jet_phi)
    if pid:
        columns["part_pid"] = ak.values_astype(pt * 0 + 22, np.int32)
    return plain_parquet(columns | ({"label": is_top(jets)} if labelled else {}), folder / "test.parquet"), {}


def top_tagging(folder, jets, labelled, kind):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    energy, px, py, pz = (padded(jets[name], 200) for name in ("part_energy", *MOMENTA))
    table = np.stack([energy, px, py, pz], 2).reshape(len(jets), -1)
    frame = pd.DataFrame(table, columns=[f"{name}_{i}" for i in range(200) for name in ("E", "PX", "PY", "PZ")])
    frame = frame.assign(truthE=np.float32(0), truthPX=np.float32(0), truthPY=np.float32(0), truthPZ=np.float32(0), ttv=2)
    if labelled:
        frame["is_signal_new"] = is_top(jets)
    options = {"complib": "blosc", "complevel": 5} if kind == "table" else {}
    frame.to_hdf(folder / "test.h5", key="table", mode="w", format=kind, **options)
    return folder / "test.h5", {}


def energyflow(folder, jets, labelled):
    pt, eta, phi = angles(jets)  # photons, so that the rapidity is the pseudorapidity
    x = np.stack([ak.to_numpy(ak.fill_none(ak.pad_none(values, M), 0.0)) for values in (pt, eta, phi % (2 * np.pi), pt * 0 + 22)], 2)
    np.savez_compressed(folder / "QG_jets_1.npz", X=x, **({"y": is_top(jets).astype(float)} if labelled else {}))
    return folder / "QG_jets_1.npz", {}


def jetnet(folder, jets, labelled):
    pt, eta, phi = angles(jets)
    features = [padded(x) for x in (eta - jets.jet_eta, wrapped(phi - jets.jet_phi), pt / jets.jet_pt)]
    mask = padded(pt * 0 + 1)
    path = folder / ("t.hdf5" if labelled else "jets.hdf5")
    with h5py.File(path, "w") as file:
        file["particle_features"] = np.stack([*features, mask], 2)
        file["jet_features"] = np.stack([np.asarray(x) for x in (jets.jet_pt, jets.jet_eta, 0 * jets.jet_eta, ak.num(pt))], 1).astype(np.float32)
    return path, {}


def aspen(folder, jets, labelled):
    "Momenta before their weight, candidates of weight 0, not sorted; labels are the reader's."
    rng, n = np.random.default_rng(2), len(jets)
    weight = rng.choice([1.0, 0.5, 0.25], (n, M))
    candidates = np.zeros((n, 150, 11), np.float32)
    real = padded(jets.part_px * 0 + 1) > 0
    for i, name in enumerate([*MOMENTA, "part_energy"]):
        candidates[:, :M, i] = padded(jets[name]) / weight
    candidates[:, :M, 10] = weight * real
    candidates[:, M : M + 5, :4] = 20.0  # pile-up: weight 0
    candidates[:, :, 4:8] = -1.0  # no track
    candidates[:, 0, 4:8] = [0.01, 0.02, 0.03, 0.04]
    candidates[:, 1, 4:8] = [-1.0, 0.02, 0.03, 0.04]  # a track whose d0 happens to be −1
    order = rng.permuted(np.tile(np.arange(150), (n, 1)), axis=1)
    candidates = np.take_along_axis(candidates, order[..., None], 1)
    with h5py.File(folder / "RunG_batch0.h5", "w") as file:
        file["PFCands"] = candidates
        file["jet_kinematics"] = np.stack([np.asarray(x) for x in (1.1 * jets.jet_pt, jets.jet_eta, jets.jet_phi, 0 * jets.jet_pt + 80)], 1).astype(np.float32)
        file["event_info"] = np.zeros((n, 3), np.int64)
        file["jet_tagging"] = np.zeros((n, 13), np.float32)
    return folder / "RunG_batch0.h5", {"labels": "CMS data"} if labelled else {}


def own_names(folder, jets, labelled):
    pt, eta, phi = angles(jets)
    with uproot.recreate(folder / "mine.root") as file:
        file["Jets"] = {"PF_pt": ak.values_astype(pt, np.float32), "PF_eta": ak.values_astype(eta, np.float32), "PF_phi": ak.values_astype(phi, np.float32),
                        "J_pt": jets.jet_pt, "J_eta": jets.jet_eta, "J_phi": jets.jet_phi, "is_sig": is_top(jets), "is_bkg": 1 - is_top(jets)}
        file["Runs"] = {"run": np.arange(3)}
    layout = {"tree": "Jets", "columns": {"part_pt": "PF_pt", "part_eta": "PF_eta", "part_phi": "PF_phi"}, "jet": "J"}
    return folder / "mine.root", layout | ({"labels": {"background": "is_bkg", "signal": "is_sig"}} if labelled else {})


def events_of(jets, seed=3):
    "Jets in events of 0 … 3, with candidates of no jet among theirs, in any order: columns as in (PF)NanoAOD."
    rng, first, events = np.random.default_rng(seed), 0, []
    parts = [jets[name].to_list() for name in (*MOMENTA, "part_energy")]
    axis, label = [jets[name].to_list() for name in AXIS], is_top(jets)
    while first < len(jets):
        chosen = range(first, min(first + int(rng.integers(4)), len(jets)))
        first = chosen.stop
        found = [(*(p[j][i] for p in parts), k) for k, j in enumerate(chosen) for i in range(len(parts[0][j]))]
        found += [(5.0, 5.0, 5.0, 8.7, -1)] * int(rng.integers(1, 4))
        order = rng.permutation(len(found))
        found = [found[i] for i in order]
        linked = rng.permutation([i for i, x in enumerate(found) if x[4] >= 0]).astype(int)
        events.append({"PFCands_px": [x[0] for x in found], "PFCands_py": [x[1] for x in found], "PFCands_pz": [x[2] for x in found],
                       "FatJetPFCands_jetIdx": [found[i][4] for i in linked] + [-1], "FatJetPFCands_pFCandsIdx": [*linked.tolist(), 0],
                       **{name.replace("jet", "FatJet"): [values[j] for j in chosen] for name, values in zip(AXIS, axis)},
                       "FatJet_top": [int(label[j]) for j in chosen], "MET_pt": float(len(chosen))})
    return events


def nanoaod(folder, jets, labelled):
    events = events_of(jets)
    kinds = {name: np.int32 if "Idx" in name or name.endswith("top") else np.float32 for name in events[0]}
    with uproot.recreate(folder / "nano.root") as file:
        file["Events"] = {name: np.array([e[name] for e in events]) if name == "MET_pt" else
                          ak.values_astype(ak.concatenate([ak.Array([[0.0]])[:, :0], ak.Array([e[name] for e in events])])[1:], kind) for name, kind in kinds.items()}
        file["Runs"] = {"run": np.arange(1)}
    layout = {"tree": "Events", "columns": {name: name.replace("part", "PFCands") for name in MOMENTA},
              "jet": {"pt": "FatJet_pt", "eta": "FatJet_eta", "phi": "FatJet_phi", "jet_index": "FatJetPFCands_jetIdx", "part_index": "FatJetPFCands_pFCandsIdx"}}
    if labelled:
        layout["columns"]["label"], layout["labels"] = "FatJet_top", {"ZJetsToNuNu": 0, "TTBar": 1}
    return folder / "nano.root", layout


def jagged_hdf5(folder, jets, labelled):
    with h5py.File(folder / "jagged.h5", "w") as file:
        for name in MOMENTA:
            data = file.create_dataset(f"candidates/{name}", (len(jets),), dtype=h5py.vlen_dtype(np.float32))
            for i, values in enumerate(jets[name]):
                data[i] = values.to_numpy()
        file["truth"] = is_top(jets)
    layout = {"columns": {name: f"candidates/{name}" for name in MOMENTA}}
    if labelled:
        layout["columns"]["label"], layout["labels"] = "truth", {"QCD jets": [0], "tops": [1, 2]}
    return folder / "jagged.h5", layout


TOP, QG = ("ZJetsToNuNu", "TTBar"), ("gluon", "quark")
FORMATS = {  # how it is written, the classes of q/g and top jets
    "JetClass, ROOT": (lambda *x: jetclass(*x, "root"), TOP), "JetClass, Parquet": (lambda *x: jetclass(*x, "parquet"), TOP),
    "JetClass-II": (jetclass_2, ("ZJetsToNuNu", "JetClass2_17")), "weaver, top": (weaver, TOP), "weaver, q/g": (lambda *x: weaver(*x, True), QG),
    "top tagging, table": (lambda *x: top_tagging(*x, "table"), TOP), "top tagging, fixed": (lambda *x: top_tagging(*x, "fixed"), TOP),
    "EnergyFlow": (energyflow, QG), "JetNet": (jetnet, ("TTBar", "TTBar")), "Aspen Open Jets": (aspen, ("CMS data", "CMS data")),
    "own names": (own_names, ("background", "signal")), "NanoAOD": (nanoaod, TOP), "jagged HDF5": (jagged_hdf5, ("QCD jets", "tops")),
}
each_format = pytest.mark.parametrize("name", FORMATS)
both = pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])


def same_jets(found, truth):
    "Momenta to float32 precision: p_T and relative angles (JetNet has no absolute φ), and the masses of the jets."
    expected = to_jets(truth)
    assert ak.num(found.constituents).to_list() == ak.num(expected.constituents).to_list()
    a, b = Ragged.from_jets(found).content.astype(float), Ragged.from_jets(expected).content.astype(float)
    assert np.max(np.abs(a[:, 0] / b[:, 0] - 1)) < 1e-6 and np.max(np.abs(a[:, 1:] - b[:, 1:])) < 5e-6
    assert found.pt.to_numpy() == pytest.approx(expected.pt.to_numpy(), rel=1e-6) and found.eta.to_numpy() == pytest.approx(expected.eta.to_numpy(), abs=5e-6)
    masses = [ak.sum(momenta(jets.constituents), axis=1).mass.to_numpy() for jets in (found, expected)]
    assert masses[0] == pytest.approx(masses[1], rel=2e-5)


@both
@each_format
def test_momenta_masses_and_classes(tmp_path, truth, name, labelled):
    write, classes = FORMATS[name]
    path, layout = write(tmp_path, truth, labelled)
    jets = read_jets(path, **layout)
    same_jets(jets, truth)
    expected = [classes[x] if labelled else "unlabelled" for x in is_top(truth)]
    assert [class_key(x) for x in jets.label] == expected
    assert count_entries(path, layout=as_layout(layout or None)) == N and len(set(jets.id.to_list())) == N


@both
@each_format
def test_read_tokenize_pretrain_generate(tmp_path, truth, name, labelled, capsys):
    "From a file to new jets: tokens, 10 steps of a tiny model, five jets; a stream gives the same jets."
    path, layout = FORMATS[name][0](tmp_path, truth, labelled)
    layout = as_layout(layout or None)
    jets = read_jets(path, layout=layout)
    tokenizer = BinnedTokenizer.fit(jets, (5, 5, 5))
    (file,) = tokenize_files(tokenizer, path, tmp_path / "tokens", layout=layout, progress=False)
    table = read_tokens(file)
    assert ak.all(table.tokens == tokenizer.encode(jets)) and table.label.to_list() == jets.label.to_list()
    stream = JetStream(path, batch_size=16, segment=20, chunk=7, layout=layout)
    seen = [(i, k) for batch in stream for i, k in zip(batch["id"].numpy().view(np.uint64).tolist(), batch["label"].tolist())]
    assert sorted(seen) == sorted(zip(jets.id.to_list(), jets.label.to_list()))
    assert len(training_data(path, layout=layout)) == N
    small = {"width": 8, "blocks": 1, "heads": 1, "batch_size": 8, "epochs": 2, "progress": False}
    made = pretrain_files(path, tmp_path / "model", tokenizer, layout=layout, **small)
    assert made["n_jets"] == 38 and made["epochs"] == 2 and np.isfinite(made["val_loss"])  # 2 × 5 steps
    (file,) = generate_files(tmp_path / "model", tmp_path / "more", 5, tokenizer, progress=False)
    new = read_jets(file)
    assert set(new.label.to_list()) == {-1} and len(read_tokens(file)) == 5
    assert "perplexity" in capsys.readouterr().out


def test_public_files(public):
    "1,000 jets of the top-tagging benchmark and 1,000 quark/gluon jets in their public formats: against what h5py and numpy read."
    with h5py.File(public / "top_tagging_1000.h5") as file:
        rows = file["table/table"]["values_block_0"][:, :800].reshape(1000, 200, 4).astype(float)
        signal = file["table/table"]["values_block_1"][:, 1]
    jets = read_jets(public / "top_tagging_1000.h5")
    assert jets.label.to_numpy().tolist() == np.where(signal == 1, 8, 0).tolist()
    total = rows.sum(1)
    assert jets.pt.to_numpy() == pytest.approx(np.hypot(total[:, 1], total[:, 2]), rel=1e-6) and 549 < min(jets.pt) and max(jets.pt) < 651
    x = np.load(public / "QG_jets_1000.npz")
    quarks = read_jets(public / "QG_jets_1000.npz")
    assert [class_key(k) for k in quarks.label] == ["quark" if y == 1 else "gluon" for y in x["y"]]
    assert 499 < min(quarks.pt) and max(quarks.pt) < 551
    pt, y, phi = np.moveaxis(x["X"].astype(float), 2, 0)[:3]
    given = {"pt": np.hypot(rows[..., 1], rows[..., 2]), "px": rows[..., 1], "py": rows[..., 2], "pz": rows[..., 3]}, {
        "pt": pt, "px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(y)}
    for found, expected in zip((jets, quarks), given):
        inside = ak.num(found.constituents).to_numpy() == np.minimum((expected["pt"] > 0).sum(1), 128)  # none beyond the cuts
        assert inside.mean() > 0.9
        energy = np.sqrt(sum(expected[name] ** 2 for name in ("px", "py", "pz")))
        square = energy.sum(1) ** 2 - sum(expected[name].sum(1) ** 2 for name in ("px", "py", "pz"))
        mass = ak.sum(momenta(found.constituents), axis=1).mass.to_numpy()
        assert mass[inside] == pytest.approx(np.sqrt(square)[inside], rel=1e-4)
        for i in np.flatnonzero(inside)[:200]:
            hardest = np.sort(expected["pt"][i])[::-1][: len(found.constituents[i])]
            assert found.constituents.pt[i].to_numpy() == pytest.approx(hardest, rel=1e-6)


# Traps

def test_rapidity_of_massive_particles(tmp_path):
    "EnergyFlow's y of a slow proton is not its η; the particle's number gives the mass."
    rng = np.random.default_rng(4)
    pt, y, phi = rng.uniform(0.5, 3, (2, 6)), rng.normal(0.3, 0.2, (2, 6)), rng.normal(3.1, 0.2, (2, 6))
    pid = np.tile([2212, -2212, 211, 22, 130, 0], (2, 1))
    np.savez(tmp_path / "x.npz", X=np.stack([pt, y, phi, pid], 2), y=[0.0, 1.0])
    jets = read_jets(tmp_path / "x.npz")
    mass = np.array([0.938272, 0.938272, 0.13957, 0, 0.497611, 0])
    pz = np.sqrt(pt**2 + mass**2) * np.sinh(y)
    eta = np.arcsinh(pz / pt)
    order = np.argsort(-pt, axis=1)
    found = ak.to_numpy(jets.constituents.eta_rel) + jets.eta.to_numpy()[:, None]
    assert found == pytest.approx(np.take_along_axis(eta, order, 1), abs=1e-5)
    assert np.abs(eta - y).max() > 0.05


def test_files_of_other_widths_in_one_folder(tmp_path, truth):
    "EnergyFlow's files differ in their number of places."
    a, b = (energyflow(tmp_path, truth[:, ] if i else truth, True)[0].rename(tmp_path / f"QG_jets_{i}.npz") for i in range(2))
    with np.load(b) as x:
        np.savez(b, X=np.pad(x["X"], ((0, 0), (0, 9), (0, 0))), y=x["y"])
    jets = read_jets(tmp_path)
    assert len(jets) == 2 * N and ak.all(jets.constituents.pt[:N] == jets.constituents.pt[N:])
    assert [len(x) for x in iter_jets(tmp_path, batch_size=30)] == [30, 10, 30, 10]


def test_aspen_weights_axis_and_tracks(tmp_path, truth):
    path, _ = aspen(tmp_path, truth, False)
    jets = read_jets(path, columns=["part_d0val", "part_dzerr", "jet_sdmass"])
    assert jets.pt.to_numpy() == pytest.approx(truth.jet_pt.to_numpy(), rel=1e-5)  # of the weighted sum, not the corrected 1.1 p_T
    first = jets.constituents[:, :2]
    assert set(np.round(ak.flatten(first.part_d0val), 3).to_list()) == {-1.0, 0.01} and set(np.round(ak.flatten(jets.constituents.part_dzerr), 3).to_list()) == {0.0, 0.04}
    assert ak.sum(jets.constituents.part_d0val == -1) == N and set(jets.jet_sdmass.to_list()) == {80.0}
    assert not any(name.startswith("label_") for name in to_columns(jets).fields)


def test_jetnet_masks(tmp_path, truth):
    "Padding is where the mask says so, whatever stands there; classes are the names of the files."
    path, _ = jetnet(tmp_path, truth, False)
    with h5py.File(path, "r+") as file:
        x = file["particle_features"][()]
        x[x[..., 3] == 0, 2] = 0.5
        file["particle_features"][...] = x
    same_jets(read_jets(path), truth)
    for name, key in {"g": "gluon", "q150": "quark", "w": "WToQQ", "z150": "ZToQQ", "t": "TTBar"}.items():
        path = path.rename(tmp_path / f"{name}.hdf5")
        assert {class_key(k) for k in read_jets(path).label} == {key}


def test_relative_to_mirrored_angles(tmp_path, truth):
    "p_T and ParT's part_deta alone: the sign of jet_eta is taken off again."
    path, _ = weaver(tmp_path, truth, True)
    pt, _, _ = angles(truth)
    columns = ak.from_parquet(path)
    columns = {name: columns[name] for name in ("part_deta", "part_dphi", *AXIS)} | {"part_pt": pt}
    plain_parquet(columns, tmp_path / "x.parquet")
    same_jets(read_jets(tmp_path / "x.parquet"), truth)
    del columns["jet_eta"]
    plain_parquet(columns, tmp_path / "x.parquet")
    with pytest.raises(OmnijetError, match="x.parquet: part_deta is relative to the jet, of which there is no jet_eta"):
        read_jets(tmp_path / "x.parquet")


# Events

def test_events_with_links_of_other_kinds(tmp_path, truth):
    "Lists of lists, counts, links beside the candidates, a list of indices for each jet: the same jets."
    def written(name, **columns):
        return plain_parquet({key: ak.Array(x) for key, x in columns.items()}, tmp_path / f"{name}.parquet")

    sizes = [2, 0, 3, 1] * 7
    sizes = [*sizes[: np.searchsorted(np.cumsum(sizes), N)], 0]
    sizes[-1] = N - sum(sizes)
    nested = {name: ak.unflatten(truth[name], sizes) for name in (*MOMENTA, *AXIS)}
    flat = {name: ak.flatten(nested[name], axis=2) for name in MOMENTA}
    axis = {name: nested[name] for name in AXIS}
    columns = {name: name for name in MOMENTA}
    counts = ak.num(nested["part_px"], axis=2)
    within = ak.flatten(ak.local_index(nested["part_px"], axis=1) + 0 * ak.local_index(nested["part_px"], axis=2), axis=2)
    place = ak.unflatten(ak.flatten(ak.local_index(flat["part_px"])), ak.flatten(counts))
    places = ak.unflatten(place, sizes)
    jet = {name: name for name in AXIS}
    paths = {
        written("nested", **nested): {"jet": jet}, written("counts", **flat, **axis, n=counts): {"jet": jet | {"counts": "n"}},
        written("beside", **flat, **axis, of=within): {"jet": jet | {"jet_index": "of"}},
        written("lists", **flat, **axis, places=places): {"jet": jet | {"part_index": "places"}},
        written("alone", **flat, of=within): {"jet": {"jet_index": "of"}},
    }
    for path, layout in paths.items():
        jets = read_jets(path, columns=columns, **layout)
        same_jets(jets, truth)
        assert count_entries(path, layout={"columns": columns, **layout}) == N
        parts = [x for x in iter_jets(path, layout={"columns": columns, **layout}, batch_size=3)]
        assert max(map(len, parts)) <= 3 and ak.all(ak.concatenate(parts).id == jets.id)


def test_values_of_events_and_further_columns(tmp_path, truth):
    path, layout = nanoaod(tmp_path, truth, True)
    layout["columns"] |= {"jet_met": "MET_pt", "part_double": "PFCands_px"}
    jets = read_jets(path, **layout)
    assert {"jet_met"} < set(jets.fields) and set(jets.jet_met.to_list()) <= {1.0, 2.0, 3.0}
    assert float(ak.max(abs(jets.constituents.part_double / (jets.constituents.pt * np.cos(jets.constituents.phi_rel + jets.phi)) - 1))) < 1e-2
    with pytest.raises(OmnijetError, match="nano.root: event 0 links candidate"):
        read_jets(path, **{**layout, "jet": {**layout["jet"], "part_index": "FatJetPFCands_jetIdx", "jet_index": "FatJetPFCands_pFCandsIdx"}})
    layout["jet"]["part_index"] = "PFCands_links"
    with pytest.raises(OmnijetError, match=r"nano.root: no branch PFCands_links \(has: "):
        read_jets(path, **layout)


# Layouts

def test_layouts_in_yaml_and_words(tmp_path, truth, capsys):
    path, layout = own_names(tmp_path, truth, True)
    (tmp_path / "mine.yaml").write_text(json.dumps(layout))  # JSON is YAML
    jets = read_jets(path, layout=tmp_path / "mine.yaml")
    assert ak.all(jets.label == read_jets(path, **layout).label)
    few = ["--width", "8", "--blocks", "1", "--heads", "1", "--epochs", "1", "--batch-size", "8", "--max-jets", "30"]
    words = ["pretrain", "--data", str(path), "--layout", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "model"), "--tokenizer", "omnijet/tokenizer-512", *few]
    assert run.main(words) == 0 and "29 jets, 1 epochs" in capsys.readouterr().out
    before = (tmp_path / "model" / "tokens" / "mine.parquet").stat().st_mtime_ns
    assert run.main(words) == 0 and (tmp_path / "model" / "tokens" / "mine.parquet").stat().st_mtime_ns == before
    on = ["pretrain", "--data", str(tmp_path / "model" / "tokens"), "--backbone", str(tmp_path / "model"), "--tokenizer", "omnijet/tokenizer-512"]
    assert run.main([*on, "--classes", "signal", "--out", str(tmp_path / "on"), "--epochs", "1"]) == 1
    assert "expected at least 20: a twentieth of them chooses the best weights" in capsys.readouterr().err
    assert run.main([*on, "--out", str(tmp_path / "on"), "--epochs", "1"]) == 0
    wrong = {"{tree: a, colums: {}}": "mine.yaml: colums, expected tree, columns, jet, labels", "[1]": r"mine.yaml: \[1\], expected",
             "columns: {px: PF_px}": "mine.yaml: columns names 'px', expected part_…, jet_… or label", "columns: {part_px: 3}": "columns is {'part_px': 3}",
             "labels: 3": "labels is 3, expected a class", "labels: {1: x}": "the class 1 has no name", "tree: !!python/name:os.system": "not a YAML file"}
    for text, message in wrong.items():
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(OmnijetError, match=message):
            read_jets(path, layout=tmp_path / "mine.yaml")
    with pytest.raises(OmnijetError, match="layout and tree are given"):
        read_jets(path, tree="Jets", layout={"tree": "Jets"})


def test_own_labels_of_every_kind(tmp_path, truth):
    path, _ = weaver(tmp_path, truth, True)
    top = is_top(truth)

    def keys(labels, where=path, **words):
        return [class_key(k) for k in read_jets(where, labels=labels, **words).label]

    assert keys("everything") == ["everything"] * N
    assert keys({"heavy": 1, "light": 0}) == [["light", "heavy"][x] for x in top]
    assert keys({"heavy": [1, 2]}) == [["unlabelled", "heavy"][x] for x in top]
    assert keys({"these": "test*", "those": "other*"}) == ["these"] * N
    own, layout = own_names(tmp_path, truth, False)
    with pytest.raises(OmnijetError, match=r"mine.root: no branch is_signal \(has: "):
        read_jets(own, **layout, labels={"signal": "is_signal"})
    with pytest.raises(OmnijetError, match="test.parquet: jet 0 has 2 labels set"):
        read_jets(path, labels={"a": "jet_pt", "b": "jet_energy"})
    assert keys({"signal": "is_sig"}, own, **layout) == [["unlabelled", "signal"][x] for x in top]
    kept = read_jets(path, labels={"heavy": 1, "light": 0}, classes="heavy")
    assert len(kept) == top.sum() and set(kept.label.to_list()) == {add_class("heavy")}
    with pytest.raises(OmnijetError, match="no jet class 'nothing'"):
        read_jets(path, classes="nothing")


def test_own_classes_through_files(tmp_path, truth):
    "One-hot branches named by the class, beside JetClass's or alone, and in files of tokens."
    jets = read_jets(weaver(tmp_path, truth, True)[0], labels={"heavy": 1, "light": 0})
    write_columns(to_columns(jets), tmp_path / "own.root")
    assert ak.all(read_jets(tmp_path / "own.root").label == jets.label)
    mixed = ak.with_field(jets, np.where(np.arange(N) % 3 == 0, 5, np.where(np.arange(N) % 3 == 1, -1, jets.label.to_numpy())), "label")
    write_columns(to_columns(mixed), tmp_path / "mixed.parquet")
    assert ak.all(read_jets(tmp_path / "mixed.parquet").label == mixed.label)
    code = "from omnijet.data import read_tokens\nfrom omnijet.formats import class_key\nimport sys\nprint(sorted({class_key(k) for k in read_tokens(sys.argv[1]).label}))"
    import subprocess
    import sys

    tokenize_files(BinnedTokenizer.fit(jets, (4, 4, 4)), tmp_path / "own.root", tmp_path / "tokens", progress=False)
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "tokens"], capture_output=True, text=True).stdout == "['heavy', 'light']\n"


def test_labels_and_names():
    label = add_class("a class of mine")
    assert 1000 <= label < 1_000_000 and add_class("a class of mine") == label and class_name(label) == class_key(label) == "a class of mine"
    assert add_class("TTBar") == 8 and add_class("label_Hbb") == 1 and class_name(8) == "t → bqq′" and add_class("unlabelled") == -1 == class_indices("unlabelled")[0]
    assert of_classes([8, -1, label]).all() and of_classes([8, -1, label], ["a class of mine", "TTBar"]).tolist() == [True, False, True]
    labels = [add_class(f"JetClass2_{i}") for i in range(188)]
    assert len(set(labels)) == 188
    for wrong in ("", "12", 3, None):
        with pytest.raises(OmnijetError, match="has no name"):
            add_class(wrong)
    taken = next(f"x{i}" for i in range(10**7) if 1000 + __import__("zlib").crc32(f"x{i}".encode()) % 999_000 == label)
    with pytest.raises(OmnijetError, match="would have one label"):
        add_class(taken)


def test_a_tagger_of_own_classes(tmp_path, truth):
    "Its configuration keeps their names; a process that never heard of them knows them from it."
    jets = read_jets(weaver(tmp_path, truth, True)[0], labels={"heavy": 1, "light": 0})
    tokenizer = BinnedTokenizer.fit(jets, (4, 4, 4))
    tagger = JetClassifier({"vocabulary_size": 66, "width": 8, "blocks": 1, "heads": 1}, classes=["light", "heavy"])
    tokens = tokenizer.encode(jets)
    quality = tagger.evaluate(tokens, jets.label)
    assert quality["n_jets"] == N
    tagger.save_pretrained(tmp_path / "tagger")
    assert json.loads((tmp_path / "tagger" / "config.json").read_text())["classes"] == ["light", "heavy"]
    code = ("import sys\nfrom omnijet.transfer import JetClassifier\nfrom omnijet.formats import class_key\n"
            "print([class_key(k) for k in JetClassifier.from_pretrained(sys.argv[1]).classes])")
    import subprocess
    import sys

    assert subprocess.run([sys.executable, "-c", code, tmp_path / "tagger"], capture_output=True, text=True).stdout == "['light', 'heavy']\n"


def test_unlabelled_jets_are_shown(tmp_path, truth):
    import matplotlib

    matplotlib.use("agg")
    from omnijet.observables import color, compare, observables
    from omnijet.panels import shown_jets

    jets = read_jets(plain_parquet({name: truth[name] for name in MOMENTA}, tmp_path / "data.parquet"))
    assert set(shown_jets(jets).label.to_list()) == {-1} and color("unlabelled").startswith("#")
    compare({class_name(k): observables(jets[jets.label == k])["mass"] for k in np.unique(jets.label)}, bins=20, xlabel="mass")


# What is refused

@pytest.mark.parametrize("write, message", [
    (lambda path: np.savez(path.with_suffix(".npz"), images=np.zeros((5, 40, 40))), r"x.npz: no branch part_px, part_py, part_pz \(has: images\)"),
    (lambda path: np.savez(path.with_suffix(".npz"), X=np.zeros((5, 40))), r"x.npz: no branch part_px, part_py, part_pz \(has: X\)"),
    *((lambda path, shape=shape: np.savez(path.with_suffix(".npz"), X=np.ones(shape), y=np.zeros(5)), r"x.npz: no branch part_px, part_py, part_pz \(has: X, y\)")
      for shape in ((5, 40, 40), (5, 30, 5), (5, 30, 2))),  # images; more or less than a momentum and a number of the particle
    (lambda path: path.with_suffix(".csv").write_text("px,py,pz\n1,2,3\n"), "x.csv: is none of ROOT, Parquet, HDF5 and npz; formats that are known"),
    (lambda path: np.savez(path.with_suffix(".npz"), X=np.array([[1], [2, 3]], dtype=object)), r"x.npz: cannot be read"),
    (lambda path: h5py.File(path.with_suffix(".h5"), "w").close(), r"x.h5: no branch part_px, part_py, part_pz \(has: nothing\)"),
    (lambda path: path.with_suffix(".h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "x.h5: cannot be read"),
    (lambda path: path.with_suffix(".npz").write_bytes(b"PK\x03\x04" + bytes(50)), "x.npz: cannot be read"),
])
def test_unknown_layouts_in_one_line(tmp_path, write, message):
    write(tmp_path / "x")
    path = next(tmp_path.glob("x.*"))
    with pytest.raises(OmnijetError, match=message) as error:
        read_jets(path)
    told = str(error.value)
    assert "\n" not in told
    if "cannot be read" not in told:
        assert all(name in told for name in ("JetClass-II", "weaver's top tagging", "top tagging reference", "EnergyFlow", "JetNet", "Aspen Open Jets"))
        assert ("`columns`" in told) == ("has:" in told)  # no names of branches make a CSV file one that is read


@pytest.mark.parametrize("width", [3, 4])
def test_energyflow_with_and_without_particle_numbers(tmp_path, truth, width):
    path, _ = energyflow(tmp_path, truth, True)
    with np.load(path) as x:
        np.savez(path, X=x["X"][..., :width], y=x["y"])
    assert find_layout(path).title == "EnergyFlow"
    same_jets(read_jets(path), truth)


def test_labels_that_a_format_does_not_have(tmp_path, truth):
    columns = {name: truth[name] for name in MOMENTA} | {"label": np.arange(N)}
    with pytest.raises(OmnijetError, match="x.parquet: jet 2 has label 2, expected 0 … 1; `labels` names others"):
        read_jets(plain_parquet(columns, tmp_path / "x.parquet"))
    assert len(read_jets(tmp_path / "x.parquet", labels={"any": [*range(N)]})) == N


def test_a_pickle_in_a_table_is_not_executed(tmp_path, truth):
    path, _ = top_tagging(tmp_path, truth, True, "table")
    with h5py.File(path, "r+") as file:
        file["table/table"].attrs["values_block_0_kind"] = np.bytes_(b"cos\nsystem\n(S'echo executed'\ntR.")
    with pytest.raises(OmnijetError, match="test.h5: cannot be read.*would execute something"):
        read_jets(path)


def test_the_layout_of_a_file(tmp_path, truth):
    for name, title in {"EnergyFlow": "EnergyFlow", "weaver, q/g": "weaver's quark/gluon", "JetNet": "JetNet", "JetClass, ROOT": "JetClass"}.items():
        assert find_layout(FORMATS[name][0](tmp_path, truth, True)[0]).title == title
    layout = Layout({"part_px": "a"})
    assert hash(layout) == hash(replace(layout)) and as_layout(None) is None and as_layout(layout) is layout
    assert all(isinstance(x, formats.Layout) for x in formats.LAYOUTS.values()) and len(CLASSES) == len(LABELS)
