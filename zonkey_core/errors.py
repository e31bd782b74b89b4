"""Errors that a user can act on.

Each message is one line that names the file, option or key at fault and says what to do; the command line
prints it as it is.
"""


class ZonkeyError(Exception):
    """Base of every error that the user, rather than the program, can mend."""


class ConfigError(ZonkeyError):
    """A configuration key is unknown or its value is out of range."""


class DataError(ZonkeyError):
    """Text to read is missing, unreadable or in an unknown format."""


class CheckpointError(ZonkeyError):
    """A model folder is missing, damaged or of a format that this version cannot read."""


class DeviceError(ZonkeyError):
    """The device or precision asked for is not available on this machine."""


class WorkerError(ZonkeyError):
    """A process that computes for this one was ended by something else."""
