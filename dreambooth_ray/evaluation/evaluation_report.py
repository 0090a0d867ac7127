"""An evaluation as a page for people."""

import json

from PIL import Image

from dreambooth_ray.evaluation.html_page import image_data_uri, render_page
from dreambooth_ray.evaluation.protocol import EvaluationPrompt, EvaluationSpec
from dreambooth_ray.evaluation.scores import EvaluationScores

TILE_PX = 160


def render_evaluation_page(
    spec: EvaluationSpec,
    prompts: list[EvaluationPrompt],
    images: list[Image.Image],
    photographs: list[Image.Image],
    scores: EvaluationScores,
    conditions: object,
    front: Image.Image | None = None,
) -> str:
    """One HTML file: numbers, the worst five, a grid a prompt, and all that repeats it.

    front: plot of the checkpoints that the run chose from
    """
    uris = [image_data_uri(p, TILE_PX) for p in images]
    rows_by_index = {r["index"]: r for r in scores.rows}

    def build_tiles(kind: str) -> list[dict[str, object]]:
        return [
            {"uri": uris[i], "label": prompt.prompt, "copied": False}
            for i, prompt in enumerate(prompts)
            if prompt.kind == kind
        ]

    return render_page(
        "report.html.j2",
        title=f"{spec.identifier} {spec.class_noun}",
        protocol=spec.protocol.name,
        num_images=len(images),
        totals=[
            {
                "name": name,
                "value": f"{s.value:.3f}",
                "deviation": "" if s.deviation is None else f"{s.deviation:.3f}",
                "better": "higher" if s.higher_is_better else "lower",
                "meaning": s.meaning,
            }
            for name, s in scores.totals.items()
        ],
        encoders=spec.protocol.encoders.model_dump(),
        photographs=[image_data_uri(p, TILE_PX) for p in photographs],
        worst=[{"uri": uris[i], **_build_tile(rows_by_index[i])} for i in scores.worst],
        prompts=[
            {
                "prompt": p["prompt"],
                **{k: f"{p[k]:.3f}" for k in ("dino", "clip_i", "clip_t")},
                "tiles": [{"uri": uris[i], **_build_tile(rows_by_index[i])} for i in p["pictures"]],
            }
            for p in sorted(scores.prompts, key=lambda p: float(p["dino"] + p["clip_t"]))
        ],
        classes=build_tiles("class"),
        others=build_tiles("other"),
        front=image_data_uri(front, front.width) if front else "",
        conditions=json.dumps(conditions, indent=1),
    )


def _build_tile(row: dict[str, object]) -> dict[str, object]:
    return {
        "prompt": row["prompt"],
        "seed": row["seed"],
        "copied": row["copied"],
        "label": f"{row['dino']:.2f} subject, {row['clip_t']:.2f} prompt",
    }
