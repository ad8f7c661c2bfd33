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
    for command in ["run", "simulate", "download", "tokenize", "generate", "finetune", "tag", "ship", "compare", "bench", "test"]:
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
    (["run", "-p", "seed=1", "-p", "seed=2"], "a name once"),
    (["run", "-p", "=1"], "-p =1"),
    (["run", "-p", "run_dir=x"], "--runs and --name"),
    (["run", "-p", "seed=-1"], "seed is -1, expected"),
    (["run", "--jobs", "0"], "jobs is 0, expected"),
    (["run", "-p", "seed=null"], "seed is None, expected"),
    (["run", "-p", "seed=2020-01-01"], "seed=2020-01-01"),
    (["run", "-p", "seed=010"], "010"),
    (["run", "-p", "seed=1:30"], "1:30"),
    (["run", "-p", "seed=np.int64(3)"], "seed is 'np.int64(3)', expected"),
    (["run", "-p", "seed={a: 1, a: 2}"], "twice"),
    (["run", "-p", "n_jets=5"], "n_jets is 5, expected"),
    (["run", "-p", "n_jets.val_main=2.5"], "n_jets.val_main is 2.5, expected"),
    (["run", "-p", "n_jets.val_main.x=2"], "n_jets.val_main.x=2"),
    (["run", "-p", "n_jets.train_main=-5"], "n_jets.train_main is -5, expected"),
    (["run", "-p", "generate_n=true"], "generate_n is True, expected"),
    (["run", "-p", "backbone_mirrors=1"], "backbone_mirrors is 1, expected"),
    (["run", "-p", "tokenizers=conditional-512"], "tokenizers is 'conditional-512', expected"),
    (["run", "-p", "transfer_sizes=[100, many]"], "transfer_sizes[1] is 'many', expected"),
    (["run", "-p", "backbone_training.lr=.nan"], "backbone_training.lr is nan, expected"),
    # a doomed run, before the first chapter
    (["run", "-p", "tokenizers=[conditional-512, vq-64]"], "vq-64"),
    (["run", "-p", "tokenizers=[]"], "backbone_tokenizer is 'conditional-512', expected"),
    (["run", "-p", "backbone_tokenizer=conditional-64"], "backbone_tokenizer is 'conditional-64', expected"),
    (["run", "-p", "backbone_single=Higgs"], "backbone_single is 'Higgs', expected"),
    (["run", "-p", "backbone_classes=[Higgs]"], "Higgs"),
    (["run", "-p", "main_classes=[label_Tbqq]"], "main_classes is ['label_Tbqq'], expected"),
    (["run", "-p", "transfer_sizes=[100, 1000, 3000]"], "transfer_max_epochs is [10, 4], expected"),
    (["run", "-p", "transfer_sizes=[100, 100000]"], "transfer_sizes is [100, 100000], expected 2 to 6,000 jets"),
    (["run", "-p", "transfer_strategies=[finetune, guess]"], "transfer_strategies is"),
    (["run", "-p", "transfer_training.monitor=luck"], "monitor"),
    (["run", "-p", "backbone_training.schedule=zigzag"], "schedule"),
    (["run", "-p", "backbone_model.heads=7"], "heads to divide width"),
    (["run", "-p", "trained=omnijet"], "backbone_tokenizer"),
    (["run", "-p", "trained=nosuch"], "trained is"),
    (["run", "-p", "jetclass=nosuch"], "jetclass is"),
    (["run", "--until", "02", "--only", "05"], "--until 02"),
    (["run", "--only", "01,99,98"], "no chapter '99', '98'"),
])
def test_bad_words(words, expected, tmp_path, capsys, monkeypatch):
    from omnijet.run import main
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("omnijet: ") and expected in said and said.count("\n") == 1, said
    assert not Path("runs").exists()


SIMULATE, GENERATE, FINETUNE = ["simulate", "--out", "o"], ["generate", "--model", "m", "--out", "o"], ["finetune", "--backbone", "b", "--tokenizer", "t", "--data", "d", "--out", "o"]


