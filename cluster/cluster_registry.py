"""Named clusters: a YAML file of where they are and what they cost.

local: {address: "http://10.213.1.10:8265", token_file: out/cluster/token}
team:  {address: "https://ray.example.com", token_env: TEAM_TOKEN, ca: ca.pem,
        autoscaled: true, price_an_hour: 12.5, code: image,
        image: "registry.example.com/dreambooth-ray:0.1.0"}
"""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from dreambooth_ray.config.section import PathText, Section, Text
from dreambooth_ray.config.yaml_text import parse_yaml, read_text_file
from dreambooth_ray.errors import ConfigError

FILE = Path("clusters.yaml")


class ClusterEntry(Section):
    """One cluster."""

    address: Text = Field(description="URL of the Jobs API: http://HOST:8265, or https://...")
    token: str | None = Field(None, description="bearer token; rather token_file or token_env")
    token_file: PathText | None = Field(None, description="file that holds it")
    token_env: str | None = Field(None, description="environment variable that holds it")
    ca: PathText | None = Field(
        None, description="certificates to trust, PEM; none is the system's"
    )
    price_an_hour: float | None = Field(None, ge=0, description="of the whole cluster")
    code: Literal["tree", "installed", "image"] = Field(
        "tree", description="send this installation's code, or take what hosts or image have"
    )
    image: str | None = Field(None, description="what the hosts run, or are to run with code=image")
    autoscaled: bool = Field(
        False, description="hosts come when runs ask for them: those there now are not counted"
    )
    env: dict[str, str] = Field({}, description="environment of jobs, such as AWS_ENDPOINT_URL")

    @field_validator("address")
    @classmethod
    def _validate_address(cls, address: str) -> str:
        if not address.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://, and end in the Jobs API's port")
        return address.rstrip("/")

    def read_token(self) -> str | None:
        """The token, from wherever it is; raises ConfigError if that is missing."""
        if self.token_file:
            token_path = Path(self.token_file)
            if not token_path.is_file():
                raise ConfigError(f"token_file={self.token_file!r} is not a file")
            return token_path.read_text().strip()
        if self.token_env:
            if self.token_env not in os.environ:
                raise ConfigError(f"token_env={self.token_env!r} is not set in the environment")
            return os.environ[self.token_env]
        return self.token


def find_cluster(name: str, file: Path = FILE) -> ClusterEntry:
    """The cluster of a name.

    raises: ConfigError naming file, key, or the names there are
    """
    try:
        cluster_entries = parse_yaml(read_text_file(file), str(file), dict[str, ClusterEntry]) or {}
    except FileNotFoundError as error:
        raise ConfigError(
            f"--clusters={str(file)!r} is not there; write one with a line such as "
            '`team: {address: "http://HOST:8265", token_env: TEAM_TOKEN}`'
        ) from error
    except OSError as error:
        raise ConfigError(
            f"--clusters={str(file)!r} can't be read: {error}; give a YAML file of clusters"
        ) from error
    if not isinstance(cluster_entries, dict) or name not in cluster_entries:
        cluster_names = ", ".join(cluster_entries) if isinstance(cluster_entries, dict) else ""
        raise ConfigError(
            f"--cluster={name!r} is not in {file}; known are: {cluster_names or 'none'}"
        )
    try:
        return ClusterEntry.model_validate(cluster_entries[name])
    except ValidationError as error:
        first_error = error.errors()[0]
        key_path = ".".join(str(part) for part in first_error["loc"])
        raise ConfigError(f"{file}: {name}.{key_path}: {first_error['msg']}") from error
