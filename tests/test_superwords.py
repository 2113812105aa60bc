"""Superwords, weights of sources and digits: what they join, where they never join, and the same ids everywhere."""

import itertools
import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from test_tokenizer import NASTY, hard_strings, real_documents, sentencepiece_of, vocabulary_of  # noqa: F401

from teenytinyllama.checks import InputError
from teenytinyllama.data.workers import split_long_text
from teenytinyllama.tokenizer import encode as words
from teenytinyllama.tokenizer.encode import encode_texts, make_portable
from teenytinyllama.tokenizer.files import FUNCTION_WORDS, NUM_RESERVED_TOKENS, RESERVED_TOKENS, superword_parts
from teenytinyllama.tokenizer.learn import (
    MAX_WORDS,
    SOURCE_EXPONENT,
    TextSample,
    function_word_pieces,
    learn_superwords,
    sample_texts,
)
from teenytinyllama.tokenizer.train import train_tokenizer

VOCAB_SIZE = 448
_OPENINGS = [
    "Eu sei que o",
    "Não era mais do que um",
    "Ela disse que não",
    "O que se",
    "E o",
    "A vida de um",
    "Foi com a",
]
_WORDS = ["menino", "querido", "amanhecer", "desenho", "comboio", "seguro", "navio", "umbigo", "oceano", "asma"]
_VERBS = [
    "viu e não se",
    "disse, e a",
    "foi para o",
    "encontrou\no que",
    "pediu a um",
    "chegou em 1987 com o",
    "é o que é, de",
]
TEXTS = [
    f"{opening} {word} {verb} {other}."
    for opening, word, verb, other in itertools.product(_OPENINGS, _WORDS, _VERBS, _WORDS)
]


@dataclass
class Document:
    text: str
    source: str


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, VOCAB_SIZE)


def superwords_of(tokenizer) -> list[str]:
    return [piece for piece in vocabulary_of(tokenizer)[NUM_RESERVED_TOKENS:] if "▁" in piece[1:]]


def nasty_texts(tokenizer) -> list[str]:
    """Function words in any order and surroundings, so that runs overlap and break everywhere."""
    draw = random.Random(5)
    parts = [part[1:] for part in superword_parts(vocabulary_of(tokenizer))]
    glue = [" ", " ", " ", " ", "  ", ", ", "\n", " \n ", "", "1", "▁"]
    return [
        "".join(draw.choice(parts + _WORDS[:3]) + draw.choice(glue) for _ in range(draw.randint(1, 12)))
        for _ in range(3_000)
    ]


def test_superwords_are_the_last_entries_and_join_function_words_only(tokenizer):
    vocabulary, superwords = vocabulary_of(tokenizer), superwords_of(tokenizer)
    assert len(superwords) == VOCAB_SIZE // 32
    assert vocabulary[-len(superwords) :] == superwords
    assert len(vocabulary) == VOCAB_SIZE
    for superword in superwords:
        assert superword.startswith("▁")
        parts = superword[1:].split("▁")
        assert 2 <= len(parts) <= MAX_WORDS
        assert set(parts) <= set(FUNCTION_WORDS)
        assert encode_texts(tokenizer, [superword.replace("▁", " ")]) == [[vocabulary.index(superword)]]


def test_the_function_words_are_words():
    assert len(set(FUNCTION_WORDS)) == len(FUNCTION_WORDS)
    assert all(word.isalpha() for word in FUNCTION_WORDS)  # the pre-tokenizer splits after anything but a letter


