"""Make the pages of `dvc plots show` and `dvc plots diff` independent of the web.

These pages draw curves with Vega. By default, DVC loads it from the web, and without a network the page has no curves.
This program writes a template for the pages that contains Vega, which the package vl-convert-python supplies, and sets
DVC to use it on this machine. Both files that it writes are git-ignored.

Example:
  python -m lm.report.dvc_plots
"""

import argparse
from pathlib import Path

from lm.atomic import write_text
from lm.errors import UserError, exit_cleanly
from lm.schema import read_bytes

TEMPLATE = "plots.html"
OFFLINE_TEMPLATE = "plots-offline.html"

_SCRIPTS = "{scripts}"  # where DVC writes the tags that load Vega
_VEGA_LITE = "5.21"  # the specifications of DVC's plots have the format of Vega-Lite 5


def write_offline_template(folder: Path) -> None:
    """Write `plots-offline.html`, which is `plots.html` with Vega in it, and set DVC to use it.

    Args:
        folder: the folder `.dvc` of the project. The setting is in its config.local.

    Raises:
        UserError: the folder has no `plots.html`.
    """
    from dvc.config import Config
    from vl_convert import javascript_bundle

    template = read_bytes(folder / TEMPLATE, "run this in the folder of the project").decode()
    if _SCRIPTS not in template:
        raise UserError(f"{folder / TEMPLATE}: expected {_SCRIPTS} in it, got none; restore the file")
    bundle = javascript_bundle("window.vegaEmbed = vegaEmbed", _VEGA_LITE).replace("</script", r"<\/script")
    # In a function, so that the names of the libraries are not those of the page.
    script = f"<script>(() => {{\n{bundle}\n}})()</script>"
    write_text(folder / OFFLINE_TEMPLATE, template.replace(_SCRIPTS, script))
    with Config(str(folder)).edit("local") as config:
        config.setdefault("plots", {})["html_template"] = OFFLINE_TEMPLATE


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m lm.report.dvc_plots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    write_offline_template(Path(".dvc"))


if __name__ == "__main__":
    exit_cleanly(main)
