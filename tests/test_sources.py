import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.data.sources import Corpus, CorpusConfig, Document, is_held_out, parse_metadata

TEXTS = ["Olá, mundo 🙂", "São Paulo\né grande.", "último texto"]


def read(*inputs: Path | str, **options: object) -> list[tuple[str, Document]]:
    return list(Corpus(CorpusConfig(inputs=[str(path) for path in inputs], **options)).documents())  # type: ignore[arg-type]


def texts(read: list[tuple[str, Document]]) -> list[str]:
    return [document.text for _, document in read]


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "metadata": "source: a; license: MIT"}) + "\n" for text in texts).encode()


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    table = pyarrow.table({"text": TEXTS, "metadata": ["source: a; license: MIT"] * 3})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_bytes(jsonl(TEXTS))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS)))
    with pyarrow.CompressedOutputStream(str(tmp_path / "d.jsonl.zst"), "zstd") as stream:
        stream.write(jsonl(TEXTS))
    expected = [Document(text, "a", "MIT") for text in TEXTS]
    for name in ("a.parquet", "b.jsonl", "c.jsonl.gz", "d.jsonl.zst"):
        assert [document for _, document in read(tmp_path / name)] == expected, name
    assert len(read(tmp_path)) == len(read(tmp_path / "*.*")) == 12


def test_txt_is_one_document_or_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "livro.txt"
    path.write_bytes("\ufeffPrimeira linha\n\nSegunda".encode())
    assert [document for _, document in read(path)] == [Document("Primeira linha\n\nSegunda", "livro")]
    path.write_bytes(b"Primeira linha\r\n\nSegunda")
    assert [document.text for _, document in read(path, txt_unit="line")] == ["Primeira linha", "Segunda"]


def test_empty_texts_and_nulls_are_left_out(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "  \n", "b"]}), tmp_path / "a.parquet")
    assert [document.text for _, document in read(tmp_path)] == ["a", "b"]


def test_metadata_forms() -> None:
    assert parse_metadata("source: x y; license: CC-BY-4.0", "z") == ("x y", "CC-BY-4.0")
    assert parse_metadata({"Source": "x", "licence": "MIT"}, "z") == ("x", "MIT")
    assert parse_metadata(' {"source": "x", "license": "MIT", "n": 1}', "z") == ("x", "MIT")
    assert parse_metadata('{"source": "x"', "z") == ("z", "")  # no JSON
    assert parse_metadata(None, "z") == parse_metadata("anything", "z") == ("z", "")


def test_split_is_by_document_and_stable_when_the_corpus_grows(tmp_path: Path) -> None:
    texts = [f"documento número {number}" for number in range(2000)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(texts))
    first = {document.text for split, document in read(tmp_path, validation_fraction=0.1) if split == "validation"}
    assert 150 < len(first) < 250
    (tmp_path / "0.jsonl").write_bytes(jsonl([f"outro {number}" for number in range(500)] + texts[:50]))
    grown = read(tmp_path, validation_fraction=0.1)
    assert {d.text for split, d in grown if split == "validation" and d.text.startswith("documento")} == first
    assert not {d.text for s, d in grown if s == "train"} & {d.text for s, d in grown if s == "validation"}
    assert not is_held_out("x", 0.0)


def test_validation_inputs_replace_the_hash(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS * 50))
    (tmp_path / "held.txt").write_text("guardado")
    found = read(tmp_path / "a.jsonl", validation_inputs=[str(tmp_path / "held.txt")], validation_fraction=0.5)
    assert [document.text for split, document in found if split == "validation"] == ["guardado"]
    assert len(found) == 151


def test_held_out_files_are_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    held = tmp_path / "corpus" / "val.jsonl"
    held.write_bytes(jsonl(TEXTS))
    (tmp_path / "corpus" / "a.jsonl").write_bytes(jsonl(["outro"]))
    message = "validation_inputs=.*: its documents are in inputs, too, so they would be trained on"
    with pytest.raises(InputError, match=message):
        read(tmp_path / "corpus", validation_inputs=[str(held)])
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(held.read_bytes())
    config = CorpusConfig(inputs=[str(tmp_path / "corpus")], validation_inputs=[str(copy)])
    with pytest.raises(InputError, match=message):
        Corpus(config).fingerprint()


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_bytes(jsonl([folder]))
    files = [str(tmp_path / folder / "train.jsonl") for folder in "ab"]
    hashes = Corpus(CorpusConfig(inputs=files)).fingerprint()
    assert list(hashes) == ["train.jsonl", "train.jsonl (2)"]
    assert len(set(hashes.values())) == 2
    assert list(Corpus(CorpusConfig(inputs=files[::-1])).fingerprint().values()) == list(hashes.values())[::-1]


def test_the_embedded_sample_has_its_own_split() -> None:
    splits = [split for split, _ in read("sample")]
    assert set(splits) == {"train", "validation"}


