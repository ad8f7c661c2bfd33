"""What the tests of faults share: small disks, and what must come out the same."""
import gc
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from omnijet.files import read_metadata

ROOT = Path(__file__).parent.parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
OMNIJET = [sys.executable, "-c", "import sys; from omnijet.run import main; sys.exit(main())"]
CHANGING = ("seconds", "peak_gigabytes", "origin", "date", "tokenizer")  # what tells when, how long, by which version, and in which folder


def plain(value):
    "JSON without what changes from run to run."
    if isinstance(value, dict):  # a number of results.json, which has a key, is of a tokenizer by its name
        return {key: plain(item) for key, item in value.items() if key not in CHANGING or (key == "tokenizer" and "key" in value)}
    return [plain(item) for item in value] if isinstance(value, list) else value


def finished(folder) -> list:
    "The files under a folder, but for the hidden ones that a killed process leaves."
    paths = sorted(path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.parts)]


def tables(folder) -> dict:
    "Columns and facts of all Parquet files under a folder."
    return {str(path): (pq.read_table(folder / path).replace_schema_metadata(None), plain(read_metadata(folder / path))) for path in finished(folder) if path.suffix == ".parquet"}


def weights(folder) -> dict:
    "The bytes of all models under a folder."
    return {str(path): (folder / path).read_bytes() for path in finished(folder) if path.suffix == ".safetensors"}


@contextmanager
def disk(path, size="3m"):
    "A disk of its own (tmpfs) at `path`; the test is skipped where it cannot be mounted."
    path.mkdir(exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only, and not in every container")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def read_only(path, on=True):
    gc.collect()  # files that a failed writer has left open
    subprocess.run(["mount", "-o", f"remount,{'ro' if on else 'rw'}", path], check=True)


def fill(path, leave=0):
    "One file that takes all room of a disk but for `leave` bytes."
    file, free = Path(path) / ".filler", os.statvfs(path)
    file.write_bytes(bytes(max(free.f_bavail * free.f_frsize - leave, 0)))
    return file
