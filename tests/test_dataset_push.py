"""Datasets over HTTP, by the real clients in processes of their own: push, load by name, go on after a failure."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hub_server import HubServer

PUSH = """
import sys
from pathlib import Path
from teenytinyllama.checks import run_main
from teenytinyllama.publishing.datasets import DatasetOptions, dataset_uploads
from teenytinyllama.publishing.hub import open_hub, push
from teenytinyllama.publishing.hub_calls import HubLimits

def main():
    source, staging, replace = sys.argv[1:]
    options = DatasetOptions(shard_megabytes=0.05, validation_fraction=0.1)
    upload = dataset_uploads([source], "ana/textos", Path(staging), options)
    hub = open_hub(HubLimits(answer_seconds=20.0, give_up_seconds=2.0, tries=2, first_wait_seconds=0.1))
    print("changed" if push(hub, upload, replace=replace == "replace").changed else "the same")

sys.exit(run_main(main))
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


def push(server: HubServer, tmp_path: Path, source: Path, replace: str = "") -> subprocess.CompletedProcess[str]:
    return client(server, tmp_path / "home", PUSH, source, tmp_path / "staging", replace)


def rows_of(files: dict[str, bytes], split: str) -> list[dict[str, Any]]:
    shards = [files[path] for path in sorted(files) if path.startswith(f"data/{split}-")]
    return [row for shard in shards for row in pyarrow.parquet.read_table(pyarrow.BufferReader(shard)).to_pylist()]


def test_a_pushed_corpus_is_loaded_by_name(tmp_path: Path, server: HubServer, corpus_folder: Path) -> None:
    done = push(server, tmp_path, corpus_folder)
    assert (done.returncode, done.stdout.split("\n")[-2]) == (0, "changed"), done.stderr
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
    assert push(server, tmp_path, corpus_folder).stdout.endswith("the same\n")
    assert server.commit("ana/textos", "main", repo_type="dataset") == before


def test_a_push_that_fails_half_way_goes_on_where_it_stopped(
    tmp_path: Path, server: HubServer, corpus_folder: Path
) -> None:
    fault = server.fail(match=r"^PUT ", how="reset", nth=3, times=1000)
    done = push(server, tmp_path, corpus_folder)
    assert done.returncode == 1, done.stderr
    assert fault.fired > 0
    assert "Traceback" not in done.stderr
    assert set(server.files("ana/textos", "main", repo_type="dataset")) <= {".gitattributes"}
    stored = sum(request.write == "lfs_put" for request in server.requests)
    assert stored >= 2
    server.clear_faults()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "staging" / "data").iterdir()}
    done = push(server, tmp_path, corpus_folder)
    assert (done.returncode, done.stdout.split("\n")[-2]) == (0, "changed"), done.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "staging" / "data").iterdir()} == times
    shards = [path for path in server.files("ana/textos", "main", repo_type="dataset") if path.startswith("data/")]
    assert sum(request.write == "lfs_put" for request in server.requests) == len(shards)  # none was sent twice
    assert len([commit for commit in server.history("ana/textos", "main", repo_type="dataset") if commit.parents]) == 1


def test_a_grown_corpus_replaces_its_shards_and_another_one_is_refused(
    tmp_path: Path, server: HubServer, corpus_folder: Path
) -> None:
    source = tmp_path / "meu"
    source.mkdir()
    lines = (corpus_folder / "contos.jsonl").read_text().splitlines(keepends=True)
    for rows in (300, 100):
        (source / "contos.jsonl").write_text("".join(lines[:rows]))
        done = push(server, tmp_path, source)
        assert (done.returncode, done.stdout.split("\n")[-2]) == (0, "changed"), done.stderr
    files = server.files("ana/textos", "main", repo_type="dataset")
    assert set(json.loads(files["dataset.json"])["files"]) == set(files) - {".gitattributes"}
    assert sum(len(rows_of(files, split)) for split in ("train", "validation")) == 100
    before = server.state()
    done = push(server, tmp_path, corpus_folder)
    assert done.returncode == 2
    assert "replace" in done.stderr
    assert server.state() == before
    assert push(server, tmp_path, corpus_folder, "replace").returncode == 0
