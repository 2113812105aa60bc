"""Client processes of test_hub_server.py: each function uses the real client and returns what it saw, as JSON.

python tests/hub_client.py NAME [ARGUMENT]
"""

import json
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)

CARD = b"---\nlicense: mit\nlanguage: pt\ntags:\n- conto\n---\n# Oi\n"
WEIGHTS = bytes(range(256)) * 20


def outcome(work: Callable[[], Any]) -> str:
    """Return "done", or the class, the status and the message of what was raised, with its cause."""
    try:
        work()
    except Exception as error:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", "")
        cause = f"<- {type(error.__cause__).__name__}" if error.__cause__ else ""
        return " ".join(f"{type(error).__name__} {status} {cause} : {error}".split())
    return "done"


def first_model(api: HfApi, name: str = "ana/m") -> str:
    """Create a repository with a card, a text in a folder and weights in LFS; return the commit."""
    api.create_repo(name)
    files = {"README.md": CARD, "sub/a.txt": b"a", "sub/b.txt": b"b", "w.safetensors": WEIGHTS}
    additions = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(name, additions, commit_message="primeiro", commit_description="com pesos").oid


def commits(folder: str) -> dict[str, Any]:
    """Everything that is done to one repository, and what each step showed."""
    api, seen = HfApi(), {}
    first = first_model(api)
    seen["first"] = first
    seen["again"] = api.create_repo("ana/m", exist_ok=True).repo_id
    seen["nothing new"] = api.upload_file(path_or_fileobj=CARD, path_in_repo="README.md", repo_id="ana/m").oid
    second = api.create_commit(
        "ana/m",
        [
            CommitOperationDelete("sub/"),
            CommitOperationAdd("README.md", CARD + b"mais"),
            CommitOperationAdd("c.txt", b"c"),
            CommitOperationCopy("w.safetensors", "copia.safetensors"),
        ],
        commit_message="segundo",
        parent_commit=first,
    ).oid
    change = [CommitOperationAdd("c.txt", b"outra")]
    seen["old parent"] = outcome(lambda: api.create_commit("ana/m", change, commit_message="x", parent_commit=first))
    api.create_branch("ana/m", branch="step100", revision=first)
    api.create_branch("ana/m", branch="step100", exist_ok=True)
    api.create_branch("ana/m", branch="a/b")
    api.create_tag("ana/m", tag="v1", revision=second)
    api.create_tag("ana/m", tag="v1", exist_ok=True)
    api.upload_folder(repo_id="ana/m", folder_path=folder, revision="step100", delete_patterns="*.txt")
    api.upload_file(path_or_fileobj=b"fundo", path_in_repo="x/y/z.txt", repo_id="ana/m", revision="a/b")
    seen["history"] = [(commit.title, commit.message) for commit in api.list_repo_commits("ana/m")]
    seen["files"] = {
        name: api.list_repo_files("ana/m", revision=name) for name in ("main", "step100", "a/b", "v1", first)
    }
    tree = list(api.list_repo_tree("ana/m", recursive=True, expand=True, revision="a/b"))
    seen["tree"] = [(entry.path, entry.last_commit.title) for entry in tree]
    seen["inside"] = [entry.path for entry in api.list_repo_tree("ana/m", "x/y", revision="a/b")]
    paths = api.get_paths_info("ana/m", ["x", "c.txt", "nada"], revision="a/b", expand=True)
    seen["paths"] = [(entry.path, entry.last_commit.title) for entry in paths]
    api.delete_branch("ana/m", branch="a/b")
    api.delete_tag("ana/m", tag="v1")
    refs = api.list_repo_refs("ana/m")
    seen["refs"] = [[ref.name for ref in kind] for kind in (refs.branches, refs.tags)]
    folder_of_first = Path(snapshot_download("ana/m", revision="step100"))
    seen["downloaded"] = {path.name: path.read_bytes() == WEIGHTS for path in folder_of_first.iterdir()}
    seen["verified"] = not api.verify_repo_checksums("ana/m", revision="step100").mismatches
    info = api.model_info("ana/m", files_metadata=True)
    seen["info"] = [info.sha == second, info.tags, info.card_data.license, info.siblings[-1].lfs.size]
    used = api.model_info("ana/m", revision=second, expand=["usedStorage", "gated"])
    seen["expanded"] = [used.used_storage, used.gated, used.siblings]
    api.move_repo("ana/m", "grupo/m")
    api.update_repo_settings("grupo/m", private=True, gated="manual")
    seen["moved"] = [api.repo_exists("ana/m"), api.model_info("grupo/m").private, api.model_info("grupo/m").gated]
    api.create_repo("espaco", repo_type="space", space_sdk="gradio")
    api.create_repo("grupo/dados", repo_type="dataset", private=True)
    seen["lists"] = [
        [item.id for item in items]
        for items in (api.list_models(author="grupo"), api.list_datasets(search="dad"), api.list_spaces(author="rui"))
    ]
    api.delete_repo("grupo/m")
    seen["deleted"] = api.repo_exists("grupo/m")
    seen["who"] = [api.whoami()["name"], [org["name"] for org in api.whoami()["orgs"]]]
    return seen


