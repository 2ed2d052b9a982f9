"""A real S3 server over HTTP: moto's server mode, which s3fs itself is tested with."""

import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import fsspec
from conftest import free_port

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def object_store():
    """Run a server with one empty bucket: yield its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(url))
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        file_system(url).mkdir(BUCKET)
        yield url
    finally:
        server.kill()
        server.wait()


def environment(url):
    """What processes need in their environment to find the server."""
    return {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": url}


def file_system(url):
    """Return a file system that goes to a server directly, whatever the environment says."""
    return fsspec.filesystem(
        "s3",
        key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        secret=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=url,
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def upload(file_system, folder, under):
    """Copy a folder's files into the bucket; return the URI of where they are."""
    for path in sorted(Path(folder).iterdir()):
        file_system.pipe_file(f"{BUCKET}/{under}/{path.name}", path.read_bytes())
    return f"s3://{BUCKET}/{under}"
