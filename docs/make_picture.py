"""Makes docs/demo.svg, the README's picture, from a real run of the demo: python docs/make_picture.py."""

import io
import re
from pathlib import Path

from hydrophone.demo.run import Options, run_demo
from hydrophone.demo.telling import print_telling
from hydrophone.demo.view import panel
from rich.console import Console


def main() -> None:
    """Run the demo in full and draw its last reading and a few of the features it told."""
    outcome = run_demo(Options(once=True, http="127.0.0.1:0"), Console())
    picture = Console(record=True, width=112, file=io.StringIO(), force_terminal=True)
    picture.print(panel(outcome.figures, outcome.fvus, outcome.figures.tokens, outcome.stream))
    print_telling(picture, outcome.telling[:5])
    svg = picture.export_svg(title="hydrophone demo")
    # the page that shows it is not to fetch fonts from elsewhere: the reader's own monospace font serves
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    Path(__file__).with_name("demo.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
