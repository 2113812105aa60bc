"""The works that faults strike: real commands on small inputs, what each leaves, and by what its result is known."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TESTS = Path(__file__).resolve().parent.parent
REPOSITORY = TESTS.parent
if str(TESTS) not in sys.path:  # run as a script
    sys.path.insert(0, str(TESTS))

from hub_server import HubServer  # noqa: E402
from made_runs import make_run  # noqa: E402
from test_pretrain import losses, make_values  # noqa: E402

from teenytinyllama.checkpointing.checkpoints import checkpoint_faults, complete_checkpoints  # noqa: E402
from teenytinyllama.stage_folder import sha256_file  # noqa: E402

TTL = [sys.executable, "-m", "teenytinyllama"]
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true",
}  # fmt: skip
STEPS, SAVE_STEPS = 16, 4
TIMEOUT_SECONDS = 300


@dataclass
class Work:
    """A command in a place of its own.

    Attributes:
        name: pretrain, pack, corpus or publish.
        words: the command after `ttl`.
        place: the case's folder.
        out: what the command writes.
        digest: returns by what two results are compared; called when the command has ended with 0.
        environment: of the command.
        close: ends what the work needs beside it.
    """

    name: str
    words: list[str]
    place: Path
    out: Path
    digest: Callable[[], Any]
    environment: dict[str, str] = dataclasses.field(default_factory=lambda: dict(ENVIRONMENT))
    close: Callable[[], None] = lambda: None
    logs: Path | None = None  # where what it says is kept: its place

    def log(self, name: str) -> Path:
        """Return the file that keeps what a start says."""
        return (self.logs or self.place) / name

    def start(self, fault: dict[str, Any] | None = None, name: str = "start") -> "subprocess.Popen[bytes]":
        """Start the command; what it says goes to `name`.out and `name`.err in the case's folder."""
        environment = dict(self.environment)
        if fault:
            environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
            environment["TTL_FAULT"] = json.dumps(fault)
        with self.log(f"{name}.out").open("wb") as out, self.log(f"{name}.err").open("wb") as err:
            return subprocess.Popen(
                [*TTL, *self.words], env=environment, cwd=self.place, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def said(self, name: str = "start") -> str:
        """Return what a start wrote to stderr, without bars."""
        return self.log(f"{name}.err").read_text(encoding="utf-8", errors="replace")

    def printed(self, name: str = "start") -> str:
        """Return what a start wrote to stdout."""
        return self.log(f"{name}.out").read_text(encoding="utf-8", errors="replace")

    def run(self, fault: dict[str, Any] | None = None, name: str = "start") -> int:
        """Run the command to its end and return its exit code."""
        return self.start(fault, name).wait(TIMEOUT_SECONDS)


def faults_of_checkpoints(run: Path) -> list[str]:
    """Return what is wrong with the checkpoints that call themselves complete."""
    return [f"{path.name}: {fault}" for _, path in complete_checkpoints(run) for fault in checkpoint_faults(path)]


def lost_steps(run: Path) -> int:
    """Return how many steps have been trained that no complete checkpoint holds."""
    saved = max((step for step, path in complete_checkpoints(run) if not checkpoint_faults(path)), default=0)
    return max(len(losses(run)) - saved, 0)


@dataclass(frozen=True)
class Bench:
    """A folder with inputs for all works, made once, and the digests of undisturbed runs."""

    folder: Path

    def prepare(self) -> None:
        """Make what the works read, unless it is there."""
        if (self.folder / "ready").is_file():
            return
        from teenytinyllama import train_tokenizer
        from teenytinyllama.data.pack import PackConfig, pack
        from teenytinyllama.data.sample import sample_documents

        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "texts").mkdir(parents=True)
        rows = list(sample_documents("train", 400))
        for name, part in (("contos", rows[:300]), ("curtas", rows[300:])):
            lines = [json.dumps({"text": row["text"], "metadata": f"source: {name}; license: CC0-1.0"}) for row in part]
            (self.folder / "texts" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        tokenizer = self.folder / "tokenizer"
        train_tokenizer([row["text"] for row in rows[:300]], vocab_size=600).save_pretrained(tokenizer)
        pack(PackConfig(**self._packing(self.folder / "packed")))
        make_run(self.folder / "finished", tokenizer)
        (self.folder / "ready").touch()

    def _packing(self, output: Path) -> dict[str, Any]:
        return {"inputs": [str(self.folder / "texts")], "tokenizer": str(self.folder / "tokenizer"), "context": 32,
                "output_dir": str(output), "validation_fraction": 0.1}  # fmt: skip

    def work(self, name: str, place: Path, ranks: int = 1) -> Work:
        """Return a work in an empty folder."""
        place.mkdir(parents=True)
        return {"pretrain": self._pretrain, "pack": self._pack, "corpus": self._corpus, "publish": self._publish}[name](
            place, *([ranks] if ranks > 1 else [])
        )

    def _pretrain(self, place: Path, ranks: int = 1) -> Work:
        """16 steps with a save every 4, which keeps two; with rows and a tokenizer of its own, which may be damaged."""
        for name in ("packed", "tokenizer"):
            shutil.copytree(self.folder / name, place / name)
        values = make_values(place, place / "packed", place / "tokenizer")
        values |= {"max_tokens": 256 * STEPS, "save_steps": SAVE_STEPS, "eval_steps": 8, "sample_prompts": [],
                   "save_total_limit": 2}  # fmt: skip
        (place / "run.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        run = place / "run"
        more = ["--accelerate", "zero2", "--num_processes", str(ranks)] if ranks > 1 else []
        words = ["pretrain", *more, "--config", "run.yaml"]
        digest = lambda: {"weights": sha256_file(run / "model.safetensors"), "losses": losses(run)}  # noqa: E731
        return Work("pretrain", words, place, run, digest)

    def _pack(self, place: Path) -> Work:
        out = place / "packed"
        (place / "pack.yaml").write_text(yaml.safe_dump(self._packing(out)))
        digest = lambda: {path.name: sha256_file(path) for path in sorted(out.glob("*.npy"))}  # noqa: E731
        return Work("pack", ["pack", "--config", "pack.yaml"], place, out, digest)

    def _corpus(self, place: Path) -> Work:
        from test_corpus_factory import config, hashes

        raw, made = place / "raw", self.folder / "raw"
        if not made.is_dir():
            config(self.folder)
        shutil.copytree(made, raw)
        keys = json.loads(json.dumps(self._corpus_keys()).replace(str(made), str(raw)))
        (place / "corpus.yaml").write_text(json.dumps({**keys, "output_dir": str(place / "out"), "workers": 2}))
        return Work(
            "corpus", ["corpus", "--config", "corpus.yaml"], place, place / "out", lambda: hashes(place / "out")
        )

    def _corpus_keys(self) -> dict[str, Any]:
        from test_corpus_factory import config

        file = self.folder / "corpus_keys.json"
        if not file.is_file():
            file.write_text(json.dumps(config(self.folder)))
        return dict(json.loads(file.read_text()))

    def _publish(self, place: Path) -> Work:
        """Publishing to a Hub on loopback; the result is what lies on the Hub, and in how many commits."""
        run = place / "run"
        shutil.copytree(self.folder / "finished", run)
        server = HubServer(place / "hub", tokens={"hf_ana": "ana"})
        server.__enter__()

        def digest() -> Any:
            refs = server.refs("ana/modelo")["branches"]
            return {
                branch: [
                    len(server.history("ana/modelo", branch)),
                    {name: hash_of(content) for name, content in server.files("ana/modelo", branch).items()},
                ]
                for branch in sorted(refs)
            }

        environment = {**server.environment(place / "home", token="hf_ana"), "PYTHONPATH": str(REPOSITORY)}
        environment.pop("HF_HUB_OFFLINE", None)
        words = ["publish", "run", "--to", "ana/modelo"]
        return Work("publish", words, place, run, digest, environment, lambda: server.__exit__())

    def twin(self, name: str, ranks: int = 1) -> dict[str, Any]:
        """Return the digest of the same command undisturbed, and how long it takes; from a file after the first time.

        Raises:
            RuntimeError: the command failed.
        """
        import time

        file = self.folder / f"twin-{name}-{ranks}.json"
        if not file.is_file():
            place = self.folder / f"twin-{name}-{ranks}"
            shutil.rmtree(place, ignore_errors=True)
            work, start = self.work(name, place, ranks), time.time()
            try:
                if code := work.run():
                    raise RuntimeError(f"the undisturbed {name} ended with {code}: {work.said()[-2000:]}")
                environment = work.out / "environment.json"
                begun = environment.stat().st_mtime if name == "pretrain" else start
                times = {"before_seconds": begun - start, "seconds": time.time() - begun}
                file.write_text(json.dumps({"digest": work.digest(), **times}))
            finally:
                work.close()
            shutil.rmtree(place)
        return dict(json.loads(file.read_text()))


def hash_of(content: bytes) -> str:
    """Return the sha256 of bytes."""
    import hashlib

    return hashlib.sha256(content).hexdigest()
