import threading

from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.worker_messages import read_new_messages


def fail(text: str = "no") -> None:
    raise OSError(text)


def read_messages(run: Store) -> list[str]:
    return read_new_messages(run, set())


def test_a_failure_is_said_once_a_kind_and_counted_each_time() -> None:
    run = Store("memory://side-once")
    side_work = SideWork(run, num_failures=2)
    assert side_work.run("sampling", fail, "default") == "default"  # type: ignore[func-returns-value]
    side_work.run("sampling", fail, None)
    side_work.submit("logger csv", fail)
    side_work.submit("logger csv", lambda: 1 / 0)
    side_work.close(10)
    assert side_work.num_failures == 6
    assert [text.split(":")[1].strip() for text in read_messages(run)] == [
        "sampling failed", "logger csv failed", "logger csv failed",
    ]  # fmt: skip
    assert "OSError: no; training goes on without" in read_messages(run)[0]


def test_submitted_work_is_done_in_order_and_before_the_end() -> None:
    side_work, numbers = SideWork(Store("memory://side-order")), list[int]()
    for number in range(20):
        side_work.submit("noting", lambda number=number: numbers.append(number))  # type: ignore[misc]
    side_work.close(10)
    assert numbers == list(range(20))


def test_even_an_exit_ends_nothing() -> None:
    run, numbers = Store("memory://side-exit"), list[int]()
    side_work = SideWork(run)

    def leave() -> None:
        raise SystemExit(3)

    side_work.submit("logger wandb", leave)
    side_work.submit("logger csv", lambda: numbers.append(1))
    side_work.close(10)
    assert numbers == [1]
    assert "SystemExit: 3" in read_messages(run)[0]


def test_work_that_hangs_is_left_behind_and_said() -> None:
    run, release = Store("memory://side-hang"), threading.Event()
    side_work = SideWork(run)
    side_work.submit("logger wandb", release.wait)
    side_work.close(0.1)
    assert "did not end within" in read_messages(run)[0]
    release.set()


def test_of_several_workers_the_first_speaks() -> None:
    run = Store("memory://side-rank")
    side_work = SideWork(run, is_first=False)
    side_work.run("validation", fail, None)
    side_work.close(10)
    assert side_work.num_failures == 1
    assert read_messages(run) == []
