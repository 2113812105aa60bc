"""The tokenizer: fixed ids, exact round trips, the same ids wherever it is loaded, and every refusal."""

import heapq
import json
import os
import pickle
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.models import load_tokenizer
from teenytinyllama.tokenizer.encode import encode_texts, make_portable, tokenizer_fingerprint
from teenytinyllama.tokenizer.files import (
    ALWAYS_IN_ALPHABET,
    BOS_ID,
    END_INSTRUCTION_ID,
    EOS_ID,
    FIRST_BYTE_ID,
    FUNCTION_WORDS,
    INSTRUCTION_ID,
    NUM_RESERVED_TOKENS,
    PAD_ID,
    RESERVED_TOKENS,
    SPECIAL_TOKENS,
    UNK_ID,
    finish_tokenizer,
    keep_reachable,
    list_merges,
    sentencepiece_model,
)
from teenytinyllama.tokenizer.learn import PIECE_BYTES, choose_alphabet, known_parts, sample_texts
from teenytinyllama.tokenizer.train import audit_tokenizer, format_audit, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
VOCAB_SIZE = 580

_SUBJECTS = ["A menina", "O pescador", "Minha avó", "O coração da cidade", "Um viajante", "A professora", "Ninguém"]
_VERBS = ["encontrou", "não esqueceu", "guardava", "descreveu", "comprará", "pôs à venda", "fotografou"]
_OBJECTS = ["o pão de ló", "três maçãs", "as histórias do sertão", "uma canção antiga", "o relógio", "seus óculos"]
_PLACES = ["na praça", "à beira-mar", "em São Luís", "no último ônibus", "durante a reunião", "às 7 horas e 45 minutos"]
SENTENCES = [
    f"{subject} {verb} {thing} {place}, em {1900 + 7 * number % 120}."
    for number, (subject, verb, thing, place) in enumerate(
        (s, v, o, p) for s in _SUBJECTS for v in _VERBS for o in _OBJECTS for p in _PLACES
    )
] + [
    "-----\n",
    "......",
    "ahahahaha!",
    "banana anana",
    "for i in range(10):\n    print(i)\n",
    "<s>riscado</s> <s>x",
] * 20

NASTY = {
    "empty": "",
    "emoji": "Bom dia ☀️! 👩‍👩‍👧‍👦 🇧🇷 👍🏽",
    "tabs and line ends": "\tum\r\n\r\ndois\n\n\ttrês\r",
    "double spaces": "  dois  espaços   ",
    "one space": " ",
    "only spaces": " " * 37,
    "control": "\x00\x01\x07\x1b[0m\x7f\u0085\u200b\ufeff\u2028",
    "combining": "ação = ac\u0327a\u0303o e\u0301",
    "ideograms": "東京 日本語テキスト 한국어",
    "digits": "1234567890 3,14 1º m² ½ ٣٤ Ⅳ",
    "specials typed": "</s> <unk> <s> <pad> <instruction>oi</instruction> <0x41> <0xFF> <reserved_0>",
    "runs": "-" * 97 + "." * 33 + "a" * 101 + "=" * 7,
    "repeats": "banana anana nananana ahahahah",
    "url": "https://exemplo.com.br/a?b=%20c&d=É#fim",
    "code": "def f(x):\n\treturn {'a': [x**2, \"ç\"]}  # fim\n",
    "no-break space": "R$\u00a010,00\u202fkm",
    "last plane": "\U0010ffff\U000e0001",
}


@dataclass
class Document:
    text: str
    source: str


def load(folder: str | Path):
    return load_tokenizer("tokenizer", str(folder))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES, VOCAB_SIZE)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_portable(tokenizer).save_pretrained(folder)
    return folder


def vocabulary_of(tokenizer) -> list[str]:
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)


