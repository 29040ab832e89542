"""Esper."""