@pytest.mark.parametrize("words, expected", [
    ([*SIMULATE, "--n", "many"], "--n is 'many', expected a whole number"),
    ([*SIMULATE, "--n", "1.5"], "--n is '1.5'"),
    ([*SIMULATE, "--n", ""], "--n"),
    ([*SIMULATE, "--n", "1", "--n", "1"], "--n 1: expected one word, once"),
    ([*SIMULATE, "--seed", "inf"], "--seed is 'inf'"),
    ([*SIMULATE, "--workers", "two"], "--workers is 'two'"),
    ([*SIMULATE, "--shard-size", "nan"], "--shard-size is 'nan'"),
    ([*GENERATE, "--temperature", "hot"], "--temperature is 'hot', expected a finite number"),
    ([*GENERATE, "--top-k", "0.5"], "--top-k is '0.5'"),
    ([*FINETUNE, "--max-jets", "1e400"], "--max-jets is '1e400'"),
    (["simulate", "--out", ""], "--out"),
    (["run", "--name", ""], "--name"),
    (["run", "--only", ""], "--only"),
    (["run", "--preset", "a", "--preset", "b"], "--preset b"),
    (["compare", ""], "RUN"),
    (["simulate"], "--out"),
    (["simulate", "--nosuch", "1", "--out", "o"], "--nosuch"),
    (["run", "--force=yes"], "--force"),
    (["nosuch"], "nosuch"),
])
def test_words_that_no_command_takes(words, expected, tmp_path, capsys, monkeypatch):
    from omnijet.run import main
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out and said.err.startswith("omnijet") and said.err.count("\n") == 1 and expected in said.err, said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, expected", [
    ([*SIMULATE, "--n", "-1"], "n is -1"), ([*SIMULATE, "--n", "0"], "n is 0"), ([*SIMULATE, "--n", "2", "--shard-size", "0"], "shard_size is 0"),
    ([*SIMULATE, "--n", "2", "--seed", str(2**63)], "seed is"), ([*SIMULATE, "--n", "2", "--workers", "-2"], "workers is -2"),
    ([*SIMULATE, "--n", "2", "--mantissa-bits", "0"], "mantissa_bits is 0"), ([*SIMULATE, "--n", "2", "--start", "-1"], "start is -1"),
    ([*SIMULATE, "--n", "2", "--classes", "TTBar,"], "no jet class ''"), (["simulate", "--out", "o", "--format", "csv"], "csv"),
    (["download", "--split", "all", "--out", "o"], "train, val, test"),
    ([*GENERATE, "--n", "-1"], "n is -1"), ([*GENERATE, "--top-k", "0"], "top_k is 0"), ([*GENERATE, "--top-p", "2"], "top_p is 2"),
    ([*GENERATE, "--temperature", "-1"], "temperature is -1"), ([*GENERATE, "--batch-size", "0"], "batch_size is 0"), ([*GENERATE, "--seed", str(2**63)], "seed is"),
    ([*FINETUNE, "--max-jets", "0"], "max_jets is 0"), ([*FINETUNE, "--strategy", "guess"], "strategy is 'guess'"), ([*FINETUNE, "--seed", "-1"], "seed is -1"),
])
def test_numbers_out_of_range_name_their_option(words, expected, tmp_path, capsys, monkeypatch):
    from omnijet.gpt import GenerativeModel
    from omnijet.run import main
    from omnijet.vqvae import BinnedTokenizer
    monkeypatch.chdir(tmp_path)
    for name in ("m", "b"):
        GenerativeModel(64, 8, 1, 1).save_pretrained(name)
    BinnedTokenizer(bins=(4, 4, 4)).save_pretrained("t")
    jets_of_two_classes("d")
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("omnijet: ") and said.count("\n") == 1 and expected in said, said
    assert not Path("o").exists()


def jets_of_two_classes(folder, n=20):
    from omnijet.data import sample_jets, to_columns
    from omnijet.files import write_columns
    for name in ("ZJetsToNuNu", "TTBar"):
        write_columns(to_columns(sample_jets(name, n)), Path(folder, f"{name}.parquet"))