def buckets(folder: str) -> dict[str, Any]:
    """Everything that is done to one bucket, and what each step showed."""
    api, seen = HfApi(), {}
    seen["url"] = api.create_bucket("ana/b", private=True).bucket_id
    seen["again"] = [api.create_bucket("b", exist_ok=True).bucket_id, outcome(lambda: api.create_bucket("ana/b"))]
    api.batch_bucket_files("ana/b", add=[(b"a", "x/a.txt"), (b"", "vazio.txt"), (WEIGHTS, "x/y/w.bin")])
    api.batch_bucket_files("ana/b", add=[(b"b", "xis.txt")], delete=["x/a.txt"])
    info = api.bucket_info("ana/b")
    seen["info"] = [info.private, info.size, info.total_files]
    seen["top"] = [(entry.type, entry.path) for entry in api.list_bucket_tree("ana/b")]
    seen["inside"] = [entry.path for entry in api.list_bucket_tree("ana/b", "x", recursive=True)]
    files = list(api.list_bucket_tree("ana/b", recursive=True))
    seen["paths"] = [entry.path for entry in api.get_bucket_paths_info("ana/b", ["x/y/w.bin", "nada", "x"])]
    api.download_bucket_files("ana/b", [(entry, f"{folder}/{entry.path}") for entry in files])
    api.download_bucket_files("ana/b", [("x/y/w.bin", f"{folder}/again.bin")])
    seen["same"] = [Path(folder, name).read_bytes() == WEIGHTS for name in ("x/y/w.bin", "again.bin")]
    some = ["xis.txt", "nada"]
    seen["in part"] = outcome(lambda: api.batch_bucket_files("ana/b", delete=some))
    seen["nothing"] = outcome(lambda: api.batch_bucket_files("ana/b", delete=["nada"]))
    seen["strangers"] = outcome(lambda: api.create_bucket("rui/b"))
    seen["hidden"] = outcome(lambda: HfApi(token="hf_rui").bucket_info("ana/b"))
    seen["reader"] = outcome(lambda: HfApi(token="hf_ler").batch_bucket_files("ana/b", delete=["vazio.txt"]))
    api.delete_bucket("ana/b")
    seen["deleted"] = outcome(lambda: api.bucket_info("ana/b"))
    return seen


def parts(_: str) -> dict[str, Any]:
    """An upload in several parts, once more after it was there, and its download."""
    api = HfApi()
    first_model(api)
    sha = api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="outro.bin", repo_id="ana/m").oid
    path = hf_hub_download("ana/m", "outro.bin", revision=sha)
    return {"same": Path(path).read_bytes() == WEIGHTS}


def refusals(cases: str) -> list[str]:
    """The outcome of each case: (token, an expression of the calling test)."""
    rows = []
    for token, text in json.loads(cases):
        api = HfApi(token=token or False)
        names = {"api": api, "add": CommitOperationAdd, "delete": CommitOperationDelete, "download": hf_hub_download}
        rows.append(outcome(lambda text=text, names=names: eval(text, names)))
    return rows


