"""Files where they go wrong: refused writing, damaged bytes, facts that differ, broken connections, hostile archives."""
import http.server
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import threading
from hashlib import md5
from pathlib import Path

import awkward as ak
import numpy as np
import pytest

from omnijet import files
from omnijet.data import read_jets
from omnijet.files import OmnijetError, atomic, checksum, download, holds, iter_columns, origin, read_metadata, run_path, write_columns


# Writing

WRITE = ("import sys, awkward as ak; from omnijet.data import *; columns = to_columns(sample_jets(max_jets=50))\n"
         "try: write_columns(columns, sys.argv[1])\nexcept OmnijetError as error: print(error); sys.exit(3)")


@pytest.mark.parametrize("suffix", ["parquet", "root"])
def test_full_disk(tmp_path, suffix):
    "A file that may not grow beyond 100 kB, as on a disk that fills up: one line, and nothing remains."
    path = tmp_path / f"x.{suffix}"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    run = subprocess.run([sys.executable, "-B", "-c", limit + WRITE, path], capture_output=True, text=True)
    assert run.returncode == 3 and f"x.{suffix}: cannot be written" in run.stdout, run.stderr
    assert list(tmp_path.iterdir()) == []


def test_read_only_target(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    folder.chmod(0o555)
    if os.geteuid() == 0:  # root may write anywhere: become nobody for the last step
        code = WRITE.replace("try:", "import os; os.setuid(65534)\ntry:")
        tmp_path.chmod(0o755)
        for parent in list(tmp_path.parents)[:2]:
            parent.chmod(0o755)
    else:
        code = WRITE
    run = subprocess.run([sys.executable, "-B", "-c", code, folder / "x.parquet"], capture_output=True, text=True)
    assert run.returncode == 3 and re.search("x.parquet: cannot be written .Permission denied", run.stdout), run.stdout + run.stderr


def test_killed_while_writing(tmp_path):
    "What was there before stays whole; nothing half-written stands under the final name."
    path = tmp_path / "x.txt"
    path.write_text("old")
    code = "import os, signal, sys; from omnijet.data import atomic\nwith atomic(sys.argv[1]) as tmp:\n tmp.write_text('ne'); os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == -9
    assert path.read_text() == "old"


def test_atomic_folders_and_failures(tmp_path):
    for content in ("1", "2"):
        with atomic(tmp_path / "model") as tmp:
            tmp.mkdir()
            (tmp / f"{content}.txt").write_text(content)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["2.txt"]
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "model") as tmp:
        tmp.mkdir()
        1 / 0
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "x"):
        open(tmp_path / "nosuch")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(OmnijetError, match="expected .parquet or .root"):
        write_columns(ak.Array([{"label_QCD": True}]), tmp_path / "x.csv")
    with pytest.raises(OmnijetError, match="no jets to write"):
        write_columns(ak.Array([{"label_QCD": True}])[:0], tmp_path / "x.root")


def test_root_files_hold_a_ttree_and_metadata(tmp_path, columns):
    import uproot

    for suffix in ("root", "parquet"):
        write_columns(columns, tmp_path / f"x.{suffix}", seed=7, settings=["a = 1"])
        about = read_metadata(tmp_path / f"x.{suffix}")
        assert about.pop("origin") == origin() and about == {"seed": 7, "settings": ["a = 1"]}
    with uproot.open(tmp_path / "x.root") as file:
        assert file.classnames()["tree;1"] == "TTree" and file["tree"].num_entries == len(columns)
        assert file["tree"]["part_px"].typename == "float[]" and file["tree"]["label_Hbb"].typename == "bool"


# Reading

def test_part_of_a_parquet_file_across_row_groups(tmp_path, columns, monkeypatch):
    monkeypatch.setattr(files, "ROW_GROUP", 30)
    write_columns(columns, tmp_path / "x.parquet")
    parts = list(iter_columns(tmp_path / "x.parquet", start=25, stop=130, batch_size=20))
    assert [entry for entry, _ in parts] == list(np.cumsum([25, *(len(part) for _, part in parts)])[:-1])
    assert ak.array_equal(ak.concatenate([part.part_px for _, part in parts]), columns.part_px[25:130])


