"""`omnijet run`: the same preset twice, once killed on the way, gives the same results; every artefact tells its origin; changes are found.

The chapters are the real ones without their examples and the slowest figures (`house`): what is left are the definitions and the experiment.
"""
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from faults import ENV, OMNIJET, ROOT, finished, plain, tables, weights

from omnijet.files import read_metadata, write_columns
from omnijet.data import sample_jets, to_columns
from omnijet.transfer import recipe

CHAPTERS = "01,02,03,04,04a,05"  # those that train and draw; the earlier ones count what others made
LOOPBACK = ("0100007F", "00000000000000000000000001000000")  # 127.0.0.1 and ::1, as /proc/net has them
FIGURES = ("compare_planes", "(8, 9, 10, 11)", "fig06_", "fig14_")  # of many panels, and no numbers: 25 s of each run
PRESET = {
    "preset": "tiny", "workers": 1,
    "tokenizers": ["conditional-64"], "backbone_tokenizer": "conditional-64", "tokenizer_jets": {"train": 300, "val": 100},
    "tokenizer_model": {"width": 8, "blocks": 1, "heads": 2, "replace_freq": 80, "pt_power": 0.0},
    "tokenizer_training": {"epochs": 3, "batch_size": 50, "lr": 4e-3, "lr_start": 4e-4, "lr_end": 1e-5, "precision": "auto", "compile": False},
    "backbone_model": {"width": 16, "blocks": 1, "heads": 2}, "backbone_single": None,
    "backbone_training": {"epochs": 3, "batch_size": 50, "lr": 5e-3, "optimizer": "muon", "schedule": "one-cycle", "warmup": 0.1, "patience": None},
    "quality_jets": {"each_class": 40, "tops": 100}, "quality_bootstrap": 5, "quality_bins": [8], "coverage_contexts": 3,
    "classifier_jets": 20, "classifier_seeds": 1, "classifier_training": {"epochs": 1, "batch_size": 50},
    "classifier_model": {"width": 8, "blocks": 1, "class_blocks": 1, "heads": 2},
    "generate_n": 60, "classifier_test": {"n": 40, "epochs": 1}, "transformer_test_epochs": 1,
    "transformer_test_model": {"blocks": 1, "class_blocks": 1, "heads": 2, "width": 8},
    "flow_model": {"width": 16, "layers": 2, "told": True, "ranks": True, "sums": True}, "flow_training": {"epochs": 1, "lr": 3e-3}, "flow_steps": 4,
    "transfer_sizes": [40], "transfer_strategies": ["finetune", "scratch"], "transfer_seeds": 1, "transfer_max_epochs": [1], "transfer_workers": 1,
    "transfer_training": {"lr": 2.22e-3, "batch_size": 25, "monitor": "error"}, "transfer_ten_class_jets": 0,
    "public_sizes": [20], "public_jets_most": {"train": 40, "test": 40}, "data_jets": {"train": 40, "val": 20}, "target_sizes": [40],
    "data_model": {"width": 16, "blocks": 1, "heads": 2}, "data_training": {"epochs": 1, "batch_size": 20, "lr": 2e-3}, "data_generated": 40,
}
CHANGED = ["tokenizer_training.lr=0.00321", "backbone_training.lr=0.00123"]  # on the command line


def reduced(cell):
    "A cell of a chapter, of its examples only the imports and definitions."
    source = "".join(cell["source"])
    experiment = source.startswith("#| eval: false") and not any(figure in source for figure in FIGURES)
    if "parameters" in cell["metadata"].get("tags", []) or source.startswith("#| ") and (experiment or "eval: false" not in source):
        return cell
    kept = [node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))]
    return {**cell, "source": "\n".join(map(ast.unparse, kept))}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "A clone of which only the chapters' examples are missing, and a preset."
    house = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "omnijet", house / "omnijet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "nbs" / "presets", house / "nbs" / "presets")
    (house / "data").symlink_to(ROOT / "data")
    for path in (ROOT / "nbs").glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"] = [reduced(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        (house / "nbs" / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    (house / "tiny.yaml").write_text(yaml.safe_dump(PRESET))
    return house


def command(*words):
    return [*OMNIJET, "run", "--preset", "../tiny.yaml", "--only", CHAPTERS, *(f"-p{change}" for change in CHANGED), *words]


