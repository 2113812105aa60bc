"""The test Hub against the real client, transformers and datasets."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_asks import TOKENS, run
from hub_client import CARD, WEIGHTS
from hub_faults import WRITES
from hub_files import git_attributes
from hub_server import HubServer

PUSHED = [".gitattributes", "README.md", "config.json", "generation_config.json", "model.safetensors"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub."""
    with HubServer(tmp_path / "hub", tokens=TOKENS, orgs={"grupo": {"ana"}}, page_size=3) as running:
        yield running


def test_the_client_does_everything_to_a_repository(server: HubServer, tmp_path: Path):
    (tmp_path / "pasta").mkdir()
    (tmp_path / "pasta/novo.json").write_text("{}", encoding="utf-8")
    seen = run(server, tmp_path / "home", "commits", str(tmp_path / "pasta"))
    assert (seen["again"], seen["nothing new"]) == ("ana/m", seen["first"])
    assert re.match(r"HfHubHTTPError 412.*A commit has happened since", seen["old parent"])
    assert seen["history"] == [["segundo", ""], ["primeiro", "com pesos"], ["initial commit", ""]]
    main = [".gitattributes", "README.md", "c.txt", "copia.safetensors", "w.safetensors"]
    first = [".gitattributes", "README.md", "sub/a.txt", "sub/b.txt", "w.safetensors"]
    step = [".gitattributes", "README.md", "novo.json", "w.safetensors"]
    assert seen["files"] == {
        "main": main,
        "v1": main,
        seen["first"]: first,
        "step100": step,
        "a/b": [*main, "x/y/z.txt"],
    }
    titles = dict(seen["tree"])
    assert [*titles] == [*main, "x", "x/y", "x/y/z.txt"]
    assert titles["w.safetensors"] == "primeiro"
    assert titles["README.md"] == "segundo"
    assert titles[".gitattributes"] == "initial commit"
    assert titles["x"].startswith("Upload")
    assert seen["inside"] == ["x/y/z.txt"]
    assert [path for path, _ in seen["paths"]] == ["x", "c.txt"]
    assert seen["refs"] == [["main", "step100"], []]
    assert seen["downloaded"] == {name: name == "w.safetensors" for name in step}
    assert seen["verified"]
    assert seen["info"] == [True, ["conto", "pt", "license:mit"], "mit", 5120]
    assert seen["expanded"] == [len(CARD + b"mais" + git_attributes() + b"c") + 2 * len(WEIGHTS), False, None]
    assert seen["moved"] == [False, True, "manual"]
    assert seen["lists"] == [["grupo/m"], ["grupo/dados"], []]
    assert (seen["deleted"], seen["who"]) == (False, ["ana", ["grupo"]])
    others = {"lfs_part", "lfs_complete", "create_bucket", "delete_bucket", "batch"}
    assert {*WRITES} - {*server.writes()} == others
    assert not [request for request in server.requests if request.status >= 500]


def test_an_upload_in_parts(tmp_path: Path):
    with HubServer(tmp_path / "hub", tokens=TOKENS, part_bytes=2000) as server:
        assert run(server, tmp_path / "home", "parts") == {"same": True}
        # The same content a second time is not sent again.
        assert [request.write for request in server.requests if request.write] == [
            "create_repo", "lfs_part", "lfs_part", "lfs_part", "lfs_complete", "commit", "commit",
        ]  # fmt: skip


