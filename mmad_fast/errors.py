"""The errors of mmad-fast. Each message says what was given, what is needed, what to do."""


class MmadFastError(Exception):
    """Base of all errors that mmad-fast raises on purpose."""


class InvalidInputError(MmadFastError, ValueError):
    """An argument or array has the wrong type, shape, range or content."""


class EmptyScanError(InvalidInputError):
    """A scan has no foreground, or fewer foreground points than the detector needs."""


class DataError(MmadFastError):
    """A data set, or a file of one, is missing, unreadable or not in the expected layout."""


class ArtifactError(MmadFastError):
    """A detector artifact, or a folder of compiled kernels, is missing, damaged, or of a kind that
    this version cannot read."""


class WeightsError(MmadFastError):
    """Backbone weights are missing, do not fit the network, or cannot be downloaded."""


class BackendUnavailableError(MmadFastError, RuntimeError):
    """A backend or engine that was asked for by name cannot run here."""


class MissingDependencyError(MmadFastError, ImportError):
    """An optional dependency is not installed."""
