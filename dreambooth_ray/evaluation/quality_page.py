"""The quality report as a page."""

from dataclasses import asdict

from dreambooth_ray.data.quality.inspection import InspectionReport
from dreambooth_ray.evaluation.html_page import image_data_uri, render_page


def render_quality_page(report: InspectionReport) -> str:
    """One HTML file: photographs, issues with their images, and every number."""
    photo_uris = {p.name: image_data_uri(p.image, 320) for p in report.photos}
    photo_entries = [
        {
            "name": p.name,
            "uri": photo_uris[p.name],
            "subject_uri": image_data_uri(subject, 320)
            if (subject := p.darkened_background_image)
            else "",
            "subject_noun": p.region.region_source_text,
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
    issue_entries = [
        asdict(f)
        | {
            "uris": [photo_uris[name] for name in f.photographs[:2]],
            "measurement": f.describe_measured_value(),
        }
        for f in report.issues
    ]
    return render_page(
        "doctor.html.j2",
        folder=report.folder,
        verdict=report.worst_severity,
        photos=photo_entries,
        findings=issue_entries,
        skipped=report.skipped,
    )
