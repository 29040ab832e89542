"""Tasks: what is to be learned, from data in memory, in a file or a folder of the user's.

Order of reading: `task`, `split`, `samples`, `readers`, `goals`, then `catalogue` and the loaders that it
names.
"""

from esper.tamiyo.tasks.catalogue import TASKS, load_task
from esper.tamiyo.tasks.goals import Goal
from esper.tamiyo.tasks.readers import Readers
from esper.tamiyo.tasks.source import Source
from esper.tamiyo.tasks.split import DatasetSplit, Split
from esper.tamiyo.tasks.task import Task

__all__ = ["TASKS", "DatasetSplit", "Goal", "Readers", "Source", "Split", "Task", "load_task"]