def sentencepiece_of(tokenizer):
    """SentencePiece itself, on the `tokenizer.model` that is saved beside `tokenizer.json`."""
    import sentencepiece

    model = sentencepiece_model(json.loads(tokenizer.backend_tokenizer.to_str()))
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def hard_strings(vocabulary: list[str], how_many: int) -> list[str]:
    """Strings made to provoke ties: repeated pieces, overlaps and runs over few characters."""
    draw = random.Random(7)
    pieces = [piece for piece in vocabulary[NUM_RESERVED_TOKENS:] if 3 <= len(piece) <= 6]
    letters = [piece for piece in vocabulary[NUM_RESERVED_TOKENS:] if len(piece) == 1 and piece != "▁"]
    out = []
    for number in range(how_many):
        piece, other, cut = draw.choice(pieces), draw.choice(pieces), draw.randint(1, 3)
        out.append(
            [
                "".join(draw.choices(pieces, k=3)) * draw.randint(1, 4),
                "".join(draw.choices(draw.sample(letters, 2), k=draw.randint(2, 30))),
                draw.choice(letters) * draw.randint(1, 120),
                piece[cut:] + piece * draw.randint(1, 4) + piece[:cut] + other,
            ][number % 4]
        )
    return [string.replace("▁", " ") for string in out]


# --- ids and vocabulary


def test_reserved_ids(tokenizer):
    vocabulary = vocabulary_of(tokenizer)
    assert len(tokenizer) == len(vocabulary) == VOCAB_SIZE
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCAB_SIZE))
    assert vocabulary[:4] == ["<unk>", "<s>", "</s>", "<pad>"]
    assert vocabulary[4:260] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert vocabulary[260:268] == ["<instruction>", "</instruction>"] + [f"<reserved_{n}>" for n in range(6)]
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id) == (UNK_ID, BOS_ID) == (0, 1)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (EOS_ID, PAD_ID) == (2, 3)
    assert (INSTRUCTION_ID, END_INSTRUCTION_ID, FIRST_BYTE_ID) == (260, 261, 4)
    assert set(tokenizer.added_tokens_decoder) == {0, 1, 2, 3, *range(260, 268)}  # the bytes are ordinary entries


def test_learnt_pieces_keep_to_the_rules(tokenizer):
    vocabulary = vocabulary_of(tokenizer)
    assert set("0123456789") <= set(vocabulary)
    assert set(vocabulary) >= ALWAYS_IN_ALPHABET
    for piece in vocabulary[NUM_RESERVED_TOKENS:]:
        assert "▁" not in piece[1:] or set(piece[1:].split("▁")) <= set(FUNCTION_WORDS)
        assert re.search(r"\d\d\d", piece) is None


def test_beginning_of_text_is_the_only_addition(tokenizer):
    ids = tokenizer("O pão")["input_ids"]
    assert ids[0] == BOS_ID
    assert ids[1:] == encode_texts(tokenizer, ["O pão"])[0]
    assert set(tokenizer("x")) == {"input_ids", "attention_mask"}
    assert tokenizer.padding_side == "right"
    assert tokenizer.clean_up_tokenization_spaces is False


def test_no_dummy_prefix(tokenizer):
    with_space, without = encode_texts(tokenizer, [" o", "o"])
    assert with_space != without
    assert tokenizer.convert_ids_to_tokens(without) == ["o"]


# --- round trips and typed specials


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
def test_round_trip_is_exact(tokenizer, text):
    [ids] = encode_texts(tokenizer, [text])
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(tokenizer(text, split_special_tokens=True)["input_ids"], skip_special_tokens=True) == text
    assert UNK_ID not in ids


def test_round_trip_on_random_unicode(tokenizer):
    draw = random.Random(3)
    scalars = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000 and code != 0x2581]
    texts = [
        "".join(map(chr, draw.choices(scalars[: draw.choice([128, 600, 70_000, None])], k=40))) for _ in range(400)
    ]
    for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True):
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert UNK_ID not in ids


def test_the_space_mark_is_the_one_exception(tokenizer):
    [ids] = encode_texts(tokenizer, ["a▁b"])
    assert tokenizer.decode(ids) == "a b"


@pytest.mark.parametrize("special", [*SPECIAL_TOKENS, "<0x41>"])
def test_typed_specials_are_plain_characters(tokenizer, special):
    [ids] = encode_texts(tokenizer, [f"fim {special} aqui"])
    assert not set(ids) & set(tokenizer.added_tokens_decoder)
    assert tokenizer.convert_tokens_to_ids("<0x41>") not in ids


