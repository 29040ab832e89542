"""The platform's errors: one root, few children, each also the builtin that it resembles.

Raised everywhere; the command line turns any `EsperError` into one clear message and exit code 2.
Every message says what was wrong (the value), what was expected, and what to do.
"""


class EsperError(Exception):
    """Root of every error that Esper raises on purpose."""


class ConfigError(EsperError, ValueError):
    """A setting or configuration file is wrong."""


class UnknownSchemeError(EsperError, LookupError):
    """A URL names a backend that is not installed."""


class NotFoundError(EsperError, LookupError):
    """Something was asked for by an id or name that does not exist."""


class IllegalTransitionError(EsperError, ValueError):
    """A command asked for a transition that the lifecycle table does not allow."""


class HostError(EsperError, ValueError):
    """A host model cannot carry seeds as asked; lists every problem."""


class BlueprintError(EsperError, ValueError):
    """A blueprint is malformed or does not fit the signature that it is to be built for."""


class KernelRejectedError(EsperError, ValueError):
    """A kernel failed verification (hash, signature, status) and will not run."""


class ArtifactIntegrityError(EsperError, ValueError):
    """Stored bytes do not match the hash that they are filed under."""


class BackendUnavailableError(EsperError, ConnectionError):
    """A server cannot be reached or refuses the credentials."""


class AccessRefusedError(BackendUnavailableError, PermissionError):
    """A server answers, but refuses our credentials or forbids us what we need."""


class ReadOnlyServerError(BackendUnavailableError):
    """A server answers, but is a replica that takes no writes."""


class ServerFullError(BackendUnavailableError):
    """A server answers, but takes no writes until it has disk or memory again."""


class KeyTakenError(BackendUnavailableError):
    """A server keeps something else under a name that Esper needs."""


class MessageError(EsperError, ValueError):
    """A message cannot be encoded, decoded, or does not belong on its topic."""


class MessageTooLargeError(MessageError):
    """A message is larger than the bus takes."""


class ChainError(EsperError, ValueError):
    """A hash-chained log is broken; names the first bad line."""


class ManifestError(EsperError, ValueError):
    """A signed document was changed or forged, or does not fit what it is about."""


class UntrustedKeyError(ManifestError, PermissionError):
    """A signature verifies, but its key is not one that is trusted, or not for what it signed."""
