"""A small deterministic world, told in plain English sentences.

The world has people with five properties, towns with two, animals ordered by size, and
short stories in which people find things and visit towns. Properties and sizes are
knowledge: they never change and are told in several wordings, and the questions ask for
them. Stories are drawn at random, and nobody asks about them: models this small, trained
for minutes, do not learn who had what (trials stayed at chance), so stories count for
perplexity only.

What is held out is decided per sentence: a sentence belongs to the held-out side when
`is_heldout` says so, which depends on nothing but its text (one in `HELDOUT_ONE_IN`).
Training and calibration documents are made only of sentences of the training side,
held-out documents and questions only of the others. So no held-out sentence was ever
seen, but the knowledge in it was seen in other wordings.

Everything is drawn with `random.Random.random()` alone, whose sequence Python promises
to keep, and so the text is the same on every machine and version.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TypeVar
from zlib import crc32

from slmq_edge.builtin.words import (
    ANIMALS,
    EVENT_WORDINGS,
    FOODS,
    GOODS,
    LANDSCAPES,
    PEOPLE,
    PERSON_WORDINGS,
    PETS,
    RECAP_WORDINGS,
    SIZE_WORDINGS,
    SIZE_WORDINGS_REVERSED,
    SPORTS,
    THINGS,
    TOWN_WORDINGS,
    TOWNS,
    TRADES,
)

T = TypeVar("T")
# (person, thing) and (person, town) by kind of event.
Story = dict[str, list[tuple[str, str]]]

HELDOUT_ONE_IN = 5
WORLD_SEED, TRAINING_SEED, CALIBRATION_SEED, HELDOUT_SEED, QUESTION_SEED = 11, 12, 13, 14, 15
CALIBRATION_DOCUMENTS = 1500
HELDOUT_DOCUMENTS = 300
NEAR = 5  # how many ranks of size count as near
QUESTIONS_PER_KIND = {"person": 160, "town": 40, "size": 100}


@dataclass(frozen=True)
class Question:
    """A sentence without its end, and four ends of which one is right.

    A model is asked by the log-likelihood of `" " + choice` after `question`; `answer` is
    the position of the right one, from 0.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int


