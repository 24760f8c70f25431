"""Reports as one HTML page that needs nothing else: no script, no font, no picture from elsewhere; jinja2's home."""

from __future__ import annotations

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render_page(package: str, template: str, values: dict[str, Any]) -> str:
    """Fill in a template; names with < in them come out as text.

    Args:
        package: where the template lies. It extends page_shell.html.j2, which has the page's head and style.
        template: name of its file.
        values: by the names that the template has for them.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("ipsrec_onnx", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
