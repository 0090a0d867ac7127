from dreambooth_ray.config.count_text import describe_count


def test_one_is_not_many() -> None:
    counts = [describe_count(number, "worker") for number in (0, 1, 2)]
    assert counts == ["0 workers", "1 worker", "2 workers"]
