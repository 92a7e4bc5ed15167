"""What Vitel and Chhabra call their models."""

NAMES = {  # by hub id
    "FacebookAI/roberta-large": "roberta-large",
    "meta-llama/Llama-3.2-1B": "llama-3.2-1b",
    "Qwen/Qwen2.5-1.5B": "qwen-2.5-1.5b",
    "mistralai/Mistral-7B-v0.3": "mistral-7b",
}


def paper_name(model: str) -> str:
    """ "" for any other."""
    return NAMES.get(model, "")
