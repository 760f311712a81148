"""A model's name becomes a verified file on this machine.

Shipped files lie in the package, downloads in the user's cache, the user's own models in the user's
data folder; WAIFU4X_HOME puts the last two under one folder of choice. A file of a known model is
guaranteed to have been hashed in full, and to have the promised sha256, before anything parses it.

Nothing here takes a lock: every process downloads to a name of its own and renames, so processes
that race on a cold cache only waste bandwidth. On network file systems a lock may silently do
nothing: https://github.com/huggingface/huggingface_hub/pull/4306
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from platformdirs import user_cache_dir, user_data_dir

from waifu4x import catalog
from waifu4x.catalog import FETCHED, CatalogRow
from waifu4x.download import PATIENCE, Patience, Progress, download
from waifu4x.errors import (
    HashMismatchError,
    OfflineError,
    UnknownModelError,
    UsageError,
    WeightsError,
)
from waifu4x.files import atomic_path, sweep_orphans, write_bytes
from waifu4x.model_files.given_files import check_file

HOME_VARIABLE = "WAIFU4X_HOME"
OFFLINE_VARIABLE = "WAIFU4X_OFFLINE"

# A bare name with one of these endings means a file, not a model; whether the kind of file can be
# used at all is for `waifu4x.model_files.checkpoints` to say.
FILE_SUFFIXES = frozenset({".pth", ".safetensors", ".pt", ".pt2", ".ckpt", ".bin", ".onnx"})
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
# Windows opens a device for these, whatever the ending:
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_DEVICE_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ResolvedWeights:
    """A file of weights on this machine, and how much is known about it."""

    name: str
    """The model's name; for a file given by its path, the file's name without its ending."""
    path: Path
    sha256: str
    """Of the bytes in the file, as they are now."""
    row: CatalogRow | None
    """None for a file given by its path: nobody promised what is in it."""


State = Literal[
    "built in", "shipped", "downloaded", "not downloaded", "yours", "damaged", "missing"
]


@dataclass(frozen=True, kw_only=True)
class Available:
    """One model that has a name, where its file lies or would lie, and whether it is there."""

    row: CatalogRow
    path: Path | None
    state: State
    got_sha256: str | None = None
    """What the file hashes to; None when it was not hashed (see `verify`)."""


def downloads_folder() -> Path:
    """Where downloaded weights are kept; it need not exist yet, and may be deleted at any time."""
    home = _home()
    return (home if home else Path(user_cache_dir("waifu4x", appauthor=False))) / "weights"


def models_folder() -> Path:
    """Where the user's own models are kept; it need not exist yet."""
    home = _home()
    return (home if home else Path(user_data_dir("waifu4x", appauthor=False))) / "models"


def is_offline() -> bool:
    """Whether WAIFU4X_OFFLINE forbids downloads (set, and neither empty, 0, false, no nor off)."""
    value = os.environ.get(OFFLINE_VARIABLE, "").strip().lower()
    return value not in ("", "0", "false", "no", "off")


def find(name: str) -> CatalogRow:
    """The row of a model of the catalogue or of the user's own; see `catalog.find`."""
    try:
        return catalog.find(name)
    except UnknownModelError:
        return catalog.find(name, also=user_rows())


def resolve(
    name_or_path: str | Path, *, offline: bool = False, on_progress: Progress | None = None
) -> ResolvedWeights:
    """The verified file of a model, downloaded first when that is needed and allowed.

    A `Path`, a text with a path separator, and a text that ends like a file of weights mean that
    file, whose content nobody vouches for; every other text is a model's name. Downloading is
    forbidden by `offline` or by WAIFU4X_OFFLINE=1.

    Raises UnknownModelError (no such model or file), UsageError (a resampling filter has no file),
    HashMismatchError (never parsed, never returned), OfflineError, DownloadError, WeightsError.
    """
    if isinstance(name_or_path, Path) or _means_a_file(name_or_path):
        path = Path(name_or_path)
        _check_given(path)
        return ResolvedWeights(name=path.stem, path=path, sha256=_sha256_of(path), row=None)
    row = find(name_or_path)
    if row.kind in FETCHED:
        # The row's promise holds for what `fetch` and `_require` return.
        path = _require(row) if offline or is_offline() else fetch(row, on_progress=on_progress)
    else:
        path = _require(row)
    return ResolvedWeights(name=row.name, path=path, sha256=row.sha256 or "", row=row)


