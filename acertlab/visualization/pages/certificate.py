"""The figure and the page of a data set's certificate."""

import plotly.graph_objects as go

from acertlab.radius.certificate import Report
from acertlab.radius.search import RadiusStatus
from acertlab.visualization.pages.template import drawn, page, table_html
from acertlab.visualization.radius import certified_accuracy_curves, image_grid, radius_histogram
from acertlab.visualization.style import panels


def certificate(report: Report) -> go.Figure:
    """A data set's certificate: certified accuracy at every eps, the radii, and the images with the smallest ones."""
    eps_max, radii = report.settings["eps_max"], report.radii["radius"]
    parts = [certified_accuracy_curves({report.settings["verifier"]: radii}, eps_max), radius_histogram(radii, eps_max)]
    images, worst = report.images, report.worst
    if images.dim() == 4 and images.shape[1] in (1, 3) and len(images):
        titles = [f"no. {i} (class {label})" for i, label in zip(worst["index"], worst["label"], strict=True)]
        title = "Correctly classified, smallest radii"
        parts.append(image_grid(images.numpy(), titles, radii=worst["radius"], title=title))
    rows = len(parts) - 1
    title = f"{report.settings['n']} samples, {report.summary()}"
    figure = panels(parts, title, 140 + 340 * rows, [0.65, 0.35][:rows])
    return figure.update_layout(showlegend=False, bargap=0)


def certificate_page(report: Report) -> str:
    """HTML with the picture of a data set's certificate, its table and its worst samples."""
    words = [RadiusStatus(status).sentence for status in report.worst["status"]]
    settings = report.table().set_index("quantity").loc[list(report.settings)].reset_index()
    return page(
        "certificate.html",
        title=f"Certified radii of {report.settings['n']} samples",
        sentence=report.sentence(),
        picture=drawn(certificate(report)),
        outcomes=table_html(report.outcomes()),
        worst=table_html(report.worst.assign(status=words)),
        settings=table_html(settings),
    )
