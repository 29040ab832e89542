"""Esper's library: records in SQL, kernels' bytes in a folder or bucket, outcomes from the bus."""

from esper.urza.archivist import make_archivist
from esper.urza.file_store import open_file_store
from esper.urza.http_library import open_http_library
from esper.urza.library import open_library
from esper.urza.migrate import upgrade
from esper.urza.s3_store import open_s3_store

__all__ = [
    "make_archivist",
    "open_file_store",
    "open_http_library",
    "open_library",
    "open_s3_store",
    "upgrade",
]