def fetch(
    row: CatalogRow,
    *,
    folder: Path | None = None,
    on_progress: Progress | None = None,
    patience: Patience = PATIENCE,
) -> Path:
    """Download `row` into `folder` (the user's cache) unless it lies there whole; returns its path.

    The file is guaranteed to appear under its name only with the promised sha256; a damaged one
    that lay there is replaced, or removed when the download fails. Raises DownloadError (no answer
    after `patience.tries`, a refusal, a redirect from https to http, more bytes than promised),
    HashMismatchError (other bytes than promised) and WeightsError (the disk).
    """
    target = (folder or downloads_folder()) / _file_of(row)
    if _is_intact(target, row):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_orphans(target.parent)
        download(row, target, on_progress=on_progress, patience=patience)
    except WeightsError:
        _discard_damaged(target, row)
        raise
    except OSError as error:
        # Windows refuses to rename onto a file that another process has open; when that process
        # has brought the same file, all is well.
        if _is_intact(target, row):
            return target
        raise WeightsError(
            f"cannot write {target}: {error.strerror or error}; {row.size_bytes} bytes are needed "
            f"there, or set {HOME_VARIABLE} to another folder"
        ) from error
    return target


def add(
    file: Path, *, name: str | None = None, licence: str | None = None, overwrite: bool = False
) -> CatalogRow:
    """Copy a checkpoint of the user's into `models_folder()`, so that it can be used by name.

    `name` defaults to the file's name. The checkpoint is loaded (safely, see
    `waifu4x.model_files.checkpoints.load`) to learn what it is before anything is copied, and the
    copy is guaranteed to be the bytes that were loaded. `overwrite` lets it take the place of an
    own model of the same name. Raises UsageError (unusable name), UnknownModelError (no such file),
    CheckpointError (not a usable checkpoint) and WeightsError (the disk).
    """
    from waifu4x.model_files.checkpoints import load  # brings torch with it

    name = _name_from(file) if name is None else name
    old = _own_row(name)
    check_name(name, old=None if overwrite else old)
    _check_given(file)
    model = load(file, name=name, licence=licence)
    folder = models_folder()
    try:
        row = CatalogRow(
            name=name,
            kind="user",
            architecture=model.architecture,
            scale=None if model.pre_upsampled or model.any_scale else model.scale,
            licence=model.licence or "unknown",
            good_for=f"added from {file.name}",
            # With the hash in its name a new version never overwrites the one still in use.
            file=f"{name}-{model.sha256[:8]}{file.suffix.lower()}",
            sha256=model.sha256,
            size_bytes=file.stat().st_size,
        )
        folder.mkdir(parents=True, exist_ok=True)
        sweep_orphans(folder)
        with atomic_path(folder / _file_of(row)) as temporary:
            shutil.copyfile(file, temporary)
            if not _is_intact(temporary, row):
                raise HashMismatchError(f"{file} was changed while it was being added; try again")
        write_bytes(_row_path(name), json.dumps(asdict(row), indent=1).encode() + b"\n")
        if old is not None and old.file != row.file:
            (folder / _file_of(old)).unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(
            f"cannot copy {file} into {folder}: {error.strerror or error}"
        ) from error
    return row


def remove(name: str) -> Path:
    """Remove a model of the user's own, or the cached file of a download; returns what went.

    Raises UnknownModelError, and UsageError for a model that ships and for one that is not here.
    """
    row = find(name)
    if row.kind in ("shipped", "resample"):
        raise UsageError(f"{row.name} is part of waifu4x and cannot be removed")
    path = _path_of(row)
    try:
        if row.kind == "user":
            # The row first: a file without a row is unused, a row without its file is an error.
            _row_path(row.name).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        else:
            path.unlink()
    except FileNotFoundError as error:
        raise UsageError(f"{row.name} is not downloaded: {path} does not exist") from error
    except OSError as error:
        raise WeightsError(f"cannot remove {path}: {error.strerror or error}") from error
    return path


def user_rows() -> tuple[CatalogRow, ...]:
    """The models that the user added, by name. Raises WeightsError when a row is damaged."""
    return tuple(_read_row(path) for path in sorted(models_folder().glob("*.json")))


def list_available() -> tuple[Available, ...]:
    """Every model that can be asked for by name. Nothing is hashed: only sizes are compared."""
    return tuple(_look_at(row) for row in (*catalog.rows(), *user_rows()))


def verify() -> tuple[Available, ...]:
    """Hash every file of weights that is, or should be, here; see `got_sha256` and `state`."""
    return tuple(
        _hashed(available)
        for available in list_available()
        if available.state not in ("built in", "not downloaded")
    )


def _home() -> Path | None:
    value = os.environ.get(HOME_VARIABLE, "")
    return Path(value).expanduser().absolute() if value else None


def _means_a_file(text: str) -> bool:
    separators = {"/", os.sep, os.altsep or os.sep}
    return any(sep in text for sep in separators) or Path(text).suffix.lower() in FILE_SUFFIXES


def _file_of(row: CatalogRow) -> str:
    if row.file is None:
        raise UsageError(f"{row.name} is a resampling filter: it needs no weights and has no file")
    return row.file


