"""Plots: pure functions from numbers to one ``<svg>``, for a page or, by ``as_file``, for a file.

svg            elements, text that is escaped and measured, the frame of a drawing
style          colours in light and in dark, once for all plots of a page
axes           round numbers, linear and logarithmic scales
labels         where names of points go, and what goes to a numbered key
pareto         points, and the front that none of them beats
bars           groups of values with intervals
distributions  what a method makes of weights and inputs, layer by layer

A page puts ``STYLE`` into one ``<style>``. Classes begin with ``plot``; every mark is a ``<g>`` of
class ``plot-mark`` with a ``<title>`` that has its figures. Nothing is fetched and nothing runs.
"""

from __future__ import annotations

from slmq_edge.reports.plots.bars import bars
from slmq_edge.reports.plots.distributions import distributions
from slmq_edge.reports.plots.pareto import Point, pareto
from slmq_edge.reports.plots.style import STYLE
from slmq_edge.reports.plots.svg import as_file

__all__ = ["STYLE", "Point", "as_file", "bars", "distributions", "pareto"]
