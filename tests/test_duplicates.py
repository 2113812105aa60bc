"""Exact and near duplicates: words, signatures, decisions on disk, and what they do not depend on."""

import itertools
import random
import re
import tracemalloc
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.cleaning import word_hashes
from teenytinyllama.cleaning.word_hashes import (
    DuplicatesConfig,
    batch_signatures,
    fingerprints,
    gram_sets,
    hash_batches,
    hash_words,
    jaccard,
)
from teenytinyllama.corpus.duplicates import find_duplicates, preference_order

WORDS = [
    a + b + c
    for a, b, c in itertools.product(("ca", "me", "ri", "so", "tu"), ("la", "ne", "ri", "to"), ("", "s", "do"))
]


def made_text(rng: random.Random, length: int) -> str:
    return " ".join(rng.choices(WORDS, k=length))


def edited(text: str, similarity: float, rng: random.Random) -> str:
    """Change words at random until the similarity of the sets of 5-grams falls to a value."""
    words = text.split()
    [original] = gram_sets([text])
    for place in rng.sample(range(len(words)), len(words)):
        before = words[place]
        words[place] = f"novo{rng.randrange(10**6)}"
        if jaccard(original, next(gram_sets([" ".join(words)]))) < similarity:
            words[place] = before
            break
    return " ".join(words)


def signatures(texts: Sequence[str]) -> np.ndarray:
    return np.concatenate(
        [batch_signatures(words, bounds, DuplicatesConfig()) for _, words, bounds in hash_batches(texts)]
    )


def decide(shards: Sequence[Sequence[str]], folder: Path, config: DuplicatesConfig | None = None) -> tuple[np.ndarray, dict[str, int]]:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    made, decided = ([folder / f"{kind}-{shard}.npy" for shard in range(len(shards))] for kind in ("f", "d"))
    for path, texts in zip(made, shards, strict=True):
        np.save(path, fingerprints(texts, config))
    counts = find_duplicates(made, lambda shard: shards[shard], decided, folder / "scratch", config)
    assert not (folder / "scratch").exists()
    return np.concatenate([np.load(path) for path in decided]), counts


def plain_words(text: str) -> list[str]:
    folded = "".join(
        c for c in unicodedata.normalize("NFKD", text).casefold() if unicodedata.category(c) not in ("Mn", "Cf")
    )
    return re.findall(r"[^\W_]+", folded)


def test_words_are_runs_of_letters_and_digits_whatever_their_case_and_accents() -> None:
    text = "  O Não-Lugar, art. 5º; «coração» e\u0301 CORAÇÃO\u00ad… n\u0061\u0303o 🙂 x_y"
    words = hash_words(text)
    spelled = [text[start:end] for start, end in zip(words.starts, words.ends, strict=True)]
    assert spelled == [
        "O",
        "Não",
        "Lugar",
        "art",
        "5º",
        "coração",
        "e\u0301",
        "CORAÇÃO\u00ad",
        "n\u0061\u0303o",
        "x",
        "y",
    ]
    numbers = dict(zip(spelled, words.hashes.tolist(), strict=True))
    assert numbers["coração"] == numbers["CORAÇÃO\u00ad"]
    assert numbers["Não"] == numbers["n\u0061\u0303o"]
    assert len(set(words.hashes.tolist())) == len(set(plain_words(text)))
    assert len(hash_words("").hashes) == len(hash_words("\n …").hashes) == 0


def test_a_long_text_and_a_batch_have_the_words_of_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    texts = [made_text(rng, length) for length in (300, 0, 1, 7, 900)] + ["", "🙂", "x" * 40]
    apart = [hash_words(text) for text in texts]
    monkeypatch.setattr(word_hashes, "PIECE_CHARACTERS", 500)
    monkeypatch.setattr(word_hashes, "_LONGEST_WORD", 50)
    for text, whole in zip(texts, apart, strict=True):
        cut = hash_words(text)
        assert all(
            np.array_equal(a, b)
            for a, b in ((cut.hashes, whole.hashes), (cut.starts, whole.starts), (cut.ends, whole.ends))
        )
    found = [
        words[start:end].tolist()
        for batch, words, bounds in hash_batches(texts)
        for start, end in itertools.pairwise(bounds)
    ]
    assert found == [words.hashes.tolist() for words in apart]


