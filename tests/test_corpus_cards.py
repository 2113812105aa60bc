"""Cards of a corpus of `ttl corpus`: of the dataset that it is published as, and of the model that is trained on it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from card_runs import RUN, write_run
from test_corpus_factory import config, make
from test_dataset_publishing import card_of, names, publish, record_of

from teenytinyllama.checks import InputError
from teenytinyllama.corpus.provenance import contamination_of, corpora_of
from teenytinyllama.data.pack import PackConfig, pack
from teenytinyllama.evaluation.results import Results
from teenytinyllama.evaluation.score_report import format_results
from teenytinyllama.publishing.card import render_model_card
from teenytinyllama.publishing.contents import corpus_inputs
from teenytinyllama.stage_folder import sha256_file


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    keys = config(folder)
    keys["sources"]["news"] |= {"weight": 1, "license": "cc-by-nc-4.0", "url": "https://example.org/news"}
    return make(keys | {"output_dir": str(folder / "corpus"), "mixing": {"validation_fraction": 0.1}})


@pytest.fixture
def folder(corpus: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    import shutil

    shutil.copytree(corpus, tmp_path / "corpus", ignore=shutil.ignore_patterns("work"))
    return tmp_path / "corpus"


def test_a_corpus_is_published_with_its_passport(folder: Path, tmp_path: Path) -> None:
    upload = publish(tmp_path, folder)
    front, body = card_of(upload)
    assert front["license"] == "cc-by-nc-4.0"
    assert {split["name"] for split in front["dataset_info"]["splits"]} == {"train", "validation"}
    assert sum(split["num_examples"] for split in front["dataset_info"]["splits"]) == 40 + 12
    assert [name for name in names(upload) if name.startswith("passport")] == ["passport.json", "passport.md"]
    for text in ("Licence of the whole: cc-by-nc-4.0", "NON-COMMERCIAL", "Licença do conjunto: cc-by-nc-4.0",
                 "https://example.org/news", "| news | news |", "| 43 | 40 |", "language: language is en 1",
                 "Nobody looked for evaluation sets in it.", "Ninguém procurou conjuntos de avaliação nele.",
                 "| profession | women | men | not said |", "Steps that were left out: toxicity, decontamination",
                 "ttl corpus"):  # fmt: skip
        assert text in body.replace("\\", ""), text
    public = b"".join(file.source for file in upload.files if isinstance(file.source, bytes))
    assert str(tmp_path).encode() not in public
    assert str(folder.parent).encode() not in public
    assert b"91234-5678" not in public
    assert record_of(upload)["making"]["steps"][0]["stage"] == "corpus"


def test_a_corpus_that_is_not_as_its_passport_says_is_refused(folder: Path, tmp_path: Path) -> None:
    shard = folder / "train" / "00000.parquet"
    (folder / "train" / "00001.parquet").write_bytes(shard.read_bytes())
    with pytest.raises(InputError, match=r"its parquet files are not those that passport.json describes"):
        publish(tmp_path, folder)
    (folder / "passport.json").unlink()
    with pytest.raises(InputError, match=r"has no passport.json. Run the same `ttl corpus` again first"):
        corpus_inputs(folder)


def test_cards_and_results_say_what_was_found_of_evaluation_sets(folder: Path, tmp_path: Path) -> None:
    passport = json.loads((folder / "passport.json").read_text(encoding="utf-8"))
    passport["contamination"] = {"passages": {"oab": 1234, "enem": 0}, "documents": 5}
    (folder / "passport.json").write_text(json.dumps(passport), encoding="utf-8")
    run = copy.deepcopy(RUN)
    run["data"]["corpora"] = corpora_of([folder / "train" / "00000.parquet"], set(passport["files"].values()))
    place = write_run(tmp_path / "run", run)
    cards = [card_of(publish(tmp_path, folder))[1], render_model_card(place)]
    for card in cards:
        card = card.replace("\\", "")
        assert "oab 1,234, enem 0. Documents" in card
        assert "oab 1.234, enem 0. Documentos" in card
    found = [{"corpus": "corpus", "contamination": passport["contamination"]}]
    assert contamination_of(place) == contamination_of(place / "checkpoint-1") == found
    assert contamination_of(tmp_path / "none" / "model") == []
    said = format_results(Results("m", "", {}, ()), [], {}, found)
    assert "Trained on the corpus corpus. Passages of evaluation sets that were removed: oab 1,234, enem 0. Doc" in said
    del passport["contamination"]  # made before passports said it: nothing is said
    (folder / "passport.json").write_text(json.dumps(passport), encoding="utf-8")
    run["data"]["corpora"] = corpora_of([folder / "train" / "00000.parquet"], set(passport["files"].values()))
    old = write_run(tmp_path / "old", run)
    assert "evaluation sets" not in card_of(publish(tmp_path, folder))[1] + render_model_card(old)
    assert contamination_of(old) == []


def test_packed_rows_and_a_model_card_name_the_corpus(folder: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    settings: dict[str, Any] = {"tokenizer": str(tokenizer_folder), "context": 64}
    packed = pack(PackConfig(inputs=[str(folder / "train")], output_dir=str(tmp_path / "packed"), **settings))
    manifest = json.loads((packed / "run.json").read_text(encoding="utf-8"))
    (noted,) = manifest["corpora"]
    assert noted["passport_sha256"] == sha256_file(folder / "passport.json")
    assert (noted["name"], noted["licence"], set(noted["sources"])) == ("corpus", "cc-by-nc-4.0", {"news", "laws"})
    run = copy.deepcopy(RUN)
    run["data"]["corpora"] = manifest["corpora"]
    card = render_model_card(write_run(tmp_path / "run", run)).replace("\\", "")
    assert "The text is of the corpus `corpus`, made by `ttl corpus`; licence of the whole: cc-by-nc-4.0." in card
    assert "O texto é do corpus `corpus`, feito por `ttl corpus`; licença do conjunto: cc-by-nc-4.0." in card
    assert "news (cc-by-nc-4.0, https://example.org/news), laws (public-domain)." in card.replace("&#58;", ":")
    assert noted["passport_sha256"] in card
    assert "NON-COMMERCIAL: cc-by-nc-4.0 (40 documents)" in card
    assert noted["contamination"] is None
    assert "Nobody looked for evaluation sets in it." in card
    # A file that was changed since is of no corpus.
    shard = folder / "train" / "00000.parquet"
    shard.write_bytes(shard.read_bytes() + b"x")
    assert corpora_of([shard], [sha256_file(shard)]) == []
    assert corpora_of([tmp_path / "run" / "run.json"], []) == []
