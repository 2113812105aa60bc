"""Loading by short name, repository or folder: over HTTP against a small Hub on loopback, and from local folders."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer

from teenytinyllama.checks import InputError, MissingFileError
from teenytinyllama.models import finish_saved, from_pretrained

ROOT = Path(__file__).parents[1]

# Runs each case (name, revision, token) and prints one JSON line: what was loaded, or the refusal.
CLIENT = """
import json, os, sys
from teenytinyllama.checks import InputError
from teenytinyllama.models import from_pretrained
for name, revision, token in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        model, tokenizer = from_pretrained(name, revision=revision)
        bias = float(model.lm_head.weight[0, 0])
        row = {"type": model.config.model_type, "name": model.name_or_path, "first": bias, "entries": len(tokenizer)}
    except InputError as error:
        row = {"refused": str(error)}
    print(json.dumps(row))
"""


def _load(server: HubServer, home: Path, cases: list[tuple], **environment: str) -> list[dict]:
    """Run the cases in one client process with the cache `home` and return its rows."""
    run = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(cases)],
        env=server.environment(home, PYTHONPATH=str(ROOT), **environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def _save_model(folder: Path, first_weight: float) -> Path:
    """Save a 1-layer Llama and a tokenizer; `first_weight` tells this version from others."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=6, **sizes))
    with torch.no_grad():
        model.lm_head.weight[0, 0] = first_weight
    model.save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "bom": 4, "dia": 5}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return folder


def _save_adapter(base: Path, folder: Path, base_name: str) -> None:
    """Save a LoRA adapter that changes the head's first weight to 0.75."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), LoraConfig(r=1, lora_alpha=1, target_modules=["lm_head"])
    )
    head = model.base_model.model.lm_head
    with torch.no_grad():
        head.lora_A["default"].weight.zero_()
        head.lora_B["default"].weight.zero_()
        head.lora_A["default"].weight[0, 0] = head.lora_B["default"].weight[0, 0] = 0.5**0.5
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a served tree: the published names, a branch, and repositories that must be refused."""
    folder = tmp_path_factory.mktemp("hub")
    models = folder / "models"
    published = _save_model(models / "nicholasKluge/TeenyTinyLlama-160m/main", 0.25)
    _save_model(models / "nicholasKluge/TeenyTinyLlama-160m/step100000", 0.5)
    for name in ("nicholasKluge/TeenyTinyLlama-460m-Chat", "ana/segredo", "ana/restrito"):
        shutil.copytree(published, models / name / "main")
    pickled = shutil.copytree(published, models / "ana/picles/main")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    adapter = models / "ana/adaptador/main"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    (models / "ana/vazio/main").mkdir(parents=True)
    (models / "ana/vazio/main/README.md").write_text("só um cartão", encoding="utf-8")
    _save_adapter(published, models / "ana/lora/main", "nicholasKluge/TeenyTinyLlama-160m")
    coded = shutil.copytree(published, models / "ana/codigo/main")
    own_type = {"model_type": "capivara", "auto_map": {"AutoModelForCausalLM": "modeling.Capivara"}}
    (coded / "config.json").write_text(json.dumps(own_type), encoding="utf-8")
    (coded / "modeling.py").write_text("raise SystemExit('code of a repository was run')", encoding="utf-8")
    # A built-in model and tokenizer with code beside them: loaded as built in, the code is left alone.
    mapped = shutil.copytree(published, models / "ana/mapeado/main")
    for file, auto_map in {
        "config.json": {"AutoModelForCausalLM": "modeling.Capivara"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "modeling.Capivara"]},
    }.items():
        content = json.loads((mapped / file).read_text(encoding="utf-8"))
        (mapped / file).write_text(json.dumps({**content, "auto_map": auto_map}), encoding="utf-8")
    shutil.copy(coded / "modeling.py", mapped)
    return folder


@pytest.fixture(scope="module")
def server(hub_folder: Path):
    """Serve the tree with a private and a gated repository."""
    people = {"tokens": {"hf_ana": "ana", "hf_rui": "rui"}, "private": {"ana/segredo": {"ana"}}}
    with HubServer(hub_folder, gated={"ana/restrito": {"ana"}}, **people) as running:
        yield running


