import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from teenytinyllama.checks import InputError
from teenytinyllama.data import packing, workers
from teenytinyllama.data.packed import load_packed
from teenytinyllama.data.packing import PackConfig, pack
from teenytinyllama.data.sources import Corpus, CorpusConfig
from teenytinyllama.data.workers import split_long_text
from teenytinyllama.published import load_tokenizer


def config(corpus: Path, tokenizer: Path, output: Path, **changes: Any) -> PackConfig:
    values = {"context": 32, "validation_fraction": 0.1, **changes}
    return PackConfig(inputs=[str(corpus)], tokenizer=str(tokenizer), output_dir=str(output), **values)


def unshuffled_stream(folder: Path) -> list[int]:
    """The training tokens in corpus order, read with numpy alone."""
    manifest = json.loads((folder / "run.json").read_text())
    rows = np.load(folder / "train.npy", mmap_mode="r")
    order = np.random.default_rng(manifest["config"]["seed"]).permutation(len(rows))
    stream = np.empty_like(rows)
    stream[order] = rows
    return stream.reshape(-1).tolist()


def test_rows_are_the_corpus(packed_folder: Path, corpus_folder: Path, tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    documents = list(Corpus(CorpusConfig(inputs=[str(corpus_folder)], validation_fraction=0.1)).documents())
    expected = {"train": [], "validation": []}  # type: dict[str, list[int]]
    for split, document in documents:
        expected[split] += [1, *tokenizer(document.text, add_special_tokens=False)["input_ids"], 2]
    packed = load_packed(packed_folder)
    kept = len(packed.train) * 32
    assert packed.train.dtype == np.uint16
    assert packed.train.shape[1] == 32
    assert 0 <= len(expected["train"]) - kept < 32, "more than the last, partial row was dropped"
    assert unshuffled_stream(packed_folder) == expected["train"][:kept]
    assert packed.train.reshape(-1).tolist() != expected["train"][:kept], "the rows are not shuffled"
    assert packed.validation.tolist() == expected["validation"]
    assert packed.manifest["dropped_tokens"] == len(expected["train"]) - kept
    held_out = [document for split, document in documents if split == "validation"]
    assert packed.documents["num_bytes"].tolist() == [len(document.text.encode()) for document in held_out]
    assert [packed.source_names[i] for i in packed.documents["source"]] == [document.source for document in held_out]
    for row in packed.documents:
        tokens = packed.validation[row["offset"] : row["offset"] + row["num_tokens"]]
        assert (tokens[0], tokens[-1]) == (1, 2)
    assert packed.manifest["sources"]["contos"]["licenses"] == ["CC0-1.0"]
    assert sorted(path.name for path in packed_folder.iterdir()) == [
        "emissions.csv", "ledger.jsonl", "run.json", "train.npy", "validation.npy", "validation_documents.npy",
    ]  # fmt: skip


def test_special_tokens_in_a_text_are_plain_characters(tmp_path: Path, tokenizer_folder: Path) -> None:
    lines = [json.dumps({"text": f"linha {n} </s> <s> <unk> <instruction> <0x41>"}) for n in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    packed = load_packed(pack(config(tmp_path / "a.jsonl", tokenizer_folder, tmp_path / "out")))
    tokens = np.concatenate([packed.validation, np.array(unshuffled_stream(tmp_path / "out"))])
    assert (tokens == 0).sum() == (tokens == 260).sum() == 0
    num_documents = sum(r["documents"] for r in packed.manifest["sources"].values()) + len(packed.documents)
    assert num_documents - 2 <= (tokens == 2).sum() <= num_documents  # the last row is dropped


def test_the_same_call_again_does_nothing_and_other_settings_are_refused(
    tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = pack(config(corpus_folder, tokenizer_folder, tmp_path / "p"))
    before = (output / "train.npy").stat().st_mtime_ns
    assert pack(config(corpus_folder, tokenizer_folder, tmp_path / "p")) == output
    assert (output / "train.npy").stat().st_mtime_ns == before
    assert "already holds these rows" in capsys.readouterr().out
    with pytest.raises(InputError, match="output_dir=.*: holds rows of other inputs or settings"):
        pack(config(corpus_folder, tokenizer_folder, tmp_path / "p", context=64))


KILLED = """
import os, sys
from teenytinyllama.data import packing
packing.CHUNK_BYTES = 5_000
append, count = packing.Journal.append, [0]
def killing(self, chunk, encoded):
    count[0] += 1
    if count[0] == 4:  # in the middle of writing a chunk
        self.files["train"].write(b"half")
        self.files["train"].flush()
        self.marks.write('{"chunks": 4, "docu')
        self.marks.flush()
        os._exit(9)
    append(self, chunk, encoded)
packing.Journal.append = killing
packing.pack(packing.PackConfig(inputs=[sys.argv[1]], tokenizer=sys.argv[2], output_dir=sys.argv[3], context=32,
                                validation_fraction=0.1))
"""


def test_a_kill_is_resumed_to_the_same_rows(
    tmp_path: Path,
    corpus_folder: Path,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(packing, "CHUNK_BYTES", 5_000)
    whole = pack(config(corpus_folder, tokenizer_folder, tmp_path / "whole"))
    arguments = [str(corpus_folder), str(tokenizer_folder), str(tmp_path / "killed")]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert not (tmp_path / "killed" / "run.json").exists()
    with pytest.raises(InputError, match="has no run.json"):
        load_packed(tmp_path / "killed")
    encoded: list[int] = []
    append = packing.Journal.append
    monkeypatch.setattr(packing.Journal, "append", lambda *a: encoded.append(len(a[1])) or append(*a))
    resumed = pack(config(corpus_folder, tokenizer_folder, tmp_path / "killed"))
    assert "going on after" in capsys.readouterr().out
    assert sum(encoded) < 400, "finished chunks were tokenized again"
    for name in ("train.npy", "validation.npy", "validation_documents.npy"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name


def test_a_kill_is_not_resumed_with_the_inputs_in_another_order(tmp_path: Path, tokenizer_folder: Path) -> None:
    """It would leave out documents of one file and read those of the other twice."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n".join(f"documento {name} {number}" for number in range(1500)))
    files, output = [str(tmp_path / f"{name}.txt") for name in "ab"], tmp_path / "killed"
    script = KILLED.replace("inputs=[sys.argv[1]]", "txt_unit='line', inputs=sys.argv[1].split()")
    arguments = [" ".join(files), str(tokenizer_folder), str(output)]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    values: dict[str, Any] = {"tokenizer": str(tokenizer_folder), "context": 32, "txt_unit": "line",
                              "validation_fraction": 0.1}  # fmt: skip
    whole = pack(PackConfig(inputs=files[::-1], output_dir=str(tmp_path / "whole"), **values))
    again = pack(PackConfig(inputs=files[::-1], output_dir=str(output), **values))
    assert (again / "train.npy").read_bytes() == (whole / "train.npy").read_bytes()


def test_chunks_do_not_change_the_rows(
    tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path, packed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK_BYTES", 1)
    monkeypatch.setattr(workers, "PIECE_CHARS", 100)
    output = pack(config(corpus_folder, tokenizer_folder, tmp_path / "p"))
    assert (output / "train.npy").read_bytes() == (packed_folder / "train.npy").read_bytes()


def test_long_texts_are_cut_where_no_token_crosses(sample_texts: list[str], tokenizer_folder: Path) -> None:
    text = "\n\n".join(sample_texts[:50]) + "  fim   " + "x" * 500
    pieces = split_long_text(text, 200)
    assert len(pieces) > 20
    assert "".join(pieces) == text
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    joined = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    assert joined == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert split_long_text("", 10) == [""]


def test_large_vocabularies_take_four_bytes(tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path) -> None:
    large = tmp_path / "large"
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    tokenizer.add_tokens([f"palavra{n}" for n in range(66_000)])
    tokenizer.save_pretrained(large)
    packed = load_packed(pack(config(corpus_folder / "curtas.jsonl", large, tmp_path / "p")))
    assert packed.train.dtype == np.uint32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 4}, "context=4: a row needs at least 8 tokens"),
        ({"tokenizer": "nowhere"}, "tokenizer=nowhere: no such folder"),
        ({"tokenizer": ""}, "tokenizer: missing"),
        ({"output_dir": ""}, "output_dir: missing"),
        ({"context": 10_000_000}, "the corpus has only .* training tokens, less than one row"),
        ({"text_column": "texto"}, "text_column=texto: line 1 of .* has no such key"),
    ],
)
def test_bad_input_writes_nothing(
    tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path, changes: dict[str, Any], message: str
) -> None:
    values = {"tokenizer": str(tokenizer_folder), "output_dir": str(tmp_path / "p"), "context": 32, **changes}
    with pytest.raises(InputError, match=message):
        pack(PackConfig(inputs=[str(corpus_folder)], **values))
    assert not (tmp_path / "p").exists()


def test_bad_text_deep_in_the_corpus_writes_nothing(
    tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path
) -> None:
    shutil.copytree(corpus_folder, tmp_path / "c")
    with (tmp_path / "c" / "curtas.jsonl").open("ab") as file:
        file.write('{"text": "maçã"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match="line 101 is not valid UTF-8"):
        pack(config(tmp_path / "c", tokenizer_folder, tmp_path / "p"))
    assert not (tmp_path / "p").exists()


def test_an_empty_corpus_and_a_foreign_folder_are_refused(
    tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": "  "}\n')
    with pytest.raises(InputError, match="inputs=.*empty.jsonl: hold no document with text"):
        pack(config(tmp_path / "empty.jsonl", tokenizer_folder, tmp_path / "p"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="output_dir=.*mine: is not empty .thesis.txt"):
        pack(config(corpus_folder, tokenizer_folder, tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    with pytest.raises(InputError, match="output_dir=.*thesis.txt: is a file"):
        pack(config(corpus_folder, tokenizer_folder, tmp_path / "mine" / "thesis.txt"))


def test_two_processes_do_not_pack_into_one_folder(tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    with (
        FileLock(folder / ".lock"),
        pytest.raises(InputError, match=r"output_dir=.*p: another process is packing into it\. Wait for it, or choose"),
    ):
        pack(config(corpus_folder, tokenizer_folder, folder))
    assert load_packed(pack(config(corpus_folder, tokenizer_folder, folder))).train.size
    with (
        pytest.raises(InputError, match=r"another process has packed into it meanwhile"),
        packing._alone_in(folder),
    ):
        pass
    assert not (folder / ".lock").exists()


def test_other_held_out_files_and_other_metadata_are_other_rows(tmp_path: Path, tokenizer_folder: Path) -> None:
    files = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    for name in files:
        Path(name).write_text("".join(json.dumps({"text": f"{name} {n} " * 9}) + "\n" for n in range(9)))
    split = {"tokenizer": str(tokenizer_folder), "output_dir": str(tmp_path / "p"), "context": 32}
    pack(PackConfig(inputs=files[:2], validation_inputs=files[2:], **split))
    for other in (
        PackConfig(inputs=files[:1], validation_inputs=files[1:], **split),
        PackConfig(inputs=files[:2], validation_inputs=files[2:], metadata_column="other", **split),
    ):
        with pytest.raises(InputError, match="holds rows of other inputs or settings"):
            pack(other)


def test_a_corpus_shorter_than_a_row_takes_nothing_away(
    tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(InputError, match="context=10000000: the corpus has only .* training tokens, less than one row"):
        pack(config(corpus_folder, tokenizer_folder, tmp_path / "link", context=10_000_000))
    assert list((tmp_path / "real").iterdir()) == []


def test_the_journal_does_not_repeat_sources(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus from the web can have a source a document."""
    rows = [{"text": f"Era uma vez {n} gatos.", "metadata": {"source": f"https://x/{n}"}} for n in range(400)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(packing, "CHUNK_BYTES", 500)
    sizes: list[int] = []
    close = packing.Journal.close

    def measured(journal: packing.Journal) -> None:
        close(journal)
        sizes.append((journal.folder / "journal.jsonl").stat().st_size)

    monkeypatch.setattr(packing.Journal, "close", measured)
    folder = pack(config(tmp_path / "a.jsonl", tokenizer_folder, tmp_path / "p"))
    sources = load_packed(folder).manifest["sources"] | load_packed(folder).manifest["validation_sources"]
    assert len(sources) == 400
    assert sizes[0] < 400 * 200


def test_a_full_disk_is_refused(
    tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(InputError, match="output_dir=.*: about .* kB are needed there and 1 byte are free"):
        pack(config(corpus_folder, tokenizer_folder, tmp_path / "p"))
    assert not (tmp_path / "p").exists()


def test_damaged_rows_are_refused(tmp_path: Path, packed_folder: Path) -> None:
    with pytest.raises(InputError, match="packed=nowhere: no such folder. Make it with `ttl pack`"):
        load_packed("nowhere")
    copy = shutil.copytree(packed_folder, tmp_path / "p")
    np.save(copy / "train.npy", np.zeros((3, 32), dtype=np.uint16))
    with pytest.raises(InputError, match="the arrays' sizes"):
        load_packed(copy)
    (copy / "train.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match="train.npy is missing or damaged"):
        load_packed(copy)
    (copy / "run.json").write_text("{")
    with pytest.raises(InputError, match="run.json is damaged"):
        load_packed(copy)
    (copy / "run.json").write_text('{"stage": "tokenizer"}')
    with pytest.raises(InputError, match="was made by 'tokenizer', not by 'pack'"):
        load_packed(copy)