def cards(_: str) -> dict[str, Any]:
    """Cards that are taken, and those that are not, by each of the two ways in which the client asks."""
    api, seen = HfApi(), {}
    first_model(api)
    ModelCard(CARD.decode()).validate()
    ModelCard(CARD.decode() + "mais").push_to_hub("ana/m")
    wrong = {"licence": "license: minha", "list": "- a", "broken": "a: [", "index": "model-index:\n- results: []"}
    for name, text in wrong.items():
        card = type("Card", (ModelCard,), {"__init__": lambda self: None, "__str__": lambda self: self.text})()
        card.text = f"---\n{text}\n---\n# x"
        seen[name] = [
            outcome(card.validate),
            outcome(
                lambda card=card: api.upload_file(
                    path_or_fileobj=card.text.encode(), path_in_repo="README.md", repo_id="ana/m"
                )
            ),
        ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api.upload_file(path_or_fileobj=b"# nada", path_in_repo="README.md", repo_id="ana/m")
    seen["empty"] = [str(warning.message) for warning in caught]
    results = b"- dataset: {id: ana/provas, task_id: geral}\n  value: 0.5\n"
    api.upload_file(path_or_fileobj=results, path_in_repo=".eval_results/ana.yaml", repo_id="ana/m")
    entries = api.model_info("ana/m", expand=["evalResults"]).eval_results
    seen["results"] = [(entry.dataset_id, entry.task_id, entry.value) for entry in entries]
    return seen


def faults(_: str) -> dict[str, str]:
    """The outcome of a commit and of other requests to repositories that each have a fault of their own."""
    api = HfApi()
    seen = {}
    for kind in ("reset", "close", "lost_answer", "stall", "truncate", "500", "429", "403", "413"):
        change = [CommitOperationAdd("a.txt", b"a")]
        seen[f"commit {kind}"] = outcome(
            lambda kind=kind, change=change: api.create_commit(f"ana/{kind}", change, commit_message="x")
        )
    seen["create 402"] = outcome(lambda: api.create_repo("ana/novo", private=True))
    big = [CommitOperationAdd("w.bin", WEIGHTS)]
    seen["upload 503 once"] = outcome(lambda: api.create_commit("ana/lfs", big, commit_message="x"))
    other = [CommitOperationAdd("v.bin", WEIGHTS + b"v")]
    seen["upload 403"] = outcome(lambda: api.create_commit("ana/lfs", other, commit_message="x"))
    seen["download truncate once"] = outcome(lambda: hf_hub_download("ana/lfs", "w.bin"))
    return seen


def each_request(urls: str) -> list[list[str]]:
    """Publish twice to each server and return both outcomes."""

    def publish(api: HfApi) -> None:
        api.create_repo("ana/m", exist_ok=True)
        api.create_branch("ana/m", branch="step1", exist_ok=True)
        for branch in ("step1", "main"):
            files = {"README.md": CARD, "w.safetensors": WEIGHTS + branch.encode()}
            additions = [CommitOperationAdd(path, content) for path, content in files.items()]
            api.create_commit("ana/m", additions, commit_message=branch, revision=branch)

    apis = [HfApi(endpoint=url) for url in json.loads(urls)]
    with ThreadPoolExecutor(8) as pool:  # the client waits between its tries
        return list(pool.map(lambda api: [outcome(lambda: publish(api)) for _ in range(2)], apis))


def models(_: str) -> list[Any]:
    """A tiny Llama and its tokenizer, pushed by transformers and loaded at revisions."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    api = HfApi()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=3, **sizes))
    core = Tokenizer(WordLevel({"<unk>": 0, "bom": 1, "dia": 2}, unk_token="<unk>"))
    model.push_to_hub("ana/mini")
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>").push_to_hub("ana/mini")
    api.create_branch("ana/mini", branch="step1")
    model.lm_head.weight.data.zero_()
    model.push_to_hub("ana/mini", commit_message="zero")
    seen = []
    for revision in ("main", "step1", api.list_repo_commits("ana/mini")[1].commit_id):
        loaded = AutoModelForCausalLM.from_pretrained("ana/mini", revision=revision)
        config = AutoConfig.from_pretrained("ana/mini", revision=revision)
        tokenizer = AutoTokenizer.from_pretrained("ana/mini", revision=revision)
        seen.append([config.model_type, len(tokenizer), bool(loaded.lm_head.weight.any())])
    return seen


def rows(_: str) -> dict[str, Any]:
    """A dataset pushed by datasets in two configurations, and loaded."""
    from datasets import Dataset, DatasetDict, get_dataset_config_names, load_dataset

    data = Dataset.from_dict({"text": ["um", "dois"]})
    sha = data.push_to_hub("ana/textos", private=True).oid
    DatasetDict({"train": data, "validation": data.select([1])}).push_to_hub("ana/textos", "partes")
    streamed = load_dataset("ana/textos", "partes", split="validation", streaming=True)
    return {
        "names": get_dataset_config_names("ana/textos"),
        "first": load_dataset("ana/textos", revision=sha, split="train")["text"][:],
        "streamed": [row["text"] for row in streamed],
        "files": HfApi().list_repo_files("ana/textos", repo_type="dataset"),
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](sys.argv[2] if len(sys.argv) > 2 else "")))