def _path_of(row: CatalogRow) -> Path:
    file = _file_of(row)
    if row.kind == "shipped":
        return catalog.shipped_folder() / file
    return (models_folder() if row.kind == "user" else downloads_folder()) / file


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error


def _check_given(path: Path) -> None:
    """Refuse what can be no file of weights before hashing it: a disk image takes minutes."""
    if not path.is_file():
        offer = ""
        with suppress(UnknownModelError):
            offer = f"; for the model of the catalogue say {find(path.stem).name}"
        raise UnknownModelError(f"there is no file {str(path)!r}{offer}")
    check_file(path)


def _is_intact(path: Path, row: CatalogRow) -> bool:
    """Whether the whole file `row` promises lies at `path`; a wrong size spares the hashing."""
    if not path.is_file():
        return False
    try:
        return path.stat().st_size == row.size_bytes and _sha256_of(path) == row.sha256
    except (WeightsError, FileNotFoundError):
        if path.is_file():
            raise
        return False  # another process has just thrown it away


def _require(row: CatalogRow) -> Path:
    """The intact local file of `row`, or an error that says how to get it."""
    path = _path_of(row)
    if _is_intact(path, row):
        return path
    if path.is_file():
        cure = {
            "shipped": "reinstall waifu4x",
            "user": f"`waifu4x models add FILE --name {row.name} --overwrite` puts it right",
        }.get(row.kind, f"`waifu4x models download {row.name}` puts it right when connected")
        raise HashMismatchError(
            f"{path} is not {row.name}: expected sha256 {row.sha256}, "
            f"got {_sha256_of(path)}; {cure}"
        )
    if row.kind in FETCHED:
        raise OfflineError(
            f"{row.name} is not downloaded and downloading is off: run `waifu4x models download "
            f"{row.name}` on a connected machine, and copy the file to {path}"
        )
    cure = "reinstall waifu4x" if row.kind == "shipped" else f"`waifu4x models remove {row.name}`"
    raise WeightsError(f"the file of {row.name} is missing: {path}; {cure}")


def _discard_damaged(target: Path, row: CatalogRow) -> None:
    with suppress(OSError, WeightsError):
        if target.is_file() and not _is_intact(target, row):
            target.unlink()


def _look_at(row: CatalogRow) -> Available:
    if row.file is None:
        return Available(row=row, path=None, state="built in")
    path = _path_of(row)
    present: dict[str, State] = {"shipped": "shipped", "user": "yours"}
    state = present.get(row.kind, "downloaded")
    if not path.is_file():
        state = "not downloaded" if row.kind in FETCHED else "missing"
    elif path.stat().st_size != row.size_bytes:
        state = "damaged"
    return Available(row=row, path=path, state=state)


def _hashed(available: Available) -> Available:
    if available.path is None or not available.path.is_file():
        return available
    got = _sha256_of(available.path)
    state = available.state if got == available.row.sha256 else "damaged"
    return replace(available, got_sha256=got, state=state)


def _name_from(file: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", file.stem)[:64].strip("-._+")


def check_name(name: str, *, old: CatalogRow | None = None) -> None:
    """Raises UsageError where `add` would because of the name; `old` is the owner of the name."""
    if not _SAFE_NAME.fullmatch(name) or name.endswith(".") or _DEVICE_NAMES.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name: use up to 64 letters, digits and . _ + -, "
            "beginning with a letter or a digit"
        )
    if _means_a_file(name):
        raise UsageError(f"{name!r} would be taken for a file; leave its ending off")
    if any(name.casefold() in map(str.casefold, row.names) for row in catalog.rows()):
        raise UsageError(f"{name} is a model of the catalogue; give another with --name")
    if old is not None:
        raise UsageError(f"you have a model called {old.name} already; --overwrite replaces it")


def _own_row(name: str) -> CatalogRow | None:
    return next((row for row in user_rows() if row.name.casefold() == name.casefold()), None)


def _row_path(name: str) -> Path:
    # Folded, so that a name means one model on file systems of either kind.
    return models_folder() / f"{name.casefold()}.json"


def _read_row(path: Path) -> CatalogRow:
    try:
        stored = dict(json.loads(path.read_bytes()))  # perhaps by another version
        facts = {f.name: stored[f.name] for f in fields(CatalogRow) if f.name in stored}
        row = CatalogRow(**{**facts, "kind": "user", "aliases": (), "up_to": {}})
        if Path(_file_of(row)).name != row.file or not row.sha256:
            raise ValueError("its file is not named by a plain name")
    except (OSError, ValueError, TypeError, UsageError) as error:
        raise WeightsError(
            f"{path} is damaged ({error}); delete it and add the model again"
        ) from error
    return row
