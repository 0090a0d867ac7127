"""How far Python may run ahead of a GPU."""

from collections import deque

import torch

# One step runs while the next is launched. More would only make progress, cancelling and
# joining a batch lag behind.
_STEPS_AHEAD = 2


class DevicePacer:
    """Waits until the device has done all but the last few steps. Nothing to wait for on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._marks: deque[torch.cuda.Event] = deque()

    def mark_step_launched(self) -> None:
        """A step has been launched."""
        if self._is_gpu:
            cuda_event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            cuda_event.record()
            self._marks.append(cuda_event)

    def wait(self) -> None:
        """Before the next step is launched."""
        while len(self._marks) >= _STEPS_AHEAD:
            self._marks.popleft().synchronize()
