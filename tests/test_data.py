"""Jets, features and batches where they go wrong: damaged input, labels, momenta; and streams that are stopped."""
import json
import os
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import omnijet
from omnijet import data
from omnijet.models import JETS, Features, jet_features
from omnijet.data import (
    AXIS, CLASSES, FEATURES, LABELS, MOMENTA, JetStream, Ragged, cartesian, class_indices, data_module, directions, iter_jets, jet_files, momenta,
    read_jets, read_tokens, sample_jets, to_columns, to_jets, wrap_angle, write_tokens,
)
from omnijet.files import OmnijetError, origin, read_metadata, write_columns


# Features

def test_real_jetclass(jetclass):
    "Real jets: counts and masses as JetClass has them; part_deta carries the sign of jet_eta, our eta_rel does not."
    jets = read_jets(jetclass / "HToBB_1500.root", columns=["part_deta", "part_dphi", "jet_energy"])
    assert len(jets) == 1500 and set(jets.label.to_list()) == {1}
    assert np.quantile(ak.num(jets.constituents).to_numpy(), [0.1, 0.5, 0.9]) == pytest.approx([28, 40, 57], abs=1)
    mass = ak.sum(momenta(jets.constituents), axis=1).mass.to_numpy()
    assert np.quantile(mass, [0.1, 0.5, 0.9]) == pytest.approx([99.1, 119.5, 138.6], rel=0.02)
    assert float(ak.max(abs(jets.constituents.part_dphi - jets.constituents.phi_rel))) < 1e-6
    # the file's axis was recomputed, so that η differs by up to 0.02, but by the same amount for all constituents of a jet
    shift = jets.constituents.part_deta * np.sign(jets.eta) - jets.constituents.eta_rel
    assert float(ak.max(ak.max(shift, axis=1) - ak.min(shift, axis=1))) < 1e-5
    assert float(ak.max(abs(shift))) < 0.03


def test_momenta_and_labels_suffice(tmp_path, columns):
    "Without the file's axis, that of the sum of all constituents (as vector adds them); from memory and from files."
    import vector

    vector.register_awkward()
    full = to_jets(columns)
    part = to_jets(columns[["part_px", "part_py", "part_pz", "part_energy", *LABELS]])
    four = {p: ak.values_astype(columns[f"part_{p}"], np.float64) for p in ("px", "py", "pz", "energy")}
    total = ak.sum(ak.zip(four, with_name="Momentum4D"), axis=1)
    for name in ("pt", "eta", "phi"):
        assert part[name].to_numpy() == pytest.approx(getattr(total, name).to_numpy(), rel=1e-5)
    assert ak.num(part.constituents).to_list() == pytest.approx(ak.num(full.constituents).to_list(), abs=5)
    for name in ("x.parquet", "x.root"):
        write_columns(columns[["part_px", "part_py", "part_pz", "part_energy", *LABELS]], tmp_path / name)
        read = read_jets(tmp_path / name)
        assert ak.array_equal(read.constituents, part.constituents) and ak.all(read.eta == part.eta) and ak.all(read.label == part.label)


def test_round_trip_to_float32(columns):
    jets = to_jets(columns)
    back = to_jets(to_columns(jets))
    for name in FEATURES:
        scale = jets.constituents.pt if name == "pt" else 1.0
        assert float(ak.max(abs(back.constituents[name] - jets.constituents[name]) / scale)) < 2e-6


def test_sorted_and_cut_before_the_hardest_128_are_taken():
    rng = np.random.default_rng(3)
    pt, eta, phi = rng.exponential(5, 400) + 0.1, rng.normal(0, 0.5, 400), rng.normal(0, 0.5, 400)
    px, py, pz = cartesian(pt, eta, phi)
    jet = ak.Array([{"part_px": px, "part_py": py, "part_pz": pz, "jet_pt": 500.0, "jet_eta": 0.0, "jet_phi": 0.0, "label_QCD": True}])
    found = to_jets(jet).constituents.pt[0].to_numpy()
    inside = (np.abs(eta) < 0.8) & (np.abs(phi) < 0.8)
    assert found == pytest.approx(np.sort(pt[inside])[::-1][:128], rel=1e-6)


def test_angles_across_pi():
    jet = ak.Array([{"part_px": [-100.0, -100.0], "part_py": [1.0, -1.0], "part_pz": [0.0, 0.0], "label_QCD": 1}])
    assert np.abs(to_jets(jet).constituents.phi_rel[0].to_numpy()) == pytest.approx(0.01, rel=1e-3)


