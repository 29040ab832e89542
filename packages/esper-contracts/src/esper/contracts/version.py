"""The version of the contracts between services; part of every HTTP path and of the lineage file."""

API_VERSION = "v1"
