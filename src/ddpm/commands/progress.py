"""A progress bar that counts network evaluations."""

from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from ddpm.commands import display
from ddpm.diffusion.process import Network


class Evaluations(Progress):
    """Shows one bar for each part of the work; one image at one timestep counts as one evaluation.

    Args:
        processes: number of processes that share the work evenly; each evaluation here counts this many times.
    """

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
        super().__init__(*columns, console=display.console)

    def part(self, name: str, total: int) -> Callable[[int], None]:
        """Add a bar that ends at `total`; return the function that advances it by a number of evaluations."""
        task = self.add_task(name, total=total)
        return lambda done: self.advance(task, done * self.processes)

    def count(self, network: Network, name: str, total: int) -> Network:
        """Return `network` wrapped, so that its evaluations advance a new bar towards `total`."""
        advance = self.part(name, total)

        def counted(x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            output = network(x_t, t, **condition)
            advance(len(x_t))
            return output

        return counted


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed / (task.elapsed or 1):.0f}/s")
