"""The command line: bad input ends in one clear line, and help answers without heavy imports."""
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
    for command in ["run", "simulate", "download", "tokenize", "generate", "finetune", "bench", "test"]:
        done = omnijet(command, "--help")
        assert done.returncode == 0 and "usage: omnijet " + command in done.stdout


@pytest.mark.parametrize("words, expected", [
    (["run", "--preset", "nosuch"], "smoke"),
    (["run", "--until", "09"], "05_transfer"),
    (["run", "-p", "no_such_parameter=1"], "no_such_parameter"),
    (["run", "-p", "nonsense"], "NAME=VALUE"),
])
def test_bad_words(words, expected, tmp_path):
    done = omnijet(*words, cwd=tmp_path)
    assert done.returncode == 1 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr


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
    done = omnijet("run", "--until", "00a", "-p", "n_train_main=-5", cwd=tmp_path)
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


@pytest.mark.parametrize("preset", sorted(p.stem for p in (ROOT / "nbs" / "presets").glob("*.yaml")))
def test_presets_name_parameters_of_the_chapters(preset):
    from omnijet.run import CHAPTERS, chapter_parameters, read_preset
    declared = {key: value for chapter in CHAPTERS for key, value in chapter_parameters(chapter).items()}
    values = read_preset(preset)
    assert values["preset"] == preset and set(values) <= set(declared)
    for key, value in values.items():
        if value is not None and declared[key] is not None and not (isinstance(value, (int, float)) and isinstance(declared[key], (int, float))):
            assert type(value) is type(declared[key]), key
