"""The command line: bad input ends in one clear line, and help answers without heavy imports."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def omnijet(*words, cwd=ROOT, **env):
    return subprocess.run([sys.executable, "-c", "import sys; from omnijet.run import main; sys.exit(main())", *map(str, words)],
                          cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), **env})


def imported(statement):
    code = f"{statement}\nimport sys; print(*sorted(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_import_and_help_load_nothing_heavy():
    heavy = {"torch", "awkward", "numpy", "lightning", "matplotlib", "papermill", "uproot", "pandas"}
    assert not heavy & imported("import omnijet")
    assert not heavy & imported("from omnijet.run import parser; parser()")


def test_help_of_every_command():
    for command in ["run", "simulate", "download", "tokenize", "generate", "finetune", "ship", "compare", "bench", "test"]:
        done = omnijet(command, "--help")
        assert done.returncode == 0 and "usage: omnijet " + command in done.stdout


@pytest.mark.parametrize("words, expected", [
    (["run", "--preset", "nosuch"], "smoke"),
    (["run", "--until", "09"], "05_transfer"),
    (["run", "--runs", "home/runs", "--name", ".."], "--name ..: expected a name"),
    (["run", "--name", "a/b"], "--name a/b: expected a name"),
    (["run", "-p", "no_such_parameter=1"], "no_such_parameter"),
    (["run", "-p", "nonsense"], "NAME=VALUE"),
    (["run", "-p", "backbone_training={lr: 0.1}"], "backbone_training.epochs is missing"),
    (["run", "-p", "backbone_training.speed=1"], "backbone_training.speed is unknown"),
    (["run", "-p", "backbone_training.lr=fast"], "backbone_training.lr is 'fast'"),
    (["run", "-p", "seed.x=1"], "seed.x is unknown"),
    (["bench", "nosuch"], "widgets"),
    (["compare", "nosuch", "nosuch"], "nosuch"),
    (["generate", "--model", "nosuch", "--out", "out"], "nosuch"),
])
def test_bad_words(words, expected, tmp_path):
    done = omnijet(*words, cwd=tmp_path)
    assert done.returncode == 1 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_traceback_on_request(tmp_path):
    for words in (["--traceback", "run", "--preset", "nosuch"], ["run", "--preset", "nosuch", "--traceback"]):
        done = omnijet(*words, cwd=tmp_path)
        assert done.returncode == 1 and "Traceback" in done.stderr and "smoke" in done.stderr


def test_results_of_the_first_version(tmp_path):
    old = {"chapters": {"01_vqvae": {"numbers": {"codes in use, conditional-512": {"value": 1.0}}}}}
    (tmp_path / "results.json").write_text(json.dumps(old))
    for words in (["compare", ".", ROOT / "figures"], ["ship", "."]):
        done = omnijet(*words, cwd=tmp_path)
        assert done.returncode == 1 and "run it again" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def house(folder, *cells):
    "A package that has one chapter, of these cells."
    (folder / "nbs" / "presets").mkdir(parents=True)
    (folder / "omnijet").symlink_to(ROOT / "omnijet")
    (folder / "nbs" / "presets" / "smoke.yaml").write_text("preset: smoke\n")
    cells = ["preset = 'smoke'\nrun_dir = '../runs/smoke'\nseed = 1", *cells]
    cells = [{"cell_type": "code", "id": f"cell{i}", "metadata": {"tags": [] if i else ["parameters"]}, "outputs": [],
              "execution_count": None, "source": source} for i, source in enumerate(cells)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    book = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "nbs" / "00_tiny.ipynb").write_text(json.dumps(book))
    return folder


def test_pictures_and_sockets_whatever_the_environment(tmp_path):
    "MPLBACKEND=Agg leaves the pictures in the executed notebook; a long TMPDIR breaks no socket, whose path is short."
    temporary = tmp_path / ("long" * 30)
    temporary.mkdir()
    here = house(tmp_path / "house", "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    done = omnijet("run", cwd=here, PYTHONPATH=str(here), MPLBACKEND="Agg", TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    cells = json.loads((here / "runs" / "smoke" / "notebooks" / "00_tiny.ipynb").read_text())["cells"]
    assert any("image/png" in output.get("data", {}) for output in cells[-1]["outputs"])
    assert not list(temporary.iterdir())


def test_a_run_of_the_first_version_is_made_again(tmp_path):
    "What its chapters left is removed where they are still there, its numbers with sentences for names go."
    here = house(tmp_path / "house", "#| default_exp tiny\nreads = []\nwrites = ['tokens']", "print('made')")
    run = here / "runs" / "smoke"
    (run / "tokens").mkdir(parents=True)
    (run / "tokens" / "old.parquet").write_text("")
    numbers = {"numbers": {"codes in use": {"value": 1.0}}}
    (run / "results.json").write_text(json.dumps({"chapters": {"00_tiny": numbers, "00a_simulation": numbers}}))
    (run / "state.json").write_text(json.dumps({"00_tiny": {"code": "…", "done": "…", "files": {}}, "results": "0f"}))
    done = omnijet("run", cwd=here, PYTHONPATH=str(here))
    assert done.returncode == 0 and not (run / "tokens").exists(), done.stderr
    assert {name: entry["numbers"] for name, entry in json.loads((run / "results.json").read_text())["chapters"].items()} == {"00_tiny": []}
    again = omnijet("run", cwd=here, PYTHONPATH=str(here))
    assert "unchanged, skipped" in again.stdout and omnijet("run", "--verify", run).returncode == 0


def test_errors_of_a_chapter_are_one_line(tmp_path):
    here = house(tmp_path / "house", "raise ValueError('first\\nsecond')")
    done = omnijet("run", cwd=here, PYTHONPATH=str(here))
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "chapter 00_tiny, cell" in done.stderr and "ValueError: first second" in done.stderr


def test_run_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    done = omnijet("run", cwd=tmp_path)
    assert done.returncode == 1 and str(tmp_path / "runs") in done.stderr and done.stderr.count("\n") == 1


def test_second_run_in_the_same_folder_is_refused(tmp_path):
    from omnijet.run import _alone
    with _alone(tmp_path / "runs" / "smoke"):
        done = omnijet("run", cwd=tmp_path)
    assert done.returncode == 1 and f"process {os.getpid()}" in done.stderr


def test_broken_preset(tmp_path):
    for text in ["- a\n- b\n", "a: [1", "!!python/object/apply:os.system ['touch canary']", "run me: 1"]:
        (tmp_path / "mine.yaml").write_text(text)
        done = omnijet("run", "--preset", "mine.yaml", cwd=tmp_path)
        assert done.returncode == 1 and "mine.yaml" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "canary").exists()


def test_missing_chapter_input_names_the_chapter(tmp_path):
    from omnijet.files import OmnijetError, run_path
    with pytest.raises(OmnijetError, match="01_vqvae"):
        run_path(tmp_path, "tokens", "train", chapter="01_vqvae")


def test_failing_cell_is_named_and_its_notebook_kept(tmp_path):
    done = omnijet("run", "--only", "00b", "-p", "n_jets.train_main=-5", cwd=tmp_path)
    assert done.returncode == 1 and "chapter 00b_simulation, cell" in done.stderr
    assert (tmp_path / "runs" / "smoke" / "notebooks" / "00b_simulation.ipynb").exists()


def test_root_file_without_the_branches(tmp_path):
    import numpy as np
    import uproot

    from omnijet.data import sample_jets
    from omnijet.vqvae import BinnedTokenizer
    BinnedTokenizer.fit(sample_jets(max_jets=20), (5, 5, 5)).save_pretrained(tmp_path / "bins")
    with uproot.recreate(tmp_path / "HToBB_120.root") as file:
        file["tree"] = {"part_px": np.ones(3), "label_Hbb": np.ones(3, bool)}
    done = omnijet("tokenize", "--tokenizer", tmp_path / "bins", "--data", tmp_path / "HToBB_120.root", "--out", tmp_path / "out")
    message = done.stderr.splitlines()[-1]                                       # behind the progress bar
    assert done.returncode == 1 and message.startswith("omnijet: ") and "Traceback" not in done.stderr, done.stderr
    assert "HToBB_120.root" in message and "part_py" in message
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


PRESETS = sorted(path.stem for path in (ROOT / "nbs" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_list_what_differs(preset):
    "A preset names parameters of the chapters, of their kinds; dictionaries whole; nothing that the chapters have anyway."
    from omnijet.run import choose_parameters, read_chapters, read_preset
    chapters, values = read_chapters(), read_preset(preset)
    own = {key: value for chapter in chapters.values() for key, value in chapter["parameters"].items()}
    assert values["preset"] == preset and choose_parameters(preset, {}, chapters) == own | values
    assert not [key for key, value in values.items() if key != "preset" and value == own[key]]
    for key, value in values.items():
        if value is not None and not (isinstance(value, (int, float)) and isinstance(own[key], (int, float))):
            assert type(value) is type(own[key]), key


def test_one_entry_of_what_is_in_force():
    from omnijet.run import choose_parameters, read_chapters, read_preset
    values = choose_parameters("laptop", {"backbone_training.lr": 0.5}, read_chapters())
    assert values["backbone_training"] == read_preset("laptop")["backbone_training"] | {"lr": 0.5}


def test_chapters_of_a_run():
    "What each reads and writes stands in the notebooks; the widgets, the run and the benchmarks are no part of a run."
    from omnijet.run import read_chapters
    chapters, books = read_chapters(), sorted(path.stem for path in (ROOT / "nbs").glob("*.ipynb"))
    assert list(chapters) == [name for name in books if name.split("_")[0] not in ("06", "06a", "07", "08", "09")]
    for name, about in chapters.items():
        assert all(other in chapters and other < name for other in about["reads"]), name
    assert {part: name for name, about in chapters.items() for part in about["writes"] if part != "flow_matching"} == {
        "data": "00b_simulation", "tokenizers": "01_vqvae", "tokens": "01_vqvae", "quality": "02_token_quality",
        "backbone": "03_gpt", "backbone_single": "03_gpt", "backbone_conditional": "03_gpt",
        "generated": "04_generation", "transfer": "05_transfer"}
    assert {"01_vqvae", "03_gpt"} <= set(chapters["04_generation"]["reads"])


def test_cards_and_targets_by_keys():
    "Every model's card has numbers, and every target its number, in the results that the clone keeps."
    from omnijet.run import MODELS, TARGETS, card_numbers, goals
    from omnijet.statistics import read_numbers
    numbers = read_numbers(ROOT / "figures")
    assert len(goals(numbers)) == len(TARGETS)
    found = {model: card_numbers(model, numbers, 1000) for model in MODELS}
    assert all(len(of) >= 4 for of in found.values()), found
    assert {n["key"] for n in found["top-tagger"]} == {"accuracy", "auc", "rejection_30", "rejection_50"}
    for model, of in found.items():
        card = (ROOT / "omnijet" / "pretrained" / model / "README.md").read_text()
        assert all(f"| {n['title']} |" in card for n in of), model
