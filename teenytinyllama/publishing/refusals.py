"""What is wrong when the Hub refuses, said once and clearly; and the checks that need no network."""

import re

from ..checks import InputError, ensure

# Tokens of the Hub; also what is left of one that was cut.
_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{10,}")
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."
_QUOTA = re.compile(r"quota|storage limit|storage .*(exceed|reached|full)|payment|billing|plan\b", re.IGNORECASE)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST_MESSAGE = 300
# The Hub's refusals that the client raises as plain ValueError: of large files, and of the card's metadata.
_CLIENT_REFUSALS = ("LFS batch API returned errors", "Invalid metadata in README.md")


def check_repository(repository: str, key: str = "to") -> None:
    """Refuse what the Hub would not take as `owner/name`; asks nobody.

    Raises:
        InputError: not two names with one slash, or letters that the Hub does not allow.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    owner, slash, name = repository.partition("/")
    try:
        validate_repo_id(repository)
        is_valid = bool(owner and slash and name)
    except HFValidationError:
        is_valid = False
    ensure(
        is_valid,
        f"{key}={without_tokens(repository)}: is no repository of the Hub. Give owner/name, each of letters, digits, "
        "'-', '_' and '.', without '--' or '..', as ana/meu-modelo.",
    )


def check_revision(revision: str) -> None:
    """Refuse a revision that is no plain branch name.

    Raises:
        InputError: other letters, or a name that git treats in its own way.
    """
    ensure(
        _REVISION.fullmatch(revision) and ".." not in revision and not revision.endswith((".lock", ".")),
        f"revision={revision}: is no plain branch name. Use letters, digits, '-', '_' and '.', as step1000.",
    )


def check_token() -> None:
    """Refuse to begin without a token or in offline mode; asks nobody.

    Raises:
        InputError: there is no token on this machine, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants, get_token

    ensure(
        not constants.HF_HUB_OFFLINE,
        "HF_HUB_OFFLINE: is set, so nothing can be sent. Unset it, or write to a folder: --to folder:PATH",
    )
    ensure(get_token(), f"token: there is none on this machine. {_LOGIN}")


def without_tokens(text: str) -> str:
    """Return a text in which nothing that looks like a token of the Hub, and not this machine's own, can be read."""
    from huggingface_hub import get_token

    token = get_token()
    if token and len(token) > 5:
        text = text.replace(token, "<token>")
    return _TOKEN.sub("<token>", text)


def one_clean_line(text: str) -> str:
    """Return a text of another's as one short line: no token, no signature of an address, no control character."""
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return without_tokens(text)[:_LONGEST_MESSAGE]


def explain(error: Exception, what: str, repository: str, user: str) -> InputError | None:
    """Return the refusal that an exception of the Hub client means, or None for what is no refusal of the Hub.

    Args:
        error: as raised by the client.
        what: was being done, as `ana/modelo: the commit to main`.
        repository: where to.
        user: who the token belongs to; empty if that is not known yet.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if not isinstance(error, HfHubHTTPError):
        cause = error.__cause__
        if isinstance(error, RuntimeError) and isinstance(cause, HfHubHTTPError):  # from a thread that uploads a file
            return explain(cause, what, repository, user)
        if isinstance(error, ValueError) and str(error).startswith(_CLIENT_REFUSALS):
            return InputError(f"{what}: the Hub refuses it: {one_clean_line(str(error))}{_quota_fix(str(error))}")
        return None
    status = error.response.status_code
    said = one_clean_line(error.server_message or error.response.headers.get("X-Error-Message") or "")
    who = f"as {user}" if user else "with this token"
    if isinstance(error, GatedRepoError):
        reason = f"access to {repository} has to be granted. Ask for it at {repository_page(repository)}."
    elif status == 401 or (status == 403 and not user):
        reason = f"the Hub does not accept the token (HTTP {status}). It may be mistyped or expired. {_LOGIN}"
    elif status in (402, 413, 507) or _QUOTA.search(said):
        reason = f"the Hub has no room for it (HTTP {status}): {said}.{_quota_fix(said) or _QUOTA_FIX}"
    elif status == 403:
        reason = (
            f"you may not write to {repository} {who} (HTTP 403): {said}. Use a token with write permission for it, "
            "or your own repository."
        )
    elif isinstance(error, RepositoryNotFoundError) or status == 404:
        reason = f"{repository} does not exist, or you may not see it {who} (HTTP {status})."
    else:
        reason = f"the Hub refuses it (HTTP {status}): {said}."
    return InputError(f"{what}: {reason}")


_QUOTA_FIX = " Free some room there, publish to an organisation that has more, or make the repository public."


def _quota_fix(said: str) -> str:
    return _QUOTA_FIX if _QUOTA.search(said) else ""


def repository_page(repository: str, repo_type: str = "model") -> str:
    """Return the address of a repository's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repository}"
