"""Datasets as they are published: parquet shards, card and record, read back by the real `datasets`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import yaml

from teenytinyllama.chat.template import install_chat_template
from teenytinyllama.checks import InputError, hub_license
from teenytinyllama.data.conversations import (
    ConversationsConfig,
    PreferencesConfig,
    prepare_conversations,
    prepare_preferences,
)
from teenytinyllama.data.pack import PackConfig, pack
from teenytinyllama.data.packed import load_packed
from teenytinyllama.data.sources import Corpus, CorpusConfig
from teenytinyllama.models import load_tokenizer
from teenytinyllama.publishing.dataset_content import DatasetOptions, is_dataset
from teenytinyllama.publishing.publish import write_folder
from teenytinyllama.publishing.publish_dataset import (
    dataset_uploads,
    default_staging,
    license_metadata,
    restrictions,
    size_category,
)
from teenytinyllama.publishing.safety import Upload, describe_uploads
from teenytinyllama.stage_folder import sha256_file

NAME = "ana/textos"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(how_many: int, license: str = "MIT", source: str = "contos") -> list[dict[str, Any]]:
    metadata = f"source: {source}; license: {license}" if license else f"source: {source}"
    return [
        {"text": f"Era uma vez a lhama {number}.\n" + "casa " * 20, "metadata": metadata} for number in range(how_many)
    ]


def publish(tmp_path: Path, *source: Path | str, **options: Any) -> Upload:
    return dataset_uploads([str(part) for part in source], NAME, tmp_path / "staging", DatasetOptions(**options))


def card_of(upload: Upload) -> tuple[dict[str, Any], str]:
    """The card's metadata and its body."""
    source = next(file.source for file in upload.files if file.path == "README.md")
    assert isinstance(source, bytes)
    _, front, body = source.decode().split("---\n", 2)
    return yaml.safe_load(front), body


def record_of(upload: Upload) -> dict[str, Any]:
    source = next(file.source for file in upload.files if file.path == upload.record)
    assert isinstance(source, bytes)
    found: dict[str, Any] = json.loads(source)
    return found


