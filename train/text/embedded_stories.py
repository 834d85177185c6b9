"""The embedded text: short stories from a seeded grammar of English, so that a language model needs no network."""

import random
from typing import Any, NamedTuple

STORIES, SEED = 360, 0


class Character(NamedTuple):
    """Who a story is about, with the pronouns that agree."""

    name: str
    kind: str
    subject: str
    object: str
    possessive: str


_GIRLS = ("Anna", "Mia", "Lily", "Rosa", "Nora", "Ida", "Emma", "Zoe", "Clara", "Ruth")
_BOYS = ("Tom", "Ben", "Max", "Leo", "Sam", "Otto", "Finn", "Jack", "Hugo", "Ravi")
_ANIMALS = (
    "rabbit", "fox", "bear", "duck", "frog", "owl", "mouse", "hedgehog", "squirrel", "otter", "goat", "ant",
)  # fmt: skip
_TRAITS = (
    "little", "brave", "shy", "curious", "kind", "clever", "sleepy", "honest", "impatient", "old", "cheerful", "proud",
)  # fmt: skip
# A place, and the preposition that it takes.
_PLACES = (
    ("the park", "in"), ("the forest", "in"), ("the garden", "in"), ("the river", "at"), ("the beach", "on"),
    ("the hill", "on"), ("the farm", "on"), ("the market", "at"), ("the pond", "at"), ("the village", "in"),
)  # fmt: skip
_THINGS = (
    "red ball", "kite", "umbrella", "wooden boat", "apple", "blue hat", "drum", "orange scarf", "lantern", "map",
    "silver bell", "egg", "pair of boots", "book", "green cup", "toy train", "acorn", "basket", "spoon", "old key",
)  # fmt: skip
_WEATHER = ("sunny", "windy", "rainy", "cold", "foggy", "warm", "snowy", "quiet")
_FEELINGS = ("sad", "worried", "angry", "afraid", "lonely", "tired")
_SOUNDS = ("a soft song", "a loud crash", "a strange whistle", "someone crying", "the bells of the church", "thunder")
_FOODS = ("soup", "bread and honey", "pancakes", "cake", "apple pie", "warm milk", "porridge", "cherries")
_GAMES = ("hide and seek", "tag", "with the leaves", "pirates", "in the sand", "chess")
_HIDING = ("under a bush", "behind a stone", "in a hollow tree", "beside the path", "between two roots", "on a bench")


class _Narrator:
    """Draws from one generator; `Random.random` alone is the same in every version of Python."""

    def __init__(self, seed: int):
        self._draw = random.Random(seed).random

    def pick(self, choices: Any) -> Any:
        return choices[int(self._draw() * len(choices))]

    def chance(self, probability: float) -> bool:
        return self._draw() < probability

    def character(self) -> Character:
        if self.chance(0.5):
            name, pronouns = self.pick([(_GIRLS, ("she", "her", "her")), (_BOYS, ("he", "him", "his"))])
            kind = {"she": "girl", "he": "boy"}[pronouns[0]]
            return Character(self.pick(name), f"{self.pick(_TRAITS)} {kind}", *pronouns)
        animal, pronouns = self.pick(_ANIMALS), self.pick([("she", "her", "her"), ("he", "him", "his")])
        names = _GIRLS if pronouns[0] == "she" else _BOYS
        return Character(self.pick(names), f"{self.pick(_TRAITS)} {animal}", *pronouns)

    def pair(self) -> tuple[Character, Character]:
        hero, friend = self.character(), self.character()
        while friend.name == hero.name:
            friend = self.character()
        return hero, friend


def stories(count: int = STORIES, seed: int = SEED) -> list[str]:
    """`count` stories, always the same for a seed. Raises ValueError for a count below 1."""
    if count < 1:
        raise ValueError(f"`count` is {count}: a whole number ≥ 1 is needed")
    narrator = _Narrator(seed)
    return [_story(narrator) for _ in range(count)]


def _story(narrator: _Narrator) -> str:
    hero, friend = narrator.pair()
    plot, morals = narrator.pick(_PLOTS)
    moral = narrator.pick(morals)
    paragraphs = [_opening(narrator, hero), *plot(narrator, hero, friend), _ending(narrator, hero, friend, moral)]
    return "\n\n".join(" ".join(paragraph) for paragraph in paragraphs)


def _opening(narrator: _Narrator, hero: Character) -> list[str]:
    place, preposition = narrator.pick(_PLACES)
    start = narrator.pick(
        (
            f"Once upon a time, {_a(hero.kind)} named {hero.name} lived {preposition} {place}.",
            f"There was once {_a(hero.kind)} whose name was {hero.name}.",
            f"{hero.name} was {_a(hero.kind)} who lived near {place}.",
        )
    )
    likes = narrator.pick(
        (
            f"{_up(hero.subject)} loved to play {narrator.pick(_GAMES)}.",
            f"Every morning {hero.subject} ate {narrator.pick(_FOODS)} and looked out of the window.",
            f"{_up(hero.possessive)} favourite food was {narrator.pick(_FOODS)}.",
            f"{_up(hero.subject)} had {_a(narrator.pick(_THINGS))} that {hero.subject} liked very much.",
        )
    )
    return [start, likes]