@pytest.fixture(scope="module")
def online_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the client that loaded over HTTP."""
    return tmp_path_factory.mktemp("online")


@pytest.fixture(scope="module")
def loaded(server: HubServer, online_home: Path) -> list[dict]:
    """Load names, branches, commits, what needs a token and an adapter in one client process."""
    repository = "nicholasKluge/TeenyTinyLlama-160m"
    commit = server.commit(repository, "step100000")
    return _load(
        server,
        online_home,
        [
            ("160m", None, None),
            ("460m-chat", None, None),
            (repository, "step100000", None),
            ("160m", commit, None),
            ("ana/segredo", None, "hf_ana"),
            ("ana/restrito", "main", "hf_ana"),
            ("ana/mapeado", None, None),
            ("ana/lora", None, None),
        ],
    )


@pytest.fixture(scope="module")
def offline(server: HubServer, loaded: list[dict], online_home: Path) -> tuple[list[dict], int]:
    """Load a model and an adapter again without network; return the rows and how often the server was asked."""
    before = len(server.requests)
    rows = _load(server, online_home, [("160m", None, None), ("ana/lora", None, None)], HF_HUB_OFFLINE="1")
    return rows, len(server.requests) - before


def test_short_names_branches_commits_and_tokens_load(server: HubServer, loaded: list[dict]):
    repository, rows = "nicholasKluge/TeenyTinyLlama-160m", loaded
    assert [row.get("first") for row in rows] == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.25, 0.25, 0.25, 0.75]), rows
    assert {row["type"] for row in rows} == {"llama"}
    assert {row["entries"] for row in rows} == {6}
    assert [row["name"] for row in rows[:2]] == [repository, "nicholasKluge/TeenyTinyLlama-460m-Chat"]
    # No Python and no pickle is even asked for, and nothing after config.json is read at a moving branch.
    asked = [request.path for request in server.requests]
    assert not [path for path in asked if path.endswith((".py", ".bin", ".pt"))]
    first = ("/config.json", "/lora/resolve/main/adapter_config.json")
    assert not [path for path in asked if "/resolve/main/" in path and not path.endswith(first)]
    # Storage is another host: the token must not be sent there.
    assert {request.user for request in server.requests if request.path.startswith("/storage/")} == {None}


REFUSED = {
    "repository not found, no token": ("ana/nada", None, None, "no such folder here, and no such repository on http"),
    "repository not found, token": ("ana/nada", None, "hf_ana", "no such repository on .* that you may read .HTTP 404"),
    "private, no token": ("ana/segredo", None, None, r"HTTP 401.*if it is private, log in with `hf auth login`"),
    "private, other user": ("ana/segredo", None, "hf_rui", r"HTTP 404.*set HF_TOKEN to a token that can read it"),
    "gated, no token": ("ana/restrito", None, None, r"access to this repository has to be granted .HTTP 401"),
    "gated, other user": ("ana/restrito", None, "hf_rui", r"has to be granted .HTTP 403.*Ask for it at http"),
    "token not valid": ("160m", None, "hf_falso", r"refuses your token .HTTP 401.*Log in again"),
    "branch not found": ("160m", "step7", None, "revision=step7: nicholasKluge/TeenyTinyLlama-160m has no branch"),
    "commit not found": ("160m", "0" * 40, None, "revision=0{40}: .* has no branch, tag or commit of that name"),
    "pickle only": ("ana/picles", None, None, "holds no weights in safetensors .*Pickle files .* are refused"),
    "no config.json": ("ana/vazio", None, None, "revision main holds no config.json, so it is no transformers"),
    "an adapter": ("ana/adaptador", None, None, "adapter_config.json is damaged .*base_model_name_or_path"),
    "code of its own": ("ana/codigo", None, None, "model_type=capivara .* is never run"),
    "not an id": ("a/b/c", None, None, "neither a folder here nor a Hub repository id. Write owner/name"),
}


@pytest.fixture(scope="module")
def refusals(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Run all cases of REFUSED in one client process."""
    rows = _load(server, tmp_path_factory.mktemp("home"), [case[:3] for case in REFUSED.values()])
    return dict(zip(REFUSED, rows, strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_over_http(case: str, refusals: dict[str, dict]):
    assert re.search(REFUSED[case][3], refusals[case].get("refused", "loaded")), refusals[case]


def test_offline(server: HubServer, tmp_path: Path, offline: tuple[list[dict], int]):
    (not_cached,) = _load(server, tmp_path, [("160m", None, None)], HF_HUB_OFFLINE="1")
    assert "config.json is not in the local cache" in not_cached["refused"]
    assert "HF_HUB_OFFLINE is set" in not_cached["refused"]
    assert "Run `hf download nicholasKluge/TeenyTinyLlama-160m` once while online" in not_cached["refused"]
    (cached, _), asked = offline
    assert cached["first"] == 0.25
    assert asked == 0


def test_a_cached_adapter_loads_offline(offline: tuple[list[dict], int]):
    (_, cached), asked = offline
    assert cached.get("first") == 0.75, cached
    assert asked == 0


def test_code_in_a_folder_is_never_run(hub_folder: Path):
    model, _ = from_pretrained(hub_folder / "models/ana/mapeado/main")
    assert type(model).__module__.startswith("transformers.")
    with pytest.raises(InputError, match=r"model_type=capivara .* is never run"):
        from_pretrained(hub_folder / "models/ana/codigo/main")


def test_local_folder(hub_folder: Path):
    model, tokenizer = from_pretrained(hub_folder / "models/nicholasKluge/TeenyTinyLlama-160m/main")
    assert model.lm_head.weight[0, 0].item() == 0.25
    assert len(tokenizer) == 6
    assert not model.training


def test_refuses_a_revision_for_a_folder(hub_folder: Path):
    with pytest.raises(InputError, match=r"revision=main: .* only a Hub repository has revisions. Leave revision out"):
        from_pretrained(hub_folder, revision="main")


def test_refuses_a_folder_without_config_and_names_its_checkpoint(tmp_path: Path):
    with pytest.raises(
        MissingFileError, match=r"holds no config.json. Give the folder of a finished run.*checkpoint\.$"
    ):
        from_pretrained(tmp_path)
    for number in (90, 100):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(MissingFileError, match=r"Its newest checkpoint is .*checkpoint-100\.$"):
        from_pretrained(tmp_path)


def test_refuses_missing_folders_files_and_unknown_short_names(tmp_path: Path):
    with pytest.raises(MissingFileError, match=r"nada: no such folder"):
        from_pretrained(tmp_path / "nada")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"config.json: is a file. Give the folder"):
        from_pretrained(tmp_path / "config.json")
    with pytest.raises(
        InputError, match=r"=460m-chta: .*short names 160m, 460m, 460m-chat. Did you mean '460m-chat'\?"
    ):
        from_pretrained("460m-chta")


@pytest.mark.parametrize(
    ("broken", "content", "message"),
    [
        ("config.json", "{", r"config.json is no JSON .*Copy it again"),
        ("model.safetensors", "", r"transformers cannot read its files: .*Download or copy the model again"),
        ("tokenizer.json", "{}", r"transformers cannot read its files: .*Download or copy the model again"),
        ("tokenizer.json", None, r"holds no tokenizer .*`tokenizer.save_pretrained`"),
        ("model.safetensors", None, r"holds no weights in safetensors"),
    ],
)
def test_refuses_damaged_folders(hub_folder: Path, tmp_path: Path, broken: str, content: str | None, message: str):
    folder = shutil.copytree(hub_folder / "models/nicholasKluge/TeenyTinyLlama-160m/main", tmp_path / "modelo")
    (folder / broken).unlink()
    if content is not None:
        (folder / broken).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"num_hidden_layers": 1_000_000}, "num_hidden_layers=1000000. It must be an integer from 1 to 1,000"),
        ("config.json", {"num_hidden_layers": 999}, "asks for 999 layers and 6 x 16 embeddings .*, more than its files hold"),
        ("config.json", {"vocab_size": 9_000_000}, "asks for 1 layers and 9,000,000 x 16 embeddings .*, more than"),
        ("config.json", {"intermediate_size": 9_000_000}, "intermediate_size 9,000,000., more than its files hold"),
        ("config.json", {"num_labels": 30_000_000}, "num_labels=30000000. It must be an integer from 1 to 100,000"),
        ("config.json", {"transformers_weights": "other.safetensors.index.json"}, "has transformers_weights='other"),
        ("config.json", {"transformers_weights": "adapter_model.bin"}, "weights are read from model.safetensors or"),
        ("config.json", {"hidden_size": "16"}, "config.json has hidden_size='16'. It must be an integer"),
        ("config.json", {"num_attention_heads": True}, "num_attention_heads=True. It must be an integer"),
        ("config.json", {"text_config": {"hidden_size": -1}}, "hidden_size=-1. It must be an integer"),
        ("config.json", {"eos_token_id": "</s>"}, "eos_token_id='</s>'. It must be the id of a token"),
        ("config.json", {"_attn_implementation": "ana/atencao"}, "_attn_implementation='ana/atencao': code from the Hub"),
        ("config.json", {"attn_implementation": "kernels-community:x"}, "code from the Hub would compute the model"),
        ("config.json", {"use_kernels": True}, "use_kernels=True: code from the Hub"),
        ("config.json", {"model_type": ["llama"]}, "model_type=.* is no causal language model"),
        ("config.json", {"rope_parameters": "x"}, "transformers cannot read its files"),
        ("config.json", {"hidden_act": 3}, "transformers cannot read its files"),
        ("generation_config.json", {"temperature": "x"}, "generation_config.json has temperature='x'. It must be a number"),
        ("generation_config.json", {"output_hidden_states": 1}, "output_hidden_states=1. It must be true or false"),
        ("generation_config.json", {"pad_token_id": {}}, "pad_token_id={}. It must be the id of a token"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, "cannot read its files"),
        ("tokenizer.json", {"model": None}, "cannot read its files"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "cannot read its files"),
        ("model.safetensors.index.json", {"weight_map": {"a": "weights.bin"}}, "names 'weights.bin'. Only .*pickle"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../x.safetensors"}}, "names '../x.safetensors'. Only"),
        ("model.safetensors.index.json", {"weight_map": {"a": "/x.safetensors"}}, "names '/x.safetensors'. Only"),
        ("model.safetensors.index.json", {"weight_map": {"a": "b/x.safetensors"}}, "names 'b/x.safetensors'. Only"),
        ("model.safetensors.index.json", {"weight_map": {"a": "x.safetensors"}}, "names x.safetensors, which is not there"),
        ("model.safetensors.index.json", {"weight_map": ["x.safetensors"]}, "is no mapping of weights to files"),
    ],
)  # fmt: skip
def test_files_of_a_model_that_are_wrong_are_refused(
    hub_folder: Path, tmp_path: Path, file: str, changes: dict, message: str
):
    folder = shutil.copytree(hub_folder / "models/nicholasKluge/TeenyTinyLlama-160m/main", tmp_path / "modelo")
    if "index" in file:
        (folder / "model.safetensors").unlink()
        (folder / "weights.bin").write_bytes(b"\x80\x04.")
    found = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(found | changes))
    with pytest.raises(InputError, match=message):
        from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"null", b"[" * 100_000, bytes(range(256))])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_files_that_are_no_json_are_refused(hub_folder: Path, tmp_path: Path, file: str, content: bytes):
    folder = shutil.copytree(hub_folder / "models/nicholasKluge/TeenyTinyLlama-160m/main", tmp_path / "modelo")
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=r"name_or_path=.*modelo: (config|generation_config|transformers|holds no)"):
        from_pretrained(folder)


