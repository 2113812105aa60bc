"""Who may do what on the test Hub, with the refusals in the Hub's words."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hub_protocol import Call, HubError, Person
from hub_store import Commit, Repository, Store


@dataclass
class Access:
    """Tokens and members, and the repositories that not all may see or read (see `HubServer`)."""

    tokens: dict[str, Person] = field(default_factory=dict, repr=False)
    orgs: Mapping[str, set[str]] = field(default_factory=dict)
    private: Mapping[str, set[str]] = field(default_factory=dict)
    gated: Mapping[str, set[str]] = field(default_factory=dict)

    def person(self, authorization: str | None) -> Person | None:
        """Return who an Authorization header speaks for.

        Raises:
            HubError: 401, if its token is not one of ours.
        """
        if authorization is None:
            return None
        person = self.tokens.get(authorization.removeprefix("Bearer "))
        if person is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return person

    def belongs(self, owner: str, user: str | None) -> bool:
        """Return whether a namespace is the user's own or that of an organisation the user is a member of."""
        return user is not None and (user == owner or user in self.orgs.get(owner, ()))

    def is_private(self, repository: Repository) -> bool:
        """Return whether strangers do not see a repository."""
        return repository.private or repository.id in self.private

    def gating(self, repository: Repository) -> str | bool:
        """Return how access to the files is granted: auto, manual or not needed."""
        return repository.gated or ("manual" if repository.id in self.gated else False)

    def sees(self, repository: Repository, user: str | None) -> bool:
        """Return whether the repository exists as far as this user is told."""
        named = user in self.private.get(repository.id, ())
        return not self.is_private(repository) or named or self.belongs(repository.owner, user)

    def ensure_reads(self, repository: Repository, user: str | None) -> None:
        """Refuse the files of a gated repository to users who were not granted access."""
        if not self.gating(repository) or user in self.gated.get(repository.id, ()):
            return
        # A repository that the test gated by hand lists everybody who may read it.
        if repository.id in self.gated or not self.belongs(repository.owner, user):
            message = f"Access to {repository.kind[:-1]} {repository.id} has to be granted."
            raise HubError(401 if user is None else 403, message, "GatedRepo")

    def ensure_writes(self, owner: str, person: Person | None, refusal: str) -> None:
        """Refuse a change in a namespace to strangers, anonymous users and read-only tokens."""
        if person is None:
            raise HubError(401, "Invalid username or password.")
        if person.role != "write":
            raise HubError(403, "Forbidden: this token has the role read; a token with the role write is needed")
        if not self.belongs(owner, person.name):
            raise HubError(403, refusal)


@dataclass
class Hub:
    """Everything that requests are answered from."""

    store: Store
    access: Access
    url: str
    page_size: int
    lfs_bytes: int
    part_bytes: int | None

    @property
    def storage_url(self) -> str:
        """Another host name for the same port: the client follows redirects that stay on its Hub, and stops here."""
        return self.url.replace("127.0.0.1", "localhost")

    def repository(self, call: Call, kind: str, id: str) -> Repository:
        """Return a repository that the caller may see.

        Raises:
            HubError: 401 or 404, as if it did not exist.
        """
        found = self.store.find(kind, id)
        if found and self.access.sees(found, call.user):
            return found
        # The Hub does not tell a stranger whether a private repository exists. The client takes any 401 of a repository
        # for RepoNotFound, but only from an address that begins with https; here the code has to say so.
        if call.person is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def writable(self, call: Call, kind: str, id: str) -> Repository:
        """Return a repository that the caller may change.

        Raises:
            HubError: 401, 403 or 404.
        """
        repository = self.repository(call, kind, id)
        refusal = "Forbidden: you are not a member of its owner, so you may not write to it"
        self.access.ensure_writes(repository.owner, call.person, refusal)
        return repository

    def commit(self, repository: Repository, revision: str) -> Commit:
        """Return the commit of a revision.

        Raises:
            HubError: 404, if the repository has no such branch, tag or commit.
        """
        commit = repository.find(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


def web_url(hub: Hub, kind: str, id: str) -> str:
    """Return the address of a repository's page."""
    return f"{hub.url}/{'' if kind == 'models' else kind + '/'}{id}"
