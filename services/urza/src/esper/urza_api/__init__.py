"""Esper's library over HTTP (FastAPI), for workers and people on other machines."""

from esper.urza_api.app import make_app

__all__ = ["make_app"]
