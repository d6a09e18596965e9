"""A real S3 interface for tests: moto's server with users and signatures, behind a proxy that can go wrong.

    client ── HTTP ──► faulty_proxy.py ──► moto's server          each a process of its own, on a free port of 127.0.0.1

Clients find it by the environment, as they would another S3-compatible store; tests upload past the proxy.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_proxy import LOOPBACK, Proxy
from tests.support.helper_processes import Child, say

REGION = "eu-west-1"
POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


class ObjectStore:
    """A running store. Reads go through `proxy`; `key` and `secret` are the credentials of its only user."""

    def __init__(self) -> None:
        self._server = Child("tests.support.object_store")
        self.key, self.secret = self._server.ready["key"], self._server.ready["secret"]
        self.proxy = Proxy(self.port)

    @property
    def port(self) -> int:
        """The server's own, for writing."""
        return int(self._server.ready["port"])

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that let a client read through the proxy, and nothing of this machine's own AWS set-up."""
        return {
            "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{self.proxy.port}",
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def file_system(self, port: int | None = None, **options: Any) -> Any:
        """s3fs, through the proxy unless told another port; it tries once and then raises."""
        from s3fs import S3FileSystem

        found = S3FileSystem(
            key=self.key,
            secret=self.secret,
            endpoint_url=f"http://{LOOPBACK}:{port or self.proxy.port}",
            client_kwargs={"region_name": REGION},
            config_kwargs={"retries": {"max_attempts": 0}, **options},
            skip_instance_cache=True,
        )
        found.retries = 1
        return found

    def upload(self, folder: Path, address: str) -> None:
        """Copy the files of a folder to s3://BUCKET/FOLDER; a missing bucket is made."""
        files = self.file_system(self.port)
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        if not files.exists(bucket):
            files.mkdir(bucket)
        for path in sorted(folder.iterdir()):
            files.pipe_file(f"{bucket}/{prefix}/{path.name}", path.read_bytes())

    def remove(self, address: str) -> None:
        """Remove one object."""
        self.file_system(self.port).rm_file(address.removeprefix("s3://"))

    def stop(self) -> None:
        """End both processes."""
        self.proxy.stop()
        self._server.stop()


@pytest.fixture(scope="session", name="object_store")
def object_store_fixture() -> Iterator[ObjectStore]:
    """One store for all tests; each sets the proxy's faults first."""
    store = ObjectStore()
    yield store
    store.stop()


def serve() -> None:
    """The server's own process, until the standard input ends."""
    import logging

    import boto3
    from moto import settings
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(LOOPBACK, 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    users = boto3.client(
        "iam",
        endpoint_url=f"http://{LOOPBACK}:{port}",
        region_name=REGION,
        aws_access_key_id="anyone",
        aws_secret_access_key="until users exist",
    )
    users.create_user(UserName="reader")
    users.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=json.dumps(POLICY))
    key = users.create_access_key(UserName="reader")["AccessKey"]
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0  # from here on every request needs a known key and a right signature
    say({"port": port, "key": key["AccessKeyId"], "secret": key["SecretAccessKey"]})
    sys.stdin.read()


if __name__ == "__main__":
    serve()
