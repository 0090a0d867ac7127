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
            "subject_uri": image_uri(subject, 320) if (subject := p.subject_image) else "",
            "subject_noun": p.region.source_phrase,
            "size": f"{p.width_px}x{p.height_px}",
            "subject": p.region.describe(),
            "sharpness": f"{p.sharpness.subject:.2f}",
            "evenness": f"{p.sharpness.evenness:.2f}",
            "bright": f"{p.exposure.subject_bright:.0f}",
            "clipped": f"{p.exposure.subject_clipped:.2f}",
            "noise": f"{p.noise:.1f}",
            "extent": [f"{e:.2f}" for e in p.extent],
        }
        for p in report.photos
    ]
    findings = [
        asdict(f)
        | {
            "uris": [uris[name] for name in f.photographs[:2]],
            "measurement": f.describe_measurement(),
        }
        for f in report.issues
    ]
    return render_page(
        "doctor.html.j2",
        folder=report.folder,
        verdict=report.worst_severity,
        photos=photos,
        findings=findings,
        skipped=report.skipped,
    )
