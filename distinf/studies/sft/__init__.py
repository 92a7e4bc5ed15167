"""Supervised fine-tuning of causal language models: which rows made an output better or worse?"""
