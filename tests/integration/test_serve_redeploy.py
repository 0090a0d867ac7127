"""A new configuration takes the old one's place while callers go on asking."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import kill_tree
from tests.integration.test_serve_faults import Response, open_session, request_image

CALLERS = 3
DRIVER = """
import sys
import ray.serve
from cluster.session import ray_connection
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.config.serving import ServeConfig
from serve.app import build

folder, port = sys.argv[1:]
with ray_connection(ClusterConfig(), 4):
    ray.serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    for steps in (100, 60):
        config = {"storage": {"uri": folder}, "limits": {"steps": steps}}
        ray.serve.run(build(ServeConfig.model_validate(config)), name="dreambooth")
        print("up", steps, flush=True)
        sys.stdin.readline()
    ray.serve.shutdown()
"""


@pytest.mark.fault
def test_a_redeploy_refuses_nobody(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), str(port)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        answers = asyncio.run(_story(driver, f"http://127.0.0.1:{port}"))
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.communicate("\n\n", timeout=60)
        kill_tree(driver)
    print(f"{len(answers)} answers, slowest {max(a.ended_s - a.begun_s for a in answers):.1f} s")
    assert {(a.status, a.code) for a in answers} == {(200, None)}


async def _story(driver: "subprocess.Popen[str]", address: str) -> list[Response]:
    """What callers were answered from before the new configuration was sent until it was there."""
    answers: list[Response] = []
    await _until_up(driver, 100)
    is_new = asyncio.Event()

    async with open_session() as session:
        while (await request_image(session, address, num_inference_steps=1)).status != 200:
            await asyncio.sleep(0.2)
        assert (await request_image(session, address, num_inference_steps=61)).status == 200

        async def keep_requesting() -> None:
            while not is_new.is_set():
                answers.append(await request_image(session, address, num_inference_steps=60))

        tasks = [asyncio.create_task(keep_requesting()) for _ in range(CALLERS)]
        while len(answers) < CALLERS:
            await asyncio.sleep(0.1)
        assert driver.stdin is not None
        driver.stdin.write("\n")
        driver.stdin.flush()
        await _until_up(driver, 60)
        while (
            refused := await request_image(session, address, num_inference_steps=61)
        ).status == 200:
            await asyncio.sleep(0.2)
        assert refused.code == "above_limit"
        is_new.set()
        await asyncio.gather(*tasks)
    return answers


async def _until_up(driver: "subprocess.Popen[str]", steps: int) -> None:
    assert driver.stdout is not None
    while (line := await asyncio.to_thread(driver.stdout.readline)) != f"up {steps}\n":
        assert line, "the driver has ended"
