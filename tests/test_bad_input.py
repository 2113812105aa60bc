"""What the fuzz tests have found, each with the smallest case that shows it."""

import json
import os
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from made_runs import make_model

from teenytinyllama import from_pretrained
from teenytinyllama.checks import InputError
from teenytinyllama.corpus.documents import DocumentWriter
from teenytinyllama.data.readers import read_records
from teenytinyllama.models import load_tokenizer, weights_identity
from teenytinyllama.stage_folder import find_manifest


def test_a_pipe_among_the_weights_is_no_file(tmp_path: Path, tokenizer_folder: Path) -> None:
    model = tmp_path / "model"
    make_model(model, tokenizer_folder, seed=0)
    before = weights_identity(str(model))
    os.mkfifo(model / "more.safetensors")
    assert weights_identity(str(model)) == before
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    with pytest.raises(InputError, match="holds no weights in safetensors"):
        from_pretrained(model)
    os.mkfifo(tmp_path / "run.json")
    assert find_manifest(tmp_path) is None


def test_a_tokenizer_whose_inputs_have_other_names_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_input_names": ["attention_mask"]}))
    with pytest.raises(InputError, match="cannot read its tokenizer: .* does not begin with input_ids"):
        load_tokenizer("tokenizer", str(folder))


def test_parquet_under_a_name_like_an_address_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hora:10").mkdir()
    writer = DocumentWriter(Path("hora:10/x.parquet"), pyarrow.schema([("text", pyarrow.string())]))
    writer.add({"text": "uma lhama"})
    writer.close()
    assert [row["text"] for row in read_records("inputs", Path("hora:10/x.parquet"))] == ["uma lhama"]
