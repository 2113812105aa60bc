"""`ttl corpus` as a whole, through datatrove's executors, on small real files."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from teenytinyllama.arguments import build
from teenytinyllama.checks import InputError
from teenytinyllama.cleaning.quality import check_quality
from teenytinyllama.corpus.config import BuildConfig
from teenytinyllama.stage_folder import sha256_file

pytest.importorskip("datatrove")
pytest.importorskip("resiliparse")

PHONE = " Telefone para informações: (11) 91234-5678."


@functools.cache
def stories() -> tuple[str, ...]:
    """Texts of a hundred words or more, all different, that the quality rules let through."""
    from teenytinyllama.data.sample import sample_documents

    rows = [row["text"] for row in sample_documents("train", 2400)]
    texts = ("\n".join(rows[place : place + 3]) for place in range(0, len(rows), 3))
    return tuple(text for text in texts if check_quality(text + PHONE) is None)


def text(number: int) -> str:
    return stories()[number] + PHONE


def sources(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    news = [text(number) for number in range(40)]
    rows = {
        "text": [
            *news,
            news[0],
            "Este é um texto curto demais para ficar no corpus.",
            "This is an English sentence about the weather in London today. " * 20,
        ]
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "news.parquet", row_group_size=8)
    pages = [f"<html><head><meta charset='utf-8'></head><body><p>{text(number)}</p><p><strike>{text(150)}</strike></p></body></html>"
             for number in range(100, 112)]  # fmt: skip
    pyarrow.parquet.write_table(
        pyarrow.table({"html": pages, "url": [f"http://x/{n}" for n in range(12)]}), folder / "laws.parquet"
    )
    return {"news": {"inputs": [str(folder / "news.parquet")], "license": "cc-by-4.0", "register": "news", "weight": 2},
            "laws": {"inputs": [str(folder / "laws.parquet")], "license": "public-domain", "html_column": "html",
                     "url_column": "url", "steps": {"quality": False}}}  # fmt: skip


def config(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    return {"output_dir": str(tmp_path / "out"), "sources": sources(tmp_path / "raw"), "workers": 1,
            "variety": False, "shard_rows_megabytes": 1, **keys}  # fmt: skip


def make(keys: dict[str, Any]) -> Path:
    from teenytinyllama.corpus.factory import build_corpus

    return build_corpus(build(BuildConfig, keys))


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted((folder / "train").glob("*.parquet"))}


def test_raw_files_become_a_corpus_that_pack_reads(tmp_path: Path, tokenizer_folder: Path) -> None:
    from teenytinyllama.data.pack import PackConfig, pack

    out = make(config(tmp_path))
    rows = pyarrow.parquet.read_table(out / "train" / "00000.parquet").to_pylist()
    news = [row for row in rows if row["metadata"]["source"] == "news"]
    assert len(news) == 2 * 40  # twice; the copy, the short one and the English one are gone
    assert sorted(row["metadata"]["cluster_size"] for row in news) == [1] * 78 + [2] * 2  # the one that had a copy
    assert {row["metadata"]["license"] for row in rows} == {"cc-by-4.0", "public-domain"}
    assert all("[TELEFONE]" in row["text"] and "91234" not in row["text"] for row in news)
    passport = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    steps = passport["sources"]["news"]["steps"]
    assert steps["language"]["reasons"] == {"language is en": 1}
    assert steps["duplicates"]["reasons"] == {"exact": 1}
    assert sum(steps["quality"]["reasons"].values()) == 1
    assert steps["personal_data"]["changes"]["phone"] == 41
    laws = passport["sources"]["laws"]
    assert laws["steps"]["html"]["changes"]["struck_characters_removed"] > 0
    assert "quality" not in laws["steps"]
    assert passport["left_out"] == ["toxicity", "decontamination"]
    page = (out / "passport.html").read_text(encoding="utf-8")
    assert "language is en" in page
    assert "http://" not in page.split("<h2>Samples</h2>")[0]
    packed = pack(PackConfig(inputs=[str(out / "train")], tokenizer=str(tokenizer_folder), output_dir=str(tmp_path / "p"),
                             context=64))  # fmt: skip
    manifest = json.loads((packed / "run.json").read_text(encoding="utf-8"))
    assert set(manifest["sources"]) == {"news", "laws"}


@pytest.mark.slow
def test_the_corpus_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    one = hashes(make(config(tmp_path / "a")))
    keys = config(tmp_path / "b") | {"workers": 3}
    out = make(keys)
    assert hashes(out) == one
    seconds = json.loads((out / "run.json").read_text(encoding="utf-8"))["seconds"]
    assert set(seconds) == {"clean", "duplicates", "phrases", "finish", "mix"}
    assert {"read", "html", "language", "quality", "personal_data", "write", "fingerprints"} <= set(seconds["clean"])
    assert {"read", "tokens", "statistics", "write"} <= set(seconds["finish"])
    assert all(value >= 0 for steps in seconds.values() for value in steps.values())


def test_other_settings_do_only_what_depends_on_them(tmp_path: Path) -> None:
    keys = config(tmp_path)
    out = make(keys)
    before = {path: path.stat().st_mtime_ns for path in (out / "work").rglob("*.parquet")}
    first = hashes(out)
    keys["sources"]["news"]["weight"] = 1
    make(keys)
    assert hashes(out) != first
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items() if "mix-" not in str(path))
    assert len([path for path in (out / "work").iterdir() if path.name.startswith("clean-")]) == 1
    keys["quality"] = {"min_words": 400}
    make(keys)
    assert len([path for path in (out / "work").iterdir() if path.name.startswith("clean-")]) == 2


def test_evaluation_items_are_cut_and_evaluation_files_are_no_source(tmp_path: Path) -> None:
    keys = config(tmp_path)
    question = "Segundo a legislação municipal vigente, quem deve autorizar a construção de uma nova ponte sobre o rio principal?"
    path = tmp_path / "raw" / "laws.parquet"
    table = pyarrow.parquet.read_table(path).to_pydict()
    table["html"][3] = table["html"][3].replace("</p>", f"</p><p>{question}</p>", 1)
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"q": question}) + "\n", encoding="utf-8")
    keys["decontamination"] = {"sets": {"exam": {"inputs": [str(exam)], "columns": ["q"]}}, "margin": 20}
    out = make(keys)
    passport = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    assert passport["sources"]["laws"]["steps"]["decontamination"]["changes"] == {"passages_of_exam": 1}
    texts = [row["text"] for row in pyarrow.parquet.read_table(out / "train" / "00000.parquet").to_pylist()]
    assert not any("legislação municipal vigente" in text for text in texts)
    exam.write_text(
        json.dumps({"q": "Quem foi que descobriu o caminho por mar para as Índias em 1498?"}), encoding="utf-8"
    )
    make(keys)  # the same settings, another content of the file
    texts = [row["text"] for row in pyarrow.parquet.read_table(out / "train" / "00000.parquet").to_pylist()]
    assert any("legislação municipal vigente" in text for text in texts)
    keys["decontamination"]["sets"]["exam"]["inputs"] = [str(path)]
    keys["decontamination"]["sets"]["exam"]["columns"] = ["html"]
    with pytest.raises(InputError, match=r"laws.parquet: is a file of the evaluation set exam"):
        make(keys)


@pytest.mark.parametrize(("change", "message"), [
    ({"quality": {"min_word": 3}}, "quality.min_word: unknown key"),
    ({"quality": 3}, "quality=3: must be a mapping of settings, or false"),
    ({"decontamination": {}}, "decontamination.sets: is missing"),
    ({"decontamination": {"sets": {"x": {"inputs": ["a"]}}}}, "decontamination.sets.x.columns: is missing. A set needs inputs and columns"),
    ({"duplicates": {"threshold": 2}}, "threshold=2.0: must be above 0"),
    ({"executor": "slurm"}, "slurm.partition: is missing"),
    ({"executor": "slurm", "slurm": {"partition": "p", "time": "1:00", "gpu": "1"}}, "slurm.gpu: unknown key"),
])  # fmt: skip
def test_a_setting_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(config(tmp_path) | change)


def test_broken_rows_are_kept_aside_and_too_many_are_refused(tmp_path: Path) -> None:
    keys = config(tmp_path)
    lines = [json.dumps({"text": text(number)}) for number in range(200, 220)]
    lines[3], lines[5] = '{"text": "abc', '{"texto": "x"}'
    path = tmp_path / "raw" / "web.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    keys["sources"]["web"] = {"inputs": [str(path)], "license": "cc0-1.0"}
    with pytest.raises(InputError, match=r"sources.web: 2 of 20 rows cannot be read, .*web.jsonl:[46]"):
        make(keys)
    out = make(keys | {"max_broken_share": 0.1})
    steps = json.loads((out / "passport.json").read_text(encoding="utf-8"))["sources"]["web"]["steps"]
    assert steps["read"]["reasons"] == {"broken row": 2}
    assert steps["html"]["documents_in"] == 18
    assert "no key text" not in (out / "passport.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_kill_loses_at_most_the_shards_in_work(tmp_path: Path) -> None:
    keys = config(tmp_path)
    expected = hashes(make(keys | {"output_dir": str(tmp_path / "whole")}))
    file = tmp_path / "corpus.yaml"
    file.write_text(json.dumps(keys), encoding="utf-8")
    command = [sys.executable, "-m", "teenytinyllama", "corpus", "--config", str(file)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("work/clean-*/tasks/completions/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "run.json").exists()
    assert hashes(make(keys)) == expected


SBATCH = """#!{python}
# Runs the tasks of a job array one after the other, as Slurm would on nodes.
import os, re, subprocess, sys
script = open(sys.argv[-1], encoding="utf-8").read()
exported = dict(pair.split("=") for word in sys.argv[1:-1] if word.startswith("--export=")
                for pair in word[9:].split(",") if "=" in pair)
