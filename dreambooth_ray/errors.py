"""The errors a person can do something about.

Each message says what is wrong, which value, where, and what to do next. All of them
survive pickling, since they cross process borders.
"""


class DreamBoothError(Exception):
    """Base of all errors raised on purpose.

    By itself it is work that failed, exit code 1 at the command line; the kinds below are what the
    caller can mend, exit code 2.
    """


class ConfigError(DreamBoothError):
    """A setting that can't be used; the message names its key."""


class DataError(DreamBoothError):
    """A photograph or other input file that can't be used; the message names the file."""


class CheckpointError(DreamBoothError):
    """A checkpoint or bundle that is missing, damaged, or of another run."""


class StorageError(DreamBoothError):
    """Storage that can't be reached, read or written; the message names the URI."""


class CapacityError(DreamBoothError):
    """Work that would not fit on the machines there are; the message says what would."""


# A person has to mend these: the next try would end the same way.
PERMANENT = (ConfigError, DataError, CheckpointError, CapacityError)


def describe_error(error: BaseException) -> str:
    """An error in one line: those raised on purpose say it all, others what they are."""
    message = " ".join(str(error).split())[:500]
    return message if isinstance(error, DreamBoothError) else f"{type(error).__name__}: {message}"
