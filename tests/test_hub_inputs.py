"""Hub datasets as inputs, over real HTTP, at a pinned commit."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import HubServer

from teenytinyllama.data.input_files import hub_datasets
from teenytinyllama.data.packed import packed_manifest
from teenytinyllama.training.pretrain import describe_data

REPOSITORY = Path(__file__).resolve().parent.parent
CLIENT = """
import json, sys
from teenytinyllama.checks import InputError
from teenytinyllama.data.sources import Corpus, CorpusConfig
try:
    corpus = Corpus(CorpusConfig(inputs=[sys.argv[1]]))
    print(json.dumps([sorted(corpus.fingerprint()), [document.text for _, document in corpus.documents()]]))
except InputError as error:
    print(json.dumps(str(error)))
"""


def read(server: HubServer, home: Path, text: str, **more: str) -> list | str:
    environment = {**server.environment(home, **more), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, text], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    main = tmp_path / "hub" / "datasets" / "ana" / "contos" / "main"
    (main / "data").mkdir(parents=True)
    (main / "data" / "train.jsonl").write_text(json.dumps({"text": "um"}) + "\n" + json.dumps({"text": "dois"}) + "\n")
    (main / "extra.txt").write_text("três")
    (main / "README.md").write_text("# Contos")
    return tmp_path / "hub"


def test_datasets_are_told_from_other_inputs() -> None:
    commit = "0" * 40
    inputs = ["corpus", "ana/x.jsonl", f"hf://datasets/ana/z@{commit}", f"hf://datasets/ana/a@{commit}/data/*", "sample",
              f"hf://datasets/ana/a@{commit}/more/*"]  # fmt: skip
    assert hub_datasets(inputs) == ["ana/a", "ana/z"]


def test_a_dataset_at_a_commit_is_read_and_cached(hub: Path, tmp_path: Path) -> None:
    with HubServer(hub) as server:
        commit = server.commit("ana/contos", repo_type="dataset")
        everything = read(server, tmp_path / "home", f"hf://datasets/ana/contos@{commit}")
        assert everything == [["ana/contos/data/train.jsonl", "ana/contos/extra.txt"], ["um", "dois", "três"]]
        some = read(server, tmp_path / "home", f"hf://datasets/ana/contos@{commit}/data/*")
        assert some == [["ana/contos/data/train.jsonl"], ["um", "dois"]]
        downloads = [r.path for r in server.requests if r.method == "GET" and "/resolve/" in r.path]
        assert len([path for path in downloads if path.endswith("train.jsonl")]) == 1
        assert not [path for path in downloads if "README" in path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://datasets/ana/nada@{commit}", "could not be read from the Hub: "),
        ("hf://datasets/ana/contos@" + "0" * 40, "could not be read from the Hub: RevisionNotFoundError"),
        ("hf://datasets/ana/contos@{commit}/*.parquet", "no .parquet, .jsonl, .json, .ndjson, .csv, .tsv, .txt"),
    ],
)
def test_what_is_not_there_is_one_message(hub: Path, tmp_path: Path, text: str, message: str) -> None:
    with HubServer(hub) as server:
        commit = server.commit("ana/contos", repo_type="dataset")
        answer = read(server, tmp_path / "home", text.format(commit=commit))
    assert isinstance(answer, str)
    assert answer.startswith("inputs=hf://datasets/ana/")
    assert message in answer


def test_offline_is_one_message(hub: Path, tmp_path: Path) -> None:
    with HubServer(hub) as server:
        commit = server.commit("ana/contos", repo_type="dataset")
        answer = read(server, tmp_path / "home", f"hf://datasets/ana/contos@{commit}", HF_HUB_OFFLINE="1")
    assert "could not be read from the Hub: OfflineModeIsEnabled" in answer


def test_hub_datasets_of_packed_rows_are_recorded(packed_folder: Path) -> None:
    manifest = packed_manifest(str(packed_folder))
    manifest["config"]["inputs"].append("hf://datasets/ana/textos@" + "0" * 40)
    plan = SimpleNamespace(packed=SimpleNamespace(manifest=manifest, documents=[]))
    assert describe_data(SimpleNamespace(packed=packed_folder), plan)["hub_datasets"] == ["ana/textos"]
