"""The doctor's findings as a page."""

from dataclasses import asdict

from dreambooth_ray.data.quality.inspection import Examination
from dreambooth_ray.evaluation.html_page import image_uri, render


def doctor_page(examination: Examination) -> str:
    """One HTML file: photographs, findings with their images, and every number."""
    uris = {p.name: image_uri(p.image, 320) for p in examination.photos}
    photos = [
        {
            "name": p.name,
            "uri": uris[p.name],
            "size": f"{p.width_px}x{p.height_px}",
            "sharpness": f"{p.sharpness:.2f}",
            "brightness": f"{p.brightness[0]:.0f} to {p.brightness[1]:.0f}",
            "extent": [f"{e:.2f}" for e in p.extent],
        }
        for p in examination.photos
    ]
    findings = [
        asdict(f) | {"uris": [uris[name] for name in f.photographs[:2]]}
        for f in examination.findings
    ]
    return render(
        "doctor.html.j2",
        folder=examination.folder,
        verdict=examination.verdict,
        photos=photos,
        findings=findings,
        skipped=examination.skipped,
    )
