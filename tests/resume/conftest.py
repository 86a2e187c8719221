"""Edges as those of the gate's tests."""

from __future__ import annotations

from tests.border.conftest import make_edge

__all__ = ["make_edge"]