def names(upload: Upload) -> list[str]:
    return [file.path for file in upload.files]


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Loads what an upload would put on the Hub with `datasets`, from a folder: (all splits, the stream of one)."""
    import datasets

    datasets.disable_progress_bars()

    def loaded(upload: Upload) -> Any:
        folder = write_folder([upload], tmp_path / "written")
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(
            names(upload)
        )
        found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        info = card_of(upload)[0]["dataset_info"]
        assert set(found) == {split["name"] for split in info["splits"]}
        for split in info["splits"]:
            rows = found[split["name"]]
            assert rows.features == datasets.Features._from_yaml_list(info["features"])
            assert len(rows) == split["num_examples"]
            streamed = datasets.load_dataset(str(folder), split=split["name"], streaming=True)
            assert streamed.features == rows.features
            assert list(streamed) == rows.to_list()
            arrow_bytes = rows.data.nbytes
            assert abs(split["num_bytes"] - arrow_bytes) < 0.05 * arrow_bytes + 200
        assert info["dataset_size"] == sum(split["num_bytes"] for split in info["splits"])
        assert info["download_size"] == sum(file.size_bytes for file in upload.files if file.path.startswith("data/"))
        return found

    return loaded


# A corpus


def test_a_corpus_comes_back_row_by_row_with_the_split_of_packing(
    tmp_path: Path, corpus_folder: Path, load: Any
) -> None:
    upload = publish(tmp_path, corpus_folder, validation_fraction=0.1, shard_megabytes=0.05)
    shards = [name for name in names(upload) if name.startswith("data/train")]
    assert len(shards) > 3
    assert shards == [f"data/train-{index:05d}-of-{len(shards):05d}.parquet" for index in range(len(shards))]
    found = load(upload)
    documents = list(Corpus(CorpusConfig([str(corpus_folder)], validation_fraction=0.1)).documents())
    for split in ("train", "validation"):
        assert found[split].to_list() == [
            {"text": document.text, "metadata": {"source": document.source, "license": document.license}}
            for side, document in documents
            if side == split
        ]
    assert (upload.repository, upload.repo_type, upload.revision) == (NAME, "dataset", "main")
    assert upload.message == f"400 documents in {len(shards) + 1} files"


def test_the_card_counts_documents_bytes_and_words_of_each_source(tmp_path: Path, corpus_folder: Path) -> None:
    upload = publish(tmp_path, corpus_folder, validation_fraction=0.1)
    metadata, body = card_of(upload)
    documents = [
        (split, d) for split, d in Corpus(CorpusConfig([str(corpus_folder)], validation_fraction=0.1)).documents()
    ]
    for name in ("contos", "curtas"):
        own = [document.text for _, document in documents if document.source == name]
        held_out = sum(split == "validation" for split, document in documents if document.source == name)
        num_bytes, words = sum(len(text.encode()) for text in own), sum(len(text.split()) for text in own)
        assert f"| {name} | {len(own):,} | {held_out:,} | {num_bytes:,} | {words:,} | CC0-1.0 |" in body
    assert {key: metadata[key] for key in ("language", "license", "size_categories", "task_categories", "pretty_name")} == {
        "language": ["pt"], "license": "cc0-1.0", "size_categories": ["n<1K"], "task_categories": ["text-generation"],
        "pretty_name": "textos"}  # fmt: skip
    assert "LICENSE.md" not in names(upload)
    for path in sorted(corpus_folder.glob("*.jsonl")):
        assert f"`{sha256_file(path)}`" in body
    assert str(corpus_folder) not in body
    assert "## Personal data" in body
    assert "## Dados pessoais" in body
    assert f'load_dataset("{NAME}")' in body
    assert describe_uploads([upload]).count("README.md") == 2


@pytest.mark.parametrize(("language", "there", "absent"), [("en", "## Usage", "## Uso"), ("pt", "## Uso", "## Usage")])
def test_the_card_can_be_in_one_language(tmp_path: Path, language: Any, there: str, absent: str) -> None:
    source = write(tmp_path / "a.jsonl", texts(1200))
    body = card_of(publish(tmp_path, source, language=language))[1]
    assert there in body
    assert absent not in body
    assert ("1,200 documents" if language == "en" else "1.200 documentos") in body


def test_licences_that_differ_are_other_and_listed(tmp_path: Path, load: Any) -> None:
    write(tmp_path / "a.jsonl", texts(20, "CC-BY-NC-ND-4.0", "a|[x](http://x) <b>"))
    write(tmp_path / "b.jsonl", texts(20, "CC BY-SA 4.0", "b"))
    write(tmp_path / "c.jsonl", texts(20, "", "c"))
    (tmp_path / "d.txt").write_text("Um texto sem licença.")
    upload = publish(tmp_path, *(tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.txt")),
                     license=["c=MIT", "unknown"])  # fmt: skip
    metadata, body = card_of(upload)
    assert (metadata["license"], metadata["license_name"], metadata["license_link"]) == (
        "other",
        "per-source",
        "LICENSE.md",
    )
    assert metadata["license_details"] == "CC BY-SA 4.0, CC-BY-NC-ND-4.0, MIT, unknown"
    assert "**Some texts may not be changed** (CC-BY-NC-ND-4.0)" in body
    assert "may not be used commercially: CC-BY-NC-ND-4.0" in body
    assert "share what you make of them alike: CC BY-SA 4.0" in body
    assert "The licence of some texts is not known" in body
    listed = next(file.source for file in upload.files if file.path == "LICENSE.md")
    assert isinstance(listed, bytes)
    for text in (body, listed.decode()):
        assert r"a\|\[x\](http://x) &lt;b&gt;" in text
        assert "<b>" not in text
    found = {(row["metadata"]["source"], row["metadata"]["license"]) for rows in load(upload).values() for row in rows}
    assert {("c", "MIT"), ("d", "unknown"), ("b", "CC BY-SA 4.0")} < found


def test_a_packed_folder_decides_the_split_of_its_text(
    tmp_path: Path, corpus_folder: Path, packed_folder: Path
) -> None:
    upload = publish(tmp_path, corpus_folder, packed=str(packed_folder))
    manifest = load_packed(packed_folder).manifest
    held_out = sum(source["documents"] for source in manifest["validation_sources"].values())
    assert {split["name"]: split["rows"] for split in record_of(upload)["splits"]}["validation"] == held_out
    body = card_of(upload)[1]
    assert manifest["command"] in body
    assert "It is the split of the packed rows" in body
    other = write(tmp_path / "a.jsonl", texts(5))
    with pytest.raises(
        InputError, match="packed=.*: was made of other files than these. Give the inputs of its run.json"
    ):
        publish(tmp_path, other, packed=str(packed_folder))
    with pytest.raises(InputError, match="packed=.*: decides the split and the columns already. Leave out text_column"):
        publish(tmp_path, corpus_folder, packed=str(packed_folder), text_column="text")


def test_a_packing_config_names_inputs_and_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"texto": f"linha {number}", "de": {"licence": "MIT"}} for number in range(300)])
    (tmp_path / "pack.yaml").write_text(
        f"inputs: ['{tmp_path}/a.jsonl']\ntext_column: texto\nmetadata_column: de\ntokenizer: t\noutput_dir: o\n"
        "validation_fraction: 0.1\n"
    )
    assert is_dataset([str(tmp_path / "pack.yaml")])
    upload = publish(tmp_path, tmp_path / "pack.yaml")
    assert record_of(upload)["validation_fraction"] == 0.1
    assert card_of(upload)[0]["license"] == "mit"
    (tmp_path / "none.yaml").write_text("tokenizer: t\n")
    with pytest.raises(InputError, match="source=.*none.yaml: has no `inputs`. Give a config for `ttl pack`"):
        publish(tmp_path, tmp_path / "none.yaml")


def test_held_out_files_are_the_validation_split(tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "a.jsonl", texts(300)), write(tmp_path / "b.jsonl", texts(7, source="fora"))
    upload = publish(tmp_path, train, validation_inputs=[str(held_out)])
    assert {split["name"]: split["rows"] for split in record_of(upload)["splits"]} == {"train": 300, "validation": 7}
    assert "were set apart beforehand" in card_of(upload)[1]


@pytest.mark.slow
def test_the_embedded_sample_is_a_dataset_too(tmp_path: Path) -> None:
    upload = publish(tmp_path, "sample")
    assert {split["name"]: split["rows"] for split in record_of(upload)["splits"]} == {"train": 8000, "validation": 200}
    assert card_of(upload)[0]["license"] == "apache-2.0"


def test_many_sources_and_files_are_listed_in_the_record_alone(tmp_path: Path) -> None:
    folder = tmp_path / "muitas"
    folder.mkdir()
    for number in range(120):
        write(folder / f"f{number}.jsonl", texts(1, source=f"s{number}"))
    upload = publish(tmp_path, folder, validation_fraction=0)
    body = card_of(upload)[1]
    assert "from 120 sources" in body
    assert len(re.findall(r"\| s\d", body)) == 2 * 100
    assert body.count("and 20 more, all in `dataset.json`") == 2
    assert len(record_of(upload)["sources"]) == len(record_of(upload)["inputs"]) == 120


# Packed rows


def test_packed_rows_come_back_equal(tmp_path: Path, packed_folder: Path, load: Any) -> None:
    upload = publish(tmp_path, packed_folder, shard_megabytes=0.05)
    packed, found = load_packed(packed_folder), load(upload)
    assert len([name for name in names(upload) if name.startswith("data/train")]) > 2
    assert np.array_equal(np.array(found["train"]["input_ids"]), packed.train)
    rows = packed.validation.size // 32
    assert np.array_equal(np.array(found["validation"]["input_ids"]), packed.validation[: rows * 32].reshape(rows, 32))
    record, (metadata, body) = record_of(upload), card_of(upload)
    assert (record["context"], record["tokenizer_sha256"]) == (32, packed.manifest["tokenizer_sha256"])
    assert metadata["dataset_info"]["features"] == [{"name": "input_ids", "list": "int32", "length": 32}]
    assert metadata["license"] == "cc0-1.0"
    assert packed.manifest["tokenizer_sha256"] in body
    assert f"{packed.manifest['dropped_tokens']} tokens of train, {packed.validation.size % 32} of validation" in body
    tokens = sum(source["tokens"] for source in packed.manifest["sources"].values()) + packed.validation.size
    assert f"{tokens:,} tokens from 2 sources" in body
    types = pyarrow.parquet.read_schema(tmp_path / "staging" / "data" / "validation-00000-of-00001.parquet").types
    assert types == [pyarrow.list_(pyarrow.int32(), 32)]


def test_packed_rows_without_a_licence_or_changed_since_are_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    source = write(tmp_path / "a.jsonl", texts(400, ""))
    folder = pack(
        PackConfig([str(source)], tokenizer=str(tokenizer_folder), output_dir=str(tmp_path / "p"), context=32)
    )
    with pytest.raises(InputError, match=r"license: 400 rows of 1 sources state no licence: contos .400."):
        publish(tmp_path, folder)
    assert card_of(publish(tmp_path, folder, license=["contos=CC-BY-4.0"]))[0]["license"] == "cc-by-4.0"
    with (folder / "train.npy").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\0\0")
    with pytest.raises(InputError, match="train.npy is not the file that `ttl pack` wrote"):
        publish(tmp_path, folder, license=["MIT"])


# Instructions and preferences


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    loaded = load_tokenizer("tokenizer", str(tokenizer_folder))
    install_chat_template(loaded)
    return loaded


def questions(how_many: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Quem é a menina {i}?", "completion": f"A menina {i} é boa.", "license": "MIT"}
        for i in range(how_many)
    ]


def preferences(how_many: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Quem é a menina {i}?", "chosen": "É a Ana.", "rejected": "Não sei.", "metadata": "license: MIT"}
            for i in range(how_many)]  # fmt: skip


def test_instruction_files_become_messages(tmp_path: Path, load: Any) -> None:
    source = write(tmp_path / "perguntas.jsonl", [*questions(200), questions(1)[0]])
    upload = publish(tmp_path, source, validation_fraction=0.1)
    found = load(upload)
    rows = [row for split in found.values() for row in split]
    assert len(rows) == 200
    assert rows[0] == {
        "messages": [{"role": "user", "content": "Quem é a menina 0?"},
                     {"role": "assistant", "content": "A menina 0 é boa."}],
        "source": "perguntas", "license": "MIT"}  # fmt: skip
    assert len(found["validation"]) > 5
    assert "Rows left out: 1 x a duplicate." in card_of(upload)[1]
    assert record_of(upload)["dropped"] == {"a duplicate": 1}


def test_a_folder_of_conversations_keeps_its_split_and_its_licences(tmp_path: Path, tokenizer: Any, load: Any) -> None:
    source = write(tmp_path / "perguntas.jsonl", questions(200))
    folder = prepare_conversations(
        ConversationsConfig([str(source)], output_dir=str(tmp_path / "c"), validation_fraction=0.1), tokenizer
    )
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["train"]["sources"]["perguntas"]["licenses"] == ["MIT"]
    upload = publish(tmp_path, folder)
    found = load(upload)
    for split in ("train", "validation"):
        expected = pyarrow.parquet.read_table(folder / f"{split}.parquet", columns=["messages", "source", "license"])
        assert found[split].to_list() == expected.to_pylist()
    assert manifest["command"] in card_of(upload)[1]


def test_conversations_prepared_before_licences_were_kept_need_one(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", questions(40))
    folder = prepare_conversations(ConversationsConfig([str(source)], output_dir=str(tmp_path / "c")), tokenizer)
    run = json.loads((folder / "run.json").read_text())
    for split in ("train", "validation"):
        table = pyarrow.parquet.read_table(folder / f"{split}.parquet").drop_columns(["license"])
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
        run["hashes"][f"{split}.parquet"] = sha256_file(folder / f"{split}.parquet")
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="license: 40 rows of 1 sources state no licence: a .40."):
        publish(tmp_path, folder)
    publish(tmp_path, folder, license=["a=MIT"])


def test_published_instructions_and_preferences_are_read_back_by_their_stages(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", questions(60))
    data = write_folder([publish(tmp_path, source)], tmp_path / "w1") / "data"
    folder = prepare_conversations(ConversationsConfig([str(data)], output_dir=str(tmp_path / "c1")), tokenizer)
    again = prepare_conversations(ConversationsConfig([str(source)], output_dir=str(tmp_path / "c2")), tokenizer)
    for split in ("train", "validation"):
        read = [pyarrow.parquet.read_table(place / f"{split}.parquet").to_pylist() for place in (folder, again)]
        assert sorted(read[0], key=str) == sorted(read[1], key=str)
    pairs = write(tmp_path / "p.jsonl", preferences(60))
    data = write_folder([publish(tmp_path, pairs)], tmp_path / "w2") / "data"
    prepared = prepare_preferences(PreferencesConfig([str(data)], output_dir=str(tmp_path / "c3")), tokenizer)
    assert json.loads((prepared / "run.json").read_text())["train"]["sources"]["p"]["licenses"] == ["MIT"]


def test_preferences_are_in_the_form_that_trl_reads(tmp_path: Path, load: Any, tokenizer: Any) -> None:
    from trl.data_utils import apply_chat_template, is_conversational

    source = write(tmp_path / "pares.jsonl", preferences(100))
    found = load(publish(tmp_path, source))
    row = found["train"][0]
    assert {name: row[name] for name in ("prompt", "chosen", "rejected")} == {
        "prompt": [{"role": "user", "content": "Quem é a menina 0?"}],
        "chosen": [{"role": "assistant", "content": "É a Ana."}],
        "rejected": [{"role": "assistant", "content": "Não sei."}]}  # fmt: skip
    assert (row["source"], row["license"]) == ("pares", "MIT")
    assert is_conversational(row)
    texts = apply_chat_template(row, tokenizer)
    assert texts["chosen"].startswith("É a Ana.")
    assert "menina 0" in texts["prompt"]


def test_a_folder_of_preferences_is_published_from_its_inputs(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "pares.jsonl", preferences(100))
    folder = prepare_preferences(
        PreferencesConfig([str(source)], output_dir=str(tmp_path / "c"), validation_fraction=0.2), tokenizer
    )
    upload = publish(tmp_path, folder)
    manifest = json.loads((folder / "run.json").read_text())
    assert {split["name"]: split["rows"] for split in record_of(upload)["splits"]} == {
        split: manifest[split]["pairs"] for split in ("train", "validation")
    }
    write(source, preferences(99))
    with pytest.raises(InputError, match="its inputs .*changed since it was prepared. Publish the files themselves"):
        publish(tmp_path, folder)


# Resuming


def bytes_of(upload: Upload) -> dict[str, str]:
    return {file.path: file.sha256() for file in upload.files}


def test_shards_that_are_there_are_not_written_again(tmp_path: Path, corpus_folder: Path) -> None:
    first = publish(tmp_path, corpus_folder, shard_megabytes=0.05)
    before = bytes_of(first)
    paths = [file.path for file in first.files if file.path.startswith("data/")]

    def inodes() -> dict[str, int]:  # a shard that is written takes the place of the old file
        return {path: (tmp_path / "staging" / path).stat().st_ino for path in paths}

    written = inodes()
    assert bytes_of(publish(tmp_path, corpus_folder, shard_megabytes=0.05)) == before
    assert inodes() == written
    (tmp_path / "staging" / paths[1]).rename(tmp_path / "kept")  # so that its inode is not used again
    with (tmp_path / "staging" / paths[2]).open("r+b") as file:  # other bytes, of the same size
        file.seek(100)
        file.write(b"xyz")
    assert bytes_of(publish(tmp_path, corpus_folder, shard_megabytes=0.05)) == before
    assert [path for path in paths if inodes()[path] != written[path]] == [paths[1], paths[2]]
    publish(tmp_path, corpus_folder, shard_megabytes=0.1)
    left = {path.name for path in (tmp_path / "staging" / "data").iterdir()}
    assert 0 < len(left) < len(paths)
    assert not left & {Path(path).name for path in paths if path.startswith("data/train")}


def test_a_kill_between_shards_is_resumed_to_the_same_bytes(tmp_path: Path, corpus_folder: Path) -> None:
    """The process is killed while it writes its third shard, as a power cut would do it."""
    code = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet
from teenytinyllama.publishing.dataset_content import DatasetOptions
from teenytinyllama.publishing.publish_dataset import dataset_uploads

class Killed(pyarrow.parquet.ParquetWriter):
    count = 0
    def write_batch(self, *arguments):
        Killed.count += 1
        super().write_batch(*arguments)
        if Killed.count == 3:
            os.kill(os.getpid(), signal.SIGKILL)

pyarrow.parquet.ParquetWriter = Killed
dataset_uploads([sys.argv[1]], "ana/textos", Path(sys.argv[2]), DatasetOptions(shard_megabytes=0.05))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(corpus_folder), str(tmp_path / "staging")], check=False, env=environment
    )
    assert done.returncode == -9
    finished = (tmp_path / "staging" / "shards.jsonl").read_text().splitlines()
    assert len(finished) == 2
    assert list((tmp_path / "staging" / "data").glob("*.partial"))
    times = {
        json.loads(line)["path"]: (tmp_path / "staging" / json.loads(line)["path"]).stat().st_mtime_ns
        for line in finished
    }
    resumed = bytes_of(publish(tmp_path, corpus_folder, shard_megabytes=0.05))
    assert {path: (tmp_path / "staging" / path).stat().st_mtime_ns for path in times} == times
    whole = dataset_uploads([str(corpus_folder)], NAME, tmp_path / "other", DatasetOptions(shard_megabytes=0.05))
    assert resumed == bytes_of(whole)
    assert not list((tmp_path / "staging" / "data").glob("*.partial"))


def test_a_cut_line_of_the_list_of_shards_is_no_obstacle(tmp_path: Path, corpus_folder: Path) -> None:
    before = bytes_of(publish(tmp_path, corpus_folder, shard_megabytes=0.05))
    listed = tmp_path / "staging" / "shards.jsonl"
    listed.write_text(listed.read_text()[:-20])
    assert bytes_of(publish(tmp_path, corpus_folder, shard_megabytes=0.05)) == before
    assert bytes_of(publish(tmp_path, corpus_folder, shard_megabytes=0.05)) == before


# Kinds


def test_what_is_a_dataset(tmp_path: Path, corpus_folder: Path, packed_folder: Path, tokenizer_folder: Path) -> None:
    assert is_dataset([str(corpus_folder)])
    assert is_dataset([str(packed_folder)])
    assert is_dataset(["sample"])
    assert is_dataset(["a.jsonl", "b.parquet"])
    assert is_dataset([str(tmp_path / "*.jsonl")])
    assert not is_dataset([str(tokenizer_folder)])
    assert not is_dataset([])
    run = tmp_path / "run"
    (run / "checkpoint-10").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    assert not is_dataset([str(run)])
    (run / "run.json").write_text('{"stage": "pretrain"}')
    assert not is_dataset([str(run)])
    assert not is_dataset([str(tmp_path / "nowhere")])
    unfinished = tmp_path / "packed"
    (unfinished / ".partial").mkdir(parents=True)
    assert is_dataset([str(unfinished)])
    (tmp_path / "empty").mkdir()
    assert not is_dataset([str(tmp_path / "empty")])


def bad_link(folder: Path) -> Path:
    (folder / "fora.jsonl").write_text('{"text": "segredo"}\n')
    (folder / "c").mkdir()
    (folder / "c" / "a.jsonl").symlink_to(folder / "fora.jsonl")
    return folder / "c"


def bad_stage(folder: Path) -> Path:
    (folder / "run.json").write_text('{"stage": "sft"}')
    return folder


def unfinished_pack(folder: Path) -> Path:
    (folder / ".partial").mkdir()
    return folder


def two_kinds(folder: Path) -> Path:
    (folder / "d").mkdir()
    write(folder / "d" / "a.jsonl", texts(3))
    write(folder / "d" / "b.jsonl", questions(3))
    return folder / "d"


def columns(**row: Any) -> Any:
    def made(folder: Path) -> Path:
        return write(folder / "a.jsonl", [row])

    return made


def empty_folder(folder: Path) -> Path:
    (folder / "e").mkdir()
    return folder / "e"


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (empty_folder, {}, "source=.*e: the folder holds no .parquet, .jsonl"),
        (lambda folder: folder / "x", {}, "source=.*x: no such file or folder"),
        (columns(pergunta="a", resposta="b"), {}, "its kind cannot be told from the columns pergunta, resposta. A corpus has a column `text`"),
        (columns(text="a", messages=[]), {}, r"cannot be told from the columns text, messages \(instructions or corpus\)"),
        (lambda folder: write(folder / "a.jsonl", []), {}, "source=.*a.jsonl: holds no row. Take it away or fill it"),
        (two_kinds, {}, "holds .*a.jsonl of corpus and .*b.jsonl of instructions. Publish them apart"),
        (bad_link, {}, r"a.jsonl: leads out of .*c, to .*fora.jsonl"),
        (bad_stage, {}, "was made by 'sft', which makes no dataset"),
        (unfinished_pack, {}, "packing is not finished, it has no run.json. Run the same `ttl pack` again first"),
        (columns(text=3, license="MIT"), {}, "text_column=text: row 1 of .* holds int, not text"),
        (columns(text=" "), {}, "source: holds no row with text"),
        (columns(text="a"), {}, r"license: 1 rows of 1 sources state no licence: a \(1\). .* give --license LICENCE"),
        (columns(text="a"), {"license": ["b=MIT", "MIT"]}, "license=b=MIT: no source is called b"),
        (columns(text="a", metadata="license: X"), {"license": ["a=MIT"]}, "every row of a states its licence already"),
        (columns(text="a"), {"license": ["a="]}, "license=a=: must be LICENCE or SOURCE=LICENCE"),
        (columns(text="a"), {"license": ["MIT", "X"]}, "license=X: a second licence for the same rows, after MIT"),
        (columns(text="a"), {"validation_inputs": ["no.jsonl"]}, "validation_inputs=no.jsonl: no such file"),
        (columns(text="a"), {"kind": "packed"}, "kind=packed: .* is no folder of `ttl pack`"),
        (columns(text="a"), {"kind": "preferences"}, "1 rows are no pair of answers .*no known form"),
        (columns(prompt="a", answer="b"), {"packed": "p"}, "packed=p: concerns a corpus, not instructions"),
        (columns(prompt="a", answer="b"), {"txt_unit": "line"}, "txt_unit=line: does not concern instructions"),
        (columns(prompt="a", answer=""), {}, "1 rows are no conversation .*an empty turn"),
        (columns(prompt="a", answer=""), {"invalid_rows": "drop"}, "holds no conversation .1 x an empty turn"),
        (columns(prompt="a", chosen="b", rejected="b"), {"invalid_rows": "drop"}, "holds no pair of answers"),
        (columns(prompt="a", chosen="b", rejected="c"), {"validation_inputs": ["x"]}, "validation_inputs=.* does not concern"),
        (columns(text="a"), {"validation_fraction": 0.9}, "validation_fraction=0.9: must lie between 0 and 0.5"),
        (columns(prompt="a", chosen="b", rejected="c"), {"validation_fraction": 0.9}, "validation_fraction=0.9: must lie"),
        (columns(text="a", metadata="license: X"), {"shard_megabytes": 0}, "shard_megabytes=0: must be more than 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_published_is_refused(tmp_path: Path, make: Any, options: dict[str, Any], message: str) -> None:
    source = make(tmp_path)
    with pytest.raises(InputError, match=message):
        dataset_uploads([str(source)], NAME, tmp_path / "staging", DatasetOptions(**options))
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize("name", ["ana", "ana/b/c", "ana/b c", "ana/b--c", "ana/.git", "/b", "https://x/y"])
def test_names_that_the_hub_would_not_take_are_refused(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / "a.jsonl", texts(3))
    with pytest.raises(InputError, match="is no repository of the Hub. Give owner/name"):
        dataset_uploads([str(source)], name, tmp_path / "staging", DatasetOptions())


def test_folders_of_ours_are_published_alone_and_with_their_own_kind(tmp_path: Path, packed_folder: Path) -> None:
    other = write(tmp_path / "a.jsonl", texts(3))
    with pytest.raises(InputError, match="was made by `pack` and is published alone"):
        publish(tmp_path, packed_folder, other)
    with pytest.raises(InputError, match="kind=corpus: .* holds packed. Leave --kind out"):
        publish(tmp_path, packed_folder, kind="corpus")
    with pytest.raises(InputError, match="validation_fraction=0.1: does not concern a folder of 'pack'"):
        publish(tmp_path, packed_folder, validation_fraction=0.1)
    (tmp_path / "p.yaml").write_text("inputs: [a]\n")
    with pytest.raises(InputError, match="a config is published alone"):
        publish(tmp_path, tmp_path / "p.yaml", other)
    with pytest.raises(InputError, match="source: missing"):
        publish(tmp_path)


def test_of_two_rows_one_stays_for_training(tmp_path: Path) -> None:
    held_out = [row for row in texts(2000) if is_held_out_at_half(row["text"])][:2]
    upload = publish(tmp_path, write(tmp_path / "a.jsonl", held_out), validation_fraction=0.5)
    shards = [file for file in upload.files if file.path.endswith(".parquet")]
    rows = {file.path.split("/")[-1].split("-")[0]: pyarrow.parquet.read_table(file.source).num_rows for file in shards}
    assert rows == {"train": 1, "validation": 1}


def is_held_out_at_half(text: str) -> bool:
    from teenytinyllama.data.sources import is_held_out

    return is_held_out(text, 0.5)


def test_a_staging_folder_in_the_source_or_of_others_is_refused(tmp_path: Path, corpus_folder: Path) -> None:
    with pytest.raises(InputError, match="staging=.*: lies inside .*, which is to be published"):
        dataset_uploads([str(corpus_folder)], NAME, corpus_folder / "staging", DatasetOptions())
    staging = tmp_path / "staging"
    (staging / "data").mkdir(parents=True)
    (staging / "data" / "meu.parquet").write_text("x")
    with pytest.raises(InputError, match="staging=.*: is not empty .data"):
        publish(tmp_path, corpus_folder)
    (staging / "tese.txt").write_text("x")
    with pytest.raises(InputError, match=r"staging=.*: is not empty \(data, tese.txt\)"):
        publish(tmp_path, corpus_folder)
    assert (staging / "data" / "meu.parquet").read_text() == "x"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="staging=.*file: is a file. Give a folder"):
        dataset_uploads([str(corpus_folder)], NAME, tmp_path / "file", DatasetOptions())
    with pytest.raises(InputError, match="staging=.*: cannot be made in .*file. Give another folder with --staging"):
        dataset_uploads([str(corpus_folder)], NAME, tmp_path / "file" / "x", DatasetOptions())
    assert default_staging([str(corpus_folder)]) == corpus_folder.parent / f"{corpus_folder.name}.publish"
    assert default_staging(["*.jsonl"]) == Path("dataset.publish")
    assert default_staging([f"hf://datasets/ana/textos@{'0' * 40}"]) == Path("textos.publish")


@pytest.mark.parametrize(("now", "message"), [(3, "fewer rows"), (9, "more rows")])
def test_a_source_that_changes_while_it_is_read_is_noticed(
    tmp_path: Path, monkeypatch: Any, now: int, message: str
) -> None:
    from teenytinyllama.publishing import publish_dataset as build

    source = write(tmp_path / "a.jsonl", texts(6))
    count = build.count

    def counted(*arguments: Any) -> Any:
        found = count(*arguments)
        write(source, texts(now))
        return found

    monkeypatch.setattr(build, "count", counted)
    with pytest.raises(InputError, match=f"source: has {message} than when it was counted"):
        publish(tmp_path, source, validation_fraction=0.0)


# Licences and sizes


def test_licences_are_named_as_the_hub_names_them() -> None:
    assert [hub_license(name) for name in ("Apache-2.0", "CC BY 4.0", "cc0-1.0", "public domain", "other")] == [
        "apache-2.0", "cc-by-4.0", "cc0-1.0", None, None]  # fmt: skip
    assert license_metadata(["CC-BY-4.0", "cc by 4.0"]) == {"license": "cc-by-4.0"}
    assert license_metadata(["Public Domain (1920)"])["license_name"] == "public-domain-1920"
    assert license_metadata(["Unknown"]) == {"license": "unknown"}
    assert restrictions(["GPL-3.0", "non-commercial", "No Derivatives", "Standard"]) == {
        "no_derivatives": ["No Derivatives"], "non_commercial": ["non-commercial"], "share_alike": ["GPL-3.0"],
        "unknown": []}  # fmt: skip


def test_size_categories_are_the_hub_s() -> None:
    found = [size_category(rows) for rows in (0, 999, 1000, 99_999, 10**6, 10**9, 10**12 - 1, 10**12)]
    assert found == ["n<1K", "n<1K", "1K<n<10K", "10K<n<100K", "1M<n<10M", "1B<n<10B", "100B<n<1T", "n>1T"]


# Real data, and memory


def test_real_text_comes_back_equal(tmp_path: Path, real_data: Path, load: Any) -> None:
    source = real_data / "corpus" / "noticias.parquet"
    upload = publish(tmp_path, source, shard_megabytes=0.5)
    found = load(upload)
    read = pyarrow.parquet.read_table(source, columns=["text"])["text"].to_pylist()
    assert sorted(row["text"] for rows in found.values() for row in rows) == sorted(read)
    assert card_of(upload)[0]["license"] == "cc-by-sa-4.0"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    code = """
import json, random, re, sys
from pathlib import Path
from teenytinyllama.publishing.dataset_content import DatasetOptions
from teenytinyllama.publishing.publish_dataset import dataset_uploads

def peak_kb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def published(name):
    dataset_uploads([f"{sys.argv[1]}/{name}.jsonl"], "ana/textos", Path(sys.argv[1]) / name, DatasetOptions(license=["MIT"]))
    return peak_kb()

print(published("small"), published("large"))
"""
    for name, how_many in (("small", 4_000), ("large", 20_000)):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for number in range(how_many):
                file.write(json.dumps({"text": f"{number} " + "palavra casa " * 230}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    small, large = map(int, done.stdout.split())
    assert large - small < 20_000, "kilobytes, for 48 MB more of text"
