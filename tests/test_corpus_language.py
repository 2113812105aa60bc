"""Language and variety of documents: what is kept, what gets through, and the model in the package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from teenytinyllama.checks import InputError, MissingPackageError
from teenytinyllama.cleaning import Drop
from teenytinyllama.cleaning.language import (
    KINDS,
    MODEL_FILE,
    MOST_SEGMENTS,
    SEGMENT_CHARACTERS,
    Language,
    LanguageConfig,
    VarietyConfig,
    VarietyFound,
    check_language,
    check_variety,
    count_cues,
    ensure_identifier,
    identify,
    segments,
    variety_of,
)

pytest.importorskip("py3langid")

SENTENCES: dict[str, list[str]] = {}
for line in (Path(__file__).parent / "language_sentences.tsv").read_text(encoding="utf-8").splitlines():
    SENTENCES.setdefault(line.split("\t")[0], []).append(line.split("\t")[1])
BRAZILIAN, EUROPEAN = " ".join(SENTENCES["pt-BR"]), " ".join(SENTENCES["pt-PT"])


def kept(texts: list[str]) -> int:
    return sum(check_language(identify(text), LanguageConfig()) is None for text in texts)


# Language


def test_portuguese_sentences_are_kept() -> None:
    assert kept(SENTENCES["pt-BR"] + SENTENCES["pt-PT"]) == 60


@pytest.mark.parametrize("language", ["gl", "es", "ca", "it"])
def test_no_sentence_of_a_neighbour_gets_through(language: str) -> None:
    assert len(SENTENCES[language]) == 60
    assert kept(SENTENCES[language]) == 0


@pytest.mark.parametrize("language", ["gl", "es", "ca", "it"])
def test_documents_are_recognised(language: str) -> None:
    found = identify("\n".join(SENTENCES[language]))
    assert found.language == language
    assert found.score < 0.01
    assert check_language(found, LanguageConfig()) == Drop(f"language is {language}", found.score, 0.4)


def test_the_score_says_how_much_of_a_document_is_portuguese() -> None:
    assert identify(BRAZILIAN).score > 0.99
    mixed = BRAZILIAN[:2000] + "\n" + " ".join(SENTENCES["es"])[:2000]
    assert identify(mixed).score == pytest.approx(0.5, abs=0.02)
    mostly = identify(BRAZILIAN[:1500] + " ".join(SENTENCES["it"])[:500])
    assert mostly.score == pytest.approx(0.75, abs=0.05)
    assert check_language(mostly, LanguageConfig(min_score=0.8)) == Drop("language score", mostly.score, 0.8)
    assert check_language(mostly, LanguageConfig()) is None


@pytest.mark.parametrize("text", ["", "   \n", "12345 67,89 | 10 | ---"])
def test_a_text_without_letters_has_no_language(text: str) -> None:
    assert identify(text) == Language("und", 0.0)
    assert check_language(identify(text), LanguageConfig()) == Drop("language is und", 0.0, 0.4)


def test_another_language_can_be_wanted() -> None:
    found = identify("\n".join(SENTENCES["gl"]), "gl")
    assert found.score > 0.99
    assert check_language(found, LanguageConfig(language="gl")) is None


def test_segments_cover_short_texts_and_spread_over_long_ones() -> None:
    assert segments("") == []
    assert segments("abc") == ["abc"]
    text = "".join(chr(97 + number % 26) for number in range(SEGMENT_CHARACTERS * 2 + 1))
    assert "".join(segments(text)) == text
    long = "a" * SEGMENT_CHARACTERS + "b" * 100_000 + "c" * SEGMENT_CHARACTERS
    found = segments(long)
    assert len(found) == MOST_SEGMENTS
    assert {len(part) for part in found} == {SEGMENT_CHARACTERS}
    assert (found[0][0], found[-1][-1]) == ("a", "c")


def test_bad_language_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"min_score=1\.5: must be between 0 and 1"):
        LanguageConfig(min_score=1.5)
    with pytest.raises(InputError, match="language=xx: is not known to py3langid. Use one of .*pt.*"):
        ensure_identifier(LanguageConfig(language="xx"))
    ensure_identifier(LanguageConfig())


def test_a_missing_identifier_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"py3langid: not installed.*teenytinyllama\[corpus\]"):
        ensure_identifier(LanguageConfig())


# Variety


def test_the_varieties_are_told_apart() -> None:
    assert variety_of(BRAZILIAN).variety == "br"
    assert variety_of(EUROPEAN).variety == "pt"
    paragraphs = [(name, " ".join(SENTENCES[name][start : start + 5])) for name in ("pt-BR", "pt-PT") for start in range(0, 30, 5)]  # fmt: skip
    assert [variety_of(text).variety for _, text in paragraphs] == [name[3:].lower() for name, _ in paragraphs]


@pytest.mark.parametrize(
    "text", ["", "12 | 13", "As abelhas são fundamentais.", "ACÇÃO E USUÁRIO", "São Paulo, Lisboa, Benfica"]
)
def test_without_cues_the_variety_is_unknown(text: str) -> None:
    assert variety_of(text) == VarietyFound("unknown", 0.0)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("pt open vowel before a nasal", "um fenómeno económico"),
        ("br closed vowel before a nasal", "um fenômeno econômico"),
        ("pt past in -ámos", "ontem falámos"),
        ("pt silent consonant", "a acção do projecto e o objectivo actual"),
        ("pt spelling since 1990", "o aspeto da receção"),
        ("br spelling until 2009", "uma idéia freqüente"),
        ("br consonant left out", "a indenização e o contato"),
        ("pt consonant kept", "o facto e a indemnização"),
        ("pt words", "o utilizador do comboio"),
        ("br words", "a equipe do usuário"),
        ("br você", "se você quiser"),
        ("pt adverbs", "nomeadamente noutras"),
        ("pt estar a with infinitive", "ele está ainda a fazer"),
        ("pt andar a, continuar a", "ela continua a fazer"),
        ("br estar with gerund", "ele está fazendo"),
        ("br fato", "de fato e o fato que"),
        ("pt até ao", "até ao fim"),
        ("br até o", "até o fim"),
        ("br em um", "em um livro"),
        ("pt ter de", "temos de sair"),
    ],
)
def test_every_kind_of_cue_is_found_and_speaks_for_its_side(kind: str, text: str) -> None:
    counts = count_cues(text)
    assert [name for name, count in zip(KINDS, counts[:-1], strict=True) if count] == [kind]
    assert counts[-1] == len(text.split())
    log_odds = variety_of(text).log_odds
    assert log_odds > 0 if kind.startswith("pt") else log_odds < 0


@pytest.mark.parametrize(
    "text", ["the exception and the selectors of a directory", "uma conjectura", "a fêmea", "tem quatro"]
)
def test_words_of_both_varieties_and_of_english_are_no_cues(text: str) -> None:
    assert not any(count_cues(text)[:-1])


def test_the_filter_keeps_what_it_is_asked_for() -> None:
    found = {variety: VarietyFound(variety, odds) for variety, odds in (("br", -3.0), ("pt", 3.0), ("unknown", 0.2))}
    for wanted in ("br", "pt"):
        config = VarietyConfig(variety=wanted)  # type: ignore[arg-type]
        assert [name for name in found if check_variety(found[name], config) is None] == [wanted]
    assert check_variety(found["pt"], VarietyConfig(variety="br")) == Drop("variety is pt", 3.0, 1.0)
    assert check_variety(found["unknown"], VarietyConfig(variety="br", keep_unknown=True)) is None
    assert all(check_variety(one, VarietyConfig()) is None for one in found.values())


def test_an_unknown_variety_is_refused() -> None:
    with pytest.raises(InputError, match="variety=ao: must be br, pt or both"):
        VarietyConfig(variety="ao")  # type: ignore[arg-type]


def test_the_model_names_its_sources_and_its_measure() -> None:
    model = json.loads(MODEL_FILE.read_text(encoding="utf-8"))
    assert list(model["weights"]) == KINDS
    assert all(weight >= 0 if kind.startswith("pt") else weight <= 0 for kind, weight in model["weights"].items())
    assert len(model["sources"]) >= 11
    assert model["balanced_accuracy_of_decided"]["all sources"] >= 0.95
    assert MODEL_FILE.stat().st_size < 20_000


def test_importing_the_rooms_loads_no_library() -> None:
    code = (
        "import sys, teenytinyllama.cleaning.language, teenytinyllama.cleaning.language; "
        "assert not {'py3langid', 'numpy', 'torch', 'sklearn'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Real sources; the model of the variety saw none of them.


@pytest.mark.parametrize(
    ("source", "dropped", "brazilian"), [("web", 0, 45), ("wiki_trechos", 0, 0), ("diarios_oficiais", 10, 30)]
)
def test_real_documents_are_portuguese(real_data: Path, source: str, dropped: int, brazilian: int) -> None:
    import pyarrow.parquet as pq

    texts = pq.read_table(real_data / "corpus" / f"{source}.parquet")["text"].to_pylist()[:50]
    assert kept(texts) >= len(texts) - dropped  # some gazettes are tables of names and numbers
    varieties = [variety_of(text).variety for text in texts]
    assert varieties.count("br") >= brazilian  # Wikipedia is written in both varieties
    assert source == "wiki_trechos" or "pt" not in varieties


def test_other_languages_are_left_out(real_data: Path) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(real_data / "raw" / "outras_linguas.parquet").to_pylist()[::10]
    assert kept([row["text"] for row in rows if row["language"] != "pt"]) == 0
