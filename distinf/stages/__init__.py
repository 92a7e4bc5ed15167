"""Where what a task imports lay in 0.1: the same modules by their former names."""

import sys
from importlib import import_module

MOVED = {
    "task": "distinf.tasks.task",
    "tensor_task": "distinf.tasks.tensor_task",
    "gram": "distinf.gram",
    "gram.task": "distinf.gram.task",
}
sys.modules |= {f"{__name__}.{old}": import_module(new) for old, new in MOVED.items()}
