"""What `ttl corpus` reads and what it refuses: files of every kind, broken rows, instructions, and each error's message."""

import gzip
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import HubServer
from test_corpus_factory import PHONE, config, make, stories, text

from teenytinyllama.arguments import build
from teenytinyllama.checks import EXIT_BAD_INPUT, InputError
from teenytinyllama.cli import main
from teenytinyllama.corpus.config import STEP_NAMES, BuildConfig, SourceConfig
from teenytinyllama.corpus.factory import refuse_benchmarks
from teenytinyllama.corpus.shards import BrokenRow, Draft, WorkShard, plan_shards, read_drafts

pytest.importorskip("datatrove")
pytest.importorskip("resiliparse")

OFF = dict.fromkeys(STEP_NAMES, False)


def one_source(folder: Path, path: Path | str, **keys: Any) -> dict[str, Any]:
    """A config of one source with no step on."""
    source = {"inputs": [str(path)], "license": "cc0-1.0", **keys}
    return {"output_dir": str(folder / "out"), "sources": {"one": source}, "workers": 1, **OFF}


def texts_of(out: Path) -> list[str]:
    return [row["text"] for path in sorted((out / "train").glob("*.parquet"))
            for row in pyarrow.parquet.read_table(path).to_pylist()]  # fmt: skip


def drafts(path: Path, **keys: Any) -> list[Draft | BrokenRow]:
    shard = WorkShard(0, "one", str(path), path.name)
    return list(read_drafts(shard, build(SourceConfig, {"inputs": [str(path)], "license": "cc0-1.0", **keys})))


# --- Kinds of files


