"""What an answer says of an image: all that makes it again."""

from serve import image_files
from serve.api_messages import AdapterReceipt, Receipt
from serve.replica_messages import Finished, ImageSamplingTask


def build_receipt(model: str, sample_task: ImageSamplingTask, finished: Finished) -> Receipt:
    """model: as it is named, with its version"""
    pixels = finished.pixels
    return Receipt(
        model=model,
        weights_sha256=finished.weights_sha256,
        base_sha256=finished.base_sha256,
        prompt=sample_task.prompt,
        negative_prompt=sample_task.negative_prompt,
        seed=sample_task.seed,
        **finished.params.model_dump(),
        width=pixels.width_px,
        height=pixels.height_px,
        strength=sample_task.strength if sample_task.image is not None else None,
        image_sha256=image_files.hash_pixels(sample_task.image),
        mask_sha256=image_files.hash_pixels(sample_task.mask),
        adapters=[
            AdapterReceipt(
                model=adapter_task.artifact.id if adapter_task.artifact else None,
                file=adapter_task.file,
                weight=adapter_task.weight,
                sha256=digest,
            )
            for adapter_task, digest in zip(
                sample_task.adapters, finished.adapter_sha256s, strict=True
            )
        ],
    )
