"""`dreambooth cluster ...`: a cluster of several hosts on this machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

# ruff: noqa: PLC0415  imports inside verbs keep --help quick

app = typer.Typer(
    name="cluster",
    help="A Ray cluster of several hosts on this one machine, to develop and to break. Needs root.",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Option(help="folder of the cluster's state and logs")]
HostName = Annotated[
    str, typer.Argument(help="head, host-11, ...; see `dreambooth cluster status`")
]
_FOLDER = Path("out/cluster")


@app.command()
def up(
    hosts: Annotated[int, typer.Option(min=1, max=200, help="Ray hosts, the head among them")] = 3,
    cpus: Annotated[int, typer.Option(min=1, help="logical CPUs of each")] = 1,
    s3: Annotated[bool, typer.Option("--s3", help="also an object store (SeaweedFS)")] = False,
    folder: Folder = _FOLDER,
) -> None:
    """Start the cluster; prints the URL of its Jobs API."""
    from cluster.local_cluster import LocalCluster

    local_cluster = LocalCluster.up(folder, hosts, cpus, s3=s3)
    print(local_cluster.dashboard_url)


@app.command()
def status(folder: Folder = _FOLDER) -> None:
    """Print hosts with address and state, and what a shell needs to reach the cluster."""
    from cluster.local_cluster import LocalCluster

    local_cluster = LocalCluster(folder)
    for cluster_host in local_cluster.hosts:
        print(
            f"{cluster_host.name}\t{cluster_host.address}\t"
            f"{'up' if cluster_host.is_alive else 'gone'}"
        )
    print(f"jobs\t{local_cluster.dashboard_url}\ntoken\t{local_cluster.folder / 'token'}")
    for variable_name, variable_value in local_cluster.s3_environment.items():
        print(f"{variable_name}={variable_value}")


@app.command()
def down(folder: Folder = _FOLDER) -> None:
    """Kill every host and remove the network."""
    from cluster.local_cluster import LocalCluster

    LocalCluster(folder).down()


@app.command()
def kill(host: HostName, folder: Folder = _FOLDER) -> None:
    """Power a host off."""
    from cluster.local_cluster import LocalCluster

    LocalCluster(folder).kill(host)


@app.command()
def replace(host: HostName, folder: Folder = _FOLDER) -> None:
    """Power a worker host off and start a new one; prints the new one's name."""
    from cluster.local_cluster import LocalCluster

    print(LocalCluster(folder).replace(host).name)


@app.command()
def cut(host: HostName, folder: Folder = _FOLDER) -> None:
    """Pull a host's cable; `mend` puts it back."""
    from cluster.local_cluster import LocalCluster

    local_cluster = LocalCluster(folder)
    local_cluster.network.disconnect_host(local_cluster.host(host))


@app.command()
def mend(host: HostName, folder: Folder = _FOLDER) -> None:
    """Undo cut, delay and slow."""
    from cluster.local_cluster import LocalCluster

    local_cluster = LocalCluster(folder)
    local_cluster.network.reconnect_host(local_cluster.host(host))


@app.command()
def delay(
    host: HostName,
    delay_ms: Annotated[int, typer.Argument(min=0)],
    loss_percent: Annotated[float, typer.Option(min=0, max=100)] = 0.0,
    folder: Folder = _FOLDER,
) -> None:
    """Hold back every packet to a host, and lose some (tc netem)."""
    from cluster.local_cluster import LocalCluster

    local_cluster = LocalCluster(folder)
    local_cluster.network.delay_packets(local_cluster.host(host), delay_ms, loss_percent)


@app.command()
def slow(
    host: HostName,
    kilobits_s: Annotated[int, typer.Argument(min=8)],
    folder: Folder = _FOLDER,
) -> None:
    """Let only so many kilobits a second through to a host (tc tbf)."""
    from cluster.local_cluster import LocalCluster

    local_cluster = LocalCluster(folder)
    local_cluster.network.limit_bandwidth(local_cluster.host(host), kilobits_s)


@app.command(name="exec", context_settings={"ignore_unknown_options": True})
def execute(
    host: HostName,
    command: Annotated[list[str], typer.Argument(help="what to run there")],
    folder: Folder = _FOLDER,
) -> None:
    """Run a command inside a host; `client` is made where there is none yet."""
    from cluster.local_cluster import LocalCluster

    local_cluster = LocalCluster(folder)
    if host == "client" and not any(h.name == host for h in local_cluster.hosts):
        local_cluster.add_client(host)
    sys.exit(local_cluster.run_in_host(host, command).returncode)