class Dice:
    """Random choices that do not depend on the Python version."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def below(self, count: int) -> int:
        return int(self._random() * count)

    def choose(self, values: Sequence[T]) -> T:
        return values[int(self._random() * len(values))]

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """Draw `count` different values, in random order (a partial Fisher-Yates shuffle)."""
        pool = list(values)
        for i in range(count):
            j = i + int(self._random() * (len(pool) - i))
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]


def is_heldout(sentence: str) -> bool:
    """Whether a sentence belongs to the held-out side: a fixed property of its text."""
    return crc32(sentence.encode("ascii")) % HELDOUT_ONE_IN == 0


def facts() -> list[tuple[str, str, str, str]]:
    """Return all knowledge as (kind, relation, subject, value); always the same."""
    dice = Dice(WORLD_SEED)
    values = {"home": TOWNS, "trade": TRADES, "pet": PETS, "food": FOODS, "sport": SPORTS}
    people = [("person", r, p, dice.choose(values[r])) for p in PEOPLE for r in PERSON_WORDINGS]
    values = {"landscape": LANDSCAPES, "goods": GOODS}
    towns = [("town", r, t, dice.choose(values[r])) for t in TOWNS for r in TOWN_WORDINGS]
    return people + towns


class Narrator:
    """Tells documents and asks questions, with sentences of one side only."""

    def __init__(self, seed: int, heldout: bool) -> None:
        self.dice = Dice(seed)
        self.allowed: Callable[[str], bool] = lambda text: is_heldout(text) == heldout
        # Sentences of this side about each subject: {kind: {subject: [(relation, sentence)]}}.
        self.known: dict[str, dict[str, list[tuple[str, str]]]] = {"person": {}, "town": {}}
        for kind, relation, subject, value in facts():
            wordings = (PERSON_WORDINGS if kind == "person" else TOWN_WORDINGS)[relation]
            told = [w.format(subject, value) for w in wordings]
            entry = self.known[kind].setdefault(subject, [])
            entry += [(relation, text) for text in told if self.allowed(text)]

    def document(self) -> str:
        """Tell one document."""
        draw = self.dice.below(20)
        if draw < 8:
            return self.story()
        if draw < 16:
            return self.knowledge("person")
        return self.knowledge("town") if draw < 18 else self.sizes()

    def knowledge(self, kind: str) -> str:
        """Tell about one subject, or about several."""
        subjects = [s for s, sentences in self.known[kind].items() if sentences]
        if self.dice.chance(0.5):
            sentences = [text for _, text in self.known[kind][self.dice.choose(subjects)]]
            return " ".join(self.dice.some(sentences, min(5, len(sentences))))
        chosen = self.dice.some(subjects, 5)
        return " ".join(self.dice.choose(self.known[kind][s])[1] for s in chosen)

    def sizes(self) -> str:
        """Compare five pairs of animals."""
        return " ".join(self._size(SIZE_WORDINGS + SIZE_WORDINGS_REVERSED)[0] for _ in range(5))

    def story(self) -> str:
        """Tell what happened to two to four people, then how matters stand."""
        events, sentences = self._events(2 + self.dice.below(3))
        recaps = [
            text
            for kind, wordings in RECAP_WORDINGS.items()
            for event in events["visit" if kind == "visit" else "thing"]
            for text in self._told(wordings, *event)
        ]
        return " ".join(sentences + self.dice.some(recaps, min(6, len(recaps))))

    def ask(self, kind: str) -> tuple[str, tuple[str, ...], str]:
        """Ask one question: its text, four choices in random order, the right one."""
        if kind == "size":
            return self._ask_size()
        sentences: list[tuple[str, str]] = []
        while not sentences:
            sentences = self.known[kind][self.dice.choose(list(self.known[kind]))]
        relation, text = self.dice.choose(sentences)
        question, right = text.removesuffix(".").rsplit(" ", 1)
        wrong = sorted({v for _, r, _, v in facts() if r == relation} - {right})
        return question, self._shuffled(right, self.dice.some(wrong, 3)), right

    def _ask_size(self) -> tuple[str, tuple[str, ...], str]:
        """Ask for the one smaller (or bigger) animal; the wrong ones are near in size."""
        reverse = self.dice.chance(0.5)
        while True:
            text, big, small = self._size(SIZE_WORDINGS_REVERSED if reverse else SIZE_WORDINGS)
            wrong = ANIMALS[max(0, small - NEAR) : small] if reverse else ANIMALS[big + 1 :][:NEAR]
            if len(wrong) >= 3 and big - small <= NEAR:
                question, right = text.removesuffix(".").rsplit(" ", 1)
                return question, self._shuffled(right, self.dice.some(wrong, 3)), right

    def _shuffled(self, right: str, wrong: list[str]) -> tuple[str, ...]:
        return tuple(self.dice.some([right, *wrong], 4))

    def _size(self, wordings: Sequence[str]) -> tuple[str, int, int]:
        """Compare two animals of different size: the sentence, the bigger, the smaller."""
        while True:
            small, big = sorted((self.dice.below(len(ANIMALS)), self.dice.below(len(ANIMALS))))
            text = self.dice.choose(wordings).format(ANIMALS[big], ANIMALS[small])
            if small < big and self.allowed(text):
                return text, big, small

    def _events(self, count: int) -> tuple[Story, list[str]]:
        """Let each of `count` people come to a thing and a town of their own, in any order."""
        people = self.dice.some(PEOPLE, count)
        events: Story = {"thing": [], "visit": []}
        sentences: list[str] = []
        for kind, names in (("thing", THINGS), ("visit", TOWNS)):
            free = self.dice.some(names, len(names))
            for person in people:
                # The first free name that any allowed wording can tell, so names stay uniform.
                name, told = next(
                    (name, told)
                    for name in free
                    if (told := self._told(EVENT_WORDINGS[kind], person, name))
                )
                free.remove(name)
                events[kind].append((person, name))
                sentences.append(self.dice.choose(told))
        return events, self.dice.some(sentences, len(sentences))

    def _told(self, wordings: Sequence[str], person: str, name: str) -> list[str]:
        return [t for w in wordings if self.allowed(t := w.format(person, name))]


def _documents(seed: int, heldout: bool) -> Iterator[str]:
    narrator = Narrator(seed, heldout)
    while True:
        yield narrator.document()


def training_documents(count: int) -> Iterator[str]:
    """Yield the first `count` documents that the built-in models were trained on."""
    return islice(_documents(TRAINING_SEED, heldout=False), count)


def calibration_text() -> list[str]:
    """Return documents like those of training: at least 64k tokens, in under a second."""
    return list(islice(_documents(CALIBRATION_SEED, heldout=False), CALIBRATION_DOCUMENTS))


def heldout_documents() -> list[str]:
    """Return documents for perplexity, no sentence of which occurs in training."""
    return list(islice(_documents(HELDOUT_SEED, heldout=True), HELDOUT_DOCUMENTS))


def questions() -> list[Question]:
    """Return the multiple-choice questions, no sentence of which occurs in training."""
    narrator = Narrator(QUESTION_SEED, heldout=True)
    asked: dict[tuple[str, str], Question] = {}
    for kind, count in QUESTIONS_PER_KIND.items():
        number = 0
        while number < count:
            text, choices, right = narrator.ask(kind)
            if (text, right) not in asked:
                name = f"{kind}-{number:03d}"
                asked[text, right] = Question(name, text, choices, choices.index(right))
                number += 1
    return list(asked.values())
