"""Who runs the shards of `ttl corpus`: processes here, Ray and Slurm; and what is left after a kill."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_corpus_factory import config, fake_slurm, hashes, make, text

from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE, InputError, RunFailedError

pytest.importorskip("datatrove")

LISTENING = """
import contextlib, json, os, sys
import psutil
import teenytinyllama.corpus.factory as factory
from teenytinyllama.arguments import build
from teenytinyllama.corpus.config import BuildConfig
ports, run = [], factory._run_phases

def watch(*args, **keys):
    done = run(*args, **keys)
    ports.append("usage: " + os.environ["RAY_USAGE_STATS_ENABLED"])
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            ports.extend(c.laddr.ip for c in process.net_connections() if c.status == "LISTEN")
            words = process.cmdline()
            if "dashboard/dashboard.py" in " ".join(words) and "--disable-frontend" not in words:
                ports.append("dashboard")
    return done

factory._run_phases = watch
factory.build_corpus(build(BuildConfig, json.load(open(sys.argv[1]))))
print(json.dumps(sorted(set(ports))))
"""


def command(tmp_path: Path, keys: dict[str, Any]) -> list[str]:
    file = tmp_path / "corpus.yaml"
    file.write_text(json.dumps(keys), encoding="utf-8")
    return [sys.executable, "-m", "teenytinyllama", "corpus", "--config", str(file)]


def run(
    words: list[str], environment: dict[str, str] | None = None, place: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment, cwd=place, text=True, capture_output=True, timeout=800, check=False)


def broken_in_a_task(tmp_path: Path) -> dict[str, Any]:
    """A config whose sources fail in a task: of a gzip file the end is missing."""
    import gzip

    keys = config(tmp_path)
    path = tmp_path / "raw" / "cut.jsonl.gz"
    whole = gzip.compress("\n".join(json.dumps({"text": text(number)}) for number in range(300, 330)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    keys["sources"]["cut"] = {"inputs": [str(path)], "license": "cc0-1.0"}
    return keys


@pytest.mark.slow
def test_ray_makes_the_same_corpus_on_this_machine_alone(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("psutil")
    keys = config(tmp_path)
    expected = hashes(make(keys | {"output_dir": str(tmp_path / "here")}))
    file = tmp_path / "corpus.json"
    file.write_text(json.dumps(keys | {"executor": "ray", "workers": 2}), encoding="utf-8")
    found = run([sys.executable, "-c", LISTENING, str(file)])
    assert found.returncode == 0, found.stderr[-3000:]
    assert hashes(tmp_path / "out") == expected
    ports = json.loads(found.stdout.splitlines()[-1])
    assert "usage: 0" in ports
    assert set(ports) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1", "usage: 0"}
    # What a task refuses reaches the user as with processes of this machine.
    keys = broken_in_a_task(tmp_path / "b") | {"executor": "ray", "workers": 2}
    done = run(command(tmp_path, keys))
    assert done.returncode == EXIT_BAD_INPUT, done.stderr[-3000:]
    assert "cut.jsonl.gz: damaged compressed file" in done.stderr
    assert "Traceback" not in done.stderr


def test_ray_that_is_missing_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None if name == "ray" else object())
    with pytest.raises(InputError, match=r"ray: not installed.*pip install 'teenytinyllama\[corpus,ray\]'"):
        make(config(tmp_path) | {"executor": "ray"})


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_refuses_is_bad_input_and_the_rest_is_kept(tmp_path: Path, workers: int) -> None:
    keys = broken_in_a_task(tmp_path) | {"workers": workers}
    with pytest.raises(InputError, match=r"sources.cut.inputs=.*cut.jsonl.gz: damaged compressed file"):
        make(keys)
    assert list((tmp_path / "out").glob("work/clean-*/00000.parquet"))
    assert list((tmp_path / "out").glob("work/clean-*/failed-*.txt"))


def test_a_fault_of_a_task_is_named_with_its_phase_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("teenytinyllama.corpus.phases.fingerprints", broken)
    with pytest.raises(
        RunFailedError, match=r"clean: a task failed: ZeroDivisionError: a fault\. All of it is in .*txt"
    ):
        make(config(tmp_path))


KILLED = """
import json, os, signal, sys
import teenytinyllama.corpus.phases as phases
from teenytinyllama.arguments import build
from teenytinyllama.checks import run_main
from teenytinyllama.corpus.config import BuildConfig
from teenytinyllama.corpus.factory import build_corpus
if __name__ == "__main__":
    sys.exit(run_main(lambda: print(build_corpus(build(BuildConfig, json.load(open(sys.argv[1])))))))
elif os.path.exists(sys.argv[1] + ".kill"):
    clean = phases.clean_shard
    def killed(task, **keys):
        if task == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        clean(task, **keys)
    phases.clean_shard = killed