def test_signatures_estimate_the_similarity_without_bias() -> None:
    rng = random.Random(1)
    texts = [made_text(rng, 400) for _ in range(60)]
    for similarity in (0.5, 0.8):
        others = [edited(text, similarity, rng) for text in texts]
        true = [jaccard(*pair) for pair in zip(gram_sets(texts), gram_sets(others), strict=True)]
        one, other = signatures(texts), signatures(others)
        assert one.shape == (60, 112)
        assert one.dtype == np.uint64
        assert abs((one == other).mean() - np.mean(true)) < 0.02


def test_a_signature_does_not_depend_on_the_texts_around_it() -> None:
    rng = random.Random(2)
    texts = [made_text(rng, length) for length in (3, 20_000, 0, 5, 4, 40, 1)]
    together = signatures(texts)
    assert all(np.array_equal(signatures([text])[0], row) for text, row in zip(texts, together, strict=True))
    assert (together[2] == np.uint64(2**64 - 1)).all()
    assert fingerprints([]).shape == (0, 16)
    assert fingerprints(texts, DuplicatesConfig(near=False)).shape == (7, 2)


def test_true_similarity_is_that_of_the_sets_of_words() -> None:
    one, other = "a b c d e f g a b c d e", "b c d e f g h"
    sets = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one.split(), other.split())]
    assert jaccard(*gram_sets([one, other])) == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert jaccard(*gram_sets(["um dois", "Um, DOIS!"])) == 1
    assert jaccard(*gram_sets(["um dois", "um dois três"])) == 0
    assert jaccard(*gram_sets(["", ""])) == 0


def test_exact_duplicates_go_and_the_first_stays(tmp_path: Path) -> None:
    shards = [["Era uma vez.", "outra coisa", ""], ["ERA  uma vez", "", "🙂", "🙃"], ["🙂", "era uma vez!"]]
    found, counts = decide(shards, tmp_path, DuplicatesConfig(near=False))
    assert found["keeper"].tolist() == [0, 1, 2, 0, 2, 5, 6, 5, 0]
    assert found["keep"].tolist() == [True, True, True, False, False, True, True, False, False]
    assert found["cluster_size"].tolist() == [3, 1, 2, 3, 2, 2, 1, 2, 3]
    assert found["exact"].tolist() == (~found["keep"]).tolist()
    assert counts == {"documents": 9, "exact": 4, "near": 0, "clusters": 3, "proposed": 0, "compared": 0}


def test_planted_near_duplicates_are_found_and_nothing_below_the_threshold_goes(tmp_path: Path) -> None:
    rng = random.Random(3)
    originals = [made_text(rng, rng.randrange(80, 500)) for _ in range(240)]
    aims = [(0.55, 0.65, 0.8, 0.85, 0.9, 0.95)[place % 6] for place in range(240)]
    copies = [edited(text, aim, rng) for text, aim in zip(originals, aims, strict=True)]
    found, counts = decide([originals, copies], tmp_path)
    removed = {aim: [not found["keep"][240 + i] for i in range(240) if aims[i] == aim] for aim in set(aims)}
    assert sum(removed[0.9] + removed[0.95]) == 80
    assert sum(removed[0.85]) >= 0.97 * 40
    assert sum(removed[0.8]) >= 0.9 * 40
    assert sum(removed[0.55] + removed[0.65]) == 0
    sets = list(gram_sets([*originals, *copies]))
    for document in np.flatnonzero(~found["keep"]):
        assert found["keeper"][document] == document - 240
        similarity = jaccard(sets[document], sets[document - 240])
        assert similarity >= 0.75
        assert found["similarity"][document] == pytest.approx(similarity)
    assert counts["near"] + counts["exact"] == (~found["keep"]).sum() == counts["clusters"]


def test_a_chain_of_small_changes_keeps_what_nothing_else_is_like(tmp_path: Path) -> None:
    words = made_text(random.Random(4), 400).split()
    chain = [" ".join([*(f"novo{i}" for i in range(cut)), *words[cut:]]) for cut in range(0, 400, 20)]
    found, _ = decide([chain], tmp_path)
    sets = list(gram_sets(chain))
    kept = np.flatnonzero(found["keep"])
    assert 3 <= len(kept) < 15
    for document, keeper in enumerate(found["keeper"].tolist()):
        assert keeper in kept
        assert jaccard(sets[document], sets[keeper]) >= 0.75
    assert all(jaccard(sets[a], sets[b]) < 0.75 for a, b in itertools.combinations(kept, 2))


