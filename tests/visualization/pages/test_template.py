"""Templates of pages escape what is not markup."""

from markupsafe import Markup

from acertlab.visualization.pages.template import page


def test_pages_escape_what_is_not_markup():
    rows = [{"method": "<b>x", "ACR": 12.345, "network": Markup("<i>y</i>")}]
    table = page("table.html", rows=rows)
    assert "&lt;b&gt;x" in table and "<b>x" not in table and "<i>y</i>" in table and ">12.35<" in table
