"""The one error of this package."""


class CertsError(Exception):
    """A certificate, a key or the folder they live in is not what it must be; the sentence says what to do about it."""
