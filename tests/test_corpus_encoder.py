"""Encoding a corpus: each word once, in worker processes, with the ids of the plain way."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from teenytinyllama.checks import InputError, RunFailedError
from teenytinyllama.data import pack as packing
from teenytinyllama.data import workers
from teenytinyllama.data.pack import PackConfig, pack
from teenytinyllama.data.sources import Document
from teenytinyllama.data.workers import DocumentEncoder, read_frame, write_frame
from teenytinyllama.models import load_tokenizer
from teenytinyllama.tokenizer import encode as words
from teenytinyllama.tokenizer.encode import CorpusEncoder, encode_texts, encodes_word_by_word

HARD = [
    "",
    " ",
    "   ",
    "uma",
    " uma",
    "uma ",
    "  duas  três   ",
    "linha\n\n  recuo\tfim\n",
    "</s> não acaba <instruction> aqui",
    "▁ literal ▁▁ e a▁b no meio ▁",
    "emoji 👩‍👩‍👧 日本語 \u00a0 \u2003 e\u0301",
    "R$ 1.234,56 em 31/12/1999 às 23h59",
    "x" * 500 + " " + "y z " * 300,
    "<0x41> <unk> <pad>",
    "\x00\x01 \r\n",
]


def ids(encoded: list[bytes]) -> list[list[int]]:
    return [np.frombuffer(part, dtype=np.uint16).tolist() for part in encoded]


def encoder(folder: Path) -> CorpusEncoder:
    return CorpusEncoder(Tokenizer.from_file(str(folder / "tokenizer.json")), np.uint16)


@pytest.mark.parametrize("limit", [300_000, 3])
def test_ids_equal_the_plain_way(
    limit: int, tokenizer_folder: Path, sample_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "MAX_WORDS_KEPT", limit)  # 3: forgets all the time
    monkeypatch.setattr(words, "BATCH_CHARS", 400)
    texts = [*HARD, *sample_texts[:200], *reversed(HARD)]
    encoded = encoder(tokenizer_folder)
    assert encoded.keeps_words
    expected = encode_texts(load_tokenizer("tokenizer", str(tokenizer_folder)), texts)
    assert ids(encoded.encode(texts)) == expected
    assert ids(encoded.encode(texts)) == expected, "the second time, from memory"
    assert len(encoded._words) > 100 or limit == 3


def test_each_word_is_encoded_once(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encoder(tokenizer_folder)
    seen: list[str] = []
    batch = encoded._encode_batch
    monkeypatch.setattr(encoded, "_encode_batch", lambda backend, texts: seen.extend(texts) or batch(backend, texts))
    for _ in range(3):
        encoded.encode(["a casa e a rua", "e a casa"])
    assert sum(text.split().count("rua") for text in seen) == 1  # in whatever order a set gives its words


def test_other_tokenizers_take_the_library_s_way(tokenizer_folder: Path) -> None:
    ours = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    assert encodes_word_by_word(ours)
    ours.normalizer = normalizers.NFC()
    assert not encodes_word_by_word(ours), "a normalizer can look across words"
    ours = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    ours.add_tokens(["Porto Alegre"])
    assert not encodes_word_by_word(ours), "an added token can hold a space"
    gpt = Tokenizer(models.BPE(vocab={"a": 0, "Ġ": 1, "b": 2}, merges=[]))
    gpt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert not encodes_word_by_word(gpt)
    assert ids(CorpusEncoder(gpt, np.uint16).encode(["a b", "ba"])) == [[0, 1, 2], [2, 0]]


def worker_processes() -> list[psutil.Process]:
    """The workers that this process has started."""
    children = psutil.Process().children()
    return [child for child in children if "teenytinyllama.data.workers" in child.cmdline()]


def pack_with(tmp_path: Path, corpus: Path, tokenizer: Path, num_workers: int | None) -> Path:
    config = PackConfig(inputs=[str(corpus)], tokenizer=str(tokenizer), output_dir=str(tmp_path / f"p{num_workers}"),
                        context=32, validation_fraction=0.1, num_workers=num_workers)  # fmt: skip
    return pack(config)


def test_the_rows_are_the_same_whatever_the_number_of_workers(
    tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK_BYTES", 3_000)
    monkeypatch.setattr(workers, "PIECE_CHARS", 200)
    folders = [pack_with(tmp_path, corpus_folder, tokenizer_folder, number) for number in (1, 2, 3)]
    for name in ("train.npy", "validation.npy", "validation_documents.npy"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1, name


def test_small_corpora_start_no_process(
    tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen

    def refuse_workers(command: list[str], *args: Any, **options: Any) -> Any:
        assert "teenytinyllama.data.workers" not in command
        return popen(command, *args, **options)

    monkeypatch.setattr(subprocess, "Popen", refuse_workers)
    pack_with(tmp_path, corpus_folder, tokenizer_folder, None)
    with pytest.raises(AssertionError):
        pack_with(tmp_path, corpus_folder, tokenizer_folder, 2)


def test_a_worker_that_dies_is_named(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    chunks = [[("train", Document("uma casa", "texto"))]] * 5
    with DocumentEncoder(tokenizer, np.uint16, 2) as encoding:
        for worker in worker_processes():
            worker.kill()
        with pytest.raises(RunFailedError, match=r"encoding: a worker process ended with code -9 .* fewer num_workers"):
            list(encoding.encode_chunks(chunks))


def test_without_a_start_token_what_is_scored_begins_with_an_end_token(tokenizer_folder: Path) -> None:
    """As after another document; or its first token would have nothing that predicts it. Training text stays."""
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    tokenizer.bos_token = None
    chunk = [(split, Document("uma casa", "texto")) for split in ("train", "validation")]
    with DocumentEncoder(tokenizer, np.uint16, 1) as encoding:
        ((_, (train, validation)),) = encoding.encode_chunks([chunk])  # type: ignore[list-item]
    end = tokenizer.eos_token_id
    assert train.tolist()[-1] == end != train.tolist()[0]
    assert validation.tolist() == [end, *train.tolist()]


def test_workers_end_with_their_input(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    command = [sys.executable, "-m", "teenytinyllama.data.workers"]
    frame = io.BytesIO()
    write_frame(frame, [b'{"dtype": "uint16"}', tokenizer.backend_tokenizer.to_str().encode()])
    write_frame(frame, [b"uma casa"])
    done = subprocess.run(command, input=frame.getvalue(), capture_output=True, timeout=60, check=True)
    (encoded,) = read_frame(io.BytesIO(done.stdout)) or []
    assert np.frombuffer(encoded, dtype=np.uint16).tolist() == encode_texts(tokenizer, ["uma casa"])[0]


def test_frames() -> None:
    stream = io.BytesIO()
    write_frame(stream, [b"", b"abc"])
    write_frame(stream, [])
    whole = stream.getvalue()
    stream.seek(0)
    assert [read_frame(stream) for _ in range(3)] == [[b"", b"abc"], [], None]
    for length in (3, 20, len(whole) - 9):  # in the number, in the lengths, in the bytes
        with pytest.raises(EOFError, match="a frame was cut off"):
            read_frame(io.BytesIO(whole[:length]))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"num_workers=0: must be at least 1"):
        PackConfig(inputs=["x"], tokenizer="t", output_dir=str(tmp_path), num_workers=0)
