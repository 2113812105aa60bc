"""Quality rules of the corpus stage: words as spaCy cuts them, each rule, its limits, and bad configs."""

import random
from collections import Counter
from pathlib import Path

import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.cleaning import Drop
from teenytinyllama.cleaning.measured_text import MeasuredText, duplicate_n_gram_share, top_n_gram_share
from teenytinyllama.cleaning.quality import QualityConfig, check_all, check_quality, override
from teenytinyllama.cleaning.words import WordTable, cut_piece

OFF = QualityConfig(
    top_n_grams={}, duplicate_n_grams={},
    **dict.fromkeys((
        "max_duplicate_lines", "max_duplicate_line_characters", "min_punctuated_lines", "max_lines_per_word",
        "min_words", "max_words", "min_word_characters", "max_word_characters", "max_hashes_per_word",
        "max_ellipses_per_word", "max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words", "min_stop_words",
    )),
)  # fmt: skip
PROSE = (
    "A biblioteca da cidade abriu ontem uma exposição com mapas antigos e cartas de viagem. "
    "Os visitantes podem ver até domingo como os navegadores desenhavam as costas que ninguém conhecia ainda. "
    "Segundo a diretora, metade das peças nunca tinha saído do arquivo, onde foi guardada há mais de um século. "
    "A entrada é livre, mas convém chegar cedo porque a sala recebe apenas trinta pessoas por hora."
)


def words_of(text: str) -> list[str]:
    return [word for piece in text.split() for word in cut_piece(piece)]


@pytest.mark.parametrize(("piece", "words"), [
    ("Lei", "Lei"), ("(Lei", "( Lei"), ("disse-lhe:", "disse-lhe :"), ("«Não,»", "« Não , »"), ("Sr.", "Sr."),
    ("casa.", "casa ."), ("LEI.", "LEI ."), ("S.A.", "S.A."), ("S/A)", "S/A )"), ("art.", "art."), ("R$", "R$"),
    ("R$3.000,00.", "R$ 3.000,00 ."), ("9.610/98,", "9.610/98 ,"), ("5º,", "5º ,"), ("10%.", "10 % ."),
    ("20km/h", "20 km/h"), ("fim.Novo", "fim . Novo"), ("um,dois", "um , dois"), ("e/ou", "e/ou"), ("...", "..."),
    ("fim...", "fim ..."), ("reticências…»", "reticências … »"), ("___", "_ _ _"), ("----", "----"),
    ("http://exemplo.pt/a?b=c", "http://exemplo.pt/a?b=c"), ("fulano@exemplo.pt,", "fulano@exemplo.pt ,"),
    ("(vide):", "( vide ):"), ("a.", "a."), ("“o.”", "“ o. ”"), ("d'Ávila", "d'Ávila"), (":)", ":)"),
    ("1.º/2.º", "1.º/2.º"), ("36ºC", "36ºC"), ("©2012", "© 2012"), ("x" * 3000 + ",", "x" * 3000 + ","),
    ("faltam…….", "faltam …… ."), ("49º08’26’’", "49º08’26 ’’"), ("Art.5", "Art.5"), ("a/b-c", "a / b-c"), ("李.", "李 ."),
])  # fmt: skip
def test_a_piece_is_cut_as_spacy_cuts_it(piece: str, words: str) -> None:
    # Right sides were read off spaCy 3.8.18, `spacy.blank("pt")`, but for the piece of 3,000 characters.
    assert cut_piece(piece) == words.split(" ")


def test_a_table_gives_the_same_counts_before_and_after_it_starts_anew() -> None:
    small, large = WordTable(most_pieces=3), WordTable()
    for text in (PROSE, "Outro texto, com (outras) palavras.", PROSE, ""):
        for table in (small, large):
            numbers = table.read(text)
            assert table.lengths[numbers].tolist() == [len(word) for word in words_of(text)]
            assert table.letters[numbers].tolist() == [any(map(str.isalpha, word)) for word in words_of(text)]
        assert small._pieces.size <= 3 + len(text.split())
        assert small.hashes[small.read(text)].tolist() == large.hashes[large.read(text)].tolist()


def test_a_table_finds_every_piece_again_when_it_has_grown_and_parts_them_as_python_does() -> None:
    table = WordTable()
    for start in range(0, 60_000, 7_000):  # more than the slots that it begins with
        text = " ".join(f"p{number}x" for number in range(start, start + 14_000))
        numbers = table.read(text)
        assert table.lengths[numbers].tolist() == list(map(len, text.split()))
    assert table._pieces.size == 70_000
    spaces = "".join(char for char in map(chr, range(0x110000)) if char.isspace())
    odd = "um".join(spaces) + "\ud800 \U0001f600 \u3001fim\x00 \U00020000"
    numbers = table.read(odd)
    assert table.lengths[numbers].tolist() == list(map(len, words_of(odd)))


