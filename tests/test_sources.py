import contextlib
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
from teenytinyllama.data.sources import Corpus, CorpusConfig, Document, cut_last_part, is_held_out, parse_metadata

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
        (
            "a b.txt",
            "ação".encode() + b" \xe7",
            r"inputs=.*a b.txt: byte 7 is not valid UTF-8 \(byte 0xe7\).*encoding: cp1252, or iconv -f WINDOWS-1252 -t UTF-8 'a b.txt' > 'utf8-a b.txt'",
        ),
        ("a.jsonl", jsonl(["a"]) + b'{"text": "\xff"}\n', "line 2 is not valid UTF-8"),
        ("a.jsonl", jsonl(["a"]) + b"{oops\n", "line 2 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        (
            "a.jsonl",
            b'{"ida": "a", "volta": "b"}\n',
            "text_column=text: line 1 of .* has no such key. It has ida, volta",
        ),
        ("a.jsonl", b'{"text": 3}\n', "text_column=text: row 1 of .* holds int, not text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "row 1 is not valid UTF-8 .character 0 is half of a surrogate"),
        ("a.jsonl.gz", gzip.compress(jsonl(TEXTS * 99))[:200], "damaged compressed file"),
        ("a.parquet", b"PAR1 no", "not a readable parquet file"),
        ("a.pdf", b"a,b\n", "unknown kind of file. Known are .parquet"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "line 1 is nested too deeply"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "line 1 is not JSON .Exceeds the limit"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "line 1 is not JSON .the key 'text' is there twice"),
        ("a.csv", b"text;n\na;1;2\n", "line 2 has another number of cells than the first line: 3, not 2"),
        ("a.csv", b'text,n\n"a,1\n', "line 2 is not csv"),
        ("a.csv", b"text,text\na,b\n", "has two columns called 'text'"),
        ("a.txt", bytes(range(256)), "is not valid UTF-8"),
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
    (tmp_path / "x.pdf").write_text("a")
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


def test_hidden_temporary_and_empty_files_and_other_kinds_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ".corpus"  # the folder that is given may itself be hidden
    for place in (
        "a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "._a.jsonl", "~$a.txt", "__MACOSX/x.txt", ".git/b.txt",
        "a.txt~", "b.txt.part", "c.jsonl.crdownload", "x/.DS_Store", "desktop.ini", "_SUCCESS",
    ):  # fmt: skip
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(jsonl([place]))
    for name in ("run.json", "ledger.jsonl", "d.pdf", "e.pdf", "f.docx", "README.md"):
        (folder / name).write_text("{}")
    (folder / "vazio.txt").touch()
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert texts(read(folder)) == ["a.jsonl"]
    said = capsys.readouterr().out
    assert f"inputs={folder}: left out 11 hidden or temporary files (" in said
    assert "1 empty file (vazio.txt), 2 records beside data (ledger.jsonl, run.json)" in said
    assert "1 broken link (gone.txt), 3 files of other kinds (2 .pdf, 1 .docx; save their texts as .txt)" in said
    assert texts(read(folder / "*.jsonl")) == ["a.jsonl"]
    with pytest.raises(InputError, match=r"file to read; left out are 1 hidden or temporary file \(~\$a.txt\)"):
        read(folder / "~$*.txt")
    assert texts(read(folder / ".git" / "b.txt", validation_fraction=0.0)) == [jsonl([".git/b.txt"]).decode()], "named"


def test_tables_and_json_are_read(tmp_path: Path) -> None:
    rows = [["texto", "fonte"], ['Olá, "mundo";\ntudo', "a"], ["b", "c"]]
    expected = [rows[1][0], "b"]
    for name, separator in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t"), ("d.csv.gz", ";")):
        lines = [separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
        data = "\ufeff" + "\r\n".join(lines)
        (tmp_path / name).write_bytes(gzip.compress(data.encode()) if name.endswith("gz") else data.encode())
        assert texts(read(tmp_path / name)) == [text.replace("\n", "\n") for text in expected], name
    (tmp_path / "e.csv").write_text("sep=;\ntext;n\na,b;1\n")
    assert texts(read(tmp_path / "e.csv")) == ["a,b"]
    (tmp_path / "f.csv").write_text("text\nOlá, mundo\n")
    assert texts(read(tmp_path / "f.csv")) == ["Olá, mundo"], "one column needs no separator"
    records = [{"text": "a"}, {"text": "b"}]
    forms = {"list.json": json.dumps(records, indent=1), "lines.json": "\n".join(map(json.dumps, records))}
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        assert texts(read(tmp_path / name)) == ["a", "b"], name
    (tmp_path / "one.json").write_text(json.dumps({"text": "a"}, indent=1))
    assert texts(read(tmp_path / "one.json")) == ["a"]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"id": "x", "titulo": "t", "texto": "a"}, "texto"),
        ({"url": "x", "Content": "a"}, "Content"),
        ({"n": 1, "prosa": "a"}, "prosa"),
        ({"TEXT": "a", "texto": "b"}, "TEXT"),
        ({"texto": "a", "content": "b"}, None),
        ({"pergunta": "a", "resposta": "b"}, None),
        ({"n": 1}, None),
    ],
)
def test_the_only_text_is_taken_and_said(
    tmp_path: Path, row: dict[str, object], column: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    pyarrow.parquet.write_table(pyarrow.table({name: [value] for name, value in row.items()}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        if column is None:
            with pytest.raises(
                InputError, match=f"text_column=text: .* has no such .*It has {', '.join(row)}. Name the"
            ):
                read(tmp_path / name)
        else:
            assert texts(read(tmp_path / name)) == ["a"]
            assert f"its column {column!r} is taken as the text" in capsys.readouterr().out or name == "a.parquet"
    with pytest.raises(InputError, match="text_column=corpo: .* has no such"):
        read(tmp_path / "a.jsonl", text_column="corpo")


QUOTED = "“É” – disse a avó: não há pão, mamãe…"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_encodings_are_recognised_file_by_file(
    tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0.txt").write_text("coração", encoding="utf-8")
    for name, text in (
        ("a.txt", QUOTED), ("b.csv", f"text\n{QUOTED}\n"), ("c.jsonl", json.dumps({"text": QUOTED}, ensure_ascii=False))
    ):  # fmt: skip
        (tmp_path / name).write_bytes((text * (50 if name == "a.txt" else 1)).encode(encoding))
    (tmp_path / "b.csv").unlink()
    (tmp_path / "c.jsonl").unlink()
    assert texts(read(tmp_path)) == ["coração", QUOTED * 50]
    assert ("is not UTF-8 and is read as" in capsys.readouterr().out) == (not encoding.startswith("utf-8"))


def test_a_given_encoding_is_obeyed_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("não há pão".encode("cp850"))
    with pytest.raises(InputError, match="byte 1 is not valid UTF-8"):
        read(path)
    assert texts(read(path, encoding="cp850")) == ["não há pão"]
    for wrong in ("rot13", "nada", "ascii", "unicode_escape", "idna", "a\0b"):
        with pytest.raises(InputError, match="encoding=.*: is no encoding of Portuguese text. Give one such as utf-8"):
            read(path, encoding=wrong)
    path.write_bytes(b"abc")
    with pytest.raises(InputError, match="is not valid utf-16"):
        read(path, encoding="utf-16")


def test_damaged_parquet_files_are_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["bom"], "texto_b": ["x"]}), tmp_path / "good.parquet")
    good = (tmp_path / "good.parquet").read_bytes()
    path = tmp_path / "bad.parquet"
    path.write_bytes(good.replace(b"texto_b", b"\xff\xfexto_b"))
    with pytest.raises(InputError, match="inputs=.*bad.parquet: "):
        read(path)
    draw = random.Random(0)
    for _ in range(60):  # whatever breaks is an InputError, or nothing that is read
        broken = bytearray(good)
        broken[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        with contextlib.suppress(InputError):
            read(path)


def test_a_long_line_and_many_files_take_time_in_proportion(tmp_path: Path) -> None:
    """Work is counted, not time: parts of a line are joined once, and names are looked up, never searched."""
    from teenytinyllama.data.input_files import SourceFile, hash_files
    from teenytinyllama.data.readers import lines_of

    parts = ["x" * 1000] * 1000
    assert [len(line) for line in lines_of(iter([*parts, "\ny"]))] == [1_000_000, 1]
    path = tmp_path / "a.txt"
    path.write_text("a")
    names = ["a.txt"] * 3000 + ["a.txt (2)", "b.txt"]
    hashes = hash_files([SourceFile(name, path) for name in names])
    assert len(hashes) == 3002
    assert list(hashes)[:3] == ["a.txt", "a.txt (2)", "a.txt (3)"]


@pytest.mark.parametrize("fraction", [0.01, 1e-9])
def test_small_corpora_hold_one_document_out(tmp_path: Path, fraction: float) -> None:
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"texto {number}")
    found = read(tmp_path, validation_fraction=fraction)
    held_out = [document.text for split, document in found if split == "validation"]
    assert len(held_out) == 1
    assert held_out == texts([item for item in read(tmp_path, validation_fraction=fraction) if item[0] == "validation"])
    assert not any(split == "validation" for split, _ in read(tmp_path, validation_fraction=0.0)), "as asked"
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "a.txt").write_text(held_out[0])
    grown = read(tmp_path, validation_fraction=fraction)
    assert [document.text for split, document in grown if split == "validation"] == held_out * 2, "copies go with it"


