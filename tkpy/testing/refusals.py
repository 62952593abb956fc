"""Calls that the signature excludes must be refused, each with a CallError."""

from __future__ import annotations

from tkpy.testing.plan import Plan
from tkpy.testing.run import Failed


def check_refusals(plan: Plan) -> Failed | None:
    return None