def naive_top_share(text: str, size: int) -> float:
    words = words_of(text)
    grams = [" ".join(words[place : place + size]) for place in range(len(words) - size + 1)]
    gram, count = Counter(grams).most_common(1)[0] if grams else ("", 0)
    return len(gram) * count / len(text)


def naive_duplicate_share(text: str, size: int) -> float:
    words, place, characters = words_of(text), 0, 0
    seen: set[tuple[str, ...]] = set()
    while place < len(words) - size + 1:
        gram = tuple(words[place : place + size])
        if gram in seen:
            characters += len("".join(gram))
            place += size
        else:
            seen.add(gram)
            place += 1
    return characters / len(text)


@pytest.mark.parametrize("seed", range(30))
def test_shares_of_n_grams_are_exact_above_the_limit_and_never_above_it_below(seed: int) -> None:
    chance = random.Random(seed)
    vocabulary = ["a", "de", "lei", "artigo", "parágrafo", "senhor", "presidente,", "(vide)"][: chance.randint(1, 8)]
    text = " ".join(chance.choices(vocabulary, k=chance.choice([1, 4, 12, 60, 400])))
    for limit in (0.0, 0.1, 0.3, 0.6):
        measured = MeasuredText(text)
        for size in chance.sample(range(2, 11), 9):
            for share, naive in ((top_n_gram_share(measured, size, limit), naive_top_share(text, size)),
                                 (duplicate_n_gram_share(measured, size, limit), naive_duplicate_share(text, size))):  # fmt: skip
                assert (share == pytest.approx(naive)) if naive > limit else (share <= limit)


def test_plain_prose_is_kept() -> None:
    assert check_quality(PROSE) is None
    assert check_all(PROSE) == []


def lines(*parts: str) -> str:
    return "\n".join(parts)


