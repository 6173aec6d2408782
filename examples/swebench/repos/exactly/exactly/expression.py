"""Arithmetic expressions, evaluated exactly.

    sum     = product (("+" | "-") product)*
    product = unary (("*" | "/") unary)*
    unary   = "-" unary | power
    power   = atom ("^" unary)?
    atom    = number | name | "(" sum ")"
"""

import re

from .rational import Rational

_TOKEN = re.compile(r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<name>[a-zA-Z_]\w*)|(?P<symbol>[-+*/^()]))")


class ExpressionError(ValueError):
    """The text is not an expression."""


def tokenize(text):
    """A list of (kind, text) pairs."""
    tokens = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"unexpected {text[position]!r} at {position}")
        tokens.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return tokens


class _Parser:
    def __init__(self, tokens, names):
        self.tokens = tokens
        self.names = names
        self.position = 0

    def peek(self):
        return self.tokens[self.position][1] if self.position < len(self.tokens) else None

    def take(self):
        token = self.peek()
        self.position += 1
        return token

    def sum(self):
        value = self.product()
        while self.peek() in ("+", "-"):
            if self.take() == "+":
                value = value + self.product()
            else:
                value = value - self.product()
        return value

    def product(self):
        value = self.unary()
        while self.peek() in ("*", "/"):
            if self.take() == "*":
                value = value * self.unary()
            else:
                value = value / self.unary()
        return value

    def unary(self):
        if self.peek() == "-":
            self.take()
            return -self.unary()
        return self.power()

    def power(self):
        base = self.atom()
        if self.peek() == "^":
            self.take()
            exponent = self.unary()
            if exponent.denominator != 1:
                raise ExpressionError(f"the exponent {exponent} is not a whole number")
            return base**exponent.numerator
        return base

    def atom(self):
        if self.position >= len(self.tokens):
            raise ExpressionError("the expression ends too early")
        kind, text = self.tokens[self.position]
        self.position += 1
        if kind == "number":
            return Rational.parse(text)
        if kind == "name":
            if text not in self.names:
                raise ExpressionError(f"unknown name {text!r}")
            value = self.names[text]
            return value if isinstance(value, Rational) else Rational(value)
        if text != "(":
            raise ExpressionError(f"unexpected {text!r}")
        value = self.sum()
        if self.take() != ")":
            raise ExpressionError("a parenthesis is not closed")
        return value


def evaluate(text, **names):
    """The value of an expression; ``^`` is the power and binds tighter than a minus in front."""
    parser = _Parser(tokenize(text), names)
    value = parser.sum()
    if parser.peek() is not None:
        raise ExpressionError(f"unexpected {parser.peek()!r}")
    return value
