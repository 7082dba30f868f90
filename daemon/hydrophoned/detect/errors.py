"""Errors of detection."""


class InsufficientReference(ValueError):  # noqa: N818  a state that is shown, as much as an error
    """A reference holds too few units, or none that vary, for what is asked of it."""


class ReferenceMismatch(ValueError):  # noqa: N818  named by what is wrong
    """Units do not fit the reference: another width, dictionary, model or site."""