def test_ids_name_file_and_entry(shards, tmp_path, columns):
    "The same however a file is read and wherever it lies; another for other jets and for another name."
    file = shards / "HToCC_121.root"
    ids = read_jets(file).id.to_numpy()
    assert (ids & np.uint64(0xFFFFFFFF)).tolist() == list(range(60)) and len(set(ids >> np.uint64(32))) == 1
    parts = [part.id.to_list() for size in (1, 7, 25) for part in iter_jets(file, batch_size=size)]
    assert sum(parts, []) == ids.tolist() * 3
    assert [i for part in data.jets_in(file, start=40) for i in part.id.to_list()] == ids[40:].tolist()
    assert sorted(np.concatenate(ids_of(JetStream(file, batch_size=7, segment=20, chunk=5)))) == ids.tolist()
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / file.name).write_bytes(file.read_bytes())
    assert read_jets(tmp_path / "moved").id.to_list() == ids.tolist()
    write_columns(columns[columns.label_Hcc][5:], tmp_path / "other" / "HToCC_121.root")
    write_columns(columns[columns.label_Hcc], tmp_path / "other" / "HToCC_122.root")
    assert len(set(ids >> np.uint64(32)) | set(read_jets(tmp_path / "other").id.to_numpy() >> np.uint64(32))) == 3
    one, two = to_jets(columns[:20]), to_jets(columns[20:40])
    assert not set(one.id.to_list()) & set(two.id.to_list()) and to_jets(columns[:20]).id.to_list() == one.id.to_list()


def test_directions(columns):
    p = [ak.flatten(columns[name]).to_numpy().astype(float) for name in MOMENTA]
    np.testing.assert_allclose(cartesian(*directions(*p)), p, rtol=1e-9, atol=1e-9)


def test_scaling_of_padding_stays_finite_in_torch():
    x = torch.tensor([[10.0, 0.1, -0.2], [0.0, 0.0, 0.0]], requires_grad=True)
    y = JETS.scale(x)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    assert y[0].tolist() == pytest.approx([np.log(10) - 1.8, 0.3, -0.6])
    assert JETS.unscale(y)[0].tolist() == pytest.approx([10, 0.1, -0.2])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0.125, 900, width=32), max_size=140), min_size=1, max_size=12))
def test_any_momenta(pts):
    "Any jets: as many as are not empty, sorted, at most 128."
    lists = ak.values_astype(ak.Array([[], *pts]), np.float64)[1:]
    columns = ak.zip({"part_px": lists, "part_py": lists * 0.0, "part_pz": lists * 0.1, "label_QCD": np.ones(len(pts))}, depth_limit=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jets = to_jets(columns)
    assert ak.num(jets.constituents).to_list() == [min(len(pt), 128) for pt in pts if pt]
    for found, given in zip(jets.constituents.pt, [pt for pt in pts if pt]):
        assert found.to_list() == sorted(given, reverse=True)[:128]


# Sequences

@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.data())
def test_ragged(lengths, draw):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    content = np.arange(offsets[-1]) + 1
    ragged = Ragged(content, offsets, {"label": np.arange(len(lengths))})
    index = draw.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=8))
    rows = [content[offsets[i] : offsets[i + 1]].tolist() for i in index]
    chosen = ragged[index]
    assert [chosen.content[a:b].tolist() for a, b in zip(chosen.offsets[:-1], chosen.offsets[1:])] == rows
    assert chosen.extras["label"].tolist() == index
    for length in (None, 4):
        batch = ragged.pad(index, length)
        assert [x[m].tolist() for x, m in zip(batch["x"], batch["mask"])] == [row[:length] for row in rows]
        assert not batch["x"][~batch["mask"]].any()
        assert batch["x"].shape[1] == (max(map(len, rows), default=0) if length is None else length)


def test_ragged_of_jets_and_back(columns):
    jets = to_jets(columns)
    sequences = Ragged.from_jets(jets)
    assert sequences.content.dtype == np.float32 and set(sequences.extras) == {"label", "id", "pt", "eta", "phi"}
    assert ak.array_equal(sequences.to_constituents(), jets.constituents)
    with pytest.raises(OmnijetError, match="'label' has 2 values"):
        Ragged([1, 2, 3], [0, 1, 2, 3], {"label": [0, 1]})


# Reading

def test_folder_glob_list_and_classes(shards):
    assert len(read_jets(shards.parent)) == 1200
    assert len(read_jets(str(shards / "HTo*.root"))) == 300
    assert len(read_jets([shards / "TTBar_120.parquet", shards / "ZToQQ_121.root"])) == 120
    assert set(read_jets(shards, classes=["TTBar", "label_QCD"]).label.to_list()) == {0, 8}
    parquet, root = read_jets(shards / "WToQQ_120.parquet"), read_jets(shards / "WToQQ_121.root")
    assert ak.array_equal(parquet.constituents, root.constituents) and ak.all(parquet.pt == root.pt)


