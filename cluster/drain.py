"""Gives the Ray node of this pod back before the pod ends: `python -m cluster.drain --seconds 45`.

The preStop hook of workers calls it. Ray hears that the node will be taken away: a run saves a
checkpoint of the step it is at, an endpoint starts replicas elsewhere, and nothing new comes here.
Then it waits: the raylet, and the pod with it, ends when nothing runs here any more, and the pod is
ended when the time is up.
"""

import argparse
import subprocess
import sys
import time

import ray


def drain_node(seconds: int) -> None:
    """Tell Ray that this node goes in so many seconds.

    raises: ConnectionError where no Ray runs here, CalledProcessError if it does not take the word
    """
    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    node_id = ray.get_runtime_context().get_node_id()
    ray.shutdown()
    # Its own command, which clouds' agents call too: there is no function for it.
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--node-id={node_id}",
         "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=its pod ends",
         f"--deadline-remaining-seconds={seconds}"],
        check=True,
    )  # fmt: skip


def main() -> None:
    """Drain, then wait for the end."""
    parser = argparse.ArgumentParser(description="Give the Ray node of this pod back.")
    parser.add_argument("--seconds", type=int, required=True, help="until the pod is ended")
    seconds_until_end = parser.parse_args().seconds
    started_s = time.monotonic()
    drain_node(seconds_until_end)
    time.sleep(max(0.0, seconds_until_end - (time.monotonic() - started_s)))


if __name__ == "__main__":
    main()