with open(os.environ["SBATCH_LOG"], "a", encoding="utf-8") as log:
    log.write(" ".join(sys.argv[1:-1]) + "\\n")
last = int(re.search(r"#SBATCH --array=0-(\\d+)", script)[1]) if "--array=" in script else 0
for task in range(last + 1):
    environment = dict(os.environ, **exported, SLURM_ARRAY_TASK_ID=str(task), SLURM_NODELIST="node1", SLURM_JOB_ID="7")
    if "merge_stats" in script:
        break
    if subprocess.run(["bash"], input=script, text=True, env=environment, stdout=sys.stderr, cwd="/").returncode:
        sys.exit(1)
print("Submitted batch job 7")
"""


def fake_slurm(folder: Path) -> dict[str, str]:
    """Commands of Slurm that run everything here; returns the environment that has them."""
    folder.mkdir()
    python = sys.executable
    (folder / "sbatch").write_text(SBATCH.replace("{python}", python), encoding="utf-8")
    (folder / "srun").write_text(
        '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [ "$1" = -n ] && shift; shift; done\nexec "$@"\n'
    )
    (folder / "scontrol").write_text("#!/bin/bash\necho node1\n")
    (folder / "launch_pickled_pipeline").write_text(
        f"#!{python}\nfrom datatrove.tools.launch_pickled_pipeline import main\nmain()\n"
    )
    for path in folder.iterdir():
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SBATCH_LOG": str(folder / "log")}


@pytest.mark.slow
def test_slurm_gets_a_job_a_phase_and_makes_the_same_corpus(tmp_path: Path) -> None:
    keys = config(tmp_path)
    expected = hashes(make(keys | {"output_dir": str(tmp_path / "here")}))
    environment = fake_slurm(tmp_path / "bin")
    keys |= {"executor": "slurm", "slurm": {"partition": "cpu", "time": "01:00:00"}}
    file = tmp_path / "corpus.yaml"
    file.write_text(json.dumps(keys), encoding="utf-8")
    command = [sys.executable, "-m", "teenytinyllama", "corpus", "--config", str(file)]
    found = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)
    assert found.returncode == 0, found.stderr[-2000:]
    assert hashes(tmp_path / "out") == expected
    log = (tmp_path / "bin" / "log").read_text(encoding="utf-8")
    assert log.count("--dependency=afterok:7") >= 3  # each phase waits for the one before
    # Other settings have other folders, so no pickle of before is taken up again.
    keys["quality"] = {"min_words": 400}
    file.write_text(json.dumps(keys), encoding="utf-8")
    again = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)
    assert again.returncode == 0, again.stderr[-2000:]
    assert hashes(tmp_path / "out") != expected


def test_a_folder_with_anything_else_is_not_written_to(tmp_path: Path) -> None:
    keys = config(tmp_path)
    news = tmp_path / "raw" / "news.parquet"
    before = sha256_file(news)
    (tmp_path / "raw" / "train").mkdir()
    source = news.rename(tmp_path / "raw" / "train" / "00000.parquet")
    keys["sources"]["news"]["inputs"] = [str(source)]
    with pytest.raises(InputError, match=r"output_dir=.*raw: holds .*00000.parquet, a file of sources.news. Choose"):
        make(keys | {"output_dir": str(tmp_path / "raw")})
    assert sha256_file(source) == before
    mine = tmp_path / "mine" / "train" / "a.parquet"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(source.read_bytes())
    with pytest.raises(InputError, match=r"output_dir=.*mine: holds .*a.parquet, which `ttl corpus` did not make"):
        make(keys | {"output_dir": str(tmp_path / "mine")})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"stage": "tokenizer"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"output_dir=.*other: was made by 'tokenizer', not by 'corpus'. Choose"):
        make(keys | {"output_dir": str(tmp_path / "other")})
    with pytest.raises(InputError, match=r"output_dir=.*00000.parquet: is a file. Choose a folder."):
        make(keys | {"output_dir": str(source)})


def test_documents_that_are_held_out_no_more_leave_no_file(tmp_path: Path) -> None:
    keys = config(tmp_path) | dict.fromkeys(("language", "quality", "personal_data"), False)
    out = make(keys | {"mixing": {"validation_fraction": 0.3}})
    assert list((out / "validation").iterdir())
    make(keys)
    assert not (out / "validation").exists()
    passport = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    assert list(passport["files"]) == ["train/00000.parquet"]
