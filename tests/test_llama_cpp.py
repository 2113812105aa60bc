"""llama.cpp gives our ids on a GGUF file made by the readers of the `gguf` package; .ci/run installs both."""

import json
from pathlib import Path

import pytest
from conftest import other_tool
from test_superwords import TEXTS, nasty_texts, tokenizer  # noqa: F401
from test_tokenizer import NASTY, hard_strings, real_documents, vocabulary_of  # noqa: F401

from teenytinyllama.chat.template import install_chat_template
from teenytinyllama.models import load_tokenizer
from teenytinyllama.tokenizer.encode import encode_texts
from teenytinyllama.tokenizer.files import (
    BOS_ID,
    BOS_TOKEN,
    BYTE_TOKENS,
    END_INSTRUCTION_ID,
    EOS_ID,
    INSTRUCTION_ID,
    PAD_ID,
    RESERVED_TOKENS,
    SPECIAL_TOKENS,
    UNK_TOKEN,
)
from teenytinyllama.tokenizer.train import train_tokenizer

pytestmark = pytest.mark.other_tools


def llama_cpp_of(folder: Path):
    """Return llama.cpp's tokenizer of a saved folder, made as its converter makes one of a Llama: entries, scores and
    kinds by `SentencePieceVocab`, ids of special tokens and the template by `SpecialVocab`, the prefix by the config."""
    gguf, llama_cpp = other_tool("gguf"), other_tool("llama_cpp")
    path = folder / "vocabulary.gguf"
    vocabulary = gguf.SentencePieceVocab(folder)
    pieces, scores, kinds = zip(*vocabulary.all_tokens(), strict=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_vocab_size(vocabulary.vocab_size)
    writer.add_tokenizer_model(vocabulary.tokenizer_model)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    gguf.SpecialVocab(folder, n_vocab=vocabulary.vocab_size).add_to_gguf(writer, quiet=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    writer.add_add_space_prefix(config["add_prefix_space"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return llama_cpp.Llama(str(path), vocab_only=True, verbose=False)


def plain_ids(model, texts: list[str]) -> list[list[int]]:
    return [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]


def test_ids_are_llama_cpp_s(tokenizer, tmp_path: Path):  # noqa: F811
    tokenizer.save_pretrained(tmp_path)
    texts = [*nasty_texts(tokenizer), *TEXTS[:500], *NASTY.values(), *hard_strings(vocabulary_of(tokenizer), 4_000)]
    texts = [text for text in texts if text]
    assert encode_texts(tokenizer, texts) == plain_ids(llama_cpp_of(tmp_path), texts)


def test_a_conversation_has_the_ids_that_it_was_tuned_with(tokenizer, tmp_path: Path):  # noqa: F811
    tokenizer = load_tokenizer("x", str(save(tokenizer, tmp_path / "plain")))
    install_chat_template(tokenizer)
    model = llama_cpp_of(save(tokenizer, tmp_path / "chat"))
    turns = [{"role": "user", "content": "O que é o pão?"}, {"role": "assistant", "content": " É de comer. "}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert {INSTRUCTION_ID, END_INSTRUCTION_ID, EOS_ID} <= set(ids)
    assert model.tokenize(text.encode(), add_bos=False, special=True) == ids
    assert model.detokenize(ids[1:], special=True).decode() == text.removeprefix(BOS_TOKEN)
    assert model.tokenize(b"x", add_bos=True, special=False)[0] == model.token_bos() == BOS_ID
    assert model.token_eos() == EOS_ID
    assert model.metadata["tokenizer.chat_template"] == tokenizer.chat_template
    assert model.metadata["tokenizer.ggml.add_space_prefix"] == "false"
    assert model.metadata["tokenizer.ggml.padding_token_id"] == str(PAD_ID)


def save(tokenizer, folder: Path) -> Path:  # noqa: F811
    tokenizer.save_pretrained(folder)
    return folder


def test_kinds_of_entries(tokenizer, tmp_path: Path):  # noqa: F811
    gguf = other_tool("gguf")
    read = list(gguf.SentencePieceVocab(save(tokenizer, tmp_path)).all_tokens())
    vocabulary = vocabulary_of(tokenizer)
    assert [piece.decode() for piece, _, _ in read] == vocabulary
    assert [score for _, score, _ in read] == [-index for index in range(len(vocabulary))]
    kinds = {piece.decode(): kind for piece, _, kind in read}
    control = {piece for piece, kind in kinds.items() if kind == gguf.TokenType.CONTROL}
    assert control == set(SPECIAL_TOKENS) - {UNK_TOKEN}
    assert kinds[UNK_TOKEN] == gguf.TokenType.UNKNOWN
    assert {piece for piece, kind in kinds.items() if kind == gguf.TokenType.BYTE} == set(BYTE_TOKENS)
    assert {kinds[piece] for piece in set(vocabulary) - set(RESERVED_TOKENS)} == {gguf.TokenType.NORMAL}


def test_ids_of_real_text_are_llama_cpp_s(real_documents, tmp_path: Path):  # noqa: F811
    joined = train_tokenizer(real_documents, 3_000, max_bytes=1_000_000)
    texts = [document.text for document in real_documents if "▁" not in document.text]
    assert encode_texts(joined, texts) == plain_ids(llama_cpp_of(save(joined, tmp_path)), texts)
