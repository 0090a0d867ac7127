"""DreamBooth fine-tuning of text-to-image models on Ray clusters.

    import dreambooth_ray
    run = dreambooth_ray.train("toy-robot.yaml", "subject.photos=photos")
    images = dreambooth_ray.generate(run, "a sks robot on the beach", num_images=4)

Each name is imported when it is first used: the package itself brings neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from dreambooth_ray.version import __version__

if TYPE_CHECKING:
    from dreambooth_ray.adapter_editing import merge, resize
    from dreambooth_ray.api import evaluate, export, generate, train
    from dreambooth_ray.config.schema import Config
    from dreambooth_ray.sampling.engine import Engine
else:
    _MODULES = {
        "Config": "dreambooth_ray.config.schema",
        "Engine": "dreambooth_ray.sampling.engine",
        "evaluate": "dreambooth_ray.api",
        "export": "dreambooth_ray.api",
        "generate": "dreambooth_ray.api",
        "merge": "dreambooth_ray.adapter_editing",
        "resize": "dreambooth_ray.adapter_editing",
        "train": "dreambooth_ray.api",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})


__all__ = [
    "Config",
    "Engine",
    "__version__",
    "evaluate",
    "export",
    "generate",
    "merge",
    "resize",
    "train",
]
