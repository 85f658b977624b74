"""Checkpoints from the Hugging Face hub: only the files that a build reads, in the hub's own cache.

huggingface_hub lists, authorizes and caches; HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE
mean what they mean to it. Weights are the exception: the library throws away what it has of a
file when its process ends, so they are fetched here into the cache's blobs, continued after
any interruption, and checked against the hub's SHA-256.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ondevice.checkpoint.open import INDEX, SINGLE
from ondevice.checkpoint.safetensors import parse_json, shards_of
from ondevice.errors import CheckpointError
from ondevice.progress import SILENT, Advance, Progress
from ondevice.recipe import bundled_models, split_hub_name

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SMALL = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja"),
)
NEEDED = ("config.json", "tokenizer.json")
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")

Accept = Callable[[Mapping[str, Any]], object]


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. `sha256` is empty for small ones, which git keeps itself."""

    name: str
    size_bytes: int
    sha256: str


class Hub:
    """One model of the hub at one revision; `endpoint` and `cache` are huggingface_hub's own."""

    def __init__(self, name: str, endpoint: str | None = None, cache: Path | None = None) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.file_download import repo_folder_name

        self.name = name
        self.repo, self.revision = split_hub_name(name)
        self.api: HfApi = HfApi(endpoint=endpoint, library_name="ondevice")
        self.cache = Path(cache or constants.HF_HUB_CACHE).expanduser()
        self._folder = self.cache / repo_folder_name(repo_id=self.repo, repo_type="model")

    def cached(self, file: str, revision: str) -> Path | None:
        """Where the cache has `file`, or None."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, file, self.cache, revision)
        return Path(found) if isinstance(found, str) else None

    def snapshot(self) -> Path | None:
        """The directory of this revision where the cache has all a build reads, else None."""
        config, single = (self.cached(file, self.revision) for file in ("config.json", SINGLE))
        if config is None or self.cached("tokenizer.json", self.revision) is None:
            return None
        index = self.cached(INDEX, self.revision)
        if single is None and index is None:
            return None
        shards = shards_of(index) if single is None and index is not None else []
        missing = [shard for shard in shards if self.cached(shard, self.revision) is None]
        return None if missing else config.parent

    def list(self) -> tuple[str, dict[str, HubFile]]:
        """(commit, its files by name)."""
        info = self.api.model_info(self.repo, revision=self.revision, files_metadata=True)
        files = {
            file.rfilename: HubFile(
                file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else ""
            )
            for file in info.siblings or ()
        }
        return info.sha or self.revision, files

    def remember(self, commit: str) -> None:
        """Note that `commit` is what the revision means: for when the hub cannot be asked."""
        if not _is_commit(self.revision):
            reference = self._folder / "refs" / self.revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)

    def small(self, commit: str, file: str) -> Path:
        """Fetch one file through the library."""
        return Path(
            self.api.hf_hub_download(
                self.repo, file, revision=commit, cache_dir=self.cache, tqdm_class=_bar()
            )
        )

    def large(self, commit: str, file: HubFile, progress: Progress) -> None:
        """Fetch one file of weights, going on where an earlier attempt ended."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        url = hf_hub_url(self.repo, file.name, revision=commit, endpoint=self.api.endpoint)
        etag = self.api.get_hf_file_metadata(url=url).etag or file.sha256
        blob = self._folder / "blobs" / etag
        lock = self.cache / ".locks" / self._folder.name / f"{etag}.lock"
        for place in (blob, lock):
            place.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not blob.exists():
                self._fetch(url, blob, file, progress)
        self.small(commit, file.name)  # finds the blob and links it

    def _fetch(self, url: str, blob: Path, file: HubFile, progress: Progress) -> None:
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        partial = blob.with_name(f"{blob.name}.incomplete")
        with partial.open("ab") as out:
            have = out.tell()
            if have > file.size_bytes:
                have = out.truncate(0)
            with progress.step(file.name, file.size_bytes, "bytes", have) as advance:
                http_get(
                    url,
                    out,
                    resume_size=have,
                    headers=build_hf_headers(library_name="ondevice"),
                    expected_size=file.size_bytes,
                    tqdm_class=_bar(advance),
                )
        if file.sha256 and _sha256(partial) != file.sha256:
            partial.unlink()
            raise CheckpointError(
                f"{self.name}: {file.name} was damaged on its way; run the same command again"
            )
        partial.rename(blob)