def test_an_exact_duplicate_of_a_near_duplicate_follows_to_its_cluster(tmp_path: Path) -> None:
    rng = random.Random(5)
    text = made_text(rng, 300)
    near = edited(text, 0.9, rng)
    found, counts = decide([[text, near], [near.upper()]], tmp_path)
    assert found["keeper"].tolist() == [0, 0, 0]
    assert found["cluster_size"].tolist() == [3, 3, 3]
    assert found["exact"].tolist() == [False, False, True]
    assert found["similarity"][1] == found["similarity"][2] < 1
    assert (counts["exact"], counts["near"], counts["clusters"]) == (1, 1, 1)


def test_decisions_do_not_depend_on_parts_or_on_how_documents_lie_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(6)
    texts = [made_text(rng, 120) for _ in range(30)]
    texts += [edited(rng.choice(texts), rng.choice((0.7, 0.8, 0.9, 1.1)), rng) for _ in range(90)]
    expected, counts = decide([texts], tmp_path / "one")
    assert counts["near"] > 20
    assert counts["exact"] > 10
    monkeypatch.setattr("teenytinyllama.corpus.duplicates._CHUNK_DOCUMENTS", 7)
    monkeypatch.setattr(
        "teenytinyllama.corpus.duplicates._part_of", lambda keys, parts: (keys % np.uint64(parts)).astype(np.int64)
    )
    monkeypatch.setattr("teenytinyllama.corpus.duplicates._MEGABYTE", 1)
    found, again = decide(
        [texts[:50], [], texts[50:51], texts[51:]], tmp_path / "four", DuplicatesConfig(memory_megabytes=5000)
    )
    assert np.array_equal(found, expected)
    assert again == counts


def test_a_bucket_of_many_documents_gives_few_pairs(tmp_path: Path) -> None:
    rng = random.Random(7)
    text = made_text(rng, 200)
    found, counts = decide([[text, *(f"{text} fim{i}" for i in range(600))]], tmp_path)
    assert found["keep"].sum() == 1
    assert found["cluster_size"][0] == 601
    assert counts["proposed"] <= 601 * 32 < 601 * 600 / 2


def test_no_documents(tmp_path: Path) -> None:
    found, counts = decide([[], []], tmp_path)
    assert len(found) == 0
    assert set(counts.values()) == {0}


def test_sources_come_in_the_order_of_preference() -> None:
    assert preference_order(["web", "leis", "web", "livros"], ["livros", "leis"]) == [3, 1, 0, 2]
    with pytest.raises(
        InputError, match=r"prefer=livro: no such source. Did you mean 'livros'\? Sources: web, livros."
    ):
        preference_order(["web", "web", "livros"], ["livro"])
    with pytest.raises(InputError, match="names a source twice"):
        preference_order(["web"], ["web", "web"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DuplicatesConfig(threshold=0), "threshold=0: must be above 0"),
        (DuplicatesConfig(threshold=1.1), "threshold=1.1: must be above 0 and at most 1"),
        (DuplicatesConfig(bands=0), "bands=0: must be from 1 to 1000"),
        (DuplicatesConfig(rows=101), "rows=101: must be from 1 to 100"),
        (DuplicatesConfig(ngram=0), "ngram=0: must be"),
        (DuplicatesConfig(memory_megabytes=0), "memory_megabytes=0: must be 1 or more"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config: DuplicatesConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        find_duplicates([], lambda shard: [], [], tmp_path / "scratch", config)


def test_fingerprints_of_another_config_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", fingerprints(["um texto"], DuplicatesConfig(bands=7)))
    with pytest.raises(InputError, match="its shape is .1, 9., and the fingerprints of this config have 16 columns"):
        find_duplicates([tmp_path / "a.npy"], lambda shard: ["um texto"], [tmp_path / "d.npy"], tmp_path / "scratch")


def test_memory_stays_flat_when_the_texts_grow(tmp_path: Path) -> None:
    def peak(copies: int) -> int:
        folder = tmp_path / str(copies)
        folder.mkdir()
        files = [folder / f"{shard}.npy" for shard in range(copies)]
        texts_of = lambda shard: (made_text(random.Random(i // 2), 3000) for i in range(40 * shard, 40 * shard + 40))  # noqa: E731
        tracemalloc.start()
        for shard, path in enumerate(files):
            np.save(path, fingerprints(texts_of(shard)))
        find_duplicates(files, texts_of, [folder / f"d{s}.npy" for s in range(copies)], folder / "scratch")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    hash_words("tables")
    assert peak(6) < 1.25 * peak(2)
