"""The throwaway S3 server keeps objects, checks signatures, and ends with its tests."""

import io
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3
from minio import Minio
from minio.error import S3Error

from esper.testkit.s3 import S3Server, start_s3


def _client(server: S3Server, *, secret_key: str | None = None) -> Minio:
    return Minio(
        urlsplit(server.endpoint).netloc,
        access_key=server.access_key,
        secret_key=secret_key or server.secret_key,
        secure=False,
        region="us-east-1",
        http_client=urllib3.PoolManager(retries=False, timeout=5.0),
    )


def _read(client: Minio, bucket: str, key: str) -> bytes:
    response = client.get_object(bucket, key)
    try:
        return response.read()
    finally:
        response.close()
        response.release_conn()


def test_server_keeps_objects(s3_server: S3Server) -> None:
    client = _client(s3_server)
    client.make_bucket("kept")
    client.put_object("kept", "a/b", io.BytesIO(b"bytes"), 5)
    assert _read(client, "kept", "a/b") == b"bytes"


def test_a_conditional_write_is_refused_where_there_is_something(
    conditional_s3_server: S3Server,
) -> None:
    client = _client(conditional_s3_server)
    client.make_bucket("kept")
    client.put_object("kept", "a/b", io.BytesIO(b"bytes"), 5)
    url = client.presigned_put_object("kept", "a/b")
    answer = urllib3.request("PUT", url, body=b"other", headers={"If-None-Match": "*"})
    assert (answer.status, b"PreconditionFailed" in answer.data) == (412, True)
    assert _read(client, "kept", "a/b") == b"bytes"


def test_wrong_secret_key_is_refused(s3_server: S3Server) -> None:
    with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
        _client(s3_server, secret_key="wrong").list_buckets()


def test_objects_and_port_survive_an_outage(tmp_path: Path) -> None:
    with start_s3(tmp_path) as server:
        client, port = _client(server), server.port
        client.make_bucket("kept")
        client.put_object("kept", "key", io.BytesIO(b"bytes"), 5)
        server.stop()
        with pytest.raises(urllib3.exceptions.HTTPError):
            client.bucket_exists("kept")
        server.start()
        assert server.port == port
        assert _read(_client(server), "kept", "key") == b"bytes"
