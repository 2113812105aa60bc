import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from teenytinyllama.checks import InputError, format_bytes
from teenytinyllama.data import pack as packing
from teenytinyllama.data import packed as packed_module
from teenytinyllama.data import workers
from teenytinyllama.data.pack import PackConfig, pack
from teenytinyllama.data.packed import check_packed, load_packed
from teenytinyllama.data.sources import Corpus, CorpusConfig
from teenytinyllama.data.workers import split_long_text
from teenytinyllama.evaluation.held_out import load_held_out
from teenytinyllama.models import load_tokenizer


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
from teenytinyllama.data import pack as packing
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("train.bin", lambda content: content[: len(content) // 3], "train.bin is shorter than its journal says"),
        ("documents.bin", lambda content: b"\x01" + content[1:], "documents.bin is not as its journal says"),
        ("journal.jsonl", lambda content: content.replace(b'"chunks": 2', b'"chunks: 2'), "Expecting"),
        ("journal.jsonl", lambda content: content.replace(b'"documents"', b'"d\xffcuments"', 1), "decode byte 0xff"),
    ],
)
def test_damage_to_what_a_kill_left_is_noticed(
    tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path, packed_folder: Path, name: str, damage: Any, reason: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(packing, "CHUNK_BYTES", 5_000)
    append, count = packing.Journal.append, []

    def stopped(journal: packing.Journal, *rest: Any) -> None:
        append(journal, *rest)
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing.Journal, "append", stopped)
        with pytest.raises(KeyboardInterrupt):
            pack(config(corpus_folder, tokenizer_folder, tmp_path / "p"))
    file = tmp_path / "p" / ".partial" / name
    file.write_bytes(damage(file.read_bytes()))
    output = pack(config(corpus_folder, tokenizer_folder, tmp_path / "p"))
    assert re.search(f"is damaged .*{reason}.*: packing begins anew", capsys.readouterr().out)
    for rows in ("train.npy", "validation.npy", "validation_documents.npy"):
        assert (output / rows).read_bytes() == (packed_folder / rows).read_bytes(), rows


@pytest.mark.slow
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