def write_archive(path: Path, pages: list[tuple[str, bytes, str, str]]) -> None:
    """Write a web archive with a request, an image and an error page beside the pages (url, content, type, status)."""
    from fastwarc.warc import WarcRecord, WarcRecordType

    with path.open("wb") as file:
        rows = [*pages, ("http://x/pic", b"\x89PNG", "image/png", "200 OK"),
                ("http://x/gone", b"<p>Not found</p>", "text/html", "404 Not Found")]  # fmt: skip
        for url, content, kind, status in rows:
            record = WarcRecord()
            record.init_headers(WarcRecordType.response, b"0" * 36)
            record.headers["WARC-Target-URI"] = url
            record.headers["Content-Type"] = "application/http; msgtype=response"
            head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
            if url.endswith("packed"):
                content, head = gzip.compress(content), head + "Content-Encoding: gzip\r\n"
            record.set_bytes_content(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            buffer = io.BytesIO()
            record.write(buffer)
            # One gzip member a record, as crawlers write them.
            file.write(gzip.compress(buffer.getvalue()) if path.name.endswith(".gz") else buffer.getvalue())


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_a_web_archive_gives_its_pages_and_their_encodings(tmp_path: Path, name: str) -> None:
    pytest.importorskip("fastwarc")
    page = "<html><body><p>{}</p></body></html>"
    first, second, third = (text(number) for number in (100, 101, 102))
    write_archive(tmp_path / name, [
        ("http://x/utf8", page.format(first).encode(), "text/html; charset=utf-8", "200 OK"),
        ("http://x/latin", page.format(second).encode("cp1252"), "text/html; charset=windows-1252", "200 OK"),
        ("http://x/packed", page.format(third).encode(), "text/html", "200 OK"),
    ])  # fmt: skip
    out = make(one_source(tmp_path, tmp_path / name) | {"html": {}})
    found = texts_of(out)
    assert [row.split()[:30] for row in found] == [row.split()[:30] for row in (first, second, third)]
    rows = pyarrow.parquet.read_table(out / "train" / "00000.parquet").to_pylist()
    assert [row["metadata"]["url"] for row in rows] == ["http://x/utf8", "http://x/latin", "http://x/packed"]


def test_a_web_archive_that_is_cut_off_keeps_what_comes_before(tmp_path: Path) -> None:
    pytest.importorskip("fastwarc")
    pages = [(f"http://x/{number}", f"<p>{text(number)}</p>".encode(), "text/html", "200 OK") for number in range(30)]
    whole, cut = tmp_path / "a.warc.gz", tmp_path / "cut.warc.gz"
    write_archive(whole, pages)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    found = drafts(cut)
    assert 3 < len(found) < 30
    assert isinstance(found[-1], BrokenRow)
    assert "cut off: " in found[-1].reason
    assert found[-1].place == f"cut.warc.gz:{len(found)}"
    whole_again = bytearray(whole.read_bytes())
    whole_again[len(whole_again) // 2] ^= 0xFF
    cut.write_bytes(bytes(whole_again))
    damaged = [row for row in drafts(cut) if isinstance(row, BrokenRow)]
    assert damaged
    (tmp_path / "none.warc").write_bytes(b"no archive at all\n" * 50)
    with pytest.raises(InputError, match=r"sources.one.inputs=.*none.warc: holds no answer of a server"):
        drafts(tmp_path / "none.warc")


def test_pages_as_files_of_their_own_in_an_old_encoding(tmp_path: Path) -> None:
    folder = tmp_path / "paginas"
    folder.mkdir()
    for number in range(3):
        page = f"<html><head><title>x</title></head><body><p>{text(number)}</p></body></html>"
        (folder / f"{number}.html").write_bytes(page.encode("cp1252"))
    out = make(one_source(tmp_path, folder) | {"html": {}})
    assert [row.split()[:30] for row in texts_of(out)] == [text(number).split()[:30] for number in range(3)]
    passport = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    assert passport["sources"]["one"]["steps"]["html"]["changes"]["pages_in_cp1252"] == 3


def test_compressed_jsonl_and_a_csv_in_an_old_encoding(tmp_path: Path) -> None:
    rows = [json.dumps({"texto": text(number), "id": number}, ensure_ascii=False) for number in range(4)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    assert texts_of(make(one_source(tmp_path, tmp_path / "a.jsonl.gz"))) == [text(number) for number in range(4)]
    (tmp_path / "b.csv").write_bytes("id;texto\n1;ação é união\n".encode("cp1252"))
    assert [draft.text for draft in drafts(tmp_path / "b.csv")] == ["ação é união"]


HUB_CLIENT = "import sys; from teenytinyllama.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
def test_a_hub_dataset_is_read_at_its_commit_and_refused_without(tmp_path: Path) -> None:
    data = tmp_path / "hub" / "datasets" / "ana" / "contos" / "main" / "data"
    data.mkdir(parents=True)
    (data / "train.jsonl").write_text("\n".join(json.dumps({"text": text(number)}) for number in range(3)))
    with HubServer(tmp_path / "hub") as server:
        commit = server.commit("ana/contos", repo_type="dataset")
        environment = server.environment(tmp_path / "home")
        for revision, code, said in ((commit, 0, ""), ("main", EXIT_BAD_INPUT, "'main' can move. Pin the 40-digit")):
            file = tmp_path / "corpus.yaml"
            keys = one_source(tmp_path, f"hf://datasets/ana/contos@{revision}")
            file.write_text(json.dumps(keys), encoding="utf-8")
            done = subprocess.run([sys.executable, "-c", HUB_CLIENT, "corpus", "--config", str(file)], env=environment,
                                  capture_output=True, text=True, check=False)  # fmt: skip
            assert done.returncode == code, done.stderr
            assert said in done.stderr
    assert texts_of(tmp_path / "out") == [text(number) for number in range(3)]


def test_a_shard_reads_the_row_groups_that_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "big.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"{number} " + "x" * 5000 for number in range(1000)]}), path,
                                row_group_size=100, compression="none", use_dictionary=False)  # fmt: skip
    keys = one_source(tmp_path, path) | {"shard_rows_megabytes": 1}
    shards = plan_shards(build(BuildConfig, keys))
    assert len(shards) > 3
    source = build(BuildConfig, keys).source_configs["one"]
    rows = [int(draft.text.split()[0]) for shard in shards for draft in read_drafts(shard, source)]
    assert rows == list(range(1000))


# --- Broken rows


def test_broken_rows_are_kept_in_a_file_with_their_reasons(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text(number)}) for number in range(20)]
    lines[2], lines[5], lines[7], lines[9] = '{"text": "abc', '{"texto": "x"}', '{"text": 3}', '{"text": "\\ud83d"}'
    lines[11] = '["x"]'
    path = tmp_path / "web.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    keys = one_source(tmp_path, path)
    with pytest.raises(
        InputError,
        match=r"sources.one: 5 of 20 rows cannot be read, .*max_broken_share=0.01; such as .*web.jsonl:\d+ \(",
    ):
        make(keys)
    out = make(keys | {"max_broken_share": 0.3})
    assert len(texts_of(out)) == 15
    kept = [json.loads(line) for line in (out / "work" / "broken_rows.jsonl").read_text("utf-8").splitlines()]
    reasons = {row["place"]: row["reason"] for row in kept}
    assert list(reasons) == [f"web.jsonl:{number}" for number in (3, 6, 8, 10, 12)]
    assert reasons["web.jsonl:3"].startswith("not JSON (Unterminated string")
    assert reasons["web.jsonl:6"] == "no key text"
    assert reasons["web.jsonl:8"] == "text holds int, not text"
    assert reasons["web.jsonl:10"] == "text is not valid Unicode"
    assert reasons["web.jsonl:12"] == "not a JSON object"
    assert kept[0]["content"] == lines[2]


