"""The passport of a corpus: its figures against the files, licences, topics, years, and whom texts name."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from test_corpus_factory import config, make, text

from teenytinyllama.cleaning.personal_data import mask_personal_data
from teenytinyllama.cleaning.toxicity import ToxicityConfig, ToxicityScorer
from teenytinyllama.corpus.passport import AUTHOR, SUMMARY_NAME, render_training_summary
from teenytinyllama.corpus.provenance import document_licence, summarise_licences
from teenytinyllama.corpus.text_statistics import (
    _WORD,
    TextStatistics,
    fields_of,
    find_groups,
    find_professions,
    topic_of,
    year_of,
)


def professions(sentence: str) -> list[tuple[str, str]]:
    words = sentence.lower().replace(",", " ").replace(".", " ").split()
    return [(name, who) for _, name, who in find_professions(words)]


@pytest.mark.parametrize(("sentence", "expected"), [
    ("A médica chegou com os médicos.", [("médico", "women"), ("médico", "men")]),
    ("A assistência médica e a área médica, com atestado médico.", []),
    ("O serviço social e médico, exames médicos.", []),
    ("A sua médica falou com duas médicas, e ela era médica.", [("médico", "women")] * 3),
    ("Ele ministra aulas, tu ministras, mas a ministra falou à Sra Ministra.", [("ministro", "women")] * 2),
    ("Relatório policial sobre a policial e força policial.", [("policial", "women")]),
    ("O Sr Presidente, a Sr ª Presidente e Presidente.",
     [("presidente", "men"), ("presidente", "women"), ("presidente", "not said")]),
    ("Juíza, juiz, uma dentista, os dentistas, das motoristas",
     [("juiz", "women"), ("juiz", "men"), ("dentista", "women"), ("dentista", "men"), ("motorista", "women")]),
])  # fmt: skip
def test_professions_are_told_from_adjectives_and_verbs(sentence: str, expected: list[tuple[str, str]]) -> None:
    assert professions(sentence) == expected


def test_groups_are_people_and_not_languages_or_states() -> None:
    found = [group for _, group in find_groups(_WORD.findall(
        "os portugueses falam a língua portuguesa. a argentina, a república portuguesa, em português, a latino-americana e um norte-americano; um ateu "
        "ateia fogo; católicas e judeus"
    ))]  # fmt: skip
    assert found == ["portugueses", "americanos", "ateus", "católicos", "judeus"]


def test_statistics_add_up_and_survive_json() -> None:
    documents = [{"text": f"A médica é angolana {number}. " * (number + 1), "variety": "br", "license": "mit", "tokens": 9,
                  "year": 1980 + number} for number in range(12)]  # fmt: skip
    one, parts = TextStatistics(), [TextStatistics(), TextStatistics()]
    for number, document in enumerate(documents):
        one.add(document)
        parts[number >= 6].add(document)
    one.add_toxic("um angolano, outro angolano")
    parts[0].add_toxic("um angolano, outro angolano")
    parts[0].merge(TextStatistics.from_json(json.loads(json.dumps(parts[1].to_json()))))
    assert parts[0].to_json() == one.to_json()
    assert one.professions["médico"] == {"women": 78}
    assert one.groups["angolanos"] == 78
    assert (one.group_documents["angolanos"], one.group_toxic["angolanos"]) == (12, 1)
    assert one.years == {"1980": 10, "1990": 2}
    assert len(one.examples["angolanos"]) == 3
    assert "a médica é angolana" in one.examples["médico, women"][0]


def test_the_year_of_a_document_is_in_its_metadata_or_its_heading() -> None:
    assert year_of(fields_of("source: x; document: dar_01_1977-11-03.txt"), "") == 1977
    assert year_of(fields_of('{"Year": 2003}'), "") == 2003
    assert year_of(fields_of({"date": "1994-05-01T00:00"}), "") == 1994
    assert year_of({}, "\nDECRETO Nº 91.038, de 5 de março de 1985\nRegulamenta") == 1985
    assert year_of({}, "A lei de 5 de março de 1985 foi lembrada ontem.") == 0
    assert year_of(fields_of("document: 12345-11-03"), "") == 0
    assert year_of(fields_of(None), "") == 0


def test_topics_are_said_only_where_they_are_sure() -> None:
    sport = (
        "A seleção venceu o jogo no estádio, e o treinador elogiou os jogadores da equipe pela vitória no campeonato."
    )
    health = "Os médicos do hospital trataram os pacientes com a nova vacina contra a doença causada pelo vírus."
    law = "Art. 1º Fica revogado o § 2º do art. 3º desta Lei, que entra em vigor na data de sua publicação. " * 20
    assert topic_of(sport).name == "sports"
    assert topic_of(health).name == "health"
    assert topic_of(law).name in ("unknown", "politics")
    assert topic_of("").name == "unknown"
    assert topic_of("xyzzy " * 500).name == "unknown"


@pytest.mark.parametrize(("named", "source", "expected"), [
    ("", "mit", ("mit", "")),
    ("MIT", "mit", ("mit", "")),
    ("public acts (law 9.610/98 art. 8)", "public-domain", ("public-domain", "")),
    ("public record", "public-domain", ("public-domain", "")),
    ("public domain (mark-up CC-BY-4.0)", "cc-by-4.0", ("cc-by-4.0", "")),
    ("CC BY-NC 4.0", "cc-by-4.0", ("cc-by-nc-4.0", "licence of its own: cc-by-nc-4.0")),
    ("ask the author", "mit", ("mit", "licence not known: ask the author")),
    ("CC-BY-SA-4.0 (sentences)", "cc-by-sa-4.0", ("cc-by-sa-4.0", "")),
    ("CC0-1.0 (translation), PSF-2.0 (text)", "cc0-1.0",
     ("cc0-1.0", "licence not known: CC0-1.0 (translation), PSF-2.0 (text)")),
])  # fmt: skip
def test_a_document_has_the_licence_of_its_source_unless_it_names_a_known_one(
    named: str, source: str, expected: tuple[str, str]
) -> None:
    assert document_licence(named, source) == expected


@pytest.mark.parametrize(("licences", "expected", "warning"), [
    (["public-domain", "cc0-1.0"], "public-domain", ""),
    (["mit", "public-domain"], "mit", ""),
    (["mit", "cc-by-4.0", "cc-by-3.0", "cc0-1.0"], "cc-by-4.0", ""),
    (["cc-by-sa-3.0", "cc-by-sa-4.0", "mit"], "cc-by-sa-4.0", ""),
    (["cc-by-sa-4.0", "gpl-3.0"], "gpl-3.0", ""),
    (["cc-by-sa-4.0", "cc-by-nc-sa-4.0"], "other", "INCOMPATIBLE"),
    (["cc-by-sa-4.0", "cc-by-nc-4.0"], "other", "INCOMPATIBLE"),
    (["gpl-2.0", "cc-by-sa-4.0"], "other", "INCOMPATIBLE"),
    (["cc-by-nc-4.0", "mit"], "cc-by-nc-4.0", "NON-COMMERCIAL"),
    (["cc-by-nc-sa-4.0", "cc-by-nc-4.0"], "cc-by-nc-sa-4.0", "NON-COMMERCIAL"),
    (["cc-by-nd-4.0"], "other", "NO ADAPTATIONS"),
    (["other", "mit"], "other", "not known"),
    ([], "other", ""),
])  # fmt: skip
def test_the_licence_of_the_whole_meets_those_of_all_documents(
    licences: list[str], expected: str, warning: str
) -> None:
    found = summarise_licences(licences)
    assert found.licence == expected, found
    assert found.reason
    assert (warning in " ".join(found.warnings)) if warning else not found.warnings


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()]


def test_the_figures_of_a_passport_are_those_of_the_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keys = config(tmp_path)
    keys["sources"]["news"]["weight"] = 1
    own = [{"text": text(number), "metadata": {"license": name, "year": 1991}}
           for number, name in ((300, "CC BY-NC 4.0"), (301, "ask me"), (302, "ask me"), (303, ""), (0, ""))]  # fmt: skip
    path = tmp_path / "raw" / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, own)), encoding="utf-8")
    keys["sources"]["own"] = {"inputs": [str(path)], "license": "cc-by-4.0", "register": "news"}
    out = make(keys)
    passport = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    kept = rows_of(out / "train")
    read = {"news": 43, "laws": 12, "own": 5}
    for name, source in passport["sources"].items():
        steps, mine = source["steps"], [row for row in kept if row["metadata"]["source"] == name]
        assert steps["read"]["documents_in"] == read[name]
        assert source["statistics"]["documents"] == len(mine) == steps["duplicates"]["documents_out"]
        assert source["statistics"]["bytes"] == sum(len(row["text"].encode()) for row in mine)
        assert source["statistics"]["licenses"] == Counter(row["metadata"]["license"] for row in mine)
        before = None
        for count in steps.values():  # what one step let through came to the next
            assert before is None or (count["documents_in"], count["bytes_in"]) == before
            before = count["documents_out"], count["bytes_out"]
            assert count["documents_in"] - count["documents_out"] == sum(count["reasons"].values())
    raw = [row["text"] for row in rows_of(tmp_path / "raw") if row.get("text")] + [row["text"] for row in own]
    copies = len(raw) - len(set(raw))
    by_source = [source["steps"]["duplicates"]["reasons"] for source in passport["sources"].values()]
    assert (
        sum(found.get("exact", 0) for found in by_source) == copies == passport["figures"]["duplicates"]["exact"] == 2
    )
    assert passport["sources"]["news"]["steps"]["language"]["reasons"] == {"language is en": 1}
    assert passport["licence"]["documents"] == Counter(row["metadata"]["license"] for row in kept)
    assert passport["licence"]["licence"] == "cc-by-nc-4.0"
    assert passport["whole"]["years"] == {"1990": 4}
    assert passport["registers"].keys() == {"news", "not said"}
    said = capfd.readouterr().out
    assert said.count("own: 2 documents read name a licence that is not known here, “ask me”") == 1
    assert "own: 1 documents read have a licence of their own, cc-by-nc-4.0" in said
    assert "NON-COMMERCIAL: cc-by-nc-4.0 (1 documents)" in said
    page = (out / "passport.html").read_text(encoding="utf-8")
    assert "NON-COMMERCIAL" in page
    assert page.count("<svg") == 5
    unique = passport["whole"]["tokens"]
    assert passport["figures"]["tokens"] == {"train": unique, "validation": 0}
    said = (
        f"{unique / 1000:.1f}k unique tokens; {unique / 1000:.1f}k tokens to train on, repetition included (estimated"
    )
    for text_of_passport in (page, (out / "passport.md").read_text(encoding="utf-8")):
        assert said in text_of_passport
        for name, source in passport["sources"].items():
            assert source["content_sha256"] in text_of_passport, name


def test_tokens_are_those_of_the_tokenizer_that_is_named(tmp_path: Path, tokenizer_folder: Path) -> None:
    from teenytinyllama.data.pack import PackConfig, pack

    keys = config(tmp_path)  # `news` is read twice
    keys |= {"mixing": {"tokenizer": str(tokenizer_folder), "validation_fraction": 0.2}}
    out = make(keys)
    passport = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    whole, tokens = passport["whole"]["tokens"], passport["figures"]["tokens"]
    by_source = {name: source["statistics"]["tokens"] for name, source in passport["sources"].items()}
    packed = pack(PackConfig(inputs=[str(out / "train")], validation_inputs=[str(out / "validation")], context=64,
                             tokenizer=str(tokenizer_folder), output_dir=str(tmp_path / "packed")))  # fmt: skip
    rows = json.loads((packed / "run.json").read_text(encoding="utf-8"))
    in_rows = {"train": rows["train_tokens"] + rows["dropped_tokens"], "validation": rows["validation_tokens"]}
    assert tokens == in_rows
    assert 0 < tokens["validation"] < whole < tokens["train"] < whole + by_source["news"]
    said = (out / "passport.md").read_text(encoding="utf-8")
    assert re.search(
        rf"counted by the tokenizer {tokenizer_folder.name} \([\d,]+ entries, sha256 [0-9a-f]{{12}}\)", said
    )
    assert str(tokenizer_folder) not in said
    assert str(tokenizer_folder) not in json.dumps(passport)


def test_the_summary_for_the_eu_has_what_the_passport_knows_and_marks_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = config(tmp_path)
    keys["sources"]["news"] |= {"url": "https://example.org/news", "revision": "2025-01"}
    out = make(keys | {"eu_summary": True})
    said = (out / SUMMARY_NAME).read_text(encoding="utf-8")
    passport = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    titles = re.findall(r"(?m)^#+ ((?:\d\.)+)", said)
    assert titles == ["1.", "1.1.", "1.2.", "1.3.", "2.", "2.1.", "2.2.", "2.2.1.", "2.2.2.", "2.3.", "2.4.", "2.5.",
                      "2.6.", "3.", "3.1.", "3.2.", "3.3."]  # fmt: skip
    assert "- [x] Less than 1 billion tokens\n- [ ] 1 billion to 10 trillion tokens\n" in said
    assert "| news | https://example.org/news | 2025-01 | cc-by-4.0 | news | 40 |" in said
    assert "| laws | laws.parquet | not stated | public-domain | not stated | 12 |" in said
    assert "Personal data of fixed form that was masked: phone 53." in said
    assert "no classifier of toxic text was applied." in said
    assert str(tmp_path) not in said
    marks = said.count(AUTHOR)
    assert f"{out / SUMMARY_NAME}: a draft; {marks - 1} places are marked for you." in capfd.readouterr().out
    assert marks == 1 + 22  # the first one says what the mark means
    passport["sources"]["news"]["inputs"] = ["hf://datasets/ana/news@0123"]
    passport["figures"]["tokens"]["train"] = 2 * 10**9
    on_hub = render_training_summary(passport)
    assert "Yes, of text, on the Hugging Face Hub:\n\n| source |" in on_hub
    assert "- [x] 1 billion to 10 trillion tokens" in on_hub
    make(keys)
    assert not (out / SUMMARY_NAME).exists()


def make_classifier(folder: Path, tokenizer_folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(5)
    size = len(json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    shape = LlamaConfig(vocab_size=size + 64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                        num_attention_heads=2, max_position_embeddings=128, num_labels=2,
                        id2label={0: "ok", 1: "toxic"}, label2id={"ok": 0, "toxic": 1}, pad_token_id=0)  # fmt: skip
    LlamaForSequenceClassification(shape).save_pretrained(folder)
    for path in tokenizer_folder.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def test_the_share_of_toxic_documents_that_name_a_group_is_counted(tmp_path: Path, tokenizer_folder: Path) -> None:
    keys = config(tmp_path)
    rows = [{"text": text(number).replace(" o ", " o angolano ", 1)} for number in range(60)]
    path = tmp_path / "raw" / "news.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sources = {"news": {"inputs": [str(path)], "license": "cc-by-4.0"}}
    toxicity = {"model": str(make_classifier(tmp_path / "model", tokenizer_folder)), "label": "toxic"}
    scorer = ToxicityScorer(ToxicityConfig(**toxicity))
    texts = [mask_personal_data(row["text"])[0] for row in rows]
    scores = scorer.scores(texts)
    threshold = sorted(scores)[30] + 1e-4  # half of the documents
    named = ["angolano" in one.lower() for one in texts]
    toxic = [score > threshold for score in scores]
    out = make(keys | {"sources": sources, "toxicity": toxicity | {"threshold": threshold}, "duplicates": False})
    passport = json.loads((out / "passport.json").read_text(encoding="utf-8"))
    dropped = passport["sources"]["news"]["steps"]["toxicity"]["reasons"]["toxic"]
    assert 0 < dropped == sum(toxic) < 60
    both = sum(is_toxic and is_named for is_toxic, is_named in zip(toxic, named, strict=True))
    assert passport["whole"]["group_toxic"]["angolanos"] == both > 0
    assert passport["whole"]["group_documents"]["angolanos"] == sum(named) - both
    share = f"{both:,} ({100 * both / sum(named):.2f} %)"
    assert f"| {share} |" in (out / "passport.md").read_text(encoding="utf-8")
    page = make(keys | {"sources": sources, "toxicity": toxicity | {"threshold": threshold}, "sample": 60})
    assert page.read_text(encoding="utf-8").count('<b class="over">toxicity: toxic</b>') == dropped
