"""Exact arithmetic."""

from .expression import ExpressionError, evaluate
from .matrix import Matrix, SingularMatrix
from .polynomial import Polynomial
from .rational import Rational

__all__ = ["ExpressionError", "Matrix", "Polynomial", "Rational", "SingularMatrix", "evaluate"]
