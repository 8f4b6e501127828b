"""Checkpoints of the Hugging Face hub: downloaded, or from the cache when there is no network."""

from pathlib import Path

from fedgraft.backbones.checkpoints.layouts import LAYOUTS
from fedgraft.core.errors import UserError

_SMALL = ("*.json", "*.txt", "*.model")
"""Configurations and tokenizers."""


def downloaded(name: str) -> Path:
    """The folder of an ID's snapshot, with its configuration, its tokenizer and one set of weights.

    Raises:
        UserError: it does not exist, is gated, or there is no network and the cache lacks it.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        patterns = [*_SMALL, *_weights(huggingface_hub.HfApi().list_repo_files(name))]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError as error:
        raise UserError(
            f"{name!r} is gated: accept its terms on its page at huggingface.co, then log in with `hf auth login`."
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(f"{name!r} is not in the cache, and there is no network to download it.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"There is no {name!r} at huggingface.co, or it is private and you are not logged in."
        ) from error
    except Exception as error:  # whatever the network does
        try:
            return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{name!r} is not in the cache and cannot be downloaded: {reason}") from error


def _weights(files: list[str]) -> list[str]:
    """The patterns of the first set of weights that a repository has."""
    for layout, candidates in LAYOUTS.items():
        for candidate in candidates:
            if layout in files and candidate in files:
                stem, _, suffix = candidate.removesuffix(".index.json").rpartition(".")
                return [candidate, f"{stem}-*.{suffix}"] if candidate.endswith(".index.json") else [candidate]
    return []