"""


@pytest.mark.slow
def test_a_process_that_is_killed_is_no_endless_wait(tmp_path: Path) -> None:
    keys = config(tmp_path) | {"workers": 2}
    script, file = tmp_path / "script.py", tmp_path / "corpus.json"
    script.write_text(KILLED, encoding="utf-8")
    file.write_text(json.dumps(keys), encoding="utf-8")
    (tmp_path / "corpus.json.kill").touch()
    done = run([sys.executable, str(script), str(file)])
    assert done.returncode == 1, done.stderr[-3000:]
    assert "failed: a process was killed, most likely because memory was short" in done.stderr
    assert "fewer workers than 2" in done.stderr
    (tmp_path / "corpus.json.kill").unlink()
    assert run([sys.executable, str(script), str(file)]).returncode == EXIT_DONE
    assert hashes(tmp_path / "out") == hashes(make(keys | {"output_dir": str(tmp_path / "whole"), "workers": 1}))


@pytest.mark.slow
def test_a_damaged_file_of_a_phase_is_named_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("teenytinyllama.corpus.factory._finish", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            make(keys)
    work = tmp_path / "out" / "work"
    for name in ("seconds-00000.json", "00000.json", "counts.json", "00000.statistics", "00000.parquet"):
        for path in work.glob(f"*/{name}"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.rmtree(next(work.glob("mix-*")))
    named = []
    while not (tmp_path / "out" / "passport.json").exists():
        try:
            make(keys)
        except RunFailedError as failure:
            text = str(failure)
            assert re.search("/work/.* is damaged .*Delete the folder .*; the same command makes it again", text)
            folder = Path(text.split("Delete the folder ")[1].split(";")[0])
            named.append(folder.name.split("-")[0])
            shutil.rmtree(folder)
    assert named == ["clean", "finish", "duplicates"]
    assert hashes(tmp_path / "out") == hashes(make(keys | {"output_dir": str(tmp_path / "whole")}))


STOPPED = """
import json, os, sys, time
import teenytinyllama.corpus.phases as phases
from teenytinyllama.cli import main
if __name__ == "__main__":
    sys.exit(main(["corpus", "--config", sys.argv[1]]))
clean = phases.clean_shard
def endless(task, **keys):
    open(sys.argv[1] + f".pid{os.getpid()}", "w").close()
    time.sleep(600)
