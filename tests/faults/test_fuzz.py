"""Mutated files: each is read as it was written or refused with one line; no crash, no wrong label, never 2 GB."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults import ENV

FILES = {"parquet": 600, "parquet of other programs": 350, "root": 350, "tokens": 300, "preset": 250, "safetensors": 200, "config": 200}


@pytest.mark.parametrize("kind", FILES)
def test_mutated_files(kind):
    "In a process of its own, whose crash would be seen."
    done = subprocess.run([sys.executable, Path(__file__).parent / "fuzzing.py", kind, str(FILES[kind])], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["files"] >= FILES[kind] and told["refused"] > 0


def test_there_are_enough():
    assert sum(FILES.values()) >= 2000
