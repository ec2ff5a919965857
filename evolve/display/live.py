"""Progress on a terminal: a few lines that are drawn again in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from evolve.display.progress import Progress


class Rich:
    """Draws on stderr, so that stdout stays free for results."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._live.start()

    def draw(self, progress: Progress) -> None:
        """Draw ``progress`` in place of what was drawn before."""
        self._live.update(picture(progress), refresh=True)

    def close(self, progress: Progress | None) -> None:
        """Leave the last picture on the screen and give the terminal back."""
        try:
            if progress is not None:
                self.draw(progress)
        finally:
            self._live.stop()


def picture(progress: Progress) -> RenderableType:
    """Return the lines that show ``progress``."""
    (_, phase), *facts = progress.facts()
    title = Text.assemble((progress.name, "bold"), f"  {phase}")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for label, text in facts:
        grid.add_row(label, Text(text, style=_style(label, progress)))
    bar = ProgressBar(total=progress.trials or 1, completed=progress.complete, width=50)
    return Group(title, bar, grid) if progress.trials else Group(title, grid)


def _style(label: str, progress: Progress) -> str:
    if label == "failed":
        return "red"
    if label == "best so far" and progress.best is not None and progress.best_parent is not None:
        return "bold green" if progress.best > progress.best_parent else "yellow"
    return ""
