"""The page of `ttl corpus --sample`: what it shows of kept and dropped documents, and what it leaves alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_corpus_factory import PHONE, config, hashes, make, stories, text

from teenytinyllama.cleaning.page_text import BoilerplateConfig, remove_boilerplate
from teenytinyllama.cleaning.personal_data import PersonalDataConfig, mask_personal_data
from teenytinyllama.cleaning.quality import QualityConfig, check_all, measure_all
from teenytinyllama.corpus.config import BuildConfig
from teenytinyllama.corpus.sample_page import Mark, boilerplate_marks, excerpt, personal_data_marks
from teenytinyllama.corpus.shards import plan_shards


def test_measures_say_of_each_rule_what_it_drops_by() -> None:
    config_of_all = QualityConfig(
        max_duplicate_paragraphs=0.3, max_duplicate_paragraph_characters=0.2, max_short_lines=0.67, max_curly_brackets=0,
        max_lorem_ipsum=0, min_sentences=5, min_long_paragraphs=3,
    )  # fmt: skip
    bad = ["lorem ipsum { #\n\n" * 40, "- item …\n" * 30, "1 2 3 4 5 6 7 8\n" * 20, "palavra " * 300, "a b c d " * 30]
    for document in [*stories()[:20], *bad]:
        beyond = {measure.reason: measure for measure in measure_all(document, config_of_all) if measure.closeness > 1}
        for drop in check_all(document, config_of_all):
            measure = beyond[drop.reason]
            assert (measure.value, measure.limit) == (pytest.approx(drop.value), drop.limit)
        first = {drop.reason for drop in check_all(document, config_of_all)}
        assert bool(first) == bool(beyond)
    values = [measure.closeness for measure in measure_all(text(0))]
    assert values == sorted(values, reverse=True)
    assert values[0] <= 1


def test_marks_stand_where_something_was_cut_out() -> None:
    before = "Ir para o conteúdo\nO prefeito falou ontem.\nTexto para impressão\nLigue (11) 91234-5678 ou a@b.com.br já.\nVoltar ao topo"
    after, _ = remove_boilerplate(before)
    marks = boilerplate_marks(before, after, BoilerplateConfig())
    assert [(mark.kind, mark.original) for mark in marks] == [
        ("boilerplate: menus", "Ir para o conteúdo"), ("boilerplate: page_links", "Texto para impressão"),
        ("boilerplate: menus", "Voltar ao topo"),
    ]  # fmt: skip
    masked, _ = mask_personal_data(after)
    marks = personal_data_marks(after, marks, PersonalDataConfig())
    shown = {mark.original: masked[mark.start : mark.end] for mark in marks}
    assert shown["(11) 91234-5678"] == "[TELEFONE]"
    assert shown["a@b.com.br"] == "[EMAIL]"
    assert shown["Texto para impressão"] == ""
    assert masked[: marks[1].start].endswith("falou ontem.")
    parts = excerpt(masked, marks)
    assert "".join(part for _, part, _ in parts) == masked
    assert boilerplate_marks("Voltar ao topo", "", BoilerplateConfig())[0].kind == "boilerplate: all of it"


def test_a_long_text_is_shown_by_its_head_and_its_marks() -> None:
    long = "palavra " * 1000
    parts = excerpt(long, [Mark(4000, 4008, "personal data: cpf", "x" * 900)])
    assert [kind for kind, _, _ in parts] == ["", "gap", "", "personal data: cpf", "", "gap"]
    assert sum(len(shown) + len(original) for _, shown, original in parts) < 1400


def test_a_sample_is_spread_over_the_files_of_a_source_and_always_the_same(tmp_path: Path) -> None:
    for number, rows in enumerate((400, 100)):
        lines = [json.dumps({"text": f"{number} {row}"}) for row in range(rows)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = {"inputs": [str(tmp_path)], "license": "cc0-1.0"}
    build = BuildConfig(output_dir="x", sources={"a": source}, sample=100)
    shards = plan_shards(build)
    assert [shard.number for shard in shards] == [0, 1]
    rows = [shard.rows or [] for shard in shards]
    assert sum(map(len, rows)) == 100
    assert 65 <= len(rows[0]) <= 92  # about four of five
    assert min(rows[0]) < 40 < 200 < max(rows[0])
    assert plan_shards(build) == shards
    build.sample = 1000
    assert [len(shard.rows or []) for shard in plan_shards(build)] == [400, 100]


def sampled(tmp_path: Path, **keys: Any) -> str:
    path = make(config(tmp_path) | {"sample": 30, **keys})
    assert path == tmp_path / "out" / "sample.html"
    return path.read_text(encoding="utf-8")


def test_the_page_shows_kept_and_dropped_documents_side_by_side(tmp_path: Path) -> None:
    question = "Segundo a legislação municipal vigente, quem deve autorizar a construção de uma nova ponte sobre o rio?"
    keys = config(tmp_path)
    bad = tmp_path / "raw" / "bad.jsonl"
    lines = [text(300), text(300), text(301).replace(PHONE, f" {question}{PHONE}"), f"<script>alert('{'a b ' * 60}')</script>",
             "Curto demais para ficar."]  # fmt: skip
    bad.write_text("\n".join([*(json.dumps({"text": line}) for line in lines), '{"text": 1 <b>']), encoding="utf-8")
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"q": question}) + "\n", encoding="utf-8")
    sources = {"bad": {"inputs": [str(bad)], "license": "cc0-1.0"}, "laws": keys["sources"]["laws"]}
    page = sampled(tmp_path, sources=sources, decontamination={"sets": {"exam": {"inputs": [str(exam)], "columns": ["q"]}},
                                                               "margin": 10})  # fmt: skip
    assert '<b class="over">duplicates: exact</b> 1, limit 0.75' in page
    assert "repeats bad bad.jsonl:1" in page
    assert '<b class="over">read: broken row</b>' in page
    assert "{&#34;text&#34;: 1 &lt;b&gt;" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    contaminated = page.split('title="contamination: exam">')[1].split("</del>")[0]
    assert question[5:-5] in contaminated
    assert '<del class="personal" title="personal data: phone">(11) 91234-5678</del><ins>[TELEFONE]</ins>' in page
    assert page.count("<article>") == 6 + 12
    assert "http" not in page.replace("http://x/", "")  # but for the documents' addresses


def test_a_sample_leaves_the_corpus_as_it_is(tmp_path: Path) -> None:
    out = make(config(tmp_path))
    before = hashes(out), (out / "run.json").read_bytes(), (out / "passport.json").read_bytes()
    page = sampled(tmp_path)
    assert "43 documents" not in page
    assert (hashes(out), (out / "run.json").read_bytes(), (out / "passport.json").read_bytes()) == before
    assert len([path for path in (out / "work").iterdir() if path.name.startswith("mix-")]) == 1
