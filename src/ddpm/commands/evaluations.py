"""A progress bar that counts how often a network was asked."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from ddpm.commands import display
from ddpm.diffusion.process import Network


class Evaluations(Progress):
    """A bar for each part of the work; an image at a timestep counts one.

    Args:
        processes: how many share the work, evenly: what this one does counts so many times.
    """

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
        super().__init__(*columns, console=display.console)

    def count(self, network: Network, part: str, total: int) -> Network:
        """`network`, whose evaluations advance a bar of its own to `total`."""
        task = self.add_task(part, total=total)

        def counted(x_t: Tensor, t: Tensor) -> Tensor:
            output = network(x_t, t)
            self.advance(task, len(x_t) * self.processes)
            return output

        return counted


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed / (task.elapsed or 1):.0f}/s")
