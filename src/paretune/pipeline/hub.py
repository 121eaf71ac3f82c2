"""What the hub holds: commits, config.json, models and datasets.

All of it goes through huggingface_hub and `datasets`: their cache, their token and HF_HUB_OFFLINE are respected, and a token is
never recorded. Planning asks for commits, config.json and model cards and for nothing else; the rest is fetched by
`fetch_model` and `fetch_dataset`, before the first stage of a run, after saying what and how much.
"""

import contextlib
import fnmatch
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, RepoFile, constants, get_token, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, validate_repo_id  # type: ignore[attr-defined]  # public, not in __all__

from paretune.errors import NeedsError, SpecError

MODEL = "model"
DATASET = "dataset"
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "model-[0-9]*.safetensors")
"""The names that `from_pretrained` reads; repositories hold the same weights under other names too."""
CONFIG_FILES = ("config.json", "generation_config.json", "*.py")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja")
_MODEL_FILES = [*WEIGHT_FILES, *CONFIG_FILES, *TOKENIZER_FILES]
_FOLDERS = ["*/*"]
"""Left out: some repositories hold the weights once more in other formats."""
_TIMEOUT_SECONDS = 10.0
_ERRORS = (OSError, httpx2.HTTPError, HFValidationError)


def resolve_commit(kind: str, name: str, revision: str | None, where: str) -> str:
    """Commit that a branch, tag or commit of a repository stands for now; of the cache where the hub cannot be reached.

    Of a model, config.json and its card are fetched with it. NeedsError, beginning with `where`, for what is not there or not
    to be had.
    """
    wanted = revision or constants.DEFAULT_REVISION
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    cached = folder / "refs" / wanted
    if constants.HF_HUB_OFFLINE and cached.exists():
        return cached.read_text(encoding="utf-8").strip()
    if (folder / "snapshots" / wanted).is_dir():
        return wanted
    try:
        # Asked first because it fails at once: a download would wait for the network for half a minute.
        commit = str(HfApi().repo_info(name, revision=wanted, repo_type=kind, timeout=_TIMEOUT_SECONDS).sha)
        if kind == MODEL:
            _quiet_unless_terminal()
            # By the name of the branch, not by its commit: the cache then knows the branch too, for the day without network.
            config = Path(hf_hub_download(name, "config.json", revision=wanted))
            with contextlib.suppress(*_ERRORS):  # it has none
                hf_hub_download(name, constants.REPOCARD_NAME, revision=wanted)
            return config.parent.name
        return commit
    except RemoteEntryNotFoundError:
        raise NeedsError(f"{where}: hub model `{name}` holds no config.json; name a model in Hugging Face format") from None
    except _ERRORS as error:
        if cached.exists():
            return cached.read_text(encoding="utf-8").strip()
        raise _told(error, kind, name, where) from None


def config_file(name: str, commit: str, where: str) -> Path:
    """The config.json of a model repository; fetched where the cache does not hold it. Errors as `resolve_commit`."""
    try:
        return Path(hf_hub_download(name, "config.json", revision=commit))
    except _ERRORS as error:
        raise _told(error, MODEL, name, where) from None


