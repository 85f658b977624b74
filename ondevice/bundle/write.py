"""Writing a bundle: all or nothing, in one pass, in memory bounded by one chunk.

Everything goes to OUT.partial beside OUT, each file is flushed to the disk, and one rename makes
it OUT. A build that is killed leaves OUT.partial behind; the next one of the same inputs continues
its weights (see `bundle/resume.py`) and writes all else anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from ondevice.bundle.descriptor import WEIGHTS_DATA_START, pack_weights_header
from ondevice.bundle.format import (
    BUNDLE_VERSION,
    CHUNK_BYTES,
    FORMAT,
    MANIFEST,
    FileEntry,
    Libraries,
    Manifest,
    ModelInfo,
    ProgramInfo,
    PromptInfo,
    SamplingInfo,
    TokenizerInfo,
    WeightsInfo,
    print_manifest,
)
from ondevice.bundle.program import WeightEntry
from ondevice.bundle.resume import SYNC_CHUNKS, ResumeLog, whole_chunks
from ondevice.errors import BundleError

WEIGHTS_PATH = "weights.bin"
WEIGHTS_LOG = "weights.log"  # only in OUT.partial
NO_PROMPT = PromptInfo()
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
CURABLE = (*NO_SPACE, errno.EIO)  # the same command may succeed later


class BundleWriter:
    """Writes the bundle directory `out`.

        with BundleWriter(out) as writer:
            writer.add("lib/libondevice.so", data)
            with writer.weights(abi_hash, weights_bytes, inputs) as weights:
                for piece in pieces_from(weights.offset):
                    weights.write(piece)
            path = writer.finish(...)

    Leaving the block without `finish` removes what was written, except after Ctrl-C or where the
    disk was full: then weights that the next build can go on with are kept. An `out` that exists is
    replaced in one step, and only if it is itself a bundle. Raises BundleError, with advice where
    the disk is full, the place cannot be written, or another build is writing there.
    """

    def __init__(self, out: Path) -> None:
        self.out = Path(os.path.abspath(out))
        self.partial = partial_of(self.out)
        self._files: dict[str, FileEntry] = {}
        self._weights: WeightsFile | None = None
        self._lock = -1

    def __enter__(self) -> BundleWriter:
        if os.path.lexists(self.out) and not (self.out / MANIFEST).is_file():
            raise BundleError(f"{self.out} exists and is not a bundle; move it or choose another")
        with _advice(self.partial):
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            self.partial.mkdir(exist_ok=True)
            self._lock = _lock_directory(self.partial)
            _empty(self.partial, but=(WEIGHTS_PATH, WEIGHTS_LOG))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock >= 0:  # not finished
            if self._weights is not None:
                self._weights.close()
            if not self._worth_keeping(error):
                shutil.rmtree(self.partial, ignore_errors=True)
            self._unlock()

    def _worth_keeping(self, error: BaseException | None) -> bool:
        """Whether the same build could go on with what is there."""
        if self._weights is None or not self._weights.chunk_sha256:
            return False
        if isinstance(error, KeyboardInterrupt):
            return True
        cause = error.__cause__ if isinstance(error, BundleError) else None
        return isinstance(cause, OSError) and cause.errno in CURABLE

    def add(self, path: str, data: bytes, executable: bool = False) -> None:
        """Add a file, `path` being relative to the bundle, with "/" on every system."""
        if path in self._files or path in (MANIFEST, WEIGHTS_PATH, WEIGHTS_LOG):
            raise BundleError(f"{path} is already in the bundle")
        self._write(path, data, 0o777 if executable else 0o666)
        self._files[path] = FileEntry(path, len(data), hashlib.sha256(data).hexdigest())

    def add_written(self, path: str, write: Callable[[Path], None]) -> None:
        """Add a file that `write` writes to the place it is given; the weights are complete."""
        if path in self._files:
            raise BundleError(f"{path} is already in the bundle")
        place = self.partial / path
        with _advice(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            write(place)
            with open(place, "rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._files[path] = FileEntry(path, place.stat().st_size, digest)

    @contextlib.contextmanager
    def weights(self, abi_hash: str, data_bytes: int, inputs: str = "") -> Iterator[WeightsFile]:
        """The weights file, to be written from its `offset` on; `data_bytes` follow the header.

        `inputs` is a hash of all that determines these bytes. Where a build of the same inputs was
        killed, `offset` is how far it came; else, and without `inputs`, it is 0. Leaving the block
        checks that the data is complete.
        """
        self._weights = WeightsFile(self.partial / WEIGHTS_PATH, abi_hash, data_bytes, inputs)
        self._weights.check_space()
        yield self._weights
        self._weights.complete()

    def finish(
        self,
        *,
        name: str,
        target: str,
        variants: Sequence[str],
        abi_hash: str,
        model: ModelInfo,
        program: ProgramInfo,
        tokenizer: TokenizerInfo,
        sampling: SamplingInfo,
        prompt: PromptInfo = NO_PROMPT,
        libraries: Libraries,
        tensors: Sequence[WeightEntry],
    ) -> Path:
        """Write the manifest and put the bundle in its place; returns its absolute path."""
        if self._weights is None:
            raise BundleError("a bundle needs its weights before it can be finished")
        manifest = Manifest(
            format=FORMAT,
            format_version=BUNDLE_VERSION,
            name=name,
            target=target,
            variants=tuple(variants),
            abi_hash=abi_hash,
            model=model,
            program=program,
            tokenizer=tokenizer,
            sampling=sampling,
            prompt=prompt,
            libraries=libraries,
            weights=WeightsInfo(
                path=WEIGHTS_PATH,
                identity=self._weights.identity,
                size_bytes=WEIGHTS_DATA_START + self._weights.data_bytes,
                chunk_bytes=CHUNK_BYTES,
                chunk_sha256=tuple(self._weights.chunk_sha256),
                tensors=tuple(tensors),
            ),
            files=tuple(self._files[path] for path in sorted(self._files)),
        )
        self._write(MANIFEST, print_manifest(manifest).encode())
        with _advice(self.partial):
            (self.partial / WEIGHTS_LOG).unlink()
            _sync_directories(self.partial)
            _put_in_place(self.partial, self.out)
            _sync_directory(self.out.parent)
        self._unlock()
        return self.out

    @property
    def identity(self) -> str:
        """Of the weights, once they are complete."""
        return "" if self._weights is None else self._weights.identity

    def _write(self, path: str, data: bytes, mode: int = 0o666) -> None:
        place = self.partial / path
        with _advice(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            try:
                _write_all(file, data)
                os.fsync(file)
            finally:
                os.close(file)

    def _unlock(self) -> None:
        os.close(self._lock)
        self._lock = -1


class WeightsFile:
    """Appends to a weights file in whole chunks, hashing and logging each one as it goes out.

    Chunks that a killed build of the same `inputs` left are kept as far as their hashes agree.
    `identity`, known once the file is complete, is a hash of all hashes and goes into the header.
    """

    def __init__(self, path: Path, abi_hash: str, data_bytes: int, inputs: str = "") -> None:
        self.path = path
        self.data_bytes = data_bytes
        self.identity = "0" * 16
        self._abi_hash = abi_hash
        header = pack_weights_header(abi_hash, data_bytes)
        file_bytes = len(header) + data_bytes
        with _advice(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self._log = ResumeLog(path.with_name(WEIGHTS_LOG), inputs)
            chunks = whole_chunks(self._file, self._log.chunks, CHUNK_BYTES, file_bytes, header)
            written = min(chunks * CHUNK_BYTES, file_bytes)
            os.ftruncate(self._file, written)
            os.lseek(self._file, written, os.SEEK_SET)
            self._log.start(chunks)
        self._chunk = bytearray(CHUNK_BYTES)
        self._filled = 0 if written else len(header)
        self._chunk[: self._filled] = header[: self._filled]
        self._taken = max(0, written - WEIGHTS_DATA_START)

    def check_space(self) -> None:
        """Raise BundleError where the disk has no room for the rest."""
        missing = self.data_bytes - self._taken
        with _advice(self.path):
            free = shutil.disk_usage(self.path.parent).free
            if free < missing:
                raise OSError(errno.ENOSPC, f"{missing:,} bytes are missing, {free:,} are free")

    @property
    def chunk_sha256(self) -> list[str]:
        """Of the chunks that are written."""
        return self._log.chunks

    @property
    def notes(self) -> tuple[str, ...]:
        """What a killed build has noted, of chunks that may not all be kept."""
        return tuple(self._log.notes)

    def note(self, text: str) -> None:
        """Keep a line of text for a build that goes on after this one was killed."""
        with _advice(self.path):
            self._log.add_note(text)

    @property
    def offset(self) -> int:
        """Bytes of data taken so far: where the next `write` lands, as WeightEntry counts."""
        return self._taken

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes; a NumPy array's are `array.data.cast("B")`."""
        with memoryview(data) as view:
            self._taken += view.nbytes
            if self._taken > self.data_bytes:
                raise BundleError(
                    f"{self._taken} bytes of weights do not fit the {self.data_bytes} announced"
                )
            flat = view.cast("B")
            while flat:
                part = flat[: CHUNK_BYTES - self._filled]
                self._chunk[self._filled : self._filled + len(part)] = part
                self._filled += len(part)
                flat = flat[len(part) :]
                if self._filled == CHUNK_BYTES:
                    self._drain()

    def complete(self) -> None:
        """Write what is left and check the length."""
        if self._taken != self.data_bytes:
            raise BundleError(f"{self._taken} bytes of weights written, not {self.data_bytes}")
        if self._filled:
            self._drain()
        with _advice(self.path):
            self._identify()
            os.fsync(self._file)
        self.close()

    def close(self) -> None:
        """Close the file, complete or not."""
        self._log.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _identify(self) -> None:
        hashes = "".join(self.chunk_sha256).encode()
        self.identity = hashlib.sha256(hashes).hexdigest()[:16]
        header = pack_weights_header(self._abi_hash, self.data_bytes, self.identity)
        os.pwrite(self._file, header, 0)
        first = os.pread(self._file, CHUNK_BYTES, 0)
        self.chunk_sha256[0] = hashlib.sha256(first).hexdigest()

    def _drain(self) -> None:
        """Write out the chunk as far as it is filled."""
        with _advice(self.path), memoryview(self._chunk)[: self._filled] as chunk:
            _write_all(self._file, chunk)
            self._log.add_chunk(hashlib.sha256(chunk).hexdigest())
            if len(self.chunk_sha256) % SYNC_CHUNKS == 0:
                os.fsync(self._file)
                self._log.sync()
        self._filled = 0


