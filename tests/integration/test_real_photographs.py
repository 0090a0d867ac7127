"""A pretrained network on real photographs: the measures mean something beyond the toy world."""

from dreambooth_ray.data.photographs import read_photograph
from dreambooth_ray.evaluation import image_metrics
from tests import dreambench
from tests.efficientnet import EfficientNetLite0

# Subjects nearer to another than to themselves, by this network. There is none.
EXCEPTIONS: set[tuple[str, str]] = set()


@dreambench.needed
def test_a_subject_is_more_like_itself_than_like_any_other() -> None:
    encoder = EfficientNetLite0()
    vectors = {
        name: encoder.embed_images([read_photograph(p) for p in paths])
        for name, paths in dreambench.subjects().items()
    }
    assert len(vectors) == 8
    confused = set()
    for name, own in vectors.items():
        within = 1 - image_metrics.diversity([own])
        for other, theirs in vectors.items():
            if other != name and image_metrics.subject_fidelity(own, theirs) >= within:
                confused.add((name, other))
    assert confused == EXCEPTIONS
