"""Errors of field validators whose messages are complete, so that nothing is added to them."""

from __future__ import annotations

from pydantic_core import PydanticCustomError

PROBLEM = "problem"  # the type of such an error


def problem(message: str) -> PydanticCustomError:
    """An error for a validator of a field. message: what was expected and what came."""
    return PydanticCustomError(PROBLEM, "{message}", {"message": message})
