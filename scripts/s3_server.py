"""An S3 server of one's own, moto's, on a port of this machine, for the tests marked `s3`.

A context manager: inside, the environment says where it is and who asks, to pyarrow, boto3 and
Spark's S3A alike, and PySpark has S3A's jars.
"""

from __future__ import annotations

import logging
import os
from types import TracebackType

from registry import s3_connector, submit_with

BUCKET = "models"
OPTIONS = (
    # buckets by path: the names of this machine have no subdomains
    "--conf", "spark.hadoop.fs.s3a.path.style.access=true",
    "--conf", "spark.hadoop.fs.s3a.connection.ssl.enabled=false",
)  # fmt: skip


class S3Server:
    """A server with one empty bucket, BUCKET.

    Attributes
    ----------
    address : its URL
    """

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._before: dict[str, str | None] = {}
        self.address = ""

    def __enter__(self) -> S3Server:
        import boto3

        self._server.start()
        self.address = "http://{}:{}".format(*self._server.get_host_and_port())
        mine = {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        names = [*mine, "PYSPARK_SUBMIT_ARGS"]
        self._before = {name: os.environ.get(name) for name in names}
        os.environ.update(mine)
        submit_with(s3_connector(), *OPTIONS)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._server.stop()