def test_a_gpt_2_is_no_base_of_ours(hub_folder: Path, tmp_path: Path):
    from transformers import GPT2Config

    from teenytinyllama.models import ensure_llama_shape

    with pytest.raises(InputError, match=r"model_name_or_path=x: is a gpt2 whose config lacks intermediate_size"):
        ensure_llama_shape("model_name_or_path", "x", GPT2Config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, r"asks for 9 weights that its files do not hold \(model.layers.1.*, …\)"),
        ({"intermediate_size": 96}, r"transformers cannot read its files: .*Download or copy the model again"),
    ],
)
def test_refuses_weights_that_are_not_those_of_the_config(
    hub_folder: Path, tmp_path: Path, changes: dict[str, int], message: str
):
    folder = shutil.copytree(hub_folder / "models/nicholasKluge/TeenyTinyLlama-160m/main", tmp_path / "modelo")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=message):
        from_pretrained(folder)


def test_clients_list_files_at_branches_and_commits(tmp_path: Path):
    """The server speaks enough for HfApi: models and datasets, pages, refs, file contents."""
    data = tmp_path / "hub/datasets/ana/corpus"
    for revision, text in {"main": "a", "v2": "b", "c" * 40: "c"}.items():
        (data / revision / "data").mkdir(parents=True)
        for number in range(3):
            (data / revision / f"data/parte-{number}.jsonl").write_text(text * (number + 1), encoding="utf-8")
        (data / revision / "data/treino.parquet").write_bytes(text.encode() * 10)
    client = """
from huggingface_hub import HfApi, hf_hub_download
api, kind = HfApi(), {"repo_type": "dataset"}
names = ["data/parte-0.jsonl", "data/parte-1.jsonl", "data/parte-2.jsonl", "data/treino.parquet"]
assert api.list_repo_files("ana/corpus", **kind) == names, api.list_repo_files("ana/corpus", **kind)
tree = list(api.list_repo_tree("ana/corpus", revision="v2", recursive=True, **kind))
assert [(entry.path, getattr(entry, "size", None)) for entry in tree][1:] == list(zip(names, [1, 2, 3, 10]))
assert tree[-1].lfs.size == 10 and [entry.path for entry in api.list_repo_tree("ana/corpus", **kind)] == ["data"]
assert [ref.name for ref in api.list_repo_refs("ana/corpus", **kind).branches] == ["main", "v2"]
commit = api.dataset_info("ana/corpus", revision="v2").sha
assert api.get_paths_info("ana/corpus", names[:1], revision=commit, **kind)[0].size == 1
for revision, text in {commit: "b", "main": "a", "c" * 40: "c"}.items():
    for name in names[2:]:
        path = hf_hub_download("ana/corpus", name, revision=revision, **kind)
        assert set(open(path).read()) == {text}, (revision, path)
print("ok")
"""
    with HubServer(tmp_path / "hub", page_size=2) as server:
        environment = server.environment(tmp_path / "home")
        run = subprocess.run(
            [sys.executable, "-c", client], env=environment, capture_output=True, text=True, check=False
        )
        assert run.stdout == "ok\n", run.stderr
        assert [request.path for request in server.requests if "cursor=2" in request.path]
        assert {request.status for request in server.requests} == {200, 302}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_weights_have_the_rights_of_other_new_files(tmp_path: Path, umask: int, mode: int):
    before = os.umask(umask)
    try:
        _save_model(tmp_path / "m", 0.5)
        finish_saved(tmp_path / "m")
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()} == {mode}
        assert os.umask(umask) == umask, "the mask of the process stays"
    finally:
        os.umask(before)


_ROPE = {"rope_type": "default", "rope_theta": 5e5}
_YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("config", "older"),
    [
        ({"rope_parameters": _ROPE}, {"rope_theta": 5e5}),
        ({"rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}}, {"rope_theta": 5e5, "partial_rotary_factor": 0.5}),
        ({"rope_parameters": {**_YARN, "rope_theta": 1e6}}, {"rope_theta": 1e6, "rope_scaling": _YARN}),
        ({"rope_parameters": {"full_attention": _ROPE, "sliding_attention": {**_ROPE, "rope_theta": 1e4}}},
         {"rope_theta": 5e5, "rope_local_base_freq": 1e4}),
        ({"text_config": {"rope_parameters": _ROPE}}, {"text_config": {"rope_parameters": _ROPE, "rope_theta": 5e5}}),
        ({"rope_theta": 2e4}, {}),
        ({"rope_parameters": None}, {}),
    ],
)  # fmt: skip
def test_rotary_positions_stand_under_the_older_names_as_well(
    tmp_path: Path, config: dict[str, Any], older: dict[str, Any]
):
    (tmp_path / "config.json").write_text(json.dumps(config))
    finish_saved(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {**config, **older}
