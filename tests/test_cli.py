import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from teenytinyllama import __version__
from teenytinyllama.arguments import build, check_types
from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE
from teenytinyllama.cli import VERBS, main
from teenytinyllama.launching.launch import recipes_folder

REPOSITORY = Path(__file__).resolve().parent.parent


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == EXIT_DONE
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)
    assert main(["--version"]) == EXIT_DONE
    assert capsys.readouterr().out.strip() == __version__
    for verb, words in (
        ("tokenizer", ["--vocab_size"]), ("pack", ["--context"]), ("init", ["usage: ttl init DIR [", "--folder"]),
        ("pretrain", ["--tokens_per_step", "--accelerate", "--num_processes", "also every key of the library"]),
        ("emissions", ["usage: ttl emissions RUN ... [", "--elsewhere"]), ("card", ["--check"]), ("merge", ["ADAPTER"]),
        ("classify", ["usage: ttl classify TASK MODEL ["]), ("publish", ["--follow", "of data:"]), ("demo", ["runs/demo"]),
    ):  # fmt: skip
        assert main([verb, "--help"]) == EXIT_DONE
        text = capsys.readouterr().out
        assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pretrian"], "error: pretrian: unknown verb. Did you mean 'pretrain'?"),
        (["pack", "--input", "x"], "error: input: unknown key. Did you mean 'inputs'?"),
        (["pack"], "error: inputs: missing."),
        (["tokenizer", "--inputs", "x", "--vocab_size", "many"], "error: vocab_size='many': wrong type (str)."),
        (["tokenizer", "--inputs", "sample"], "error: output_dir: missing."),
        (["tokenizer", "--inputs", "sample", "--output_dir", "x", "--max_bytes", "0"], "error: max_bytes=0: must be positive."),
        (["tokenizer", "--inputs", "sample", "--output_dir", "x", "--num_superwords", "-1"], "error: num_superwords=-1: must be 0 or more."),
        (["init"], "error: ttl init: needs the folder to make."),
        (["card", "nowhere"], "error: "),
        (["merge", "a"], "error: ttl merge: needs an adapter, and the folder for the whole model."),
        (["init", "a", "b"], "error: b: a value without a key."),
        (["pretrain", "--num_processes", "two"], "error: num_processes='two': wrong type (str). It must be an integer or null."),
        (["pretrain", "--num_processes", "²"], "error: num_processes='²': wrong type (str). It must be an integer or null."),
        (["pretrain", "--num_processes", "0"], "error: num_processes=0: must be at least 1."),
        (["pretrain", "--num_processes", "100000"], "error: num_processes=100000: starts so many processes"),
        (["chat", "outputs/typo"], "error: name_or_path=outputs/typo: no such folder here."),
        (["pretrain", "--accelerate"], "error: --accelerate: needs a value."),
        (["pretrain", "--accelerate", "a", "--accelerate", "b"], "error: --accelerate: given twice"),
        (["pretrain", "--accelerate", "zero9", "--preset", "tiny"], "error: accelerate=zero9: must be the path of"),
    ],
)  # fmt: skip
def test_bad_commands_end_with_one_message(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


_WINDOWS = """
import sys, signal
sys.platform = "win32"
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGHUP"):
    delattr(signal, name)
import teenytinyllama.arguments, teenytinyllama.chat.terminal, teenytinyllama.gpus
from teenytinyllama.cli import main
sys.exit(main(["demo"]))
"""


def test_windows_is_told_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _WINDOWS], capture_output=True, text=True, check=False, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)})  # fmt: skip
    assert done.returncode == EXIT_BAD_INPUT, done.stderr
    assert done.stderr.splitlines() == [
        "error: Windows: teenytinyllama runs on Linux and macOS. On Windows use WSL 2 (`wsl --install`) and install it there."
    ]


def test_no_verb_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == EXIT_BAD_INPUT
    assert "usage: ttl VERB" in capsys.readouterr().out


def test_init_copies_every_recipe_with_its_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "meu")]) == EXIT_DONE
    copied = tmp_path / "meu" / "recipes"
    originals = [path for path in recipes_folder().rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(originals) > 20
    for original in originals:
        copy = copied / original.relative_to(recipes_folder())
        if "raw" in original.parts:  # data has no comments
            assert copy.read_bytes() == original.read_bytes()
            continue
        text = copy.read_text()
        if original.suffix != ".json":
            assert f"# from teenytinyllama {__version__}\n" in text.split("\n\n")[0] + "\n"
    script = copied / "reproduce.sh"
    assert script.read_text().startswith("#!/usr/bin/env bash\n# from teenytinyllama")
    assert script.stat().st_mode & 0o111
    (copied / "pretrain.py").write_text("# mine")
    capsys.readouterr()
    assert main(["init", str(tmp_path / "meu")]) == EXIT_BAD_INPUT
    assert "exists already and may hold your changes" in capsys.readouterr().err
    assert (copied / "pretrain.py").read_text() == "# mine"


def test_init_into_no_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "/proc/nada"]) == EXIT_BAD_INPUT
    assert "error: DIR=/proc/nada/recipes: /proc cannot be written to" in capsys.readouterr().err