def bad_parquet(folder: Path) -> None:
    """A text column whose second cell is Latin-1: pyarrow does not check what it is given as buffers."""
    cells = pyarrow.array([b"bom", b"ruim \xe3"])
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, cells.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), folder / "bad.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "coração".encode("latin-1"), "inputs=.*a.txt: byte 4 is not valid UTF-8 .byte 0xe7.*iconv"),
        ("a.jsonl", jsonl(["a"]) + b'{"text": "\xe3"}\n', "line 2 is not valid UTF-8"),
        ("a.jsonl", jsonl(["a"]) + b"{oops\n", "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b'{"texto": "a"}\n', "text_column=text: line 1 of .* has no such key. It has texto"),
        ("a.jsonl", b'{"text": 3}\n', "text_column=text: row 1 of .* holds int, not text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "row 1 is not valid UTF-8 .character 0 is half of a surrogate"),
        ("a.jsonl.gz", gzip.compress(jsonl(TEXTS * 99))[:200], "damaged compressed file"),
        ("a.parquet", b"PAR1 no", "not a readable parquet file"),
        ("a.csv", b"a,b\n", "unknown kind of file. Known are .parquet"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_bad_parquet_rows_are_named(tmp_path: Path) -> None:
    bad_parquet(tmp_path)
    with pytest.raises(InputError, match="row 2 is not valid UTF-8"):
        read(tmp_path)
    with pytest.raises(InputError, match="text_column=texto: .* has no such column. It has text"):
        read(tmp_path, text_column="texto")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["nowhere"], "inputs=nowhere: no such file or folder"),
        ([], "inputs=..: empty"),
        (["hf://datasets/user/name"], "not of the form hf://datasets/user/name@commit"),
        (["hf://datasets/user/name@main"], "'main' can move. Pin the 40-digit commit"),
    ],
)
def test_bad_inputs_are_refused(inputs: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(*inputs)


def test_folders_are_read_to_their_depth(tmp_path: Path) -> None:
    (tmp_path / "corpus" / "x" / "y").mkdir(parents=True)
    (tmp_path / "real").mkdir()
    for place in ("corpus/a", "corpus/x/b", "corpus/x/y/c", "real/d"):
        (tmp_path / f"{place}.jsonl").write_bytes(jsonl([place]))
    below = ["corpus/a", "corpus/x/b", "corpus/x/y/c"]
    assert sorted(texts(read(tmp_path / "corpus" / "**" / "*.jsonl"))) == below
    assert sorted(texts(read(tmp_path / "corpus" / "**"))) == below
    (tmp_path / "corpus" / "more").symlink_to(tmp_path / "real")
    (tmp_path / "corpus" / "x" / "back").symlink_to(tmp_path / "corpus")
    assert sorted(texts(read(tmp_path / "corpus"))) == [*below, "real/d"]


def test_texts_are_composed_and_lose_their_byte_order_mark(tmp_path: Path) -> None:
    marked = tmp_path / "a.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + jsonl(["A\u0301gua", "chão"]))
    assert texts(read(marked)) == ["Água", "chão"]
    lines = tmp_path / "b.txt"
    lines.write_bytes("\ufeffum\ndois\n".encode())
    assert texts(read(lines, txt_unit="line")) == ["um", "dois"]


def test_shards_are_of_one_source(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for number in range(2):
        (bare / f"contos-0000{number}-of-00002.txt").write_text(str(number))
    assert {document.source for _, document in read(bare)} == {"contos"}


def test_a_folder_without_texts_and_a_wild_fraction_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(InputError, match="the folder holds no .parquet"):
        read(tmp_path)
    with pytest.raises(InputError, match="metadata_column=text: is the text_column"):
        read("sample", metadata_column="text")
    with pytest.raises(InputError, match="validation_fraction=0.9: must lie between 0 and 0.5"):
        read("sample", validation_fraction=0.9)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_one_large_row_group_is_read_in_parts(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [draw.randbytes(2_500).hex() for _ in range(12_000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    metadata = pyarrow.parquet.ParquetFile(tmp_path / "a.parquet").metadata
    assert metadata.num_row_groups == 1
    assert metadata.row_group(0).total_byte_size > 50e6
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "b.parquet")
    code = """
import pathlib, re, sys
from teenytinyllama.data.readers import read_rows

def characters(path):
    return sum(len(text) for text, _ in read_rows("inputs", pathlib.Path(path), "text", "metadata", "file"))

def peak_kb():  # not getrusage: its peak begins with that of the parent process
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

characters(sys.argv[2])  # what pyarrow takes for itself
before = peak_kb()
length = characters(sys.argv[1])
print(length, peak_kb() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(tmp_path / f"{name}.parquet") for name in "ab")], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    length, grown = map(int, done.stdout.split())
    assert length == 60_000_000
    assert grown < 40_000, "kilobytes"
