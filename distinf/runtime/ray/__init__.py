"""The Ray runtime: one set of warm actors for pools and gangs. The only place that imports ray.

cluster  started here or joined, what is in it, and its end
actors   workers on it: started, asked whether they live, stopped, their calls heard
pool     units handed out to them
runtime  the verbs of `distinf.runtime.Runtime`
"""

from distinf.runtime.ray.runtime import RayRuntime

__all__ = ["RayRuntime"]
