"""Mixing, shards, funnel and config of the corpus stage, each by itself."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.corpus.chain import plan_shares, render_shares, repetitions
from teenytinyllama.corpus.config import BuildConfig, MixingConfig, SourceConfig
from teenytinyllama.corpus.documents import Funnel
from teenytinyllama.corpus.shards import (
    BrokenRow,
    Draft,
    WorkShard,
    plan_shards,
    read_drafts,
    read_plan,
    text_hash,
    write_plan,
)


def source(**values: Any) -> SourceConfig:
    return SourceConfig(inputs=["x"], license="apache-2.0", **values)


def test_weights_multiply_and_shares_are_met() -> None:
    tokens, documents = {"a": 1000, "b": 500}, {"a": 10, "b": 5}
    weighted = plan_shares({"a": source(weight=1.5), "b": source()}, tokens, documents, MixingConfig())
    assert [(share.tokens, share.epochs) for share in weighted] == [(1500, 1.5), (500, 1.0)]
    # b can be read twice, so it gives 1,000 tokens, a fifth of the corpus; a gives four fifths with 4 epochs
    shares = plan_shares(
        {"a": source(share=0.8), "b": source(share=0.2, max_epochs=2)}, tokens, documents, MixingConfig()
    )
    assert [(share.tokens, share.epochs) for share in shares] == [(4000, 4.0), (1000, 2.0)]
    table = render_shares(shares, "estimated at 5 bytes a token")
    assert "80.0 %" in table
    assert "2 sources: 1.50k unique tokens become 5.00k, estimated at 5 bytes a token" in table


def test_more_tokens_than_the_epochs_allow_are_refused_with_the_most() -> None:
    sources = {"a": source(share=0.5), "b": source(share=0.5, max_epochs=2)}
    with pytest.raises(InputError, match=r"would read b 6.0 times, more than max_epochs=2. At most 2,000 tokens"):
        plan_shares(sources, {"a": 1000, "b": 500}, {"a": 1, "b": 1}, MixingConfig(total_tokens=6000))
    with pytest.raises(InputError, match="sources.b: no document is left after the steps, and it has a share"):
        plan_shares(sources, {"a": 1000, "b": 0}, {"a": 1, "b": 0}, MixingConfig())


@pytest.mark.parametrize("epochs", [0.25, 1.0, 1.5, 3.9])
def test_repetitions_meet_the_tokens_to_within_half_a_document(epochs: float) -> None:
    generator = np.random.default_rng(0)
    tokens, hashes = generator.integers(50, 500, 1000), generator.integers(0, 2**63, 1000).astype(np.uint64)
    times = repetitions(epochs, tokens, hashes)
    assert abs(int((times * tokens).sum()) - epochs * tokens.sum()) <= 250
    assert set(np.unique(times)) <= {int(epochs), int(epochs) + 1}
    order = generator.permutation(1000)
    assert (
        repetitions(epochs, tokens[order], hashes[order]) == times[order]
    ).all()  # the order of documents is nothing


def test_clusters_are_read_more_often_and_the_source_keeps_its_tokens() -> None:
    generator = np.random.default_rng(1)
    tokens, hashes = np.full(1000, 100), generator.integers(0, 2**63, 1000).astype(np.uint64)
    clusters = np.array([1] * 500 + [3] * 300 + [150] * 150 + [2000] * 50)
    times = repetitions(2.0, tokens, hashes, clusters)
    assert times.sum() == pytest.approx(2000, abs=4)
    means = [times[clusters == size].mean() for size in (1, 3, 150, 2000)]
    assert means[1] == pytest.approx(3 * means[0], rel=0.02)
    assert means[2] == pytest.approx(8 * means[0], rel=0.02)
    assert means[3] == pytest.approx(means[0], rel=0.1)  # thousands of copies: boilerplate


def build(tmp_path: Path, **sources: Any) -> BuildConfig:
    return BuildConfig(output_dir=str(tmp_path / "out"), sources=sources)


@pytest.mark.parametrize(("values", "message"), [
    ({"inputs": ["x"]}, "sources.a.license: is missing"),
    ({"inputs": ["x"], "license": "my-licence"}, r"sources.a.license=my-licence"),
    ({"inputs": [], "license": "mit"}, "sources.a.inputs: is empty"),
    ({"inputs": ["x"], "license": "mit", "weight": 0}, "sources.a.weight=0.0: must be positive"),
    ({"inputs": ["x"], "license": "mit", "weight": 5}, "sources.a.weight=5: more than max_epochs=4 times"),
    ({"inputs": ["x"], "license": "mit", "share": 1.5}, "sources.a.share=1.5: must be at most 1"),
    ({"inputs": ["x"], "license": "mit", "licence": "y"}, "sources.a.licence: unknown key. Did you mean 'license'"),
    (["x"], r"sources.a=\['x'\]: must be a mapping"),
])  # fmt: skip
def test_a_source_that_cannot_be_is_refused_by_name(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(tmp_path, a=values)


def test_shares_have_to_add_up_and_to_be_given_for_all(tmp_path: Path) -> None:
    one = {"inputs": ["x"], "license": "mit"}
    with pytest.raises(InputError, match=r"the shares add up to 0.9. They must add up to 1"):
        build(tmp_path, a=one | {"share": 0.4}, b=one | {"share": 0.5})
    with pytest.raises(InputError, match="b have no share, and others have one"):
        build(tmp_path, a=one | {"share": 1.0}, b=one)
    with pytest.raises(InputError, match="total_tokens=100.0: needs a share of every source"):
        BuildConfig("out", {"a": one}, mixing={"total_tokens": 100})
    with pytest.raises(InputError, match="sources: is empty"):
        BuildConfig("out", {})


def test_shards_depend_on_row_groups_alone_and_hold_every_document_once(tmp_path: Path) -> None:
    texts = [f"Documento {number}. " * 20 for number in range(100)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"texto": texts}), path, row_group_size=10)
    lines = tmp_path / "b.jsonl.gz"
    lines.write_bytes(
        gzip.compress(b'{"text": "um", "metadata": {"license": "CC0-1.0", "source": "x"}}\n{"text": null}\n')
    )
    config = BuildConfig(str(tmp_path / "out"), {"a": {"inputs": [str(path)], "license": "mit"},
                                                 "b": {"inputs": [str(lines)], "license": "mit"}},
                         shard_rows_megabytes=1)  # fmt: skip
    assert len(plan_shards(config)) == 2
    monkey = [shard for shard in plan_shards(config) if shard.source == "a"]
    found = [draft.text for shard in monkey for draft in read_drafts(shard, config.source_configs["a"])]
    assert found == texts
    shards = plan_shards(config)
    write_plan(tmp_path / "plan.json", shards)
    assert read_plan(tmp_path / "plan.json") == shards
    (draft,) = read_drafts(shards[-1], config.source_configs["b"])
    assert (draft.text, draft.license, draft.notes, draft.place) == ("um", "CC0-1.0", {"origin": "x"}, "b.jsonl.gz:1")


def test_a_shard_reads_its_own_row_groups_and_no_others(tmp_path: Path) -> None:
    texts = [None if number == 3 else f"Documento {number}." for number in range(40)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "url": texts}), path, row_group_size=10)
    with path.open("r+b") as file:  # the first and the last row group become unreadable
        metadata = pyarrow.parquet.read_metadata(path)
        for group in (0, 3):
            for column in (0, 1):
                file.seek(metadata.row_group(group).column(column).dictionary_page_offset or 4)
                file.write(b"\xff" * 16)
    keys: dict[str, Any] = {"inputs": [str(path)], "license": "mit"}
    for source in (SourceConfig(**keys), SourceConfig(**keys, url_column="url")):
        found = list(read_drafts(WorkShard(0, "a", str(path), "a.parquet", 12, 28), source))
        assert [draft.text for draft in found if isinstance(draft, Draft)] == texts[12:28]
        assert [found[0].place, found[-1].place] == ["a.parquet:13", "a.parquet:28"]
        found = list(read_drafts(WorkShard(0, "a", str(path), "a.parquet", 8, 28), source))
        assert [row.place for row in found if isinstance(row, BrokenRow)] == ["a.parquet:9", "a.parquet:10"]
        assert [draft.text for draft in found if isinstance(draft, Draft)] == texts[10:28]


def test_rows_without_text_keep_their_numbers(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "c"]}), path := tmp_path / "a.parquet")
    source = SourceConfig([str(path)], "mit")
    assert [draft.place for draft in read_drafts(WorkShard(0, "a", str(path), "a", 1, 3), source)] == ["a:3"]


def test_a_large_row_group_is_cut_into_rows(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    texts = ["".join(map(chr, generator.integers(33, 120, 30_000))) for _ in range(100)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    config = BuildConfig(str(tmp_path), {"a": {"inputs": [str(path)], "license": "mit"}}, shard_rows_megabytes=1)
    shards = plan_shards(config)
    assert len(shards) >= 3
    assert [draft.text for shard in shards for draft in read_drafts(shard, config.source_configs["a"])] == texts
    config.sample = 5
    (shard,) = plan_shards(config)
    assert [draft.text for draft in read_drafts(shard, config.source_configs["a"])] == [
        texts[row] for row in shard.rows or []
    ]
    assert len(shard.rows or []) == 5


def test_pages_come_from_files_columns_and_their_addresses(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_bytes("<p>Olá</p>".encode("cp1252"))
    path = tmp_path / "laws.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"html": ["<p>Lei</p>"], "url": ["http://x/1"]}), path)
    keys = {"license": "mit", "html_column": "html", "url_column": "url"}
    config = BuildConfig(str(tmp_path), {"p": {"inputs": [str(tmp_path / "page.html")], "license": "mit"},
                                         "l": {"inputs": [str(path)], **keys}})  # fmt: skip
    page, law = [next(read_drafts(shard, config.source_configs[shard.source])) for shard in plan_shards(config)]
    assert (page.is_page, page.page) == (True, "<p>Olá</p>".encode("cp1252"))
    assert (law.page, law.url, law.place) == (b"<p>Lei</p>", "http://x/1", "laws.parquet:1")
    broken = BuildConfig(str(tmp_path), {"l": {"inputs": [str(path)], **keys | {"html_column": "page"}}})
    with pytest.raises(InputError, match=r"html_column=page: .*laws.parquet has no such column. It has html, url"):
        next(read_drafts(plan_shards(broken)[0], broken.source_configs["l"]))


def test_a_web_archive_gives_its_html_responses(tmp_path: Path) -> None:
    pytest.importorskip("fastwarc")

    def record(kind: str, url: str, content_type: str, body: bytes) -> bytes:
        http = b"HTTP/1.1 200 OK\r\nContent-Type: " + content_type.encode() + b"\r\n\r\n" + body
        head = (f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{len(body):032x}>\r\n"
                f"WARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype={kind}\r\n"
                f"Content-Length: {len(http)}\r\n\r\n")  # fmt: skip
        return head.encode() + http + b"\r\n\r\n"

    page = "<p>Ação</p>".encode("cp1252")
    path = tmp_path / "crawl.warc.gz"
    path.write_bytes(b"".join(map(gzip.compress, [
        record("response", "http://x/a", "text/html; charset=windows-1252", page),
        record("response", "http://x/b", "image/png", b"x"),
    ])))  # fmt: skip
    config = build(tmp_path, w={"inputs": [str(path)], "license": "mit"})
    (draft,) = read_drafts(plan_shards(config)[0], config.source_configs["w"])
    assert (draft.page, draft.url, draft.declared, draft.is_page) == (page, "http://x/a", "windows-1252", True)


def test_instructions_become_turns_of_text(tmp_path: Path) -> None:
    path = tmp_path / "i.jsonl"
    rows = [{"messages": [{"role": "system", "content": "Seja breve."}, {"role": "user", "content": "Quem és?"},
                          {"role": "assistant", "content": "Um modelo."}]},
            {"instruction": "Some 1 e 1.", "output": "2"}, {"x": 1}]  # fmt: skip
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    config = build(tmp_path, i={"inputs": [str(path)], "license": "mit", "conversations": True})
    first, second, broken = read_drafts(plan_shards(config)[0], config.source_configs["i"])
    assert first.text == "Seja breve.\n\nPergunta: Quem és?\n\nResposta: Um modelo."
    assert second.text == "Pergunta: Some 1 e 1.\n\nResposta: 2"
    assert isinstance(broken, BrokenRow)
    assert broken.place == "i.jsonl:3"


def test_funnels_add_up_and_choose_the_same_samples_in_any_order(tmp_path: Path) -> None:
    def funnel(texts: list[str]) -> Funnel:
        made = Funnel()
        for text in texts:
            made.passed("a", "language", len(text), len(text))
            made.dropped(
                "a", "quality", len(text), "short", {"text": text, "place": "f:1", "value": 1}, text_hash(text)
            )
        return made

    texts = [f"texto {number}" for number in range(100)]
    parts = [funnel(texts[:30]), funnel(texts[30:])]
    for number, part in enumerate(parts):
        part.write(tmp_path / f"{number}.json")
    one, other = Funnel(), Funnel()
    for number in (0, 1):
        one.add(Funnel.read(tmp_path / f"{number}.json"))
        other.add(Funnel.read(tmp_path / f"{1 - number}.json"))
    whole = funnel(texts)
    expected = sorted(texts, key=text_hash)[:20]
    for found in (one, other, whole):
        count = found.counts["a"]["quality"]
        assert (count.documents_in, count.documents_out, count.reasons["short"]) == (100, 0, 100)
        assert [sample["text"] for sample in found.samples("a", "quality", "short")] == expected
    assert whole.emptied_by("a") == "quality (short: 100 of 100 documents)"
    assert whole.emptied_by("b") == "the source itself, which has no document"