def cached_model(name: str, commit: str) -> Path | None:
    """Directory of a model in the cache, or None where any of its files is missing; asks no network."""
    try:
        directory = Path(
            snapshot_download(
                name, revision=commit, allow_patterns=_MODEL_FILES, ignore_patterns=_FOLDERS, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    return directory if weight_files(directory) else None


def fetch_model(name: str, commit: str, say: Callable[[str], None]) -> Path:
    """Directory of a model in the cache; what is missing is downloaded after `say` has told how much. NeedsError if it fails.

    Files that are there already are not fetched again, and a connection that breaks is taken up where it broke.
    """
    where = f"hub model `{name}`"
    cached = cached_model(name, commit)
    if cached:
        return cached
    _quiet_unless_terminal()
    try:
        tree = HfApi().list_repo_tree(name, revision=commit)
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        wanted = [path for path in sizes if any(fnmatch.fnmatch(path, pattern) for pattern in _MODEL_FILES)]
        if not any(path.endswith(".safetensors") for path in wanted):
            raise NeedsError(f"{where}: holds no model.safetensors (other formats are not read: they can run code)")
        missing = [path for path in wanted if not isinstance(try_to_load_from_cache(name, path, revision=commit), str)]
        amount = sum(sizes[path] for path in missing) / 1e6
        say(f"downloading {where} at {commit[:8]}: {len(missing)} files, {amount:,.1f} MB, to {constants.HF_HUB_CACHE}")
        return Path(snapshot_download(name, revision=commit, allow_patterns=wanted))
    except _ERRORS as error:
        raise _told(error, MODEL, name) from None


def fetch_dataset(name: str, config: str | None, commit: str, say: Callable[[str], None]) -> None:
    """Prepare a dataset in the cache of `datasets`, after `say` has told what. Errors as `open_dataset`."""
    import datasets  # type: ignore[import-untyped]

    say(
        f"reading hub dataset `{name}` at {commit[:8]}; what the cache {datasets.config.HF_DATASETS_CACHE} misses is downloaded"
    )
    open_dataset(name, config, commit)


def check_repository_name(name: str, flag: str) -> None:
    """SpecError, beginning with `flag`, for what cannot be `owner/name`."""
    try:
        validate_repo_id(name)
        if name.count("/") == 1:
            return
    except HFValidationError:
        pass
    raise SpecError(f"{flag}: `{name}` cannot be a repository of the hub; write `owner/name`")


def push_model(directory: Path, name: str, message: str, *, public: bool) -> str:
    """Make the repository `name` hold exactly what is in `directory`, in a commit with `message`; returns its address.

    The repository is made where there is none, private unless `public`, and one that is there has to be the one or the other
    already: nothing is shown to others, or hidden from them, by the way. NeedsError where the hub does not take it; `directory`
    stays as it is.
    """
    _quiet_unless_terminal()
    stays, api = f"`{directory}` stays", HfApi()
    if get_token() is None:
        raise NeedsError(f"--push: there is no token of the hub; log in with `hf auth login`, or set HF_TOKEN; {stays}")
    try:
        try:
            api.create_repo(name, private=not public)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            if public == api.repo_info(name, timeout=_TIMEOUT_SECONDS).private:
                seen, way_out = ("private", "leave `--public` out") if public else ("public", "add `--public`")
                raise NeedsError(f"--push: `{name}` is there, and {seen}; {way_out}, or name another; {stays}") from None
        # What a former push left beside the new files would be loaded with them.
        api.upload_folder(repo_id=name, folder_path=directory, commit_message=message, delete_patterns="*")
    except (*_ERRORS, ValueError, RuntimeError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if isinstance(error, RepositoryNotFoundError) or status in (403, 404):
            told = f"`{name}` is of others, or your token may not write there ({_first_line(error)}); name another, or take one"
        elif status == 401:
            told = f"the hub does not take your token ({_first_line(error)}); log in with `hf auth login`, or set HF_TOKEN"
        else:
            told = f"`{name}` cannot be sent to {constants.ENDPOINT} ({_first_line(error)})"
        raise NeedsError(f"--push: {told}; {stays}, and `hf upload {name} {directory}` sends it later") from None
    return f"{constants.ENDPOINT}/{name}"


def open_dataset(name: str, config: str | None, commit: str) -> Any:
    """The prepared `datasets.DatasetBuilder` of exactly that commit; NeedsError where it is not to be had."""
    import datasets

    where = f"hub dataset `{name}`"
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        builder = _cached_builder(name, config, commit)
        if builder is None:
            HfApi().repo_info(name, revision=commit, repo_type=DATASET, timeout=_TIMEOUT_SECONDS)  # fails at once, as above
            builder = datasets.load_dataset_builder(name, config, revision=commit)
        builder.download_and_prepare()
    except (datasets.exceptions.DatasetsError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        raise NeedsError(f"{where}: {_first_line(cause or error)}; check `config`, or give a file with `path:`") from None
    except _ERRORS as error:
        raise _told(error, DATASET, name) from None
    if builder.hash != commit:
        # Where the hub does not answer, `datasets` takes what it has: the rows of another commit under this commit's key.
        raise NeedsError(
            f"{where}: the hub did not give the commit `{commit}`, and the cache holds `{builder.hash}`; run again"
        )
    return builder


def _cached_builder(name: str, config: str | None, commit: str) -> Any:
    """The builder of a dataset that has been prepared before, without asking the network; None where there is none."""
    import datasets

    if not any(Path(datasets.config.HF_DATASETS_CACHE).glob(f"*/*/*/{commit}")):
        return None
    online, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        builder = datasets.load_dataset_builder(name, config, revision=commit)
    except (ValueError, OSError):  # another configuration of it
        return None
    finally:
        datasets.config.HF_HUB_OFFLINE = online
    return builder if builder.hash == commit else None


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that `from_pretrained` reads from a directory; empty where one of them is missing."""
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    index = directory / "model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError):
        return []
    files = [directory / name for name in names]
    return files if all(file.is_file() for file in files) else []


def _quiet_unless_terminal() -> None:
    if not sys.stderr.isatty():
        disable_progress_bars()


def _told(error: Exception, kind: str, name: str, where: str = "") -> NeedsError:
    """What the hub or its client said, in words that name the way out. Never more of it than its first line."""
    where, way_out = where and f"{where}: ", "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, HFValidationError):
        return NeedsError(
            f"{where}`{name}` cannot be a repository of the hub; write `owner/name`, or use `path:` for a directory"
        )
    if isinstance(error, GatedRepoError):
        return NeedsError(f"{where}hub {kind} `{name}` is gated; ask for access on its page, then {way_out}")
    if isinstance(error, RepositoryNotFoundError):
        return NeedsError(f"{where}no hub {kind} `{name}`, or it is private; check the name, and for a private one {way_out}")
    if isinstance(error, RevisionNotFoundError):
        return NeedsError(f"{where}hub {kind} `{name}` has no such `revision`; name a branch, a tag or a commit of it")
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return NeedsError(f"{where}the hub refuses access to {kind} `{name}` ({_first_line(error)}); {way_out}")
    return NeedsError(
        f"{where}hub {kind} `{name}` cannot be reached ({_first_line(error)}), and the local cache "
        f"`{constants.HF_HUB_CACHE}` does not hold it; connect once, or write `path:` with a local copy instead of `hub:`"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
