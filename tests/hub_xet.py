"""Xet on the test Hub: `hf_xet` keeps what a client uploads in a folder of this disk, and a commit takes it from there.

The store of an upload has the form of hf_xet 1.8's own local one (`local://FOLDER`): `xet/xorbs/shards/*.mdb` says of
which pieces a file consists, and `xet/xorbs/xorbs/default.HASH` holds the pieces. Clients must be told not to compress
them (HF_XET_XORB_COMPRESSION_POLICY=none). Each upload has a store of its own, because a store is locked by its client.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hub_access import Hub
from hub_protocol import Answer, Call, json_answer
from hub_store import Repository

HEAD_BYTES, ENTRY_BYTES = 48, 48
END_OF_FILES = b"\xff" * 32
HAS_HASHES, HAS_SHA256 = 1 << 31, 1 << 30


def token(hub: Hub, call: Call, kind: str, id: str) -> Answer:
    """Answer a token for one upload, and the store that it is for."""
    folder = _stores(hub.writable(call, kind, id))
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / str(len(list(folder.iterdir())))
    store.mkdir()
    return json_answer({"casUrl": f"local://{store}", "exp": int(time.time()) + 3600, "accessToken": "test"})


def take(repository: Repository, sha256: str) -> bool:
    """Move a content from what was uploaded by Xet into the LFS store; return whether it was there."""
    for store in sorted(_stores(repository).glob("*/xet/xorbs")):
        for shard in store.glob("shards/*.mdb"):
            for _, found, pieces in _files(shard.read_bytes()):
                if found == sha256:
                    return repository.keep_lfs(_content(store, pieces)) == sha256
    return False


def take_by_hash(repository: Repository, xet_hash: str) -> bytes | None:
    """Return a content that was uploaded by Xet, found by its Xet hash, or None; an empty one has the hash 0."""
    if xet_hash == "0" * 64:
        return b""
    for store in sorted(_stores(repository).glob("*/xet/xorbs")):
        for shard in store.glob("shards/*.mdb"):
            for found, _, pieces in _files(shard.read_bytes()):
                if found == xet_hash:
                    return _content(store, pieces)
    return None


def gather(repository: Repository) -> Path:
    """Return a new store for one download, with all large contents of the repository."""
    folder = repository.folder / ".hub" / "xet-read"
    folder.mkdir(exist_ok=True)
    store = folder / str(len(list(folder.iterdir())))
    paths = [str(path) for path in repository.lfs_folder.iterdir() if path.stat().st_size]
    # In a process of its own: a store is locked by its client until that ends.
    subprocess.run([sys.executable, "-c", _UPLOAD, f"local://{store}", *paths], check=True)
    return store


_UPLOAD = """import sys, time, hf_xet
hf_xet.upload_files(sys.argv[2:], sys.argv[1], ("test", int(time.time()) + 3600), None, None, "model")"""


def _stores(repository: Repository) -> Path:
    return repository.folder / ".hub" / "xet"


def _content(store: Path, pieces: list[tuple[str, int, int]]) -> bytes:
    return b"".join(_chunks(store / "xorbs" / f"default.{name}", *span) for name, *span in pieces)


def _files(shard: bytes) -> Iterator[tuple[str, str | None, list[tuple[str, int, int]]]]:
    """Yield the Xet hash of each file of a shard, its sha256 if the client sent that, and its pieces.

    A piece is a name, the first chunk and the one after the last.
    """
    at = HEAD_BYTES
    while shard[at : at + 32] != END_OF_FILES:
        xet_hash, sha256 = _hex(shard[at : at + 32]), None
        flags, count = (int.from_bytes(shard[at + 32 + 4 * place : at + 36 + 4 * place], "little") for place in (0, 1))
        at += ENTRY_BYTES
        pieces = []
        for place in range(at, at + count * ENTRY_BYTES, ENTRY_BYTES):
            start, end = (int.from_bytes(shard[place + skip : place + skip + 4], "little") for skip in (40, 44))
            pieces.append((_hex(shard[place : place + 32]), start, end))
        at += count * ENTRY_BYTES * (2 if flags & HAS_HASHES else 1)
        if flags & HAS_SHA256:
            sha256 = _hex(shard[at : at + 32])
            at += ENTRY_BYTES
        yield xet_hash, sha256, pieces


def _chunks(path: Path, start: int, end: int) -> bytes:
    """Return the chunks `start` to `end` of a file of chunks, each behind its version, size, compression and size."""
    content, at, found = path.read_bytes(), 0, []
    for _ in range(end):
        size, compression = int.from_bytes(content[at + 1 : at + 4], "little"), content[at + 4]
        assert compression == 0, "the client compresses: HF_XET_XORB_COMPRESSION_POLICY=none is missing"
        found.append(content[at + 8 : at + 8 + size])
        at += 8 + size
    return b"".join(found[start:end])


def _hex(hash: bytes) -> str:
    """Return a hash as Xet writes it: four numbers of 64 bits."""
    return "".join(hash[at : at + 8][::-1].hex() for at in range(0, 32, 8))
