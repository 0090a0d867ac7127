"""What a hub says when it gives no model, in words for people. Nothing heavy is imported."""

# ruff: noqa: PLC0415

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dreambooth_ray.errors import ConfigError, StorageError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY = 401, 403, 429


@dataclass(frozen=True)
class HubModel:
    """A repository of the hub at a branch, tag or commit; "" is its main branch."""

    repo: str
    revision: str = ""

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


class HubUnreachableError(StorageError):
    """The hub does not answer, or is not to be asked."""


class NoSuchModelError(ConfigError):
    """The hub has no such model, or does not tell this caller of it."""


def hub_endpoint() -> str:
    """Address of the hub that huggingface_hub asks."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextmanager
def explained_answers(model: HubModel) -> Iterator[None]:
    """Raise the library's errors inside the block in our own words.

    raises: ConfigError where a person has to do something, HubUnreachableError
    """
    import httpx2
    from huggingface_hub import errors

    model_page_url = f"{hub_endpoint()}/{model.repo}"
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise HubUnreachableError(
            f"{model} is not on this host, and HF_HUB_OFFLINE forbids asking {hub_endpoint()}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(
            f"{model.repo} has no branch, tag or commit {model.revision!r}; see "
            f"{model_page_url}/tree/main"
        ) from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{model} is no id of the hub: {' '.join(str(error).split())}") from error
    except errors.HfHubHTTPError as error:
        raise _explain_answer(model, model_page_url, error) from error
    except (httpx2.HTTPError, OSError) as error:
        raise HubUnreachableError(
            f"{hub_endpoint()} does not answer ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); {model} is not on this host"
        ) from error


def _explain_answer(
    model: HubModel, model_page_url: str, error: Any
) -> ConfigError | HubUnreachableError:
    from huggingface_hub import errors, get_token

    status = error.response.status_code
    has_token = get_token() is not None
    if isinstance(error, errors.GatedRepoError) or status == _FORBIDDEN:
        remedy = (
            "with the account of HF_TOKEN (a fine-grained token needs the right to read gated "
            "repositories)"
            if has_token
            else "and set HF_TOKEN to a token of your account"
        )
        return ConfigError(f"{model.repo} is gated: accept its terms at {model_page_url} {remedy}")
    if status == _UNAUTHORIZED and has_token:
        return ConfigError(
            f"{model.repo}: the hub does not know the token in HF_TOKEN; make one at "
            f"{hub_endpoint()}/settings/tokens"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        remedy = (
            "if it is private, HF_TOKEN must be of an account that may read it"
            if has_token
            else "if it is private, set HF_TOKEN to a token that may read it"
        )
        return NoSuchModelError(f"there is no model {model.repo} at {model_page_url}; {remedy}")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return ConfigError(f"{model} lacks a file that it lists: {error.response.url}")
    if status == _TOO_MANY or status >= 500:
        return HubUnreachableError(
            f"{hub_endpoint()} answers {status}; {model} is not on this host"
        )
    return ConfigError(f"{hub_endpoint()} answers {status} for {model}; see {model_page_url}")
