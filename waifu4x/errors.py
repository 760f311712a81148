"""Everything that can go wrong, as one tree.

    Waifu4xError                      exit code 1 unless said otherwise
    ├── UsageError                    the request makes no sense (exit code 2)
    │   └── UnknownModelError         no model of that name; the nearest names are offered
    ├── PictureError                  about one picture file
    │   ├── PictureReadError          missing, not a picture, damaged, too large
    │   └── PictureWriteError         the format cannot hold it, or the target cannot be written
    │       └── DiskFullError         there is no room for it: nothing else would fit either
    ├── WeightsError                  about one file of weights
    │   ├── DownloadError             the file could not be fetched
    │   ├── OfflineError              the file is not cached and downloading was forbidden
    │   ├── HashMismatchError         the bytes are not the ones the catalogue promises
    │   └── CheckpointError           the file is not a checkpoint that can be used
    │       ├── UnsafeCheckpointError it would have to execute code, or is of a kind that can
    │       └── UnknownNetworkError   well-formed, but of a network that waifu4x does not know
    ├── DeviceError                   the device is absent or cannot do what was asked
    │   └── OutOfMemoryError          not even the smallest allowed tile fits
    ├── NumericsError                 the network gave NaN or infinity, in fp32 too
    ├── ClusterError                  no worker can be had, or one died with a file again and again
    └── TrainError                    training cannot start or go on

A message is one line: what is wrong, with which file, and what to try. The library raises these on
purpose, and ValueError for arrays of a wrong kind or shape; the command line turns any of them into
that one line and the exit code.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FATAL = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class Waifu4xError(Exception):
    """The base of every error that waifu4x raises on purpose."""

    exit_code = EXIT_FATAL


class UsageError(Waifu4xError):
    """The request makes no sense as it was put: it fails before any work is done."""

    exit_code = EXIT_USAGE


class UnknownModelError(UsageError):
    """No model, and no file, has the name that was asked for."""


class PictureError(Waifu4xError):
    """Something about one picture file."""


class PictureReadError(PictureError):
    """The file is missing, is no picture, is damaged, or is larger than the limit."""


class PictureWriteError(PictureError):
    """The format cannot hold the picture, or the target cannot be written."""


class DiskFullError(PictureWriteError):
    """There is no room on the disk; whatever comes next would not fit either."""


class WeightsError(Waifu4xError):
    """Something about one file of weights."""


class DownloadError(WeightsError):
    """The file could not be fetched; the message names the URL and the last failure."""


class OfflineError(WeightsError):
    """The file is not in the cache, and downloading was forbidden."""


class HashMismatchError(WeightsError):
    """The bytes are not the ones whose sha256 is in the catalogue; they were not parsed."""


class CheckpointError(WeightsError):
    """The file is not a checkpoint that can be used."""


class UnsafeCheckpointError(CheckpointError):
    """Loading the file would mean executing what is in it; nothing was executed."""


class UnknownNetworkError(CheckpointError):
    """The file is a well-formed checkpoint of a network that waifu4x does not know."""


class DeviceError(Waifu4xError):
    """The device is not there, or cannot do what was asked of it."""


class OutOfMemoryError(DeviceError):
    """Not even the smallest tile that may be tried fits into the device's memory."""


class NumericsError(Waifu4xError):
    """The network gave NaN or infinity, also in fp32; nothing of it was written."""


class ClusterError(Waifu4xError):
    """A cluster gives no worker that does what this machine would, or one that finds other inputs;
    or a file ended its workers."""


class TrainError(Waifu4xError):
    """Training cannot start, or cannot go on."""
