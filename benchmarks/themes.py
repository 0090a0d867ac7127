"""The list of themes. It imports nothing, so that --help can show them."""

# Name of a theme: its module, and one line about it.
THEMES: dict[str, tuple[str, str]] = {
    "sample": ("sample_theme", "The engine against diffusers' pipeline, one thread."),
    "train": ("train_theme", "Training against a plain diffusers loop, one worker, one thread."),
    "wholejob": ("wholejob", "Whole jobs, from the command to the saved model, beside diffusers'."),
    "settings": (
        "settings_theme",
        "Training by method, strategy, precision, size, batch, accumulation.",
    ),
    "priors": ("priors_theme", "Class images by several actors, against one and against Ray Data."),
    "scaling": ("scaling_theme", "Training on several workers against one, weak and strong."),
    "fleet": (
        "fleet_theme",
        "Subjects in shared batches against one after another, warm, separate, and diffusers'.",
    ),
    "serve": ("serve_theme", "The endpoint against @serve.batch and FastAPI around diffusers."),
    "checkpoint": (
        "checkpoint_theme",
        "What checkpoints cost training, their upload, and a recovery.",
    ),
    "startup": ("startup_theme", "Submit to first step; a replica's and a subject's first image."),
    "fullsize": (
        "fullsize_theme",
        "SD 1.5's architecture at 512x512: a step's time and peak memory.",
    ),
}
