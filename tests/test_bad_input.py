"""What the fuzz tests have found, each with the smallest case that shows it."""

import json
import os
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from benchmark_rows import write_rows
from made_runs import make_model

from teenytinyllama import from_pretrained
from teenytinyllama.arguments import read_mapping
from teenytinyllama.checks import InputError
from teenytinyllama.corpus.documents import DocumentWriter
from teenytinyllama.corpus.provenance import read_passport
from teenytinyllama.data.readers import read_records
from teenytinyllama.evaluation.config import EvaluateConfig
from teenytinyllama.evaluation.evaluate import evaluate_model
from teenytinyllama.lab.config import model_keys
from teenytinyllama.launching.launch import recipes_folder
from teenytinyllama.launching.ranks import plan_ranks
from teenytinyllama.models import load_tokenizer, weights_identity
from teenytinyllama.publishing.card import check_model_card
from teenytinyllama.publishing.dataset_shards import Staging
from teenytinyllama.publishing.wording import record_without_places
from teenytinyllama.stage_folder import find_manifest
from teenytinyllama.training.decay import read_state


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


def test_a_tokenizer_of_another_form_is_named(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"rstrip"', '"rstriq"', 1))
    with pytest.raises(
        InputError, match="cannot read its tokenizer: tokenizer.json: Exception: missing field `rstrip`"
    ):
        load_tokenizer("tokenizer", str(folder))


def test_a_tokenizer_whose_inputs_have_other_names_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_input_names": ["attention_mask"]}))
    with pytest.raises(InputError, match="cannot read its tokenizer: .* does not begin with input_ids"):
        load_tokenizer("tokenizer", str(folder))


def test_an_id_to_which_the_library_would_count_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"][max(content["model"]["vocab"], key=content["model"]["vocab"].get)] = 2**31
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="has an entry of id 2,147,483,648, beyond 10,000,000"):
        load_tokenizer("tokenizer", str(folder))


def test_prompts_are_masked_whatever_the_tokenizer_says(tmp_path: Path, tokenizer_folder: Path) -> None:
    pytest.importorskip("lm_eval")
    from teenytinyllama.evaluation.harness import HarnessModel

    make_model(tmp_path / "model", tokenizer_folder, seed=0)
    model, tokenizer = from_pretrained(tmp_path / "model")
    tokenizer.model_input_names = ["input_ids"]
    _, mask = HarnessModel(model, tokenizer, 2).tok_batch_encode(["casa", "casa casa casa"])
    assert mask.sum(1).tolist()[0] < mask.shape[1] == mask.sum(1).tolist()[1]


def test_answers_need_an_end_token(tmp_path: Path, tokenizer_folder: Path) -> None:
    pytest.importorskip("lm_eval")
    make_model(tmp_path / "model", tokenizer_folder, seed=0)
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    config = EvaluateConfig(str(tmp_path / "model"), tasks=["assin2_rte"], limit=1, output_dir=str(tmp_path / "out"),
                            data_dir=str(write_rows(tmp_path / "rows")))  # fmt: skip
    with pytest.raises(InputError, match="tasks=ttl_assin2_rte: are answered in writing, .* names no end token"):
        evaluate_model(config)
    assert not (tmp_path / "out").exists()


def test_a_pipe_as_the_state_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trainer_state.json")
    with pytest.raises(InputError, match="trainer_state.json: is no file"):
        read_state(tmp_path)


def test_a_size_that_is_a_list_is_refused() -> None:
    with pytest.raises(InputError, match="sizes"):
        model_keys([None])


def test_an_empty_accelerate_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vazio.yaml"
    path.write_text("")
    with pytest.raises(InputError, match="vazio.yaml: accelerate refuses it"):
        plan_ranks(recipes_folder() / "pretrain.py", [], str(path), None)


def test_damaged_text_of_a_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for content, message in (
        (b"a: \xff", "config.yaml: is not UTF-8 at byte 3"),
        (b"- a", "must hold `key: value` lines"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_mapping(path)
    card = tmp_path / "README.md"
    card.write_bytes(b"---\n\xff\n---\n")
    with pytest.raises(InputError, match="README.md: is not UTF-8 at byte 4"):
        check_model_card(tmp_path)
    record = tmp_path / "environment.json"
    record.write_bytes(b"{\xff}")
    with pytest.raises(InputError, match="environment.json: is not UTF-8"):
        record_without_places(record)


def test_a_damaged_passport_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"stage": "corpus"}')
    (tmp_path / "passport.json").write_text("[]")
    with pytest.raises(InputError, match="passport.json: is damaged .no JSON object"):
        read_passport(tmp_path)


def test_an_evaluation_of_nothing_makes_no_folder(tmp_path: Path, tokenizer_folder: Path) -> None:
    make_model(tmp_path / "model", tokenizer_folder, seed=0)
    (tmp_path / "rows").mkdir()
    config = EvaluateConfig(str(tmp_path / "model"), tasks=["assin2_rte"], data_dir=str(tmp_path / "rows"),
                            output_dir=str(tmp_path / "out"))  # fmt: skip
    with pytest.raises(InputError):
        evaluate_model(config)
    assert not (tmp_path / "out").exists()


def test_parquet_under_a_name_like_an_address_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hora:10").mkdir()
    writer = DocumentWriter(Path("hora:10/x.parquet"), pyarrow.schema([("text", pyarrow.string())]))
    writer.add({"text": "uma lhama"})
    writer.close()
    assert [row["text"] for row in read_records("inputs", Path("hora:10/x.parquet"))] == ["uma lhama"]


def test_a_damaged_list_of_finished_shards_is_made_again(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "staging", {})
    (tmp_path / "staging").mkdir()
    for content in (b'{"a": 1}\n', b"\xff\n", b"[]\n"):
        (tmp_path / "staging" / "shards.jsonl").write_bytes(content)
        assert staging.finished() == {}
        assert not (tmp_path / "staging" / "shards.jsonl").exists()
