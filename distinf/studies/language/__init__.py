"""What the studies of language models share: models and tokenizers by name, adapters, tokens,
fine-tuning. No study by itself.
"""
