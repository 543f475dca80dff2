"""Tasks: prompts with answers and a rule that says when an answer is right; read from files or generated."""

from interpcore.data.tasks.made import KINDS, PUBLISHED, make_task, make_tasks
from interpcore.data.tasks.task import SCORERS, Example, Task, TaskError, read_tasks, write_tasks

__all__ = [
    "KINDS",
    "PUBLISHED",
    "SCORERS",
    "Example",
    "Task",
    "TaskError",
    "make_task",
    "make_tasks",
    "read_tasks",
    "write_tasks",
]