REFUSED = {
    "no token, private": (None, "api.model_info('ana/segredo')", "RepositoryNotFoundError 401"),
    "other user, private": ("hf_rui", "api.model_info('ana/segredo')", "RepositoryNotFoundError 404"),
    "no token, missing": (None, "download('ana/nada', 'a', token=False)", "RepositoryNotFoundError 401"),
    "member, private": ("hf_ana", "api.model_info('ana/segredo')", "done"),
    "wrong token": ("hf_falso", "api.model_info('ana/m')", "HfHubHTTPError 401.*Invalid credentials in Authorization"),
    "wrong token, who": ("hf_falso", "api.whoami()", "HfHubHTTPError 401.*Invalid user token"),
    "gated": ("hf_rui", "download('ana/restrito', 'a.txt', token='hf_rui')", "GatedRepoError 403"),
    "gated, no token": (None, "download('ana/restrito', 'a.txt', token=False)", "GatedRepoError 401"),
    "gated, check": ("hf_rui", "api.auth_check('ana/restrito')", "GatedRepoError 403"),
    "gated, info": ("hf_rui", "api.model_info('ana/restrito')", "done"),
    "create elsewhere": ("hf_rui", "api.create_repo('ana/x')", "HfHubHTTPError 403.*rights to create a model under.*\"ana\""),
    "create, read token": ("hf_ler", "api.create_repo('ana/x')", "HfHubHTTPError 403.*role read"),
    "create, no token": (None, "api.create_repo('ana/x')", "HfHubHTTPError 401"),
    "create again": ("hf_ana", "api.create_repo('ana/m')", "HfHubHTTPError 409.*already created this model repo"),
    "create, exist_ok, 403": ("hf_rui", "api.create_repo('ana/m', exist_ok=True)", "done"),
    "commit, stranger": ("hf_rui", "api.create_commit('ana/m', [add('a', b'a')], commit_message='x')", "HfHubHTTPError 403"),
    "commit, read token": ("hf_ler", "api.create_commit('ana/m', [add('a', b'a')], commit_message='x')", "HfHubHTTPError 403"),
    "commit, no branch": ("hf_ana", "api.create_commit('ana/m', [add('a', b'a')], commit_message='x', revision='b')", "RevisionNotFoundError 404"),
    "commit, no repository": ("hf_ana", "api.create_commit('ana/n', [add('a', b'a')], commit_message='x')", "RepositoryNotFoundError 404.*create_repo"),
    "delete what is not there": ("hf_ana", "api.create_commit('ana/m', [delete('b')], commit_message='x')", "RemoteEntryNotFoundError 404.*A file with this name doesn't exist"),
    "pull request": ("hf_ana", "api.create_commit('ana/m', [add('a', b'a')], commit_message='x', create_pr=True)", "HfHubHTTPError 403.*Pull requests"),
    "branch again": ("hf_ana", "api.create_branch('ana/m', branch='main')", "HfHubHTTPError 409.*already exists"),
    "branch of nothing": ("hf_ana", "api.create_branch('ana/m', branch='x', revision='nada')", "RevisionNotFoundError 404"),
    "branch of a wrong name": ("hf_ana", "api.create_branch('ana/m', branch='refs/x')", "BadRequestError 400.*Invalid reference"),
    "delete main": ("hf_ana", "api.delete_branch('ana/m', branch='main')", "HfHubHTTPError 403.*main cannot be deleted"),
    "delete no branch": ("hf_ana", "api.delete_branch('ana/m', branch='x')", "RevisionNotFoundError 404"),
    "tag again": ("hf_ana", "[api.create_tag('ana/m', tag='t') for _ in range(2)]", "HfHubHTTPError 409.*Tag reference exists"),
    "delete no tag": ("hf_ana", "api.delete_tag('ana/m', tag='x')", "RevisionNotFoundError 404"),
    "no such file": ("hf_ana", "download('ana/m', 'x')", "RemoteEntryNotFoundError 404"),
    "no such revision": ("hf_ana", "download('ana/m', 'x', revision='x')", "RevisionNotFoundError 404"),
    "no such folder": ("hf_ana", "list(api.list_repo_tree('ana/m', 'x'))", "RemoteEntryNotFoundError 404"),
    "delete, stranger": ("hf_rui", "api.delete_repo('ana/m')", "HfHubHTTPError 403"),
    "delete, missing": ("hf_ana", "api.delete_repo('ana/nada')", "RepositoryNotFoundError 404"),
    "move onto another": ("hf_ana", "api.move_repo('ana/m', 'ana/segredo')", "HfHubHTTPError 409"),
    "move away": ("hf_ana", "api.move_repo('ana/m', 'rui/m')", "HfHubHTTPError 403"),
    "settings, stranger": ("hf_rui", "api.update_repo_settings('ana/m', private=True)", "HfHubHTTPError 403"),
    "write check": ("hf_ler", "api.auth_check('ana/m', write=True)", "HfHubHTTPError 403"),
    "write check, owner": ("hf_ana", "api.auth_check('ana/m', write=True)", "done"),
    "repository name": ("hf_ana", "api.create_repo('ana/m.git')", "HFValidationError"),
}  # fmt: skip


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The outcomes of REFUSED, all of one client process."""
    folder = tmp_path_factory.mktemp("refused")
    lists = {"private": {"ana/segredo": {"ana"}}, "gated": {"ana/restrito": {"ana"}}}
    with HubServer(folder / "hub", tokens=TOKENS, **lists) as server:
        for name in ("ana/m", "ana/segredo", "ana/restrito"):
            server.write(name, {"a.txt": b"a"})
        before = server.state()
        rows = run(server, folder / "home", "refusals", json.dumps([case[:2] for case in REFUSED.values()]))
        before["models/ana/m"]["tags"] = {"t": before["models/ana/m"]["branches"]["main"]}
        assert server.state() == before
        yield dict(zip(REFUSED, rows, strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_have_the_class_and_status_of_the_hub(case: str, refusals: dict[str, str]):
    assert re.match(REFUSED[case][2], refusals[case]), refusals[case]


def test_cards(server: HubServer, tmp_path: Path):
    seen = run(server, tmp_path / "home", "cards")
    messages = {
        "licence": r'"license.*must be one of \[.*apache-2.0',
        "list": "has to be a mapping",
        "broken": "YAML is invalid",
        "index": r"model-index\[0\]\.name.* is required",
    }
    for name, message in messages.items():
        for row in seen[name]:
            assert re.match("ValueError.*" + message, row), (name, row)
    assert "empty or missing yaml metadata" in seen["empty"][0]
    assert seen["results"] == [["ana/provas", "geral", 0.5]]


@pytest.mark.slow
def test_transformers_push_and_load_at_revisions(server: HubServer, tmp_path: Path):
    seen = run(server, tmp_path / "home", "models")
    assert seen == [["llama", 3, False], ["llama", 3, True], ["llama", 3, True]]
    assert {*PUSHED, "tokenizer.json", "tokenizer_config.json"} <= {*server.files("ana/mini")}


@pytest.mark.slow
def test_datasets_push_and_load(server: HubServer, tmp_path: Path):
    seen = run(server, tmp_path / "home", "rows")
    assert seen["names"] == ["default", "partes"]
    assert (seen["first"], seen["streamed"]) == (["um", "dois"], ["dois"])
    parquet = [name for name in seen["files"] if name.endswith(".parquet")]
    assert [name.split("/")[0] for name in parquet] == ["data", "partes", "partes"]
    assert server.info("ana/textos", "dataset")["private"] is True


def test_the_client_does_everything_to_a_bucket(tmp_path: Path) -> None:
    with HubServer(tmp_path / "hub", tokens=TOKENS, page_size=2, xet=True) as server:
        seen = run(server, tmp_path / "home", "buckets", str(tmp_path / "back"))
        assert server.writes() == ["create_bucket", "batch", "delete_bucket"]
    assert seen["url"] == "ana/b"
    assert seen["again"][0] == "ana/b"
    assert seen["again"][1].startswith("HfHubHTTPError 409")
    assert seen["info"] == [True, 5121, 3]
    assert seen["top"] == [["file", "vazio.txt"], ["directory", "x"], ["file", "xis.txt"]]
    assert seen["inside"] == ["x/y/w.bin", "xis.txt"]  # a prefix is no folder
    assert seen["paths"] == ["x/y/w.bin"]
    assert seen["same"] == [True, True]
    assert re.match(r"BucketBatchError 200 .*1 out of 2 operation.* nada: ", seen["in part"])
    assert re.match(r"BucketBatchError 422 .*1 out of 1 operation", seen["nothing"])
    assert seen["strangers"].startswith("HfHubHTTPError 403")
    assert seen["hidden"].startswith("BucketNotFoundError 404")
    assert seen["reader"].startswith("HfHubHTTPError 403")
    assert seen["deleted"].startswith("BucketNotFoundError 404")
