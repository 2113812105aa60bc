"""llama.cpp itself gives our ids: pip install gguf llama-cpp-python (built from source, minutes), else skipped."""

from pathlib import Path

import pytest
from test_superwords import TEXTS, nasty_texts, tokenizer  # noqa: F401
from test_tokenizer import NASTY, hard_strings, real_documents, vocabulary_of  # noqa: F401

from teenytinyllama import tokenizer as tk
from teenytinyllama.tokenizer.vocabulary import BOS_ID, BYTE_TOKENS, EOS_ID, PAD_ID, RESERVED_TOKENS, UNK_ID


def llama_cpp_of(vocabulary: list[str], path: Path):
    """Return llama.cpp's encoder of a vocabulary, through a GGUF file that holds nothing else."""
    gguf = pytest.importorskip("gguf")
    llama_cpp = pytest.importorskip("llama_cpp")
    kinds = [gguf.TokenType.CONTROL if piece in RESERVED_TOKENS else gguf.TokenType.NORMAL for piece in vocabulary]
    kinds[UNK_ID] = gguf.TokenType.UNKNOWN
    for piece in BYTE_TOKENS:
        kinds[vocabulary.index(piece)] = gguf.TokenType.BYTE
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.encode() for piece in vocabulary])
    writer.add_token_scores([-float(index) for index in range(len(vocabulary))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_unk_token_id(UNK_ID)
    writer.add_pad_token_id(PAD_ID)
    writer.add_add_space_prefix(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda texts: [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]


def test_ids_are_llama_cpp_s(tokenizer, tmp_path: Path):  # noqa: F811
    encode = llama_cpp_of(vocabulary_of(tokenizer), tmp_path / "vocabulary.gguf")
    texts = [*nasty_texts(tokenizer), *TEXTS[:500], *NASTY.values(), *hard_strings(vocabulary_of(tokenizer), 4_000)]
    texts = [text for text in texts if text]
    assert tk.encode_texts(tokenizer, texts) == encode(texts)


def test_ids_of_real_text_are_llama_cpp_s(real_documents, tmp_path: Path):  # noqa: F811
    joined = tk.train_tokenizer(real_documents, 3_000, max_bytes=1_000_000)
    encode = llama_cpp_of(vocabulary_of(joined), tmp_path / "vocabulary.gguf")
    texts = [document.text for document in real_documents if "▁" not in document.text]
    assert tk.encode_texts(joined, texts) == encode(texts)