def fetch(
    name: str,
    progress: Progress = SILENT,
    accept: Accept = lambda config: None,
    *,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Path:
    """The directory of the checkpoint `org/name` or `org/name@revision`, downloaded where needed.

    `accept` sees the parsed config.json before any weights are fetched and may raise. Without a
    network the cache answers. Raises CheckpointError, which says what to do.
    """
    hub = Hub(name, endpoint, cache)
    with _quiet_library(), _explained(hub):
        if (snapshot := hub.snapshot()) and _is_commit(hub.revision):
            return snapshot
        try:
            commit, files = hub.list()
        except Exception as error:
            if snapshot is not None and _is_unreachable(error):
                return snapshot
            raise
        _check_files(hub, files)
        config = hub.small(commit, "config.json")
        accept(parse_json(config, config.read_bytes()))
        for file in SMALL:
            if file in files:
                hub.small(commit, file)
        wanted = [files[shard] for shard in _weights(hub, commit, files)]
        missing = [file for file in wanted if hub.cached(file.name, commit) is None]
        _check_space(hub, missing)
        for shard in missing:
            hub.large(commit, shard, progress)
        hub.remember(commit)
        return config.parent


def _weights(hub: Hub, commit: str, files: Mapping[str, HubFile]) -> list[str]:
    """The names of the safetensors that make up the model: some repositories hold it twice."""
    if SINGLE in files:
        return [SINGLE]
    shards = shards_of(hub.small(commit, INDEX))
    absent = [shard for shard in shards if shard not in files]
    if absent:
        raise CheckpointError(f"{hub.name}: its index names {absent[0]}, which it does not have")
    return shards


def _check_files(hub: Hub, files: Mapping[str, HubFile]) -> None:
    for needed in NEEDED:
        if needed not in files:
            raise CheckpointError(
                f"{hub.name} has no {needed}; name a model that was saved by transformers"
            )
    if SINGLE not in files and INDEX not in files:
        others = sorted(file for file in files if Path(file).suffix in OTHER_WEIGHTS)
        found = f" but {', '.join(others[:3])}, which may run code when read" if others else ""
        raise CheckpointError(
            f"{hub.name} has no safetensors{found}; load it with transformers, save it again "
            "with save_pretrained(DIR), and build DIR"
        )


def _check_space(hub: Hub, missing: list[HubFile]) -> None:
    place = hub.cache
    while not place.exists():
        place = place.parent
    needed, free = sum(file.size_bytes for file in missing), shutil.disk_usage(place).free
    if needed > free:
        raise CheckpointError(
            f"{hub.name} needs {needed:,} bytes in {hub.cache}, where {free:,} are free; free "
            "some space, or let HF_HOME name a larger disk"
        )


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bar(advance: Advance | None = None) -> Any:
    """What the library takes for a progress bar: it shows nothing and calls `advance`."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if advance is not None:
                advance(int(n or 0))

    return Bar


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Its warnings would come between the lines of a progress bar; its errors are raised."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_unreachable(error: BaseException) -> bool:
    """Whether the hub did not answer at all, or only that it cannot now."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    # The errors of the HTTP library, whichever it is, are the siblings of the hub's.
    return isinstance(error, (errors.OfflineModeIsEnabled, errors.HfHubHTTPError.__bases__[0]))


@contextmanager
def _explained(hub: Hub) -> Iterator[None]:
    """Turn what the library raises into one sentence that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
        raise CheckpointError(_advice(hub, error)) from error
    except errors.LocalEntryNotFoundError as error:  # the hub did not answer for this file
        raise CheckpointError(_unreachable(hub, "it does not answer")) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "the disk is full; free some space, or let HF_HOME name a larger one"
        else:
            why = error.strerror or _first_line(error)
            advice = f"{why}; run the same command again, or with another HF_HOME"
        raise CheckpointError(f"cannot keep {hub.name} in {hub.cache}: {advice}") from error
    except Exception as error:
        if not _is_unreachable(error):
            raise
        raise CheckpointError(_unreachable(hub, _first_line(error))) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _advice(hub: Hub, error: Exception) -> str:
    from huggingface_hub import errors

    page = f"{hub.api.endpoint}/{hub.repo}"
    match error:
        case errors.OfflineModeIsEnabled():
            return (
                f"{hub.name} is neither a directory here nor in {hub.cache}, and HF_HUB_OFFLINE "
                "forbids to fetch it; unset that, or name a directory"
            )
        case errors.GatedRepoError():
            return (
                f"{hub.name} is gated: accept its conditions at {page} and set HF_TOKEN to a "
                "token of your account, or log in with `hf auth login`"
            )
        case errors.RevisionNotFoundError():
            return f"{hub.repo} has no revision {hub.revision!r}; {page}/tree/main lists them"
        case errors.RepositoryNotFoundError():
            close = difflib.get_close_matches(hub.repo, bundled_models(), n=1)
            hint = f"did you mean {close[0]!r}? Else check" if close else "check"
            return (
                f"{hub.repo!r} is no directory here, and the hub shows no such model; {hint} the "
                "name, and set HF_TOKEN if it is private"
            )
        case errors.HfHubHTTPError():
            status = error.response.status_code
            if _is_unreachable(error):
                return _unreachable(hub, f"it answers {status}")
            return f"{hub.name}: the hub refuses with status {status}; see {page}"
    raise AssertionError(error)


def _unreachable(hub: Hub, why: str) -> str:
    return (
        f"cannot reach {hub.api.endpoint} for {hub.name} ({why}); check the network and run the "
        "same command again, it goes on where it was; or name a directory"
    )