def content(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_commands_leave_their_inputs_alone_and_a_file_without_bars(tmp_path, monkeypatch, capsys):
    "Each command with numbers written as people do, its output in a file; then with an input for its output."
    from omnijet.gpt import GenerativeModel
    from omnijet.run import main
    from omnijet.vqvae import BinnedTokenizer
    GenerativeModel(64, 8, 1, 1).save_pretrained(tmp_path / "model")
    BinnedTokenizer(bins=(4, 4, 4)).save_pretrained(tmp_path / "bins")
    jets_of_two_classes(tmp_path / "jets", 60)
    tokenize, generate = ["tokenize", "--tokenizer", "bins", "--data", "jets"], ["generate", "--model", "model", "--tokenizer", "bins", "--n", "1e1", "--batch-size", "3.0"]
    finetune = ["finetune", "--backbone", "model", "--tokenizer", "bins", "--data", "jets", "--seed", "2"]
    for words in (["simulate", "--n", "1e0", "--classes", "TTBar"], tokenize, generate, finetune):
        done = omnijet(*words, "--out", f"out_{words[0]}", cwd=tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "\r" not in said and len(said.splitlines()) < 8, said
    before = content(tmp_path)
    monkeypatch.chdir(tmp_path)
    for words, out in ((tokenize, "jets"), (tokenize, "bins/.."), (generate, "jets"), (finetune, "jets"), (finetune, "model"), (finetune, "bins"),
                       (finetune, "out_tokenize"), (generate, "out_simulate"), (["simulate", "--n", "1", "--seed", "2", "--classes", "TTBar"], "out_simulate")):
        status, said = main([*words, "--out", out]), capsys.readouterr().err
        assert all(path.read_bytes() == data for path, data in before.items()), (words, out)
        assert status == 0 or said.count("\n") == 1 and said.startswith("omnijet: "), said


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


def house(folder, *cells, chapter="00_tiny"):
    "A package that has one chapter (or one more), of these cells."
    if not folder.exists():
        (folder / "nbs" / "presets").mkdir(parents=True)
        (folder / "omnijet").symlink_to(ROOT / "omnijet")
        (folder / "nbs" / "presets" / "smoke.yaml").write_text("preset: smoke\n")
    cells = ["preset = 'smoke'\nrun_dir = '../runs/smoke'\nseed = 1", *cells]
    cells = [{"cell_type": "code", "id": f"cell{i}", "metadata": {"tags": [] if i else ["parameters"]}, "outputs": [],
              "execution_count": None, "source": source} for i, source in enumerate(cells)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    book = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "nbs" / f"{chapter}.ipynb").write_text(json.dumps(book))
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


RECORD = """from omnijet.statistics import number, record
for i in range(40):
    record(run_dir, "{0}", [number("codes_used", i / 40, sample=f"{{i}}")])
import os, pathlib
pathlib.Path(run_dir, "{0}.txt").write_text(os.environ["OMP_NUM_THREADS"])"""


def test_chapters_at_the_same_time(tmp_path):
    "No number of two chapters is lost, what reads waits for what it reads; a failing chapter ends the run, which then goes on."
    names = "00_tiny", "01_tiny", "02_tiny"
    for name in names[:2]:
        here = house(tmp_path / "house", f"#| default_exp {name}\nreads = []\nwrites = []", RECORD.format(name), chapter=name)
    waits = "import pathlib\nassert all(pathlib.Path(run_dir, f'0{i}_tiny.txt').exists() for i in (0, 1))"
    house(here, f"#| default_exp x\nreads = {list(names[:2])}\nwrites = []", waits, "raise ValueError('no')", chapter=names[2])
    done = omnijet("run", "--jobs", 2, cwd=here, PYTHONPATH=str(here))
    assert done.returncode == 1 and "chapter 02_tiny, cell" in done.stderr and "ValueError: no" in done.stderr and done.stderr.count("\n") == 1
    house(here, f"#| default_exp x\nreads = {list(names[:2])}\nwrites = []", waits, chapter=names[2])
    done = omnijet("run", "--jobs", 2, cwd=here, PYTHONPATH=str(here))
    assert done.returncode == 0 and done.stdout.count("unchanged, skipped") == 2, done.stderr
    run = here / "runs" / "smoke"
    found = json.loads((run / "results.json").read_text())["chapters"]
    assert [len(found[name]["numbers"]) for name in names] == [40, 40, 0]
    assert (run / "00_tiny.txt").read_text() == str(max(1, os.cpu_count() // 2))
    assert omnijet("run", "--verify", run).returncode == 0


def test_each_chapter_says_which_call_made_it(tmp_path):
    "A later call of some chapters, by another preset, says nothing of the others; of what an earlier version left nothing is invented."
    for name in ("00_tiny", "01_tiny"):
        here = house(tmp_path / "house", f"#| default_exp x\nreads = []\nwrites = []", chapter=name)
    (here / "nbs" / "presets" / "other.yaml").write_text("preset: other\n")
    path = here / "runs" / "smoke" / "results.json"
    assert omnijet("run", cwd=here, PYTHONPATH=str(here)).returncode == 0
    first = json.loads(path.read_text())
    done = omnijet("run", "--preset", "other", "--name", "smoke", "--only", "01", "-p", "seed=2", cwd=here, PYTHONPATH=str(here))
    assert done.returncode == 0, done.stderr
    now = json.loads(path.read_text())
    assert now["chapters"]["00_tiny"] == first["chapters"]["00_tiny"]
    keys = "preset", "seed", "git_commit", "device", "command", "date"
    assert [{key: chapter[key] for key in keys} for chapter in now["chapters"].values()] == [{key: of[key] for key in keys} for of in (first, now)]
    assert first["preset"] == "smoke" and now["preset"] == "other" and now["seed"] == 2 and "--only 01" in now["chapters"]["01_tiny"]["command"]
    for key in keys:
        del now["chapters"]["00_tiny"][key]
    path.write_text(json.dumps(now))
    assert "unchanged, skipped" in omnijet("run", "--only", "00", cwd=here, PYTHONPATH=str(here)).stdout
    assert json.loads(path.read_text())["chapters"] == now["chapters"]


def test_a_chapter_that_fails_says_which_call_it_was(tmp_path):
    "Its numbers are not taken for those of the next call."
    text = "from omnijet.statistics import number, record\nrecord(run_dir, '00_tiny', [number('codes_used', 0.5)])\nraise ValueError('no')"
    here = house(tmp_path / "house", text)
    house(here, "#| default_exp x\nreads = []\nwrites = []", chapter="01_tiny")
    assert omnijet("run", cwd=here, PYTHONPATH=str(here)).returncode == 1
    assert omnijet("run", "--only", "01", "-p", "seed=2", cwd=here, PYTHONPATH=str(here)).returncode == 0
    failed = json.loads((here / "runs" / "smoke" / "results.json").read_text())["chapters"]["00_tiny"]
    assert failed["seed"] == 1 and len(failed["numbers"]) == 1 and "--only" not in failed["command"] and "seconds" not in failed


def test_a_run_stays_where_it_is(tmp_path, monkeypatch):
    "Kernels are told their folder; a process that went there and back would take the other chapters along."
    from omnijet import run
    here, went, start = house(tmp_path / "house", "import os\nassert os.path.basename(os.getcwd()) == 'nbs'"), [], os.getcwd()
    change = os.chdir
    monkeypatch.setattr(run, "chapters_dir", lambda: here / "nbs")
    monkeypatch.setattr(os, "chdir", lambda path: (went.append(str(path)), change(path)))
    (tmp_path / "run").mkdir()
    run._execute("00_tiny", tmp_path / "run", {"run_dir": str(tmp_path / "run")}, {"command": "x"}, [])
    assert set(went) <= {start}


def test_a_chapter_that_fails_ends_those_beside_it(tmp_path):
    here = house(tmp_path / "house", "import time\ntime.sleep(600)", chapter="00_tiny")
    house(here, "raise ValueError('no')", chapter="01_tiny")
    done = omnijet("run", "--jobs", 2, cwd=here, PYTHONPATH=str(here))
    assert done.returncode == 1 and "ValueError: no" in done.stderr and done.stdout.count("failed") == 2


def test_a_run_repeats_how_far_its_chapters_are(tmp_path, monkeypatch):
    from omnijet.files import progress_bar
    from omnijet.run import _last_progress
    log = tmp_path / "x.log"
    log.write_text("a banner\n")
    monkeypatch.setenv("OMNIJET_PROGRESS", str(log))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with progress_bar(total=40, desc="steps") as bar:
        bar.update(10)
        assert _last_progress(log) == ""  # nothing in the first minute
        bar.start_t -= 90
        bar.update(10)
        bar.refresh()
        bar.refresh()
    log.write_text(log.read_text() + "another banner\n")
    assert log.read_text().count("steps:") == 1 and "20/40" in _last_progress(log)


def test_run_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    done = omnijet("run", cwd=tmp_path)
    assert done.returncode == 1 and str(tmp_path / "runs") in done.stderr and done.stderr.count("\n") == 1


def test_a_folder_of_other_things_is_no_run(tmp_path):
    "Nothing in it is removed, not even by --force."
    (tmp_path / "runs" / "smoke" / "tokenizers").mkdir(parents=True)
    (tmp_path / "runs" / "smoke" / "tokenizers" / "mine").write_text("")
    done = omnijet("run", "--force", "--only", "01", cwd=tmp_path)
    assert done.returncode == 1 and "smoke is no run and holds tokenizers" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "runs" / "smoke" / "tokenizers" / "mine").exists()


def test_a_run_on_a_read_only_disk(tmp_path):
    sys.path.insert(0, str(ROOT / "tests" / "faults"))
    from faults import disk, read_only
    with disk(tmp_path / "disk"):
        read_only(tmp_path / "disk")
        done = omnijet("run", "--runs", tmp_path / "disk", cwd=tmp_path)
    assert done.returncode == 1 and "disk/smoke: cannot be written" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_preset_that_is_a_folder(tmp_path):
    (tmp_path / "mine.yaml").mkdir()
    done = omnijet("run", "--preset", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 1 and "no preset 'mine.yaml'" in done.stderr and done.stderr.count("\n") == 1


def test_a_preset_of_ones_own_has_its_name(tmp_path):
    from omnijet.run import choose_parameters, read_chapters
    (tmp_path / "mine.yaml").write_text("seed: 3.0\nbackbone_training: {epochs: 4, batch_size: 32, lr: 5e-3, optimizer: adam, schedule: one-cycle, warmup: 0.1, patience: 2}\n")
    values = choose_parameters(str(tmp_path / "mine.yaml"), {"backbone_max_jets": "1e3", "backbone_single": None}, read_chapters())
    assert values["preset"] == "mine" and values["backbone_training"]["lr"] == 5e-3  # YAML 1.1 reads a text
    assert repr([values["seed"], values["backbone_max_jets"], values["backbone_single"]]) == "[3, 1000, None]"


def test_a_model_or_a_folder_of_others_is_not_shipped_over(tmp_path):
    from omnijet.files import OmnijetError
    from omnijet.gpt import GenerativeModel
    from omnijet.shipping import ship
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text('{"chapters": {}, "seed": 1}')
    with pytest.raises(OmnijetError, match="no model to ship"):
        ship(tmp_path / "run", tmp_path / "shelf")
    GenerativeModel(16, 8, 1, 1).save_pretrained(tmp_path / "run" / "backbone")
    (tmp_path / "shelf" / "backbone").mkdir(parents=True)
    (tmp_path / "shelf" / "backbone" / "mine").write_text("")
    before = content(tmp_path)
    for shelf in ("run", "run/backbone", ".", "shelf"):
        with pytest.raises(OmnijetError, match="into itself|is not replaced"):
            ship(tmp_path / "run", tmp_path / shelf)
    assert content(tmp_path) == before


def test_the_kernel_is_this_python_whatever_the_user_has(tmp_path):
    "A kernel of the name python3 that is another program, and a startup file of the user's IPython."
    spec = {"argv": ["false", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (tmp_path / "share" / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "share" / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    (tmp_path / "ipython" / "profile_default" / "startup").mkdir(parents=True)
    (tmp_path / "ipython" / "profile_default" / "startup" / "mine.py").write_text("mine = 1")
    here = house(tmp_path / "house", "import sys\nprint(sys.executable)\nassert 'mine' not in globals()")
    done = omnijet("run", cwd=here, PYTHONPATH=str(here), JUPYTER_PATH=str(tmp_path / "share"), IPYTHONDIR=str(tmp_path / "ipython"))
    assert done.returncode == 0, done.stderr


def test_papermill_without_omnijet_takes_a_preset(tmp_path):
    words = [sys.executable, "-m", "papermill", "-f", "nbs/presets/laptop.yaml", "nbs/00d_statistics.ipynb", tmp_path / "out.ipynb", "--cwd", "nbs", "-p", "run_dir", tmp_path / "run"]
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMNIJET_HEADLESS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "preset = \"laptop\"" in (tmp_path / "out.ipynb").read_text().replace("\\", "")


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
    for part in ("train_100M", "val_5M", "test_20M"):
        (tmp_path / "real" / part).mkdir(parents=True)
    done = omnijet("run", "--only", "00b", "-p", "jetclass=real", cwd=tmp_path)  # from here, not from nbs
    assert done.returncode == 1 and "chapter 00b_simulation, cell" in done.stderr
    assert f"{tmp_path}/real/train_100M: 0 jets of" in done.stderr
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
    from omnijet.run import check_parameters, choose_parameters, read_chapters, read_preset
    chapters, values = read_chapters(), read_preset(preset)
    own = {key: value for chapter in chapters.values() for key, value in chapter["parameters"].items()}
    assert values["preset"] == preset and choose_parameters(preset, {}, chapters) == own | values
    check_parameters(choose_parameters(preset, {}, chapters))
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
    assert list(chapters) == [name for name in books if name.split("_")[0] not in ("06", "06a", "06b", "06c", "07", "07a", "09")]
    for name, about in chapters.items():
        assert all(other in chapters and other < name for other in about["reads"]), name
    assert {part: name for name, about in chapters.items() for part in about["writes"] if part != "flow_matching"} == {
        "data": "00b_simulation", "tokenizers": "01_vqvae", "tokens": "01_vqvae", "quality": "02_token_quality",
        **dict.fromkeys(["backbone", "backbone_single", "backbone_jet", "backbone_jet_single", "backbone_conditional"], "03_gpt"),
        "masked": "03a_masked",
        "generated": "04_generation", "transfer": "05_transfer", "public": "05a_public_jets", "showers": "08_showers"}
    assert {"01_vqvae", "03_gpt"} <= set(chapters["04_generation"]["reads"])


def test_cards_and_targets_by_keys():
    "Every model's card has numbers, and every target its number, in the results that the clone keeps."
    from omnijet.shipping import MODELS, TARGETS, card_numbers, goals
    from omnijet.statistics import read_numbers
    numbers = read_numbers(ROOT / "figures")
    assert len(goals(numbers)) == len(TARGETS)
    found = {model: card_numbers(model, numbers) for model in MODELS}
    assert all(len(of) >= 4 for of in found.values()), found
    assert {(n["key"], n["images"]) for n in found["top-tagger"]} == {("accuracy", 1), ("auc", 1), ("accuracy", 8), ("auc", 8)}
    for model, of in found.items():
        card = (ROOT / "omnijet" / "pretrained" / model / "README.md").read_text()
        assert all(f"| {n['title']} |" in card for n in of), model
