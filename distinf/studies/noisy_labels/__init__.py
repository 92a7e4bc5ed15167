"""The noisy-labels study (Vitel and Chhabra): language models with adapters, on flipped labels."""

from distinf.studies.noisy_labels.settings import NoisyLabelSettings
from distinf.studies.noisy_labels.task import NoisyLabels, task

__all__ = ["NoisyLabelSettings", "NoisyLabels", "task"]
