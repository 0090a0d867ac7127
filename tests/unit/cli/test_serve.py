import subprocess
import sys

# The system hands a signal to any thread, and only the main one runs what Python does about it.
SCRIPT = """
import signal, sys, threading
from dreambooth_ray.cli.serve import _wait_until_interrupted

signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)).start()
_wait_until_interrupted()
"""


def test_a_signal_that_another_thread_gets_ends_it_too() -> None:
    process = subprocess.run([sys.executable, "-c", SCRIPT], timeout=60, check=False)
    assert process.returncode == 7