@pytest.mark.slow
def test_large_vocabularies_take_four_bytes_and_the_disk_is_checked_for_them(
    tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(packing, "ensure_disk_space", lambda field, folder, needed, fix: asked.append(needed))
    large = tmp_path / "large"
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    tokenizer.add_tokens([f"palavra{n}" for n in range(66_000)])
    tokenizer.save_pretrained(large)
    packed = load_packed(pack(config(corpus_folder / "curtas.jsonl", large, tmp_path / "p")))
    assert packed.train.dtype == np.uint32
    counted = [*packed.manifest["sources"].values(), *packed.manifest["validation_sources"].values()]
    assert asked == [2 * 4 * sum(source["bytes"] for source in counted) // 3]


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
        pytest.raises(
            InputError, match=r"output_dir=.*p: another process has completed it meanwhile\. The same command"
        ),
        packing.packed_folder(folder).held("packing into it"),
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
    header = bytearray((packed_folder / "validation_documents.npy").read_bytes())
    header[header.index(b"]")] ^= 1  # a bracket of the header is never closed
    (copy / "train.npy").write_bytes(bytes(header))
    with pytest.raises(InputError, match="train.npy is missing or damaged .*EOF in multi-line statement"):
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


def foreign_tokenizer(kind: str, texts: list[str]) -> Tokenizer:
    """A tokenizer of another family, learnt from a few texts."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "prepend"))
    alphabet: list[str] = []
    if kind == "prepend":  # as Llama 2
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "stripped":
        backend.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False,
        max_token_length=12,
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return backend


@pytest.mark.parametrize("kind", ["prepend", "always", "first", "never", "bytes", "stripped"])
def test_pieces_of_long_texts_have_the_ids_of_the_whole(kind: str, sample_texts: list[str]) -> None:
    backend = foreign_tokenizer(kind, sample_texts[:60])
    text = " " + "\n\n".join(sample_texts[:30]) + "  fim 🙂 日本 " + "palavra " * 40
    assert len(split_long_text(text, 200)) > 20

    def encode(texts: list[str]) -> list[bytes]:
        found = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.uint16).tobytes() for encoding in found]

    assert workers.encode_in_pieces(encode, [text, "curto", ""], 200) == encode([text, "curto", ""])


def test_a_token_across_every_cut_gives_the_whole_text(sample_texts: list[str]) -> None:
    text = "palavra comprida " * 50
    asked: list[int] = []

    def encode(texts: list[str]) -> list[bytes]:  # ids that depend on the length of the whole
        asked.append(len(texts))
        return [bytes([len(text) % 251]) * len(text) for text in texts]

    assert workers.encode_in_pieces(encode, [text], 200) == [bytes([len(text) % 251]) * len(text)]
    assert asked[-1] == 1, "it was encoded whole"


def test_bytes_are_those_of_the_text(tmp_path: Path, sample_texts: list[str]) -> None:
    """Whatever a tokenizer makes of it: bytes, unknown characters, or small letters."""
    rows = ["Ação 🙂 日本 \u0001 ÀS VEZES " + text for text in sample_texts[:40]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    for kind in ("prepend", "stripped"):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=foreign_tokenizer(kind, sample_texts[:60]), bos_token="<s>", eos_token="</s>"
        )
        tokenizer.save_pretrained(tmp_path / kind)
        packed = load_packed(pack(config(tmp_path / "a.jsonl", tmp_path / kind, tmp_path / f"p-{kind}")))
        counted = [*packed.manifest["sources"].values(), *packed.manifest["validation_sources"].values()]
        assert sum(source["bytes"] for source in counted) == sum(len(text.encode()) for text in rows)
        loaded = load_held_out([str(tmp_path / "a.jsonl")], load_tokenizer("tokenizer", str(tmp_path / kind)))
        assert loaded.documents["num_bytes"].tolist() == [len(text.encode()) for text in rows]


def test_rows_are_compared_with_their_hash(
    tmp_path: Path, packed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TTL_CHECKED_ROWS", raising=False)
    monkeypatch.setattr(packed_module, "PART_BYTES", 1 << 10)
    copy = shutil.copytree(packed_folder, tmp_path / "p")
    check_packed(load_packed(copy))
    rows = (copy / "train.npy").read_bytes()
    status = (copy / "train.npy").stat()
    (copy / "train.npy").write_bytes(rows[:-1] + bytes([rows[-1] ^ 1]))
    os.utime(copy / "train.npy", ns=(status.st_atime_ns, status.st_mtime_ns))
    check_packed(load_packed(copy))  # what was compared is not read again
    (copy / "train.npy").write_bytes(rows)
    monkeypatch.undo()
    monkeypatch.delenv("TTL_CHECKED_ROWS", raising=False)
    with pytest.raises(InputError, match=r"packed=.*train.npy holds the id \d+, and the vocabulary has 300"):
        check_packed(load_packed(copy), vocab_size=300)
    for name in packed_module.PACKED_NAMES:
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        with pytest.raises(InputError, match=f"packed=.*: {name} is not the file that `ttl pack` wrote: its sha256"):
            check_packed(load_packed(copy))
        (copy / name).write_bytes(content)
    np.save(copy / "validation.npy", np.zeros_like(load_packed(copy).validation))
    with pytest.raises(InputError, match="held_out=.*: validation.npy is not the file"):
        check_packed(load_packed(copy), "held_out")
    manifest = json.loads((copy / "run.json").read_text())
    del manifest["hashes"]
    (copy / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match=r"run.json lacks hashes: damaged, or of an older version. Make it with `ttl pack`"
    ):
        load_packed(copy)


def test_a_book_is_packed_with_its_end_held_out(
    tmp_path: Path, tokenizer_folder: Path, sample_texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "livro.txt").write_text("\n\n".join(sample_texts[:100]))
    packed = load_packed(
        pack(config(tmp_path / "livro.txt", tokenizer_folder, tmp_path / "p", validation_fraction=0.01))
    )
    assert packed.manifest["same_document"] is True
    assert len(packed.documents) == 1
    assert packed.documents["num_bytes"][0] > 1000
    packed_module.print_summary(tmp_path / "p")
    said = capsys.readouterr().out
    assert "there is one document alone, so its last part is held out" in said
    assert "held out is the last part of the only document: scores are of the same document" in said


def test_held_out_files_without_text_are_refused(tmp_path: Path, tokenizer_folder: Path, corpus_folder: Path) -> None:
    (tmp_path / "held.txt").write_text("  \n")
    with pytest.raises(InputError, match="validation_inputs=.*held.txt: hold no document with text"):
        pack(config(corpus_folder, tokenizer_folder, tmp_path / "p", validation_inputs=[str(tmp_path / "held.txt")]))


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1 byte"), (999, "999 bytes"), (1000, "1.00 kB"), (4_200_000, "4.20 MB"), (12_300_000, "12.3 MB"),
     (999_900_000, "1.00 GB"), (1_250 * 10**9, "1,250 GB")],
)  # fmt: skip
def test_sizes_are_said_in_the_unit_that_suits_them(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize("chunk_bytes", [1, 10_000_000])
def test_the_dropped_tail_is_counted_under_no_source(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(
        packing, "CHUNK_BYTES", chunk_bytes
    )  # the tail reaches over chunks, and over a kill between them
    rows = [{"text": f"palavra {n} " * 9, "source": "a" if n < 20 else "b"} for n in range(40)]
    lines = [json.dumps({"text": row["text"], "metadata": f"source: {row['source']}"}) + "\n" for row in rows]
    (tmp_path / "x.jsonl").write_text("".join(lines) + json.dumps({"text": "fim", "metadata": "source: c"}) + "\n")
    folder = pack(
        PackConfig(
            inputs=[str(tmp_path / "x.jsonl")], tokenizer=str(tokenizer_folder), output_dir=str(tmp_path / "p"),
            context=64, validation_fraction=0.0,
        )
    )  # fmt: skip
    manifest = json.loads((folder / "run.json").read_text())
    sources = manifest["sources"]
    assert 0 < manifest["dropped_tokens"] < 64
    assert sum(record["tokens"] for record in sources.values()) == manifest["train_tokens"]
    assert sources["c"] == {**sources["c"], "documents": 0, "bytes": 0, "tokens": 0}, "its only document is dropped"
    assert sources["a"]["bytes"] == sum(len(row["text"]) for row in rows[:20])
