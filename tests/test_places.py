"""What is published names no folder of this machine."""

import json
from pathlib import Path

import pytest
import yaml

from teenytinyllama.checks import InputError
from teenytinyllama.publishing.wording import command_without_places, record_without_places
from teenytinyllama.stage_folder import without_place


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("ttl pretrain --packed /home/ana/dados/packed --seed 3", "ttl pretrain --packed packed --seed 3"),
        ("ttl pretrain --packed=/home/ana/packed", "ttl pretrain --packed=packed"),
        ("ttl pack --inputs '/home/ana maria/o corpus' b", "ttl pack --inputs 'o corpus' b"),
        ("ttl evaluate /tmp/m; ttl classify imdb /tmp/m", "ttl evaluate m; ttl classify imdb m"),
        (r"ttl card C:\Users\ana\run", "ttl card run"),
    ],
)
def test_commands_lose_their_folders(command: str, shown: str) -> None:
    assert command_without_places(command) == shown
    assert command_without_places(shown) == shown


@pytest.mark.parametrize(
    "text",
    ["runs/a/b", "./runs/a", "../a/b", "~/a/b", "owner/name", "hf://datasets/owner/name@0123/data/*.parquet",
     "https://huggingface.co/owner/name", "sim/não/talvez", "/data", "1/2/3"],
)  # fmt: skip
def test_other_texts_stay(text: str) -> None:
    assert without_place(text) == text
    assert command_without_places(f"ttl x {text} --key={text}") == f"ttl x {text} --key={text}"


def test_records_lose_their_folders(tmp_path: Path) -> None:
    content = {"command": "ttl x /a/b/c", "config": {"packed": "/home/ana/p", "inputs": ["/h/a.txt", "sample"],
               "learning_rate": 6e-4, "sample_prompts": ["/era/uma vez"]}}  # fmt: skip
    shown = {"command": "ttl x c", "config": {"packed": "p", "inputs": ["a.txt", "sample"], "learning_rate": 6e-4,
             "sample_prompts": ["/era/uma vez"]}}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert json.loads(record_without_places(tmp_path / "run.json")) == shown
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert yaml.safe_load(record_without_places(tmp_path / "config.yaml")) == shown
    (tmp_path / "config.yaml").write_text("packed: p # mine\n")
    assert record_without_places(tmp_path / "config.yaml") == b"packed: p # mine\n", "nothing to cut"
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: is damaged"):
        record_without_places(tmp_path / "run.json")