def folder_with_jets(house, name):
    "A place for a run, its jets already simulated."
    run = house / name / "runs" / "tiny"
    for label in ("ZJetsToNuNu", "TTBar"):
        columns = to_columns(sample_jets(label, 400))
        for index, (split, part) in enumerate({"train": slice(0, 220), "val": slice(220, 290), "test": slice(290, 400)}.items()):
            write_columns(columns[part], run / "data" / split / f"{label}_{index:05d}.parquet", seed=1)
    (run / "state.json").write_text("{}")  # or it would be a folder of other things
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


def processes_of(house):
    "The processes of this house: the command line of each, and the addresses on which it listens."
    found, waiting, mark = [], listening(), f"OMNIJET_TEST_HOUSE={house}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                links = [os.readlink(link) for link in (process / "fd").iterdir()]
                words = (process / "cmdline").read_bytes().decode().replace("\0", " ")
                found.append((words, [waiting[link[8:-1]] for link in links if link.startswith("socket:[") and link[8:-1] in waiting]))
        except OSError:  # ended meanwhile
            pass
    return found


def started(house, run):
    "`omnijet run` in a folder, as the first process of its group."
    return subprocess.Popen(command(), cwd=run.parent.parent, env=environment(house), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def alone(house):
    "A run that nobody disturbed, though a second one was tried: its folder, its processes, and what the second one was told."
    run = folder_with_jets(house, "alone")
    process, processes, second = started(house, run), [], None
    while process.poll() is None:
        processes += processes_of(house)
        if second is None and (run / "results.json").exists():
            second = process.pid, subprocess.run(command(), cwd=run.parent.parent, env={**ENV, "PYTHONPATH": str(house)}, capture_output=True, text=True)
        time.sleep(1)
    assert process.returncode == 0, process.communicate()[0]
    return run, processes, second


@pytest.fixture(scope="module")
def killed(house):
    "A run killed in each of its chapters, then left to finish; its folder and the kills."
    run, rng, kills = folder_with_jets(house, "killed"), random.Random(6), 0
    for first in ("tokenizers/conditional-64", "quality", "backbone", "generated", "transfer"):
        process = started(house, run)
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
    one, (two, kills) = alone[0], killed
    assert kills == 5
    assert numbers(one) == numbers(two) and list(numbers(one)["chapters"]) == [
        "01_vqvae", "02_token_quality", "03_gpt", "04_generation", "04a_flow_matching", "05_transfer"]
    values = {name: len([n for n in chapter["numbers"] if n["value"] is not None]) for name, chapter in numbers(one)["chapters"].items()}
    assert all(count >= least for count, least in zip(values.values(), (1, 30, 6, 20, 18, 10), strict=True)), values
    assert finished(one) == finished(two)
    assert weights(one) == weights(two) and len(weights(one)) >= 10
    assert tables(one) == tables(two) and len(tables(one)) >= 13
    assert not list(two.rglob(".*.tmp*"))


def test_every_artefact_tells_its_origin(alone):
    run, texts = alone[0], {}
    for path in finished(run):
        if path.suffix == ".parquet":
            texts[path] = read_metadata(run / path)["origin"]
            assert path.parts[0] == "tokens" or read_metadata(run / path)["seed"] == 1
        elif path.name in ("config.json", "result.json"):
            texts[path] = json.loads((run / path).read_text())["origin"]
        elif path.suffix == ".ipynb":
            texts[path] = json.loads((run / path).read_text())["metadata"]["omnijet"]
            assert texts[path]["preset"] == "tiny" and texts[path]["seed"] == 1
    texts["results.json"] = json.loads((run / "results.json").read_text())
    from PIL import Image

    for path in (run / "figures").glob("*.png"):
        texts[path] = json.loads(Image.open(path).text["Keywords"])
        assert b"git_commit" in path.with_suffix(".pdf").read_bytes()
    assert len(texts) > 35
    for path, origin in texts.items():
        assert {"omnijet", "python", "torch", "numpy"} <= set(origin["versions"]) and origin["device"] and "git_commit" in origin, path
        assert "data/" in str(path) or "run --preset ../tiny.yaml" in origin["command"], path
    seeds = {path: json.loads((run / path).read_text())["origin"]["training"]["seed"] for path in finished(run) if path.name == "config.json"}
    assert set(seeds.values()) == {1} and len(seeds) >= 2


def test_a_parameter_reaches_the_training_that_it_names(alone):
    "From the preset, or from the command line: one entry of a dictionary."
    config = {path.parent.as_posix(): json.loads((alone[0] / path).read_text()) for path in finished(alone[0]) if path.name == "config.json"}
    training = {name: of["origin"]["training"] for name, of in config.items()}
    lr = {name: of["lr"] for name, of in training.items()}
    assert lr["tokenizers/conditional-64"] == 0.00321 and lr["backbone"] == 0.00123, lr
    assert {name: x for name, x in lr.items() if name.startswith("transfer")} == {
        "transfer/finetune_40_seed1": 2.22e-3, "transfer/scratch_40_seed1": 2.22e-3, "transfer/jet_tokens/finetune_40_seed1": 2.22e-3,
        "transfer/recipe": recipe(40).lr}, "the sweep's trainings follow the preset, the recipe's follows its number of jets"
    assert training["tokenizers/conditional-64"]["epochs"] == 3 and training["backbone"]["batch_size"] == 50


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
    (run / "tokens" / "test" / "TTBar_00002.parquet").unlink()
    (run / "tokens" / "more.parquet").write_bytes(b"")
    done = verify()
    assert done.returncode == 1 and {tuple(line.split()) for line in done.stdout.splitlines()} == {
        ("changed", "backbone/model.safetensors"), ("changed", "results.json"), ("missing", "tokens/test/TTBar_00002.parquet"), ("added", "tokens/more.parquet")}
    done = subprocess.run([*OMNIJET, "run", "--verify", str(tmp_path / "nosuch")], capture_output=True, text=True, env=ENV)
    assert done.returncode == 1 and "nosuch: not a run" in done.stderr


def test_a_second_run_in_the_same_folder_is_refused(alone):
    pid, done = alone[2]
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "is in use by process" in done.stderr and f" {pid} " in done.stderr, done.stderr


def test_nothing_listens_beyond_this_machine(alone):
    "The kernels of a run are reached through files; the one port that each opens is for its own processes, on the loopback and behind a secret (ipykernel's)."
    addresses = {address for _, found in alone[1] for address in found}
    print(addresses)
    assert any("ipykernel" in words for words, _ in alone[1])  # they have been looked at
    assert all(address.split(":")[0] in LOOPBACK for address in addresses)


def test_a_listener_would_have_been_seen(tmp_path):
    code = "import socket, sys; s = socket.create_server(('', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], env=environment(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        assert [found for _, found in processes_of(tmp_path)] == [[f"00000000:{port:04X}"]]
        process.stdin.close()


def test_jupyter_lab_asks_for_a_token(tmp_path):
    "README's `jupyter lab nbs`, with nobody's settings: it and its kernels are reached on the loopback only, and only with a token."
    (tmp_path / "nbs").mkdir()
    env = {name: value for name, value in environment(tmp_path).items() if not name.startswith("JUPYTER")}
    env |= {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    words = [sys.executable, "-m", "jupyterlab", "nbs", "--no-browser", *(["--allow-root"] if os.geteuid() == 0 else [])]
    with open(tmp_path / "log", "w") as log, subprocess.Popen(words, cwd=tmp_path, env=env, stdout=log, stderr=subprocess.STDOUT) as lab:
        def wait_for(what):
            while lab.poll() is None and not what():
                time.sleep(0.2)
            assert lab.poll() is None, (tmp_path / "log").read_text()

        def answer(token, **words):
            request = urllib.request.Request(f"{server['url']}api/kernels", headers={"Authorization": f"token {token}"} if token else {}, **words)
            try:
                return urllib.request.urlopen(request).status
            except urllib.error.HTTPError as error:
                return error.code

        try:
            wait_for(lambda: any(path.read_text().endswith("}") for path in tmp_path.glob("runtime/jpserver-*.json")))
            server = json.loads(next(tmp_path.glob("runtime/jpserver-*.json")).read_text())
            assert [answer(token) for token in (None, "guessed", server["token"])] == [403, 403, 200] and len(server["token"]) > 30
            assert answer(server["token"], data=b"{}", method="POST") == 201
            wait_for(lambda: any("ipykernel" in words and len(found) >= 5 for words, found in processes_of(tmp_path)))
            addresses = {address for _, found in processes_of(tmp_path) for address in found}
            assert len(addresses) > 5 and all(address.split(":")[0] in LOOPBACK for address in addresses), addresses
        finally:
            lab.terminate()
