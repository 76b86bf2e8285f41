"""One HTML file about a run or a grid of runs: `fedgan report`."""

from fedgan.report.page import REPORT, Report, render, write_report

__all__ = ["REPORT", "Report", "render", "write_report"]
