"""The quality report as a page."""

from dataclasses import asdict

from dreambooth_ray.data.quality.inspection import InspectionReport
from dreambooth_ray.evaluation.html_page import image_uri, render_page


def doctor_page(report: InspectionReport) -> str:
    """One HTML file: photographs, issues with their images, and every number."""
    uris = {p.name: image_uri(p.image, 320) for p in report.photos}
    photos = [
        {
            "name": p.name,
            "uri": uris[p.name],
            "size": f"{p.width_px}x{p.height_px}",
            "sharpness": f"{p.sharpness:.2f}",
            "brightness": f"{p.brightness[0]:.0f} to {p.brightness[1]:.0f}",
            "extent": [f"{e:.2f}" for e in p.extent],
        }
        for p in report.photos
    ]
    findings = [
        asdict(f) | {"uris": [uris[name] for name in f.photographs[:2]]} for f in report.issues
    ]
    return render_page(
        "doctor.html.j2",
        folder=report.folder,
        verdict=report.worst_severity,
        photos=photos,
        findings=findings,
        skipped=report.skipped,
    )
