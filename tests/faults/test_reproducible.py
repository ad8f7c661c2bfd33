"""`omnijet run`: the same preset twice, once killed on the way, gives the same results; every artefact tells its origin; changes are found.

The chapters are the real ones without their examples (`house`): what is left are the definitions and the experiment.
"""
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from faults import ENV, OMNIJET, ROOT, finished, plain, tables, weights

from omnijet.data import read_metadata, sample_jets, to_columns, write_columns

CHAPTERS = "01,03"
PRESET = {
    "preset": "tiny", "seed": 1, "workers": 1,
    "tokenizers": ["conditional-64"], "backbone_tokenizer": "conditional-64", "tokenizer_jets": 300, "tokenizer_val_jets": 100, "tokenizer_width": 8,
    "tokenizer_blocks": 1, "tokenizer_heads": 2, "tokenizer_epochs": 3, "tokenizer_batch_size": 50, "tokenizer_test_jets": 100,
    "backbone_width": 16, "backbone_blocks": 1, "backbone_heads": 2, "backbone_single": None, "backbone_epochs": 3, "backbone_batch_size": 50,
}


def only_imports(source):
    try:
        return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body)
    except SyntaxError:
        return False


def is_kept(cell):
    source = "".join(cell["source"])
    return "parameters" in cell["metadata"].get("tags", []) or source.startswith(("#| export", "#| eval: false")) or only_imports(source)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "A clone of which only the chapters' examples are missing, and a preset."
    house = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "omnijet", house / "omnijet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "nbs" / "presets", house / "nbs" / "presets")
    (house / "data").symlink_to(ROOT / "data")
    for path in (ROOT / "nbs").glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"] = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and is_kept(cell)]
        (house / "nbs" / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    (house / "tiny.yaml").write_text(yaml.safe_dump(PRESET))
    return house


def command(*words):
    return [*OMNIJET, "run", "--preset", "../tiny.yaml", "--only", CHAPTERS, *words]


def folder_with_jets(house, name):
    "A place for a run, its jets already simulated."
    run = house / name / "runs" / "tiny"
    for label in ("ZJetsToNuNu", "TTBar"):
        columns = to_columns(sample_jets(label, 400))
        for index, (split, part) in enumerate({"train": slice(0, 220), "val": slice(220, 290), "test": slice(290, 400)}.items()):
            write_columns(columns[part], run / "data" / split / f"{label}_{index:05d}.parquet", seed=1)
    return run


def environment(house):
    return {**ENV, "PYTHONPATH": str(house), "OMNIJET_HEADLESS": "1", "OMNIJET_TEST_HOUSE": str(house)}


def listening():
    "Inodes and addresses of the sockets that wait for TCP connections on this machine."
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if os.path.exists(table) else []:
            words = line.split()
            if words[3] == "0A":
                found[words[9]] = words[1]
    return found


def sockets_of(house):
    "Addresses on which a process of this house listens."
    addresses, waiting, mark = [], listening(), f"OMNIJET_TEST_HOUSE={house}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                links = [os.readlink(link) for link in (process / "fd").iterdir()]
                addresses += [waiting[link[8:-1]] for link in links if link.startswith("socket:[") and link[8:-1] in waiting]
        except OSError:  # ended meanwhile
            pass
    return addresses


@pytest.fixture(scope="module")
def alone(house):
    "A run that nobody disturbed; its folder, and where its processes listened."
    run = folder_with_jets(house, "alone")
    process = subprocess.Popen(command(), cwd=run.parent.parent, env=environment(house), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    addresses = []
    while process.poll() is None:
        addresses += sockets_of(house)
        time.sleep(1)
    assert process.returncode == 0, process.communicate()[0]
    return run, addresses


@pytest.fixture(scope="module")
def killed(house):
    "A run killed while it wrote a tokenizer, tokens and a backbone, then left to finish; its folder and the kills."
    run, rng, kills = folder_with_jets(house, "killed"), random.Random(6), 0
    for first in ("tokenizers/conditional-64", "tokens/train", "backbone"):
        process = subprocess.Popen(command(), cwd=run.parent.parent, env=environment(house), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        while process.poll() is None and not any((run / first).rglob("*")):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        assert process.wait() in (0, -signal.SIGKILL), process.communicate()[0]
    done = subprocess.run(command(), cwd=run.parent.parent, env=environment(house), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return run, kills


def numbers(run):
    "results.json but for times, dates and what a stopwatch says."
    results = plain(json.loads((run / "results.json").read_text(encoding="utf-8")))
    return {**results, "versions": None, "git_commit": None}


def test_the_same_preset_twice_killed_or_not(alone, killed):
    (one, _), (two, kills) = alone, killed
    assert kills >= 3
    assert numbers(one) == numbers(two) and set(numbers(one)["chapters"]) == {"01_vqvae", "03_gpt"}
    assert sum(len(chapter["numbers"]) for chapter in numbers(one)["chapters"].values()) >= 11
    assert finished(one) == finished(two)
    assert weights(one) == weights(two) and len(weights(one)) >= 4
    assert tables(one) == tables(two) and len(tables(one)) >= 12
    assert not list(two.rglob(".*.tmp*"))


def test_every_artefact_tells_its_origin(alone):
    run, _ = alone
    texts = {}
    for path in finished(run):
        if path.suffix == ".parquet":
            texts[path] = read_metadata(run / path)["origin"]
        elif path.name in ("config.json", "result.json"):
            texts[path] = json.loads((run / path).read_text())["origin"]
    texts["results.json"] = json.loads((run / "results.json").read_text())
    from PIL import Image

    for path in (run / "figures").glob("*.png"):
        texts[path] = json.loads(Image.open(path).text["Keywords"])
    assert len(texts) > 18
    for path, origin in texts.items():
        assert {"omnijet", "python", "torch", "numpy"} <= set(origin["versions"]) and origin["device"] and "git_commit" in origin, path
        assert "data/" in str(path) or "run --preset ../tiny.yaml" in origin["command"], path
    seeds = {path: json.loads((run / path).read_text())["origin"]["training"]["seed"] for path in finished(run) if path.name == "config.json"}
    assert set(seeds.values()) == {1} and len(seeds) >= 2


def test_verify_names_what_changed(house, alone, tmp_path):
    run = tmp_path / "tiny"
    shutil.copytree(alone[0], run)

    def verify():
        return subprocess.run([*OMNIJET, "run", "--verify", str(run)], capture_output=True, text=True, env=ENV)

    done = verify()
    assert done.returncode == 0 and "as it was written" in done.stdout, done.stdout + done.stderr
    weights = bytearray((run / "backbone" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "backbone" / "model.safetensors").write_bytes(weights)
    (run / "results.json").write_text((run / "results.json").read_text().replace("0.", "1.", 1))
    (run / "tokens" / "test" / "TTBar.parquet").unlink()
    (run / "tokens" / "more.parquet").write_bytes(b"")
    done = verify()
    assert done.returncode == 1 and {tuple(line.split()) for line in done.stdout.splitlines()} == {
        ("changed", "backbone/model.safetensors"), ("changed", "results.json"), ("missing", "tokens/test/TTBar.parquet"), ("added", "tokens/more.parquet")}
    done = subprocess.run([*OMNIJET, "run", "--verify", str(tmp_path / "nosuch")], capture_output=True, text=True, env=ENV)
    assert done.returncode == 1 and "nosuch: not a run" in done.stderr


def test_nothing_listens_beyond_this_machine(alone):
    "The kernels of a run are reached through files; what else they open is on the loopback."
    print(set(alone[1]))
    assert all(address.split(":")[0] in ("0100007F", "00000000000000000000000001000000") for address in alone[1])