phases.clean_shard = endless
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes_at_once(tmp_path: Path, number: signal.Signals) -> None:
    script, file = tmp_path / "script.py", tmp_path / "corpus.yaml"
    script.write_text(STOPPED, encoding="utf-8")
    file.write_text(json.dumps(config(tmp_path) | {"workers": 2}), encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(script), str(file)], text=True, stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("corpus.yaml.pid*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 75, error
    assert "complete shards are kept; the same command goes on" in error
    assert "Traceback" not in error
    for path in tmp_path.glob("corpus.yaml.pid*"):
        status = Path("/proc", path.name.partition(".pid")[2], "status")
        assert not status.exists() or "zombie" in status.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_ten_kills_leave_the_bytes_of_an_undisturbed_run(tmp_path: Path, workers: int) -> None:
    keys = config(tmp_path)
    for number in range(6):  # more shards, so that a kill falls between them
        path = tmp_path / "raw" / f"more{number}.jsonl"
        path.write_text(
            "\n".join(json.dumps({"text": text(200 + 20 * number + row)}) for row in range(20)), encoding="utf-8"
        )
    keys["sources"]["more"] = {"inputs": [str(tmp_path / "raw" / "more*.jsonl")], "license": "cc0-1.0"}
    keys["decontamination"] = {
        "sets": {"news": {"inputs": [str(tmp_path / "exam.jsonl")], "columns": ["q"]}}, "margin": 20,
    }  # fmt: skip
    (tmp_path / "exam.jsonl").write_text(json.dumps({"q": text(7)[:400]}) + "\n", encoding="utf-8")
    whole = run(command(tmp_path, keys | {"output_dir": str(tmp_path / "whole"), "workers": 4 - workers}))
    assert whole.returncode == 0, whole.stderr[-2000:]
    expected, draw, out = hashes(tmp_path / "whole"), random.Random(workers), tmp_path / "out"
    assert expected
    words, kills = command(tmp_path, keys | {"workers": workers}), 0
    while kills < 10:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wanted = len(list(out.rglob("*"))) + draw.randint(1, 12)  # it dies when it has made so many files
        while process.poll() is None and len(list(out.rglob("*"))) < wanted:
            time.sleep(0.002)
        if process.poll() is None:
            time.sleep(draw.uniform(0, 0.03))
            os.kill(process.pid, signal.SIGKILL)  # of this process alone: its own have to end by themselves
            kills += 1
        error = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), error[-2000:]
        if process.returncode == 0:  # it was faster: all of it again
            assert hashes(out) == expected
            shutil.rmtree(out)
    done = run(words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert hashes(out) == expected
    assert not list(out.rglob("*.partial"))


def busy_slurm(folder: Path) -> tuple[dict[str, str], Path, str]:
    """A Slurm that takes jobs and lets them wait; its environment, its sbatch, and what that holds when it works."""
    environment, sbatch = fake_slurm(folder), folder / "sbatch"
    works = sbatch.read_text(encoding="utf-8")
    sbatch.write_text(f"#!{sys.executable}\nprint('Submitted batch job 41')\n", encoding="utf-8")
    return environment, sbatch, works


@pytest.mark.slow
def test_slurm_says_what_it_handed_in_and_how_to_finish(tmp_path: Path) -> None:
    keys = config(tmp_path)
    environment, sbatch, works = busy_slurm(tmp_path / "bin")
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text("#!/bin/bash\necho 41\n", encoding="utf-8")
    squeue.chmod(0o755)
    # Paths relative to where the command is given; the jobs begin in another folder.
    keys |= {"executor": "slurm", "slurm": {"partition": "cpu", "time": "01:00:00"}, "output_dir": "out"}
    keys["sources"]["news"]["inputs"] = ["raw/news.parquet"]
    words = command(tmp_path, keys)
    first = run(words, environment, tmp_path)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "Handed in to Slurm: 4 jobs, 41, 41, 41, 41" in first.stdout
    assert "the same command writes the corpus's passport" in first.stdout
    assert not (tmp_path / "out" / "passport.json").exists()
    script = next((tmp_path / "out").glob("work/clean-*/tasks/launch_script.slurm")).read_text(encoding="utf-8")
    assert "#SBATCH --kill-on-invalid-dep=yes" in script
    assert f"export PATH={Path(sys.executable).parent}" in script
    assert "--qos" not in script
    again = run(words, environment, tmp_path)
    assert "Slurm still has 4 jobs of this corpus in its queue" in again.stdout
    assert "0 of " in again.stdout
    # The jobs are gone from the queue: what is not complete is handed in again, runs, and the passport is written.
    squeue.write_text("#!/bin/bash\n", encoding="utf-8")
    sbatch.write_text(works, encoding="utf-8")
    last = run(words, environment, tmp_path)
    assert last.returncode == 0, last.stderr[-2000:]
    assert (tmp_path / "out" / "passport.json").exists()
    assert hashes(tmp_path / "out") == hashes(make(config(tmp_path) | {"output_dir": str(tmp_path / "here")}))
    log_before = (tmp_path / "bin" / "log").read_text(encoding="utf-8")
    assert run(words, environment, tmp_path).returncode == 0
    assert (tmp_path / "bin" / "log").read_text(encoding="utf-8") == log_before, "nothing is left to hand in"


def test_jobs_that_slurm_refuses_are_one_message(tmp_path: Path) -> None:
    environment = fake_slurm(tmp_path / "bin")
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1\n", encoding="utf-8")
    keys = config(tmp_path) | {"executor": "slurm", "slurm": {"partition": "nada", "time": "01:00:00"}}
    done = run(command(tmp_path, keys), environment)
    assert done.returncode == EXIT_BAD_INPUT
    assert "invalid partition\nerror: slurm: sbatch refused the jobs of clean (exit code 1)" in done.stderr
    assert "Traceback" not in done.stderr


def test_slurm_without_its_command_is_refused(tmp_path: Path) -> None:
    keys = config(tmp_path) | {"executor": "slurm", "slurm": {"partition": "cpu", "time": "01:00:00"}}
    with pytest.raises(InputError, match="executor=slurm: the command sbatch is not here"):
        make(keys)


@pytest.mark.slow
def test_jobs_of_an_older_config_are_not_taken_up(tmp_path: Path) -> None:
    keys = config(tmp_path)
    environment, sbatch, works = busy_slurm(tmp_path / "bin")
    keys |= {"executor": "slurm", "slurm": {"partition": "cpu", "time": "01:00:00"}}
    assert run(command(tmp_path, keys), environment).returncode == 0
    old = {path: path.read_bytes() for path in (tmp_path / "out").glob("work/*/tasks/executor.pik")}
    assert len(old) == 4
    sbatch.write_text(works, encoding="utf-8")
    keys["quality"] = {"min_words": 100}
    done = run(command(tmp_path, keys), environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(path.read_bytes() == content for path, content in old.items())
    assert not [path for path in old if (path.parent / "completions").is_dir()]
    assert hashes(tmp_path / "out") == hashes(make(keys | {"executor": "local", "output_dir": str(tmp_path / "here")}))
