"""Datasets over HTTP, by the real clients in processes of their own: push, load by name, go on after a failure."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hub_server import HubServer

PUBLISH = """
import sys
from teenytinyllama.arguments import parse
from teenytinyllama.checks import run_main
from teenytinyllama.publishing.publish_dataset import PublishDatasetConfig, publish_dataset

sys.exit(run_main(lambda: publish_dataset([sys.argv[1]], parse(PublishDatasetConfig, sys.argv[2:]))))
"""
LOAD = """
import json, sys
import datasets

found = datasets.load_dataset("ana/textos")
rows = {split: found[split].to_list() for split in found}
for split in found:
    assert list(datasets.load_dataset("ana/textos", split=split, streaming=True)) == rows[split]
json.dump(rows, open(sys.argv[1], "w"))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub", tokens={"hf_ana": "ana"}) as started:
        yield started


def client(server: HubServer, home: Path, code: str, *words: Path | str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parent.parent)
    environment = server.environment(home, "hf_ana", PYTHONPATH=root)
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)


def publish(server: HubServer, tmp_path: Path, source: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["--to", "ana/textos", "--staging", str(tmp_path / "staging"), "--shard_megabytes", "0.05",
             "--validation_fraction", "0.1", "--answer_seconds", "20", "--give_up_seconds", "1", *more]  # fmt: skip
    return client(server, tmp_path / "home", PUBLISH, source, *words)


def rows_of(files: dict[str, bytes], split: str) -> list[dict[str, Any]]:
    shards = [files[path] for path in sorted(files) if path.startswith(f"data/{split}-")]
    return [row for shard in shards for row in pyarrow.parquet.read_table(pyarrow.BufferReader(shard)).to_pylist()]


@pytest.mark.slow
def test_a_pushed_corpus_is_loaded_by_name(tmp_path: Path, server: HubServer, corpus_folder: Path) -> None:
    done = publish(server, tmp_path, corpus_folder)
    assert (done.returncode, "main       published" in done.stdout) == (0, True), done.stderr
    files = server.files("ana/textos", "main", repo_type="dataset")
    record = json.loads(files["dataset.json"])
    assert set(record["files"]) == set(files) - {".gitattributes"}
    loaded = client(server, tmp_path / "reader", LOAD, tmp_path / "rows.json")
    assert loaded.returncode == 0, loaded.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {split: len(part) for split, part in rows.items()} == {
        part["name"]: part["rows"] for part in record["splits"]
    }
    for split, part in rows.items():
        assert part == rows_of(files, split)
    before = server.commit("ana/textos", "main", repo_type="dataset")
    pinned = f"hf://datasets/ana/textos@{before}/data/train-*"
    words = ["--to", f"folder:{tmp_path / 'copy'}", "--staging", tmp_path / "other", "--validation_fraction", "0"]
    copied = client(server, tmp_path / "home", PUBLISH, pinned, *words)
    assert copied.returncode == 0, copied.stderr
    assert pyarrow.parquet.read_table(tmp_path / "copy" / "data").to_pylist() == rows["train"]
    assert "source_datasets:\n- ana/textos\n" in (tmp_path / "copy" / "README.md").read_text()
    assert publish(server, tmp_path, corpus_folder).stdout.startswith("main       is there already")
    assert server.commit("ana/textos", "main", repo_type="dataset") == before


@pytest.mark.slow
def test_a_push_that_fails_half_way_goes_on_where_it_stopped(
    tmp_path: Path, server: HubServer, corpus_folder: Path
) -> None:
    fault = server.fail(match=r"^PUT ", how="reset", nth=3, times=1000)
    done = publish(server, tmp_path, corpus_folder)
    assert done.returncode == 1, done.stderr
    assert fault.fired > 0
    assert "Traceback" not in done.stderr
    assert set(server.files("ana/textos", "main", repo_type="dataset")) <= {".gitattributes"}
    stored = sum(request.write == "lfs_put" for request in server.requests)
    assert stored >= 2
    server.clear_faults()
    assert f"{tmp_path / 'staging'} keeps what is written; the same command goes on from there." in done.stderr
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "staging" / "data").iterdir()}
    done = publish(server, tmp_path, corpus_folder)
    assert (done.returncode, "main       published" in done.stdout) == (0, True), done.stderr
    assert times
    assert not (tmp_path / "staging").exists()
    shards = [path for path in server.files("ana/textos", "main", repo_type="dataset") if path.startswith("data/")]
    assert sum(request.write == "lfs_put" for request in server.requests) == len(shards)  # none was sent twice
    assert len([commit for commit in server.history("ana/textos", "main", repo_type="dataset") if commit.parents]) == 1


@pytest.mark.slow
def test_a_grown_corpus_replaces_its_shards_and_another_one_is_refused(
    tmp_path: Path, server: HubServer, corpus_folder: Path
) -> None:
    source = tmp_path / "meu"
    source.mkdir()
    lines = (corpus_folder / "contos.jsonl").read_text().splitlines(keepends=True)
    for rows in (300, 100):
        (source / "contos.jsonl").write_text("".join(lines[:rows]))
        done = publish(server, tmp_path, source)
        assert (done.returncode, "main       published" in done.stdout) == (0, True), done.stderr
    files = server.files("ana/textos", "main", repo_type="dataset")
    assert set(json.loads(files["dataset.json"])["files"]) == set(files) - {".gitattributes"}
    assert sum(len(rows_of(files, split)) for split in ("train", "validation")) == 100
    before = server.state()
    done = publish(server, tmp_path, corpus_folder)
    assert done.returncode == 2
    assert "replace" in done.stderr
    assert server.state() == before
    assert publish(server, tmp_path, corpus_folder, "--replace").returncode == 0


def test_a_token_that_is_refused_stops_before_anything_is_written(tmp_path: Path, corpus_folder: Path) -> None:
    with HubServer(tmp_path / "hub", tokens={"hf_rui": "rui"}) as server:
        done = publish(server, tmp_path, corpus_folder)
        assert done.returncode == 2
        assert "hf_ana" not in done.stderr + done.stdout
        assert not server.writes()
    assert not (tmp_path / "staging").exists()


def test_keys_of_runs_are_refused(tmp_path: Path, server: HubServer, corpus_folder: Path) -> None:
    done = publish(server, tmp_path, corpus_folder, "--follow")
    assert (done.returncode, done.stdout) == (2, "")
    assert "follow=True: concerns runs, and this is a dataset. Leave it out." in done.stderr
    assert not server.requests


@pytest.mark.slow
def test_a_dry_run_and_a_folder_need_no_hub(tmp_path: Path, server: HubServer, corpus_folder: Path) -> None:
    done = publish(server, tmp_path, corpus_folder, "--dry_run")
    assert done.returncode == 0, done.stderr
    shards = {str(path.relative_to(tmp_path / "staging")): path.stat().st_size
              for path in (tmp_path / "staging").rglob("*.parquet")}  # fmt: skip
    assert len(shards) > 3
    for name, size in shards.items():
        assert re.search(rf"{name} +{size:,} bytes", done.stdout)
    assert "ana/textos (dataset repository), main" in done.stdout
    assert "## Dados pessoais" in done.stdout
    words = [corpus_folder, "--to", f"folder:{tmp_path / 'out'}", "--staging", tmp_path / "staging",
             "--shard_megabytes", "0.05", "--validation_fraction", "0.1"]  # fmt: skip
    done = client(server, tmp_path / "home", PUBLISH, *words)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}\n"), done.stderr
    assert {name: (tmp_path / "out" / name).stat().st_size for name in shards} == shards
    assert not (tmp_path / "staging").exists()
    assert not server.requests