def test_the_template_still_reads_specials(tokenizer):
    assert tokenizer("<instruction>oi</s>", add_special_tokens=False)["input_ids"][0] == INSTRUCTION_ID
    assert tokenizer("<instruction>oi</s>", add_special_tokens=False)["input_ids"][-1] == EOS_ID


def test_encode_texts_equals_the_slow_call(tokenizer):
    texts = [*NASTY.values(), *SENTENCES[:50]]
    slow = [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts]
    assert encode_texts(tokenizer, texts) == slow
    tokenizer(texts, truncation=True, padding="max_length", max_length=4)  # leaves both switched on in the backend
    assert encode_texts(tokenizer, texts) == slow
    tokenizer("oi")  # the usual call reads specials
    encode_texts(tokenizer, texts)
    assert tokenizer.backend_tokenizer.encode_special_tokens is False  # left as it was found
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"] == [EOS_ID]
    assert encode_texts(tokenizer, []) == []


def test_encode_texts_refuses_one_string(tokenizer):
    with pytest.raises(InputError, match=r"one str.*Write \[text\]"):
        encode_texts(tokenizer, "texto")


# --- the same ids everywhere


_RELOAD = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert not any(name.startswith("teenytinyllama") for name in sys.modules)
texts = json.load(open(sys.argv[2]))
plain = [tokenizer(t, add_special_tokens=False, split_special_tokens=True)["input_ids"] for t in texts]
text = [tokenizer.decode(ids, skip_special_tokens=True) for ids in plain]
print(json.dumps([plain, text, tokenizer("x")["input_ids"], len(tokenizer), tokenizer.padding_side]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("beside_a_model", [False, True])
def test_same_ids_in_a_fresh_process_without_the_package(tokenizer, saved, tmp_path, beside_a_model):
    folder = tmp_path / "model"
    make_portable(tokenizer).save_pretrained(folder)
    if beside_a_model:
        (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    texts = [*NASTY.values(), *SENTENCES[:100]]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    arguments = [sys.executable, "-c", _RELOAD, str(folder), str(tmp_path / "texts.json")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    plain, decoded, with_start, size, side = json.loads(done.stdout.splitlines()[-1])
    assert plain == encode_texts(tokenizer, texts)
    assert decoded == texts
    assert with_start == tokenizer("x")["input_ids"]
    assert (size, side) == (VOCAB_SIZE, "right")


def saved_class(folder: Path) -> str:
    return json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]


def test_every_save_has_the_class_name_of_both_versions(tokenizer, saved, tmp_path):
    assert saved_class(saved) == "PreTrainedTokenizerFast"
    again = load(saved)
    again.save_pretrained(tmp_path / "again")  # what the Trainer calls in each checkpoint
    assert saved_class(tmp_path / "again") == "PreTrainedTokenizerFast"
    tokenizer.save_pretrained(tmp_path / "plain")
    assert saved_class(tmp_path / "plain") == "PreTrainedTokenizerFast"
    config = json.loads((saved / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in config  # transformers 4 refuses a list here
    assert config["model_input_names"] == ["input_ids", "attention_mask"]  # and adds token_type_ids without this


def test_make_portable_repairs_a_generic_tokenizer(saved, tmp_path):
    from transformers import AutoTokenizer

    generic = AutoTokenizer.from_pretrained(saved)
    generic.save_pretrained(tmp_path / "plain")
    assert saved_class(tmp_path / "plain") != "PreTrainedTokenizerFast"  # why make_portable exists
    make_portable(generic).save_pretrained(tmp_path / "repaired")
    assert saved_class(tmp_path / "repaired") == "PreTrainedTokenizerFast"


def test_a_foreign_tokenizer_has_no_sentencepiece_model_and_keys_that_transformers_4_reads(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={"<s>": 0, "a": 1, "b": 2, "ab": 3}, merges=[("a", "b")]))
    foreign = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    foreign.add_special_tokens({"extra_special_tokens": ["<um>", "<dois>"]})
    foreign.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert before["extra_special_tokens"] == ["<um>", "<dois>"]  # which transformers 4 fails on
    finish_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == ["<um>", "<dois>"]
    assert "extra_special_tokens" not in config
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not (tmp_path / "tokenizer.model").exists()
    again = load(tmp_path)
    assert set(again.all_special_tokens) == set(foreign.all_special_tokens)
    again.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert {**written, **config} == written


def test_tokens_added_to_ours_are_in_the_sentencepiece_model(tokenizer, tmp_path):
    more = pickle.loads(pickle.dumps(tokenizer))
    more.add_special_tokens({"extra_special_tokens": ["<fim>"]})
    more.add_tokens(["marca"])
    more.save_pretrained(tmp_path)
    read = sentencepiece_of(more)
    assert (tmp_path / "tokenizer.model").read_bytes() == read.serialized_model_proto()
    assert [read.id_to_piece(index) for index in range(read.get_piece_size())] == vocabulary_of(more)
    assert read.is_control(read.piece_to_id("<fim>"))
    assert read.encode("a marca") == more("a marca", add_special_tokens=False)["input_ids"]


def test_the_llama_class_gives_the_same_ids(tokenizer, saved):
    from transformers import LlamaTokenizer

    llama = LlamaTokenizer.from_pretrained(saved)
    assert encode_texts(llama, list(NASTY.values())) == encode_texts(tokenizer, list(NASTY.values()))


def test_it_survives_pickling(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert encode_texts(copy, SENTENCES[:5]) == encode_texts(tokenizer, SENTENCES[:5])


def test_fingerprint(tokenizer, saved, tmp_path):
    mark = tokenizer_fingerprint(tokenizer)
    assert len(mark) == 64
    assert mark == tokenizer_fingerprint(load(saved)) == tokenizer_fingerprint(load(str(saved)))
    tokenizer("um dois", truncation=True, max_length=1)
    assert mark == tokenizer_fingerprint(tokenizer)
    other = load(saved)
    other.add_tokens(["novo"])
    assert tokenizer_fingerprint(other) != mark
    assert tokenizer_fingerprint(train_tokenizer(SENTENCES, VOCAB_SIZE - 1)) != mark


def test_load_tokenizer_refuses_a_folder_without_one(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer=.*: holds no tokenizer .*ttl tokenizer"):
        load(tmp_path)


def test_load_tokenizer_refuses_a_missing_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"tokenizer=.*nada: no such folder"):
        load(tmp_path / "nada")


_TRAIN = """
import sys
from teenytinyllama.tokenizer.encode import tokenizer_fingerprint
from teenytinyllama.tokenizer.train import train_tokenizer
sys.path.insert(0, sys.argv[1])
from test_tokenizer import SENTENCES
print(tokenizer_fingerprint(train_tokenizer(SENTENCES, 480, max_bytes=60_000, seed=5)))
"""


@pytest.mark.slow
def test_training_is_deterministic_across_processes():
    marks = set()
    for hash_seed, threads in (("1", "1"), ("2", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", _TRAIN, str(ROOT / "tests")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        marks.add(done.stdout.split()[-1])
    assert len(marks) == 1


# --- SentencePiece


def test_same_ids_as_sentencepiece(tokenizer):
    vocabulary = vocabulary_of(tokenizer)
    reference = sentencepiece_of(tokenizer)
    texts = [*NASTY.values(), *SENTENCES, *hard_strings(vocabulary, 4_000)]
    assert encode_texts(tokenizer, texts) == reference.encode(texts)


def test_merges_break_ties_to_the_left():
    # "an|a|na": SentencePiece joins the left "ana"; a list by position of the cut would join the right one
    pieces = ["a", "n", "an", "na", "ana"]
    merges = list_merges([*RESERVED_TOKENS, *pieces])
    assert merges == [("a", "n"), ("n", "a"), ("an", "a"), ("a", "na")]


def test_pieces_built_on_a_special_are_dropped():
    base = [*RESERVED_TOKENS, "<", ">", "s", "x"]
    assert keep_reachable(base, ["<s", "<s>x", "sx"], 1_000)[len(base) :] == ["<s", "sx"]


@pytest.fixture(scope="module")
def real_documents() -> list[Document]:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = Path(os.environ.get("TTL_REAL_DATA", ROOT.parent / "shared" / "data")) / "corpus"
    if not folder.is_dir():
        pytest.skip("no real data: set TTL_REAL_DATA")
    documents = []
    for path in sorted(folder.glob("*.parquet")):
        texts = parquet.read_table(path, columns=["text"])["text"].to_pylist()
        documents += [Document(text[:20_000], path.stem) for text in texts[:: max(1, len(texts) // 15)]]
    return documents


@pytest.mark.slow
def test_real_text_equals_sentencepiece_and_round_trips(real_documents):
    tokenizer = train_tokenizer(real_documents, 3_000, max_bytes=1_000_000)
    lines = [line for document in real_documents for line in document.text.split("\n") if line and "▁" not in line]
    assert len(lines) > 5_000
    vocabulary = vocabulary_of(tokenizer)
    texts = [*lines, *hard_strings(vocabulary, 1_000)]
    ids = encode_texts(tokenizer, texts)
    assert ids == sentencepiece_of(tokenizer).encode(texts)
    audit = audit_tokenizer(tokenizer, lines)["overall"]
    assert audit["round_trip_failures"] == audit["unknown_rate"] == 0
    assert 1.2 < audit["tokens_per_word"] < 2.5


# --- sampling and alphabet


def test_everything_is_kept_when_it_fits():
    sample = sample_texts(SENTENCES, 10_000_000)
    assert list(sample.texts()) == [text for text in SENTENCES if text]
    assert sample.seen_bytes == sample.kept_bytes == {"text": sum(len(text.encode()) for text in SENTENCES)}


def _mixed() -> Iterator[Document]:
    yield Document("só uma vez", "rara")
    for number in range(4_000):
        yield Document("canção " * 10, "livros" if number % 8 else "web")


def test_the_sample_is_bounded_seeded_and_stratified():
    sample = sample_texts(_mixed(), 50_000, seed=1)
    rates = {name: sample.kept_bytes[name] / sample.seen_bytes[name] for name in sample.seen_bytes}
    assert 49_000 < sum(map(len, sample.pieces)) == sum(sample.kept_bytes.values()) <= 50_000
    assert rates["livros"] == pytest.approx(rates["web"], abs=0.01)
    assert rates["rara"] == 1  # the only piece of a source is not lost
    assert sample_texts(_mixed(), 50_000, seed=1) == sample
    numbered = [f"{number} " for number in range(5_000)]
    assert sample_texts(numbered, 5_000, seed=1).pieces != sample_texts(numbered, 5_000, seed=2).pieces


@pytest.mark.parametrize(
    "text", ["uma palavra\n" * 30_000, "x" + "é" * 100_000, "x" + "👍" * 50_000, "x" * (2 * PIECE_BYTES)]
)
def test_long_documents_are_cut_without_loss(text):
    sample = sample_texts([text], 100_000_000)
    pieces = list(sample.texts())  # each is valid UTF-8
    assert "".join(pieces) == text
    assert len(pieces) > 1
    assert max(map(len, sample.pieces)) <= PIECE_BYTES
    if "\n" in text:
        assert all(piece.startswith(("uma", " ", "\n")) for piece in pieces)


def test_rare_characters_stay_out_of_the_alphabet():
    alphabet = choose_alphabet(["a maçã é doce " * 5_000 + "東京"])
    assert "東" not in alphabet
    assert " " not in alphabet
    assert {"▁", "ã", "Ü", "9"} <= set(alphabet)
    assert "東" in choose_alphabet(["東京 " * 10])
    assert list(known_parts(["ab東cd"], alphabet)) == ["ab", "cd"]


def test_parts_are_the_text_without_strange_characters_and_cut_in_numbers():
    draw = random.Random(3)
    alphabet = choose_alphabet(["a maçã é doce, 12.345 " * 5_000])
    texts = ["".join(draw.choices("ab ,\n1234567890é東\U0010ffff", k=draw.randint(0, 40))) for _ in range(3_000)]
    known = "".join(alphabet) + " "
    for text in texts:
        stretches = re.split(f"[^{re.escape(known)}]+", text)
        pairs = [re.sub("([0-9]{2})(?=[0-9])", "\\1|", stretch) for stretch in stretches]
        expected = [part for pair in pairs for part in pair.split("|") if part]
        assert list(known_parts([text], alphabet)) == expected
        assert list(known_parts([text], alphabet, cut_numbers=False)) == [part for part in stretches if part]
    assert list(known_parts(texts, alphabet)) == [part for text in texts for part in known_parts([text], alphabet)]


# --- audit


def test_audit_of_known_counts(tokenizer):
    texts = [Document("東", "raro"), Document("o pão  ", "livros"), Document("", "livros"), Document("a▁b", "livros")]
    audit = audit_tokenizer(tokenizer, texts)
    rare, books, overall = audit["sources"]["raro"], audit["sources"]["livros"], audit["overall"]
    assert (rare["documents"], rare["words"], rare["tokens"], rare["bytes"]) == (1, 1, 3, 3)
    assert (rare["byte_token_rate"], rare["vocabulary_use"], rare["tokens_per_word"]) == (1, 0, 3)
    assert (books["documents"], books["words"], books["round_trip_failures"]) == (3, 3, 1)
    assert books["first_failure"] == overall["first_failure"] == {"text": "a▁b", "decoded": "a b"}
    assert overall["tokens"] == rare["tokens"] + books["tokens"]
    assert overall["bytes_per_token"] == overall["bytes"] / overall["tokens"]
    assert overall["unknown_rate"] == 0
    assert overall["vocabulary_use"] == pytest.approx(
        len({i for t in texts[1:] for i in encode_texts(tokenizer, [t.text])[0]}) / (VOCAB_SIZE - 268)
    )
    json.dumps(audit)
    table = format_audit(audit)
    assert [line.split()[0] for line in table.splitlines()[:4]] == ["source", "livros", "raro", "overall"]
    assert "'a▁b' decodes to 'a b'" in table


def test_audit_of_a_foreign_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "sim": 1, "não": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    foreign = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    row = audit_tokenizer(foreign, ["sim não talvez", "sim"])["overall"]
    assert row["unknown_rate"] == 0.25
    assert row["round_trip_failures"] == 1
    assert row["vocabulary_use"] == 1


def test_audit_refuses_nothing(tokenizer):
    with pytest.raises(InputError, match="nothing to audit"):
        audit_tokenizer(tokenizer, [])
    with pytest.raises(InputError, match=r"texts: got one str"):
        audit_tokenizer(tokenizer, "texto")


# --- refusals


def test_refuses_a_vocabulary_smaller_than_the_reserved_part():
    with pytest.raises(InputError, match=r"vocab_size=300: too small for 268 reserved.*Use at least 357\."):
        train_tokenizer(SENTENCES, 300)


def test_the_smallest_vocabulary_named_is_right():
    text = "αβγδε " * 100
    smallest = 268 + len(choose_alphabet([text]))
    with pytest.raises(InputError, match=rf"too small.*Use at least {smallest}\."):
        train_tokenizer([text], smallest - 1)
    assert len(train_tokenizer([text], smallest)) == smallest


def test_the_largest_vocabulary_named_is_right():
    with pytest.raises(InputError, match=r"vocab_size=90000: larger than these texts support; they give \d+") as caught:
        train_tokenizer(SENTENCES[:200], 90_000)
    largest = int(str(caught.value).split("Use at most ")[1].split(",")[0])
    assert len(train_tokenizer(SENTENCES[:200], largest)) == largest


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_refuses_no_text(texts):
    with pytest.raises(InputError, match="texts: no text at all"):
        train_tokenizer(texts, 500)


@pytest.mark.parametrize(("item", "kind"), [(b"bytes", "bytes"), (None, "NoneType"), ({"text": "linha"}, "dict")])
def test_refuses_what_is_not_text(item, kind):
    with pytest.raises(InputError, match=rf"texts\[1\]={kind}: each item must be a str"):
        train_tokenizer(["certo", item], 500)


def test_refuses_one_string():
    with pytest.raises(InputError, match=r"texts: got one str.*Write \[text\]"):
        train_tokenizer("um texto só", 500)


def test_refuses_lone_surrogates(tokenizer):
    with pytest.raises(InputError, match=r"texts\[1\]: lone surrogate U\+D83D at character 3"):
        train_tokenizer(["certo", "oi \ud83d"], 500)
    with pytest.raises(InputError, match=r"texts\[0\]: lone surrogate"):
        audit_tokenizer(tokenizer, ["\udfff"])


@pytest.mark.parametrize("max_bytes", [0, -5])
def test_refuses_a_sample_of_nothing(max_bytes):
    with pytest.raises(InputError, match=rf"max_bytes={max_bytes}: must be at least 1"):
        train_tokenizer(SENTENCES, 500, max_bytes=max_bytes)


def test_refuses_a_sample_smaller_than_a_piece():
    with pytest.raises(InputError, match="max_bytes=2: too small to keep"):
        train_tokenizer(["👍👍"], 500, max_bytes=2)


def test_a_ready_sample_can_be_trained_on(tokenizer):
    ready = train_tokenizer(sample_texts(SENTENCES, 10**9), VOCAB_SIZE)
    assert tokenizer_fingerprint(ready) == tokenizer_fingerprint(tokenizer)


def test_importing_the_module_is_light():
    code = "import sys, teenytinyllama.tokenizer.train; print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_the_source_that_loses_a_piece_is_the_one_a_plain_search_finds() -> None:
    """With as many sources as documents a search over all of them takes hours."""
    draw = random.Random(3)
    documents = [
        SimpleNamespace(text="á" * draw.randint(1, 60), source=f"s{int(draw.random() ** 3 * 200)}")
        for _ in range(3_000)
    ]
    found = sample_texts(documents, 20_000, seed=5)
    priorities = random.Random(5)
    heaps: dict[str, list[tuple[float, int, bytes]]] = {}  # (priority, place, document): none is long enough to be cut
    seen: Counter[str] = Counter()
    kept: Counter[str] = Counter()

    def share_without_its_last(name: str) -> float:
        return (kept[name] - len(heaps[name][0][2])) / seen[name] if heaps[name] else -1.0

    for place, document in enumerate(documents):
        data = document.text.encode()
        heapq.heappush(heaps.setdefault(document.source, []), (priorities.random(), place, data))
        seen[document.source] += len(data)
        kept[document.source] += len(data)
        while kept.total() > 20_000:
            name = max(heaps, key=share_without_its_last)
            kept[name] -= len(heapq.heappop(heaps[name])[2])
    expected = sorted(entry[1:] for heap in heaps.values() for entry in heap)
    assert found.pieces == [piece for _, piece in expected]
    assert found.kept_bytes == kept


@pytest.mark.parametrize("changes", [{}, {"validation_fraction": 0.0}, {"validation_fraction": 0.5, "audit_bytes": 1}])
def test_a_tokenizer_without_held_out_documents_is_kept(
    tmp_path: Path, changes: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    """One book is the plainest corpus; of it the end is held out."""
    from teenytinyllama.tokenizer.train import TokenizerConfig, build_tokenizer

    names = ["livro.txt"] if not changes else [f"{n}.txt" for n in range(8)]
    for name in names:
        (tmp_path / name).write_text(f"{name} " + " ".join(SENTENCES))
    inputs = [str(tmp_path / name) for name in names]
    folder = build_tokenizer(
        TokenizerConfig(inputs=inputs, vocab_size=400, output_dir=str(tmp_path / "t"), **changes)  # type: ignore[arg-type]
    )
    documents = json.loads((folder / "audit.json").read_text())["overall"]["documents"]
    said = "no held-out document to audit with" in capsys.readouterr().out
    assert (documents, said) == ((0, True) if changes.get("validation_fraction") == 0 else (1, False))
    assert len(load_tokenizer("tokenizer", str(folder))) == 400
