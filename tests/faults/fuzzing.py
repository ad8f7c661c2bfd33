"""Mutated files of one kind, read one after the other in this process: python fuzzing.py KIND N. Prints how many were read, refused and changed."""
import json
import os
import resource
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import awkward as ak  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from omnijet.data import read_jets, read_tokens, sample_jets, to_columns, write_tokens  # noqa: E402
from omnijet.files import OmnijetError, write_columns  # noqa: E402
from omnijet.run import read_preset  # noqa: E402

EXTREMES = [bytes(8), b"\xff" * 8, (2**31 - 1).to_bytes(4, "little"), (2**31 - 1).to_bytes(4, "big"), (2**63 - 1).to_bytes(8, "little"), b"\xfe\xff\xff\xff\x0f", b"\x7f"]
place = st.floats(0, 1, exclude_max=True)  # of the file's length
mutation = st.one_of(
    st.tuples(st.just("flip"), place, st.integers(0, 7)),
    st.tuples(st.just("end"), st.floats(0, 1, exclude_max=True).map(lambda x: x**3), st.integers(0, 7)),  # where formats keep their tables
    st.tuples(st.just("write"), place, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("write"), place, st.sampled_from(EXTREMES)),
    st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("remove"), place, st.integers(1, 64)),
    st.tuples(st.just("cut"), place, st.just(0)),
    st.tuples(st.just("copy"), place, place),
    st.tuples(st.just("rename"), place, st.sampled_from([(b"label_Zqq", b"label_Wqq"), (b"label_Hbb", b"label_Hcc"), (b"part_px", b"part_py"), (b"jet_eta", b"jet_phi"), (b"label", b"table")])),
)


def mutated(data: bytes, changes) -> bytes:
    data = bytearray(data)
    for kind, where, what in changes:
        at = int(where * len(data))
        if kind == "flip" and data:
            data[at] ^= 1 << what
        elif kind == "end" and data:
            data[-1 - at] ^= 1 << what
        elif kind == "write":
            data[at : at + len(what)] = what[: len(data) - at]
        elif kind == "insert":
            data[at:at] = what
        elif kind == "remove":
            del data[at : at + what]
        elif kind == "cut":
            del data[at:]
        elif kind == "copy":
            other = int(what * len(data))
            data[at : at + 64] = data[other : other + 64][: len(data) - at]
        elif kind == "rename":
            for _ in range(1 + at % 3):
                data = data.replace(what[0], what[1], 1)
    return bytes(data)


def small_jets(n=14):
    "Two Z → qq and W → qq′ files' worth, whose label branches differ by one letter."
    return to_columns(sample_jets(["ZToQQ", "WToQQ"], n))


def facts(jets):
    return {"label": ak.to_numpy(jets.label), "id": ak.to_numpy(jets.id), "pt": ak.to_numpy(ak.flatten(jets.constituents.pt)), "eta": ak.to_numpy(ak.flatten(jets.constituents.eta_rel))}


class Jets:
    def __init__(self, folder, suffix, foreign=False):
        self.path, self.foreign = folder / f"x_0{suffix}", foreign
        write_columns(small_jets(), self.path)
        if foreign:  # as another program would write it, without checksums
            pq.write_table(pyarrow.table(ak.to_arrow_table(small_jets(), extensionarray=False, list_to32=True)), self.path)
        self.entry = np.uint64(0xFFFFFFFF)

    def read(self):
        return facts(read_jets(self.path))

    def compare(self, found, original):
        "No label may be another's, ever; where there are checksums nothing may differ."
        expected = dict(zip((original["id"] & self.entry).tolist(), original["label"].tolist()))  # of other momenta the ids are other ones too
        entries = (found["id"] & self.entry).tolist()
        assert all(expected.get(i) == label for i, label in zip(entries, found["label"].tolist())), "a wrong label"
        same = all(np.array_equal(found[name], original[name], equal_nan=True) for name in original)
        assert same or self.foreign or self.path.suffix == ".root", "other jets than were written"
        return "read" if same else "read, labels right, something else changed"


class Tokens(Jets):
    def __init__(self, folder):
        self.path = folder / "x.parquet"
        rng = np.random.default_rng(1)
        write_tokens(ak.unflatten(rng.integers(0, 512, 600), [30] * 20), self.path, label=rng.integers(0, 10, 20), id=rng.integers(0, 2**63, 20))

    def read(self):
        return read_tokens(self.path).to_list()

    def compare(self, found, original):
        assert found == original, "other tokens or labels than were written"
        return "read"


class Preset:
    def __init__(self, folder):
        import omnijet

        self.path = folder / "x.yaml"
        self.path.write_bytes((Path(omnijet.__file__).parent.parent / "nbs" / "presets" / "laptop.yaml").read_bytes())

    def read(self):
        return read_preset(str(self.path))

    def compare(self, found, original):
        assert len(json.dumps(found)) < 100_000 and all(isinstance(key, str) and key.isidentifier() for key in found)
        return "read" if found == original else "read, other values"  # a preset is text: another number is another preset


class Model:
    def __init__(self, folder, file):
        import torch

        from omnijet.gpt import GenerativeModel

        torch.manual_seed(1)
        self.load, self.path = GenerativeModel.from_pretrained, folder / file
        GenerativeModel(16, 8, 1, 2).save_pretrained(folder)

    def read(self):
        return self.load(self.path.parent)

    def compare(self, found, original):
        import torch

        assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), original.state_dict().values(), strict=True)), "other weights than were written"
        return "read"


KINDS = {"parquet": lambda folder: Jets(folder, ".parquet"), "parquet of other programs": lambda folder: Jets(folder, ".parquet", foreign=True),
         "root": lambda folder: Jets(folder, ".root"), "tokens": Tokens, "preset": Preset,
         "safetensors": lambda folder: Model(folder, "model.safetensors"), "config": lambda folder: Model(folder, "config.json")}


def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name + ":"))


def main(kind, n):
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        subject = KINDS[kind](Path(folder))
        data, original, seen = subject.path.read_bytes(), subject.read(), Counter()
        resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + 2_000_000_000,) * 2)  # more is refused by the system, and would show as an error of another kind

        @settings(max_examples=n, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(st.lists(mutation, min_size=1, max_size=3))
        def check(changes):
            subject.path.write_bytes(mutated(data, changes))
            try:
                found = subject.read()
            except OmnijetError as error:
                assert "\n" not in str(error), error
                seen["refused"] += 1
                return
            seen[subject.compare(found, original)] += 1

        check()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"kind": kind, "files": sum(seen.values()), **seen, "peak GB": round(peak / 1e9, 2)}, ensure_ascii=False))
    assert peak < 2e9


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
