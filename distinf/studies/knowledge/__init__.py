"""Small worlds of made-up words, told to a language model one statement at a time."""
