from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.queue.fair_queue import FairQueue, QueuedWork

_IMAGES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 150)), max_size=40)


def _fill_queue(images: list[tuple[str, int]]) -> tuple[FairQueue, list[QueuedWork]]:
    queue = FairQueue()
    queued_images = [QueuedWork(caller, cost) for caller, cost in images]
    for queued_image in queued_images:
        queue.add(queued_image)
    return queue, queued_images


@given(_IMAGES)
def test_everyone_is_taken_once_and_each_callers_own_in_order(
    images: list[tuple[str, int]],
) -> None:
    queue, queued_images = _fill_queue(images)
    dequeued_images = []
    while (queued_image := queue.take()) is not None:
        dequeued_images.append(queued_image)
    assert len(dequeued_images) == len(queued_images)
    for caller in "abcd":
        assert [w for w in dequeued_images if w.owner == caller] == [
            w for w in queued_images if w.owner == caller
        ]
    assert (len(queue), queue.waiting_steps) == (0, 0)


@given(st.integers(1, 200), st.integers(1, 6))
def test_one_image_is_not_held_up_by_anothers_thousand(queued: int, num_others: int) -> None:
    queue = FairQueue()
    for caller in range(num_others):
        for _ in range(queued):
            queue.add(QueuedWork(str(caller), 25))
    own_image = QueuedWork("mine", 25)
    queue.add(own_image)
    before = Counter[str]()
    while (queued_image := queue.take()) is not own_image:
        assert queued_image is not None
        before[queued_image.owner] += 1
    assert max(before.values(), default=0) <= 2


@given(_IMAGES, st.data())
def test_one_that_gives_up_is_gone(images: list[tuple[str, int]], data: st.DataObject) -> None:
    queue, queued_images = _fill_queue(images)
    removed_images = data.draw(
        st.sets(st.sampled_from(queued_images) if queued_images else st.nothing())
    )
    for queued_image in removed_images:
        queue.remove(queued_image)
        queue.remove(queued_image)
    dequeued_images = set()
    while (queued_image := queue.take()) is not None:
        dequeued_images.add(queued_image)
    assert dequeued_images == set(queued_images) - removed_images


def test_steps_ahead_and_positions() -> None:
    queue, queued_images = _fill_queue([("a", 25)] * 10 + [("b", 50)])
    assert queue.find_work_position(queued_images[0]) == 1
    assert queue.find_work_position(queued_images[9]) == 10
    assert queue.find_work_position(queued_images[10]) == 1
    # b's turn comes after as much of a's as b has itself, and one turn more.
    assert queue.count_steps_ahead("c", 25) == 50 + 50
    assert queue.count_steps_ahead("a", 25) == 250 + 50