def partial_of(out: Path) -> Path:
    """Where a bundle for `out` lies until it is complete: an absolute path beside it."""
    out = Path(os.path.abspath(out))
    return out.with_name(out.name + ".partial")


@contextlib.contextmanager
def _advice(place: Path) -> Iterator[None]:
    """Turn an OSError into a BundleError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            advice = f"the disk is full ({error.strerror}); free some space or choose another --out"
        elif error.errno == errno.EFBIG:
            advice = "files of this size are not allowed here; choose another --out"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "this place cannot be written; choose another --out"
        else:
            advice = error.strerror or str(error)
        raise BundleError(f"cannot write {place}: {advice}") from error


def _write_all(file: int, data: bytes | memoryview) -> None:
    """Write all of `data`: the system may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _lock_directory(directory: Path) -> int:
    """An open descriptor that holds the lock of `directory` until it is closed."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The build that held it may have renamed the directory meanwhile.
        if os.path.samestat(os.fstat(descriptor), os.stat(directory)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    raise BundleError(f"another build is writing {directory}; wait for it or choose another --out")


def _empty(directory: Path, but: tuple[str, ...]) -> None:
    for entry in directory.iterdir():
        if entry.name in but:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync_directories(top: Path) -> None:
    for path, _, _ in os.walk(top):
        _sync_directory(Path(path))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`; a bundle that is there already is exchanged, then removed.

    Engines that have the old files open keep them until they close.
    """
    if not out.exists():
        partial.rename(out)
    elif _exchange(partial, out):
        shutil.rmtree(partial)
    else:
        old = out.with_name(out.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        partial.rename(out)
        shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step, where the system can (Linux); False where it cannot."""
    at_cwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    status = renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), rename_exchange)
    return bool(status == 0)