DROPPED = [
    ({"max_duplicate_lines": 0.287}, lines("um", "dois", "um"), Drop("duplicate_lines", 1 / 3, 0.287)),
    ({"max_duplicate_lines": 0.2}, "\num\n", Drop("duplicate_lines", 1 / 3, 0.2)),
    ({"max_duplicate_line_characters": 0.1}, lines("um", "dois", "um"), Drop("duplicate_line_characters", 2 / 8, 0.1)),
    ({"max_duplicate_paragraphs": 0.3}, "um\n\ndois\n\num", Drop("duplicate_paragraphs", 1 / 3, 0.3)),
    ({"max_duplicate_paragraph_characters": 0.1}, "um\n\ndois\n\num",
     Drop("duplicate_paragraph_characters", 2 / 12, 0.1)),
    ({"top_n_grams": {2: 0.5}}, "a lei a lei a lei", Drop("top_2_grams", 15 / 17, 0.5)),
    ({"duplicate_n_grams": {5: 0.1}}, "a b c d e a b c d e", Drop("duplicate_5_grams", 5 / 19, 0.1)),
    ({"min_punctuated_lines": 0.5}, lines("Um.", "Dois", "Três"), Drop("punctuated_lines", 1 / 3, 0.5)),
    ({"max_short_lines": 0.5}, lines("um", "dois", "x" * 40), Drop("short_lines", 2 / 3, 0.5)),
    ({"max_lines_per_word": 0.186}, lines("um", "dois", "três"), Drop("lines_per_word", 2 / 3, 0.186)),
    ({"min_words": 3}, "um dois ... !", Drop("few_words", 2, 3)),
    ({"max_words": 1}, "um dois ... !", Drop("many_words", 2, 1)),
    ({"min_word_characters": 3}, "um ! dó", Drop("short_words", 2, 3)),
    ({"max_word_characters": 13}, "x" * 20, Drop("long_words", 20, 13)),
    ({"max_hashes_per_word": 0.1}, "#um #dois", Drop("hashes", 0.5, 0.1)),
    ({"max_ellipses_per_word": 0.1}, "um... dois…", Drop("ellipses", 0.5, 0.1)),
    ({"max_bullet_lines": 0.9}, lines("- um", " • dois"), Drop("bullet_lines", 1, 0.9)),
    ({"max_ellipsis_lines": 0.3}, lines("um...", "dois… ", "três"), Drop("ellipsis_lines", 2 / 3, 0.3)),
    ({"min_alphabetic_words": 0.814}, "um 2 3", Drop("alphabetic_words", 1 / 3, 0.814)),
    ({"min_stop_words": 2}, "Lisboa de Porto de Braga", Drop("stop_words", 1, 2)),
    ({"max_curly_brackets": 0}, "f() { }", Drop("curly_brackets", 1, 0)),
    ({"max_lorem_ipsum": 0}, "Lorem ipsum dolor", Drop("lorem_ipsum", 1, 0)),
    ({"min_sentences": 5}, "Um. Dois! Fim", Drop("few_sentences", 2, 5)),
    ({"min_long_paragraphs": 3}, lines("x" * 200, "curta"), Drop("long_paragraphs", 1, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "text", "drop"), DROPPED, ids=[drop.reason for _, _, drop in DROPPED])
def test_a_rule_drops_with_its_reason_its_value_and_its_limit_and_can_be_switched_off(
    limits: dict[str, object], text: str, drop: Drop
) -> None:
    found = check_quality(text, override(OFF, limits))
    assert found is not None
    assert (found.reason, found.limit) == (drop.reason, drop.limit)
    assert found.value == pytest.approx(drop.value)
    assert check_quality(text, OFF) is None


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_a_text_without_characters_is_empty_whatever_the_limits(text: str) -> None:
    assert check_quality(text, OFF) == Drop("empty", 0, 1)
    assert check_all(text, OFF) == [Drop("empty", 0, 1)]


def test_all_rules_that_would_drop_a_text_are_named() -> None:
    reasons = [drop.reason for drop in check_all("Menu\nInício\nMenu\nMenu")]
    assert reasons == [
        "duplicate_lines", "top_2_grams", "punctuated_lines", "duplicate_line_characters", "lines_per_word",
        "few_words", "stop_words",
    ]  # fmt: skip


def test_odd_texts_are_measured_without_an_error() -> None:
    every = override(QualityConfig(), {"max_short_lines": 0.5, "min_sentences": 1, "max_duplicate_paragraphs": 0.1,
                                       "min_long_paragraphs": 1, "max_curly_brackets": 0, "max_lorem_ipsum": 0})  # fmt: skip
    for text in ("\n", "\n\n\n", ".", "…", "\u2028", "a", "1", "\ud800 x", "—" * 5000, "a\x0bb\x0cc", "_" * 2000):
        check_quality(text, every)
        assert check_all(text, every)


@pytest.mark.parametrize(("values", "message"), [
    ({"max_duplicate_lines": 1.5}, "max_duplicate_lines=1.5: a share must lie between 0 and 1. null switches"),
    ({"min_words": -1}, "min_words=-1: must be 0 or more. null switches the rule off"),
    ({"max_word_characters": float("inf")}, "max_word_characters=inf: must be 0 or more"),
    ({"top_n_grams": [2]}, "top_n_grams=[2]: must be a mapping of words to shares"),
    ({"top_n_grams": {"two": 0.1}}, "top_n_grams: two words: an n-gram has 2 to 50 words"),
    ({"duplicate_n_grams": {5: 2}}, "duplicate_n_grams: 5=2: a share must lie between 0 and 1"),
    ({"duplicate_n_grams": {5: None}}, "duplicate_n_grams: 5: has no share. Leave the line out"),
    ({"min_words": 10, "max_words": 5}, "min_words=10: must not lie above max_words=5, or no document is kept"),
    ({"stop_words": ["de", "de"]}, "min_stop_words=2: stop_words holds only 1 different words"),
])  # fmt: skip
def test_a_config_that_cannot_work_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        QualityConfig(**values)
    assert str(caught.value).startswith(message)


def test_a_source_may_have_limits_of_its_own() -> None:
    config = override(QualityConfig(), {"min_alphabetic_words": None, "top_n_grams": {2: 0.9}})
    assert (config.min_alphabetic_words, config.top_n_grams, config.min_words) == (None, {2: 0.9}, 50)
    assert QualityConfig().min_alphabetic_words == 0.814
    with pytest.raises(InputError, match="min_alphabetic_word"):
        override(QualityConfig(), {"min_alphabetic_word": 0.7})


def test_shipped_limits_are_fineweb_2s_for_portuguese() -> None:
    config = QualityConfig()
    assert config.top_n_grams == {2: 0.371, 3: 0.191, 4: 0.163}
    assert list(config.duplicate_n_grams.values()) == [0.163, 0.153, 0.141, 0.13, 0.119, 0.108]
    assert (config.max_duplicate_lines, config.min_punctuated_lines, config.max_lines_per_word) == (0.287, 0.077, 0.186)
    assert (config.min_word_characters, config.max_word_characters, config.min_alphabetic_words) == (3, 13, 0.814)
    assert len(config.stop_words) == 16


def test_most_of_an_encyclopedia_is_kept(real_data: Path) -> None:
    import pyarrow.parquet as pq

    texts = pq.read_table(real_data / "corpus" / "wiki_trechos.parquet", columns=["text"])["text"].to_pylist()[:200]
    kept = sum(check_quality(text) is None for text in texts)
    assert 0.6 < kept / len(texts) < 1