def test_two_documents_are_one_on_each_side(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(jsonl([f"um {number}", f"dois {number}"]))
        assert sorted(split for split, _ in read(path, validation_fraction=0.5)) == ["train", "validation"]


def test_of_a_single_document_the_last_part_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "livro.txt"
    paragraphs = [f"Parágrafo {number}. " + "Era uma vez um gato. " * 20 for number in range(200)]
    path.write_text("\n\n".join(paragraphs))
    corpus = Corpus(CorpusConfig(inputs=[str(path)], validation_fraction=0.05))
    (first, beginning), (second, end) = corpus.documents()
    assert (first, second) == ("train", "validation")
    assert f"{beginning.text}\n\n{end.text}" == path.read_text().replace(" \n", "\n").rstrip() or (
        beginning.text + end.text
    ).replace(" ", "").replace("\n", "") == path.read_text().replace(" ", "").replace("\n", "")
    assert end.text.startswith("Parágrafo ")
    assert 0.03 < len(end.text) / len(path.read_text()) < 0.07
    assert corpus.split_exception is not None
    assert corpus.split_exception.note == (
        "validation_fraction=0.05: there is one document alone, so its last part is held out: scores are of the same "
        "document"
    )
    path.write_text("curto")
    assert [split for split, _ in read(path)] == ["train"], "too short to be cut"


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("a" * 75 + "\n\n" + "b" * 25, "b" * 25),
        ("palavra " * 20 + "Fim. Novo começo da frase aqui.", "Novo começo da frase aqui."),
        ("verso um\n" * 12, None),
        ("x" * 100, ""),
        ("uma palavra e outra " * 10, None),
    ],
)
def test_texts_are_cut_at_the_best_boundary(text: str, end: str | None) -> None:
    beginning, found = cut_last_part(text, 0.2)
    assert end is None or found == end
    assert found == "" or (text.startswith(beginning) and text.rstrip().endswith(found.rstrip()))
