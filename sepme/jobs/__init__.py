"""Erasures as jobs: many concepts in a folder, over several processes, with their cost foretold."""

from sepme.jobs.forecast import Forecast
from sepme.jobs.tasks import Process, erase_into, plan

__all__ = ["Forecast", "Process", "erase_into", "plan"]