def test_classes_inside_a_mixed_file(tmp_path, columns):
    write_columns(columns, tmp_path / "mixed.parquet")
    assert Counter(read_jets(tmp_path, classes=["HToGG", 9], max_jets=25).label.to_list()) == {3: 20, 9: 5}
    with pytest.raises(OmnijetError, match="no jets of HToBB"):
        write_columns(columns[: 20], tmp_path / "one.parquet")
        read_jets(tmp_path / "one.parquet", classes="HToBB")


@pytest.mark.parametrize("n, shares", [(30, [3] * 10), (7, [0, 0, 0] + [1] * 7), (10_000, [120] * 10)])
def test_max_jets_are_shared_among_the_classes(shards, n, shares):
    assert np.bincount(read_jets(shards, max_jets=n).label, minlength=10).tolist() == shares


def test_batches_of_a_stream(shards):
    sizes = [len(jets) for jets in iter_jets(shards, batch_size=25)]
    assert sum(sizes) == 1200 and max(sizes) == 25
    with pytest.raises(OmnijetError, match="batch_size is 0"):
        next(iter_jets(shards, batch_size=0))


PEAK = """
import json, sys
from omnijet.data import iter_jets
seen, peaks = [], []
for path in sys.argv[1:]:
    seen.append(sum(len(jets) for jets in iter_jets(path, batch_size=200)))
    peaks += [1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps({"seen": seen, "peaks": peaks}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process alone (not of what started it) is read from /proc")
@pytest.mark.parametrize("how", ["row groups", "one row group", "root"])
def test_a_stream_holds_a_batch_and_not_the_file(tmp_path, how):
    "A process that has read a small file needs hardly more memory for one of four times the jets."
    n, rng, paths = 40_000, np.random.default_rng(1), []
    lists = {name: ak.unflatten(np.float32(rng.uniform(size=50 * n) + (name == "part_px")), np.full(n, 50)) for name in MOMENTA}
    jets = ak.zip(lists | {"jet_pt": np.full(n, 500.0), "jet_eta": np.zeros(n), "jet_phi": np.zeros(n), "label_QCD": np.ones(n, bool)}, depth_limit=1)
    for size in (n // 4, n):
        paths.append(tmp_path / f"{size}.{'root' if how == 'root' else 'parquet'}")
        if how == "one row group":  # as other programs write it
            import pyarrow.parquet as pq

            pq.write_table(ak.to_arrow_table(jets[:size], list_to32=True, extensionarray=False), paths[-1])
        else:
            write_columns(jets[:size], paths[-1])
    runs = [subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True) for _ in range(3)]
    found = [json.loads(run.stdout) for run in runs]
    assert all(one["seen"] == [n // 4, n] for one in found)
    growth = [one["peaks"][1] - one["peaks"][0] for one in found]
    assert min(growth) < paths[1].stat().st_size / 3, found  # a thread's arena adds some megabytes now and then, the file always would


def test_further_columns_are_cut_and_sorted_alongside(tmp_path, columns):
    tagged = ak.with_field(columns[["part_px", "part_py", "part_pz", *AXIS, *LABELS]], columns.part_px * 2, "part_double")
    shuffled = ak.with_field(tagged, np.arange(len(columns)), "jet_number")
    for name in ("part_px", "part_py", "part_pz", "part_double"):
        shuffled[name] = shuffled[name][:, ::-1]
    write_columns(shuffled, tmp_path / "x.parquet")
    jets = read_jets(tmp_path / "x.parquet", columns=["part_px", "part_double", "jet_number"])
    assert ak.all(jets.constituents.part_double == 2 * jets.constituents.part_px)
    assert float(ak.max(abs(jets.constituents.part_px / np.cos(jets.constituents.phi_rel + jets.phi) / jets.constituents.pt - 1))) < 1e-2
    assert jets.jet_number.to_list() == list(range(len(columns)))


def test_the_sample_of_an_installed_package(tmp_path):
    "The package in site-packages finds the sample in omnijet/sample; without it, one line says so."
    package = tmp_path / "omnijet"
    package.mkdir()
    for name in ("__init__.py", "data.py", "files.py", "formats.py"):
        (package / name).write_bytes((Path(omnijet.__file__).parent / name).read_bytes())
    code = "from omnijet.data import sample_jets; print(len(sample_jets(max_jets=5)))"
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "env": {k: v for k, v in os.environ.items() if k != "OMNIJET_SAMPLE"} | {"PYTHONPATH": str(tmp_path)}}
    assert "the sample of jets is missing" in subprocess.run([sys.executable, "-c", code], **run).stderr
    (package / "sample").symlink_to(data.sample_folder())
    assert subprocess.run([sys.executable, "-c", code], **run).stdout == "50\n"


def test_importing_the_reader_imports_no_torch():
    code = "import sys, omnijet.data; print([name for name in ('torch', 'lightning', 'matplotlib', 'vector') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_many_sequences_are_taken_in_any_order():
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 4, 25_000)
    many = Ragged(np.arange(lengths.sum()), np.append(0, np.cumsum(lengths)), {"id": np.arange(25_000)})
    order = rng.permutation(25_000)[:21_000]
    taken, lists = many[order], np.split(many.content, many.offsets[1:-1])
    assert (taken.content == np.concatenate([lists[i] for i in order])).all() and (taken.extras["id"] == order).all()
    assert len(many[[]].content) == 0


def test_names_of_version_0_1():
    "What omnijet.data gave then and other modules have now is still given, but for what stands above it (training, statistics)."
    given = {}
    exec("from omnijet.data import *", given)  # noqa: S102
    names = "PACKAGES SUMS ROW_GROUP ARCHIVES OmnijetError make_folder atomic origin write_columns iter_columns download read_metadata"
    assert set(names.split()) <= given.keys() and given["OmnijetError"] is OmnijetError


# Bad input

@pytest.mark.parametrize("suffix", ["root", "parquet"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated_file(tmp_path, shards, suffix, share):
    whole = next(shards.glob(f"TTBar_*.{suffix}")).read_bytes()
    path = tmp_path / f"TTBar_000.{suffix}"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(OmnijetError, match=f"TTBar_000.{suffix}: cannot be read") as error:
        read_jets(path)
    assert "\n" not in str(error.value)


def test_damaged_in_the_middle(tmp_path, shards):
    "A Parquet file whose footer is whole but whose columns are not."
    whole = bytearray((shards / "TTBar_120.parquet").read_bytes())
    whole[200:3000] = bytes(2800)
    (tmp_path / "TTBar_000.parquet").write_bytes(whole)
    with pytest.raises(OmnijetError, match="TTBar_000.parquet: cannot be read"):
        read_jets(tmp_path)


def test_another_format_under_the_name(tmp_path, shards):
    (tmp_path / "TTBar_000.root").write_bytes((shards / "TTBar_120.parquet").read_bytes())
    with pytest.raises(OmnijetError, match="TTBar_000.root: cannot be read"):
        read_jets(tmp_path)
    (tmp_path / "jets.h5").write_text("")
    with pytest.raises(OmnijetError, match="jets.h5: cannot be read"):
        read_jets(tmp_path / "jets.h5")
    (tmp_path / "jets.txt").write_text("jets")
    with pytest.raises(OmnijetError, match="jets.txt: is none of ROOT, Parquet, HDF5 and npz"):
        read_jets(tmp_path / "jets.txt")


def test_wrong_tree(tmp_path):
    import uproot

    with uproot.recreate(tmp_path / "x.root") as file:
        file.mktree("Events", {"part_px": "float32"})
        file.mktree("Runs", {"run": "int32"})
    with pytest.raises(OmnijetError, match=r"x.root: no tree 'tree' \(has: Events, Runs\); `tree` says which"):
        read_jets(tmp_path / "x.root")
    with pytest.raises(OmnijetError, match=r"x.root: no branch part_px, part_py, part_pz \(has: run\)"):
        read_jets(tmp_path / "x.root", tree="Runs")
    with uproot.recreate(tmp_path / "y.root") as file:
        file["tree"] = "not a tree but a text"
    with pytest.raises(OmnijetError, match=r"y.root: no tree 'tree' \(has: no tree\)"):
        read_jets(tmp_path / "y.root")


@pytest.mark.parametrize("suffix", ["root", "parquet"])
def test_missing_branches(tmp_path, columns, suffix):
    path = tmp_path / f"x.{suffix}"
    write_columns(columns[[name for name in columns.fields if name != "part_pz"]], path)
    with pytest.raises(OmnijetError, match=rf"x.{suffix}: no branch part_pz \(has: .*part_px"):
        read_jets(path)
    write_columns(columns[["part_px", "part_py", "part_pz"]], path)
    assert set(read_jets(path).label.to_list()) == {-1}
    with pytest.raises(OmnijetError, match="no branch part_d0val"):
        read_jets(path, columns=["part_d0val"])
    write_columns(ak.with_field(columns, columns.jet_pt, "part_px"), path)
    with pytest.raises(OmnijetError, match=rf"x.{suffix}: branch part_px .*expected a list"):
        read_jets(path)


@pytest.mark.parametrize("name, value", [*((name, value) for name in ("part_px", "part_pz") for value in (np.nan, np.inf, -np.inf, 3e38)),
                                         ("jet_eta", np.nan), ("jet_eta", np.inf), ("jet_pt", np.nan), ("jet_phi", -np.inf)])
def test_momenta_that_are_no_numbers(tmp_path, columns, name, value):
    damaged = columns[:20]
    if name.startswith("jet_"):
        values = damaged[name].to_numpy().copy()
        values[[4, 11]] = value
    else:
        values = damaged[name].to_list()
        values[4][0] = values[11][1] = value
    damaged = ak.with_field(damaged, ak.values_astype(ak.Array(values), np.float32), name)
    write_columns(damaged, tmp_path / "x.parquet")
    with pytest.warns(UserWarning, match=r"x.parquet: jets left out: 2 with NaN or infinite momenta \(first: jet 4\)"):
        jets = read_jets(tmp_path / "x.parquet")
    assert (jets.id.to_numpy() & np.uint64(0xFFFFFFFF)).tolist() == [i for i in range(20) if i not in (4, 11)]
    assert np.isfinite(Ragged.from_jets(jets).content).all()


@pytest.mark.parametrize("with_axis", [True, False])
def test_jets_without_constituents_are_counted_once_a_file(tmp_path, columns, with_axis):
    keep = ak.Array(np.arange(60) % 20 != 7)
    empty = columns[:60] if with_axis else columns[:60][["part_px", "part_py", "part_pz", *LABELS]]
    for name in ("part_px", "part_py", "part_pz"):
        empty = ak.with_field(empty, ak.where(keep, empty[name], empty[name][:, :0]), name)
    write_columns(empty, tmp_path / "x.root")
    with pytest.warns(UserWarning, match=r"3 without constituents \(first: jet 7\)") as caught:
        jets = [jet for batch in iter_jets(tmp_path / "x.root", batch_size=10) for jet in batch.id.to_list()]
    assert len(jets) == 57 and len([w for w in caught if "left out" in str(w.message)]) == 1


def test_nothing_but_empty_jets(tmp_path):
    empty = ak.zip({name: ak.Array([[1.0], []])[[1, 1]] for name in ("part_px", "part_py", "part_pz")} | {"label_QCD": np.ones(2)}, depth_limit=1)
    write_columns(empty, tmp_path / "x.parquet")
    with pytest.warns(UserWarning, match="2 without constituents"), pytest.raises(OmnijetError, match="no jets"):
        read_jets(tmp_path)


@pytest.mark.parametrize("second, message", [("label_QCD", r"jet 33 has 2 labels set \(label_QCD, label_Hbb\)"), ("label_Hbb", "jet 33 has 0 labels set")])
def test_labels(tmp_path, columns, second, message):
    flags = columns[second].to_numpy().copy()
    flags[33] = second == "label_QCD"
    write_columns(ak.with_field(columns, flags, second), tmp_path / "x.parquet")
    with pytest.raises(OmnijetError, match="x.parquet: " + message):
        list(iter_jets(tmp_path / "x.parquet", batch_size=10))


def test_lists_of_different_lengths_and_missing_values(tmp_path, columns):
    uneven = ak.with_field(columns, ak.where(np.arange(len(columns)) == 6, columns.part_py[:, 1:], columns.part_py), "part_py")
    with pytest.raises(OmnijetError, match=r"jet 6 has \d+ part_py, but \d+ part_px"):
        to_jets(uneven)
    import pyarrow.parquet as pq

    holes = ak.with_field(columns, ak.mask(columns.jet_pt, np.arange(len(columns)) != 2), "jet_pt")
    pq.write_table(ak.to_arrow_table(holes, extensionarray=False), tmp_path / "x.parquet")
    with pytest.raises(OmnijetError, match="x.parquet: branch jet_pt misses 1 value"):
        read_jets(tmp_path / "x.parquet")


def test_no_files(tmp_path, shards):
    with pytest.raises(OmnijetError, match="is a folder without"):
        read_jets(tmp_path)
    with pytest.raises(OmnijetError, match="nosuch: does not exist"):
        read_jets(tmp_path / "nosuch")
    with pytest.raises(OmnijetError, match="no jet class 'top'"):
        read_jets(shards, classes="top")
    with pytest.raises(OmnijetError, match=r"no file of HToBB \(has: TTBar\)"):
        read_jets(str(shards / "TTBar_*"), classes="HToBB")


# Tokens

def test_tokens(tmp_path):
    tokens = ak.Array([[5, 511, 0], [], [7]])
    write_tokens(tokens, tmp_path / "a.parquet", label=[1, 2, 3], id=np.array([2**63, 1, 0], np.uint64), codebook_size=512)
    table = read_tokens(tmp_path)
    assert table.tokens.to_list() == tokens.to_list() and table.id.to_list() == [2**63, 1, 0] and table.label.to_list() == [1, 2, 3]
    assert read_metadata(tmp_path / "a.parquet") == {"codebook_size": 512, "origin": origin()}
    write_tokens(tokens, tmp_path / "b" / "plain.parquet")
    assert read_tokens(tmp_path / "b").fields == ["tokens"]
    with pytest.raises(OmnijetError, match=r"no branch part_px.*\(has: tokens, label, id\)"):
        read_jets(tmp_path / "a.parquet")
    write_columns(ak.Array([{"label_QCD": True}]), tmp_path / "c.parquet")
    with pytest.raises(OmnijetError, match="c.parquet: no branch tokens"):
        read_tokens(tmp_path / "c.parquet")


@pytest.mark.parametrize("tokens", [[[1], [-1]], [[1], [2**31]], [[1], [1.5]], [[1], [True]], [[1], None], [[1], [None]], [[1], ["a"]], [[1], 2], np.array([[1, 2], [3, -4]])])
def test_tokens_that_are_none(tokens, tmp_path):
    with pytest.raises(OmnijetError, match=r"t.parquet: the tokens of jet \d are .*, expected a list of whole numbers from 0"):
        write_tokens(tokens, tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


def test_tokens_of_many_kinds_and_labels_that_do_not_fit(tmp_path):
    for kind in (np.uint8, np.int64, np.uint64):
        write_tokens(np.array([[1, 2], [3, 4]], kind), tmp_path / "t.parquet", label=np.array([1, 2], np.uint8), id=range(2))
        assert read_tokens(tmp_path).tokens.to_list() == [[1, 2], [3, 4]]
    write_tokens([[2**31 - 1], []], tmp_path / "t.parquet")
    assert read_tokens(tmp_path).tokens.to_list() == [[2**31 - 1], []]
    for wrong in ([1], [[1], [2]], [1, 2, 3]):
        with pytest.raises(OmnijetError, match="label is of shape .*, expected one value for each of 2 jets"):
            write_tokens([[1], [2]], tmp_path / "u.parquet", label=wrong)
    with pytest.raises(OmnijetError, match="u.parquet: no jets to write"):
        write_tokens([], tmp_path / "u.parquet")
    import pyarrow.parquet as pq

    pq.write_table(ak.to_arrow_table(ak.Array({"tokens": [[1], [2]], "label": [[1], [2]]}), extensionarray=False), tmp_path / "lists.parquet")
    with pytest.raises(OmnijetError, match="lists.parquet: label has lists, expected one value a jet"):
        read_tokens(tmp_path / "lists.parquet")


# Odd input

def test_names_of_classes_are_numbers_of_any_library():
    assert class_indices([np.int8(3), np.array(4), torch.tensor(5), "6", 7.0]) == [3, 4, 5, 6, 7]
    assert class_indices(np.int64(3)) == class_indices(np.array(3)) == class_indices("3") == [3] and class_indices(np.array([8, 0])) == [8, 0]
    for wrong in (True, np.bool_(False), [True], 10, -1, 0.5, np.nan, [[8]], "TTbar"):
        with pytest.raises(OmnijetError, match="no jet class"):
            class_indices(wrong)


@pytest.mark.parametrize("options", [{"max_jets": -1}, {"max_jets": 1.5}, {"max_jets": True}, {"max_jets": "many"}, {"batch_size": 0}, {"batch_size": None}])
def test_counts_name_themselves(shards, options):
    with pytest.raises(OmnijetError, match=f"{next(iter(options))} is"):
        next(iter_jets(shards, **options))


def test_counts_are_numbers_of_any_library(shards):
    assert sum(map(len, iter_jets(shards, max_jets=np.int64(30), batch_size=np.array(2)))) == len(read_jets(shards, max_jets="30")) == 30
    assert Ragged([1, 2], [0, 2]).pad(length=np.array(3))["x"].tolist() == [[1, 2, 0]]
    with pytest.raises(OmnijetError, match="length is -1"):
        Ragged([1, 2], [0, 2]).pad(length=-1)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seed": -1}, {"workers": 0.5}, {"world": 0}, {"segment": "x"}, {"chunk": True}, {"tokens": 1}])
def test_numbers_of_a_stream_name_themselves(parquet, options):
    with pytest.raises(OmnijetError, match=f"{next(iter(options))} is"):
        JetStream(parquet, **options)


def test_one_name_is_not_its_letters(tmp_path, shards, columns):
    file = shards / "HToCC_121.root"
    assert "jet_nparticles" in read_jets(file, columns="jet_nparticles").fields
    assert "jet_nparticles" in to_jets(columns, extra="jet_nparticles").fields
    assert set(read_jets(shards, classes="HToCC").label.to_list()) == {2}


@pytest.mark.parametrize("name", ["jet_pt", "jet_eta", "label_Hcc", "jet_nparticles"])
@pytest.mark.parametrize("suffix", ["parquet", "root"])
def test_lists_where_one_value_belongs_in_files(tmp_path, columns, suffix, name):
    lists = ak.with_field(columns, ak.unflatten(columns[name], np.ones(len(columns), int)), name)
    write_columns(lists, tmp_path / f"x.{suffix}")
    with pytest.raises(OmnijetError, match=f"x.{suffix}: {name} has lists, expected one value a jet"):
        read_jets(tmp_path / f"x.{suffix}", columns=["jet_nparticles"])


@pytest.mark.parametrize("suffix", ["parquet", "root"])
@pytest.mark.parametrize("with_axis", [True, False])
def test_padded_arrays_in_both_formats(tmp_path, columns, suffix, with_axis):
    plain = columns[[*MOMENTA, *LABELS, *(AXIS if with_axis else ())]]
    padded = plain
    for name in MOMENTA:
        zeros = ak.fill_none(ak.pad_none(plain[name], 150, clip=True), np.float32(0))
        padded = ak.with_field(padded, ak.to_regular(ak.values_astype(zeros, np.float32)), name)
    write_columns(padded, tmp_path / f"x.{suffix}")
    again, jets = read_jets(tmp_path / f"x.{suffix}"), to_jets(plain)
    assert ak.array_equal(again.constituents, jets.constituents)
    empty, keep = padded, (np.arange(len(padded)) != 3)[:, None]
    for name in MOMENTA:
        empty = ak.with_field(empty, padded[name] * keep, name)
    with pytest.warns(UserWarning, match=r"1 without constituents \(first: jet 3\)"):
        to_jets(empty)


def test_scalings_are_plain_numbers():
    features = jet_features(np.float32(1.25), np.array(2))
    assert features == jet_features(1.25, 2.0) and {type(x) for x in features.shifts + features.factors} == {float}
    for wrong in ({"shifts": (np.nan, 0, 0)}, {"shifts": (True, 0, 0)}, {"factors": (0, 1, 1)}, {"factors": ("wide", 1, 1)}, {"limits": ((0, 1j), (0, 1), (0, 1))}, {"longest": 0}):
        with pytest.raises(OmnijetError, match=next(iter(wrong))):
            Features(**wrong)
    for wrong in ({"names": ("pt",)}, {"names": ()}, {"words": ("jet",)}, {"shifts": 3}):
        with pytest.raises(OmnijetError, match="expected a unit") as error:
            Features(**wrong)
        assert "\n" not in str(error.value)


def test_an_empty_file_beside_full_ones(tmp_path, columns):
    import pyarrow.parquet as pq
    import uproot

    write_columns(columns[:20], tmp_path / "a.parquet")
    pq.write_table(pq.read_table(tmp_path / "a.parquet")[:0].replace_schema_metadata({}), tmp_path / "b.parquet")
    with uproot.recreate(tmp_path / "c.root") as file:
        file.mktree("tree", {name: "var * float32" for name in MOMENTA} | {"label_QCD": "bool"})
    with pytest.warns(UserWarning, match="(b.parquet|c.root): no jets") as told:
        assert len(read_jets(tmp_path)) == 20
    assert len(told) == 2
    assert sum(len(batch["id"]) for batch in JetStream(tmp_path)) == 20
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(OmnijetError, match="no jets"):
        JetStream(tmp_path)


def test_processes_of_datasets(tmp_path, columns):
    "Folders of parts, as Spark and Dask write them: the process is the folder's, the classes are told apart by it."
    for process, flag in (("TTBar", "label_Tbqq"), ("HToBB", "label_Hbb")):
        for part in range(2):
            write_columns(columns[columns[flag]], tmp_path / f"{process}.parquet" / f"part-0000{part}-c000.snappy.parquet")
    assert Counter(read_jets(tmp_path, max_jets=10).label.to_list()) == {1: 5, 8: 5}
    assert set(read_jets(tmp_path, classes="TTBar").label.to_list()) == {8} and len(read_jets(str(tmp_path / "TT*"))) == 40


# Streams for training

OPTIONS = {"batch_size": 32, "segment": 150, "chunk": 30}


def ids_of(stream):
    return [batch["id"].numpy().view(np.uint64) for batch in stream]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")  # more than this machine has cores
def test_each_jet_once_over_four_workers_and_two_ranks(shards):
    expected = sorted(read_jets(shards).id.to_list())
    ranks = [JetStream(shards, workers=4, rank=rank, world=2, **OPTIONS) for rank in (0, 1)]
    orders = []
    for epoch in range(2):
        batches = [ids_of(stream) for stream in ranks]
        assert len(batches[0]) == len(batches[1]) == len(ranks[0])
        order = np.concatenate(batches[0] + batches[1])
        assert sorted(order) == expected
        orders.append(order)
    assert not np.array_equal(*orders)
    alone = [ids_of(JetStream(shards, workers=0, rank=rank, world=2, **OPTIONS)) for rank in (0, 1)]
    assert np.array_equal(np.concatenate(alone[0] + alone[1]), orders[0])  # the order does not depend on the workers


@settings(max_examples=15, deadline=None)
@given(batch_size=st.integers(1, 70), segment=st.integers(5, 700), chunk=st.integers(1, 90), world=st.integers(1, 5), epoch=st.integers(0, 3))
def test_the_plan_covers_every_entry_once(parquet, batch_size, segment, chunk, world, epoch):
    ranks = [JetStream(parquet, batch_size=batch_size, segment=segment, chunk=chunk, rank=rank, world=world) for rank in range(world)]
    pieces = [piece for stream in ranks for part in stream.plan(epoch) for piece in part]
    entries = Counter((int(file), entry) for file, start, stop in pieces for entry in range(start, stop))
    assert len(entries) == 600 and set(entries.values()) == {1}
    for stream in ranks:
        sizes = [sum(stop - start for _, start, stop in part) for part in stream.plan(epoch)]
        assert len(sizes) == stream.segments and max(sizes) <= stream.batches * batch_size


def test_ranks_of_a_trainer_share_the_jets(parquet):
    "What two processes of Lightning would get from the data module."
    seen = []
    for rank in (0, 1):
        module = data_module(parquet, **OPTIONS)
        module.trainer = type("Trainer", (), {"global_rank": rank, "world_size": 2})()
        seen += np.concatenate(ids_of(module.train_dataloader())).tolist()
    assert sorted(seen) == sorted(read_jets(parquet).id.to_list())


def test_length_buckets_and_mixed_classes(parquet):
    stream = JetStream(parquet, batch_size=30, segment=300, chunk=5)
    batches = list(stream)
    assert all(len(set(batch["label"].tolist())) > 3 for batch in batches)
    used = sum(batch["mask"].numel() for batch in batches)
    order = Ragged.from_jets(read_jets(parquet))
    plain = sum(order.pad(index)["mask"].size for index in np.array_split(np.random.default_rng(1).permutation(600), len(batches)))
    assert used < 0.85 * plain


def test_resuming_with_other_workers_and_across_epochs(parquet):
    whole = JetStream(parquet, **OPTIONS)
    expected = ids_of(whole) + ids_of(whole)
    for stop in (1, 7, len(whole) - 1, len(whole), len(whole) + 3):
        stream, found = JetStream(parquet, **OPTIONS), []
        while len(found) < stop:
            for batch in stream:
                found.append(batch["id"].numpy().view(np.uint64))
                if len(found) == stop:
                    break
        resumed = JetStream(parquet, workers=2 if stop == 7 else 0, **OPTIONS)
        resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        while resumed.epoch < 2:
            found += ids_of(resumed)
        assert len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected))


def test_a_place_in_another_order_is_refused(parquet):
    state = JetStream(parquet, **OPTIONS).state_dict()
    with pytest.raises(OmnijetError, match=r"batch_size 32 \(here 16\)"):
        JetStream(parquet, **{**OPTIONS, "batch_size": 16}).load_state_dict(state)
    with pytest.raises(OmnijetError, match="rank is 2, expected a whole number at least 0 and at most 1"):
        JetStream(parquet, rank=2, world=2)


def test_streams_of_some_classes(parquet, tmp_path, columns):
    labels = [label for batch in JetStream(parquet, classes=["TTBar", "ZJetsToNuNu"], **OPTIONS) for label in batch["label"].tolist()]
    assert Counter(labels) == {0: 60, 8: 60}
    write_columns(columns, tmp_path / "mixed.parquet")
    labels = [label for batch in JetStream(tmp_path, classes=["TTBar", "ZJetsToNuNu"], **OPTIONS) for label in batch["label"].tolist()]
    assert Counter(labels) == {0: 20, 8: 20}


def test_a_damaged_file_ends_the_stream_of_a_worker_in_one_line(tmp_path, shards):
    whole = bytearray((shards / "TTBar_120.parquet").read_bytes())
    whole[200:3000] = bytes(2800)
    (tmp_path / "TTBar_000.parquet").write_bytes(whole)
    with pytest.raises(OmnijetError, match="TTBar_000.parquet: cannot be read"):
        list(JetStream(tmp_path, workers=1))


def test_lightning_trains_on_the_data_module_and_resumes_it(parquet, tmp_path):
    import lightning

    class Mean(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = torch.nn.Parameter(torch.zeros(3)), []

        def training_step(self, batch):
            self.seen.append(batch["id"].numpy().view(np.uint64))
            return ((batch["x"] * batch["mask"][..., None]).sum(dim=1) - self.weight).square().mean()

        def validation_step(self, batch):
            self.log("val", batch["x"].mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-6)

    def fit(steps, checkpoint=None):
        model = Mean()
        trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                                    enable_model_summary=False, num_sanity_val_steps=0)
        trainer.fit(model, data_module(parquet, val=parquet, **OPTIONS), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return model.seen

    n = len(JetStream(parquet, **OPTIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = fit(2 * n)
        begun = fit(7)
        rest = fit(2 * n, tmp_path / "7.ckpt")
    assert sorted(np.concatenate(whole[:n])) == sorted(read_jets(parquet).id.to_list())
    assert len(begun + rest) == 2 * n and all(np.array_equal(a, b) for a, b in zip(whole, begun + rest))