def test_facts_of_a_file(tmp_path, columns):
    "Whether a file holds what it is to hold: there, of other facts, damaged."
    facts = {"seed": 1, "settings": ("a = 1", "b = 2"), "n": 20, "label": None}
    path = tmp_path / "x.parquet"
    assert not holds(path, facts)
    write_columns(columns[:20], path, **facts)
    assert holds(path, facts) and holds(str(path), {"seed": 1})
    for other in ({"n": 30}, {"seed": 2}, {"settings": ["a = 1"]}, {"settings": ["b = 2", "a = 1"]}):
        assert not holds(path, facts | other, replace=True)
    assert not holds(path, facts | {"n": 30}, renew=("n",))
    with pytest.raises(OmnijetError, match=r"x.parquet: holds other jets \(seed 1, expected 2; settings \['b = 2'\], expected \['c = 3'\]\): remove it"):
        holds(path, facts | {"seed": 2, "settings": ["a = 1", "c = 3"]})
    with pytest.raises(OmnijetError, match=r"\(seed 1, expected 2; n 20, expected 30\)"):
        holds(path, facts | {"seed": 2, "n": 30}, renew=("n",))
    for other in (facts | {"codes": 512}, {"codes": 512}):  # of another kind, which is nothing to be replaced
        with pytest.raises(OmnijetError, match="x.parquet: holds other jets .says nothing of codes"):
            holds(path, other, replace=True, renew=("codes", "n"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(OmnijetError, match="x.parquet: cannot be read"):
        holds(path, facts, replace=True)
    import pyarrow.parquet as pq

    pq.write_table(ak.to_arrow_table(columns[:20], extensionarray=False), path)  # a user's own
    with pytest.raises(OmnijetError, match="x.parquet: holds other jets .says nothing of origin"):
        holds(path, facts, replace=True)
    path.unlink()
    path.symlink_to(tmp_path / "gone.parquet")
    with pytest.raises(OmnijetError, match="x.parquet: cannot be read"):
        holds(path, facts, replace=True)


def test_each_flipped_bit_of_a_row_group_is_seen(tmp_path, columns, monkeypatch):
    "Three row groups: a wrong byte in one is an error there, and the others can be read."
    monkeypatch.setattr(files, "ROW_GROUP", 70)
    path = tmp_path / "x.parquet"
    write_columns(columns, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(OmnijetError, match="row group 0 does not have its checksum"):
        next(iter_columns(path, ["jet_pt"]))
    assert sum(len(part) for _, part in iter_columns(path, ["jet_pt"], start=70)) == len(columns) - 70


# Odd input

@pytest.mark.parametrize("suffix", ["parquet", "root"])
def test_what_was_not_written_as_it_should_be(tmp_path, columns, suffix, monkeypatch):
    "A writer that loses something: what is read back is another thing, and nothing comes to stand there."
    write = getattr(files, f"_write_{suffix}")
    path = tmp_path / f"x.{suffix}"
    write_columns(columns[:20], path)
    before = path.read_bytes()
    for part in ((1, 19), (0, 19)):  # the first jet is lost, or the last
        monkeypatch.setattr(files, f"_write_{suffix}", lambda path, table, facts: write(path, table.slice(*part), facts))
        with pytest.raises(OmnijetError, match=f"x.{suffix}: cannot be written .what was read back"):
            write_columns(columns[:20], path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", ["parquet", "root"])
def test_values_of_many_kinds_are_kept(tmp_path, suffix):
    kinds = {kind: np.array([0, 1, 3], kind) for kind in ("bool", "int8", "uint8", "int32", "int64", "uint64", "float32", "float64")}
    odd = {"nan": np.array([1, np.nan, -np.inf]), "lists": ak.Array([[1.0, np.nan], [], [2.0]]), "fixed": ak.to_regular(ak.Array(np.ones((3, 4))))}
    array = ak.zip(kinds | odd, depth_limit=1)
    write_columns(array, tmp_path / f"x.{suffix}", seed=np.int64(3), edges=np.arange(2), lr=np.float32(0.5))
    (_, again), = iter_columns(tmp_path / f"x.{suffix}")
    assert ak.array_equal(again[array.fields], array, equal_nan=True, check_regular=False)
    assert {k: v for k, v in read_metadata(tmp_path / f"x.{suffix}").items() if k != "origin"} == {"seed": 3, "edges": [0, 1], "lr": 0.5}
    with pytest.raises(OmnijetError, match="cannot be kept as JSON"):
        write_columns(array, tmp_path / f"y.{suffix}", settings=1 + 2j)
    with pytest.raises(OmnijetError, match="jet_pt misses 1 value"):
        write_columns(ak.Array([{"jet_pt": 1.0}, {"jet_pt": None}]), tmp_path / f"y.{suffix}")
    assert len(list(tmp_path.iterdir())) == 1


def test_files_of_links_and_datasets(tmp_path, columns):
    for name in ("near/a.parquet", "near/TTBar.parquet/part-0.parquet", "far/b.root", "far/deep/c.root"):
        write_columns(columns[:2], tmp_path / name)
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "up").symlink_to(tmp_path)
    (tmp_path / "near" / "self").symlink_to(tmp_path / "near")
    (tmp_path / "near" / "d.root").symlink_to(tmp_path / "far" / "b.root")
    for path in (tmp_path / "near", tmp_path / "near" / "*", tmp_path / "near" / "**"):
        assert sorted({file.resolve().name for file in files.find_files(path)}) == ["a.parquet", "b.root", "c.root", "part-0.parquet"]
    assert len(files.find_files(tmp_path / "near")) == 5
    (tmp_path / "near" / "gone.root").symlink_to(tmp_path / "nothing.root")  # not passed over in silence
    with pytest.raises(OmnijetError, match="gone.root: cannot be read"):
        read_jets(tmp_path / "near")


@pytest.mark.parametrize("name", ["a::b", "a:b", "http:", "a b::c?*"])
def test_root_files_under_any_name(tmp_path, columns, name):
    (tmp_path / "a").write_text("mine")
    path = tmp_path / name / "x:tree.root"
    write_columns(columns[:5], path, seed=1)
    assert len(read_jets(path)) == 5 and read_metadata(path)["seed"] == 1 and holds(path, {"seed": 1})
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("options", [{"start": -1}, {"start": 0.5}, {"stop": "end"}, {"batch_size": 0}, {"batch_size": True}])
def test_entries_that_cannot_be(tmp_path, columns, options):
    write_columns(columns[:5], tmp_path / "x.parquet")
    with pytest.raises(OmnijetError, match=f"{next(iter(options))} is"):
        next(iter_columns(tmp_path / "x.parquet", **options))


def test_numbers_that_users_give():
    for given in (3, 3.0, "3", np.uint8(3), np.float32(3), np.array(3)):
        assert files.as_number(given, "n", low=3, high=3) == 3 and type(files.as_number(given, "n")) is int
    assert files.as_number(2**63 - 1, "seed") == 2**63 - 1 and files.as_number(None, "n", optional=True) is None
    for wrong in (True, np.bool_(True), None, 2.5, "x", [3], np.array([3]), float("nan"), float("inf"), 1j, 2, 4):
        with pytest.raises(OmnijetError, match="n is .*, expected a whole number at least 3 and at most 3"):
            files.as_number(wrong, "n", low=3, high=3)


def test_what_json_keeps(tmp_path):
    files.write_json({"a": np.float32(0.5), "π": [np.int64(1), np.bool_(True)]}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"a": 0.5, "π": [1, True]}
    with pytest.raises(OmnijetError, match="cannot be kept as JSON"):
        files.write_json({"a": object()}, tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


def test_a_link_to_a_folder_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    with atomic(tmp_path / "model") as tmp:
        tmp.mkdir()
        (tmp / "new").write_text("")
    assert (tmp_path / "model").is_symlink() and (tmp_path / "disk" / "new").exists()


# Download

class Zenodo(http.server.BaseHTTPRequestHandler):
    "A record of one archive; `faults` says what goes wrong with each reply to a request for it."
    archive, faults, ranges, requests, metadata = b"", [], True, [], None

    def do_GET(self):
        if self.path.startswith("/api/records/6619768/files/"):
            return self.send_archive(self.faults.pop(0) if self.faults else None)
        name = files.ARCHIVES["val"][0]
        record = [{"key": name, "size": len(self.archive), "checksum": "md5:" + md5(self.archive).hexdigest(),
                  "links": {"self": f"http://{self.headers['Host']}/api/records/6619768/files/{name}/content"}}]
        self.reply(200, json.dumps({"files": record}).encode() if self.metadata is None else self.metadata)

    def send_archive(self, fault):
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.ranges else 0
        self.requests.append(start)
        if isinstance(fault, int):
            return self.reply(fault, b"no")
        body = bytearray(self.archive[start:])
        if fault == "wrong byte":
            body[len(body) // 2] ^= 1
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "break" else body)

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def zenodo(shards):
    "A server on this machine with an archive of four JetClass files; (base address, handler)."
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(shards.glob("HTo*.root")):
            tar.add(path, arcname=f"val_5M/{path.name}")
    handler = type("Handler", (Zenodo,), {"archive": buffer.getvalue(), "faults": [], "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(zenodo, out, **options):
    return download("val", out, base_url=zenodo[0], wait=0.001, timeout=5, progress=False, **options)


def assert_complete(files, out, shards):
    assert len(files) == 5 and not list(out.glob("JetClass*"))
    assert all(path.read_bytes() == (shards / path.name).read_bytes() for path in files)
    assert len(read_jets(out)) == 300


def test_download(zenodo, tmp_path, shards):
    assert_complete(fetch(zenodo, tmp_path), tmp_path, shards)
    assert len(fetch(zenodo, tmp_path)) == 5 and zenodo[1].requests == [0]  # complete: not asked for again
    (tmp_path / "val_5M" / "HToBB_121.root").unlink()
    assert_complete(fetch(zenodo, tmp_path), tmp_path, shards)


def test_download_goes_on_where_the_connection_broke_off(zenodo, tmp_path, shards):
    base, handler = zenodo
    handler.faults[:] = ["break", "break", 503]
    assert_complete(fetch(zenodo, tmp_path), tmp_path, shards)
    n = len(handler.archive)
    assert handler.requests == [0, n // 2, n // 2 + (n - n // 2) // 2, n // 2 + (n - n // 2) // 2]


def test_download_goes_on_in_the_next_call(zenodo, tmp_path, shards):
    base, handler = zenodo
    handler.faults[:] = ["break", 500]
    with pytest.raises(OmnijetError, match="goes on there"):
        fetch(zenodo, tmp_path, retries=0)
    assert not list(tmp_path.rglob("*.root"))
    assert_complete(fetch(zenodo, tmp_path), tmp_path, shards)
    assert handler.requests[-1] == len(handler.archive) // 2


class PublicRecord(Zenodo):
    "The record of the top-tagging reference, with two of its files and another."
    def do_GET(self):
        found = re.fullmatch(r"/api/records/2603256(?:/files/(.+)/content)?", self.path)
        if found and found[1]:
            type(self).archive = self.contents[found[1]]
            return self.send_archive(self.faults.pop(0) if self.faults else None)
        record = [{"key": name, "size": len(content), "checksum": "md5:" + md5(content).hexdigest(),
                   "links": {"self": f"http://{self.headers['Host']}/api/records/2603256/files/{name}/content"}} for name, content in self.contents.items()]
        self.reply(200 if found else 404, json.dumps({"files": record}).encode())


def test_download_of_public_files(zenodo, tmp_path):
    "Plain files of a record by its name: one, or all; broken off and gone on with, checked, not fetched twice."
    contents = {"test.h5": os.urandom(5000), "train.h5": os.urandom(9000), "README.md": b"not jets"}
    handler = type("Handler", (PublicRecord,), {"contents": contents, "faults": ["break", 503], "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    options = {"base_url": f"http://127.0.0.1:{server.server_port}", "wait": 0.001, "timeout": 5, "progress": False}
    try:
        assert download("test", tmp_path, dataset="top", **options) == [tmp_path / "test.h5"] and handler.requests == [0, 2500, 2500]
        assert [path.name for path in download(out=tmp_path, dataset="top", **options)] == ["test.h5", "train.h5"] and handler.requests[3:] == [0]
        assert all((tmp_path / name).read_bytes() == contents[name] for name in ("test.h5", "train.h5")) and not list(tmp_path.glob("*.part"))
        (tmp_path / "train.h5").unlink()
        handler.faults[:] = ["wrong byte"]
        with pytest.raises(OmnijetError, match="train.h5: md5 checksum .* expected .* it was removed, fetch it again"):
            download("train.h5", tmp_path, dataset="top", **options)
        with pytest.raises(OmnijetError, match=r"no file val \(has: test.h5, train.h5\)"):
            download("val", tmp_path, dataset="top", **options)
        with pytest.raises(OmnijetError, match="api/records/3164691: no answer"):
            download(out=tmp_path, dataset="qg", **options)
        with pytest.raises(OmnijetError, match="127.0.0.1:[0-9]+/api/records/16505: no answer"):
            download(out=tmp_path, dataset="aoj", **options)
        with pytest.raises(OmnijetError, match="no dataset 'mnist' \\(there are: jetclass, top, qg"):
            download(out=tmp_path, dataset="mnist", **options)
        with pytest.raises(OmnijetError, match="out .--out. is missing, expected a folder"):
            download("val")
    finally:
        server.shutdown()
        server.server_close()


def test_download_of_a_dataset_by_the_command(tmp_path, monkeypatch, capsys):
    "`omnijet download --dataset top`, from a server on this machine: all files of the pattern, or one; where to must be said."
    from omnijet import run
    contents = {"test.h5": os.urandom(5000), "val.h5": os.urandom(3000), "README.md": b"not jets"}
    handler = type("Handler", (PublicRecord,), {"contents": contents, "faults": [], "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(files.DATASETS, "top", (f"http://127.0.0.1:{server.server_port}", *files.DATASETS["top"][1:]))
    try:
        assert run.main(["download", "--dataset", "top", "--split", "val", "--out", "one"]) == 0
        assert run.main(["download", "--dataset", "top", "--out", "all"]) == 0
        found = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.h5")}
        assert found == {"one/val.h5": contents["val.h5"], "all/val.h5": contents["val.h5"], "all/test.h5": contents["test.h5"]}
        capsys.readouterr()
        for words, told in {(): "out (--out) is missing, expected a folder", ("--split", "dev", "--out", "new"): "no file dev (has: test.h5, val.h5)"}.items():
            assert run.main(["download", "--dataset", "top", *words]) == 1
            said = capsys.readouterr().err
            assert told in said and said.startswith("omnijet: ") and said.count("\n") == 1, said
        assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "one"]
    finally:
        server.shutdown()
        server.server_close()


def test_each_dataset_has_its_server(monkeypatch, tmp_path):
    from omnijet import files
    asked = []
    def refuse(url, **_):
        asked.append(url)
        raise OSError("offline")
    monkeypatch.setattr(files, "_request", refuse)
    for name in files.DATASETS:
        with pytest.raises(OmnijetError, match="no answer .offline."):
            download("val", tmp_path, dataset=name)
    assert "https://zenodo.org/api/records/6619768" in asked and "https://www.fdr.uni-hamburg.de/api/records/16505" in asked
    assert len(set(asked)) == len(files.DATASETS)


def test_download_from_a_server_without_ranges(zenodo, tmp_path, shards):
    zenodo[1].faults[:], zenodo[1].ranges = ["break"], False
    assert_complete(fetch(zenodo, tmp_path), tmp_path, shards)


def test_download_of_a_wrong_byte(zenodo, tmp_path, shards):
    zenodo[1].faults[:] = ["wrong byte"]
    with pytest.raises(OmnijetError, match=r"JetClass_Pythia_val_5M.tar: md5 checksum \w+, expected \w+; it was removed"):
        fetch(zenodo, tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert_complete(fetch(zenodo, tmp_path), tmp_path, shards)


def test_download_refused(zenodo, tmp_path, monkeypatch):
    base, handler = zenodo
    handler.faults[:] = [404]
    with pytest.raises(OmnijetError, match="the server answers 404"):
        fetch(zenodo, tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OmnijetError, match="needs .* GB to fetch and unpack"):
        fetch(zenodo, tmp_path)
    for metadata in (b"<html>", b"{}", b'{"files": [{"key": 1}]}'):
        handler.metadata = metadata
        with pytest.raises(OmnijetError, match="not the metadata of a record"):
            fetch(zenodo, tmp_path)
    handler.metadata = b'{"files": []}'
    with pytest.raises(OmnijetError, match="no file JetClass_Pythia_val_5M.tar"):
        fetch(zenodo, tmp_path)
    with pytest.raises(OmnijetError, match="no answer"):
        download("val", tmp_path, base_url="http://127.0.0.1:9", progress=False)
    with pytest.raises(OmnijetError, match="cannot be written"):
        (tmp_path / "file").write_text("")
        handler.metadata = None
        fetch(zenodo, tmp_path / "file" / "below")


@pytest.mark.parametrize("name, kind", [("../outside.root", tarfile.REGTYPE), ("/tmp/outside.root", tarfile.REGTYPE), ("a/../../x.root", tarfile.REGTYPE),
                                        ("link.root", tarfile.SYMTYPE), ("hard.root", tarfile.LNKTYPE), ("fifo.root", tarfile.FIFOTYPE)])
def test_archives_that_reach_out_of_the_folder(zenodo, tmp_path, name, kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        good = tarfile.TarInfo("val_5M/good.root")
        tar.addfile(good, io.BytesIO())
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member, io.BytesIO())
    zenodo[1].archive = buffer.getvalue()
    with pytest.raises(OmnijetError, match="nothing was unpacked"):
        fetch(zenodo, tmp_path / "out")
    assert not list(tmp_path.rglob("*.root")) and not Path("/tmp/outside.root").exists()


def test_two_downloads_into_one_folder(zenodo, tmp_path, shards):
    "The second says in one line who is at it; when the first has ended, or was killed, it may go on."
    with files._alone(tmp_path / ".download.lock"):
        with pytest.raises(OmnijetError, match=f"process {os.getpid()} on {platform.node()} is downloading into this folder"):
            fetch(zenodo, tmp_path)
        assert zenodo[1].requests == []
    code = ("import os, signal, sys\nfrom pathlib import Path\nfrom omnijet import files\n"
            "with files._alone(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code, tmp_path / ".download.lock"]).returncode == -9
    assert_complete(fetch(zenodo, tmp_path), tmp_path, shards)
    assert not (tmp_path / ".download.lock").exists()


# The run folder

def test_what_is_missing_in_a_run(tmp_path):
    with pytest.raises(OmnijetError, match="run chapter 03_gpt first"):
        run_path(tmp_path, "backbone", chapter="03_gpt")
    (tmp_path / "a").write_bytes(b"")
    assert run_path(tmp_path, "a") == tmp_path / "a" and checksum(tmp_path / "a", "md5") == md5(b"").hexdigest()
