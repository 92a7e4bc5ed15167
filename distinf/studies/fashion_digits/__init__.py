"""A network that knows clothes is fine-tuned on single digits, clean and with noise on them."""
