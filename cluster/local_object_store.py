"""SeaweedFS in a host of a local cluster: real S3 with conditional writes, from a PyPI package."""

import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

BUCKET = "dreambooth"
S3_PORT = 8333
_KEY = "dreambooth"
_MASTER_PORT = 9333


def prepare_store_host(tmp: Path, address: str, secret: str) -> list[str]:
    """Lay out the host's /tmp, which is `tmp` outside of it; returns the command of its init."""
    data_folder = tmp / "data"
    data_folder.mkdir(parents=True)
    credentials = [{"accessKey": _KEY, "secretKey": secret}]
    store_permissions = ["Admin", "Read", "Write", "List", "Tagging"]
    s3_identity = {"name": _KEY, "credentials": credentials, "actions": store_permissions}
    (data_folder / "keys.json").write_text(json.dumps({"identities": [s3_identity]}))
    return [
        "weed", "server", f"-ip={address}", "-ip.bind=0.0.0.0", "-dir=/tmp/data", "-s3",
        f"-s3.port={S3_PORT}", "-s3.config=/tmp/data/keys.json",
        "-master.volumeSizeLimitMB=64", "-volume.max=200",
    ]  # fmt: skip


def store_environment(address: str, secret: str) -> dict[str, str]:
    """What lets fsspec and botocore find the store."""
    return {
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://{address}:{S3_PORT}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def make_bucket(enter_prefix: list[str], address: str, env: dict[str, str]) -> bool:
    """Make the bucket; False while the store does not answer.

    enter_prefix: the command line prefix that runs something in the store's host
    """
    try:
        urllib.request.urlopen(f"http://{address}:{S3_PORT}/status", timeout=2).close()
    except urllib.error.HTTPError:
        pass  # it answers, if only to refuse
    except OSError:
        return False
    result = subprocess.run(
        [*enter_prefix, "weed", "shell", f"-master={address}:{_MASTER_PORT}"],
        input=f"s3.bucket.create -name {BUCKET}\ns3.bucket.list\n",
        capture_output=True, text=True, check=False, env=env, timeout=60,
    )  # fmt: skip
    bucket_creation_output = "".join(result.stdout.split("create bucket")[1:])
    return BUCKET in bucket_creation_output or f"{BUCKET}\t" in result.stdout