def _lost_thing(narrator: _Narrator, hero: Character, friend: Character) -> list[list[str]]:
    thing, place, hiding = narrator.pick(_THINGS), narrator.pick(_PLACES), narrator.pick(_HIDING)
    feeling = narrator.pick(_FEELINGS)
    first = [
        f"One {narrator.pick(_WEATHER)} day, {hero.name} could not find {hero.possessive} {thing}.",
        f"{_up(hero.subject)} looked {narrator.pick(_HIDING)} and {place[1]} {place[0]}, but it was not there.",
        f"{hero.name} was {feeling}.",
    ]
    second = [
        f"Then {_a(friend.kind)} named {friend.name} came by.",
        f'"Why are you so {feeling}?" asked {friend.name}.',
        f'"I have lost my {thing}," said {hero.name}.',
        f'"Let us look for it together," said {friend.name}.',
        f"They looked for a long time, and at last {narrator.pick((hero, friend)).name} found the {thing} {hiding}.",
    ]
    return [first, second]


def _sharing(narrator: _Narrator, hero: Character, friend: Character) -> list[list[str]]:
    thing, food = narrator.pick(_THINGS), narrator.pick(_FOODS)
    first = [
        f"One day {hero.name} met {friend.name}, {_a(friend.kind)}.",
        f"{friend.name} had {_a(thing)}, and {hero.name} wanted it too.",
        f'"Give it to me!" {hero.subject} said. "No, it is mine," said {friend.name}.',
        f"Both of them were {narrator.pick(_FEELINGS)}.",
    ]
    second = [
        f"After a while {hero.name} had an idea.",
        f'"If you let me play with your {thing}, I will give you some of my {food}," {hero.subject} said.',
        f"{friend.name} thought about it and smiled.",
        f"So they sat down, ate the {food} and took turns with the {thing}.",
    ]
    return [first, second]


def _storm(narrator: _Narrator, hero: Character, friend: Character) -> list[list[str]]:
    place, preposition = narrator.pick(_PLACES)
    first = [
        f"One evening {hero.name} was alone {preposition} {place} when {hero.subject} heard {narrator.pick(_SOUNDS)}.",
        f"The sky was dark, and {hero.subject} did not know the way home.",
        f'"Is anybody there?" {hero.subject} called.',
    ]
    second = [
        f'"I am here," said a voice. It was {friend.name}, {_a(friend.kind)}, with {_a(narrator.pick(_THINGS))}.',
        f'"Do not be {narrator.pick(_FEELINGS)}. I know the way," {friend.subject} said.',
        f"{friend.name} took {hero.object} by the hand, and they walked slowly until they saw a light.",
        f"At home there was {narrator.pick(_FOODS)} for both of them.",
    ]
    return [first, second]


def _mistake(narrator: _Narrator, hero: Character, friend: Character) -> list[list[str]]:
    thing = narrator.pick(_THINGS)
    first = [
        f"One {narrator.pick(_WEATHER)} morning {hero.name} borrowed the {thing} of {friend.name}, {_a(friend.kind)}.",
        f"{_up(hero.subject)} was not careful, and the {thing} fell into the water.",
        f"{hero.name} wanted to run away, but {hero.subject} went to {friend.name} instead.",
    ]
    second = [
        f'"I am sorry," said {hero.name}. "I have lost your {thing}."',
        f"{friend.name} was {narrator.pick(_FEELINGS)} at first.",
        f'Then {friend.subject} said, "Thank you for telling me. We can make a new one."',
        f"They worked all day, and the new {thing} was even better than the old one.",
    ]
    return [first, second]


def _contest(narrator: _Narrator, hero: Character, friend: Character) -> list[list[str]]:
    place, preposition = narrator.pick(_PLACES)
    skill = narrator.pick(("run", "jump", "swim", "sing", "climb", "dance"))
    winner, other = narrator.pick(((hero, friend), (friend, hero)))
    first = [
        f"One day there was a contest {preposition} {place} to find out who could {skill} best.",
        f"{hero.name} wanted to win, and so did {friend.name}, {_a(friend.kind)}.",
        f'"I am sure that I can {skill} better than you," said {hero.name}.',
    ]
    second = [
        f"They began, and everyone watched. {winner.name} was very good, but then {other.name} fell and cried.",
        f"{winner.name} stopped at once and went back to help {other.object}.",
        f'"You could have won," said {other.name}. "I would rather have a friend," said {winner.name}.',
        f"The judges gave {narrator.pick(_FOODS)} to both of them.",
    ]
    return [first, second]


def _ending(narrator: _Narrator, hero: Character, friend: Character, moral: str) -> list[str]:
    return [
        narrator.pick(
            (
                f"From that day on, {hero.name} and {friend.name} were best friends.",
                f"{hero.name} and {friend.name} laughed and went home together.",
                f"That night {hero.name} slept well and dreamed of {friend.name}.",
                f"They played {narrator.pick(_GAMES)} until the sun went down.",
            )
        ),
        narrator.pick(
            (
                f"{hero.name} had learned that {moral}.",
                f'"Now I know that {moral}," {hero.subject} said.',
                f"And that is how they learned that {moral}.",
            )
        ),
    ]


# Each plot with what can be learned from it.
_PLOTS = (
    (_lost_thing, ("four eyes see more than two", "it is good to ask for help", "a friend is the best treasure")),
    (_sharing, ("it is good to share", "you should ask before you take", "waiting can be a gift too")),
    (_storm, ("brave people are sometimes afraid", "even small helpers can do big things", "help is often near")),
    (_mistake, ("the truth is the shortest way home", "it is never too late to say sorry")),
    (_contest, ("a friend is worth more than a prize", "helping is better than winning")),
)


def _a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _up(word: str) -> str:
    return word[0].upper() + word[1:]
