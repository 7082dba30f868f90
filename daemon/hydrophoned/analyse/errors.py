"""Errors of the analyses.

AnalysisError
+-- TooLittle     fewer rows, requests, or rows of a label than an answer needs
+-- LabelsAlike   a label that is the same on all rows
+-- BadRule       a text that is no rule
"""


class AnalysisError(ValueError):
    """Root of the errors raised by ``hydrophoned.analyse``."""


class TooLittle(AnalysisError):  # noqa: N818  named after its cause
    """Fewer rows, requests, or rows of a label than an answer needs."""


class LabelsAlike(AnalysisError):  # noqa: N818  named after its cause
    """A label that is the same on all rows."""


class BadRule(AnalysisError):  # noqa: N818  named after its cause
    """A text that is no rule."""