def test_every_shipped_config_is_accepted_by_its_stage() -> None:
    from teenytinyllama.classification.config import ClassifyConfig
    from teenytinyllama.data.pack import PackConfig
    from teenytinyllama.evaluation.config import EvaluateConfig
    from teenytinyllama.lab.config import LabConfig
    from teenytinyllama.planning.memory import derive_batch
    from teenytinyllama.presets import PRESETS
    from teenytinyllama.tokenizer.train import TokenizerConfig
    from teenytinyllama.training.config import PretrainConfig
    from teenytinyllama.tuning.config import DpoConfig, SftConfig

    classes = {"tokenizer": TokenizerConfig, "pack": PackConfig, "pretrain": PretrainConfig, "sft": SftConfig,
               "dpo": DpoConfig, "evaluate": EvaluateConfig, "classify": ClassifyConfig}  # fmt: skip
    files = sorted((REPOSITORY / "recipes" / "configs").rglob("*.yaml"))
    lab = REPOSITORY / "recipes" / "configs" / "lab.yaml"
    build(LabConfig, check_types(LabConfig, yaml.safe_load(lab.read_text())))
    # See test_ancestor.py; test_corpus_sources.py, and test_documents.py for the corpus of the tiny model.
    others = ("ancestor", "lab", "corpus")
    files = [file for file in files if file.parent.name not in others and file.stem not in others]
    assert len(files) == 7 * len(PRESETS) - 2  # no preferences and no classification for the tiny model
    for file in files:
        values = check_types(classes[file.stem], yaml.safe_load(file.read_text()))
        assert file.parent.name in str(values.get("output_dir", values.get("model_name_or_path")))
        if file.stem == "pretrain":
            assert values["preset"] == file.parent.name
            context = PRESETS[values["preset"]].max_position_embeddings
            for ranks in (1, 2, 4, 8):
                micro = values.get("per_device_train_batch_size")
                derive_batch(values["tokens_per_step"], context, micro, ranks)
        elif file.stem in ("sft", "dpo"):  # they need the model of the stage before
            before = {"sft": "base", "dpo": "chat"}[file.stem]
            assert values["model_name_or_path"] == f"outputs/{file.parent.name}/{before}"
        else:
            classes[file.stem](**values)


RECIPES = ["pretrain", "pack", "corpus", "train_tokenizer", "sft", "dpo", "evaluate", "classify"]

# Runs each recipe as a command with an unknown key and with --help, and prints how it ended and what it said.
_RECIPES = """
import contextlib, io, json, runpy, sys, traceback
ends = {}
for path in sys.argv[1:]:
    for words in (["--oops", "1"], ["--help"]):
        sys.argv, out, err = [path, *words], io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = runpy.run_path(path, run_name="__main__") and 0
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                code = traceback.print_exc() or 1
        ends.setdefault(path, []).append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def recipe_ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str, str]]]:
    """Run all recipes in one process: each alone would import transformers twice."""
    paths = [str(REPOSITORY / "recipes" / f"{name}.py") for name in RECIPES]
    done = subprocess.run(
        [sys.executable, "-c", _RECIPES, *paths], capture_output=True, text=True, check=False,
        cwd=tmp_path_factory.mktemp("recipes"), env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    return {Path(path).stem: end for path, end in ends.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_commands_with_the_same_refusals(
    name: str, recipe_ends: dict[str, list[tuple[int, str, str]]]
) -> None:
    (code, _, error), (shown_code, shown, _) = recipe_ends[name]
    assert (code, "oops: unknown key" in error) == (EXIT_BAD_INPUT, True), error
    assert "Traceback" not in error
    assert shown_code == 0
    assert "--output_dir" in shown


def test_tokenizer_and_pack_from_the_command_line(
    tmp_path: Path, corpus_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, packed = str(tmp_path / "t"), str(tmp_path / "p")
    train = ["tokenizer", "--inputs", str(corpus_folder), "--vocab_size", "500", "--output_dir", tokenizer]
    train += ["--validation_fraction", "0.1"]
    assert main(train) == EXIT_DONE
    output = capsys.readouterr().out
    assert "learning 500 entries from" in output
    assert "contos" in output
    audit = json.loads((tmp_path / "t" / "audit.json").read_text())
    assert audit["overall"]["unknown_rate"] == audit["overall"]["round_trip_failures"] == 0
    manifest = json.loads((tmp_path / "t" / "run.json").read_text())
    assert manifest["vocab_size"] == 500
    assert set(manifest["sample"]["kept_bytes"]) == {"contos", "curtas"}
    assert main(train) == EXIT_DONE
    assert "already holds this tokenizer" in capsys.readouterr().out
    assert main([*train, "--seed", "3"]) == EXIT_BAD_INPUT
    assert "holds a tokenizer of other inputs or settings" in capsys.readouterr().err
    command = [
        "pack",
        "--inputs",
        str(corpus_folder),
        "--tokenizer",
        tokenizer,
        "--context",
        "32",
        "--output_dir",
        packed,
    ]
    assert main(command) == EXIT_DONE
    assert "rows of 32 tokens (uint16)" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("x")
    assert main(["tokenizer", "--inputs", str(corpus_folder), "--output_dir", str(tmp_path / "mine")]) == EXIT_BAD_INPUT
    assert "is not empty (a.txt)" in capsys.readouterr().err


def test_threads_wait_without_keeping_a_core_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    for policy, given, count in (("", "", "3000"), ("", "7", "7"), ("ACTIVE", "", None)):
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
        for name, value in (("OMP_WAIT_POLICY", policy), ("GOMP_SPINCOUNT", given)):
            if not value:
                monkeypatch.delenv(name)
        assert main(["plan", "--help"]) == EXIT_DONE
        assert os.environ.get("GOMP_SPINCOUNT") == count


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """As in `ttl pretrain --help | head -1`: no traceback."""
    command = f"{sys.executable} -m teenytinyllama plan --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=REPOSITORY,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"})  # fmt: skip
    assert done.stdout.startswith("ttl plan: ")
    assert done.stderr == ""
