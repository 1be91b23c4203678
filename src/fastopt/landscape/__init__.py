"""Pictures of optimizers on their way over a surface: a plot, or a page on which the paths move.

>>> from fastopt import landscape, surfaces
>>> runs = landscape.run([surfaces.rosenbrock()], ["momentum", "adam"], lrs=[1e-3, 1e-2], steps=200)
>>> figure = landscape.figure(landscape.best(runs))  # needs matplotlib
>>> page = landscape.page(runs)  # needs plotly; one string of HTML
"""

from fastopt.landscape.figure import figure
from fastopt.landscape.page import page
from fastopt.landscape.runs import Run, best, optimizer_names, run

__all__ = ["Run", "best", "figure", "optimizer_names", "page", "run"]
