"""The receiver study: DeepRx on simulated 5G uplink slots."""

from distinf.studies.receiver.task import ReceiverSettings, ReceiverTask, task

__all__ = ["ReceiverSettings", "ReceiverTask", "task"]
