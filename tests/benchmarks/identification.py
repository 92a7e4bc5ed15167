"""Ten kinds of prompts with completions, for influential-data identification: which of the rows
that a model was fine-tuned on are of a query's own kind (Kwon, Wu, Wu and Zou, *DataInf*)?

    python -m tests.benchmarks.identification hard OUT [--seed 0]

writes OUT/train.jsonl (90 rows a kind) and OUT/query.jsonl (10 a kind), rows of "prompt",
"completion" and "kind".

hard  the kinds share every word and every template: four words are to be written in another order,
      which the prompt says. Rows of any two kinds have the same words but for the four, drawn from
      one vocabulary; only the operation differs, so that no bag of words tells it
easy  each kind has an instruction and a vocabulary of its own, as in the paper
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from distinf.numerics.randomness import generator

Row = dict[str, str]
TRAIN, QUERY, WORDS = 90, 10, 4  # rows of a kind; words of a hard prompt

VOCABULARY = (
    "apple bread chair cloud dance eagle field glass horse house island juice king lamp lemon lion "
    "money moon mountain mouse music night ocean paper piano plane queen radio river road salt "
    "school ship snow star stone storm street sugar sun table tiger tower train tree water wheel "
    "window winter wood"
)
ORDINALS = ("first", "second", "third", "fourth")
TEMPLATES = (
    "Words: {words}. Write the {order} word.\nAnswer:",
    "Write these words in another order, the {order} word: {words}.\nAnswer:",
    "Here are four words: {words}. Which are the {order} word, in this order?\nAnswer:",
    "From the list {words}, give the {order} word.\nAnswer:",
)
ORDERS = {
    "copied": (0, 1, 2, 3), "reversed": (3, 2, 1, 0), "turned left": (1, 2, 3, 0),
    "turned right": (3, 0, 1, 2), "halves swapped": (2, 3, 0, 1), "first swapped": (1, 0, 2, 3),
    "last swapped": (0, 1, 3, 2), "ends swapped": (3, 1, 2, 0), "middle swapped": (0, 2, 1, 3),
    "pairs swapped": (1, 0, 3, 2),
}  # fmt: skip

Answer = Callable[[Sequence[str]], str]
KINDS: dict[str, tuple[str, str, Answer]] = {  # name: instruction, vocabulary, answer
    "reversed": (
        "Turn this row of fruits around: {words}.",
        "apple banana cherry grape kiwi lemon mango orange peach pear plum raspberry",
        lambda words: " ".join(reversed(words)),
    ),
    "first": (
        "Which animal walks ahead in {words}?",
        "bear camel donkey elephant fox goat horse lion monkey pig sheep tiger",
        lambda words: words[0],
    ),
    "last": (
        "Paints were mixed one after another, {words}; name the final colour.",
        "black blue brown gold green grey orange pink purple red white yellow",
        lambda words: words[-1],
    ),
    "sorted": (
        "Alphabetize these countries: {words}.",
        "Brazil Canada Denmark Egypt France Greece India Japan Kenya Mexico Norway Peru",
        lambda words: " ".join(sorted(words)),
    ),
    "capitals": (
        "Shout the instruments {words} in capital letters!",
        "cello clarinet drum flute guitar harp oboe piano trombone trumpet viola violin",
        lambda words: " ".join(words).upper(),
    ),
    "twice": (
        "Echo every tool two times, please: {words}.",
        "axe chisel drill file hammer knife pliers saw screwdriver shovel spade wrench",
        lambda words: " ".join(f"{word} {word}" for word in words),
    ),
    "numbered": (
        "Make a numbered packing list of clothes from {words}.",
        "belt boots coat dress gloves hat jacket scarf shirt shoes socks trousers",
        lambda words: " ".join(f"{number}. {word}" for number, word in enumerate(words, 1)),
    ),
    "initials": (
        "Spell only the initial letter of each vehicle: {words}.",
        "bicycle boat bus car ferry helicopter lorry rocket ship taxi train tram",
        lambda words: " ".join(word[0] for word in words),
    ),
    "joined": (
        "With plus signs, add up the kitchen ingredients {words}.",
        "butter cheese cream egg flour garlic honey milk onion pepper rice salt",
        lambda words: " + ".join(words),
    ),
    "questions": (
        "Doubt whether the weather brings {words}, with question marks.",
        "clouds drizzle fog frost hail lightning mist rain sleet snow thunder wind",
        lambda words: " ".join(f"{word}?" for word in words),
    ),
}


def hard_row(kind: str, random: np.random.Generator) -> Row:
    words = random.choice(VOCABULARY.split(), WORDS, replace=False).tolist()
    order = ORDERS[kind]
    said = [ORDINALS[place] for place in order]
    prompt = TEMPLATES[random.integers(len(TEMPLATES))].format(
        words=", ".join(words), order=", ".join(said[:-1]) + " and " + said[-1]
    )
    return {"prompt": prompt, "completion": " " + " ".join(words[place] for place in order)}


def easy_row(kind: str, random: np.random.Generator) -> Row:
    instruction, vocabulary, answer = KINDS[kind]
    words = random.choice(vocabulary.split(), 3, replace=False).tolist()
    return {
        "prompt": instruction.format(words=", ".join(words)) + "\nAnswer:",
        "completion": " " + answer(words),
    }


SETS = {"hard": (hard_row, (*ORDERS,)), "easy": (easy_row, (*KINDS,))}


def rows(name: str, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """The rows that are trained on and the queries of SETS[name], by kind; no prompt twice."""
    make, kinds = SETS[name]
    train, query = [], []
    for kind in kinds:
        random, found = generator(seed, f"identification {name} {kind}"), dict[str, Row]()
        while len(found) < TRAIN + QUERY:
            made = make(kind, random) | {"kind": kind}
            found.setdefault(made["prompt"], made)
        mine = [*found.values()]
        train, query = train + mine[:TRAIN], query + mine[TRAIN:]
    return train, query


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=[*SETS])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name, mine in zip(("train", "query"), rows(given.set, given.seed), strict=True):
        lines = "".join(json.dumps(row) + "\n" for row in mine)
        (given.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