def test_a_row_of_parquet_with_bytes_that_are_no_text_is_broken_alone(tmp_path: Path) -> None:
    texts = pyarrow.array([text(0).encode(), b"a\xff\xfeb", text(1).encode()], pyarrow.binary()).cast(
        pyarrow.string(), safe=False
    )
    buffers = pyarrow.array([text(0).encode(), b"a\xff\xfeb", text(1).encode()], pyarrow.binary()).buffers()
    texts = pyarrow.StringArray.from_buffers(3, buffers[1], buffers[2])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "bad.parquet")
    found = drafts(tmp_path / "bad.parquet")
    assert [type(row).__name__ for row in found] == ["Draft", "BrokenRow", "Draft"]
    assert isinstance(found[1], BrokenRow)
    assert "utf-8" in found[1].reason
    assert found[1].place == "bad.parquet:2"


# --- Instructions


def test_a_damaged_row_group_is_left_out_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"{text(number % 100)} {number}" for number in range(400)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=10)
    chunk = pyarrow.parquet.ParquetFile(path).metadata.row_group(20).column(0)
    content = bytearray(path.read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    content[begin : begin + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(bytes(content))
    found = drafts(path)
    broken = [row for row in found if isinstance(row, BrokenRow)]
    assert [row.place for row in broken] == [f"a.parquet:{number + 1}" for number in range(200, 210)]
    assert broken[0].reason.startswith("its row group is damaged after row 200 (")
    assert [row.text for row in found if isinstance(row, Draft)] == texts[:200] + texts[210:]
    part = list(read_drafts(WorkShard(0, "one", str(path), "a.parquet", 195, 205),
                            build(SourceConfig, {"inputs": [str(path)], "license": "cc0-1.0"})))  # fmt: skip
    assert [isinstance(row, BrokenRow) for row in part] == [False] * 5 + [True] * 5
    with pytest.raises(
        InputError, match=r"sources.one: 10 of 400 rows cannot be read, .*its row group is damaged after"
    ):
        make(one_source(tmp_path, path))
    assert len(texts_of(make(one_source(tmp_path, path) | {"max_broken_share": 0.05}))) == 390


def test_instructions_of_every_form_become_turns_of_text(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "system", "content": "Seja breve."}, {"role": "user", "content": "Oi?"},
                      {"role": "assistant", "content": "Olá."}]},
        {"instruction": "Traduza.", "input": "dog", "output": "cão"},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"prompt": "Cor do céu?", "chosen": "Azul.", "rejected": "Verde.", "source": "pares", "license": "mit"},
        {"nada": 1},
    ]  # fmt: skip
    path = tmp_path / "instrucoes.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n{", encoding="utf-8")
    found = drafts(path, conversations=True)
    assert [row.text for row in found if isinstance(row, Draft)] == [
        "Seja breve.\n\nPergunta: Oi?\n\nResposta: Olá.",
        "Pergunta: Traduza.\n\ndog\n\nResposta: cão",
        "Pergunta: 2+2?\n\nResposta: 4",
        "Pergunta: Cor do céu?\n\nResposta: Azul.",
    ]
    assert [row.reason.partition(" (")[0] for row in found if isinstance(row, BrokenRow)] == [
        "no known form",
        "not JSON",
    ]
    assert isinstance(found[3], Draft)
    assert (found[3].license, found[3].notes) == ("mit", {"origin": "pares"})


def test_a_conversation_with_an_evaluation_item_goes_as_a_whole(tmp_path: Path) -> None:
    rows = [
        {"question": f"Resuma o texto em uma frase.\n\n{text(number)}", "answer": text(number + 40)}
        for number in range(6)
    ]
    path, exam = tmp_path / "instrucoes.jsonl", tmp_path / "exam.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    exam.write_text(json.dumps({"q": text(2)[:120]}) + "\n", encoding="utf-8")
    keys = one_source(tmp_path, path, conversations=True)
    keys["decontamination"] = {"sets": {"exam": {"inputs": [str(exam)], "columns": ["q"]}}, "margin": 0}
    out = make(keys)
    steps = json.loads((out / "passport.json").read_text(encoding="utf-8"))["sources"]["one"]["steps"]
    assert steps["decontamination"]["reasons"] == {"contamination": 1}
    assert steps["decontamination"]["changes"] == {"passages_of_exam": 1}
    assert all(row.startswith("Pergunta: Resuma") and "Resposta: " in row for row in texts_of(out))
    assert len(texts_of(out)) == 5