def test_superwords_round_trip_and_equal_sentencepiece(tokenizer):
    texts = [text.replace("▁", "_") for text in nasty_texts(tokenizer)] + [*NASTY.values(), *TEXTS[:500]]
    vocabulary = vocabulary_of(tokenizer)
    texts += [text for text in hard_strings(vocabulary, 2_000) if "▁" not in text]
    ids = encode_texts(tokenizer, texts)
    assert ids == sentencepiece_of(tokenizer).encode(texts)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts
    assert sum(index >= VOCAB_SIZE - VOCAB_SIZE // 32 for row in ids for index in row) > 1_000


def without_splitting(tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids by the model alone: the whole text is one word to it."""
    model = tokenizer.backend_tokenizer.model
    whole = type(tokenizer.backend_tokenizer)(model)
    return [encoding.ids for encoding in whole.encode_batch([text.replace(" ", "▁") for text in texts])]


def test_splitting_changes_no_id(tokenizer):
    texts = nasty_texts(tokenizer) + TEXTS[:500] + list(NASTY.values())
    assert encode_texts(tokenizer, texts) == without_splitting(tokenizer, texts)


def by_words(tokenizer, text: str) -> list[int]:
    """Ids word by word, then joined within runs of function words: what a memo over words may rely on."""
    vocabulary = vocabulary_of(tokenizer)
    number = {piece: index for index, piece in enumerate(vocabulary)}
    first, *rest = text.replace("▁", " ").split(" ")
    words = ([first] if first else []) + ["▁" + word for word in rest]
    model = tokenizer.backend_tokenizer.model
    out: list[str] = [token.value for word in words for token in model.tokenize(word)]
    joined = set(superwords_of(tokenizer))
    while True:
        pairs = [(number[a + b], at) for at, (a, b) in enumerate(itertools.pairwise(out)) if a + b in joined]
        if not pairs:
            return [number[piece] for piece in out]
        _, at = min(pairs)
        out[at : at + 2] = [out[at] + out[at + 1]]


def test_ids_are_those_of_the_words_then_joined(tokenizer):
    texts = nasty_texts(tokenizer)[:1_000] + TEXTS[:300]
    assert encode_texts(tokenizer, texts) == [by_words(tokenizer, text) for text in texts]


def test_a_content_word_never_changes_the_tokens_before_it(tokenizer):
    texts = [text for text in TEXTS if "\n" not in text][:400]
    for text in texts:
        context, word = text.rsplit(" ", 1)
        before, whole = encode_texts(tokenizer, [context, f"{context} {word}"])
        assert whole[: len(before)] == before


@pytest.mark.parametrize("limit", [300_000, 3])
def test_a_corpus_is_encoded_by_words_and_runs(tokenizer, limit, monkeypatch):
    monkeypatch.setattr(words, "MAX_RUNS_KEPT", limit)
    texts = nasty_texts(tokenizer) + TEXTS[:300] + ["de " * 5_000, "", " de um", "de um que"]
    encoder = words.CorpusEncoder(tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), np.uint16)
    assert encoder.keeps_words
    for _ in range(2):
        encoded = [np.frombuffer(ids, dtype=np.uint16).tolist() for ids in encoder.encode(texts)]
        assert encoded == encode_texts(tokenizer, texts)


def test_long_texts_are_cut_where_no_superword_crosses(tokenizer):
    text = " ".join(
        nasty_texts(tokenizer)[:500] + [f"{opening} amanhecer e o que desenho" for opening in _OPENINGS] * 30
    )
    text = text.replace("amanhecer", "desenvolvimento")
    pieces = split_long_text(text, 50)
    assert len(pieces) > 100
    assert "".join(pieces) == text
    assert [index for ids in encode_texts(tokenizer, pieces) for index in ids] == encode_texts(tokenizer, [text])[0]


def test_reload_keeps_the_ids(tokenizer, tmp_path):
    from transformers import AutoTokenizer, LlamaTokenizer

    make_portable(tokenizer).save_pretrained(tmp_path)
    texts = nasty_texts(tokenizer)[:500]
    for cls in (AutoTokenizer, LlamaTokenizer):
        assert encode_texts(cls.from_pretrained(tmp_path), texts) == encode_texts(tokenizer, texts)


def test_none_on_request():
    plain = train_tokenizer(TEXTS, VOCAB_SIZE, num_superwords=0)
    assert superwords_of(plain) == []
    assert len(plain) == VOCAB_SIZE
    assert len(superwords_of(train_tokenizer(TEXTS, VOCAB_SIZE, num_superwords=5))) == 5


def test_refuses_a_negative_number():
    with pytest.raises(InputError, match=r"num_superwords=-1: must be 0 or more\. Leave it out"):
        train_tokenizer(TEXTS, VOCAB_SIZE, num_superwords=-1)


@pytest.mark.parametrize("num_superwords", [None, 0, 3])
def test_the_largest_vocabulary_named_is_right_with_superwords(num_superwords):
    draw = random.Random(4)
    texts = [" ".join(draw.choices(["x", "de", "um", "que", "o", "não", "se"], k=12)) for _ in range(300)]
    with pytest.raises(InputError, match=r"larger than these texts support; they give \d+") as caught:
        train_tokenizer(texts, 90_000, num_superwords=num_superwords)
    largest = int(str(caught.value).split("Use at most ")[1].split(",")[0])
    for size in (largest, largest - 1):
        tokenizer = train_tokenizer(texts, size, num_superwords=num_superwords)
        assert len(tokenizer) == size
        if num_superwords is not None:
            assert len(superwords_of(tokenizer)) <= num_superwords
    assert num_superwords is not None or len(superwords_of(tokenizer)) > size // 32  # the only way to fill it


def test_superwords_come_from_runs_of_whole_words():
    pieces = function_word_pieces([*RESERVED_TOKENS, "▁", "▁de", "▁um", "▁que", "▁o", "▁x", "de"])
    assert sorted(pieces) == ["▁de", "▁o", "▁que", "▁um"]
    texts = ["x de um, o de umbigo que-o que\no o", "x de um. que", "x que o"] * 3
    assert sorted(learn_superwords(texts, pieces, 10)) == ["▁de▁um", "▁o▁de", "▁que▁o"]
    assert learn_superwords(texts, pieces, 0) == []
    assert learn_superwords(["de um"] * 5, pieces, 10) == []  # no space before the first word
    assert max(word.count("▁") for word in learn_superwords(["x" + " de um" * 5] * 5, pieces, 50)) == MAX_WORDS


def test_text_is_split_where_no_superword_can_cross(tokenizer):
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    found = [part for part, _ in split("um dia, de a  ao (de) um\n a 12 de")]
    assert found == ["um▁dia,", "▁de▁a▁", "▁ao▁(de)", "▁um\n", "▁a▁12", "▁de"]


# --- digits


def test_no_piece_has_three_digits_in_a_row():
    draw = random.Random(2)
    texts = [f"em {draw.choice([1987, 2024, 1500])}, R$ 10.000,00 ({draw.randint(1, 999_999)})" for _ in range(2_000)]
    pieces = vocabulary_of(train_tokenizer(texts, 500))[NUM_RESERVED_TOKENS:]
    assert (
        max(max(map(len, "".join(c if c.isdigit() else " " for c in piece).split()), default=0) for piece in pieces)
        == 2
    )
    assert "▁20" in pieces


# --- weights of sources


def test_small_sources_weigh_more():
    pieces = [b"a" * 1_000] * 80 + [b"b" * 1_000] * 5
    sources = ["big"] * 80 + ["small"] * 5
    sample = TextSample(pieces, {}, {"big": 80_000, "small": 5_000}, sources)
    counts = Counter(text[0] for text in sample.weighted_texts())
    shares = {"a": 80**SOURCE_EXPONENT, "b": 5**SOURCE_EXPONENT}
    assert counts == {name: round(85 * share / sum(shares.values())) for name, share in shares.items()}
    halves = Counter(text[0] for text in sample.weighted_texts(every=2))
    assert halves["a"] == round(counts["a"] / 2)
    assert abs(halves["b"] - counts["b"] * 3 / 5) < 1


def test_one_source_is_read_as_it_is():
    sample = sample_texts(TEXTS, 10**9)
    assert list(sample.weighted_texts()) == TEXTS == list(sample.texts())
    assert sample.piece_sources == ["text"] * len(sample.pieces)


def test_the_sources_of_the_pieces_are_remembered():
    documents = [Document("um", "x"), Document("dois " * 30_000, "y"), Document("três", "x")]
    sample = sample_texts(documents, 10**9)
    assert sample.piece_sources == ["x", *["y"] * (len(sample.pieces) - 2), "x"]


# --- real text


@pytest.mark.slow
def test_real_text_has_fewer_tokens_and_the_same_ids(real_documents):  # noqa: F811
    documents = real_documents[::3]
    plain = train_tokenizer(documents, 2_000, max_bytes=600_000, num_superwords=0)
    joined = train_tokenizer(documents, 2_000, max_bytes=600_000)
    texts = [document.text[:3_000] for document in documents if "▁" not in document.text]
    ids = encode_texts(joined, texts)
    assert ids == sentencepiece_of(joined).encode(texts) == without_splitting(joined, texts)
    assert sum(map(len, ids)) < sum(map(len, encode_texts(plain, texts)))
