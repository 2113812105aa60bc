"""The demo, as a user starts it, with a few steps; `recipes/reproduce.sh tiny` and the full demo run in CI."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from teenytinyllama.checks import InputError, RunFailedError
from teenytinyllama.demo import reload_elsewhere, run_demo
from teenytinyllama.launching.launch import recipes_folder

REPOSITORY = Path(__file__).resolve().parent.parent


def demo(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "teenytinyllama", "demo", "--output_dir", str(folder / "demo"), *more]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "no_proxy": "*", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.slow
def test_the_whole_job_offline_and_quick_the_second_time(tmp_path: Path) -> None:
    first = demo(tmp_path, "--max_tokens", "16384")
    assert first.returncode == 0, first.stderr
    run = tmp_path / "demo" / "base"
    manifest = json.loads((run / "run.json").read_text())
    results = manifest["results"]
    assert results["final"]["bits_per_byte"] < results["initial"]["bits_per_byte"]
    report = json.loads((run / "stories.json").read_text())
    assert len(report["trained"]["stories"]) == len(report["untrained"]["stories"]) == 50
    for text in (
        "Reloaded as LlamaForCausalLM without this package: Era uma vez",
        "held-out bits per byte",
        f"{results['final']['bits_per_byte']:.3f}",
        "words in the training lexicon",
        "8-grams copied from training",
        "agreement by the grammar",
        f"{run}/README.md",
        "Next: ttl init",
    ):
        assert text in first.stdout, text
    assert (run / "README.md").read_text().startswith("---\n")
    before = (run / "model.safetensors").stat().st_mtime_ns
    second = demo(tmp_path, "--max_tokens", "16384")
    assert second.returncode == 0, second.stderr
    assert "is complete" in second.stdout
    assert (run / "model.safetensors").stat().st_mtime_ns == before


def test_a_bad_key_stops_it_before_anything_is_written(tmp_path: Path) -> None:
    done = demo(tmp_path, "--max_token", "5")
    assert done.returncode == 2
    assert "max_token: unknown key. Did you mean 'max_tokens'?" in done.stderr
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_tokens", -5, "max_tokens=-5: must be positive"),
        ("tokens_per_step", 7, "tokens_per_step=7: must be a positive multiple of the row length 256"),
        ("inputs", ["textos"], "inputs=.'textos'.: the demo makes its own tokenizer, rows and model"),
        ("context", 64, "context=64: the demo makes its own"),
        ("output_dir", "/dev/null/x", "output_dir=/dev/null/x: /dev/null is a file"),
    ],
)
def test_a_bad_value_stops_it_before_data_is_made(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_demo({"output_dir": str(tmp_path / "demo"), key: value}, recipes_folder())
    assert not (tmp_path / "demo").exists()


def test_null_is_the_usual_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match="output_dir=runs/demo: .*runs is a file"):
        run_demo({"output_dir": None}, recipes_folder())


@pytest.mark.slow
def test_a_model_that_does_not_reload_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunFailedError, match="does not load with transformers alone"):
        reload_elsewhere(tmp_path)