@pytest.mark.slow
def test_all_real_instructions_become_text_and_faquad_is_found_in_them(tmp_path: Path, real_data: Path) -> None:
    keys = one_source(tmp_path, real_data / "instruct", conversations=True)
    keys["decontamination"] = {"sets": {"faquad": {"inputs": [str(real_data / "eval" / "faquad.parquet")],
                                                   "columns": ["context", "question"]}}}  # fmt: skip
    out = make(keys)
    steps = json.loads((out / "passport.json").read_text(encoding="utf-8"))["sources"]["one"]["steps"]
    assert steps["read"]["documents_in"] == 21427
    assert steps["read"]["reasons"] == {}
    assert steps["decontamination"]["changes"]["passages_of_faquad"] > 1100
    assert steps["decontamination"]["reasons"]["contamination"] > 1000
    assert not (out / "work" / "broken_rows.jsonl").exists()


# --- Errors: field, value, fix, exit code 2


def refused(tmp_path: Path, keys: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message of a command that is refused with exit code 2."""
    file = tmp_path / "corpus.yaml"
    file.write_text(json.dumps(keys), encoding="utf-8")
    assert main(["corpus", "--config", str(file)]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_source_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(tmp_path, one_source(tmp_path, tmp_path / "nada.parquet"), capsys)
    assert "sources.one.inputs=" in said
    assert "no such file or folder, and no file matches it as a glob" in said
    (tmp_path / "x.parquet").write_bytes(b"PAR1 this is none")
    said = refused(tmp_path, one_source(tmp_path, tmp_path / "x.parquet"), capsys)
    assert f"sources.one.inputs={tmp_path / 'x.parquet'}: cannot be read as parquet (" in said
    (tmp_path / "x.docx").write_bytes(b"PK")
    said = refused(tmp_path, one_source(tmp_path, tmp_path / "x.docx"), capsys)
    assert "x.docx: unknown kind of file. Known are .parquet, .jsonl," in said
    assert ".txt (all but parquet also as .gz or .zst), .html, .htm, .warc, .warc.gz." in said
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "m": [["a"], ["b"]]}), tmp_path / "n.parquet")
    said = refused(tmp_path, one_source(tmp_path, tmp_path / "n.parquet"), capsys)
    assert "sources.one.text_column=text: " in said
    assert "Name the one that holds the documents" in said
    said = refused(tmp_path, one_source(tmp_path, tmp_path / "n.parquet", text_column="n"), capsys)
    assert "sources.one.text_column=n: of " in said
    assert "holds int64, not text. Name the column that holds the documents." in said
    said = refused(tmp_path, one_source(tmp_path, tmp_path / "n.parquet", html_column="m"), capsys)
    assert "html_column=m: of " in said
    said = refused(tmp_path, one_source(tmp_path, tmp_path / "n.parquet", html_column="pagina"), capsys)
    assert "sources.one.html_column=pagina: " in said
    assert "It has n, m." in said
    (tmp_path / "a.jsonl").write_text('{"text": "a", "endereco": "b"}\n', encoding="utf-8")
    for column in ("html_column", "url_column"):
        said = refused(tmp_path, one_source(tmp_path, tmp_path / "a.jsonl", **{column: "enderecos"}), capsys)
        assert f"sources.one.{column}=enderecos: {tmp_path / 'a.jsonl'} has no such column. Did you mean" in said
    said = refused(tmp_path, one_source(tmp_path, "hf://datasets/ana/contos"), capsys)
    assert "not of the form hf://datasets/user/name@commit" in said


@pytest.mark.parametrize(("change", "message"), [
    ({"license": ""}, "sources.news.license: is missing. Nobody may use a corpus whose licence is not known."),
    ({"license": None}, "sources.news.license=None: wrong type (NoneType). It must be text."),
    ({"encoding": "cp9999"}, "sources.news.encoding=cp9999: is no encoding of Portuguese text. Give one such as utf-8"),
    ({"url_column": "endereco"}, "sources.news.url_column=endereco: "),
    ({"license": "minha"}, "sources.news.license=minha: the Hub takes its own names of licences only."),
    ({"inputs": []}, "sources.news.inputs: is empty"),
    ({"weight": 0}, "sources.news.weight=0.0: must be positive. Leave the source out instead of 0."),
    ({"weight": 9}, "sources.news.weight=9: more than max_epochs=4 times. Lower one, or raise the other."),
    ({"share": 0.5}, "sources: laws have no share, and others have one. Give each source a share, or none."),
    ({"share": 1.5}, "sources.news.share=1.5: must be at most 1."),
    ({"peso": 1}, "sources.news.peso: unknown key"),
    ({"steps": {"toxicity": {}}}, "sources.news.steps.toxicity: no such step of a source. There are html, normalise"),
    ({"steps": {"qualty": {}}}, "sources.news.steps.qualty: no such step of a source. Did you mean 'quality'?"),
    ({"steps": {"quality": True}}, "sources.news.steps.quality=True: must be a mapping of settings, or false"),
    ({"steps": {"quality": None}}, "sources.news.steps.quality=None: must be a mapping of settings, or false"),
    ({"steps": {"language": {"language": "xx"}}}, "sources.news.steps.language.language=xx: is not known"),
    ({"steps": {"quality": {"min_word": 3}}}, "sources.news.steps.quality.min_word: unknown key. Did you mean 'min_"),
])  # fmt: skip
def test_a_source_that_cannot_be_is_named(
    tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = config(tmp_path)
    keys["sources"]["news"] |= change
    assert message in refused(tmp_path, keys, capsys)


def test_a_source_without_a_licence_or_a_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = config(tmp_path)
    del keys["sources"]["news"]["license"]
    said = refused(tmp_path, keys, capsys)
    assert "sources.news.license: is missing. Nobody may use a corpus whose licence is not known." in said
    keys = config(tmp_path)
    keys["sources"][" "] = keys["sources"].pop("news")
    assert "sources: one has no name. Name each source." in refused(tmp_path, keys, capsys)


def test_a_name_that_yaml_reads_as_a_number_is_a_name(tmp_path: Path) -> None:
    keys = one_source(tmp_path, tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text(1)}), encoding="utf-8")
    out = make(keys | {"sources": {2024: keys["sources"]["one"]}})
    assert list(json.loads((out / "passport.json").read_text(encoding="utf-8"))["sources"]) == ["2024"]


@pytest.mark.parametrize(("change", "message"), [
    ({"workers": 0}, "workers=0: must be at least 1."),
    ({"shard_rows_megabytes": 0}, "shard_rows_megabytes=0: must be at least 1."),
    ({"max_broken_share": 1.5}, "max_broken_share=1.5: must be at most 1."),
    ({"max_broken_share": -1}, "max_broken_share=-1: must be at least 0."),
    ({"mixing": {"validation_fraction": 0.9}}, "mixing.validation_fraction=0.9: must lie between 0 and 0.5."),
    ({"mixing": {"shard_megabytes": 0}}, "mixing.shard_megabytes=0: must be 1 or more. 256 is usual."),
    ({"mixing": {"total_tokens": -5}}, "mixing.total_tokens=-5.0: must be positive."),
    ({"mixing": {"tokeniser": "x"}}, "mixing.tokeniser: unknown key. Did you mean 'tokenizer'? Known are tokenizer,"),
    ({"duplicates": {"prefer": ["jornais"]}}, "duplicates.prefer=jornais: no such source. Sources: news, laws."),
    ({"duplicates": {"prefer": 3}}, "duplicates.prefer=3: must be a list of sources."),
    ({"duplicates": {"threshold": 75}}, "duplicates.threshold=75.0: must be above 0 and at most 1."),
    ({"duplicats": {}}, "duplicats: unknown key. Did you mean 'duplicates'?"),
    ({"decontamination": {"sets": {"oab": {"inputs": "a", "columns": "q", "split": "test"}}}},
     "decontamination.sets.oab.split: unknown key. Known are inputs, columns."),
])  # fmt: skip
def test_a_setting_outside_its_range_is_refused_before_any_work(
    tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(tmp_path, config(tmp_path) | change, capsys)
    assert not (tmp_path / "out").exists()


def test_one_set_one_column_and_one_source_need_no_list(tmp_path: Path) -> None:
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"q": text(7).removesuffix(PHONE)}) + "\n", encoding="utf-8")
    sets = {"exam": {"inputs": str(exam), "columns": "q"}}
    keys = config(tmp_path) | {"decontamination": {"sets": sets}, "duplicates": {"prefer": "laws"}}
    out = make(keys)
    passport = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    assert passport["sources"]["news"]["steps"]["decontamination"]["changes"] == {"passages_of_exam": 1}
    assert passport["contamination"] == {"passages": {"exam": 1}, "documents": 1}
    said = "Passages of evaluation sets that were removed: exam 1. Documents that went as a whole for one: 1."
    for name in ("passport.md", "passport.html"):
        assert said in (out / name).read_text(encoding="utf-8")


def test_a_source_can_switch_a_step_on_that_is_off_for_all(tmp_path: Path) -> None:
    keys = config(tmp_path) | {"quality": False}
    keys["sources"]["news"]["steps"] = {"quality": {}}
    sources = json.loads((make(keys) / "passport.json").read_text(encoding="utf-8"))["sources"]
    assert ("quality" in sources["news"]["steps"], "quality" in sources["laws"]["steps"]) == (True, False)


def test_weights_and_shares_that_do_not_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = config(tmp_path)
    keys["sources"]["news"] |= {"share": 0.5, "weight": 1}
    keys["sources"]["laws"] |= {"share": 0.4}
    assert "sources: the shares add up to 0.9. They must add up to 1." in refused(tmp_path, keys, capsys)
    keys["sources"]["laws"]["share"] = 0.5
    keys["mixing"] = {"total_tokens": 1e9}
    said = refused(tmp_path, keys, capsys)
    assert "mixing.total_tokens=1,000,000,000: would read laws" in said
    assert "more than max_epochs=4. At most" in said
    keys = config(tmp_path) | {"mixing": {"total_tokens": 1000}}
    assert "mixing.total_tokens=1000.0: needs a share of every source." in refused(tmp_path, keys, capsys)


def test_an_empty_result_names_the_step_that_emptied_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = config(tmp_path) | {"language": {"language": "de"}}
    said = refused(tmp_path, keys, capsys)
    assert "sources: no document is left of any source" in said
    assert "news: language (language is pt: 42 of 43 documents)" in said
    assert "laws: language (language is pt: 12 of 12 documents)" in said
    keys = config(tmp_path)
    keys["sources"]["news"] |= {
        "share": 0.5,
        "weight": 1,
        "steps": {"quality": {"min_words": 90000, "max_words": 10**6}},
    }
    keys["sources"]["laws"] |= {"share": 0.5}
    said = refused(tmp_path, keys, capsys)
    assert "sources.news: no document is left, and it has a share" in said
    assert "quality (few_words: " in said
    for source in keys["sources"].values():
        del source["share"]
    make(keys | {"output_dir": str(tmp_path / "laws alone")})
    said = capsys.readouterr().out
    assert "warning: sources.news: no document is left; the last were dropped by quality (few_words: " in said
    assert f"next: {tmp_path / 'laws alone' / 'train'} as the inputs of `ttl tokenizer` and `ttl pack`" in said
    (tmp_path / "empty.jsonl").write_text("\n\n", encoding="utf-8")
    said = refused(tmp_path, one_source(tmp_path, tmp_path / "empty.jsonl"), capsys)
    assert "one: the source itself, which has no document. Check what its files hold." in said


def test_evaluation_data_as_a_source_under_whatever_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = config(tmp_path)
    exam, copy = tmp_path / "exam.jsonl", tmp_path / "raw" / "harmless.jsonl"
    exam.write_text(json.dumps({"text": text(50), "q": text(51)[:300]}) + "\n", encoding="utf-8")
    keys["decontamination"] = {"sets": {"exam": {"inputs": [str(exam)], "columns": ["q"]}}}
    keys["sources"]["web"] = {"inputs": [str(exam)], "license": "cc0-1.0"}
    assert f"sources.web.inputs={exam}: is a file of the evaluation set exam" in refused(tmp_path, keys, capsys)
    shutil.copy(exam, copy)
    keys["sources"]["web"]["inputs"] = [str(copy)]
    said = refused(tmp_path, keys, capsys)
    assert f"sources.web.inputs={copy}: is a copy of {exam}, a file of the evaluation set exam" in said
    assert "Leave it out." in said
    keys["decontamination"]["sets"]["exam"]["columns"] = ["pergunta"]
    assert "decontamination.sets.exam." in refused(tmp_path, keys, capsys)
    keys["decontamination"]["sets"]["exam"]["inputs"] = [str(tmp_path / "nada.jsonl")]
    assert "decontamination.sets.exam.inputs=" in refused(tmp_path, keys, capsys)


def test_what_ttl_evaluate_asks_is_no_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, task in (("oab.jsonl", "oab"), ("ENEM_2022.jsonl.gz", "enem"), ("mmlu_pt_val.jsonl", "mmlu")):
        (tmp_path / name).write_bytes(b"")
        said = refused(tmp_path, one_source(tmp_path, tmp_path / name), capsys)
        assert f"{name}: has the name under which `ttl evaluate` looks for the benchmark {task}. A corpus must" in said
        assert "if it is something else, give the file another name." in said
    shard = [WorkShard(0, "one", "/cache/test.parquet", "test.parquet")]
    keys = one_source(tmp_path, f"hf://datasets/eduagarcia/oab_exams@{'0' * 40}")
    with pytest.raises(InputError, match=r"sources.one.inputs=eduagarcia/oab_exams: is the benchmark oab of `ttl eva"):
        refuse_benchmarks(build(BuildConfig, keys), shard)
    keys = one_source(tmp_path, f"hf://datasets/eduagarcia/oab_news@{'0' * 40}")
    refuse_benchmarks(build(BuildConfig, keys), shard)


def test_evaluation_data_in_another_form_is_taken_out_and_warned_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = config(tmp_path)
    items = [" ".join(text(number).split()[:60]) for number in range(200, 210)]
    exam, copy = tmp_path / "exam.jsonl", tmp_path / "raw" / "web.csv"
    exam.write_text("\n".join(json.dumps({"q": item}) for item in items), encoding="utf-8")
    copy.write_text("text\n" + "\n".join('"' + item.replace('"', '""') + '"' for item in items), encoding="utf-8")
    keys["sources"]["web"] = {"inputs": [str(copy)], "license": "cc0-1.0"}
    keys["decontamination"] = {"sets": {"exam": {"inputs": [str(exam)], "columns": ["q"]}}}
    out = make(keys | {"language": False, "quality": False})
    said = ("sources.web: 10 of the 10 documents that came to decontamination are little more than items of evaluation "
            "sets. If it is evaluation data, leave it out.")  # fmt: skip
    assert f"warning: {said}" in capfd.readouterr().out
    assert said in (out / "passport.md").read_text(encoding="utf-8")
    assert "sources.news" not in (out / "passport.md").read_text(encoding="utf-8")
    make(config(tmp_path))
    assert "warning: decontamination is left out: no evaluation set is named." in capfd.readouterr().out


def test_another_evaluation_file_under_the_same_name_is_worked_by(tmp_path: Path) -> None:
    keys, exam = config(tmp_path), tmp_path / "exam.jsonl"
    keys["decontamination"] = {"sets": {"exam": {"inputs": [str(exam)], "columns": ["q"]}}, "margin": 0}
    counts = []
    for number in (5, 355):  # the second is in no source
        exam.write_text(json.dumps({"q": stories()[number][:200]}) + "\n", encoding="utf-8")
        out = make(keys)
        steps = json.loads((out / "passport.json").read_text(encoding="utf-8"))["sources"]["news"]["steps"]
        counts.append(steps["decontamination"]["changes"].get("passages_of_exam", 0))
    assert counts == [1, 0]


def test_a_model_that_is_missing_is_named_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = refused(tmp_path, config(tmp_path) | {"language": {"language": "xx"}}, capsys)
    assert "language.language=xx: is not known to py3langid. Use one of ace, " in said
    keys = config(tmp_path) | {"toxicity": {"model": str(tmp_path / "nada")}}
    assert f"toxicity.model={tmp_path / 'nada'}: " in refused(tmp_path, keys, capsys)
    said = refused(tmp_path, config(tmp_path) | {"toxicity": {}}, capsys)
    assert "toxicity.model: missing. Write it in the YAML file." in said
    keys = config(tmp_path) | {"mixing": {"tokenizer": str(tmp_path / "nada")}}
    assert f"mixing.tokenizer={tmp_path / 'nada'}: " in refused(tmp_path, keys, capsys)
    assert not (tmp_path / "out" / "work").exists()
    find = __import__("importlib.util").util.find_spec
    for package in ("py3langid", "resiliparse", "ftfy", "datatrove"):
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name, _package=None, left_out=package: None if name == left_out else find(name),
        )
        said = refused(tmp_path, config(tmp_path), capsys)
        assert f"{package}: not installed. Install what this needs: pip install 'teenytinyllama[corpus]'" in said


# --- Each step alone


@pytest.mark.slow
@pytest.mark.parametrize("step", [name for name in STEP_NAMES if name != "toxicity"])
def test_every_step_runs_alone(tmp_path: Path, step: str) -> None:
    keys = config(tmp_path) | OFF
    keys["sources"]["news"]["weight"] = 1
    keys["sources"]["laws"] = {"inputs": [str(tmp_path / "raw" / "laws.parquet")], "license": "public-domain",
                               "html_column" if step == "html" else "text_column": "html"}  # fmt: skip
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"q": text(7).removesuffix(PHONE)}) + "\n", encoding="utf-8")
    settings = {"decontamination": {"sets": {"exam": {"inputs": [str(exam)], "columns": ["q"]}}, "margin": 0}}
    out = make(keys | {step: settings.get(step, {})})
    passport = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    steps = passport["sources"]["news"]["steps"]
    assert set(steps) == {"read", step}
    dropped = {"language": 1, "quality": 1, "duplicates": 1}.get(step, 0)
    if step == "quality":
        assert steps[step]["documents_out"] < 43
    else:
        assert steps[step]["documents_out"] == 43 - dropped
    changes = {"personal_data": {"phone": 41}, "decontamination": {"passages_of_exam": 1}}
    assert steps[step]["changes"].items() >= changes.get(step, {}).items()
    texts = texts_of(out)
    assert ("[TELEFONE]" in "".join(texts)) == (step == "personal_data")
    assert any("<p>" in row for row in texts) == (step != "html")


def test_all_steps_off_keep_every_byte(tmp_path: Path) -> None:
    rows = ["a\r\nb", " x\u00a0", "ação", "A\u0303o decomposto", text(3)]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet")
    assert texts_of(make(one_source(tmp_path, tmp_path / "a.parquet"))) == rows


# --- The example and the names


EXAMPLE = Path(__file__).resolve().parent.parent / "recipes" / "configs" / "corpus.yaml"


def test_the_example_has_every_step_with_its_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import MISSING, fields

    from teenytinyllama.arguments import check_types, load_yaml
    from teenytinyllama.cleaning.toxicity import ToxicityConfig
    from teenytinyllama.cleaning.word_hashes import DuplicatesConfig
    from teenytinyllama.corpus.chain import STEP_CONFIGS, build_chain
    from teenytinyllama.corpus.config import MixingConfig
    from teenytinyllama.corpus.decontamination import DecontaminationConfig

    def defaults(cls: Any) -> dict[str, Any]:
        return {item.name: item.default if item.default is not MISSING else item.default_factory()  # type: ignore[misc]
                for item in fields(cls) if item.default is not MISSING or item.default_factory is not MISSING}  # fmt: skip

    written = EXAMPLE.read_text(encoding="utf-8")
    values = load_yaml(written, "corpus.yaml")
    whole = build(BuildConfig, check_types(BuildConfig, values))
    for name in whole.source_configs:
        assert build_chain(whole, name)
    for name, cls in {**STEP_CONFIGS, "duplicates": DuplicatesConfig, "mixing": MixingConfig}.items():
        expected = {key: value for key, value in defaults(cls).items() if key != "stop_words"}
        assert {key: value for key, value in values[name].items() if key != "prefer"} == expected, name
    assert values["duplicates"]["prefer"] == []
    for key, value in defaults(BuildConfig).items():
        if key not in {**STEP_CONFIGS, "duplicates": 0, "mixing": 0, "sample": 0}:
            assert values[key] == value, key
    # What stands there as a comment is right, too.
    lines = written.splitlines()
    for name, cls in (("toxicity", ToxicityConfig), ("decontamination", DecontaminationConfig)):
        start = lines.index(f"# {name}:")
        block = [line[2:] for line in lines[start + 1 :]]
        block = block[: next(place for place, line in enumerate(block) if not line.startswith("  "))]
        found = load_yaml("\n".join(block), name)
        own = {key: value for key, value in found.items() if key not in ("model", "sets", "toxic_is")}
        assert own == {key: value for key, value in defaults(cls).items() if key != "toxic_is"}, name
    assert "nicholasKluge/ToxicityModelPT" in written


def test_the_recipe_and_the_command_make_the_same(tmp_path: Path) -> None:
    file, recipe = tmp_path / "corpus.yaml", EXAMPLE.parent.parent / "corpus.py"
    file.write_text(json.dumps(config(tmp_path)), encoding="utf-8")
    done = subprocess.run([sys.executable, str(recipe), "--config", str(file), "--quality", "false", "--language", "false"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out")
    steps = json.loads((tmp_path / "out" / "passport.json").read_text("utf-8"))["sources"]["news"]["steps"]
    assert set(steps) == {"read", "html", "normalise", "boilerplate", "personal_data", "duplicates"}


def test_help_names_the_steps_and_says_where_their_keys_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"--{name}" in said for name in STEP_NAMES)
    assert "recipes/configs/corpus.yaml" in said
    assert "Any" not in said
