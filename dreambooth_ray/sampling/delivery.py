"""What requests get after a step: progress and previews to all, images to those that are done."""

import torch

from dreambooth_ray.sampling.request_handle import RequestHandle, SampleOutput
from dreambooth_ray.sampling.vae import LatentCodec


def deliver_results(handles: list[RequestHandle], codec: LatentCodec, decode_limit: int) -> None:
    """For the requests of one step. decode_limit: images that may be decoded at once"""
    for handle in handles:
        preview = None
        if handle.wants_preview and handle.state is not None:
            preview = codec.decode_preview(handle.state.preview_latents)
        handle.report_progress(preview)
    finished_requests = [
        (t, t.state.latents)
        for t in handles
        if t.state and t.state.finished and not t.future.done()
    ]
    if finished_requests:
        # As many as the memory was counted for, which may be fewer than share a step.
        latent_batches = torch.split(
            torch.stack([final_latents for _, final_latents in finished_requests]), decode_limit
        )
        images = [image for latent_batch in latent_batches for image in codec.decode(latent_batch)]
        for (handle, final_latents), image in zip(finished_requests, images, strict=True):
            handle.finish(SampleOutput(image, final_latents, handle.request))
