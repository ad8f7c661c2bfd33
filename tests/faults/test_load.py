"""Much of it: memory does not grow with the number of jets or files, and no file stays open."""
import json
import os
import subprocess
import sys

from faults import ENV

GENERATE = """
import json, resource, sys, torch
from omnijet.generation import generate_files
from omnijet.gpt import GenerativeModel
torch.manual_seed(1)
model = GenerativeModel(16, width=8, blocks=1, heads=1).eval()
with torch.no_grad(): model.head.bias[-1] = 2.0                      # jets of a few constituents
peaks = []
for n in (20_000, 100_000):
    files = generate_files(model, sys.argv[1], n, where="cpu", progress=False)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
from omnijet.data import read_tokens
print(json.dumps({"jets": sum(len(read_tokens(file)) for file in files), "peaks": peaks}))
"""

READ = """
import json, resource, sys, warnings
from omnijet.data import iter_jets, jet_files
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))                  # files left open would show
files, peaks, seen = jet_files(sys.argv[1]), [], 0
for part in (files[:20], files):
    seen = sum(len(jets) for jets in iter_jets(part))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(json.dumps({"files": len(files), "jets": seen, "peaks": peaks}))
"""


def told(code, *words):
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


def test_generating_100_000_jets(tmp_path):
    result = told(GENERATE, tmp_path)
    assert result["jets"] == 100_000 and len(os.listdir(tmp_path)) == 10
    assert result["peaks"][1] < 1.1 * result["peaks"][0]


def test_reading_200_shards(tmp_path):
    from omnijet.data import sample_jets, to_columns
    from omnijet.files import write_columns

    write_columns(to_columns(sample_jets("TTBar", 200)), tmp_path / "TTBar_000.parquet")
    for index in range(1, 200):
        os.link(tmp_path / "TTBar_000.parquet", tmp_path / f"TTBar_{index:03d}.parquet")
    result = told(READ, tmp_path)
    assert result["files"] == 200 and result["jets"] == 40_000
    assert result["peaks"][1] < 1.1 * result["peaks"][0]
