"""Class images for runs that are timed: drawn by this process, before anything counts."""

from dreambooth_ray import pipeline
from dreambooth_ray.preparation import Prepared
from dreambooth_ray.priors.generation import PriorRequest, committed_chunks, open_set
from dreambooth_ray.priors.prior_spec import missing
from dreambooth_ray.priors.prior_worker import PriorWorker
from dreambooth_ray.storage.store import Store


def draw_class_images(prepared: Prepared) -> tuple[PriorRequest, Store]:
    """All that a configuration asks for, as far as they are not there; their order and set."""
    order = pipeline.order_priors(prepared, prepared.config.prior.count)
    store = open_set(Store(prepared.config.storage.uri), order.spec)
    records = committed_chunks(store)
    if missing(order.spec, order.count, records):
        painter = PriorWorker(str(order.directory), store.uri, order.spec, gpu=False)
        while todo := missing(order.spec, order.count, records):
            for number in todo:
                images = order.images(number) if order.images else None
                records[number] = painter.paint(number, images)
    return order, store
